#!/usr/bin/env bash
# A run on a GKE cluster through xpk, from an image built with launch/Dockerfile.
#   bash launch/xpk.sh --name=NAME --cluster=C --image=IMAGE --tpu-type=v5p-512 [--slices=N] [--zone=Z] [--project=P] [--chip=v5p]
#       [--init-timeout=1800] [--max-restarts=50] [--dry-run] -- train --workdir=/MOUNTED/...
# GPUs: --device-type=h100-80gb-8 --num-nodes=N in place of --tpu-type.
# The same command resumes: a workload of that name that has ended is deleted first; one that is under way is an error, and passed over in a grid.
# xpk collects no logs: the command that fetches those of all pods is printed after each submission, for the cluster of kubectl's current context.
set -euo pipefail
source "$(dirname "$0")/options.sh"
parse_options "$0" "name cluster image" "tpu-type device-type num-nodes slices=1 zone project chip init-timeout=1800 max-restarts=50" "$@"
[ -n "${OPTION[tpu-type]}${OPTION[device-type]}" ] || fail "--tpu-type=TYPE or --device-type=TYPE is missing"

where=(--cluster="${OPTION[cluster]}" $(optional zone project))

# delete HOW NAME WORDS...: the command that ends a workload and forgets it; HOW is `quoted` or `do_or_show`.
delete() { "$1" xpk workload delete "${where[@]}" --workload="$2" "${@:3}"; }

listed() { # listed NAME COMMAND...: whether a line of what the command says begins with the name
  local said
  said=$("${@:2}") || exit $?
  awk -v name="$1" '$1 == name { found = 1 } END { exit !found }' <<<"$said"
}

# vacant NAME: makes room for a workload. Fails where one is under way.
vacant() {
  local look=(xpk workload list "${where[@]}" --filter-by-job="$1")
  if [ -n "$DRY_RUN" ]; then
    quoted "${look[@]}"
    echo "# where it is there and FINISHED: $(delete quoted "$1" --force)"
    return
  fi
  listed "$1" "${look[@]}" || return 0
  listed "$1" "${look[@]}" --filter-by-status=FINISHED || return 1
  delete do_or_show "$1" --force || exit $?
}

submit() { # submit NAME COMMAND...
  local name=$1 word
  shift
  for word in ${OPTION[device-type]:+"$@"}; do # xpk writes them into YAML between double quotes, as they are
    [[ $word != *[\"\'\\$'\n']* ]] || fail "${word//$'\n'/\\n}; allowed with --device-type are words without \" ' \\ and line breaks"
  done
  vacant "$name" || { taken "the workload $name is under way; $(delete quoted "$name") saves and ends it"; return 0; }
  # xpk restarts on 42 and 127-255 only; 75 is a run that a signal stopped with its state saved, 74 one whose checkpoint a process could not
  # write or read, 1 a crash. It gives 30 s by default.
  do_or_show xpk workload create --workload="$name" "${where[@]}" --docker-image="${OPTION[image]}" \
    $(optional tpu-type device-type num-nodes) ${OPTION[tpu-type]:+--num-slices="${OPTION[slices]}"} \
    --max-restarts="${OPTION[max-restarts]}" --restart-on-exit-codes=1,74,75 --termination-grace-period-seconds=300 \
    --command="INIT_TIMEOUT=${OPTION[init-timeout]} ${OPTION[chip]:+CHIP=${OPTION[chip]} }bash launch/host.sh $(quoted "$@")"
  echo "# its logs: $(quoted kubectl logs --selector="jobset.sigs.k8s.io/jobset-name=$name" --all-containers --prefix --tail=-1 --max-log-requests=1000)"
}

for_each_run apart submit
exit $FAILED
