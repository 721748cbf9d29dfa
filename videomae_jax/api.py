"""Models for notebooks and scripts: features, reconstructions and classes of clips.

    import videomae_jax

    model = videomae_jax.load("runs/vit_b")             # a run directory, also one that `convert` wrote
    model = videomae_jax.load("VideoMAE-base/")         # or weights of others: Hugging Face, official .pth, MAE-ST
    clip = model.clip("video.mp4")                      # u8 [T H W C], as the run's evaluation cuts it
    features = model.encode(clip)                       # .tokens f32 [B t h w D], .pooled f32 [B D]
    pictures = model.reconstruct(clip)                  # .panels {"input", "visible", "prediction", "pasted"} f32 [B T H W C]
    answer = model.classify(clip)                       # .probabilities f32 [B classes], .top(5)
"""

import dataclasses
import functools
import hashlib
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from videomae_jax import config as configs
from videomae_jax import externals, head_rows, parallel, run_directory
from videomae_jax.checkpoint import Checkpointer, load_params
from videomae_jax.data import clips as cuts
from videomae_jax.data import decode
from videomae_jax.errors import UserError
from videomae_jax.evals import attentive, pictures
from videomae_jax.evals import best as kept
from videomae_jax.evals.base import evaluation_source
from videomae_jax.models import kernels, patches
from videomae_jax.objectives import base
from videomae_jax.transfer import transfer
from videomae_jax.types import Extra, Params


SLACK = 0.1  # beyond [0, 1], for resizing filters that overshoot


@dataclasses.dataclass(frozen=True)
class Encoding:
    """`tokens` f32 [B t h w D] in the order time, rows, columns; `pooled` f32 [B D]; `valid` bool [B t h w], False for padding."""

    tokens: np.ndarray
    pooled: np.ndarray
    valid: np.ndarray


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """`panels` {"input", "visible", "prediction", "pasted"}, each f32 [B T H W C] in [0, 1]; `error` f64 [B], the mean squared error of
    hidden pixels that were predicted. Cells that were not decoded are hatched, frames that were not predicted repeat the one before.
    Where the model predicts normalised patches, they are shown with the true mean and deviation of each patch.
    """

    panels: Mapping[str, np.ndarray]
    error: np.ndarray


@dataclasses.dataclass(frozen=True)
class Classification:
    """`probabilities` f32 [B classes] and the `names` of the classes; of yes-or-no attributes each has its own."""

    probabilities: np.ndarray
    names: tuple[str, ...]

    def top(self, count: int = 5, /) -> list[list[tuple[str, float]]]:
        """The `count` likeliest classes of every clip with their probabilities, the likeliest first."""
        order = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :count]
        return [[(self.names[i], float(row[i])) for i in best] for row, best in zip(self.probabilities, order, strict=True)]


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A trained objective with its weights (the averaged ones where the run keeps them), on the devices of `mesh`.

    Clips are u8 in 0..255 or floats in [0, 1], [B T H W C] or one clip [T H W C], of the length and size that the model takes
    (`frames`, `size`). Batches of one length are compiled once.
    """

    objective: base.Objective
    params: Params
    extra: Extra
    config: Any
    classes: tuple[str, ...]
    step: int
    mesh: Any
    trust: tuple[str, ...] = ()
    outside: Mapping[base.External, str] = dataclasses.field(default_factory=dict)  # frozen weights of others (`externals.settle`)

    @property
    def frames(self) -> int:
        """Frames of a clip."""
        return self.objective.encoder.frames

    @property
    def size(self) -> int:
        """Rows and columns of a clip."""
        return self.objective.encoder.size

    def encode(self, video: Any, /, *, layer: int = -1, length: Any = None) -> Encoding:
        """Features of whole clips; `layer` -1 = as the recipe represents a clip, else the raw output of that block (0 = the first).

        `length` i [B] says how many frames of a clip are real: the rest is attended by no token. Deterministic.
        """
        clips = self._clips(video)
        lengths = {} if length is None else {"length": patches.lengths(length, rows=len(clips), frames=self.frames)}
        found = self._run(self.represent(layer), clips, **lengths)
        grid = found.grid
        shape = (len(clips), grid.t, grid.h, grid.w)
        if length is not None and found.valid.all() and (np.asarray(length) <= self.frames - self.objective.encoder.patch[0]).any():
            raise UserError(f"{type(self.objective).__name__} does not leave out padding; encode whole clips alone")
        return Encoding(found.tokens.reshape(*shape, -1), found.pooled, found.valid.reshape(shape))

    def reconstruct(self, video: Any, /, *, seed: int = 0, **beside: Any) -> Reconstruction:
        """Hides parts of clips as in training, with masks drawn from `seed` and the place in the batch, and predicts them.

        `beside` holds what else the recipe reads beside a clip, [B ...] or of one clip, by the names of `fields`: `parts` u8 [B T H W]
        where a mask is guided by them (MARLIN), `audio` and `audio_valid` of a recipe with sound. What is not given is 0: without
        parts everything counts as background and the mask is a uniform draw, without sound the clip is silent.
        """
        clips = self._clips(video)
        pictures.check(self.objective)
        more = {name: self._beside(name, value, rows=len(clips)) for name, value in beside.items()}
        masks, predicted, pixels = self._run(self._predict, clips, rng=np.uint32(seed), **more)
        if not (masks.weight > 0).any(1).all():
            raise UserError(f"{type(self.objective).__name__} predicts nothing of a clip by itself; give what it reads beside it: "
                            f"{', '.join(k for k in self.fields if k not in ('video', 'label'))}")
        drawn = [pictures.compose(self.objective, pixels[i], predicted[i], jax.tree.map(lambda x, i=i: x[i], masks)) for i in range(len(clips))]
        panels = {name: np.stack([panel[name] for panel, _, _ in drawn]) for name in pictures.PANELS}
        return Reconstruction(panels, np.asarray([error / values for _, error, values in drawn]))

    def classify(self, video: Any, /) -> Classification:
        """Probabilities of the classes, one clip at a time; average those of several clips of a video yourself, or use `predict`."""
        if not hasattr(self.objective, "head"):
            raise UserError(f"{type(self.objective).__name__} has no classes; allowed are fine-tuned runs")
        probabilities = self._run(self._classify, self._clips(video))
        return Classification(probabilities, self.classes or tuple(map(str, range(probabilities.shape[1]))))

    def clip(self, path: str | pathlib.Path, /) -> np.ndarray:
        """u8 [T H W C] of a video file: the frames and the crop that the run's evaluation takes. Raises DecodeError."""
        source = evaluation_source(self.config, split="all", trust=self.trust)
        if not hasattr(source, "sampling"):
            raise UserError(f"the data of this run ({type(source).__name__}) do not say how a clip is cut from a file")
        info, rng = decode.probe(path), np.random.default_rng(0)
        ids = cuts.of(source.sampling, info).ids(info.frames, clip=self.frames, rng=rng)
        return source.crop(decode.decode(path, ids, info=info), size=self.size, rng=rng)

    def _clips(self, video: Any, /) -> np.ndarray:
        clips = np.asarray(video)
        clips = clips[None] if clips.ndim == 4 else clips
        e = self.objective.encoder
        if clips.shape[1:] != (e.frames, e.size, e.size, e.channels) or not len(clips):
            raise UserError(f"clips of shape {np.shape(video)}; this model takes ([B,] {e.frames}, {e.size}, {e.size}, {e.channels}) = (frames, rows, columns, "
                            "channels); load(..., frames=, size=) opens it for others")
        if clips.dtype != np.uint8 and not np.issubdtype(clips.dtype, np.floating):
            raise UserError(f"clips of {clips.dtype}; allowed are uint8 in 0..255 and floats in [0, 1]")
        if clips.dtype != np.uint8 and not (-SLACK <= clips.min() and clips.max() <= 1 + SLACK):
            raise UserError(f"clips of floats from {clips.min():g} to {clips.max():g}; allowed are floats in [0, 1] and uint8 in 0..255")
        return clips if clips.dtype == np.uint8 else clips.astype(np.float32)

    def _beside(self, name: str, value: Any, /, *, rows: int) -> np.ndarray:
        """A field of the batch beside the video, for `rows` clips. Raises UserError for a name or a shape that the recipe does not read."""
        known = {k: f for k, f in self.fields.items() if k not in ("video", "label")}
        if name not in known:
            raise UserError(f"{name!r} is nothing that this recipe reads beside a clip; allowed are {', '.join(known) or 'no fields'}")
        found, field = np.asarray(value), known[name]
        found = found[None] if found.ndim == len(field.shape) else found
        if found.shape != (rows, *field.shape) or not np.can_cast(found.dtype, field.dtype, "same_kind"):
            raise UserError(f"{name} of {found.dtype} {np.shape(value)}; allowed is {field.dtype} {(rows, *field.shape)}")
        return found.astype(field.dtype)

    def submit(self, program: Any, clips: np.ndarray, /, *, rows: int = 0, rng: Any = None, **more: np.ndarray) -> Any:
        """Starts a program on clips, padded to `rows` and to whole devices, and returns its device arrays without waiting."""
        ways = parallel.batch_ways(self.mesh)
        rows = -(-max(rows, len(clips)) // ways) * ways

        def padded(x: np.ndarray) -> np.ndarray:
            return np.concatenate([x, np.repeat(x[:1], rows - len(x), 0)])

        batch = {k: np.zeros((rows, *v.shape[1:]), v.dtype) for k, v in self._example.items()}
        batch |= {"video": padded(clips), "valid": np.arange(rows) < len(clips)} | {k: padded(v) for k, v in more.items()}
        batch["key"] = np.stack([np.arange(rows, dtype=np.uint32), np.zeros(rows, np.uint32)], 1)
        if "label" in batch:
            batch["label"] = np.full_like(batch["label"], -1)
        extra = () if rng is None else (rng,)
        return program(self.params, self.extra, parallel.to_device(batch, mesh=self.mesh), *extra)

    def _run(self, program: Any, clips: np.ndarray, /, **more: Any) -> Any:
        return jax.tree.map(lambda x: x[: len(clips)], jax.device_get(self.submit(program, clips, **more)))

    def _program(self, fn: Any, /) -> Any:
        def traced(*args: Any) -> Any:
            with parallel.use(self.mesh):
                return fn(*args)
        return jax.jit(traced, out_shardings=parallel.replicated(self.mesh))

    @functools.cached_property
    def fields(self) -> Mapping[str, Any]:
        """What a batch of this recipe holds beside the bookkeeping, by the data it was trained on."""
        return configs.build(self.config.data, trust=self.trust).fields

    @functools.cached_property
    def _example(self) -> dict[str, Any]:
        return base.dummy(self.fields)

    @functools.cached_property
    def _layers(self) -> dict[int, Any]:
        return {}

    def check_layer(self, layer: int, /) -> None:
        """Raises UserError for a block that the encoder does not have."""
        if not -1 <= layer < self.objective.encoder.depth:
            raise UserError(f"layer {layer}; allowed are -1 and 0 to {self.objective.encoder.depth - 1}")

    def represent(self, layer: int, /) -> Any:
        """The program for `submit` that gives `Features` of a block, compiled once a layer and batch."""
        self.check_layer(layer)
        if layer not in self._layers:
            self._layers[layer] = self._program(
                lambda params, extra, batch: self.objective.represent(params, extra, batch, inputs=("video",), layer=layer)["video"])
        return self._layers[layer]

    @functools.cached_property
    def _predict(self) -> Any:
        def fn(params: Params, extra: Extra, batch: Any, seed: Any) -> Any:
            found = self.objective.predict(params, extra, batch, jax.random.key(seed))
            return found.masks, found.patches, self.objective.patchify(batch)
        return self._program(fn)

    @functools.cached_property
    def _classify(self) -> Any:
        def fn(params: Params, extra: Extra, batch: Any) -> Any:
            return self.objective.class_probabilities(self.objective.predict(params, extra, batch, jax.random.key(0)).logits)
        return self._program(fn)


class Stored(NamedTuple):
    """What a path holds: config, parameters as numpy arrays, step; class names (() = unknown) of weights of others, for a run directory tells its own."""

    config: Any
    params: Params
    step: int
    classes: tuple[str, ...] = ()


def load(path: str | pathlib.Path, /, *, step: int | None = None, best: bool = False, frames: int = 0, size: int = 0,
         devices: Sequence[Any] | None = None, trust: tuple[str, ...] = (), assignments: Mapping[str, str] | None = None, **conversion: Any) -> Model:
    """The model of a run directory (`step`: of that checkpoint, else the newest), or of weights of others.

    `best` takes the weights of the best evaluation, which a run keeps where an evaluator says by what (`evaluators.NAME.best`); the path RUN/best
    means the same.
    `frames` and `size` open a model with fixed position tables for other clips than it was trained on (0 = as trained).
    `devices` are those that batches are split over (None = the first one). `assignments` override config fields. For weights of
    others, `conversion` takes the keywords of `convert.importing.read`: family, key, heads, decoder_heads, allow, ...
    """
    (path, best), chips = kept.named(pathlib.Path(path), best=best), list(devices or jax.local_devices()[:1])
    run, chosen_by = is_run(path), "best" if best else "step" if step is not None else ""
    if run and conversion or not run and chosen_by:
        raise UserError(f"{next(iter(conversion), chosen_by)} is for {'weights of others' if run else 'run directories'}; {path} is {'a run directory' if run else 'none'}")
    stored = of_run(path, step=step, best=best) if run else of_weights(path, {**conversion, "assignments": assignments})
    config = configs.completed(stored.config) if run and assignments else stored.config  # fields that the run could not say yet may be said
    if table := next((name for name in assignments or () if run and re.fullmatch(r"objective\.encoder\.(frames|size)", name)), None):
        raise UserError(f"{table} would leave the positions of the weights as they are; `frames` and `size` open a model for other clips")
    with config.unlocked():
        configs.override(config, dict(assignments or {}) if run else {})
        refit(config, frames=frames, size=size, trust=trust)
        kernels.portable(config.objective, device=chips[0])
    objective = attentive.with_best_head(configs.build(config.objective, trust=trust), path, config=config, step=stored.step, trust=trust)
    mesh = parallel.Layout().mesh(chips)
    example = base.dummy(configs.build(config.data, trust=trust).fields)
    shapes = parallel.unbox(jax.eval_shape(lambda: objective.init(jax.random.key(0), example)))
    params = transfer(shapes, stored.params)
    folder = kept.checkpoints(path, best=best)
    told = meta(folder, step=stored.step).get("frozen", {}) if run else {}
    outside = externals.settle(base.answering(objective), earlier=externals.earlier(path, step=stored.step, told=told))
    extra = extra_of(objective, folder, step=stored.step, example=example, shapes=shapes, outside=outside)
    shared = parallel.replicated(mesh)
    classes = head_rows.of_run(path, objective) if run else stored.classes

    def place(tree: Any) -> Any:
        return jax.tree.map(lambda x: parallel.place(np.asarray(x), shared), tree)
    return Model(objective, place(params), place(extra), config, classes, stored.step, mesh, trust, outside)


def is_run(path: pathlib.Path, /) -> bool:
    """Whether a path is a run directory of ours; folders of Hugging Face have a config.json too."""
    return (path / "checkpoints").is_dir()


def of_run(path: pathlib.Path, /, *, step: int | None, best: bool = False) -> Stored:
    """The contents of a run directory, with the averaged weights where the checkpoint has them: averages that began later are the parameters.

    Raises UserError for a `step` beside `best`, and for one that is not there.
    """
    if best and step is not None:
        raise UserError(f"step {step} and the best weights are asked for; allowed is one of them")
    folder = kept.checkpoints(path, best=best)
    config, found = run_directory.open_run(path), chosen(folder, step=step)
    params = load_params(folder, step=found, item="ema" if config.ema and "ema" in meta(folder, step=found)["leaves"] else "params")
    return Stored(config, params, found)


def meta(folder: pathlib.Path, /, *, step: int) -> dict[str, Any]:
    """The metadata of the checkpoint `step` in a folder of them: "leaves" of the parts it holds, as "params" and "ema", and what its save said."""
    saver = Checkpointer(folder, read_only=True)
    try:
        return saver.meta(step)
    finally:
        saver.close()


def of_weights(path: pathlib.Path, conversion: Mapping[str, Any], /) -> Stored:
    """Converted weights, without writing them."""
    from videomae_jax.convert import importing

    found = importing.read(path, **conversion)
    return Stored(found.config, found.params, 0, found.classes)


def digest(path: pathlib.Path, /, *, step: int, best: bool = False) -> str:
    """SHA-256 of the checkpoint `step` of a run directory, of its `best` weights of that step, or of weights of others."""
    path, best = kept.named(path, best=best)
    if is_run(path):
        return externals.digest(kept.checkpoints(path, best=best), step=step)
    from videomae_jax.convert import files

    if not path.is_dir():
        return externals.digest(path)
    return hashlib.sha256("".join(map(externals.digest, files.in_folder(path))).encode()).hexdigest()


def identity(model: Model, path: pathlib.Path, /, *, best: bool = False) -> str:
    """What tells the weights of a model of `path` from others: `digest` of its own, and those of the frozen ones that its answers need, where there are any."""
    others = (known or externals.digest(pathlib.Path(e.path)) for e, known in model.outside.items())
    return " ".join([digest(path, step=model.step, best=best), *others])


def chosen(folder: pathlib.Path, /, *, step: int | None) -> int:
    """`step`, or the newest in a folder of checkpoints. Raises UserError when it is not there."""
    saver = Checkpointer(folder, read_only=True)
    try:
        steps = saver.steps()
    finally:
        saver.close()
    if not steps or step not in (None, *steps):
        raise UserError(f"no checkpoint {'' if step is None else step} in {folder}; its steps are {steps}")
    return steps[-1] if step is None else step


def extra_of(objective: base.Objective, folder: pathlib.Path, /, *, step: int, example: Any, shapes: Params, outside: Iterable[base.External]) -> Extra:
    """The state beside the parameters that a recipe keeps, and the frozen weights that its answers need, from `outside`; {} for most."""
    extra = jax.eval_shape(lambda params: parallel.unbox(objective.init_extra(jax.random.key(0), params, example)), shapes)
    if jax.tree.leaves(extra):
        extra = transfer(extra, load_params(folder, step=step, item="extra"))
    def needed() -> Params:
        return {k: v for k, v in parallel.unbox(objective.init_frozen(jax.random.key(0), example)).items() if k not in objective.training_only}

    frozen = jax.jit(needed)()
    return base.with_frozen(extra, externals.load(frozen, outside, root="frozen") if jax.tree.leaves(frozen) else {})


def refit(config: Any, /, *, frames: int = 0, size: int = 0, trust: tuple[str, ...] = ()) -> None:
    """Opens a config for clips of other `frames` and `size`, in place: tables are those of the training grid, resized.

    An encoder of the frozen weights that only training reads is cut like the encoder, into its patches too, for its own need not divide these
    clips: none of it is computed.
    """
    encoder = configs.build(config.objective.encoder, trust=trust) if "encoder" in config.objective else None
    if encoder is None or not hasattr(encoder, "grid"):
        raise UserError(f"{config.objective[configs.SYMBOL]} has no single video encoder; allowed are recipes with one")
    frames, size = frames or encoder.frames, size or encoder.size
    if (frames, size) == (encoder.frames, encoder.size):
        return
    from videomae_jax.convert.importing import retable

    retable(config, trained=encoder.grid, trust=trust)
    for name in configs.build(config.objective, trust=trust).training_only:
        if "patch" in config.objective.get(name, {}):
            config.objective[name].update({"frames": frames, "size": size, "patch": encoder.patch})
    config.objective.encoder.frames, config.objective.encoder.size = frames, size
    configs.cut_to(config.data, frames=frames, size=size)
    configs.build(config.objective.encoder, trust=trust).grid  # noqa: B018 (raises for a clip that is no multiple of the patch)
