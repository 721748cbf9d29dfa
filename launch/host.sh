#!/usr/bin/env bash
# Runs on every host of a job: environment, flags of the chip, one process, one log.
#   bash launch/host.sh [--dry-run] train --config=FILE --workdir=DIR ...
# COORDINATOR (default: auto, JAX detects the cluster, or what xpk gives the pods of GPUs; none: this machine alone) and INIT_TIMEOUT (seconds)
# go to the command, in front of its own words, of which the last counts; CHIP chooses the flags;
# LOGS (default: logs) is the folder of the log, CODES a folder in which a file keeps an exit code other than 0 (or one file for all);
# VIDEOMAE_PYTHON is an interpreter that has everything, and nothing is installed. MACHINE: see environment.sh. --dry-run prints flags and command of this host and runs nothing.
set -uo pipefail
first=${1:-}
[ "$first" != --dry-run ] || first=${2:-}
if [[ $first = -h || $first = --help || -z $first ]]; then
  sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0" >&2
  [ -n "$first" ] && exit 0
  echo "error: no command; e.g. train --config=FILE --workdir=DIR" >&2
  exit 2
fi
cd "$(dirname "$0")/.."
if [ ! -f "videomae_jax/commands/$first.py" ] || [[ $first =~ ^(__init__|arguments)$ ]]; then # now, and not after minutes of installing
  echo "error: unknown command '$first'; allowed are those of \`python -m videomae_jax\`, e.g. train --config=FILE --workdir=DIR" >&2
  exit 2
fi
source launch/environment.sh
source launch/awaited.sh
dry=
if [ "${1:-}" = --dry-run ]; then dry=1; shift; fi
trap 'exit 75' TERM HUP # nothing has begun: what was saved is as it was
number=${SLURM_PROCID:-${TPU_WORKER_ID:-${JOB_COMPLETION_INDEX:-$(hostname)}}}
# A file for each process: NFS loses what several machines append to one, which a job that was submitted before still asks for.
trap 'code=$?; [ $code -eq 0 ] || [ -z "${CODES:-}" ] || if [ -d "$CODES" ]; then echo $code >"$CODES/$number"; else echo $code >>"$CODES"; fi' EXIT
if [ -z "${CHIP:-}" ] && [ "${JAX_EXTRA:-}" != cpu ] && [ "$(chip_here)" = cpu ] && compgen -G "${MACHINE:-}/dev/nvidia[0-9]*" >/dev/null; then
  echo "error: this machine has a GPU, but no nvidia-smi in PATH tells which; add its folder to PATH (on GKE /usr/local/nvidia/bin," \
    "with /usr/local/nvidia/lib64 in LD_LIBRARY_PATH), or set CHIP to a100, h100, h200, b200 or cpu" >&2
  exit 2
fi
if [ -n "${VIDEOMAE_PYTHON:-}" ]; then python=$VIDEOMAE_PYTHON; else [ -n "$dry" ] || install requirements.txt || exit 1; python=$VENV/bin/python; fi
export_here || exit 2
# A proxy makes JAX's own start-up hang.
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY all_proxy ALL_PROXY grpc_proxy
if [ -z "$dry" ]; then
  ulimit -n 100000 2>/dev/null || true
  # Huge pages halve the start of v5e and newer; a lock that a killed process left stops the next one.
  echo always 2>/dev/null >"${MACHINE:-}/sys/kernel/mm/transparent_hugepage/enabled" || true
  lock="${MACHINE:-}/tmp/libtpu_lockfile"
  [ -w "$lock" ] && ! pgrep -f "videomae_jax train" >/dev/null 2>&1 && rm -f "$lock"
fi
joining=(--coordinator="${COORDINATOR:-auto}")
[ "${COORDINATOR:-}" != none ] || joining=()
# xpk tells the pods of GPUs host and port of the coordinator apart, and JAX takes the host alone for both.
address=${JAX_COORDINATOR_ADDRESS:-}
if [[ -z ${COORDINATOR:-} && -n $address && $address != *:* && -n ${JAX_COORDINATOR_PORT:-} && -n ${NNODES:-} && -n ${NODE_RANK:-} ]]; then
  joining=(--coordinator="$address:$JAX_COORDINATOR_PORT" --processes="$NNODES" --process="$NODE_RANK")
fi
if [ "${1:-}" = train ]; then set -- train ${joining[@]+"${joining[@]}"} --init-timeout="${INIT_TIMEOUT:-300}" "${@:2}"; fi
if [ -n "$dry" ]; then
  show_exports
  show "$python" -m videomae_jax "$@"
  exit 0
fi
slice=${MEGASCALE_SLICE_ID:-}
log="${LOGS:-logs}/host_${slice:+${slice}_}$number.log"
mkdir -p "$(dirname "$log")"
# The log goes on where whoever reads the output has gone away, and after a signal to the whole group: a run without it fails where it would save.
exec {out}> >(trap '' HUP INT TERM; exec tee -p -a "$log")
tees=$!
exec {err}> >(trap '' HUP INT TERM; exec tee -p -a "$log" >&2)
tees="$tees $!"
# The scheduler's warning reaches the trainer, which saves and exits with 75. It has a group of its own: Ctrl-C, which goes to all of this one's, would reach it twice.
child='' early='' told=''
forward() { told=$1; if [ -n "$child" ]; then kill "-$1" "$child" 2>/dev/null; else early=$1; fi; }
trap 'forward TERM' TERM HUP
trap 'forward INT' INT
set -m; "$python" -m videomae_jax "$@" </dev/null >&"$out" 2>&"$err" & child=$!; set +m
[ -z "$early" ] || kill "-$early" "$child" 2>/dev/null # the signal came before the child had a name
exec {out}>&- {err}>&-
awaited $child
wait $tees 2>/dev/null # the log is written to its end
[ $code -ne 143 ] || [ "$told" != TERM ] || code=75 # told to stop before it listened, which a run does after its imports and its meeting
exit $code
