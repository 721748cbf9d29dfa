# Compiler flags and environment for each chip, exported by `export_flags CHIP`; the values of the user come last and win.
# DETERMINISTIC=1 makes GPUs give the same bits in every run (CPUs and TPUs do).
#
# The flags of a chip are those of videomae_jax/compiler_flags.txt, which `plan` compiles with: what is predicted is what runs.

flags_of() { # flags_of CHIP: the flags, one line
  local line flags=
  case "$1" in
    v5e | v5p | v6e | tpu7x | a100 | h100 | h200 | b200)
      while read -r line; do
        [[ $line == \#* || " ${line%%--*}" != *" $1 "* ]] || flags+=" --${line#*--}"
      done <"$(dirname "${BASH_SOURCE[0]}")/../videomae_jax/compiler_flags.txt" || return
      echo "${flags# }" ;;
    cpu | "") ;;
    *) echo "error: no flags for chip '$1'; allowed are v5e, v5p, v6e, tpu7x, a100, h100, h200, b200, cpu" >&2; return 2 ;;
  esac
}

tpu_here() { # the generation of this machine's TPU, which its PCI devices tell as they tell JAX; fails where there is none
  local device vendor id
  for device in "${MACHINE:-}"/sys/bus/pci/devices/*; do
    { read -r vendor <"$device/vendor" && read -r id <"$device/device"; } 2>/dev/null || continue
    # The network card of Google's machines has the vendor of the TPUs.
    case "$vendor $id" in
      "0x1ae0 0x0027") echo v3 ;; "0x1ae0 0x0056") echo plc ;; "0x1ae0 0x005e") echo v4 ;; "0x1ae0 0x0062") echo v5p ;;
      "0x1ae0 0x0063") echo v5e ;; "0x1ae0 0x006f") echo v6e ;; "0x1ae0 0x0076") echo tpu7x ;; *) continue ;;
    esac
    return 0
  done
  return 1
}

chip_here() { # the chip of this machine, as far as it says so
  local name
  if command -v nvidia-smi >/dev/null 2>&1; then
    name=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1)
    case " ${name//[^A-Za-z0-9]/ } " in # words, for an RTX A1000 is no A100
      *" A100 "*) echo a100 ;; *" H100 "*) echo h100 ;; *" H200 "* | *" GH200 "*) echo h200 ;; *" B200 "* | *" GB200 "*) echo b200 ;;
    esac
    return
  fi
  case "${ACCELERATOR_TYPE:-${TPU_ACCELERATOR_TYPE:-$(tpu_here)}}" in
    v5litepod-* | v5e*) echo v5e ;; v5p*) echo v5p ;; v6e*) echo v6e ;; tpu7x*) echo tpu7x ;; *) echo cpu ;;
  esac
}

export_flags() { # export_flags CHIP
  local flags
  flags=$(flags_of "$1") || return
  case "$1" in
    v5e | v5p | v6e | tpu7x) export LIBTPU_INIT_ARGS="$flags${LIBTPU_INIT_ARGS:+ $LIBTPU_INIT_ARGS}" ;;
    a100 | h100 | h200 | b200)
      # The same bits for the same seed, which scatters and some convolutions otherwise do not give.
      [ -z "${DETERMINISTIC:-}" ] || flags+=" --xla_gpu_deterministic_ops=true"
      export XLA_FLAGS="$flags${XLA_FLAGS:+ $XLA_FLAGS}" XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"
      # Latency-hiding scheduler, pipelined collectives and double-buffered loops in one switch.
      export JAX_OPTIMIZATION_LEVEL="${JAX_OPTIMIZATION_LEVEL:-O1}" NCCL_NVLS_ENABLE="${NCCL_NVLS_ENABLE:-1}"
      [ "$1" = b200 ] || export CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}" ;;
  esac
}
