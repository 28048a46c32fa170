#!/usr/bin/env bash
# Makes .venv, installs with the [dev] extra, and runs the tests. Arguments go to pytest, for example:
# scripts/test.sh -m slow     scripts/test.sh tests/unit -x
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
prepare_environment dev
exec "$venv/bin/python" -m pytest "$@"
