#!/usr/bin/env bash
# Prints the path of a Python 3.12 on a machine whose own is older than 3.11 (TPU VM images: 3.8 to 3.10), fetching it with uv.
#   PYTHON=$(bash launch/bootstrap_python.sh)
set -euo pipefail
if ! command -v uv >/dev/null 2>&1; then
  python3 -m pip install --quiet --user uv >&2
  export PATH="$HOME/.local/bin:$PATH"
fi
uv python install --quiet 3.12 >&2
uv python find 3.12
