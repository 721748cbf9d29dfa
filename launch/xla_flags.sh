# Compiler flags and environment for each chip, exported by `export_flags CHIP [SLICES]`; the values of the user come last and win.
# `export_here` exports those of this machine. CHIP names the chip where the machine does not tell it.
# DETERMINISTIC=1 makes GPUs give the same bits in every run (CPUs and TPUs do).
#
# Sources: apple/axlearn compiler_options.py, AI-Hypercomputer/maxtext xla_flags_library.py, NVIDIA/JAX-Toolbox
# GPU_performance.md (2026-08). Left out on purpose: xla_tpu_spmd_rng_bit_generator_unsafe (masks would depend on the mesh)
# and SparseCore offload of all-reduce (wrong losses on v6e with jax 0.6.2, on tpu7x with 0.8.3).

tpu_all="--xla_tpu_enable_latency_hiding_scheduler=true"
async="--xla_tpu_enable_async_collective_fusion=true --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true \
--xla_tpu_enable_async_collective_fusion_multiple_steps=true --xla_tpu_overlap_compute_collective_tc=true --xla_enable_async_all_gather=true"
reduce="--xla_tpu_enable_data_parallel_all_reduce_opt=true --xla_tpu_data_parallel_opt_different_sized_ops=true"

flags_of() { # flags_of CHIP: the flags, one line
  case "$1" in
    v5e) echo "$tpu_all $reduce $async" ;;
    v5p) echo "$tpu_all $reduce $async --xla_enable_async_collective_permute=true" ;;
    v6e) echo "$tpu_all $async --xla_tpu_scoped_vmem_limit_kib=98304 --xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000" ;;
    tpu7x) echo "$tpu_all --xla_tpu_scoped_vmem_limit_kib=65536 --xla_tpu_enable_async_collective_fusion_fuse_all_gather=false" ;;
    # A ViT-g layer is 50 MB in bfloat16: one layer fits into a combined gather.
    a100 | h100 | h200 | b200) echo "--xla_gpu_all_gather_combine_threshold_bytes=134217728 --xla_gpu_reduce_scatter_combine_threshold_bytes=134217728" ;;
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
    case "$name" in *A100*) echo a100 ;; *H100*) echo h100 ;; *H200*) echo h200 ;; *B200*) echo b200 ;; esac
    return
  fi
  case "${ACCELERATOR_TYPE:-${TPU_ACCELERATOR_TYPE:-$(tpu_here)}}" in
    v5litepod-* | v5e*) echo v5e ;; v5p*) echo v5p ;; v6e*) echo v6e ;; tpu7x*) echo tpu7x ;; *) echo cpu ;;
  esac
}

slices_here() { # over how many slices the job runs, nothing where nobody says: GKE has it in the environment, a Cloud TPU in its metadata
  local url="http://${GCE_METADATA_IP:-metadata.google.internal}/computeMetadata/v1/instance/attributes/tpu-env"
  if [ -n "${MEGASCALE_NUM_SLICES:-}" ]; then echo "$MEGASCALE_NUM_SLICES"; return; fi
  if [ -n "${TPU_SKIP_MDS_QUERY:-}" ] || ! tpu_here >/dev/null; then return; fi
  curl -fs --noproxy '*' --max-time 5 -H "Metadata-Flavor: Google" "$url" | sed -n "s/^MEGASCALE_NUM_SLICES: '\(.*\)'/\1/p"
}

# Slices exchange gradients through the network of their hosts. The memory registered for it, 4 GiB by default, would be too little for larger
# models, whose steps take twice as long then; sinking an exchange keeps its tensors, so large ones are left out; starting and compiling takes
# some slices minutes longer than others, which is no hang; one that is, or an error, ends the processes, which start again.
between_slices="--xla_tpu_enable_megascale_barrier=true --xla_tpu_enable_sunk_dcn_allreduce_done_with_host_reduction=true \
--xla_tpu_host_dcn_reduce_max_sinking_limit=67108864 --megascale_grpc_premap_memory_bytes=17179869184 --megascale_graph_hang_threshold=10m \
--megascale_graph_within_launch_hang_threshold=10m --megascale_error_reporter_abort_on_hang=true --megascale_error_reporter_abort_on_error=true"

export_here() { # what a run on this machine gets: flags, and a folder for compiled programs
  export_flags "${CHIP:-$(chip_here)}" "$(slices_here)" || return
  export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/videomae_jax}"
}

export_flags() { # export_flags CHIP [SLICES]
  local flags
  flags=$(flags_of "$1") || return
  case "$1" in
    v5e | v5p | v6e | tpu7x)
      case "${2:-}" in "" | 1) ;; *) flags+=" $between_slices" ;; esac
      export LIBTPU_INIT_ARGS="$flags${LIBTPU_INIT_ARGS:+ $LIBTPU_INIT_ARGS}" ;;
    a100 | h100 | h200 | b200)
      # The same bits for the same seed, which scatters and some convolutions otherwise do not give.
      [ -z "${DETERMINISTIC:-}" ] || flags+=" --xla_gpu_deterministic_ops=true"
      export XLA_FLAGS="$flags${XLA_FLAGS:+ $XLA_FLAGS}" XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"
      # Latency-hiding scheduler, pipelined collectives and double-buffered loops in one switch.
      export JAX_OPTIMIZATION_LEVEL="${JAX_OPTIMIZATION_LEVEL:-O1}" NCCL_NVLS_ENABLE="${NCCL_NVLS_ENABLE:-1}"
      [ "$1" = b200 ] || export CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}" ;;
  esac
}
