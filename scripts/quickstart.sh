#!/usr/bin/env bash
# From a fresh clone to a report: makes .venv, installs, poisons, trains, unlearns, evaluates and reports on the
# embedded default. Arguments go to `llm-unlearn run`, for example: scripts/quickstart.sh --dry-run
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
prepare_environment
exec "$venv/bin/llm-unlearn" run recipes/quickstart.yaml "$@"
