#!/usr/bin/env bash
# A run on a GKE cluster as a JobSet (launch/jobset.yaml), from an image built with launch/Dockerfile.
#   bash launch/gke.sh --name=NAME --image=IMAGE --accelerator=tpu-v5p-slice --torus=4x8x8 --hosts=64 [--slices=N] [--chips=4] [--chip=v5p]
#       [--mount=gs://BUCKET:/mnt/bucket] [--service-account=NAME] [--namespace=default] [--init-timeout=1800] [--max-restarts=50]
#       [--logs=logs] [--follow=1] [--dry-run] -- train --workdir=/mnt/bucket/runs/...
# The same command resumes: a JobSet of that name that has ended is deleted first; one that is under way is an error, and passed over in a grid.
# --mount gives all hosts a folder that they share: a bucket (gcsfuse: the cluster needs its CSI driver, the Kubernetes service account the right to
# write; a bucket with a hierarchical namespace renames folders at once), or with HOST:/SHARE:/FOLDER one of an NFS server. --follow=1 waits for the
# end, looking every POLL seconds (30), collects a log for each pod, and fails where the JobSet failed: of a grid, all of which is submitted first,
# where one of them did, after the last.
set -euo pipefail
source "$(dirname "$0")/options.sh"
parse_options "$0" "name image accelerator torus hosts" \
  "slices=1 chips=4 chip mount service-account namespace=default init-timeout=1800 max-restarts=50 logs=logs follow" "$@"
parse_mount
kubectl=(kubectl --namespace="${OPTION[namespace]}")

arguments() { # arguments WORDS...: a JSON list, which YAML reads; Kubernetes makes $ of $$ and puts variables in for $(NAME)
  local word line=
  for word in "$@"; do
    word=${word//\\/\\\\} word=${word//\"/\\\"} word=${word//\$/\$\$}
    word=${word//$'\n'/\\n} word=${word//$'\t'/\\t} word=${word//$'\r'/\\r}
    line+="${line:+, }\"$word\""
  done
  printf '[%s]' "$line"
}

manifest() { # manifest NAME COMMAND...: the template filled in
  local name=$1 value dropped='^#'
  shift
  [ -n "$MOUNT_KIND" ] || dropped+='|# mount$'
  [ "$MOUNT_KIND" = bucket ] || dropped+='|# bucket$'
  [ "$MOUNT_KIND" = nfs ] || dropped+='|# nfs$'
  [ -n "${OPTION[service-account]}" ] || dropped+='|# account$'
  value=$(grep -vE "$dropped" "$here/launch/jobset.yaml" | sed -E 's/ # (mount|bucket|nfs|account)$//')
  value=${value//@NAME@/$name} value=${value//@IMAGE@/${OPTION[image]}} value=${value//@SLICES@/${OPTION[slices]}}
  value=${value//@HOSTS@/${OPTION[hosts]}} value=${value//@CHIPS@/${OPTION[chips]}} value=${value//@CHIP@/${OPTION[chip]}}
  value=${value//@ACCELERATOR@/${OPTION[accelerator]}} value=${value//@TOPOLOGY@/${OPTION[torus]}}
  value=${value//@TIMEOUT@/${OPTION[init-timeout]}} value=${value//@RESTARTS@/${OPTION[max-restarts]}}
  value=${value//@FROM@/$MOUNT_FROM} value=${value//@SERVER@/${MOUNT_FROM%%:*}} value=${value//@SHARE@/${MOUNT_FROM#*:}}
  value=${value//@TO@/$MOUNT_TO} value=${value//@ACCOUNT@/${OPTION[service-account]}}
  printf '%s\n' "${value//@ARGUMENTS@/"$(arguments "$@")"}"
}

# ended NAME: waits until the JobSet has ended; fails where it failed, or where ten looks in a row told nothing.
ended() {
  local said blind=0
  local look=("${kubectl[@]}" get "jobset/$1" --output=jsonpath='{.status.conditions[?(@.status=="True")].type}')
  if [ -n "$DRY_RUN" ]; then quoted "${look[@]}"; return; fi
  while :; do
    if said=$("${look[@]}"); then blind=0; else blind=$((blind + 1)); fi
    case " $said " in
      *" Completed "*) return 0 ;;
      *" Failed "*) echo "error: the JobSet $1 failed" >&2; return 1 ;;
    esac
    [ $blind -lt 10 ] || { echo "error: nothing is known of the JobSet $1" >&2; return 1; }
    sleep "${POLL:-30}"
  done
}

# vacant NAME: makes room for a JobSet, of which Kubernetes changes none that is there. Fails where one is under way.
vacant() {
  local said look=("${kubectl[@]}" get "jobset/$1" --ignore-not-found --output=jsonpath='{.metadata.name} {.status.conditions[?(@.status=="True")].type}')
  local delete=("${kubectl[@]}" delete --wait --cascade=foreground "jobset/$1")
  if [ -n "$DRY_RUN" ]; then
    quoted "${look[@]}"
    echo "# where it has ended: $(quoted "${delete[@]}")"
    return
  fi
  said=$("${look[@]}") || exit $?
  case " $said " in
    "  ") ;;
    *" Completed "* | *" Failed "*) "${delete[@]}" || exit $? ;;
    *) return 1 ;;
  esac
}

follow() { # follow NAME: to its end, then the logs
  local name=$1 pod code=0
  ended "$name" || code=$?
  do_or_show mkdir -p "${OPTION[logs]}/$name"
  local pods=("${kubectl[@]}" get pods --selector="jobset.sigs.k8s.io/jobset-name=$name" --output=name)
  if [ -n "$DRY_RUN" ]; then
    quoted "${pods[@]}"
    quoted "${kubectl[@]}" logs --container=trainer POD
    return
  fi
  for pod in $("${pods[@]}"); do
    "${kubectl[@]}" logs --container=trainer "$pod" >"${OPTION[logs]}/$name/${pod##*/}.log" || echo "no log from $pod" >&2
  done
  remember $code
}

submit() { # submit NAME COMMAND...
  local name=$1
  if ! vacant "$name"; then
    taken "the JobSet $name is under way; $(quoted "${kubectl[@]}" delete "jobset/$name") saves and ends it"
    return 0 # it is followed: the launcher may have been interrupted
  fi
  if [ -n "$DRY_RUN" ]; then
    manifest "$@"
    echo "# ^ $(quoted "${kubectl[@]}" create -f -)"
  else
    manifest "$@" | "${kubectl[@]}" create -f -
  fi
}

for_each_run apart submit
for name in ${OPTION[follow]:+"${SUBMITTED[@]}"}; do follow "$name"; done
exit $FAILED
