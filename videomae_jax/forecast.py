"""The figures of a plan: time, utilisation, chip-hours, input, storage, as plain data and as a table."""

import importlib.metadata
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from videomae_jax import assembly, benchmarks, footprint, hlo, parallel, topologies
from videomae_jax import config as configs
from videomae_jax.data.unread import Unread
from videomae_jax.errors import UserError
from videomae_jax.plan import EFFICIENCY, LABEL, MEASURED, TRIES, Choice, Compiled, Estimate, Input, Planner, fed
from videomae_jax.topologies import Topology, find, local

VIDEOS = 1_350_000  # of VideoMAE V2's UnlabeledHybrid


def without_index(config: Any, /, *, videos: int, needed: bool = False, trust: tuple[str, ...] = (), say: Callable[[str], None] = lambda line: None) -> Any:
    """The config; where its data cannot be opened here, which `say` is told, with their shapes and `videos` rows in their place.

    Raises UserError instead where the data are `needed`: whoever names their place means those, and not as many as another set has.
    """
    try:
        len(configs.build(config.data, trust=trust))
    except UserError as error:
        if needed:
            raise UserError(f"{error}; --videos=N plans for N videos without them") from error
        say(f"the data cannot be opened here, {videos:,} videos are assumed in their place: {error}")
        with config.ignore_type(), config.unlocked():
            config.data = configs.spec(Unread, source=config.data, length=videos)
    return config


def here() -> Topology:
    """The local devices; the peak of an unknown chip is measured by a matrix product, its memory is this machine's."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / jax.local_device_count()
    known = benchmarks.known_peak(jax.devices()[0])
    tflops = known.tflops if known else 0.0
    if not known:
        product = benchmarks.Product("float32")
        product(1)
        rate = product.flops / min(benchmarks.lap(product, steps=1).wall for _ in range(3)) / 1e12
        tflops = rate * benchmarks.at_once(jax.local_devices()) / jax.local_device_count()
    return local(memory=memory, tflops=tflops)


def named(name: str, /) -> Topology:
    """The topology of a name, of which "local" is the devices here. Raises UserError for an unknown one."""
    if name == "local":
        return here()
    try:
        return find(name)
    except UserError as error:
        raise UserError(f"{error}; local") from error


def make(config: Any, name: str, /, *, fixed: frozenset[str], trust: tuple[str, ...] = (), feed: Input = Input(),
         memory: float = 0.0, then: Sequence[tuple[Any, int]] = (), say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """The plan of a config on the topology `name` as plain data; `then` are further stages and the videos each is tested on, costed at the same utilisation."""
    topology = named(name)
    topologies.devices(topology)  # fails now, not after minutes
    planner = Planner(config, topology, fixed=fixed, trust=trust, feed=feed, memory=memory, say=say)
    estimate, compiled = choose(planner)
    time = timed(compiled.program, topology) if compiled.program else None
    seconds = time.step if time else estimate.seconds
    fits = compiled.bytes <= planner.limit
    run, chip = planner.run, topology.chip
    clips = run.clips * run.draws
    flops = run.objective.cost().train_flops * clips
    peak = topology.all_chips * chip.tflops * 1e12
    feeding = fed(run, topology, seconds, feed)
    hours = run.total * seconds * feeding["input_slowdown"] / 3600  # hosts that cannot keep up are paid for as well
    result = {
        "topology": name, "config": config.name, "chips": topology.all_chips, "hosts": topology.hosts, "fits": fits,
        "bytes_per_chip": round(compiled.bytes * chip.devices), "limit_bytes_per_chip": round(planner.limit * chip.devices),
        "host_bytes_per_chip": round(compiled.host * chip.devices),
        "remat": estimate.choice.remat, "microbatches": estimate.choice.microbatches, "mesh": estimate.choice.sizes,
        "flops_per_step": flops, "step_seconds": seconds, "predicted_mfu": flops / seconds / peak,
        "steps": run.total, "videos": len(run.source), "hours": hours, "chip_hours": hours * topology.all_chips,
        "compile_seconds": round(compiled.seconds, 1) if compiled.seconds else None, "compile_cpu_seconds": round(compiled.cpu, 1),
        "label": MEASURED if (chip.name, topology.all_chips) == ("h100", 1) and footprint.pretrains(run) else LABEL,
        "from": "compiled step" if compiled.program else "compiled step's memory, estimated time" if compiled.seconds else "estimate",
        **(wires(compiled.program, time) if time else {}), "breaches": broken(compiled.program, planner, estimate.choice), **feeding,
        "checkpoint_gb": assembly.state_bytes(run.abstract) / 1e9, "versions": versions()}
    result["stages"] = [{"config": config.name, "chip_hours": result["chip_hours"]}] + [
        stage(one, topology, result["predicted_mfu"], feed=feed, tested=tested, trust=trust) for one, tested in then]
    result["ways_out"] = [] if fits else planner.ways_out(max(1.0, compiled.bytes / estimate.bytes))
    return result


def choose(planner: Planner, /) -> tuple[Estimate, Compiled]:
    """The fastest choice that fits: by estimate, and where the platform can be compiled for, by its compiled step."""
    order = sorted(map(planner.of, planner.choices()), key=lambda e: (e.seconds, e.choice.microbatches, e.bytes))
    if planner.topology.chip.platform == "gpu" and not topologies.devices(planner.topology):
        best = next((e for e in order if e.bytes <= planner.limit), min(order, key=lambda e: e.bytes))
        return best, Compiled(best.bytes, 0.0, 0.0, None)
    ratio, done = 1.0, []
    for _ in range(TRIES):
        rest = [e for e in order if e not in [d[0] for d in done]]
        fit = [e for e in rest if e.bytes * ratio <= planner.limit]
        if not fit and (done or min(e.bytes for e in order) > 2 * planner.limit):
            break
        one = fit[0] if fit else min(rest, key=lambda e: e.bytes)
        planner.say(f"compiling {one.choice.options()} (estimate {one.bytes / 1e9:.1f} GB a device)")
        done.append((one, planner.compile(one.choice)))
        if done[-1][1].bytes <= planner.limit:
            return done[-1]
        ratio = max(ratio, done[-1][1].bytes / one.bytes)
    if not done:
        least = min(order, key=lambda e: e.bytes)
        return least, Compiled(least.bytes, 0.0, 0.0, None)
    return min(done, key=lambda d: d[1].bytes)


def timed(program: hlo.Program, topology: Topology, /) -> hlo.Time:
    """Seconds of a compiled step on the chips of a topology, with the cycles that the compiler expects of them."""
    chip = topology.chip
    within = program.devices // topology.slices

    def wire(one: hlo.Collective) -> float:
        link, network = sent(one, lambda device: device // within, program.devices)
        return chip.devices * (link / chip.link + network / (chip.network / chip.per_host))

    return program.time(hlo.Rates(EFFICIENCY * chip.tflops * 1e12 / chip.devices, EFFICIENCY * chip.bandwidth / chip.devices, wire, chip.pcie / chip.devices, chip.clock))


def sent(one: hlo.Collective, slice_of: Callable[[int], int], devices: int, /) -> tuple[float, float]:
    """Bytes that a device sends for a collective over the links of its slice and over the network; what is reduced or gathered goes within slices first.

    Each of the `near` members in a slice then has its share of the sum, which it alone exchanges with the other slices. Pairs and
    exchanges of all with all have no such shares.
    """
    bytes_ = one.wire(devices)
    if not one.crosses(slice_of, devices):
        return bytes_, 0.0
    if one.kind == "collective-permute":
        return 0.0, bytes_
    group = one.groups[0] if one.groups else range(devices)
    slices = len({slice_of(device) for device in group})
    near, whole = len(group) // slices, bytes_ / (1 - 1 / len(group))
    across = whole * (1 - 1 / slices)
    if one.kind in ("all-to-all", "ragged-all-to-all"):
        return bytes_ - across, across
    return whole * (1 - 1 / near), across / near


def wires(program: hlo.Program, time: hlo.Time, /) -> dict[str, Any]:
    """Collectives by bytes on a device, and where the time goes."""
    total: dict[str, float] = {}
    for one in program.collectives:
        total[one.kind] = total.get(one.kind, 0.0) + one.bytes * one.times
    return {"collective_bytes": {k: round(v) for k, v in sorted(total.items())},
            "seconds": {"roofline": time.roofline, "compute": time.compute, "memory": time.memory, "wire": time.wire, "host": time.host, "exposed": time.exposed}}


def broken(program: hlo.Program | None, planner: Planner, choice: Choice, /) -> list[str]:
    """`breaches` of a program for TPUs: of the parameters as they are computed with, for every pass and micro-batch; nothing for other programs."""
    run = planner.run
    if program is None or planner.topology.chip.platform != "tpu":
        return []
    dtypes = [node.dtype for _, node in run.config.objective.items() if hasattr(node, "keys") and "dtype" in node]
    size = max((jnp.dtype(dtype).itemsize for dtype in dtypes), default=4)
    trained, frozen = ([size * math.prod(x.shape) for x in jax.tree.leaves(parallel.unbox(tree))] for tree in (run.abstract.params, run.abstract_frozen))
    passes = sum(phase.repeats for phase in run.objective.phases()) * (1 + len(run.stages))  # a program holds every stage, of which a step runs one
    moved = math.inf if choice.tensor > 1 else (3 * sum(trained) + sum(frozen)) * choice.microbatches * passes
    return breaches(program, moved=moved, largest=max(trained))


def breaches(program: hlo.Program, /, *, moved: float, largest: float) -> list[str]:
    """What a compiled step does that a sharded one must not, a line each: exchange all with all, gather a stack of layers at once, move more than it has to.

    `moved` bytes of gathers and scatters are due: one gather for either pass and one scatter of gradients, one gather of frozen weights (no
    limit where a tensor axis moves activations, too); `largest` bytes has the largest array of trained parameters, a stack that its loop gathers
    a layer at a time. Micro-batches are a loop as well, so that being in one excuses no gather.
    """
    every = program.collectives
    exchanged = sum(c.bytes * c.times for c in every if c.kind in ("all-to-all", "ragged-all-to-all"))
    whole = max((c.bytes for c in every if c.kind == "all-gather"), default=0.0)
    due = sum(c.bytes * c.times for c in every if c.kind in ("all-gather", "reduce-scatter"))
    found = [f"{exchanged / 1e9:.3g} GB a device go from all to all; none should"] if exchanged else []
    found += [f"{whole / 1e9:.3g} GB of parameters are gathered at once, not layer by layer"] if whole >= largest else []
    return found + ([f"gathers and scatters move {due / 1e9:.3g} GB a device, {due / moved:.2f} times what parameters and gradients need"] if due > 1.05 * moved else [])


def stage(config: Any, topology: Topology, mfu: float, /, *, feed: Input | None = None, tested: int = 0, trust: tuple[str, ...] = ()) -> dict[str, Any]:
    """Chip-hours of training another config at the same utilisation, and of a test of `tested` videos in the most views that it declares.

    Hosts that cannot keep up with training at the cost of `feed` are told and paid for as well; without it, and for the test, all keep up.
    """
    with config.ignore_type(), config.unlocked():
        config.mesh = {"data": 1, "fsdp": 1, "tensor": 1}
    run = assembly.assemble(config, trust=trust, devices=jax.devices()[:1])
    rate = topology.chip.tflops * 1e12 * mfu * 3600
    cost = run.objective.cost()
    hours = run.clips * run.draws * cost.train_flops / rate  # of chips, a step
    feeding = fed(run, topology, 3600 * hours / topology.all_chips, feed) if feed else {}
    found = {"config": config.name, "chip_hours": run.total * hours * feeding.get("input_slowdown", 1.0)}
    found |= {k: feeding[k] for k in ("host_cores_needed", "host_cores", "input_bound", "input_slowdown") if feeding}
    cuts = [getattr(configs.build(node, trust=trust), "views", None) for node in config.evaluators.values()]
    views = [cut.sampling.views * cut.crop.views for cut in cuts if hasattr(cut, "sampling")]
    if tested:
        found |= {"tested": tested, "views": max(views, default=1), "test_chip_hours": tested * max(views, default=1) * cost.test_flops / rate}
    return found


def versions() -> dict[str, str]:
    """Of what decides the compiled program."""
    names = ("jax", "jaxlib", "libtpu", "jax-cuda12-pjrt", "jax-cuda13-pjrt", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13")
    installed = {d.name.lower() for d in importlib.metadata.distributions() if d.name}
    return {name: importlib.metadata.version(name) for name in names if name in installed}


def verdict(stage: Mapping[str, Any], /) -> str:
    """Whether the chips of a stage wait for its hosts, from what is `fed`."""
    return f"input-bound: {stage['input_slowdown']:.1f} times slower than the chips" if stage["input_bound"] else "compute-bound"


def table(plan: Mapping[str, Any], /) -> list[str]:
    """The plan for people."""
    mesh = " x ".join(f"{k} {v}" for k, v in plan["mesh"].items())
    rows = [
        ("topology", f"{plan['topology']}: {plan['chips']} chips, {plan['hosts']} hosts"),
        ("fits", f"{'yes' if plan['fits'] else 'NO'}: {plan['bytes_per_chip'] / 1e9:.1f} of {plan['limit_bytes_per_chip'] / 1e9:.1f} GB a chip"),
        ("chosen", f"remat {plan['remat']}, {plan['microbatches']} micro-batches, mesh {mesh}"),
        ("step", f"{1e3 * plan['step_seconds']:.1f} ms, {plan['flops_per_step'] / 1e12:.1f} TFLOP of the model, MFU {100 * plan['predicted_mfu']:.1f} %"),
        ("whole recipe", f"{plan['steps']:,} steps over {plan['videos']:,} videos, {plan['hours']:.1f} hours, {plan['chip_hours']:,.0f} chip-hours"),
        ("input", f"{plan['decodes_per_s_host']:.0f} decodes/s a host, {plan['host_cores_needed']:.0f} of {plan['host_cores']} cores, "
                  f"{plan['storage_gb_s']:.2f} GB/s from storage in all ({plan['input']})"),
        ("verdict", verdict(plan)),
        ("checkpoint", f"{plan['checkpoint_gb']:.1f} GB")]
    if "seconds" in plan:
        rows.insert(4, ("of it", ", ".join(f"{k.replace('_', ' ')} {1e3 * v:.1f} ms" for k, v in plan["seconds"].items())))
        rows.insert(5, ("collectives", ", ".join(f"{k} {v / 1e9:.2f} GB" for k, v in plan["collective_bytes"].items()) + " a device"))
    for one in plan["stages"][1:]:
        test = f", test of {one['tested']:,} videos in {one['views']} views {one['test_chip_hours']:,.1f}" if "tested" in one else ""
        bound = f"; {verdict(one)}, {one['host_cores_needed']:.0f} of {one['host_cores']} cores" if one["input_bound"] else ""
        rows.append(("stage", f"{one['config']}: {one['chip_hours']:,.0f} chip-hours{test}{bound}"))
    rows += [("warning", line) for line in plan["breaches"]]
    rows += [("way out", line) for line in plan["ways_out"]]
    compiled = f", compiled in {plan['compile_seconds']:.0f} s ({plan['compile_cpu_seconds']:.0f} s of CPU)" if plan["compile_seconds"] else ""
    rows.append(("from", f"{plan['from']}{compiled}; {plan['label']}"))
    return [f"plan of {plan['config']}"] + [f"  {name:<14}{text}" for name, text in rows]


def markdown(plans: Sequence[Mapping[str, Any]], /) -> list[str]:
    """Plans as a table, one row each."""
    rows = ["| config | topology | GB a chip | remat, micro-batches, mesh (data x fsdp) | ms a step (roofline) | MFU | chip-hours | input cores a host | compile: wall, CPU s |",
            "|---|---|---|---|---|---|---|---|---|"]
    for plan in plans:
        mesh = f"{plan['mesh']['data']} x {plan['mesh']['fsdp']}"
        seconds = f"{plan['compile_seconds']:.0f}, {plan['compile_cpu_seconds']:.0f}" if plan["compile_seconds"] else "estimate"
        step = f"{1e3 * plan['step_seconds']:.0f}" + (f" ({1e3 * plan['seconds']['roofline']:.0f})" if "roofline" in plan.get("seconds", ()) else "")
        told = f" ({count} warning{'s' if count > 1 else ''})" if (count := len(plan.get("breaches", ()))) else ""
        rows.append(f"| {plan['config']} | {plan['topology']}{told} | {plan['bytes_per_chip'] / 1e9:.1f}{'' if plan['fits'] else ' (does not fit)'} | {plan['remat']}, "
                    f"{plan['microbatches']}, {mesh} | {step}{' (estimate)' if seconds != 'estimate' and 'estimated' in plan['from'] else ''} | {100 * plan['predicted_mfu']:.0f} % | {plan['chip_hours']:,.0f} | "
                    f"{plan['host_cores_needed']:.0f} of {plan['host_cores']} | {seconds} |")
    return rows
