# shellcheck shell=bash disable=SC2034
# Debian's Rust compiler, unpacked into the cache: it has what the user's may not have and nobody may be able to fetch, the
# library for arm64 and the library's sources. What deploy/arm-kernels and deploy/check-macos share.
# Sourced after lib.sh, never run.

DEBIAN_RUST=$CACHE/debian-rust
DEBIAN_RUST_USR=$DEBIAN_RUST/root/usr

# private_apt COMMAND...: apt-get or apt-cache with lists of its own, which hold arm64 as well and need no root; the system's
# architectures stay as they are.
private_apt() {
    local apt=$SCRATCH/apt command=$1
    shift
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
    "$command" -q -o Dir::State="$apt" -o Dir::State::status=/dev/null -o Dir::Cache="$apt/cache" \
        -o APT::Architectures::=arm64 -o APT::Sandbox::User=root "$@"
}

# depends_on PACKAGE PREFIX: prints the first dependency of PACKAGE whose name starts with PREFIX. Names of libraries hold
# versions, which move with security updates.
depends_on() {
    local found
    found=$(private_apt apt-cache depends "$1" | sed -n "s/^ *Depends: \($2[^ ]*\)$/\1/p" | head -n 1)
    [ -n "$found" ] || die "Debian's $1 depends on no $2*; this script needs Debian 12 or later with its security updates"
    printf '%s\n' "$found"
}

# ensure_debian_rust: compiler, lints, the library for this machine and for arm64, and the library's sources, all of one
# version, in a folder of their own: installed, they would be in the way of the user's Rust.
ensure_debian_rust() {
    [ -e "$DEBIAN_RUST/ready" ] && return
    command -v apt-get >/dev/null || die "there is no apt-get; this script runs on Debian"
    say "Unpacking Debian's Rust compiler into $DEBIAN_RUST (175 MB to fetch)"
    ensure dpkg-deb dpkg ""
    local version std llvm deb fresh=$DEBIAN_RUST.$$
    quietly private_apt apt-get update
    std=$(depends_on libstd-rust-web-dev libstd-rust-web-)
    llvm=$(depends_on "$std" libllvm)
    version=$(private_apt apt-cache policy rustc-web | sed -n 's/^ *Candidate: //p')
    mkdir "$SCRATCH/debs"
    # The version for every package of that source: mirrors may have one architecture before the other.
    (cd "$SCRATCH/debs" && quietly private_apt apt-get download "$llvm" {rustc-web,rust-web-clippy,rust-web-src}="$version" \
        {libstd-rust-web-dev,"$std",libstd-rust-web-dev:arm64}="$version")
    rm -rf "$fresh"
    mkdir -p "$fresh/root"
    for deb in "$SCRATCH"/debs/*.deb; do
        # Of the sources only the library's.
        dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$fresh/root" --no-wildcards-match-slash \
            --exclude='./usr/src/*/compiler' --exclude='./usr/src/*/src' --exclude=./usr/share
    done
    rm -rf "$SCRATCH/debs" "$SCRATCH/apt"
    touch "$fresh/ready"
    # The last step is a rename, so that nobody ever sees half a compiler.
    rm -rf "$DEBIAN_RUST"
    mv "$fresh" "$DEBIAN_RUST"
}

# use_debian_rust: from here on cargo runs the unpacked compiler, for the target and with the flags that it is told.
use_debian_rust() {
    RUSTC=$DEBIAN_RUST_USR/bin/rustc
    SYSROOT=$DEBIAN_RUST_USR
    LD_LIBRARY_PATH=$(printf '%s:' "$DEBIAN_RUST_USR"/lib/*-linux-gnu)${LD_LIBRARY_PATH:-}
    export RUSTC SYSROOT LD_LIBRARY_PATH
    unset RUSTC_WRAPPER RUSTC_WORKSPACE_WRAPPER RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET CARGO_TARGET_DIR
}
