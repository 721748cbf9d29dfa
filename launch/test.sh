#!/usr/bin/env bash
# The whole test suite in the same environment as local.sh plus the test requirements.
#   bash launch/test.sh [--parity] [pytest options]
# --parity also installs torch and transformers and compares live with them. Files of tests are spread over the cores, up to
# four: compiling a program, where most of the time goes, keeps one core busy. `-n 0` runs them in one process. A process that
# dies ends the suite: a new one in its place would wait for ever for the tests of the old one.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
requirements=(requirements.txt tests/requirements.txt)
if [ "${1:-}" = "--parity" ]; then
  shift
  requirements+=(tests/parity/requirements.txt)
fi
install "${requirements[@]}"
exec "$VENV/bin/python" -m pytest -q -n auto --maxprocesses=4 --dist loadfile --no-loadscope-reorder --max-worker-restart=0 "$@"
