#!/usr/bin/env bash
# N processes on this machine through the same train command: what a cluster does, at the size of a laptop.
#   bash launch/simulate.sh [--processes=2] [--devices=1] [--port=PORT] [--logs=logs] [--init-timeout=120] [--dry-run] -- train ...
# Every process has --devices CPU devices, and a log in --logs, of a grid in a folder for each cell. When one fails, the others are ended, and its
# code comes back. SIGTERM goes to all; their code comes back.
set -euo pipefail
source "$(dirname "$0")/options.sh"
parse_options "$0" "" "name processes=2 devices=1 port logs=logs init-timeout=120" "$@"
[ -n "${OPTION[grid]}" ] || [ "${COMMAND[0]}" = train ] || fail "${COMMAND[0]} runs in one process; allowed behind -- is train"
python=${VIDEOMAE_PYTHON:-$here/.venv/bin/python}

free_port() { "$python" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])'; }

start() { # start NAME COMMAND...
  local i out err tees=() pids=() code=0 told= whole= stopped= ended port=${OPTION[port]} one log logs=${OPTION[logs]}${OPTION[grid]:+/$1}
  shift
  [ -n "$port" ] || port=$([ -n "$DRY_RUN" ] && echo PORT || free_port)
  do_or_show mkdir -p "$logs"
  stop() { # all of them, once all are there
    told=1
    if [ -n "$whole" ] && [ -z "$stopped" ]; then stopped=1; kill -TERM ${pids[@]+"${pids[@]}"} 2>/dev/null || true; fi
  }
  [ -n "$DRY_RUN" ] || trap stop TERM INT
  for ((i = 0; i < OPTION[processes]; i++)); do
    one=(env JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES="${OPTION[devices]}" "$python" -m videomae_jax "$@" --coordinator="localhost:$port"
      --processes="${OPTION[processes]}" --process="$i" --init-timeout="${OPTION[init-timeout]}")
    if [ -n "$DRY_RUN" ]; then quoted "${one[@]}"; continue; fi
    log="$logs/host_$i.log"
    : >"$log"
    # A signal to the whole group leaves the logs to the processes, which save.
    exec {out}> >(trap '' INT TERM; exec tee -p -a "$log")
    tees+=($!)
    exec {err}> >(trap '' INT TERM; exec tee -p -a "$log" >&2)
    tees+=($!)
    "${one[@]}" >&"$out" 2>&"$err" &
    pids+=($!)
    exec {out}>&- {err}>&-
  done
  [ -z "$DRY_RUN" ] || return 0
  whole=1
  [ -z "$told" ] || stop
  # `wait` would end with a trap, and cannot tell its code from one of a process.
  while [ ${#pids[@]} -gt 0 ]; do
    for i in "${!pids[@]}"; do
      ! kill -0 "${pids[i]}" 2>/dev/null || continue
      ended=0
      wait "${pids[i]}" || ended=$?
      unset "pids[i]"
      [ $code -ne 0 ] || code=$ended
      [ $code -eq 0 ] || stop
    done
    sleep 0.1 || true # which the signal to a group ends, too
  done
  wait "${tees[@]}" 2>/dev/null || true # the logs are written to their end
  return $code
}

for_each_run start
