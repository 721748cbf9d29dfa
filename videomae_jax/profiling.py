"""Where the time of a step goes: a trace of JAX's profiler, read here and added up by kind of work and by part of the model.

`jax.profiler` writes the trace, which TensorBoard and XProf also open; the compiled program says what every one of its operations
is and from which module of the model it came.
"""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax

from videomae_jax import hlo, program_text
from videomae_jax.errors import UserError

STEPS = 3  # traced after the warm-up
PARTS = ("attn", "mlp", "norm1", "norm2", "norm", "embed", "bridge", "head")  # modules of the models, in paths like decoder/stack/attn
STACKS = ("encoder", "decoder", "sampler", "critic", "teacher")
# An operation is of the first kind whose pattern its opcode, target or kernel has.
KINDS = (("attention kernel", r"fmha|flash|splash|cudnn::fusion"), ("collective", r"all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|nccl"),
         ("matrix product", r"\bdot\b|gemm|cublas|nvjet|cutlass|convolution|matmul"), ("stacking of layers", r"dynamic-update-slice|dynamic-slice"),
         ("reduction", r"\breduce\b"), ("element-wise", r"\b(add|subtract|multiply|divide|exponential|log|r?sqrt|select|compare|maximum|minimum|erf|tanh|convert|negate|and|or|xor|clamp)\b"),
         ("copy", r"\bcopy|transpose|memcpy|memset|concatenate|\bslice|\bpad\b|broadcast"), ("other", r""))


@dataclasses.dataclass(frozen=True)
class Operation:
    """An instruction of the compiled program: what it does (opcodes, targets of calls) and its path in the model, "" where unknown."""

    does: str
    path: str


@dataclasses.dataclass(frozen=True)
class Profile:
    """Seconds of a step by (kind, part), of all devices' lines together; `wall` is a step on the clock."""

    spent: Mapping[tuple[str, str], float]
    wall: float

    def by(self, index: int, /) -> dict[str, float]:
        """Seconds by kind (0) or by part (1), most first."""
        sums: collections.Counter[str] = collections.Counter()
        for key, seconds in self.spent.items():
            sums[key[index]] += seconds
        return dict(sums.most_common())

    def lines(self) -> list[str]:
        """Both tables for people."""
        total = sum(self.spent.values())
        text = [f"operations take {1e3 * total:.1f} ms of a step of {1e3 * self.wall:.1f} ms (several threads or devices add up)"]
        for title, index in (("kind", 0), ("part", 1)):
            text.append(f"by {title}: " + ", ".join(f"{name} {100 * s / total:.0f} %" for name, s in self.by(index).items() if s >= 0.005 * total))
        return text


def operations(program: str, /) -> dict[str, Operation]:
    """{instruction: Operation} of the text of a compiled program; a fusion does what the instructions in it do."""
    computations = hlo.Program(program, devices=1).computations

    def does(one: program_text.Instruction) -> str:
        if one.op == "fusion":
            return " ".join(does(i) for name in one.called for i in computations.get(name, {}).values())
        target = re.search(r'custom_call_target="([^"]*)"', one.rest)
        return f"{one.op} {target[1]}" if target else one.op

    def path(one: program_text.Instruction) -> str:
        told = re.search(r'op_name="([^"]*)"', one.rest)
        return told[1] if told else ""

    return {name: Operation(does(one), path(one)) for body in computations.values() for name, one in body.items()}


def kind(does: str, kernel: str, /) -> str:
    """The kind of work of an operation and the kernel that ran it."""
    return next(name for name, pattern in KINDS if re.search(pattern, f"{does} {kernel}", re.IGNORECASE))


def part(path: str, /) -> str:
    """encoder/attn, decoder/mlp, ... with `backward` where it is the gradient's; "other" for the rest (loss, optimiser, input)."""
    words = re.split(r"[/()]", path)
    stack = next((s for w in words for s in STACKS if w.lower().startswith(s)), "")
    module = next((w for w in words if w in PARTS), "")
    name = "/".join(filter(None, (stack, module)))
    return f"{name}{' backward' * ('transpose(' in path)}" if name else "other"


def own_times(events: Iterable[tuple[int, int, Any]], /) -> Iterator[tuple[Any, int]]:
    """(what, ns) of nested (start, end, what) of one line: a loop counts without what ran inside it."""
    open_: list[list[Any]] = []
    for start, end, what in sorted(events, key=lambda e: (e[0], -e[1])):
        while open_ and open_[-1][1] <= start:
            _, _, done, own = open_.pop()
            yield done, own
        if open_:
            open_[-1][3] -= min(end, open_[-1][1]) - start
        open_.append([start, end, what, end - start])
    yield from ((done, own) for _, _, done, own in open_)


def instruction(op: str, text: str, /) -> tuple[str, str]:
    """(instruction, kernel) of an event of a TPU, which has its HLO text ("%fusion.3 = f32[8] fusion(...)") for a name and says no `hlo_op`."""
    name = text.partition(" = ")[0].lstrip("%")
    return op or name, name


def read(folder: str, /) -> list[tuple[str, str, int]]:
    """(instruction, kernel, ns) of every operation in the newest trace under `folder`; raises UserError without one."""
    traces = sorted(pathlib.Path(folder).rglob("*.xplane.pb"), key=lambda p: p.stat().st_mtime)
    if not traces:
        raise UserError(f"no trace (*.xplane.pb) under {folder}")
    found = []
    for plane in jax.profiler.ProfileData.from_file(str(traces[-1])).planes:
        lines = []
        for line in plane.lines:
            # Kernels inside of a CUDA graph do not say which instruction they run.
            kernels = plane.name.startswith("/device:GPU") and line.name.startswith("Stream")
            told = (((str(dict(e.stats).get("hlo_op", "")), e.name), e) for e in line.events)
            if line.name == "XLA Ops":
                told = ((instruction(*what), e) for what, e in told)
            lines.append((line.name, [(int(e.start_ns), int(e.start_ns + e.duration_ns), what) for what, e in told if what[0] or kernels]))
        named = [events for name, events in lines if name == "XLA Ops"]  # of TPUs, whose other lines tell the same once more
        for events in named or [events for _, events in lines]:
            found += [(*what, own) for what, own in own_times(events)]
    return found


def summed(events: Iterable[tuple[str, str, int]], program: str, /) -> dict[tuple[str, str], float]:
    """Seconds by (kind, part) of what `read` gives, with the text of the compiled program.

    Events of CPUs and TPUs are named after the instruction. Those of GPUs say the kernel, and within a CUDA graph no instruction: a
    fusion's kernel has its name, with _ for each dot; that of a library does not tell the part.
    """
    known = operations(program)
    kernels = {re.sub(r"[.-]", "_", name): operation for name, operation in known.items()}
    sums: collections.Counter[tuple[str, str]] = collections.Counter()
    for name, kernel, ns in events:
        operation = known.get(name) or kernels.get(kernel)
        does = operation.does if operation else name
        sums[kind(does, "" if kernel == name else kernel), part(operation.path) if operation else "library kernels"] += ns / 1e9
    return dict(sums)


def profile(run: Callable[[int], None], program: str, folder: str, /, *, wall: float) -> Profile:
    """Traces `STEPS` steps of `run` into `folder`; `program` is the compiled text, `wall` the seconds of an untraced step.

    Raises UserError where the device's profiler names no operations.
    """
    with jax.profiler.trace(folder):
        run(STEPS)
    sums = summed(read(folder), program)
    if not sums:
        raise UserError(f"the trace under {folder} has no operations: the profiler of this device does not tell them")
    return Profile({key: seconds / STEPS for key, seconds in sums.items()}, wall)
