# shellcheck shell=bash disable=SC2034
# How deploy/test runs its stages: by name, with their times, and passing by what would do again what it did before.
# Sourced after lib.sh, never run.
#
# A stage that is said to be a `stage_of` files is passed by while nothing changes that its result depends on: those files, the
# versions of its tools, its command, the scripts' library, this machine's CPU. The digest of these is kept in the cache when the
# stage passes. What a stage reads beyond that has to be pinned by it, as Cargo.lock pins crates.

PASSED=$CACHE/passed
# What `stage` does: tell its name, tell what it is, or run.
MODE=names
NAMES=""
WANTED=""
ANYWAY=false
TIMES=""
# What runs now, and since when; tell_times says it.
RUNNING=""
BEGAN=0
READS=""
TOOLS=""

# choose_stages FUNCTION ARGUMENT...: what is to be done with the stages that FUNCTION lists: --list, --all, names.
choose_stages() {
    local argument
    "$1"
    MODE=run
    for argument in "${@:2}"; do
        case $argument in
            --list) MODE=list ;;
            --all) ANYWAY=true ;;
            -*) die "deploy/test knows no $argument; it takes names of stages, --all, or --list" ;;
            *)
                is_among "$argument" "$NAMES" || die "there is no stage $argument; the stages are$NAMES"
                WANTED="$WANTED $argument"
                ;;
        esac
    done
}

is_among() { case " $2 " in *" $1 "*) ;; *) return 1 ;; esac; }

# stage_of FILES TOOLS NAME WHAT COMMAND...: a stage that depends on these alone: files and folders of the work tree, files with
# absolute paths, and programs that tell their version.
stage_of() {
    READS=$1 TOOLS=$2
    shift 2
    stage "$@"
    READS="" TOOLS=""
}

# stage NAME WHAT COMMAND...: runs COMMAND, keeps its time, ends the script if it fails.
stage() {
    local name=$1 what=$2
    shift 2
    case $MODE in
        names) NAMES="$NAMES $name" ;;
        list) printf '%-14s%s%s\n' "$name" "$what" "${READS:+ (if what it reads has changed)}" ;;
        run)
            if [ -n "$WANTED" ] && ! is_among "$name" "$WANTED"; then return; fi
            say "$what"
            if [ -z "$READS" ]; then timed "$what" "$@"; else unless_passed "$name" "$what" "$@"; fi
            ;;
    esac
}

timed() {
    RUNNING=$1 BEGAN=$SECONDS
    shift
    "$@" </dev/null
    TIMES="$TIMES$(printf '%6d s  %s' $((SECONDS - BEGAN)) "$RUNNING")"$'\n'
    RUNNING=""
}

# tell_times: of what has run, and of what was running if the script ends in the middle of it.
tell_times() {
    if [ -n "$RUNNING" ]; then TIMES="$TIMES$(printf '%6d s  %s: did not pass' $((SECONDS - BEGAN)) "$RUNNING")"$'\n'; fi
    if [ -n "$TIMES" ]; then printf '%s%6d s  in all\n' "$TIMES" "$SECONDS"; fi
}

# ended: as clean_up of lib.sh, after the times. A stage that fails took time, too.
ended() {
    local status=$?
    # clean_up takes the status of the command before it, and must run whatever that is.
    set +e
    tell_times
    (exit "$status")
    clean_up
}
trap ended EXIT

unless_passed() {
    local name=$1 what=$2 files
    shift 2
    files=$(files_read)
    if ! $ANYWAY && [ "$(digest "$files" "$@")" = "$(cat "$PASSED/$name" 2>/dev/null)" ]; then
        printf 'unchanged since it passed\n'
        TIMES="$TIMES       -  $what: unchanged since it passed"$'\n'
        return
    fi
    timed "$what" "$@"
    # Files that changed meanwhile may not have been seen. Tools may have been installed by the stage.
    [ "$(files_read)" = "$files" ] || return 0
    mkdir -p "$PASSED"
    digest "$files" "$@" >"$PASSED/$name.$$"
    mv "$PASSED/$name.$$" "$PASSED/$name"
}

# digest FILES COMMAND...
digest() {
    local tool
    {
        printf '%s\n' "$@"
        uname -sm
        grep -m 1 '^flags' /proc/cpuinfo 2>/dev/null || sysctl -n machdep.cpu.brand_string
        for tool in $TOOLS; do "$tool" --version 2>&1 || echo "no $tool"; done
    } | sha256 -
}

# files_read: mode, digest and name of every file in READS.
files_read() {
    local path tracked=()
    for path in $READS; do
        case $path in
            /*) [ ! -e "$path" ] || printf '%s %s\n' "$(sha256 "$path")" "$path" ;;
            *) tracked+=("$path") ;;
        esac
    done
    work_tree deploy/lib.sh ${tracked[@]+"${tracked[@]}"}
}

# work_tree PATH...: what git would store of the work tree, changes and new files included, from an index and a store of objects
# that nobody else uses. A path that is not there ends the script, because a stage must not miss what was moved.
work_tree() {
    local store
    store=$(cd "$(git rev-parse --git-path objects)" && pwd)
    cp "$(git rev-parse --git-path index)" "$SCRATCH/index"
    mkdir -p "$SCRATCH/objects"
    GIT_INDEX_FILE=$SCRATCH/index GIT_OBJECT_DIRECTORY=$SCRATCH/objects GIT_ALTERNATE_OBJECT_DIRECTORIES=$store git add -A
    GIT_INDEX_FILE=$SCRATCH/index git ls-files -s --error-unmatch -- "$@" ||
        die "a stage reads what is not there; correct in deploy/test what it reads"
}
