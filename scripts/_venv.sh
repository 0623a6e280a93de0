# Sourced by the scripts beside it: finds a Python and keeps a virtual environment (POSIX sh).
# LEGATO_VENV names another folder than .venv; PYTHON names the interpreter to make it with.

VENV=${LEGATO_VENV:-.venv}

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# A shim of a version manager may exist and still not run, so every candidate is asked.
find_python() {
    for candidate in ${PYTHON:-} python3.13 python3.12 python3.11 python3; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    die "no Python 3.11, 3.12 or 3.13 found; install one, or name it: PYTHON=/path/to/python3.12 sh $0"
}

# ensure_venv NAME ARGUMENTS...: makes the environment and installs once per change of the requirements.
ensure_venv() {
    stamp="$VENV/.legato-$1"
    shift
    want="$(cat pyproject.toml constraints/ci.txt | cksum) $PWD $*" # a moved tree is installed again
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ] && "$VENV/bin/python" -c '' 2>/dev/null; then
        return 0
    fi
    if [ ! -x "$VENV/bin/python" ] || ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        python=$(find_python) || exit 1
        say "making $VENV with $("$python" --version)"
        "$python" -m venv --clear "$VENV" ||
            die "$python cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv"
    fi
    say "installing into $VENV (the first time takes some minutes)"
    "$VENV/bin/python" -m pip install -qq --disable-pip-version-check "$@" ||
        die "pip could not install Legato; its message is above (pip install $*)"
    printf '%s' "$want" > "$stamp"
}

# The environment's Python where there is one, else the one on the path.
venv_python() {
    if [ -x "$VENV/bin/python" ]; then printf '%s\n' "$VENV/bin/python"; else find_python; fi
}
