# Compiler flags and environment for each chip, exported by `export_flags CHIP [SLICES]`; the values of the user come last and win.
# `export_here` exports those of this machine, `show_exports` prints them. CHIP names the chip where the machine does not tell it.
# DETERMINISTIC=1 makes GPUs give the same bits in every run (CPUs and TPUs do).
#
# The flags of a chip are those of videomae_jax/compiler_flags.txt, which `plan` compiles with: what is predicted is what runs.

flags_of() { # flags_of CHIP [SLICES]: the flags, one line
  local line also=$1 flags=
  case "$1 ${2:-1}" in *" 1") ;; v* | tpu*) also=slices ;; esac
  case "$1" in
    v5e | v5p | v6e | tpu7x | libtpu | a100 | h100 | h200 | b200)
      while read -r line; do
        [[ $line == \#* || " ${line%%--*}" != *" $1 "* && " ${line%%--*}" != *" $also "* ]] || flags+=" --${line#*--}"
      done <"$(dirname "${BASH_SOURCE[0]}")/../videomae_jax/compiler_flags.txt" || return
      echo "${flags# }" ;;
    cpu | gpu | tpu | "") ;;
    *) echo "error: no flags for chip '$1'; allowed are v5e, v5p, v6e, tpu7x, a100, h100, h200, b200, others as gpu or tpu, cpu" >&2; return 2 ;;
  esac
}

tpu_here() { # the generation of this machine's TPU, which its PCI devices tell as they tell JAX; fails where there is none
  local device vendor id
  for device in "${MACHINE:-}"/sys/bus/pci/devices/*; do
    { read -r vendor <"$device/vendor" && read -r id <"$device/device"; } 2>/dev/null || continue
    # The network card of Google's machines has the vendor of the TPUs.
    case "$vendor $id" in
      "0x1ae0 0x0027") echo v3 ;; "0x1ae0 0x0056") echo plc ;; "0x1ae0 0x005e") echo v4 ;; "0x1ae0 0x0062") echo v5p ;;
      "0x1ae0 0x0063") echo v5e ;; "0x1ae0 0x006f") echo v6e ;; "0x1ae0 0x0076") echo tpu7x ;;
      "0x1ae0 0x0083") echo tpu8i ;; "0x1ae0 0x007c") echo tpu8t ;; *) continue ;;
    esac
    return 0
  done
  return 1
}

gpu_here() { # whether this machine has a GPU: a driver that finds none says so where names would be
  [[ $(nvidia-smi -L 2>/dev/null) == *"GPU "[0-9]* ]]
}

chip_here() { # the chip of this machine; gpu or tpu for one that no flags are known for
  local name
  if gpu_here; then
    name=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1)
    case " ${name//[^A-Za-z0-9]/ } " in # words, for an RTX A1000 is no A100
      *" A100 "*) echo a100 ;; *" H100 "*) echo h100 ;; *" H200 "* | *" GH200 "*) echo h200 ;; *" B200 "* | *" GB200 "*) echo b200 ;;
      *) echo gpu ;;
    esac
    return
  fi
  case "${ACCELERATOR_TYPE:-${TPU_ACCELERATOR_TYPE:-$(tpu_here)}}" in
    v5litepod-* | v5e*) echo v5e ;; v5p*) echo v5p ;; v6e*) echo v6e ;; tpu7x*) echo tpu7x ;; v[2-9]* | plc | tpu*) echo tpu ;; *) echo cpu ;;
  esac
}

slices_here() { # over how many slices the job runs, nothing where nobody says: GKE has it in the environment, a Cloud TPU in its metadata
  local url="http://${GCE_METADATA_IP:-metadata.google.internal}/computeMetadata/v1/instance/attributes/tpu-env"
  if [ -n "${MEGASCALE_NUM_SLICES:-}" ]; then echo "$MEGASCALE_NUM_SLICES"; return; fi
  if [ -n "${TPU_SKIP_MDS_QUERY:-}" ] || ! tpu_here >/dev/null; then return; fi
  curl -fs --noproxy '*' --max-time 5 -H "Metadata-Flavor: Google" "$url" | sed -n "s/^MEGASCALE_NUM_SLICES: '\(.*\)'/\1/p"
}

# Slices exchange gradients through the network of their hosts. The memory registered for it, 4 GiB by default, would be too little for larger
# models, whose steps take twice as long then; starting and compiling takes some slices minutes longer than others, which is no hang; one that
# is, or an error, ends the processes, which start again. These change no program; what does is in the file of the flags.
between_slices="--megascale_grpc_premap_memory_bytes=17179869184 --megascale_graph_hang_threshold=10m \
--megascale_graph_within_launch_hang_threshold=10m --megascale_error_reporter_abort_on_hang=true --megascale_error_reporter_abort_on_error=true"

export_here() { # what a run on this machine gets: flags, and on accelerators a folder for compiled programs, which of CPUs are for one processor alone
  local chip="${CHIP:-$(chip_here)}"
  export_flags "$chip" "$(slices_here)" || return
  case "$chip" in
    cpu | "") ;;
    *) export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-${HOME:-/tmp}/.cache/videomae_jax}" ;;
  esac
}

export_flags() { # export_flags CHIP [SLICES]
  local flags
  flags=$(flags_of "$1" "${2:-}") || return
  case "$1" in
    v5e | v5p | v6e | tpu7x)
      case "${2:-}" in "" | 1) ;; *) flags+=" $between_slices" ;; esac
      export LIBTPU_INIT_ARGS="$flags $(flags_of libtpu)${LIBTPU_INIT_ARGS:+ $LIBTPU_INIT_ARGS}" ;;
    a100 | h100 | h200 | b200)
      # Latency-hiding scheduler, pipelined collectives and double-buffered loops in one switch.
      export JAX_OPTIMIZATION_LEVEL="${JAX_OPTIMIZATION_LEVEL:-O1}" NCCL_NVLS_ENABLE="${NCCL_NVLS_ENABLE:-1}"
      [ "$1" = b200 ] || export CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}" ;;
  esac
  case "$1" in
    gpu | a100 | h100 | h200 | b200)
      # The same bits for the same seed, which scatters and some convolutions otherwise do not give.
      [ -z "${DETERMINISTIC:-}" ] || flags+="${flags:+ }--xla_gpu_deterministic_ops=true"
      export XLA_FLAGS="$flags${XLA_FLAGS:+${flags:+ }$XLA_FLAGS}" XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}" ;;
  esac
}

show() { # show COMMAND...: one line that a shell reads back as the same words; macOS's bash 3.2 does it as well
  local line
  line=$(printf ' %q' "$@")
  printf '%s\n' "${line# }"
}

show_exports() { # the flags of the chip that a run gets, as commands
  local name
  for name in LIBTPU_INIT_ARGS XLA_FLAGS JAX_OPTIMIZATION_LEVEL NCCL_NVLS_ENABLE CUDA_DEVICE_MAX_CONNECTIONS XLA_PYTHON_CLIENT_MEM_FRACTION \
    JAX_COMPILATION_CACHE_DIR; do
    [ -z "${!name:-}" ] || show export "$name=${!name}"
  done
}
