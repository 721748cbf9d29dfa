"""VideoMAE weights, pre-trained and fine-tuned, of the official repositories and of Hugging Face <-> our parameter trees, in numpy.

One table says for each of our leaves which arrays of the others it is made of, and how it is packed. PyTorch stores a
linear layer as [out, in]; the rows of q, k and v are head-major. The table is strict both ways: an array that no line
names, or a line without its array, is an error, because a weight that is silently left at its initial value is the
usual way to lose a conversion. Fixed position tables are in no checkpoint.
"""

import dataclasses
import enum
import itertools
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from videomae_jax.errors import UserError
from videomae_jax.types import Params

State = Mapping[str, np.ndarray]
Patch = tuple[int, int, int]
SHOWN = 12  # names printed in an error


class Biases(enum.Enum):
    """Hugging Face's two names of the q and v biases.

    HUB: "q_bias" in the files on the hub, in transformers 4, and in what transformers 5.18 and later accept through
    `from_pretrained`. MODULE: "query.bias" of the modules of transformers 5, for `load_state_dict`.
    """

    HUB = "q_bias"
    MODULE = "query.bias"


@dataclasses.dataclass(frozen=True)
class Packing:
    """How an array of theirs becomes one of ours: `pack(x, heads)`, and back: `unpack(x, patch)`."""

    pack: Callable[[np.ndarray, int], np.ndarray] = lambda x, heads: x
    unpack: Callable[[np.ndarray, Patch], np.ndarray] = lambda x, patch: x


SAME = Packing()
MATRIX = Packing(lambda x, heads: x.T, lambda x, patch: x.T)
TOKEN = Packing(lambda x, heads: x.reshape(-1), lambda x, patch: x.reshape(1, 1, -1))
# [h*d] <-> [h d]
BIAS = Packing(lambda x, heads: x.reshape(heads, -1), lambda x, patch: x.reshape(-1))
# [3*h*d D] <-> [D 3 h d]
QKV = Packing(lambda x, heads: x.reshape(3, heads, -1, x.shape[1]).transpose(3, 0, 1, 2),
              lambda x, patch: x.transpose(1, 2, 3, 0).reshape(-1, x.shape[0]))
# [D h*d] <-> [h d D]
OUT = Packing(lambda x, heads: x.reshape(x.shape[0], heads, -1).transpose(1, 2, 0),
              lambda x, patch: x.transpose(2, 0, 1).reshape(x.shape[2], -1))
# [D channel frame row column] <-> [P D], values in the order (frame, row, column, channel)
CONVOLUTION = Packing(lambda x, heads: x.transpose(2, 3, 4, 1, 0).reshape(-1, x.shape[0]),
                      lambda x, patch: x.reshape(*patch, -1, x.shape[1]).transpose(4, 3, 0, 1, 2))


@dataclasses.dataclass(frozen=True)
class Rule:
    """One leaf of ours, and the arrays it comes from: joined along the first axis, then packed."""

    ours: str
    official: tuple[str, ...]
    hf: tuple[str, ...]
    packing: Packing = SAME

    def within(self, ours: str, official: str, hf: str, /) -> "Rule":
        """The same rule with a prefix in front of every name."""
        return Rule(ours + self.ours, tuple(official + n for n in self.official), tuple(hf + n for n in self.hf), self.packing)


def linear(ours: str, official: str, hf: str, /) -> tuple[Rule, ...]:
    """Rules of a linear layer with bias."""
    return (Rule(f"{ours}/kernel", (f"{official}.weight",), (f"{hf}.weight",), MATRIX),
            Rule(f"{ours}/bias", (f"{official}.bias",), (f"{hf}.bias",)))


def norm(ours: str, official: str, hf: str, /) -> tuple[Rule, ...]:
    """Rules of a LayerNorm."""
    return (Rule(f"{ours}/scale", (f"{official}.weight",), (f"{hf}.weight",)),
            Rule(f"{ours}/bias", (f"{official}.bias",), (f"{hf}.bias",)))


BLOCK = (
    *norm("norm1", "norm1", "layernorm_before"),
    Rule("attn/qkv", ("attn.qkv.weight",), tuple(f"attention.attention.{n}.weight" for n in ("query", "key", "value")), QKV),
    Rule("attn/q_bias", ("attn.q_bias",), ("attention.attention.q_bias",), BIAS),
    Rule("attn/v_bias", ("attn.v_bias",), ("attention.attention.v_bias",), BIAS),
    Rule("attn/out", ("attn.proj.weight",), ("attention.output.dense.weight",), OUT),
    Rule("attn/out_bias", ("attn.proj.bias",), ("attention.output.dense.bias",)),
    *norm("norm2", "norm2", "layernorm_after"),
    *linear("mlp/fc1", "mlp.fc1", "intermediate.dense"),
    *linear("mlp/fc2", "mlp.fc2", "output.dense"),
)
EMBED = "videomae.embeddings.patch_embeddings.projection"


def embed(official: str, /) -> tuple[Rule, ...]:
    """Rules of the tubelet embedding."""
    return (Rule("encoder/embed/kernel", (f"{official}.weight",), (f"{EMBED}.weight",), CONVOLUTION),
            Rule("encoder/embed/bias", (f"{official}.bias",), (f"{EMBED}.bias",)))


@dataclasses.dataclass(frozen=True)
class Layout:
    """The leaves of a kind of model: `single` ones, and stacks {ours: (official, Hugging Face)}, each followed by the number of the block.

    `block` holds the rules of a block. Arrays that match `inert` change no output of the model and have no leaf here.
    """

    name: str
    single: tuple[Rule, ...]
    stacks: Mapping[str, tuple[str, str]]
    block: tuple[Rule, ...] = BLOCK
    inert: tuple[str, ...] = ()


PRETRAINED = Layout("encoder and decoder", (
    *embed("encoder.patch_embed.proj"),
    *norm("encoder/norm", "encoder.norm", "videomae.layernorm"),
    Rule("decoder/bridge/kernel", ("encoder_to_decoder.weight",), ("encoder_to_decoder.weight",), MATRIX),
    Rule("decoder/mask_token", ("mask_token",), ("mask_token",), TOKEN),
    *norm("decoder/norm", "decoder.norm", "decoder.norm"),
    *linear("decoder/head", "decoder.head", "decoder.head"),
), {
    "encoder/stack/block/": ("encoder.blocks.", "videomae.encoder.layer."),
    "decoder/stack/block/": ("decoder.blocks.", "decoder.decoder_layers."),
})
# The fine-tuned encoder has no final norm: the head norms the mean token.
CLASSIFIER = Layout("classifier", (
    *embed("patch_embed.proj"),
    *norm("head/norm", "fc_norm", "fc_norm"),
    *linear("head/linear", "head", "classifier"),
), {"encoder/stack/block/": ("blocks.", "videomae.encoder.layer.")})


def from_hf(state: State, /, *, heads: int, decoder_heads: int) -> Params:
    """{"encoder", "decoder"} parameters, float32, of a `VideoMAEForPreTraining` state dict (Hugging Face transformers).

    The numbers of heads are not in a state dict; they stand in config.json, and a wrong one that divides the width goes
    unnoticed here (`transfer.transfer` onto a model of ours compares the shapes). Both names of the q and v biases are
    accepted (`Biases`). Numerically equal models need LayerNorm eps 1e-6 on their side, which transformers does not set
    (1e-12 in the blocks, 1e-5 in decoder.norm). Raises UserError with the names of arrays that are missing or left over,
    and when the source has lost its q and v biases; warns when all are 0. Encoder-only checkpoints are not covered.
    """
    return pack(hub_names(state), source="hf", layout=PRETRAINED, heads=(heads, decoder_heads))


def to_hf(params: Params, /, *, patch: Patch, biases: Biases = Biases.HUB) -> dict[str, np.ndarray]:
    """The state dict of a `VideoMAEForPreTraining` from {"encoder", "decoder"} parameters; inverse of `from_hf`.

    `patch` is the encoder's (time, rows, columns). Raises UserError when the tree is not an encoder and decoder of ours.
    """
    return spelt(unpack(params, source="hf", layout=PRETRAINED, patch=patch), biases)


def from_official(state: State, /, *, heads: int, decoder_heads: int) -> Params:
    """{"encoder", "decoder"} parameters, float32, of a pre-training checkpoint of VideoMAE V1 or V2.

    `state` is what the file holds under "model" or "module"; prefixes of wrappers (module., _orig_mod., backbone.) are
    dropped, as V2's loader does. Raises UserError with the names of arrays that are missing or left over, and when the
    source has no q and v biases.
    """
    return pack(unwrapped(state), source="official", layout=PRETRAINED, heads=(heads, decoder_heads))


def to_official(params: Params, /, *, patch: Patch) -> dict[str, np.ndarray]:
    """The pre-training state dict of VideoMAE V1 and V2 from {"encoder", "decoder"} parameters; inverse of `from_official`.

    `patch` is the encoder's (time, rows, columns). Raises UserError when the tree is not an encoder and decoder of ours.
    """
    return unpack(params, source="official", layout=PRETRAINED, patch=patch)


def classifier_from_hf(state: State, /, *, heads: int) -> Params:
    """{"encoder", "head"} parameters, float32, of a `VideoMAEForVideoClassification` state dict; errors as `from_hf`.

    Numerically equal models need LayerNorm eps 1e-6 on their side (1e-12 in the blocks and 1e-5 in fc_norm by default).
    """
    return pack(hub_names(state), source="hf", layout=CLASSIFIER, heads=(heads,))


def classifier_to_hf(params: Params, /, *, patch: Patch, biases: Biases = Biases.HUB) -> dict[str, np.ndarray]:
    """Inverse of `classifier_from_hf`."""
    return spelt(unpack(params, source="hf", layout=CLASSIFIER, patch=patch), biases)


def classifier_from_official(state: State, /, *, heads: int) -> Params:
    """{"encoder", "head"} parameters, float32, of a fine-tuned checkpoint of VideoMAE V1 or V2; errors as `from_official`."""
    return pack(unwrapped(state), source="official", layout=CLASSIFIER, heads=(heads,))


def classifier_to_official(params: Params, /, *, patch: Patch) -> dict[str, np.ndarray]:
    """Inverse of `classifier_from_official`."""
    return unpack(params, source="official", layout=CLASSIFIER, patch=patch)


def select_classes(params: Params, rows: Sequence[int], /) -> Params:
    """A classifier over classes `rows` of another one, in that order: how V2 goes from Kinetics-710 to its parts.

    Entry i is the old number of the new class i (V2 misc/label_710to400.json). Raises UserError for numbers that the head
    does not have.
    """
    linear, chosen = params["head"]["linear"], np.asarray(rows, np.int64)
    known = linear["bias"].shape[0]
    if not len(chosen) or chosen.min() < 0 or chosen.max() >= known:
        raise UserError(f"classes {chosen.tolist()[:SHOWN]} of a head with {known}; allowed are 0 to {known - 1}")
    picked = {"kernel": np.asarray(linear["kernel"])[:, chosen], "bias": np.asarray(linear["bias"])[chosen]}
    return params | {"head": params["head"] | {"linear": picked}}


def hub_names(state: State, /) -> dict[str, np.ndarray]:
    """Arrays of Hugging Face under the names of the hub."""
    renamed: dict[str, np.ndarray] = {}
    for name, value in state.items():
        put(renamed, re.sub(r"\.query\.bias$", ".q_bias", re.sub(r"\.value\.bias$", ".v_bias", name)), value)
    return renamed


def spelt(state: State, biases: Biases, /) -> dict[str, np.ndarray]:
    """Arrays under the names of the hub, with the biases spelt as asked."""
    if biases is Biases.HUB:
        return dict(state)
    return {re.sub(r"\.q_bias$", ".query.bias", re.sub(r"\.v_bias$", ".value.bias", name)): value for name, value in state.items()}


def unwrapped(state: State, /) -> dict[str, np.ndarray]:
    """Official arrays without the prefixes of wrappers."""
    renamed: dict[str, np.ndarray] = {}
    for name, value in state.items():
        put(renamed, re.sub(r"^((module|_orig_mod|backbone)\.)+", "", name), value)
    return renamed


def put(state: dict[str, np.ndarray], name: str, value: Any, /) -> None:
    """Adds an array under a name that renaming produced, and refuses a second one."""
    if name in state:
        raise UserError(f"the checkpoint holds {name} twice, under two spellings")
    state[name] = np.asarray(value, np.float32)


def block(index: int, /, *, layout: Layout, stack: str, source: str) -> Iterator[tuple[Rule, tuple[str, ...]]]:
    """The rules of block `index` of a stack of ours, each with the names of its arrays in `source`."""
    official, hf = layout.stacks[stack]
    for rule in layout.block:
        full = rule.within(stack, f"{official}{index}.", f"{hf}{index}.")
        yield full, getattr(full, source)


@dataclasses.dataclass(frozen=True)
class Assigned:
    """Our leaves {path: array} and the arrays that each is made of; leaves that lack some {path: (absent, of how many)}; arrays
    that no leaf takes, and those that are inert.
    """

    leaves: dict[str, np.ndarray]
    names: dict[str, tuple[str, ...]]
    missing: dict[str, tuple[tuple[str, ...], int]]
    unused: tuple[str, ...]
    inert: tuple[str, ...]


def depth(state: State, prefix: str, /) -> int:
    """Blocks of a stack that are numbered without a gap."""
    found = {name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)}
    return next(i for i in itertools.count() if str(i) not in found)


def assign(state: State, /, *, source: str, layout: Layout, heads: tuple[int, ...]) -> Assigned:
    """Our leaves from arrays under the names of column `source` of a layout, whose stacks have these numbers of heads."""
    table: dict[str, list[tuple[Rule, tuple[str, ...]]]] = {rule.ours: [(rule, getattr(rule, source))] for rule in layout.single}
    for stack, prefixes in layout.stacks.items():
        for index in range(max(depth(state, prefixes[source == "hf"]), 1)):  # at least one: an empty stack lists what is missing
            for rule, names in block(index, layout=layout, stack=stack, source=source):
                table.setdefault(rule.ours, []).append((rule, names))
    names = {ours: tuple(n for _, entry in entries for n in entry) for ours, entries in table.items()}
    missing = {ours: (tuple(n for n in all_ if n not in state), len(all_)) for ours, all_ in names.items() if any(n not in state for n in all_)}
    taken = {n for all_ in names.values() for n in all_}
    spare = [n for n in state if n not in taken]
    inert = tuple(n for n in spare if any(re.fullmatch(p, n) for p in layout.inert))
    counts = dict(zip(layout.stacks, heads, strict=True))
    check_heads(state, names, counts=counts)
    leaves = {}
    for ours, entries in table.items():
        if ours in missing:
            continue
        count = next((n for stack, n in counts.items() if ours.startswith(stack)), 1)
        packed = [packed_from(state, entry, rule=rule, heads=count) for rule, entry in entries]
        if other := next((i for i, x in enumerate(packed) if x.shape != packed[0].shape), None):
            a, b = entries[0][1][0], entries[other][1][0]
            raise UserError(f"{b} has the shape {state[b].shape}, {a} {state[a].shape}; the blocks of a stack have like shapes")
        leaves[ours] = np.stack(packed) if "/stack/" in ours else np.ascontiguousarray(packed[0])
    return Assigned(leaves, names, missing, tuple(n for n in spare if n not in inert), inert)


def packed_from(state: State, names: Sequence[str], /, *, rule: Rule, heads: int) -> np.ndarray:
    """A leaf from its arrays. Raises UserError with their shapes where they make none."""
    try:
        return rule.packing.pack(np.concatenate([state[n] for n in names]), heads)
    except (ValueError, IndexError) as error:
        shapes = ", ".join(f"{n} {state[n].shape}" for n in names)
        raise UserError(f"no leaf {rule.ours} of {heads} heads can be made of {shapes}: the shapes are not those of such a model") from error


def pack(state: State, /, *, source: str, layout: Layout, heads: tuple[int, ...]) -> Params:
    """Our tree; raises UserError where anything is missing or left over, and when the source has lost its q and v biases."""
    check_biases(state)
    found = assign(state, source=source, layout=layout, heads=heads)
    complain("checkpoint", layout=layout, missing=[n for absent, _ in found.missing.values() for n in absent], unused=list(found.unused))
    return traverse_util.unflatten_dict(found.leaves, sep="/")


def unpack(params: Params, /, *, source: str, layout: Layout, patch: Patch) -> dict[str, np.ndarray]:
    """Arrays under the names of column `source` of a layout from our tree."""
    flat = {k: np.asarray(v) for k, v in traverse_util.flatten_dict(params, sep="/").items()}
    wanted = [r.ours for r in layout.single] + [stack + r.ours for stack in layout.stacks for r in layout.block]
    complain("parameter tree", layout=layout, missing=[n for n in wanted if n not in flat], unused=[n for n in flat if n not in wanted])
    values = flat["encoder/embed/kernel"].shape[0]
    if values % int(np.prod(patch)):
        raise UserError(f"patch {patch}, but the embedding takes {values} values a patch")
    state: dict[str, np.ndarray] = {}

    def add(rule: Rule, names: tuple[str, ...], value: np.ndarray) -> None:
        parts = np.split(rule.packing.unpack(value, patch), len(names))
        state.update({n: np.ascontiguousarray(part) for n, part in zip(names, parts, strict=True)})

    for rule in layout.single:
        add(rule, getattr(rule, source), flat[rule.ours])
    for stack in layout.stacks:
        for i in range(flat[f"{stack}attn/qkv"].shape[0]):
            for rule, names in block(i, layout=layout, stack=stack, source=source):
                add(rule, names, flat[rule.ours][i])
    return state


def check_biases(state: State, /) -> None:
    """Raises UserError when every q and v bias is missing, and warns when every one is zero."""
    biases = [value for name, value in state.items() if name.endswith((".q_bias", ".v_bias"))]
    fault = "transformers 5.8 to 5.17 lose them when they load a checkpoint: load and save the original with 5.18 or later"
    if not biases:
        raise UserError(f"the checkpoint has no q and v biases; VideoMAE has them in every block. {fault}")
    if not any(np.any(value) for value in biases):
        warnings.warn(f"all q and v biases of the checkpoint are 0, as in an untrained model. {fault}", stacklevel=4)


def check_heads(state: State, names: Mapping[str, tuple[str, ...]], /, *, counts: Mapping[str, int]) -> None:
    """Raises UserError when a number of heads does not divide the width of its blocks."""
    for stack, count in counts.items():
        first = names[f"{stack}norm1/scale"][0]
        if first not in state:
            continue
        width = state[first].size
        if count < 1 or width % count:
            raise UserError(f"{count} heads for the {stack.split('/')[0]} of width {width}; the width must be a multiple of the heads")


def complain(what: str, /, *, layout: Layout, missing: list[str], unused: list[str]) -> None:
    """Raises UserError with the names that do not match the layout, if any."""
    problems = [f"{len(names)} {word}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
                for word, names in (("missing", missing), ("left over", unused)) if names]
    if problems:
        raise UserError(f"the {what} is not a VideoMAE {layout.name}; {'; '.join(problems)}")
