#!/usr/bin/env bash
# A grid of runs on this machine, one after the other, and the law of their losses: `report --scaling` predicts the largest from the rest.
#   bash launch/sweep.sh --grid=configs/scaling/toy.py --root=runs/scaling_toy [--world=data/shapes] [--metric=NAME] [--dry-run] [-- --config.x=y ...]
# What is finished below --root is not repeated: after an interruption the same command goes on. --world writes the embedded
# data set there first, where it is not yet.
set -euo pipefail
source "$(dirname "$0")/options.sh"
parse_options "$0" "grid root" "name world metric" "$@"
python=${VIDEOMAE_PYTHON:-$here/.venv/bin/python}
[ -x "$(command -v "$python")" ] || python=python3
cd "$here"
source launch/xla_flags.sh
export_here
[ -z "$DRY_RUN" ] || show_exports

[ -z "${OPTION[world]}" ] || [ -f "${OPTION[world]}/index.parquet" ] || do_or_show "$python" -m videomae_jax synthesize "${OPTION[world]}"
one() { # one NAME COMMAND...
  shift
  do_or_show "$python" -m videomae_jax "$@" ${OPTION[world]:+--config.data.index="${OPTION[world]}/index.parquet"}
}
for_each_run one
law=("$python" -m videomae_jax report --scaling) of=(--out="${OPTION[root]}/scaling.html" $(optional metric))
if [ -n "$DRY_RUN" ]; then
  echo "$(quoted "${law[@]}" "${OPTION[root]}")/*/ $(quoted "${of[@]}")" # run directories that are there by then
else
  "${law[@]}" "${OPTION[root]}"/*/ "${of[@]}"
fi
