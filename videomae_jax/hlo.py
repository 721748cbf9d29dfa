"""Reading a compiled program: collectives by bytes, and the time of a step, loops counted as often as they run.

XLA's own cost analysis counts the body of a loop once, and a stack of layers is a loop. The text of the optimised
program holds what is missing: the limits of the loops, the groups of the collectives, the shapes behind every name.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping

from videomae_jax.program_text import Instruction, Shape, computations, exchange, groups

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute", "collective-broadcast")
# What moves no data of its own: names, views, and the second half of a copy or collective.
FREE = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call", "after-all", "partition-id", "replica-id",
        "iota", "copy-done", "call-start", "call-done", "slice-done", "dynamic-slice-done", "dynamic-update-slice-done", "async-done", "async-update", "opt-barrier", "domain", "all-reduce-done", "all-gather-done",
        "collective-permute-done", "send", "recv", "send-done", "recv-done")
# Products of all queries with all keys in JAX's splash kernels; the backward one that also gives the gradient of queries has one more.
KERNELS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}
COPIES = ("copy-start", "dynamic-slice-start", "dynamic-update-slice-start")
_CARRIED = re.compile("async_collective_fusion_config|AsyncCollective")  # a collective that fusions carry on, and the calls at its ends


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of one device: `bytes` is the whole array of a group (gathered or before reduction), times `times`.

    `loop` says whether it runs in a loop, `hidden` whether the program issues it ahead of its use, `groups` are the
    device numbers that take part together (empty = all). `caller` is the instruction that holds it where it is part of another, else itself.
    """

    kind: str
    bytes: float
    times: int
    groups: tuple[tuple[int, ...], ...]
    loop: bool
    hidden: bool
    name: str
    caller: str

    def wire(self, devices: int, /) -> float:
        """Bytes that a device sends each time, for the ring or torus algorithms that reach the bandwidth bound."""
        n = len(self.groups[0]) if self.groups else devices
        share = (n - 1) / n
        return {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share) * self.bytes

    def crosses(self, slice_of: Callable[[int], int], devices: int, /) -> bool:
        """Whether a group of the program's `devices` has members in several slices; `slice_of` gives the slice of a device number."""
        return any(len({slice_of(i) for i in group}) > 1 for group in self.groups or (range(devices),))


@dataclasses.dataclass(frozen=True)
class Rates:
    """What a device does in a second: operations, bytes from its memory, bytes from or to the host's, cycles; and a collective's seconds."""

    flops: float
    memory: float
    wire: Callable[[Collective], float]
    host: float = math.inf
    cycles: float = math.inf


@dataclasses.dataclass(frozen=True)
class Time:
    """Seconds of one run of the program; `exposed` is the part of `wire` and `host` that no computation hides.

    `step` has the cycles that the compiler expects of an instruction (a TPU's writes them down) where they are more than `roofline` has for it.
    """

    step: float
    roofline: float
    compute: float
    memory: float
    wire: float
    exposed: float
    host: float = 0.0


class Program:
    """The computations of an optimised program, from `compiled.as_text()`; `devices` of `slices` take part, those of a slice in succession."""

    def __init__(self, text: str, /, *, devices: int, slices: int = 1) -> None:
        self.devices, self.slices = devices, slices
        self.computations, self.entry = computations(text)

    def trips(self, loop: Instruction, /) -> int:
        """How often a while loop runs: what XLA noted, else the constant that its condition compares with; 1 where neither is there."""
        noted = re.search(r'known_trip_count[":{\s]+n[":\s]+(\d+)', loop.rest)
        if noted:
            return int(noted[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
        numbers = [int(m[1]) for i in self.computations.get(condition[1] if condition else "", {}).values()
                   if i.op == "constant" and (m := re.match(r"\((\d+)\)", i.rest))]
        return max(numbers, default=1)

    def runs(self, name: str = "", /, *, times: int = 1, loop: bool = False) -> Iterator[tuple[Instruction, dict[str, Instruction], int, bool]]:
        """(instruction, its computation, times, in a loop) of everything that runs; fusions are one instruction.

        Of a conditional every branch is counted.
        """
        body = self.computations[name or self.entry]
        for one in body.values():
            yield one, body, times, loop
            if one.op == "while":
                inner = re.search(r"body=%?([\w.\-]+)", one.rest)[1]
                yield from self.runs(inner, times=times * self.trips(one), loop=True)
            elif one.op in ("call", "conditional", "async-start"):
                for called in one.called:
                    yield from self.runs(called, times=times, loop=loop)

    @functools.cached_property
    def collectives(self) -> tuple[Collective, ...]:
        """Every collective; one that a fusion holds, or a call of another core, counts as issued ahead: something computes meanwhile.

        One that several fusions carry on stands in each of them, from its start to its end, and counts once.
        """
        found, begun = [], set()
        for one, body, times, loop in self.runs():
            if (kind := one.op.removesuffix("-start")) in COLLECTIVES:
                found.append(self._collective(one, body, kind, times, loop, one.op != kind))
            elif crossing := exchange(one, slices=self.slices, devices=self.devices):
                found.append(self._exchange(one, body, crossing, times, loop))
            elif one.op in ("fusion", "call-start"):
                inner = [(i, self.computations[c]) for c in one.called for i in self.computations.get(c, {}).values()
                         if i.op.removesuffix("-start") in COLLECTIVES]
                for i, within in inner:
                    channel = re.search(r"channel_id=\d+", i.rest) if _CARRIED.search(i.rest) else None
                    if channel and (id(body), channel[0]) in begun:
                        continue
                    begun |= {(id(body), channel[0])} if channel else set()
                    scatter = i.op == "all-reduce" and "all-reduce-scatter" in one.rest
                    found.append(self._collective(i, within, "reduce-scatter" if scatter else i.op.removesuffix("-start"), times, loop, True, caller=one.name))
        return tuple(found)

    def _collective(self, one: Instruction, body: Mapping[str, Instruction], kind: str, times: int, loop: bool, hidden: bool, /,
                    *, caller: str = "") -> Collective:
        between = groups(one.rest, kind)
        size = sum(s.bytes for name in one.operands if name in body for s in body[name].shapes)
        if kind == "all-gather":
            size *= len(between[0]) if between else self.devices
        return Collective(kind, size, times, between, loop, hidden, one.name, caller or one.name)

    def _exchange(self, one: Instruction, body: Mapping[str, Instruction], crossing: tuple[str, tuple[tuple[int, ...], ...]], times: int, loop: bool, /) -> Collective:
        """A `send` to other slices; it is ahead of its use where something runs before the end of the `recv` that shares its token, else before its own."""
        kind, between = crossing
        size = body[one.operands[0]].shapes[0].bytes * (len(between[0]) if kind == "all-gather" else 1)
        answer = next((i.name for i in body.values() if i.op == "recv" and i.operands[-1] == one.operands[-1]), one.name)
        order = list(body)
        end = next((order.index(i.name) for i in body.values() if i.op in ("send-done", "recv-done") and i.operands[0] == answer), 0)
        amid = (body[name].op for name in order[order.index(one.name) + 1:end])
        return Collective(kind, size, times, between, loop, any(op not in FREE or op in ("while", "call", "conditional") for op in amid), one.name, one.name)

    def flops(self, one: Instruction, body: Mapping[str, Instruction], /) -> float:
        """Operations of the matrix products in an instruction: 2 a multiply-add."""
        if one.op in ("dot", "convolution"):
            arrays = [body[name].shapes[0] for name in one.operands[:2] if name in body]
            return _product(one, arrays) if len(arrays) == 2 else 0.0
        if one.op == "custom-call":
            return _kernel(one, [body[name].shapes[0] for name in one.operands if name in body])
        return sum(self.flops(i, self.computations[c]) for c in one.called if one.op == "fusion" for i in self.computations[c].values())

    def traffic(self, one: Instruction, body: Mapping[str, Instruction], /) -> float:
        """Bytes that an instruction reads from the device's memory and writes to it.

        Of an array that is only sliced or updated in place, the slice alone counts: the layers of a stack are such slices.
        """
        if one.op in FREE or one.op.removesuffix("-start") in COLLECTIVES or one.op == "async-start":
            return 0.0
        if one.op in ("dynamic-slice-start", "dynamic-update-slice-start"):
            return _moved(one, body)
        if one.op in ("copy-start", "slice-start"):
            return min(sum(s.bytes for s in body[n].shapes) for n in one.operands[:1] if n in body) if one.op == "copy-start" else one.shapes[-1].bytes
        inputs = [body[n].shapes for n in one.operands if n in body]
        inner = self.computations.get(one.called[0], {}) if one.op == "fusion" and one.called else {}
        if not inner:
            return _plain_traffic(one, [s for shapes in inputs for s in shapes])
        return self._read(inner, inputs) + self._written(one, inner)

    def beside(self, one: Instruction, /) -> float:
        """Bytes that a call of another core (the SparseCore of a TPU) moves in the device's memory while the program goes on."""
        if one.op != "call-start":
            return 0.0
        return sum(self.traffic(i, self.computations[c]) for c in one.called for i in self.computations.get(c, {}).values())

    def _read(self, inner: Mapping[str, Instruction], inputs: list[tuple[Shape, ...]], /) -> float:
        """Bytes that a fusion reads: a parameter counts whole unless all its users take slices or update it in place."""
        total = 0.0
        for parameter, shapes in zip(_parameters(inner), inputs, strict=False):
            if shapes and not shapes[0].near:
                parts = [s for s in self._parts(parameter.name, inner)]
                whole = sum(s.bytes for s in shapes)
                total += whole if None in parts else min(whole, sum(parts))
        return total

    def _parts(self, name: str, body: Mapping[str, Instruction], /) -> Iterator[float | None]:
        """What each user of a value reads of it: bytes of a slice, 0 where it is updated in place, None for all."""
        for user in body.values():
            if name not in user.operands:
                continue
            if user.op in ("bitcast", "reshape") or (user.op == "fusion" and "output_to_operand_aliasing" in user.rest):  # the latter is a new tiling in place
                yield from self._parts(user.name, body)
            elif user.op == "fusion" and user.called:
                nested = self.computations[user.called[0]]
                for place, parameter in enumerate(_parameters(nested)):
                    if user.operands[place] == name:
                        yield from self._parts(parameter.name, nested)
            elif user.op in ("dynamic-slice", "slice", "gather"):
                yield user.shapes[0].bytes if user.operands[0] == name else 0.0
            elif (user.op == "dynamic-update-slice" and user.operands[1] != name) or _CARRIED.search(user.rest) or (user.op == "tuple" and user.root):
                yield 0.0  # the wire's, or handed on as it is
            else:
                yield None

    def _written(self, one: Instruction, inner: Mapping[str, Instruction], /) -> float:
        """Bytes that a fusion writes: of an update in place the update alone."""
        root = next(i for i in inner.values() if i.root)
        results = [inner[n] for n in root.operands] if root.op == "tuple" else [root]
        total = 0.0
        for result, shape in zip(results, one.shapes, strict=False):
            source = _source(result, inner)
            if not shape.near and result.op != "parameter" and not _CARRIED.search(result.rest):
                total += inner[source.operands[1]].shapes[0].bytes if source.op == "dynamic-update-slice" else shape.bytes
        return total

    def time(self, rates: Rates, /) -> Time:
        """Seconds on a device of `rates`: each instruction takes the longest of its operations, its bytes and its cycles.

        Within a computation (the body of a loop, the rest of the program) collectives that are issued ahead, copies from
        and to the host, and what other cores move, hide behind what is computed there; other collectives add to it.
        """
        spent: dict[int, collections.Counter[str]] = {}
        total = dict(compute=0.0, memory=0.0, host=0.0)
        for one, body, times, _ in self.runs():
            far = _moved(one, body) / rates.host if one.op in COPIES and any(s.far for s in one.shapes) else 0.0
            compute, memory, beside = self.flops(one, body) / rates.flops, self.traffic(one, body) / rates.memory, self.beside(one) / rates.memory
            total["compute"] += times * compute
            total["memory"] += times * (memory + beside)
            total["host"] += times * far
            here = spent.setdefault(id(body), collections.Counter())
            here["busy"] += times * max(compute, memory, expected(one) / rates.cycles)
            here["roofline"] += times * max(compute, memory)
            here["elsewhere"] += times * (far + beside)
        where = {name: id(body) for body in self.computations.values() for name in body}
        wire = 0.0
        for one in self.collectives:
            seconds = one.times * rates.wire(one)
            wire += seconds
            spent[where[one.caller]]["ahead" if one.hidden else "awaited"] += seconds
        step, roofline = (sum(max(part[busy], part["ahead"], part["elsewhere"]) + part["awaited"] for part in spent.values()) for busy in ("busy", "roofline"))
        return Time(step, roofline, total["compute"], total["memory"], wire, step - sum(part["busy"] for part in spent.values()), total["host"])


def expected(one: Instruction, /) -> int:
    """Cycles that the compiler of TPUs expects of an instruction; 0 where it says none: kernels, collectives, other compilers."""
    found = re.search(r'"estimated_cycles":"(\d+)"', one.rest)
    return int(found[1]) if found else 0


def _parameters(body: Mapping[str, Instruction], /) -> list[Instruction]:
    """The parameters of a computation in order."""
    return sorted((i for i in body.values() if i.op == "parameter"), key=lambda i: int(i.rest.strip("()")))


def _moved(one: Instruction, body: Mapping[str, Instruction], /) -> float:
    """Bytes of the array that a copy issued ahead moves: of a slice the slice alone."""
    if one.op == "dynamic-update-slice-start":
        return body[one.operands[1]].shapes[0].bytes
    return one.shapes[-2 if one.op == "dynamic-slice-start" else 0].bytes  # behind the slice stands its context


def _plain_traffic(one: Instruction, inputs: list[Shape], /) -> float:
    """Of an instruction outside a fusion; a custom call without operands only reserves memory."""
    if one.op in ("dynamic-slice", "slice", "gather", "broadcast"):
        return 2 * sum(s.bytes for s in one.shapes if not s.near)
    if one.op == "dynamic-update-slice":
        return 2 * inputs[1].bytes
    if one.op == "custom-call" and not inputs:
        return 0.0
    return sum(s.bytes for s in (*inputs, *one.shapes) if not s.near)


def _source(one: Instruction, body: Mapping[str, Instruction], /) -> Instruction:
    """The instruction behind views and conversions."""
    while one.op in ("bitcast", "convert", "copy", "reshape") and one.operands and one.operands[0] in body:
        one = body[one.operands[0]]
    return one


def _product(one: Instruction, arrays: list[Shape], /) -> float:
    """Operations of a dot or of the convolution that a TPU makes of it.

    Of sizes l, r and o without batch axes the product of all three is (M N K)^2; a batch axis of n enters it as n^3 and
    the operations as n, so it is taken out once more. Batch axes of a convolution are those dilated by their own length.
    """
    left, right = arrays
    if one.op == "dot":
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.rest)
        return 2.0 * one.shapes[0].size * math.prod(left.lengths[int(a)] for a in axes[1].split(",") if a) if axes else 2.0 * one.shapes[0].size
    window = re.search(r"window=\{([^}]*)\}", one.rest)
    fields = {k: v.split("x") for k, v in re.findall(r"(\w+)=([\w\-x]+)", window[1])} if window else {}
    batch = math.prod(int(n) for n, d in zip(fields.get("size", ()), fields.get("lhs_dilate", ()), strict=False) if n == d)
    groups = re.search(r"(?:feature|batch)_group_count=(\d+)", one.rest)
    return 2.0 * math.sqrt(left.size * right.size * one.shapes[0].size / (batch * (int(groups[1]) if groups else 1)))


def _kernel(one: Instruction, arrays: list[Shape], /) -> float:
    """Operations of an attention kernel of queries and keys [B h d N], its first arrays of four axes; of other custom calls none are known."""
    products = next((n for name, n in KERNELS.items() if one.name.startswith(name)), 0)
    if not products:
        return 0.0
    queries, keys = [s for s in arrays if len(s.lengths) == 4][:2]
    fused = one.name.startswith("splash_mha_dkv") and any(len(s.lengths) == 5 for s in one.shapes)
    return (products + fused) * 2.0 * queries.size * keys.lengths[3]


