#!/usr/bin/env bash
# A run on TPUs that do not exist yet: a queued resource whose start-up script fetches the commit and trains, and starts again
# after a stop or a crash (launch/supervise.sh; --max-restarts counts crashes in a row). A machine that is started again runs the same script, and
# so resumes. What was taken away (--spot=1) is granted no second time: the same command deletes it, once it is SUSPENDED, asks anew, and resumes.
#   bash launch/queued_resource.sh --name=NAME --zone=ZONE --accelerator-type=v5p-512 --bucket=gs://BUCKET [--mount=gs://BUCKET:/mnt/bucket]
#       [--slices=N] [--spot=1] [--project=P] [--runtime-version=VERSION] [--chip=v5p] [--init-timeout=1800] [--max-restarts=20] [--keep=1]
#       [--dry-run] -- train --workdir=/mnt/bucket/runs/...
# --bucket takes the commit and the logs. --mount gives all hosts a folder that they share: a bucket (gcsfuse; one with a hierarchical namespace
# renames folders at once), or with HOST:/SHARE:/FOLDER one of an NFS server. Nothing trains before it is there: commit and folder are asked for
# again as long as the other machines wait at a start (--init-timeout). --runtime-version is that of the accelerator type, unless another is named.
# At the end of the run, and where it is given up, its first machine deletes the queued resource, which is paid for until then: its service account
# needs the right to (roles/tpu.admin). Not with --keep=1, not after a signal, and not where --workdir is not below the mounted folder: the run
# would go with the machines. What has ended otherwise makes room for the same command, which resumes; what is under way is an error, and passed
# over in a grid.
set -euo pipefail
source "$(dirname "$0")/options.sh"
parse_options "$0" "name zone accelerator-type bucket" \
  "mount project runtime-version slices=1 spot chip init-timeout=1800 max-restarts=20 keep" "$@"
parse_mount
# With the system of another generation JAX may find no TPU.
if [ -z "${OPTION[runtime-version]}" ]; then
  case "${OPTION[accelerator-type]}" in
    v6e-*) OPTION[runtime-version]=v2-alpha-tpuv6e ;;
    v5p-*) OPTION[runtime-version]=v2-alpha-tpuv5 ;;
    v5litepod-*) OPTION[runtime-version]=v2-alpha-tpuv5-lite ;;
    tpu*) fail "--accelerator-type=${OPTION[accelerator-type]}; allowed are v2 to v6e, all that queued resources have;" \
      "launch/gke.sh and launch/xpk.sh take newer ones, and --runtime-version=VERSION asks all the same" ;;
    *) OPTION[runtime-version]=tpu-ubuntu2204-base ;;
  esac
fi
where=(--zone="${OPTION[zone]}" $(optional project))
scripts=$(mktemp -d)
trap 'rm -rf "$scripts"' EXIT

# A name of its own for each commit: a job that runs fetches its archive again whenever one of its machines is started again.
archive() { echo "${OPTION[bucket]}/$1/source_$commit.tar.gz"; } # archive NAME

# delete HOW NAME WORDS...: the command that gives the machines back; HOW is `quoted` or `do_or_show`.
delete() { "$1" gcloud compute tpus queued-resources delete "$2" "${where[@]}" --force --quiet "${@:3}"; }

outlives() { # outlives COMMAND...: whether what it writes stays when the machines go
  local word before= workdir=
  for word in "$@"; do
    case "$word" in --workdir=*) workdir=${word#*=} ;; *) [ "$before" != --workdir ] || workdir=$word ;; esac
    before=$word
  done
  [[ -n $MOUNT_TO && $workdir == "$MOUNT_TO"/* ]]
}

giving_back() { # giving_back NAME COMMAND...: the part of the start-up script that deletes the queued resource, where that is wanted
  [ -z "${OPTION[keep]}" ] || { echo "give_back() { :; }"; return; }
  if ! outlives "${@:2}"; then
    echo "$1: --workdir is not below the folder of --mount, so the machines stay after the run, to be paid for until: $(delete quoted "$1")" >&2
    echo "give_back() { :; }"
    return
  fi
  cat <<SCRIPT
give_back() {
  [ "\$TPU_WORKER_ID-\${MEGASCALE_SLICE_ID:-0}" = 0-0 ] || return
  sleep "\${PAUSE:-30}" # the other machines copy their logs
  $(delete quoted "$1" --async) && return
  mkdir -p logs
  echo $(quoted "error: $1 cannot be given back by its own machine; this does it: $(delete quoted "$1")") | tee logs/give_back.log >&2
  gcloud storage cp logs/give_back.log "\$BUCKET_LOGS"
}
SCRIPT
}

mounting() { # the part of the start-up script that mounts the shared folder
  local how
  case "$MOUNT_KIND" in
    "") return ;;
    nfs) how="{ command -v mount.nfs >/dev/null || apt_install nfs-common; } && mount -t nfs $MOUNT_FROM \"\$shared\"" ;;
    # A checkpoint is committed by renaming its folder.
    bucket) how="install_gcsfuse && gcsfuse --implicit-dirs --rename-dir-limit=200000 $MOUNT_FROM \"\$shared\"" ;;
  esac
  echo "shared=$MOUNT_TO"
  cat <<'SCRIPT'
apt_install() { # the machine's own first updates hold apt's lock
  apt-get -o DPkg::Lock::Timeout=600 update && DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y "$1"
}
install_gcsfuse() {
  command -v gcsfuse >/dev/null && return
  curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg >/usr/share/keyrings/cloud.google.asc || return
  echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -c -s) main" \
    >/etc/apt/sources.list.d/gcsfuse.list
  apt_install gcsfuse
}
SCRIPT
  cat <<SCRIPT
mounted() {
  mountpoint -q "\$shared" && return
  mkdir -p "\$shared"
  $how && mountpoint -q "\$shared"
}
persist mounted || given_up mount "${OPTION[mount]%:*} cannot be mounted as \$shared"
SCRIPT
}

startup() { # the start-up script of a run
  cat <<SCRIPT
#!/bin/bash
# Slice, worker and accelerator are in the metadata; the run is left alone while the machine lives.
ulimit -n 100000
export HOME=/root
environment=\$(curl -s -H "Metadata-Flavor: Google" "http://metadata.google.internal/computeMetadata/v1/instance/attributes/tpu-env")
export ACCELERATOR_TYPE=\$(sed -n "s/^ACCELERATOR_TYPE: '\(.*\)'/\1/p" <<<"\$environment")
export TPU_WORKER_ID=\$(sed -n "s/^WORKER_ID: '\(.*\)'/\1/p" <<<"\$environment")
export MEGASCALE_SLICE_ID=\$(sed -n "s/^MEGASCALE_SLICE_ID: '\(.*\)'/\1/p" <<<"\$environment")
mkdir -p /opt/videomae_jax && cd /opt/videomae_jax
export BUCKET_LOGS=$(quoted "${OPTION[bucket]}/$1/logs/")
SCRIPT
  giving_back "$@"
  cat <<SCRIPT
persist() { # persist COMMAND: until it succeeds, for as long as the other machines wait at a start
  local try
  for ((try = 0; try < $((OPTION[init-timeout] / 30 + 5)); try++)); do
    "\$1" && return
    sleep "\${PAUSE:-30}"
  done
  return 1
}
given_up() { # given_up WHAT MESSAGE: a log beside those of the run, for which no source is needed
  mkdir -p logs
  echo "error: \$2" | tee "logs/\$1_\$HOSTNAME.log" >&2
  gcloud storage cp "logs/\$1_\$HOSTNAME.log" "\$BUCKET_LOGS"
  give_back
  exit 1
}
fetched() (
  set -o pipefail
  gcloud storage cp $(quoted "$(archive "$1")") - | tar -xz
)
persist fetched || given_up fetch $(quoted "the source cannot be fetched from $(archive "$1")")
SCRIPT
  mounting
  cat <<SCRIPT
INIT_TIMEOUT=${OPTION[init-timeout]} ${OPTION[chip]:+CHIP=${OPTION[chip]} }$(supervising) bash launch/supervise.sh bash -c '
source launch/awaited.sh
bash launch/host.sh "\$@" & child=\$! # its output goes to the bucket after every start
trap "kill -TERM \$child" TERM
awaited \$child
gcloud storage cp logs/*.log "\$BUCKET_LOGS" || true
exit \$code' start $(shift && quoted "$@")
code=\$?
case \$code in 75 | 130 | 143) ;; *) give_back ;; esac # somebody stopped it; a machine that goes down stops this script, too
exit \$code
SCRIPT
}

# vacant NAME: makes room for a queued resource, whose name is taken until it is deleted. Fails, with its STATE, where it has not ended.
vacant() {
  local look=(gcloud compute tpus queued-resources list "${where[@]}" --filter="name~/$1\$" --format='value(state.state)')
  if [ -n "$DRY_RUN" ]; then
    quoted "${look[@]}"
    echo "# where it is FAILED or SUSPENDED: $(delete quoted "$1")"
    return
  fi
  STATE=$("${look[@]}") || exit $?
  case "$STATE" in
    "") ;;
    FAILED | SUSPENDED) delete do_or_show "$1" || exit $? ;;
    *) return 1 ;;
  esac
}

submit() { # submit NAME COMMAND...
  local name=$1 nodes=(--node-id="$1")
  vacant "$name" || { taken "the queued resource $name is there and $STATE; $(delete quoted "$name") ends it"; return 0; }
  [ "${OPTION[slices]}" = 1 ] || nodes=(--node-prefix="$name" --node-count="${OPTION[slices]}")
  startup "$@" >"$scripts/$name.sh"
  if [ -n "$DRY_RUN" ]; then echo "# $name.sh"; cat "$scripts/$name.sh"; fi
  do_or_show gcloud storage cp "$source_file" "$(archive "$name")"
  do_or_show gcloud compute tpus queued-resources create "$name" "${where[@]}" \
    --accelerator-type="${OPTION[accelerator-type]}" --runtime-version="${OPTION[runtime-version]}" "${nodes[@]}" \
    ${OPTION[spot]:+--spot} --metadata-from-file=startup-script="$([ -n "$DRY_RUN" ] && echo "$name.sh" || echo "$scripts/$name.sh")"
}

commit=$(git -C "$here" rev-parse HEAD)
source_file=$([ -n "$DRY_RUN" ] && echo "$PWD/source.tar.gz" || echo "$scripts/source.tar.gz")
pack_source "$source_file" "$commit"
for_each_run apart submit
exit $FAILED
