# Sourced by the launchers: makes .venv beside the checkout and installs what a run needs.
#
# PYTHON chooses the interpreter (3.11 or 3.12). VENV chooses the folder. JAX_EXTRA overrides the detected accelerator:
# cpu, cuda12, cuda13 or tpu. MACHINE is a folder that stands for /, in which /dev and /sys are looked at.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
source launch/xla_flags.sh
VENV="${VENV:-.venv}"

supported() { # supported INTERPRETER: whether it runs and is of a version that the requirements have
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1
}

choose_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    if supported "$PYTHON"; then echo "$PYTHON"; return 0; fi
    echo "error: PYTHON=$PYTHON cannot be used; allowed is an interpreter of Python 3.11 or 3.12" >&2
    return 1
  fi
  for candidate in python3.12 python3.11 python3; do
    if supported "$candidate"; then echo "$candidate"; return 0; fi
  done
  # Images of TPU machines have 3.8 to 3.10.
  if candidate=$(bash launch/bootstrap_python.sh); then echo "$candidate"; return 0; fi
  echo "error: no Python 3.11 or 3.12 found (tried python3.12, python3.11, python3, uv); set PYTHON=/path/to/python3.11" >&2
  return 1
}

cuda_here() { # CUDA 13 needs driver 580, and has no code for GPUs before compute capability 7.5 (V100, P100), which that driver still serves
  local driver capability newest=cuda12
  while IFS=', ' read -r driver capability; do # one that is too old to know of capabilities says so in words
    if [[ ! $driver =~ ^[0-9]+\. || ! $capability =~ ^[0-9]+\.[0-9]$ ]] || [ "${driver%%.*}" -lt 580 ] || [ "${capability/./}" -lt 75 ]; then
      echo cuda12
      return
    fi
    newest=cuda13
  done < <(nvidia-smi --query-gpu=driver_version,compute_cap --format=csv,noheader)
  echo $newest
}

detect_accelerator() {
  if [ -n "${JAX_EXTRA:-}" ]; then echo "$JAX_EXTRA"; return; fi
  if gpu_here; then
    cuda_here
  elif tpu_here >/dev/null || [ -e "${MACHINE:-}/dev/accel0" ]; then
    echo tpu
  else
    echo cpu
  fi
}

install() { # install REQUIREMENTS...: only when they changed since the last time; the processes of a host, which share $VENV, take turns
  local wanted extra
  extra=$(detect_accelerator)
  wanted=$(cat "$@" | cksum; echo "$extra")
  ! installed "$wanted" || return 0
  mkdir -p "$(dirname "$VENV")" || return 1
  # macOS has no flock, and a read-only checkout no place for the lock: its environment has to be there already.
  if command -v flock >/dev/null 2>&1 && touch "$VENV.lock" 2>/dev/null; then
    { flock 8 || echo "warning: installing without a lock on $VENV.lock" >&2; install_now "$extra" "$wanted" "$@"; } 8>>"$VENV.lock"
  else
    install_now "$extra" "$wanted" "$@"
  fi
}

installed() { # installed STAMP: whether $VENV has what the stamp stands for, and an interpreter that is still there
  [ -x "$VENV/bin/python" ] && [ "$(cat "$VENV/.installed" 2>/dev/null)" = "$1" ]
}

install_now() { # install_now EXTRA STAMP REQUIREMENTS...
  local extra=$1 wanted=$2 python file said clear=
  shift 2
  ! installed "$wanted" || return 0 # by the process that had the lock before
  if [ ! -x "$VENV/bin/python" ]; then
    python=$(choose_python) || return 1
    # The link to an interpreter that is gone would stay. What is no environment is not cleared.
    [ ! -e "$VENV/pyvenv.cfg" ] || clear=--clear
    "$python" -m venv "$VENV" $clear || return 1
  elif ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    # It was broken off, for pip comes last, or made without, as uv does: what is in it stays.
    if ! said=$("$VENV/bin/python" -m ensurepip --upgrade 2>&1); then
      echo "error: $VENV has no pip, and ensurepip brings none (${said##*$'\n'}); install it (Debian: apt install python3-venv) or remove $VENV" >&2
      return 1
    fi
  fi
  echo "installing into $VENV for $extra (once)" >&2
  local arguments=()
  for file in "$@"; do arguments+=(-r "$file"); done
  [ "$extra" = cpu ] || arguments+=("jax[$extra]")
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "${arguments[@]}" 2> >(grep -v "^WARNING: Location" >&2) || return 1
  check_accelerator "$extra" || return 1
  echo "$wanted" >"$VENV/.installed"
}

check_accelerator() { # fails when an accelerator was found but JAX sees only the CPU
  [ "$1" = cpu ] && return 0
  local backend look
  # A TPU of several hosts answers when all of them ask it, and the others may be past this point: JAX's own look at the chips and libtpu has to do.
  look='import jax; from jax._src import cloud_tpu_init as tpu; print("tpu" if tpu.running_in_cloud_tpu_vm else jax.default_backend())'
  backend=$("$VENV/bin/python" -c "$look")
  if [ "$backend" = cpu ]; then
    echo "error: this machine has an accelerator ($1), but JAX reports only the CPU; check the driver, or set JAX_EXTRA=cpu to train on the CPU" >&2
    return 1
  fi
}
