#!/usr/bin/env bash
# A run on a GKE cluster as a JobSet (launch/jobset.yaml), from an image built with launch/Dockerfile.
#   bash launch/gke.sh --name=NAME --image=IMAGE --accelerator=tpu-v5p-slice --torus=4x8x8 --hosts=64 [--slices=N] [--chips=4]
#       [--chip=v5p] [--namespace=default] [--init-timeout=1800] [--max-restarts=50] [--logs=logs] [--follow=1] [--dry-run] -- train --workdir=/MOUNTED/...
# --follow=1 waits for the end and collects a log for each pod.
set -euo pipefail
source "$(dirname "$0")/options.sh"
parse_options "$0" "name image accelerator torus hosts" "slices=1 chips=4 chip namespace=default init-timeout=1800 max-restarts=50 logs=logs follow" "$@"

manifest() { # manifest NAME COMMAND...: the template filled in; arguments are a JSON list, which YAML reads
  local name=$1 word arguments= value
  shift
  for word in "$@"; do
    word=${word//\\/\\\\}
    arguments+="${arguments:+, }\"${word//\"/\\\"}\""
  done
  value=$(sed '/^#/d' "$here/launch/jobset.yaml")
  value=${value//@NAME@/$name} value=${value//@IMAGE@/${OPTION[image]}} value=${value//@SLICES@/${OPTION[slices]}}
  value=${value//@HOSTS@/${OPTION[hosts]}} value=${value//@CHIPS@/${OPTION[chips]}} value=${value//@CHIP@/${OPTION[chip]}}
  value=${value//@ACCELERATOR@/${OPTION[accelerator]}} value=${value//@TOPOLOGY@/${OPTION[torus]}}
  value=${value//@TIMEOUT@/${OPTION[init-timeout]}} value=${value//@RESTARTS@/${OPTION[max-restarts]}}
  printf '%s\n' "${value//@ARGUMENTS@/"[$arguments]"}"
}

submit() { # submit NAME COMMAND...
  local name=$1 pod
  local kubectl=(kubectl --namespace="${OPTION[namespace]}")
  if [ -n "$DRY_RUN" ]; then
    manifest "$@"
    echo "# ^ $(quoted "${kubectl[@]}" apply -f -)"
  else
    manifest "$@" | "${kubectl[@]}" apply -f -
  fi
  [ -n "${OPTION[follow]}" ] || return 0
  do_or_show "${kubectl[@]}" wait --for=condition=Completed --timeout=-1s "jobset/$name"
  do_or_show mkdir -p "${OPTION[logs]}/$name"
  if [ -n "$DRY_RUN" ]; then
    quoted "${kubectl[@]}" logs POD
    return
  fi
  for pod in $("${kubectl[@]}" get pods --selector="jobset.sigs.k8s.io/jobset-name=$name" --output=name); do
    "${kubectl[@]}" logs "$pod" >"${OPTION[logs]}/$name/${pod##*/}.log"
  done
}

for_each_run submit
