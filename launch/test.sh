#!/usr/bin/env bash
# The whole test suite in the same environment as local.sh plus the test requirements.
#   bash launch/test.sh [--parity | --plans] [pytest options]
# --parity also installs torch and transformers and compares live with them. Files of tests are spread over the cores, up to
# four: compiling a program, where most of the time goes, keeps one core busy. `-n 0` runs them in one process. A process that
# dies ends the suite: a new one in its place would wait for ever for the tests of the old one.
# --plans runs the tests that compile real steps for TPU pods instead, which takes minutes; they need no TPU but libtpu, the compiler of
# TPUs, whose version of the installed jax is installed.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
requirements=(requirements.txt tests/requirements.txt)
plans=
case "${1:-}" in
  --parity) shift; requirements+=(tests/parity/requirements.txt) ;;
  --plans) shift; plans=1 ;;
esac
install "${requirements[@]}"
if [ -n "$plans" ]; then
  libtpu=$(cd "$VENV" && pwd)/libtpu # a folder of its own: JAX looks for a TPU wherever libtpu is installed
  wanted=$("$VENV/bin/python" -c 'from videomae_jax import topologies; print(topologies.libtpu())')
  if [ "$(cat "$libtpu/.installed" 2>/dev/null)" != "$wanted" ]; then
    rm -rf "$libtpu"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$libtpu" "$wanted"
    echo "$wanted" >"$libtpu/.installed"
  fi
  export PYTHONPATH="$libtpu${PYTHONPATH:+:$PYTHONPATH}"
  # In one process, which shows what they print of the compilation.
  exec "$VENV/bin/python" -m pytest -q -n 0 --slow tests/test_plan.py -k real_steps_compile_for_tpus "$@"
fi
exec "$VENV/bin/python" -m pytest -q -n auto --maxprocesses=4 --dist loadfile --no-loadscope-reorder --max-worker-restart=0 "$@"
