#!/usr/bin/env bash
# From a bare machine to a trained model with pictures and a report.
#   bash launch/local.sh [--dry-run] [RUN_DIRECTORY]
# On a CPU it trains configs/smoke.py, about six minutes on two cores after the install; on a GPU or TPU it trains ViT-B
# (configs/smoke_accelerator.py). The embedded data set is written below data/ as H.264 files and kept for the next time.
# SMOKE=short makes it a one-minute check that every part works; its numbers mean nothing. --dry-run prints the commands and runs nothing.
set -euo pipefail
dry=
if [ "${1:-}" = --dry-run ]; then dry=1; shift; fi
case "${1:-}" in -*) echo "error: $1 is no run directory; the one option is --dry-run, before it" >&2; exit 2 ;; esac
source "$(dirname "$0")/environment.sh"
[ -n "$dry" ] || install requirements.txt
python="$VENV/bin/python"
export_here
do_or_show() { if [ -n "$dry" ]; then show "$@"; else "$@"; fi; }

config=configs/smoke.py
[ "$(detect_accelerator)" = cpu ] || config=configs/smoke_accelerator.py
data=data/shapes
run="${1:-runs/$(basename "$config" .py)}"
size=(--train=2000 --val=400 --test=0)
overrides=()
if [ "${SMOKE:-}" = short ]; then
  data=data/shapes_short
  run="${1:-runs/short}"
  size=(--train=96 --val=32 --test=0)
  overrides=(--config.total=30 --config.evaluators.motion.train=64 --config.evaluators.motion.test=32
             --config.evaluators.appearance.train=64 --config.evaluators.appearance.test=32)
fi

[ -z "$dry" ] || show_exports
do_or_show "$python" -m videomae_jax synthesize "$data" "${size[@]}"
do_or_show "$python" -m videomae_jax train --config="$config" --workdir="$run" --config.data.index="$data/index.parquet" ${overrides[@]+"${overrides[@]}"}
do_or_show "$python" -m videomae_jax report "$run"
[ -z "$dry" ] || exit 0
echo
echo "report          $run/report.html"
echo "summary         $run/summary.json"
echo "recipe card     $run/recipe_card.txt"
echo "metrics         $run/metrics.jsonl   (tensorboard --logdir $run/tensorboard)"
echo "reconstructions $run/reconstructions/"
echo "checkpoints     $run/checkpoints/"
cat "$run/summary.json"
