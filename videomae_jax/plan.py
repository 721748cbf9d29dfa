"""Will it fit, how fast, how long: a run on hardware that is not there, from the real training step compiled for it."""

import contextlib
import dataclasses
import itertools
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from videomae_jax import assembly, footprint, hlo, parallel, topologies
from videomae_jax.errors import UserError, explained, is_exhausted
from videomae_jax.topologies import Topology, larger

EFFICIENCY = 0.8  # of the peak rates that large matrix products and long copies reach (an H200: 790 of 989 TFLOP/s)
RECOMPUTE = {"none": 0.0, "dots": 0.1, "offload": 0.1, "full": 1.0}  # forward passes more, by remat policy
USABLE = 0.95  # of a device's memory; the rest is for the runtime, the next batch and fragments
MARGIN = {"tpu": 1.25, "cpu": 1.1}  # compiled bytes of activations over counted ones at the least: padded layouts
TRIES = 3  # compilations at most
TILE = 8  # rows of a TPU's tile; of ViT-L's width fsdp=256 leaves 4, with which its step on v5p has 9 % more cycles than with 128 and 8
THIN = 0.05  # of the state's bytes may have fewer: decoders of the larger sizes
SHARE = 0.15  # of a device's memory that parameters, moments and gradients may take whole before they are split
LABEL = "model, unvalidated; within 12 % of the steps of masked pretraining on one H100, to which the constants of GPUs are fitted"
MEASURED = "model, fitted to ViT-S to g on one H100: their steps within 12 %, their memory within 5 %"  # tests/test_gpu_plans.py has both sides


@dataclasses.dataclass(frozen=True)
class Input:
    """What feeding costs on one core, measured or assumed: seconds of a decode and of a crop, bytes read for a decode."""

    decode: float = 0.051
    crop: float = 0.0026
    bytes: float = 500e3
    source: str = "assumed: 51 ms a decode, 2.6 ms a crop, 0.5 MB a clip; replace them with --measure"

    @staticmethod
    def read(path: str, /) -> "Input":
        """From a JSON file: what `bench input` prints, or `decode_seconds`, `crop_seconds`, `bytes_per_decode`, any of them absent.

        `bench input` gives training clips a second and core; of packed clips where it measured them. Raises UserError.
        """
        try:
            with open(path) as file:
                values = json.load(file)
        except (OSError, ValueError) as error:
            raise UserError(f"--measure={path} is no readable JSON file: {error}") from error
        names = {"decode_seconds": "decode", "crop_seconds": "crop", "bytes_per_decode": "bytes"}
        rates = ("packed_clips_per_s_core", "raw_clips_per_s_core")
        if not isinstance(values, dict) or not {*names, *rates} & values.keys():
            raise UserError(f"--measure={path} has none of the keys {', '.join((*names, *rates))}")
        given = {v: _number(values[k], f"--measure={path} has {k}", zero=True) for k, v in names.items() if k in values}
        found = [_number(values[k], f"--measure={path} has {k}", zero=False) for k in rates if values.get(k) is not None]
        if found:
            given |= {"decode": 0.0, "crop": 1 / found[0]}
        elif not given:
            raise UserError(f"--measure={path} has no value for {' or '.join(rates)}; `bench input` prints one of them")
        return dataclasses.replace(Input(), source=f"measured: {path}", **given)


def _number(value: Any, what: str, /, *, zero: bool) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf or not (value or zero):
        raise UserError(f"{what} = {json.dumps(value)}; allowed are {'numbers of 0 and more' if zero else 'positive numbers'}")
    return float(value)


def fed(run: assembly.Assembly, topology: Topology, seconds: float, feed: Input, /) -> dict[str, Any]:
    """What the hosts must do to keep up, and whether they can."""
    decodes = run.config.batch_size * run.draws / seconds / topology.hosts
    cores = decodes * (feed.decode + run.source.repeats * feed.crop)
    return {"decodes_per_s_host": decodes, "host_cores_needed": cores, "host_cores": topology.chip.cores,
            "storage_gb_s": decodes * topology.hosts * feed.bytes / 1e9, "input_bound": cores > topology.chip.cores,
            "input_slowdown": max(1.0, cores / topology.chip.cores), "input": feed.source}


@dataclasses.dataclass(frozen=True)
class Choice:
    """What does not change the result of a run, only its cost: recomputation, accumulation, mesh."""

    remat: str
    microbatches: int
    data: int
    fsdp: int
    tensor: int

    @property
    def sizes(self) -> dict[str, int]:
        """The mesh."""
        return {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}

    def apply(self, config: Any, /) -> Any:
        """A copy of `config` with this choice."""
        made = config.copy_and_resolve_references()
        with made.ignore_type(), made.unlocked():
            for node in nodes(made.objective):
                node.remat = self.remat if self.remat != "as given" else node.remat
            made.microbatches = self.microbatches
            made.mesh = {**made.mesh, **self.sizes}
        return made

    def options(self) -> str:
        """The overrides that make a run of it."""
        mesh = " ".join(f"--config.mesh.{k}={v}" for k, v in self.sizes.items())
        return f"remat {self.remat}, --config.microbatches={self.microbatches} {mesh}"


def nodes(objective: Any, /) -> list[Any]:
    """The parts of an objective's config that know recomputation."""
    return [node for _, node in objective.items() if hasattr(node, "keys") and "remat" in node]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A choice with its bytes on a device and seconds a step, before anything is compiled."""

    choice: Choice
    bytes: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled step: bytes on a device, wall and CPU seconds of compilation, the program where it fits, and bytes in the host's memory."""

    bytes: float
    seconds: float
    cpu: float
    program: hlo.Program | None
    host: float = 0.0


class Planner:
    """One config on one topology, whose hosts are fed at the cost of `feed`. `fixed` are the names of fields that the user has set, which are not chosen."""

    def __init__(self, config: Any, topology: Topology, /, *, fixed: frozenset[str], trust: tuple[str, ...],
                 feed: Input = Input(), memory: float = 0.0, say: Callable[[str], None] = lambda line: None) -> None:
        self.config, self.topology, self.fixed, self.trust, self.feed, self.say = config, topology, fixed, trust, feed, say
        self.memory = memory or topology.chip.hbm / topology.chip.devices
        self.limit = self.memory * USABLE
        one = Choice("as given", 1, 1, 1, 1).apply(config)
        with self._aimed():
            self.run = assembly.assemble(one, trust=trust, devices=jax.devices()[:1])
        self._saved: dict[tuple[str, ...], tuple[assembly.Assembly, footprint.Kept, footprint.Kept]] = {}

    def of(self, choice: Choice, /) -> Estimate:
        """The estimate of a choice."""
        micro = max(1, self.run.clips // (choice.data * choice.fsdp) // choice.microbatches)
        run, saved = self._kept(choice.remat, micro)
        host = saved.host / choice.tensor * choice.microbatches
        light = self._kept("none", micro)[1]
        same = {"microbatches": choice.microbatches, "saved": saved, "layer": light.activations / footprint.layers(run)}
        if self.topology.chip.platform == "gpu":
            with self._aimed():
                need = footprint.gpu_bytes(run, choice.sizes, **same)
        else:
            need = footprint.device_bytes(run, choice.sizes, **same, margin=MARGIN.get(self.topology.chip.platform, 1.1))
        seconds = footprint.seconds(run, self.topology, choice.sizes, microbatches=choice.microbatches, recompute=footprint.recompute(run, RECOMPUTE),
                                    efficiency=EFFICIENCY, host=host)
        return Estimate(choice, need, seconds * (1 + 0.01 * (choice.microbatches - 1)))

    def _aimed(self) -> contextlib.AbstractContextManager[None]:
        """What is put together or traced within is meant for the topology."""
        return parallel.aim(parallel.Target(self.topology.chip.platform, self.topology.devices))

    def _kept(self, remat: str, rows: int, /) -> tuple[assembly.Assembly, footprint.Kept]:
        """The run of a policy on one device, and what `rows` clips keep under it."""
        run, one, two = self._traced(tuple(node.remat if remat == "as given" else remat for node in nodes(self.config.objective)))
        return run, one.at(two, rows)

    def _traced(self, policies: tuple[str, ...], /) -> tuple[assembly.Assembly, footprint.Kept, footprint.Kept]:
        """The run with a policy for each part of the model on one device, and what one clip and two keep under them."""
        if policies not in self._saved:
            config = Choice("as given", 1, 1, 1, 1).apply(self.config)
            with config.ignore_type(), config.unlocked():
                for node, policy in zip(nodes(config.objective), policies, strict=True):
                    node.remat = policy
            with self._aimed():
                run = assembly.assemble(config, trust=self.trust, devices=jax.devices()[:1])
                one, two = footprint.kept(run, rows=1), footprint.kept(run, rows=2)
            if "offload" in policies:  # shapes do not tell where an array lies: the inputs of blocks stay, the rest of what is kept goes to the host
                _, *less = self._traced(tuple("full" if policy == "offload" else policy for policy in policies))
                one, two = (dataclasses.replace(few, host=max(0.0, all_.activations - few.activations)) for few, all_ in zip(less, (one, two), strict=True))
            self._saved[policies] = run, one, two
        return self._saved[policies]

    def choices(self, *, free: bool = False) -> Iterator[Choice]:
        """Everything that may be chosen; with `free` also what the user has fixed."""
        fixed = frozenset() if free else self.fixed
        own = {node.remat for node in nodes(self.config.objective)}
        settled = not own or any(name.endswith(".remat") for name in fixed)
        remats = (own.pop() if len(own) == 1 else "as given",) if settled else tuple(RECOMPUTE)
        if self.topology.chip.platform == "cpu" and not settled:  # its memory is the host's
            remats = tuple(r for r in remats if r != "offload")
        found, given = False, "microbatches" in fixed or self.run.objective.batch_coupled
        for sizes in self.meshes(self.fixed, free=free):
            rows, left = divmod(self.run.clips, sizes["data"] * sizes["fsdp"])
            counts = [self.config.microbatches] if given else [2**k for k in range(rows.bit_length())]
            counts = [] if left else [count for count in counts if rows % count == 0]
            found |= bool(counts)
            for remat, count in itertools.product(remats, counts):
                yield Choice(remat, count, **sizes)
        if not found:
            count = f" in {self.config.microbatches} micro-batches" if given else ""
            raise UserError(f"batch of {self.run.clips} clips (decoded clips x repeats){count} cannot be split evenly over the {self.topology.devices} devices of "
                            f"{self.topology.name}; allowed are multiples of them, such as --config.batch_size={self.topology.devices}, or other topologies")

    def meshes(self, fixed: frozenset[str], /, *, free: bool = False) -> list[dict[str, int]]:
        """Meshes worth trying: the user's, else (with `free` also) all data-parallel where the state is small, and split within a slice and beyond."""
        devices = self.topology.devices
        given, own = self.config.mesh, []
        if fixed & {f"mesh.{axis}" for axis in parallel.AXES} or (given.data, given.fsdp, given.tensor) != (-1, 1, 1):
            layout = parallel.Layout(**given)
            sizes = dict(zip(parallel.AXES, layout.sizes(devices), strict=True))
            mesh = parallel.abstract_mesh(**sizes)  # what a run would refuse is no plan
            parallel.check_replication(self.run.boxed, mesh=mesh, limit=layout.replicated)
            parallel.check_batch(self.run.clips, mesh=mesh, microbatches=self.config.microbatches if "microbatches" in fixed else 1)
            if not free:
                return [sizes]
            own = [sizes]
        within = devices // self.topology.slices
        powers = [f for f in (2**k for k in range(devices.bit_length())) if devices % f == 0 and self._splits(f, devices)]
        fits = [{"data": devices // f, "fsdp": f, "tensor": 1} for f in powers]
        whole = [s for s in fits if s["fsdp"] == 1 and footprint.state_bytes(self.run, s) <= SHARE * self.limit]
        split = [s for s in fits if 1 < s["fsdp"] <= within][-1:]
        # Beyond a slice only where nothing else can hold the state.
        found = whole + split if whole else (split or fits[:1]) + [s for s in fits if s["fsdp"] > within]
        return own + [sizes for sizes in found if sizes not in own]

    def _splits(self, fsdp: int, devices: int, /) -> bool:
        """Whether `fsdp` passes the replication gate, and leaves the devices of a TPU whole tiles of all but a few bytes."""
        mesh, limit = parallel.abstract_mesh(data=devices // fsdp, fsdp=fsdp, tensor=1), parallel.Layout(**self.config.mesh).replicated
        try:
            parallel.check_replication(self.run.boxed, mesh=mesh, limit=limit)
        except UserError:
            return False
        return self.topology.chip.platform != "tpu" or parallel.thin(self.run.boxed, mesh=mesh, least=TILE) <= THIN

    def compile(self, choice: Choice, /) -> Compiled:
        """The real step of a choice, compiled for the topology with the flags that the launchers set.

        Raises UserError where a kernel does not fit into the memory within a core: no choice changes that.
        """
        devices = topologies.devices(self.topology)
        run = assembly.assemble(choice.apply(self.config), trust=self.trust, devices=devices)
        begin, cpu = time.perf_counter(), time.process_time()
        try:
            compiled = run.compile(options=topologies.compiler_options(self.topology))
        except RuntimeError as error:
            if "cuDNN" in str(error):
                raise UserError(f"--topology={self.topology.name} compiles with JAX's CUDA plug-in: {str(error).splitlines()[0]}; install jax[cuda13] whole, or none "
                                "of it for an estimate") from error
            if not is_exhausted(error):
                raise
            used = re.search(r"in memory space hbm\. Used ([\d.]+)([KMGT]?) of", str(error))  # the memories within a core have the same text
            if not used:
                raise explained(error, command="plan") from error
            return Compiled(float(used[1]) * 1024 ** " KMGT".index(used[2] or " "), time.perf_counter() - begin, time.process_time() - cpu, None)
        spent = time.perf_counter() - begin, time.process_time() - cpu
        memory = compiled.memory_analysis()
        need = (memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
                + memory.generated_code_size_in_bytes)
        need += footprint.batch_bytes(run) / parallel.batch_ways(run.mesh) * max(0, run.config.prefetch - 1)  # batches that wait for their step
        # A GPU's program hides its products in calls of libraries, so its time is the estimate's.
        program = None if self.topology.chip.platform == "gpu" else hlo.Program(compiled.as_text(), devices=len(devices), slices=self.topology.slices)
        return Compiled(need, *spent, program, memory.host_temp_size_in_bytes)

    def ways_out(self, factor: float, /) -> list[str]:
        """The three cheapest changes that fit by estimate, in chip-hours of the recipe; estimates are off by `factor`. Where hosts make them equal, the fastest chips first.

        Of other topologies only where this one has fewer than three: whoever asks for it has it.
        """
        found = []
        for one in map(self.of, self.choices(free=True)):
            for text, saved in ((one.choice.options(), 0.0), *self._smaller_state(one.choice)):
                if one.bytes * factor - saved <= self.limit:
                    found.append(self._way(dataclasses.replace(one, bytes=one.bytes - saved / factor), text, factor))
                    break
        config = Choice("as given", self.config.microbatches, -1, 1, 1).apply(self.config)  # the user's mesh is one of this topology
        for where in larger(self.topology, memory=self.memory) if len(found) < 3 else ():
            cap = self.memory if where.chip.name == self.topology.chip.name else 0.0
            try:
                other = Planner(config, where, fixed=frozenset(), trust=self.trust, feed=self.feed, memory=cap)
                fits = [e for e in map(other.of, other.choices()) if e.bytes * factor <= other.limit]
            except UserError:  # the user's batch is none of that topology
                continue
            if fits:
                best = min(fits, key=lambda e: e.seconds)
                found.append(other._way(best, f"--topology={where.name}, {best.choice.options()}", factor))
        return [text for _, _, text in sorted(found)[:3]]

    def _smaller_state(self, choice: Choice, /) -> list[tuple[str, float]]:
        """The change that stores first moments in two bytes, and what it saves on a device; none where there are none."""
        names = [name for name, node in self.config.optimizers.items() if node.get("first_moment", "") == "float32"]
        saved = parallel.nbytes(self.run.abstract.params) / 2 / (choice.fsdp * choice.tensor)
        return [(f"{choice.options()} --config.optimizers.{name}.first_moment=bfloat16", saved) for name in names[:1]]

    def paid(self, seconds: float, /) -> float:
        """Seconds of a step whose chips take `seconds`: longer where the hosts cannot keep up."""
        return seconds * fed(self.run, self.topology, seconds, self.feed)["input_slowdown"]

    def _way(self, one: Estimate, text: str, factor: float, /) -> tuple[float, float, str]:
        """Chip-hours, without their last bits, seconds of a step on the chips, and a line."""
        hours = self.paid(one.seconds) * self.topology.all_chips * self.run.total / 3600
        return float(f"{hours:.9g}"), one.seconds, f"{text}: {one.bytes * factor * self.topology.chip.devices / 1e9:.1f} GB a chip, {hours:,.0f} chip-hours"
