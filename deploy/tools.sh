# shellcheck shell=bash disable=SC2034
# Tools that checks and releases need beyond compiler, Redis and shellcheck, each at one version that is written here, kept in
# the cache because building them takes minutes. Sourced after lib.sh, never run.

CARGO_DENY_VERSION=0.20.2
CARGO_ABOUT_VERSION=0.9.3
CARGO_CYCLONEDX_VERSION=0.5.9
CYCLONEDX_LIB_VERSION=11.12.0

# ensure_cargo_tool NAME VERSION FLAG…: a program that extends cargo; its path is then in $TOOL.
ensure_cargo_tool() {
    TOOL=$CACHE/tools/bin/$1
    # What cargo has put there; not every tool tells its version.
    [ -x "$TOOL" ] && grep -qF "\"$1 $2 (" "$CACHE/tools/.crates.toml" 2>/dev/null && return
    say "Building $1 $2 (minutes, once)"
    cargo install --locked "$1" --version "$2" --root "$CACHE/tools" "${@:3}"
}

ensure_cargo_deny() {
    ensure_cargo_tool cargo-deny "$CARGO_DENY_VERSION"
    CARGO_DENY=$TOOL
}

ensure_cargo_about() {
    ensure_cargo_tool cargo-about "$CARGO_ABOUT_VERSION" --features cli
    CARGO_ABOUT=$TOOL
}

ensure_cargo_cyclonedx() {
    ensure_cargo_tool cargo-cyclonedx "$CARGO_CYCLONEDX_VERSION"
    CARGO_CYCLONEDX=$TOOL
}

# ensure_cyclonedx_lib: the Python library with CycloneDX's schemas, in a folder of its own; $CYCLONEDX_LIB is what PYTHONPATH
# has to be.
ensure_cyclonedx_lib() {
    CYCLONEDX_LIB=$CACHE/tools/cyclonedx-python-lib-$CYCLONEDX_LIB_VERSION
    ensure python3 python3 python
    [ -e "$CYCLONEDX_LIB/ready" ] && return
    ensure_pip
    say "Fetching CycloneDX's schemas"
    rm -rf "$CYCLONEDX_LIB"
    quietly python3 -m pip install --disable-pip-version-check --target "$CYCLONEDX_LIB" \
        "cyclonedx-python-lib[json-validation]==$CYCLONEDX_LIB_VERSION"
    # Last, so that an interrupted installation begins anew.
    touch "$CYCLONEDX_LIB/ready"
}

# find_programs FOLDER: the folder, or target/release, is then in $BIN, and holds both programs.
find_programs() {
    BIN=${1:-${CARGO_TARGET_DIR:-$ROOT/target}/release}
    if [ ! -x "$BIN/turnmill" ] || [ ! -x "$BIN/turnmill-worker" ]; then
        die "$BIN has no turnmill and turnmill-worker; build them: cargo build --release --bins"
    fi
    BIN=$(cd "$BIN" && pwd)
}

# version: the workspace's.
version() { sed -n 's/^version = "\(.*\)"$/\1/p' "$ROOT/Cargo.toml" | head -n 1; }

# copy_tree FOLDER: a copy of what git tracks, as it is in the work tree.
copy_tree() {
    mkdir -p "$1"
    git -C "$ROOT" ls-files -z | (cd "$ROOT" && tar -c --null -T - -f -) | tar -x -C "$1" -f -
}

# source_date: seconds since 1970 that stand for "now" in what must come out the same each time: SOURCE_DATE_EPOCH, or the time
# of the last commit.
source_date() { printf '%s\n' "${SOURCE_DATE_EPOCH:-$(git -C "$ROOT" log -1 --format=%ct)}"; }
