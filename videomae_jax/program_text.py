"""The text of an optimised program: its computations, their instructions, shapes and groups of devices.

XLA writes one instruction a line: `%name = type op(operands), attributes`. Exchanges between TPU slices are no collectives there:
libtpu makes them a `send` and a `recv` of the host, whose attributes say what they are.
"""

import dataclasses
import math
import re

import numpy as np

SIZES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4,
         "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16, "token": 0, "opaque": 0}
# What libtpu calls an exchange between slices, and the collective that it is.
EXCHANGES = {"ALL_REDUCE": "all-reduce", "ALL_GATHER": "all-gather", "REDUCE_SCATTER": "reduce-scatter", "ALL_TO_ALL": "all-to-all",
             "ONE_TO_ONE": "collective-permute"}
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^{}]*\})?")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array: element type, lengths, and whether it lies beside the processor (VMEM) or in the host's memory, not in HBM."""

    kind: str
    lengths: tuple[int, ...]
    near: bool = False
    far: bool = False

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.lengths)

    @property
    def bytes(self) -> float:
        """Bytes without padding."""
        return self.size * SIZES.get(self.kind, 4)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation; `rest` holds the attributes behind the operands."""

    name: str
    op: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    rest: str
    root: bool

    @property
    def called(self) -> tuple[str, ...]:
        """Computations that run as part of this instruction, the branches of a conditional included."""
        names = re.findall(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)", self.rest)
        branches = re.search(r"branch_computations=\{([^}]*)\}", self.rest)
        return (*names, *(re.findall(r"[\w.\-]+", branches[1]) if branches else ()))


def computations(text: str, /) -> tuple[dict[str, dict[str, Instruction]], str]:
    """Every computation of a program, its instructions by name in the order in which they run, and the name of the one where it begins."""
    found: dict[str, dict[str, Instruction]] = {}
    entry, current = "", {}
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = found.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif (body := _LINE.match(line)) and (made := _instruction(body[2], body[3], root=bool(body[1]))):
            current[made.name] = made
    return found, entry


def _instruction(name: str, text: str, /, *, root: bool) -> Instruction | None:
    """The parts of `type op(operands), attributes`; None for a line that is none."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.find(" ")
    match = re.match(r"\s*([a-z][\w\-]*)\(", text[end:])
    if end <= 0 or not match:
        return None
    begin = end + match.end() - 1
    close = _closing(text, begin)
    op, inside = match[1], text[begin:close + 1]
    rest = inside if op in ("parameter", "constant") else text[close + 1:]
    return Instruction(name, op, _shapes(text[:end]), tuple(re.findall(r"%([\w.\-]+)", inside)), rest, root)


def _closing(text: str, begin: int, /) -> int:
    """Place of the parenthesis that closes the one at `begin`."""
    depth = 0
    for place in range(begin, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place
    return len(text) - 1


def _shapes(text: str, /) -> tuple[Shape, ...]:
    """The arrays of a type, tuples flattened."""
    return tuple(Shape(kind, tuple(int(n) for n in lengths.split(",") if n), "S(1)" in layout, "S(5)" in layout) for kind, lengths, layout in _SHAPE.findall(text))


def groups(rest: str, kind: str, /) -> tuple[tuple[int, ...], ...]:
    """Device numbers of the groups, from any of the forms XLA writes: lists, [n,m]<=[shape]T(order), mesh[...] {axes}."""
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", rest)
        return tuple((int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)", pairs[1] + "}")) if pairs else ()
    if listed := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", rest):
        return tuple(tuple(int(n) for n in group.split(",")) for group in re.findall(r"\{([\d,]+)\}", listed[1]))
    if tiled := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", rest):
        return tuple(map(tuple, _tile(tiled[3]).reshape(int(tiled[1]), int(tiled[2])).tolist()))
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\](?:,\s*device_ids=\(([^{]*)\))?\s*\{([^}]*)\}", rest):
        sizes = {name: int(n) for name, n in re.findall(r"'([\w.\-]+)'=(\d+)", named[1])}
        chosen, names = re.findall(r"'([\w.\-]+)'", named[3]), list(sizes)
        ids = _tile(named[2]) if named[2] else np.arange(math.prod(sizes.values()))
        order = [names.index(n) for n in names if n not in chosen] + [names.index(n) for n in chosen]
        return tuple(map(tuple, ids.reshape(*sizes.values()).transpose(order).reshape(-1, math.prod(sizes[n] for n in chosen)).tolist()))
    if "replica_groups={}" in rest or "replica_groups=" not in rest:
        return ()
    raise ValueError(f"replica groups of an unknown form: {rest[:200]}")


def _tile(text: str, /) -> np.ndarray:
    """Device numbers in the order of "[2,4]T(1,0)": counted in that shape, read with its axes in that order; or as listed."""
    shape = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?$", text)
    if not shape:
        return np.asarray([int(n) for n in text.split(",")])
    ids = np.arange(math.prod(int(n) for n in shape[1].split(","))).reshape([int(n) for n in shape[1].split(",")])
    return (ids.transpose([int(n) for n in shape[2].split(",")]) if shape[2] else ids).ravel()


def exchange(one: Instruction, /, *, slices: int, devices: int) -> tuple[str, tuple[tuple[int, ...], ...]] | None:
    """The collective that a `send` is part of, and its groups of device numbers; None for what is no exchange between slices.

    A device exchanges with those of the same place in other slices: "{1,2}x{0:3}" are devices 0 to 3 of the slices 1 and 2, and
    {{100003->200003}} sends from device 3 of the first slice to that of the second. Raises ValueError for what is unknown.
    """
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', one.rest)
    if one.op != "send" or not kind:
        return None
    within = devices // slices
    target = re.search(r'_xla_megascale_target="?(\{[^"]*?\})"?,_xla', one.rest)
    text = target[1] if target else ""
    if pairs := re.findall(r"\{(\d+)->(\d+)\}", text):
        placed = [tuple((n // 100_000 - 1) * within + n % 100_000 for n in map(int, pair)) for pair in pairs]
    elif product := re.fullmatch(r"\{([\d,:]+)\}x\{([\d,:]+)\}", text):
        placed = [tuple((s - 1) * within + d for s in _numbers(product[1])) for d in _numbers(product[2])]
    else:
        raise ValueError(f"exchange between slices of an unknown form: {one.rest[:400]}")
    if kind[1] not in EXCHANGES:
        raise ValueError(f"exchange between slices of the unknown kind {kind[1]}; known are {', '.join(EXCHANGES)}")
    return EXCHANGES[kind[1]], tuple(placed)


def _numbers(text: str, /) -> list[int]:
    """The numbers of "0:3" (both ends count), "1,2" or both forms mixed."""
    ranges = [part.split(":") for part in text.split(",")]
    return [n for ends in ranges for n in range(int(ends[0]), int(ends[-1]) + 1)]
