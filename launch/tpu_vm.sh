#!/usr/bin/env bash
# A run on every host of a Cloud TPU VM that exists: source copied, started, started again after a stop or a crash (launch/supervise.sh),
# logs collected.
#   bash launch/tpu_vm.sh --name=NAME --zone=ZONE [--project=P] [--chip=v5e] [--init-timeout=600] [--max-restarts=20]
#       [--logs=logs] [--dry-run] -- train ...
# --max-restarts counts crashes in a row. A run outlives the connection; while it does, another start is refused. The same command resumes. Several slices: --name=A,B (they find each other through the metadata of a queued resource).
set -euo pipefail
source "$(dirname "$0")/options.sh"
parse_options "$0" "name zone" "project chip init-timeout=600 max-restarts=20 logs=logs" "$@"
where=(--zone="${OPTION[zone]}" $(optional project))
source_file="${TMPDIR:-/tmp}/videomae_jax.tar.gz"
IFS=, read -ra vms <<<"${OPTION[name]}"

start() { # start NAME COMMAND...: on every host of every slice, then the logs
  shift
  local remote vm pids=() code=0
  remote="cd videomae_jax && exec 9>.running && flock -n 9 && INIT_TIMEOUT=${OPTION[init-timeout]} ${OPTION[chip]:+CHIP=${OPTION[chip]} }$(supervised) bash launch/host.sh $(quoted "$@")"
  for vm in "${vms[@]}"; do
    local ssh=(gcloud compute tpus tpu-vm ssh "$vm" "${where[@]}" --worker=all --command="$remote")
    if [ -n "$DRY_RUN" ]; then quoted "${ssh[@]}"; continue; fi
    "${ssh[@]}" &
    pids+=($!)
  done
  for pid in ${pids[@]+"${pids[@]}"}; do wait "$pid" || code=$?; done
  for vm in "${vms[@]}"; do
    do_or_show mkdir -p "${OPTION[logs]}/$vm"
    do_or_show gcloud compute tpus tpu-vm scp "$vm:videomae_jax/logs/*.log" "${OPTION[logs]}/$vm/" "${where[@]}" --worker=all || echo "no logs from $vm" >&2
  done
  return $code
}

unpack="mkdir -p videomae_jax && { flock -n videomae_jax/.running tar -xzf videomae_jax.tar.gz -C videomae_jax || { echo 'error: a run is under way on this host (its log: videomae_jax/logs); pkill -TERM -f launch/supervise.sh saves and ends it' >&2; exit 2; }; }"
pack_source "$source_file"
for vm in "${vms[@]}"; do
  do_or_show gcloud compute tpus tpu-vm scp "$source_file" "$vm:videomae_jax.tar.gz" "${where[@]}" --worker=all
  do_or_show gcloud compute tpus tpu-vm ssh "$vm" "${where[@]}" --worker=all --command="$unpack"
done
for_each_run start
