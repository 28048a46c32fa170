# Sourced by quickstart.sh, test.sh and .ci/run: `prepare_environment [EXTRA]` makes the virtual environment and
# installs the project there, or returns at once where that was done. Sets `root` and `venv`.
#
#   LLM_UNLEARN_VENV    where the environment lies (default: .venv in the clone)
#   LLM_UNLEARN_PYTHON  the Python that makes it (default: the first of the list below that fits)

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${LLM_UNLEARN_VENV:-$root/.venv}

# Prints the first interpreter in the range of pyproject.toml; the user's own `python3` comes first.
find_python() {
    local candidate
    for candidate in ${LLM_UNLEARN_PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then
            echo "$candidate"
            return 0
        fi
    done
    echo "llm_unlearn needs Python 3.11, 3.12 or 3.13 and found none (looked for:" \
        "${LLM_UNLEARN_PYTHON:-python3, python3.13, python3.12, python3.11})." \
        "On Debian or Ubuntu: apt-get install python3 python3-venv." \
        "Or name one: LLM_UNLEARN_PYTHON=/path/to/python3.12" >&2
    return 1
}

make_venv() {
    local python
    python=$(find_python) || return 1
    # Debian splits this part off; without it `python -m venv` fails half-way.
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "$python cannot make virtual environments. On Debian or Ubuntu: apt-get install python3-venv" >&2
        return 1
    fi
    echo "Making the environment $venv with $("$python" --version)" >&2
    "$python" -m venv "$venv"
}

prepare_environment() {
    local extra=${1:-} target=$root stamp fingerprint
    [ -z "$extra" ] || target="$root[$extra]"
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || make_venv || return 1

    # The stamp says for which files the installation ended well. It holds the clone's path too: an editable
    # installation points into one clone, and one environment may be shared by several.
    stamp=$venv/.llm_unlearn-installed${extra:+-$extra}
    fingerprint=$({ echo "$root"; cat "$root/pyproject.toml" "$root/constraints.txt"; } |
        "$venv/bin/python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
    [ "$(cat "$stamp" 2>/dev/null)" != "$fingerprint" ] || return 0

    echo "Installing llm_unlearn${extra:+[$extra]} into $venv (the first time this takes some minutes)" >&2
    PIP_DISABLE_PIP_VERSION_CHECK=1 "$venv/bin/python" -m pip install -q -e "$target" \
        -c "$root/constraints.txt" || return 1
    # With an extra the plain installation is there as well.
    echo "$fingerprint" >"$venv/.llm_unlearn-installed"
    echo "$fingerprint" >"$stamp"
}
