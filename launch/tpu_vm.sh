#!/usr/bin/env bash
# A run on every host of a Cloud TPU VM that exists: the commit copied, started, started again after a stop or a crash (launch/supervise.sh),
# logs collected.
#   bash launch/tpu_vm.sh --name=NAME --zone=ZONE [--project=P] [--chip=v5e] [--init-timeout=600] [--max-restarts=20]
#       [--logs=logs] [--dry-run] -- train ...
# --max-restarts counts crashes in a row. A run outlives the connection; while it does, another start is refused. The same command resumes.
# The cells of a grid run one after the other, also after one that failed, whose code comes back at the end; after one that was stopped none follows.
# Several slices: --name=A,B (they find each other through the metadata of a queued resource).
set -euo pipefail
source "$(dirname "$0")/options.sh"
parse_options "$0" "name zone" "project chip init-timeout=600 max-restarts=20 logs=logs" "$@"
where=(--zone="${OPTION[zone]}" $(optional project))
source_file=$PWD/videomae_jax.tar.gz
if [ -z "$DRY_RUN" ]; then
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  source_file=$folder/videomae_jax.tar.gz
fi
IFS=, read -ra vms <<<"${OPTION[name]}"
under_way="error: a run is under way on this host (its log: videomae_jax/logs); this saves and ends it:" # on all hosts, which wait for each other
for vm in "${vms[@]}"; do
  under_way+=" $(quoted gcloud compute tpus tpu-vm ssh "$vm" "${where[@]}" --worker=all --command='pkill -TERM -f launch/supervise.sh');"
done
under_way=${under_way%;}
launch=$(date +%s)-$$ number=0 # of a run for each cell

collect() { # collect VM: the logs of its hosts, one after the other, since gcloud copies files from a single host only
  local vm=$1 found hosts networks worker
  local describe=(gcloud compute tpus tpu-vm describe "$vm" "${where[@]}" --format='value(networkEndpoints.len(), networkConfigs.len())')
  local scp=(gcloud compute tpus tpu-vm scp "$vm:videomae_jax/logs/*.log" "${OPTION[logs]}/$vm/" "${where[@]}")
  do_or_show mkdir -p "${OPTION[logs]}/$vm"
  if [ -n "$DRY_RUN" ]; then
    quoted "${describe[@]}"
    quoted "${scp[@]}" --worker=N
    return
  fi
  found=$("${describe[@]}") || { echo "no logs from $vm" >&2; return 0; }
  read -r hosts networks <<<"$found" # a host has an end point in each of its networks
  for ((worker = 0; worker < hosts / (networks > 1 ? networks : 1); worker++)); do
    "${scp[@]}" --worker="$worker" || echo "no logs from worker $worker of $vm" >&2
  done
}

start() { # start NAME COMMAND...: on every host of every slice, then the logs
  local name=$1 remote vm pids=() code=0
  shift
  number=$((number + 1))
  remote="cd videomae_jax && export INIT_TIMEOUT=${OPTION[init-timeout]} ${OPTION[chip]:+CHIP=${OPTION[chip]} }$(supervising) && "
  remote+="exec bash launch/once.sh $launch.$number $(quoted "$under_way") bash launch/supervise.sh bash launch/host.sh $(quoted "$@")"
  for vm in "${vms[@]}"; do
    local ssh=(gcloud compute tpus tpu-vm ssh "$vm" "${where[@]}" --worker=all --command="$remote")
    if [ -n "$DRY_RUN" ]; then quoted "${ssh[@]}"; continue; fi
    "${ssh[@]}" &
    pids+=($!)
  done
  for pid in ${pids[@]+"${pids[@]}"}; do wait "$pid" || code=$?; done
  for vm in "${vms[@]}"; do collect "$vm"; done
  case $code in
    0) return ;;
    75 | 130 | 143) exit $code ;; # somebody stopped it
  esac
  [ -z "${OPTION[grid]}" ] || echo "error: $name failed (exit code $code)" >&2
  remember $code
}

# tar's own codes are 1 and 2; 99 is a lock that a run holds.
unpack="mkdir -p videomae_jax && { flock -n -E 99 videomae_jax/.running tar -xzf videomae_jax.tar.gz -C videomae_jax; code=\$?; case \$code in 0) ;; \
99) echo $(quoted "$under_way") >&2; exit 2 ;; \
*) echo \"error: the source that arrived on this host cannot be unpacked (exit code \$code)\" >&2; exit 1 ;; esac; }"
pack_source "$source_file" HEAD
for vm in "${vms[@]}"; do
  do_or_show gcloud compute tpus tpu-vm scp "$source_file" "$vm:videomae_jax.tar.gz" "${where[@]}" --worker=all
  do_or_show gcloud compute tpus tpu-vm ssh "$vm" "${where[@]}" --worker=all --command="$unpack"
done
for_each_run start
exit $FAILED
