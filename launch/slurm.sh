#!/usr/bin/env bash
# A run under SLURM: one process a GPU (--per=gpu) or one a node (--per=node).
#   bash launch/slurm.sh --nodes=N [--gpus=8] [--per=gpu|node] [--cpus=26] [--time=24:00:00] [--partition=P] [--account=A] [--name=run]
#       [--chip=h100] [--init-timeout=1800] [--dry-run] -- train --config=FILE --workdir=DIR
# A GPU process sees its GPU through SLURM_LOCALID, which JAX reads; --gpus-per-task is left out, because it hides the others. The process of a
# node sees all of them through JAX_LOCAL_DEVICE_IDS. Jobs with a name of their own (--name, or a cell of a grid) run one after the other: what is
# submitted a second time waits for the first, and goes on with what that has left.
set -euo pipefail
source "$(dirname "$0")/options.sh"
parse_options "$0" "nodes" "gpus=8 per=gpu cpus=26 time=24:00:00 partition account name=run chip init-timeout=1800" "$@"
case "${OPTION[per]}" in
  gpu) tasks=${OPTION[gpus]} cpus=${OPTION[cpus]} share= ;;
  node) tasks=1 cpus=$((OPTION[cpus] * OPTION[gpus])) share=,GPUS_A_PROCESS=${OPTION[gpus]} ;;
  *) fail "--per=${OPTION[per]}; allowed are gpu and node" ;;
esac

submit() { # submit NAME COMMAND...
  local name=$1
  shift
  do_or_show sbatch --job-name="$name" --nodes="${OPTION[nodes]}" --ntasks-per-node="$tasks" --cpus-per-task="$cpus" --gres="gpu:${OPTION[gpus]}" \
    --time="${OPTION[time]}" --output="$name-%j.log" $(optional partition account) \
    $([ "$name" = run ] || echo --dependency=singleton) \
    --export="ALL,VIDEOMAE_HOME=$here,INIT_TIMEOUT=${OPTION[init-timeout]}$share${OPTION[chip]:+,CHIP=${OPTION[chip]}}" "$here/launch/slurm.sbatch" "$@"
}

for_each_run apart submit
exit $FAILED
