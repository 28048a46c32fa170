#!/usr/bin/env bash
# Makes .venv, installs with the [dev] extra, and runs the tests, in as many processes as there are cores (at most 4).
# Arguments go to pytest, for example: scripts/test.sh -m slow     scripts/test.sh tests/unit -x -n 0
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
prepare_environment dev
# worksteal: long tests that stand side by side are not all left to one process
exec "$venv/bin/python" -m pytest -n auto --maxprocesses 4 --dist worksteal "$@"
