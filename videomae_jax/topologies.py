"""Chips and how many of them hang together: what `plan` knows about hardware, and TPU devices for compiling without any.

Figures are the makers' data sheets (dense bfloat16, no sparsity); links are one direction, all links of a chip together.
"""

import dataclasses
import importlib.metadata
import importlib.resources
import importlib.util
import math
import os
import re
from typing import Any

from videomae_jax.errors import UserError

GIB = 2**30
O1 = 19  # XLA's number of the JAX_OPTIMIZATION_LEVEL that the launchers set for GPUs: as an option of the compiler jax takes it by number alone


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator chip. `hbm` are the bytes a program may use, `cores` the host's vCPUs, `devices` JAX's devices a chip.

    `link` are bytes a second to the neighbours (ICI, NVLink), `network` bytes a second and host to everywhere else, `pcie` bytes a
    second between a chip and its host's memory. `clock` are a TPU's cycles a second of each of its `tensor_cores`.
    """

    name: str
    tflops: float
    hbm: float
    bandwidth: float
    link: float
    network: float
    per_host: int
    cores: int
    devices: int = 1
    platform: str = "tpu"
    pcie: float = 16e9
    clock: float = math.inf
    tensor_cores: int = 1


# Clocks follow from the peaks: matrix units of 128 x 128 (v5e 4, v5p 8) and of 256 x 256 (v6e 4, tpu7x 8) products a cycle.
# ICI rates: jax-ml/scaling-book (90 GB/s a link and direction on v5p, 45 on v5e, 90 on v6e), and for PCIe of TPUs; tpu7x as v5p, for the
# maker's page of tpu7x gives both 1,200 GB/s a chip, and DCN rates a chip of 50 (v5p), 100 and 100 Gb/s. Hosts: machine types ct5lp-hightpu-4t,
# ct5p-hightpu-4t, ct6e-standard-4t, tpu7x-standard-4t, a3-ultragpu-8g, a4-highgpu-8g. Those of A100 and H100 are of two machines: vCPUs of
# a2-ultragpu-8g and a3-highgpu-8g, whose networks are slower, and the InfiniBand of DGX A100 and DGX H100, 8 x 200 and 8 x 400 Gb/s.
CHIPS = {
    "v5e": Chip("v5e", 197, 15.75 * GIB, 0.819e12, 180e9, 12.5e9, 4, 112, clock=1.5e9),
    "v5p": Chip("v5p", 459, 95.74 * GIB, 2.765e12, 540e9, 25e9, 4, 208, clock=1.75e9, tensor_cores=2),
    "v6e": Chip("v6e", 918, 31.25 * GIB, 1.638e12, 360e9, 50e9, 4, 180, clock=1.75e9),
    "tpu7x": Chip("tpu7x", 2307, 189.5 * GIB, 7.38e12, 540e9, 50e9, 4, 224, devices=2, clock=2.2e9, tensor_cores=2),
    "a100": Chip("a100", 312, 80e9, 2.04e12, 300e9, 200e9, 8, 96, platform="gpu", pcie=32e9),
    "h100": Chip("h100", 989, 80e9, 3.35e12, 450e9, 400e9, 8, 208, platform="gpu", pcie=64e9),
    "h200": Chip("h200", 989, 141e9, 4.8e12, 450e9, 400e9, 8, 224, platform="gpu", pcie=64e9),
    "b200": Chip("b200", 2250, 180e9, 7.7e12, 900e9, 400e9, 8, 224, platform="gpu", pcie=64e9),
}
# Chips of a slice -> the shape of its torus. v5p counts two cores a chip in its name, the others count chips or cores as below.
TORUS = {
    "v5e": {"4": "2x2", "8": "2x4", "16": "4x4", "32": "4x8", "64": "8x8", "128": "8x16", "256": "16x16"},
    "v5p": {"8": "2x2x1", "16": "2x2x2", "32": "2x2x4", "64": "2x4x4", "128": "4x4x4", "256": "4x4x8", "512": "4x8x8", "1024": "8x8x8",
            "2048": "8x8x16", "4096": "8x16x16"},
    "tpu7x": {"8": "2x2x1", "128": "4x4x4", "512": "4x8x8", "1024": "8x8x8"},
}
TORUS["v6e"] = TORUS["v5e"]

# What XLA's compiler asks of a GPU (makers' data sheets, CUDA's device properties): compute capability, multiprocessors, float32 units of
# each, kB of shared memory of each, MB of L2, GHz, and the name that JAX gives it.
GPUS = {
    "a100": ((8, 0), 108, 64, 164, 40, 1.41, "NVIDIA A100-SXM4-80GB"),
    "h100": ((9, 0), 132, 128, 228, 50, 1.98, "NVIDIA H100 80GB HBM3"),
    "h200": ((9, 0), 132, 128, 228, 60, 1.98, "NVIDIA H200"),
    "b200": ((10, 0), 148, 128, 228, 126, 1.96, "NVIDIA B200"),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """`slices` x `chips` chips; a slice is what the fast links join: a TPU pod slice, a GPU node."""

    name: str
    chip: Chip
    slices: int
    chips: int
    torus: str = ""

    @property
    def devices(self) -> int:
        """JAX devices in all."""
        return self.slices * self.chips * self.chip.devices

    @property
    def all_chips(self) -> int:
        """Chips in all."""
        return self.slices * self.chips

    @property
    def hosts(self) -> int:
        """Machines with a CPU."""
        return max(1, self.all_chips // self.chip.per_host)


def find(name: str, /) -> Topology:
    """The topology of a name: v5e-256, 2xv5p-512, h100x512, h200x1.

    Raises UserError for an unknown one.
    """
    if match := re.fullmatch(r"(?:(\d+)x)?(v5e|v5p|v6e|tpu7x)-(\d+)", name):
        torus = TORUS[match[2]].get(match[3])
        if torus and int(match[1] or 1):
            return Topology(name, CHIPS[match[2]], int(match[1] or 1), math.prod(int(n) for n in torus.split("x")), torus)
    if (match := re.fullmatch(r"(a100|h100|h200|b200)x([1-9]\d*)", name)) and (int(match[2]) < 8 or int(match[2]) % 8 == 0):
        count = int(match[2])
        return Topology(name, CHIPS[match[1]], max(1, count // 8), min(8, count))
    sizes = "; ".join(f"{chip}-{', -'.join(sizes)}" for chip, sizes in TORUS.items())
    raise UserError(f"topology {name!r}; allowed are {sizes}, each with Nx before it for N slices; a100xN, h100xN, h200xN, b200xN for N GPUs "
                    "(below 8, or a multiple of 8)")


def larger(topology: Topology, /, *, memory: float) -> list[Topology]:
    """Topologies with more memory in all than one whose devices have `memory` bytes each, as all of its kind have: more TPUs, then other ones; as many
    GPUs with more memory, then more of them."""
    chip, count = topology.chip, topology.all_chips
    if chip.platform == "tpu":
        sizes = [f"{chip.name}-{n}" for n in TORUS.get(chip.name, {})]
        names = [*(name for name in sizes if find(name).all_chips > count), "v5p-512", "tpu7x-512"]
    else:
        some = [-(-n * max(4, count) // 8) * 8 for n in (2, 4)]  # whole nodes
        kinds = dict.fromkeys((*([chip.name] if chip.name in GPUS else []), "h100", "h200", "b200"))
        names = [*(f"{kind}x{count}" for kind in ("h200", "b200") if count < 8 or count % 8 == 0), *(f"{kind}x{n}" for n in some for kind in kinds)]
    have = {one: one.devices * memory if one.chip.name == chip.name else one.all_chips * one.chip.hbm for one in map(find, names)}
    return [one for one, bytes_ in have.items() if bytes_ > topology.devices * memory]


def chip_of(kind: str, /) -> Chip | None:
    """The chip of a device kind as JAX names it ("TPU v5 lite", "NVIDIA H100 80GB HBM3"), None for one that is not listed."""
    name = kind.lower().replace("tpu v5 lite", "v5e").replace("tpu v6 lite", "v6e")
    words = re.findall("[a-z0-9]+", name)  # an RTX A1000 is no A100
    return next((c for c in CHIPS.values() if c.name in words), CHIPS["v5p"] if name == "tpu v5" else None)


def local(*, memory: float, tflops: float) -> Topology:
    """The devices that JAX sees here, on machines like this one; those of a kind that is not listed have `memory` bytes and `tflops` each."""
    import jax

    device = jax.devices()[0]
    known = chip_of(device.device_kind)
    limit = (device.memory_stats() or {}).get("bytes_limit", 0) or memory
    per_host, cores = max(1, jax.local_device_count() // (known.devices if known else 1)), os.cpu_count() or 1
    chip = dataclasses.replace(known, hbm=limit * known.devices, per_host=per_host, cores=cores) if known else Chip(
        device.device_kind, tflops, limit, math.inf, math.inf, math.inf, per_host, cores, platform=device.platform, pcie=math.inf)
    return Topology("local", chip, 1, jax.device_count() // chip.devices)


def libtpu() -> str:
    """The requirement of the TPU compiler that the installed jax is built with."""
    return next((r.split(";")[0].strip() for r in importlib.metadata.requires("jax") or () if r.startswith("libtpu")), "libtpu")


def tpu_devices(topology: Topology, /) -> list[Any]:
    """Devices of a TPU topology that can be compiled for but not used, on any machine with the libtpu wheel.

    Raises UserError without libtpu, or where it refuses the topology.
    """
    wanted = libtpu()
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"--topology={topology.name} compiles with libtpu, which is not installed: pip install '{wanted}'; a GPU topology needs no extra")
    try:
        version, pinned = importlib.metadata.version("libtpu"), wanted.partition("==")[2].removesuffix("*")
    except importlib.metadata.PackageNotFoundError:  # a nightly build has another name
        version = pinned = ""
    if not f"{version}.".startswith(pinned):
        raise UserError(f"libtpu {version} is not the one of jax {importlib.metadata.version('jax')}: pip install '{wanted}'")
    # No metadata server to ask, no log files, and no refusal where another process compiles as well.
    for key, value in {"TPU_SKIP_MDS_QUERY": "1", "TPU_LOG_DIR": "disabled", "TPU_MIN_LOG_LEVEL": "3", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
                       "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5p-8"}.items():
        os.environ.setdefault(key, value)
    given = os.environ.get("LIBTPU_INIT_ARGS", "")
    ours = [f"--{name}={value}" for name, value in flags("libtpu").items() if name not in given]  # of the process, no options of a compilation
    os.environ["LIBTPU_INIT_ARGS"] = " ".join([*ours, *given.split()])
    from jax.experimental import topologies

    generation = "v5" if topology.chip.name == "v5p" else topology.chip.name
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=f"{generation}:{topology.torus}", num_slices=topology.slices)
    except Exception as error:  # libtpu raises whatever its plug-in does
        raise UserError(f"libtpu refuses --topology={topology.name}: {str(error).splitlines()[0]}") from error
    return list(found.devices)


def devices(topology: Topology, /) -> list[Any]:
    """What a step is compiled for: the devices here for "local", else some that are not here; none where it can only be estimated.

    Raises UserError as `tpu_devices` and `gpu_devices` do.
    """
    if topology.name == "local":
        import jax

        return jax.devices()
    return (tpu_devices if topology.chip.platform == "tpu" else gpu_devices)(topology)


def flags(chip: str, /, *, slices: int = 1) -> dict[str, str]:
    """The compiler flags that the launchers set for a chip, or for the process of "libtpu", by their names without dashes; none for one that is not listed.

    They are the package's own file, which the launchers read as well; TPUs of several slices have more of them.
    """
    found: dict[str, str] = {}
    wanted = {chip, "slices"} if slices > 1 and chip in TORUS else {chip}
    for line in (importlib.resources.files("videomae_jax") / "compiler_flags.txt").read_text().splitlines():
        words = line.split()
        if wanted & set(words) and not line.startswith("#"):
            found |= dict(word.removeprefix("--").split("=", 1) for word in words if word.startswith("--"))
    return found


def compiler_options(topology: Topology, /) -> dict[str, str | int]:
    """What a step is compiled with so that it is the program that the launchers run; what the user's own flags name is the user's.

    Nothing for "local": there the environment of the process decides, as it does for a run.
    """
    if topology.name == "local":
        return {}
    given = os.environ.get("LIBTPU_INIT_ARGS" if topology.chip.platform == "tpu" else "XLA_FLAGS", "").split()
    users = {word.lstrip("-").partition("=")[0] for word in given}
    level = {"optimization_level": O1} if topology.chip.platform == "gpu" and not os.environ.get("JAX_OPTIMIZATION_LEVEL") else {}
    return level | {name: {"true": True, "false": False}.get(value, value) for name, value in flags(topology.chip.name, slices=topology.slices).items()
            if name not in users}


def gpu_target(chip: Chip, /) -> str:
    """The GPU of a chip as XLA's GpuTargetConfigProto in text form."""
    (major, minor), cores, units, shared, cache, clock, name = GPUS[chip.name]
    limits = "threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 threads_per_core_limit: 2048 " \
             "block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 registers_per_core_limit: 65536 registers_per_block_limit: 65536"
    return (f"gpu_device_info {{ {limits} shared_memory_per_core: {shared * 1024} shared_memory_per_block_optin: {(shared - 1) * 1024} core_count: {cores} "
            f"fpus_per_core: {units} memory_bandwidth: {chip.bandwidth:.0f} l2_cache_size: {cache * 2**20} clock_rate_ghz: {clock} "
            f"device_memory_size: {chip.hbm:.0f} cuda_compute_capability {{ major: {major} minor: {minor} }} }} "
            f'platform_name: "CUDA" runtime_version {{ major: 13 minor: 0 patch: 0 }} dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{name}"')


def gpu_devices(topology: Topology, /) -> list[Any]:
    """Devices of a GPU topology that can be compiled for but not used, on any machine with JAX's CUDA plug-in; none without it.

    Raises UserError where the plug-in refuses the topology.
    """
    if not any(importlib.util.find_spec("jax_plugins") and importlib.util.find_spec(f"jax_plugins.xla_cuda{n}") for n in (12, 13)):
        return []
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # which counts the drivers that are missing
    from jax.experimental import topologies

    nodes = f"1x{topology.slices}x{topology.chips}"
    try:
        return list(topologies.get_topology_desc(topology.name, "cuda", target_config=gpu_target(topology.chip), topology=nodes).devices)
    except Exception as error:  # a plug-in raises whatever it does
        raise UserError(f"JAX's CUDA plug-in refuses --topology={topology.name}: {str(error).splitlines()[0]}; without the plug-in it is estimated") from error
