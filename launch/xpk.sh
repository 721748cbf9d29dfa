#!/usr/bin/env bash
# A run on a GKE cluster through xpk, from an image built with launch/Dockerfile.
#   bash launch/xpk.sh --name=NAME --cluster=C --image=IMAGE --tpu-type=v5p-512 [--slices=N] [--zone=Z] [--project=P] [--chip=v5p]
#       [--init-timeout=1800] [--max-restarts=50] [--dry-run] -- train --workdir=/MOUNTED/...
# GPUs: --device-type=h100-80gb-8 --num-nodes=N in place of --tpu-type.
set -euo pipefail
source "$(dirname "$0")/options.sh"
parse_options "$0" "name cluster image" "tpu-type device-type num-nodes slices=1 zone project chip init-timeout=1800 max-restarts=50" "$@"
[ -n "${OPTION[tpu-type]}${OPTION[device-type]}" ] || fail "--tpu-type=TYPE or --device-type=TYPE is missing"

submit() { # submit NAME COMMAND...
  local name=$1
  shift
  # xpk restarts on 42 and 127-255 only; 75 is a run that a signal stopped with its state saved, 74 one whose checkpoint a process could not
  # write or read, 1 a crash. It gives 30 s by default.
  do_or_show xpk workload create --workload="$name" --cluster="${OPTION[cluster]}" --docker-image="${OPTION[image]}" \
    $(optional tpu-type device-type num-nodes zone project) ${OPTION[tpu-type]:+--num-slices="${OPTION[slices]}"} \
    --max-restarts="${OPTION[max-restarts]}" --restart-on-exit-codes=1,74,75 --termination-grace-period-seconds=300 \
    --command="INIT_TIMEOUT=${OPTION[init-timeout]} ${OPTION[chip]:+CHIP=${OPTION[chip]} }bash launch/host.sh $(quoted "$@")"
}

for_each_run submit
