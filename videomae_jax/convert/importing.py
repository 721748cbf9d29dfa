"""Weights of other codebases -> a config of ours and its parameters, with an account of every array.

The sizes of the model follow from the shapes of the arrays; what shapes do not tell (heads, frames, pixels) comes from the
config or options beside the weights, from the published sizes, or from the user.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from videomae_jax import config as configs
from videomae_jax import interpolation, masking, parallel
from videomae_jax.convert import answers, files, mae_st, marlin, videomae, videoprism
from videomae_jax.convert.report import Report
from videomae_jax.convert.videomae import Layout, State
from videomae_jax.errors import UserError
from videomae_jax.masking import Grid
from videomae_jax.models import resized
from videomae_jax.models import videoprism as models
from videomae_jax.objectives.base import dummy
from videomae_jax.transfer import transfer
from videomae_jax.types import Params

# How names of each family begin, and the shipped config whose data, masks and evaluators a converted run starts with; where
# VideoMAE's own is not there, that of V2, which has the same model (`template`).
V2 = "configs/pretrain/vit_b.py"
V1 = f"configs/videomae/k400_b.py {V2}"
FAMILIES: dict[str, dict[str, str]] = {
    "marlin": {"mark": r"encoder\.patch_embedding\.", "pretraining": "configs/marlin/b.py"},
    "hf": {"mark": r"(videomae\.)?encoder\.layer\.", "pretraining": V1, "classifier": "configs/finetune/k400_b.py"},
    "videomae": {"mark": r"(encoder\.)?blocks\.\d+\.attn\.qkv\.", "pretraining": V1, "classifier": "configs/finetune/k400_b.py"},
    "videomae_v2": {"mark": r"(encoder\.)?blocks\.\d+\.attn\.qkv\.", "pretraining": V2, "classifier": "configs/finetune/k400_b.py"},
    "mae_st": {"mark": r"blocks\.\d+\.attn\.q\.", "pretraining": "configs/mae_st/vit_b.py"},
    "videoprism": {"mark": r"(params/)?(vision_encoder/)?spatial_encoder/", "classifier": "configs/finetune/k400_b.py"},
}
HF_EPS = 1e-12  # what configs of Hugging Face say of weights that were trained with 1e-6
# Leaves of learned positions, by family: those of space and of time.
ASSUMED = {"num_frames": "16 frames (--trained-frames)", "image_size": "224 pixels a side (--trained-size)"}
LEARNED = {"mae_st": tuple(f"{part}/sequence/{name}" for part in ("encoder", "decoder") for name in ("space", "time")),
           "videoprism": ("encoder/space", "encoder/time")}
# Heads of the published widths: encoders, and decoders (V1's H is 640 wide with 8). MAE-ST's decoder of width 512 has 16.
HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}
DECODER_HEADS = {192: 3, 384: 6, 512: 8, 640: 8}


@dataclasses.dataclass(frozen=True)
class Imported:
    """A config, its parameters as numpy arrays, the account, class names (() = unknown) and the files that were read."""

    config: Any
    params: Params
    report: Report
    classes: tuple[str, ...]
    family: str
    files: tuple[pathlib.Path, ...]


def read(path: pathlib.Path, /, *, family: str = "", key: str = "", heads: int = 0, decoder_heads: int = 0, trained_frames: int = 0, trained_size: int = 0,
         config: str = "", assignments: Mapping[str, str] | None = None, allow: Mapping[str, Sequence[str]] | None = None, classes: str = "") -> Imported:
    """Converts the weights in `path`. `family` "" is told from the names of the arrays; `heads` 0 from the weights' settings or width, `trained_frames` and
    `trained_size` 0 from the settings, else they are 16 and 224 (the position tables depend on them).

    `config` names the config file that the run starts from ("" = `template`) and `assignments` override its fields; a clip of
    another length or size than the weights' own interpolates the position tables. `classes` is a file with the names of the head's
    classes, one a line. Raises UserError for an unreadable file, another family, and differences that `allow` {class: patterns} does not cover.
    """
    weights = files.read(path, key=key)
    family = recognise(weights.state, family=family, path=path)
    state = renamed(weights.state, family=family)
    kind, layout = kind_of(state, family=family)
    if kind not in FAMILIES[family]:
        raise UserError(f"{path} is a {kind} of {family}; allowed are {', '.join(k for k in FAMILIES[family] if k != 'mark')}")
    settings = flat_settings(weights.settings)
    settings |= {k: v for k, v in (("num_frames", trained_frames), ("image_size", trained_size), ("num_attention_heads", heads),
                                   ("decoder_num_attention_heads", decoder_heads)) if v}
    check_settings(settings)
    sizes = Sizes.of(state, layout=layout, family=family, settings=settings, heads=heads, decoder_heads=decoder_heads)
    found = videomae.assign(state, source=column(family), layout=layout, heads=(sizes.encoder["heads"], sizes.decoder["heads"])[:len(layout.stacks)])
    node = configs.load(config) if config else template(family, kind)
    fill(node, sizes, settings=settings, family=family, kind=kind)
    names = answers.class_names(weights.settings, count=sizes.classes, file=classes)
    answers.several(node, settings=settings, count=sizes.classes, names=names)
    configs.override(node, dict(assignments or {}))
    agree(node, sizes, settings=settings)
    moved = settle(node, sizes, learned=LEARNED.get(family, ()))
    params, report = match(node, found, state=state, moved=moved, notes=notes(weights, family=family, told=settings), allow=allow or {})
    return Imported(node, params, report, names, family, weights.files)


def template(family: str, kind: str, /) -> Any:
    """The first shipped config of FAMILIES for weights of a family that is there; V2's in the place of VideoMAE's decodes every hidden
    token, as VideoMAE does. Raises UserError where none is there.
    """
    names = FAMILIES[family][kind].split()
    for name in names:
        try:
            configs.find(name)
        except UserError:  # that recipe is not here
            continue
        node = configs.load(name)
        if name == V2 != names[0]:
            with node.objective.ignore_type(), node.objective.unlocked():
                node.objective.decoder_mask = configs.spec(masking.Hidden)
        return node
    raise UserError(f"{family} weights start from the config {' or '.join(names)}, which is not here; name another one with --config")


def column(family: str, /) -> str:
    """Which names of a layout's rules a family has."""
    return "hf" if family == "hf" else "official"


def recognise(state: State, /, *, family: str, path: pathlib.Path) -> str:
    """The family, checked against the names of the arrays; the two official repositories of VideoMAE share theirs."""
    if family and family not in FAMILIES:
        raise UserError(f"family {family!r}; allowed are {', '.join(FAMILIES)}")
    bare = [re.sub(r"^((module|_orig_mod|backbone|model)\.)+", "", name) for name in state]
    found = [f for f, about in FAMILIES.items() if any(re.match(about["mark"], name) for name in bare)]
    if not found:
        raise UserError(f"{path} is of none of the families {', '.join(FAMILIES)}; its arrays are called {', '.join(list(state)[:4])}, ...")
    if family and family not in found:
        raise UserError(f"{path} is not of the family {family!r}; its arrays are named like those of {' or '.join(found)} ({next(iter(state))}, ...)")
    return family or found[0]


def renamed(state: State, /, *, family: str) -> dict[str, np.ndarray]:
    """Arrays under the names of the layouts: prefixes of wrappers dropped, a bare Hugging Face encoder under its usual one."""
    if family == "hf":
        bare = not any(name.startswith("videomae.") for name in state)
        heads = ("decoder.", "encoder_to_decoder.", "mask_token", "fc_norm.", "classifier.")
        return videomae.hub_names({name if not bare or name.startswith(heads) else f"videomae.{name}": v for name, v in state.items()})
    if family in ("videoprism", "marlin"):
        return {"videoprism": videoprism, "marlin": marlin}[family].renamed(state)
    if all(name.startswith("model.") for name in state):  # Hugging Face's V2 repositories wrap the fine-tuned network
        state = {name.removeprefix("model."): v for name, v in state.items()}
    return videomae.unwrapped(state)


def kind_of(state: State, /, *, family: str) -> tuple[str, Layout]:
    """"pretraining" or "classifier"; an encoder alone is of the kind whose norm it has."""
    if family == "videoprism":
        return "classifier", videoprism.ENCODER
    if family == "marlin":
        return "pretraining", marlin.PRETRAINED
    if family == "mae_st":
        decoder = any(name.startswith(("decoder_", "pos_embed_spatial")) for name in state) and "head.weight" not in state
        return ("pretraining" if decoder else "classifier"), mae_st.PRETRAINED
    marks = ("decoder.", "encoder_to_decoder.", "encoder.blocks.", "videomae.layernorm.")
    pretraining = any(name.startswith(marks) for name in state) and not any(name.startswith(("head.", "classifier.")) for name in state)
    return ("pretraining", videomae.PRETRAINED) if pretraining else ("classifier", videomae.CLASSIFIER)


def flat_settings(settings: Mapping[str, Any], /) -> dict[str, Any]:
    """Settings under Hugging Face's names, from its config, from that of its V2 repositories or from the official options."""
    inner = settings.get("model_config")
    found = {k: v for k, v in (inner if isinstance(inner, Mapping) else settings).items() if v is not None}
    for theirs, ours in (("num_heads", "num_attention_heads"), ("img_size", "image_size"), ("input_size", "image_size"), ("all_frames", "num_frames"), ("normlize_target", "norm_pix_loss")):
        if theirs in found:
            found.setdefault(ours, found[theirs])
    for name in ("image_size", "patch_size"):  # V1's script keeps its square patch as a pair
        pair = found.get(name)
        if isinstance(pair, (list, tuple)) and len(pair) and all(side == pair[0] for side in pair):
            found[name] = pair[0]
    return found


def check_settings(settings: Mapping[str, Any], /) -> None:
    """Raises UserError for settings beside the weights that are no numbers, and for an activation that the models here do not have."""
    for name in ("num_frames", "image_size", "num_attention_heads", "decoder_num_attention_heads"):
        value = settings.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"the settings beside the weights say {name} {value!r}; allowed are whole numbers from 1 on")
    eps = settings.get("layer_norm_eps", HF_EPS)
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 < eps < 1:
        raise UserError(f"the settings beside the weights say layer_norm_eps {eps!r}; allowed are numbers between 0 and 1")
    for name in files.STATISTICS:
        values = settings.get(name, [0.5] * 3)
        if not isinstance(values, list) or len(values) != 3 or not all(isinstance(v, (int, float)) for v in values):
            raise UserError(f"the settings beside the weights say {name} {values!r}; allowed are three numbers")
    if settings.get("hidden_act", "gelu") != "gelu":
        raise UserError(f"the settings beside the weights say hidden_act {settings['hidden_act']!r}; converted are models with the exact 'gelu'")


def agree(config: Any, sizes: "Sizes", /, *, settings: Mapping[str, Any]) -> None:
    """Raises UserError where the settings beside the weights are those of another model, or the config is made for other classes."""
    e = sizes.encoder
    found = {"hidden_size": e.get("width"), "num_hidden_layers": e.get("depth"), "intermediate_size": e.get("hidden"), "tubelet_size": e["patch"][0],
             "patch_size": e["patch"][1]}
    wrong = [f"{name} {settings[name]!r} but {value} by the shapes" for name, value in found.items() if settings.get(name, value) != value]
    if wrong:
        raise UserError(f"the settings beside the weights are not those of these weights: {'; '.join(wrong)}")
    if sizes.classes and config.objective.head.classes != sizes.classes:
        raise UserError(f"the weights have {sizes.classes} classes and the config {config.objective.head.classes}; convert them as they are, and fine-tune for "
                        "others from that run (config.objective.pretrained, with start 'features' or a map of classes)")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Fields of our encoder and decoder, and the number of classes (0 = no head)."""

    encoder: dict[str, Any]
    decoder: dict[str, Any]
    classes: int

    @property
    def grid(self) -> Grid:
        """Token grid of the clips that the weights are made for."""
        e = self.encoder
        return Grid(e["frames"] // e["patch"][0], e["size"] // e["patch"][1], e["size"] // e["patch"][2])

    @classmethod
    def of(cls, state: State, /, *, layout: Layout, family: str, settings: Mapping[str, Any], heads: int, decoder_heads: int) -> "Sizes":
        """Sizes by shapes; what they do not tell from `settings`, then from the published sizes."""
        if family == "videoprism":
            return cls(videoprism.sizes(state), {"heads": 1}, 0)
        place = column(family) == "hf"
        names = {rule.ours: getattr(rule, column(family)) for rule in layout.single}
        kernel = state.get(names["encoder/embed/kernel"][0])
        if kernel is None or kernel.ndim != 5:
            raise UserError(f"the weights have no tubelet embedding {names['encoder/embed/kernel'][0]} of five axes, so the size of the model is unknown")
        if kernel.shape[1] != 3:
            raise UserError(f"the weights take {kernel.shape[1]} channels; converted are models of 3")
        parts = []
        for (stack, prefixes), given, known, setting in zip(layout.stacks.items(), (heads, decoder_heads), (HEADS, DECODER_HEADS),
                                                            ("num_attention_heads", "decoder_num_attention_heads"), strict=False):
            known = known | ({512: 16} if family == "mae_st" else {})
            parts.append(tower(state, prefix=prefixes[place], stack=stack, given=given or settings.get(setting, 0), known=known))
        encoder, decoder = (*parts, {"heads": 1})[:2]
        encoder |= {"patch": tuple(kernel.shape[2:]), "frames": int(settings.get("num_frames", 16)), "size": int(settings.get("image_size", 224))}
        encoder |= {ours: tuple(map(float, settings[name])) for ours, name in zip(("mean", "std"), files.STATISTICS, strict=True) if name in settings}
        if family == "hf":
            for part in (encoder, decoder) if settings.get("layer_norm_eps", HF_EPS) != HF_EPS else ():
                part["eps"] = float(settings["layer_norm_eps"])
        if family == "mae_st":
            encoder |= learned_grid(state, patch=encoder["patch"])
            if "decoder_pred.bias" in state:
                decoder["every"] = math.prod((*encoder["patch"], 3)) // state["decoder_pred.bias"].size
        head = state.get("classifier.bias" if place else "head.bias")
        return cls(encoder, decoder, 0 if head is None or family == "mae_st" else head.size)


def tower(state: State, /, *, prefix: str, stack: str, given: int, known: Mapping[int, int]) -> dict[str, int]:
    """width, depth, heads and hidden of a stack of blocks; {"heads": 1} of one that is not there."""
    depth = videomae.depth(state, prefix)
    if not depth:
        return {"heads": 1}
    shape = next((v.shape for k, v in state.items() if k.startswith(f"{prefix}0.") and k.endswith(("fc1.weight", "intermediate.dense.weight"))), ())
    if len(shape) != 2:
        raise UserError(f"the first block {prefix}0 has {f'an MLP of shape {shape}' if shape else 'no MLP (fc1.weight)'}, so the width of the {stack.split('/')[0]} "
                        "is unknown; the file is incomplete or of another kind")
    hidden, width = shape
    if not given and width not in known:
        option = "--heads" if stack.startswith("encoder") else "--decoder-heads"
        raise UserError(f"the number of heads of the {stack.split('/')[0]} of width {width} is neither in the weights nor in a config beside them; convert with {option}=N names it")
    return {"width": width, "depth": depth, "heads": int(given or known[width]), "hidden": hidden}


def learned_grid(state: State, /, *, patch: tuple[int, int, int]) -> dict[str, int]:
    """Frames and pixels a side from MAE-ST's tables of positions."""
    tables = [state.get(name) for name in ("pos_embed_temporal", "pos_embed_spatial")]
    if any(t is None for t in tables):
        raise UserError("the weights have no separable positions (pos_embed_temporal, pos_embed_spatial); MAE-ST models with a joint table are not converted")
    side = math.isqrt(tables[1].shape[1])
    if side * side != tables[1].shape[1]:
        raise UserError(f"the table of spatial positions has {tables[1].shape[1]} rows, which is no square")
    return {"frames": tables[0].shape[1] * patch[0], "size": side * patch[1]}


def fill(config: Any, sizes: Sizes, /, *, settings: Mapping[str, Any], family: str, kind: str) -> None:
    """Puts the sizes into a config, in place; float32 throughout, and nothing to start from but these weights."""
    if family == "videoprism":
        with config.objective.ignore_type(), config.objective.unlocked():
            config.objective.encoder = configs.spec(models.Encoder, **sizes.encoder)
    changes: dict[str, Any] = {f"objective.encoder.{k}": v for k, v in sizes.encoder.items()} | {"objective.encoder.dtype": "float32"}
    if family == "videoprism":  # its towers are two stacks, for which `optim.layer_scales` has no rule
        changes |= {f"optimizers.{name}.layer_decay": 1.0 for name, node in config.optimizers.items() if "layer_decay" in node}
    if kind == "pretraining":
        changes |= {f"objective.decoder.{k}": v for k, v in sizes.decoder.items() if len(sizes.decoder) > 1} | {"objective.decoder.dtype": "float32"}
        if "every" in sizes.decoder:  # the target takes the frames that the weights predict
            changes |= {"objective.target.tubelet": sizes.encoder["patch"][0], "objective.target.every": sizes.decoder["every"]}
        if "initial" in config.objective:
            changes["objective.initial"] = None
        if settings.get("norm_pix_loss") is False:
            changes["objective.target.normalise"] = "none"
    else:
        changes |= {"objective.pretrained": "", "objective.head.classes": max(sizes.classes, 1)}
    for path, value in changes.items():
        node = config
        *parents, name = path.split(".")
        for parent in parents:
            if parent not in node:
                raise UserError(f"config.{path} is not there; the config of converted weights has an encoder{' and a decoder' if kind == 'pretraining' else ' and a head'}")
            node = node[parent]
        with node.ignore_type(), node.unlocked():
            node[name] = value


def settle(config: Any, sizes: Sizes, /, *, learned: tuple[str, ...]) -> tuple[str, ...]:
    """Makes the data agree with the encoder, and names the tables of another grid than the weights' own: `learned` ones are leaves.

    Fixed tables are no parameters: the encoder and decoder then become those of models/resized.
    """
    encoder = configs.build(config.objective.encoder)
    configs.cut_to(config.data, frames=encoder.frames, size=encoder.size)
    if encoder.grid == sizes.grid:
        return ()
    if learned:
        return learned
    return tuple(f"{name} positions" for name in retable(config, trained=sizes.grid))


def retable(config: Any, /, *, trained: Grid, trust: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Gives the encoder and decoder of a config the fixed tables of the grid they were `trained` on, in place; returns their names."""
    names = tuple(name for name in ("encoder", "decoder") if name in config.objective)
    for name in names:
        with config.objective.ignore_type(), config.objective.unlocked():
            config.objective[name] = configs.plain(resized.at(configs.build(config.objective[name], trust=trust), trained=trained))
    return names


def match(config: Any, found: videomae.Assigned, /, *, state: State, moved: tuple[str, ...], notes: tuple[str, ...],
          allow: Mapping[str, Sequence[str]]) -> tuple[Params, Report]:
    """The whole parameter tree of the config's model, and the account; raises UserError where that is not allowed.

    A leaf that lacks only some of its arrays is refused in any case: a block of fresh values amid trained ones is no model.
    """
    torn = [n for absent, count in found.missing.values() if len(absent) < count for n in absent]
    if torn:
        raise UserError(f"{len(torn)} arrays of stacks that are otherwise there are missing: {', '.join(torn[:8])}; the file is incomplete")
    objective, source = configs.build(config.objective), configs.build(config.data)
    example = dummy(source.fields)
    abstract = parallel.unbox(jax.eval_shape(lambda: objective.init(jax.random.key(0), example)))
    wanted = {k: v.shape for k, v in traverse_util.flatten_dict(abstract, sep="/").items()}
    leaves = {k: regrid(v, shape=wanted[k], path=k) if k in moved and k in wanted else v for k, v in found.leaves.items()}
    read = [n for ours, all_ in found.names.items() if ours in found.leaves for n in all_]
    kept = {n for ours, all_ in found.names.items() if ours in leaves for n in untouched(leaves[ours], all_, state=state)}
    report = Report(loaded=tuple(n for n in read if n in kept), reshaped=tuple(n for n in read if n not in kept),
                    missing=tuple(k for k in wanted if k not in leaves), unexpected=found.unused, interpolated=moved,
                    zero=tuple(n for n in read if not np.any(state[n])), inert=found.inert, notes=notes)
    report.check(allow)
    target = {k: np.empty(v, np.float32) for k, v in wanted.items()}
    if report.missing:
        target |= jax.tree.map(np.asarray, jax.jit(lambda: fresh(objective, example, seed=config.seed, paths=report.missing))())
    names = tuple(re.escape(k) for k in report.missing)
    return transfer(traverse_util.unflatten_dict(target, sep="/"), traverse_util.unflatten_dict(leaves, sep="/"), fresh=names), report


def untouched(leaf: np.ndarray, names: Sequence[str], /, *, state: State) -> list[str]:
    """The arrays of a leaf, or of the layers of a stacked one, that it holds as they were."""
    layers = [leaf] if len(names) == 1 and state[names[0]].shape == leaf.shape else leaf
    return [n for n, layer in zip(names, layers, strict=True) if np.array_equal(state[n], layer)] if len(layers) == len(names) else []


def fresh(objective: Any, example: Any, /, *, seed: int, paths: Sequence[str]) -> dict[str, Any]:
    """{path: initial value} of some leaves; the compiler drops the draws of all others."""
    leaves = traverse_util.flatten_dict(parallel.unbox(objective.init(jax.random.key(seed), example)), sep="/")
    return {path: leaves[path] for path in paths}


def regrid(table: np.ndarray, /, *, shape: tuple[int, ...], path: str) -> np.ndarray:
    """A learned table [n D] of another grid: cubic over the square of places, linear in time."""
    x = table.astype(np.float64)
    if path.endswith("/time"):
        return interpolation.resize(x, axis=0, size=shape[0], kind="linear").astype(np.float32)
    old, new = math.isqrt(len(x)), math.isqrt(shape[0])
    x = x.reshape(old, old, -1)
    for axis in (0, 1):
        x = interpolation.resize(x, axis=axis, size=new, kind="cubic")
    return x.reshape(new * new, -1).astype(np.float32)


def notes(weights: files.Weights, /, *, family: str, told: Mapping[str, Any]) -> tuple[str, ...]:
    """What a reader must know beside the lists."""
    found = []
    narrow = {k: n for k, n in weights.dtypes.items() if k != "float32"}
    if narrow:
        loss = "float64 values are rounded" if "float64" in narrow else "without loss"
        found.append(f"stored as {', '.join(f'{k} ({n} arrays)' for k, n in narrow.items())}; float32 from here on, {loss}")
    if family not in ("mae_st", "videoprism") and (unsaid := [option for name, option in ASSUMED.items() if name not in told]):
        found.append(f"the files do not tell on which clips they were trained: {' of '.join(unsaid)} are assumed")
    if family == "hf" and weights.settings.get("layer_norm_eps") == HF_EPS:
        found.append(f"their config has LayerNorm eps {HF_EPS:g}; here it is 1e-6, as in the code that trained the published weights")
    if family == "hf" and not set(files.STATISTICS) <= weights.settings.keys():
        found.append("no preprocessor_config.json beside them: mean and deviation of the pixels are ImageNet's, as in training")
    return tuple(found)
