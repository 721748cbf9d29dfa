"""Reconstruction, probe and pictures: each number against a second way to compute it, and each guard against its fault."""

import dataclasses
import functools
import json
import pathlib
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.interpolate
import substitutes
from PIL import Image

from videomae_jax import config as configs
from videomae_jax import losses, masking, run_directory, targets
from videomae_jax.assembly import assemble
from videomae_jax.data import decode, sources
from videomae_jax.errors import UserError
from videomae_jax.evals import completion, pictures, probe, reconstruction
from videomae_jax.evals.base import Context
from videomae_jax.masking import Grid
from videomae_jax.models import heads, patches, vit
from videomae_jax.objectives import classify
from videomae_jax.objectives.mae import MAE

GRID, PATCH = Grid(2, 3, 4), (2, 4, 4)
FRAMES, HEIGHT, WIDTH = 4, 12, 16
OBJECTIVE = MAE(encoder=vit.Encoder(width=32, depth=1, heads=2, hidden=64, patch=(2, 8, 8), frames=4, size=32),
                decoder=vit.Decoder(width=32, depth=1, heads=2, hidden=64), encoder_mask=masking.Random(ratio=0.75))


@dataclasses.dataclass(frozen=True)
class Columns(sources.NoiseClips):
    """Noise with two label columns: "" halves the four distinct clips, "four" tells them apart, "none" labels nothing."""

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple("abcd") if self.label == "four" else super().classes

    def read(self, row: int, /, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
        label = {"four": row % 4, "none": -1}.get(self.label, row % 2)
        return super().read(row, rng=rng) | {"label": np.full(self.repeats, label, np.int32)}


class Toy(Context):
    """A context whose evaluation data is noise in memory."""

    length = 32

    def source(self, split: str, /) -> Any:
        return Columns(frames=4, size=32, length=self.length, split=split)


@functools.cache
def untrained() -> tuple[Any, Any]:
    """A run of OBJECTIVE on one device and its state at initialisation."""
    config = configs.load("configs/tiny.py")
    config.unlock()
    config.objective, config.data = configs.plain(OBJECTIVE), configs.spec(sources.NoiseClips, frames=4, size=32)
    run = assemble(config, devices=jax.devices()[:1])
    return run, run.create()


def context(directory: pathlib.Path, /, *, length: int = 32) -> Toy:
    """The untrained run with `length` clips in every split."""
    run, state = untrained()
    toy = Toy(run, state.params, state.extra, 7, directory)
    object.__setattr__(toy, "length", length)
    return toy


def mask(visible: list[list[int]], target: list[list[int]], weight: list[list[float]] | None = None) -> masking.Mask:
    """A mask of given ids."""
    ids, wanted = np.asarray(visible, np.int32), np.asarray(target, np.int32)
    return masking.Mask(ids, wanted, np.ones(wanted.shape, np.float32) if weight is None else np.asarray(weight, np.float32), np.ones(ids.shape, bool))


def drawn(seed: int, *, rows: int = 3, keep: int = 6) -> masking.Mask:
    """Random visible ids and all others as targets."""
    orders = [np.random.default_rng([seed, i]).permutation(GRID.tokens) for i in range(rows)]
    return mask([sorted(o[:keep]) for o in orders], [sorted(o[keep:]) for o in orders])


def tokens_of(video: np.ndarray) -> np.ndarray:
    """Patches [1 N P] of a video [T H W C]."""
    return np.asarray(patches.patchify(jnp.asarray(video[None], jnp.float32), patch=PATCH))


# -- predictors that need no training ----------------------------------------------------------------------------------


def test_nearest_equals_brute_force() -> None:
    """Every target copies the visible token at the smallest grid distance, the first of equals."""
    pixels, masks = np.random.default_rng(0).random((3, GRID.tokens, 96)).astype(np.float32), drawn(1)
    found = reconstruction.nearest(pixels, masks, grid=GRID)
    for row in range(3):
        for place, target in enumerate(masks.target[row]):
            def distance(token: int, target: int = target) -> int:
                a, b = np.unravel_index([token, target], (GRID.t, GRID.h, GRID.w)), 0
                return sum(int(x[0] - x[1]) ** 2 for x in a) + b
            best = min(masks.visible[row], key=lambda v: (distance(v), v))
            assert np.array_equal(found[row, place], pixels[row, best])


def test_padding_among_the_visible_is_not_copied() -> None:
    """A padded id may point anywhere; nothing there is known to the predictors."""
    pixels = np.stack([np.full((GRID.tokens, 96), 0.25, np.float32)])
    pixels[0, 1] = 1.0
    masks = dataclasses.replace(mask([[0, 1]], [[2, 3]]), visible_valid=np.array([[True, False]]))
    assert (reconstruction.nearest(pixels, masks, grid=GRID) == 0.25).all()
    assert (reconstruction.linear(pixels, masks, grid=GRID, patch=PATCH) == 0.25).all()


def test_linear_equals_scipy_on_every_frame() -> None:
    """Delaunay interpolation inside the hull of the visible pixels, the nearest visible pixel outside, frame by frame."""
    video, masks = np.random.default_rng(2).random((FRAMES, HEIGHT, WIDTH, 3)), drawn(3, rows=1, keep=10)
    known = np.zeros(GRID.tokens, bool)
    known[masks.visible[0]] = True
    known = np.repeat(np.repeat(np.repeat(known.reshape(2, 3, 4), 2, 0), 4, 1), 4, 2)
    expected, rows_columns = video.copy(), np.moveaxis(np.mgrid[:HEIGHT, :WIDTH], 0, -1)
    for t in range(FRAMES):
        points, wanted = rows_columns[known[t]], rows_columns[~known[t]]
        inside = scipy.interpolate.griddata(points, video[t][known[t]], wanted, method="linear")
        outside = scipy.interpolate.griddata(points, video[t][known[t]], wanted, method="nearest")
        assert np.isnan(inside).any() and not np.isnan(inside).all()
        expected[t][~known[t]] = np.where(np.isnan(inside), outside, inside)
    found = reconstruction.linear(tokens_of(video).astype(np.float64), masks, grid=GRID, patch=PATCH)
    # `unpatchify` goes through float32.
    np.testing.assert_allclose(found[0], tokens_of(expected)[0][masks.target[0]], atol=1e-6)


def test_linear_recovers_a_ramp_exactly() -> None:
    """Within the hull of the visible pixels a linear function is its own interpolation."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    video = np.stack([(0.1 + 0.02 * rows + 0.03 * columns + 0.01 * t)[..., None].repeat(3, -1) for t in range(FRAMES)])
    corners = [0, 3, 8, 11]
    visible = corners + [12 + c for c in corners]
    masks = mask([visible], [[i for i in range(GRID.tokens) if i not in visible]])
    pixels = tokens_of(video)
    found = reconstruction.linear(pixels, masks, grid=GRID, patch=PATCH)
    np.testing.assert_allclose(found[0], pixels[0][masks.target[0]], atol=1e-6)
    assert np.abs(reconstruction.nearest(pixels, masks, grid=GRID)[0] - pixels[0][masks.target[0]]).max() > 0.05


def test_a_frame_without_visible_pixels_copies_the_nearest_one() -> None:
    """Under a mask of whole times nothing can be interpolated within the frame."""
    video = np.stack([np.full((4, 4, 1), t, np.float64) for t in range(6)])
    known = np.zeros((6, 4, 4), bool)
    known[1], known[5] = True, True
    assert [float(f.mean()) for f in reconstruction.fill(video, known)] == [1, 1, 1, 1, 5, 5]


def sums(pixels: np.ndarray, masks: masking.Mask, *, normalise: str = "none", valid: np.ndarray | None = None, guess: float = 0.0) -> dict[str, float]:
    """`Reconstruction.sums` of a model that predicts `guess` everywhere."""
    target = targets.Pixels(normalise=normalise)
    objective = types.SimpleNamespace(encoder=types.SimpleNamespace(grid=GRID, patch=PATCH), target=target)
    true = np.take_along_axis(np.asarray(target(jnp.asarray(pixels))), masks.target[..., None], 1)
    predicted = types.SimpleNamespace(masks=masks, patches=np.full_like(true, guess), targets=true)
    return reconstruction.Reconstruction().sums(objective, pixels, predicted, np.ones(len(pixels), bool) if valid is None else valid)


def test_constant_clip_has_no_error() -> None:
    """Both predictors know a constant clip; predicting zero is wrong by its square."""
    found = sums(np.full((3, GRID.tokens, 96), 0.5, np.float32), drawn(4))
    assert found["_nearest"] == 0 and found["_linear"] < 1e-12
    assert found["_zero"] == pytest.approx(0.25 * found["weight"]) and found["weight"] == 3 * 18


def test_weight_and_validity_decide_what_counts() -> None:
    """Tokens of weight 0 and padded clips change neither numerators nor the denominator."""
    pixels, masks = np.random.default_rng(5).random((3, GRID.tokens, 96)).astype(np.float32), drawn(6)
    weight = np.ones((3, 18), np.float32)
    weight[:, ::2] = 0
    halved = dataclasses.replace(masks, weight=weight)
    full = sums(pixels, halved, valid=np.array([True, True, False]))
    spoilt = pixels.copy()
    spoilt[2] = 99.0
    np.put_along_axis(spoilt, masks.target[:, ::2, None], 77.0, 1)
    again = sums(spoilt, halved, valid=np.array([True, True, False]))
    assert full["weight"] == 18
    assert {k: again[k] for k in full} == pytest.approx(full)
    assert sums(spoilt, masks)["_zero"] > 10 * full["_zero"]


# -- the evaluator -----------------------------------------------------------------------------------------------------


def test_loss_is_the_objectives_own_and_padding_does_not_count(tmp_path: pathlib.Path) -> None:
    """Equal to `objective.loss` under the same masks, whether five clips come as one batch or as 4 + 1 padded to 4."""
    toy = context(tmp_path, length=5)
    run = toy.assembly
    found = {size: reconstruction.Reconstruction(batch_size=size).run(toy) for size in (5, 4)}
    assert found[4] == pytest.approx(found[5], rel=1e-6)  # float32 model, other batch shape
    batch = next(iter(toy.sweep(toy.source("val"), batch_size=5)))

    def loss(params: Any, batch: Any, rng: Any) -> Any:
        out = run.objective.loss(params, {}, batch, rng, step=jnp.int32(0), train=False)
        terms = losses.value(out.terms, denominators=losses.denominators(out.terms))
        return {"loss": terms, "loss_zero": out.metrics["loss_zero"].reduce().value()}

    theirs = run.evaluator(loss)(toy.params, batch, toy.rng)
    for name, value in theirs.items():
        assert found[5][name] == pytest.approx(float(value), rel=1e-6)
    assert found[5]["loss"] != pytest.approx(found[5]["loss_zero"], rel=1e-3)
    assert found[5]["loss_trivial"] == min(found[5]["loss_nearest"], found[5]["loss_linear"])


def test_substitutes_of_unreadable_clips_do_not_count(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The split does not hold them twice: whatever stands in for a damaged clip, the loss is the same; a split of nothing else has none."""
    toy, instead, damaged = context(tmp_path, length=5), [0], [2]
    plain = type(toy).sweep

    def sweep(self: Any, source: Any, /, *, batch_size: int) -> Any:
        for batch in plain(self, source, batch_size=batch_size):
            bad = np.isin(np.asarray(batch["row"]), damaged)
            video = np.where(bad[:, None, None, None, None], np.uint8(instead[0]), np.asarray(batch["video"]))
            yield batch | {"video": jnp.asarray(video), "fault": jnp.asarray(bad.astype(np.int32))}

    monkeypatch.setattr(type(toy), "sweep", sweep)
    found = []
    for value in (0, 200):
        instead[0] = value
        found.append(reconstruction.Reconstruction(batch_size=5).run(toy))
    assert found[0] == pytest.approx(found[1], rel=1e-9)
    damaged[:] = range(5)
    with pytest.raises(UserError, match="no clip of split 'val' that can be read has a hidden token"):
        reconstruction.Reconstruction(batch_size=5).run(toy)


def test_completion_without_substitutes_and_padding(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses are those of the readable clips, whatever else is shown."""
    toy = context(tmp_path, length=5)
    one, other = substitutes.outcomes(monkeypatch, lambda: completion.Completion(batch_size=4, clips=0).run(toy))
    assert one == pytest.approx(other, rel=1e-6) and len(one) == 5


def test_completion_of_nothing(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that hides no token, and a split of which no clip can be read, are mistakes in one line."""
    toy = context(tmp_path, length=5)
    with pytest.raises(UserError, match=r"^Centre\(ratio=0.0\) hides none of the 32 tokens of a clip; allowed is a mask that hides 1 and more"):
        completion.Completion(batch_size=5, mask=masking.Centre(ratio=0.0)).run(toy)
    plain = type(toy).sweep
    monkeypatch.setattr(type(toy), "sweep", lambda *a, **kw: (batch | {"fault": jnp.ones_like(batch["fault"])} for batch in plain(*a, **kw)))
    with pytest.raises(UserError, match="no clip of split 'val' that can be read has a hidden token"):
        completion.Completion(batch_size=5).run(toy)


@pytest.mark.parametrize("evaluator", [reconstruction.Reconstruction(), completion.Completion(), pictures.Pictures()], ids=lambda e: type(e).__name__)
def test_what_predicts_no_patches_is_refused(evaluator: Any, tmp_path: pathlib.Path) -> None:
    """A classifier has none to judge; the mistake is one line."""
    classifier = classify.Classify(encoder=OBJECTIVE.encoder, head=heads.Classifier(classes=2))
    toy = Toy(types.SimpleNamespace(objective=classifier), {}, {}, 0, tmp_path)
    with pytest.raises(UserError, match="^Classify (predicts no hidden patches|does not reconstruct pixels); allowed are runs of pretraining$"):
        evaluator.run(toy)


def test_at_most_the_clips_asked_for_are_used(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six of 32 clips in batches of four: not eight."""
    seen: list[int] = []
    sums_of = reconstruction.Reconstruction.sums
    monkeypatch.setattr(reconstruction.Reconstruction, "sums", lambda self, *a: seen.append(int(a[3].sum())) or sums_of(self, *a))
    reconstruction.Reconstruction(batch_size=4, clips=6).run(context(tmp_path))
    assert seen == [4, 2]


# -- the probe ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [5, 60], ids=["primal", "dual"])
@pytest.mark.parametrize("penalty", [1e-3, 1.0])
def test_ridge_solves_the_augmented_least_squares(width: int, penalty: float) -> None:
    """min |X W - Y|^2 + n * penalty |W|^2 as one least-squares problem with extra rows, in both forms of the solution."""
    rng = np.random.default_rng(width)
    train, labels, test = 3 + 2 * rng.normal(size=(40, width)), rng.integers(0, 3, 40), 3 + 2 * rng.normal(size=(7, width))
    x, z = ((a - train.mean(0)) / train.std(0) for a in (train, test))
    y = np.eye(3)[labels]
    rows = np.concatenate([x, np.sqrt(penalty * 40) * np.eye(width)])
    weights = np.linalg.lstsq(rows, np.concatenate([y - y.mean(0), np.zeros((width, 3))]), rcond=None)[0]
    found = probe.ridge(train, labels, test, classes=3, penalty=penalty)
    np.testing.assert_allclose(found, z @ weights + y.mean(0), atol=1e-8)


def test_primal_and_dual_agree() -> None:
    """Repeating the features moves the same problem into the dual form: half the penalty a copy."""
    rng = np.random.default_rng(1)
    train, labels, test = rng.normal(size=(30, 20)), rng.integers(0, 4, 30), rng.normal(size=(9, 20))
    primal = probe.ridge(train, labels, test, classes=4, penalty=0.1)
    dual = probe.ridge(np.tile(train, 2), labels, np.tile(test, 2), classes=4, penalty=0.2)
    np.testing.assert_allclose(primal, dual, atol=1e-8)


def test_accuracy_knows_separable_from_shuffled() -> None:
    """100 % on clusters, chance on shuffled labels, for four classes."""
    rng = np.random.default_rng(2)
    labels, truth = rng.integers(0, 4, 400), rng.integers(0, 4, 400)
    centres = 6 * rng.normal(size=(4, 16))
    train, test = centres[labels] + rng.normal(size=(400, 16)), centres[truth] + rng.normal(size=(400, 16))
    assert probe.accuracy(train, labels, test, truth, classes=4, seed=0) == 100
    shuffled = [probe.accuracy(train, rng.permutation(labels), test, truth, classes=4, seed=s) for s in range(10)]
    assert 15 < np.mean(shuffled) < 35  # 25 by chance; one seed has a deviation of about 8: whole clusters share their fate


def test_features_that_are_not_finite_are_right_about_nothing() -> None:
    """The first class, which the largest of scores without a number would be, is every clip's."""
    train, test, labels = np.random.default_rng(0).normal(size=(20, 3)), np.full((6, 3), np.nan), np.zeros(20, np.int64)
    assert probe.accuracy(train, labels, test, labels[:6], classes=2, seed=0) == 0


def test_penalty_is_chosen_without_the_test_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search sees only training rows, and no row of the held fifth is trained on."""
    calls: list[tuple[set[float], set[float]]] = []
    ridge = probe.ridge
    monkeypatch.setattr(probe, "ridge", lambda train, labels, test, **kw: calls.append((set(train[:, 0]), set(test[:, 0]))) or ridge(train, labels, test, **kw))
    train, test = np.arange(50.0)[:, None], 100 + np.arange(10.0)[:, None]
    probe.accuracy(train, np.arange(50) % 2, test, np.arange(10) % 2, classes=2, seed=0)
    *search, final = calls
    assert len(search) == len(probe.PENALTIES)
    assert all(not (fit & held) and (fit | held) == set(train[:, 0]) and len(held) == 10 for fit, held in search)
    assert final[1] == set(test[:, 0]) and final[0] < set(train[:, 0])


def test_accuracy_is_that_of_a_bootstrap() -> None:
    """Draws and fit by hand: the fifth first, then all rows with repetition; published numbers hang on this order."""
    rng = np.random.default_rng(4)
    train, labels, test, truth = rng.normal(size=(40, 6)), rng.integers(0, 3, 40), rng.normal(size=(90, 6)), rng.integers(0, 3, 90)
    for seed in range(3):
        draw = np.random.default_rng(seed)
        held, rest = np.split(draw.permutation(40), [8])
        right = [(probe.ridge(train[rest], labels[rest], train[held], classes=3, penalty=p).argmax(1) == labels[held]).mean() for p in probe.PENALTIES]
        drawn = draw.choice(40, 40)
        guesses = probe.ridge(train[drawn], labels[drawn], test, classes=3, penalty=probe.PENALTIES[int(np.argmax(right))]).argmax(1)
        assert probe.accuracy(train, labels, test, truth, classes=3, seed=seed) == 100 * np.mean(guesses == truth)


def test_pooling() -> None:
    """The mean of all tokens, or the mean of every time side by side."""
    tokens = jnp.asarray(np.random.default_rng(3).random((2, GRID.tokens, 5)), jnp.float32)
    times = np.asarray(tokens).reshape(2, 2, 12, 5).mean(2)
    np.testing.assert_allclose(probe.pooled(tokens, grid=GRID, pooling="mean"), np.asarray(tokens).mean(1), atol=1e-6)
    np.testing.assert_allclose(probe.pooled(tokens, grid=GRID, pooling="time"), np.concatenate([times[:, 0], times[:, 1]], -1), atol=1e-6)
    with pytest.raises(UserError, match="'max'; allowed are 'mean' and 'time'"):
        probe.pooled(tokens, grid=GRID, pooling="max")


def test_coarse_pixels_are_averages() -> None:
    """A ramp keeps its value at the middle of every block inside the clip; detail finer than a block is averaged away."""
    columns = np.broadcast_to((5 * np.arange(48))[:, None], (1, 8, 48, 48, 3)).astype(np.uint8)
    found = np.asarray(probe.coarse_pixels({"video": jnp.asarray(columns)})).reshape(4, 12, 12, 3)
    middle = 5 * (4 * np.arange(12) + 1.5) / 255
    np.testing.assert_allclose(found[:, :, 1:-1], np.broadcast_to(middle[1:-1, None], (4, 12, 10, 3)), atol=1e-5)
    checker = np.broadcast_to(255 * (np.indices((48, 48)).sum(0) % 2)[..., None], (1, 8, 48, 48, 3)).astype(np.uint8)
    assert np.abs(np.asarray(probe.coarse_pixels({"video": jnp.asarray(checker)})) - 0.5).max() < 0.1


def test_probe_of_separable_clips(tmp_path: pathlib.Path) -> None:
    """Four distinct clips, each with its label: every kind of feature tells them apart, and chance follows the column."""
    found = probe.Probe(label="four", train=32, test=16, seeds=2, batch_size=16).run(context(tmp_path))
    assert found["trained"] == found["untrained"] == found["pixels"] == 100 and found["gain"] == 0
    assert found["chance"] == 25 and found["pixels_std"] == 0


def test_all_kinds_see_the_same_rows(tmp_path: pathlib.Path) -> None:
    """Features and labels of every kind come from the same valid clips in the same order; padding is dropped."""
    toy = context(tmp_path, length=11)
    kinds = {"first": lambda b: b["row"][:, None], "second": lambda b: b["row"][:, None] * 10}
    data = probe.Probe(batch_size=4).collect(toy, kinds, "val", 0)
    assert data["first"][:, 0].tolist() == list(range(11)) and data["second"][:, 0].tolist() == [10 * i for i in range(11)]
    assert data["label"].tolist() == [i % 2 for i in range(11)]


def test_substitutes_do_not_count(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clip that stands in for an unreadable one has features and a label, and would count twice."""
    def read(self: Columns, row: int, /, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
        if row == 2:
            raise decode.DecodeError("2", "decode", "damaged")
        return before(self, row, rng=rng)

    toy, before = context(tmp_path, length=8), Columns.read
    monkeypatch.setattr(Columns, "read", read)
    data = probe.Probe(batch_size=4).collect(toy, {"row": lambda b: b["row"][:, None]}, "val", 0)
    assert data["row"][:, 0].tolist() == [0, 1, 3, 4, 5, 6, 7] and len(data["label"]) == 7


def test_trained_features_are_of_the_given_weights(tmp_path: pathlib.Path) -> None:
    """`trained` follows the context's parameters, `untrained` does not."""
    toy = context(tmp_path)
    broken = dataclasses.replace(toy, params=jax.tree.map(jnp.zeros_like, toy.params))
    object.__setattr__(broken, "length", 32)
    found = probe.Probe(label="four", train=32, test=16, seeds=1, batch_size=16).run(broken)
    assert found["trained"] < 60 and found["untrained"] == 100 and found["gain"] == found["trained"] - 100


def test_unlabelled_clips_are_an_error(tmp_path: pathlib.Path) -> None:
    """-1 would be taken for the last class."""
    with pytest.raises(UserError, match="column 'none' of the index leaves clips of split 'train' unlabelled"):
        probe.Probe(label="none", batch_size=8).collect(context(tmp_path), {}, "train", 8)


# -- pictures ----------------------------------------------------------------------------------------------------------


def composed(normalise: str) -> tuple[dict[str, np.ndarray], float, np.ndarray, masking.Mask, np.ndarray]:
    """Panels and mean squared error of a random prediction, the true pixels [N P], the mask of the clip and the prediction."""
    objective = types.SimpleNamespace(encoder=types.SimpleNamespace(grid=GRID, patch=PATCH), target=targets.Pixels(normalise=normalise))
    rng = np.random.default_rng(8)
    pixels, guess = rng.random((GRID.tokens, 96)).astype(np.float32), rng.normal(size=(12, 96)).astype(np.float32)
    masks = mask([[0, 5, 7, 20]], [list(range(5, 17))], [[0, 1, 0] + [1] * 9])
    row = jax.tree.map(lambda x: x[0], masks)
    panels, total, values = pictures.compose(objective, pixels, guess, row)
    return panels, total / values, pixels, row, guess


@pytest.mark.parametrize("normalise", ["channel", "joint", "none"])
def test_panels(normalise: str) -> None:
    """Visible pixels stay bit for bit, predictions get the true statistics, other cells are grey or hatched."""
    panels, error, pixels, row, guess = composed(normalise)
    cells = {name: tokens_of(video)[0] for name, video in panels.items()}
    assert np.array_equal(cells["input"], pixels)
    rest = np.setdiff1d(np.arange(GRID.tokens), row.visible)
    assert np.array_equal(cells["visible"][row.visible], pixels[row.visible]) and (cells["visible"][rest] == pictures.GREY).all()
    shown = np.asarray(targets.Pixels(normalise=normalise).invert(guess[None], pixels[row.target][None]))[0].clip(0, 1)
    assert np.array_equal(cells["prediction"][row.target], shown)
    assert np.array_equal(cells["pasted"][row.visible], pixels[row.visible])
    hidden = ~np.isin(row.target, row.visible)
    assert np.array_equal(cells["pasted"][row.target[hidden]], shown[hidden])
    assert error == pytest.approx(float(np.mean((shown - pixels[row.target])[hidden] ** 2)))


def test_hatched_cells() -> None:
    """Lines over every cell without a prediction; the pasted panel leaves the visible ones alone."""
    panels, _, _, row, _ = composed("none")
    hatched = {name: {i for i, cell in enumerate(tokens_of(video)[0]) if (cell == np.float32(0.3)).any()} for name, video in panels.items()}
    cells = set(range(GRID.tokens))
    assert hatched["prediction"] == cells - set(row.target.tolist())
    assert hatched["pasted"] == cells - set(row.target.tolist()) - set(row.visible.tolist())
    assert not hatched["input"] and not hatched["visible"]
    lines = tokens_of(panels["prediction"])[0][3]
    assert (lines == np.float32(0.3)).mean() == 0.25 and (lines == pictures.GREY).mean() == 0.75


def test_the_sheet_says_what_is_not_predicted() -> None:
    """Only raw pixels are shown without the caveat."""
    notes = {n: pictures.note(targets.Pixels(normalise=n)) for n in ("none", "channel", "joint")}
    assert notes["none"] == "prediction: pixels"
    assert all("TRUE mean" in notes[n] and "does not predict" in notes[n] for n in ("channel", "joint"))


def test_pictures_are_written(tmp_path: pathlib.Path) -> None:
    """One png and one gif a clip, as many frames as the clip, and a PSNR of the drawn clips."""
    found = pictures.Pictures(clips=3).run(context(tmp_path))
    names = sorted(p.name for p in (tmp_path / "reconstructions").iterdir())
    assert names == [f"step00000007_{i}.{kind}" for i in range(3) for kind in ("gif", "png")]
    with Image.open(tmp_path / "reconstructions" / "step00000007_2.gif") as gif:
        assert gif.n_frames == 4 and gif.size == (4 * 96, 96)
    with Image.open(tmp_path / "reconstructions" / "step00000007_0.png") as png:
        assert png.size == (72 + 4 * 96, 4 * 96 + 18)
    # Normalised predictions near zero are drawn as the mean of uniform noise, whose variance is 1/12: 10.8 dB.
    assert 5 < found["psnr_hidden"] < 11


def test_pictures_of_nothing(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A split of which no clip can be read is a mistake in one line."""
    toy = context(tmp_path, length=5)
    plain = type(toy).sweep
    monkeypatch.setattr(type(toy), "sweep", lambda *a, **kw: (batch | {"fault": jnp.ones_like(batch["fault"])} for batch in plain(*a, **kw)))
    with pytest.raises(UserError, match="^no clip of split 'val' can be read, so there is nothing to draw$"):
        pictures.Pictures(clips=3).run(toy)


def test_headlines_of_a_run(tmp_path: pathlib.Path) -> None:
    """summary.json holds the first and last held-out loss and the primary probe, whatever the evaluators are called."""
    node = configs.load(str(pathlib.Path(__file__).parents[1] / "configs" / "smoke.py"))
    node.evaluators = {"held_out": node.evaluators.reconstruction, "other": node.evaluators.motion, "main": node.evaluators.appearance}
    node.data = configs.spec(sources.NoiseClips, frames=8, size=32, length=64, repeats=4)
    probed = {"trained": 80.0, "untrained": 60.0, "pixels": 40.0, "chance": 25.0}
    lines = [{"step": 0, "held_out/loss": 1.2, "held_out/loss_zero": 0.9, "held_out/loss_trivial": 1.1, "main/trained": 60.0},
             {"step": 10, "loss": 0.8, "clips_per_second": 5.0}, {"step": 15, "clips_per_second": 9.0}, {"step": 20, "clips_per_second": 7.0},
             {"step": 20, "held_out/loss": 0.6, "held_out/loss_zero": 0.9, "held_out/loss_trivial": 1.0}
             | {f"main/{k}": v for k, v in probed.items()} | {f"other/{k}": 0.0 for k in probed}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run_directory.summarise(tmp_path, assemble(node, devices=jax.devices()[:1]), seconds=3.0)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary | {"results": {}} == {
        "steps": 2600, "seconds": 3.0, "clips_per_second": 7.0, "loss_first": 1.2, "loss_last": 0.6, "loss_predict_zero": 0.9, "loss_trivial": 1.0,
        "probe": probed | {"kind": "ridge on mean tokens of the frozen encoder", "label": "appearance", "seeds": 3}, "results": {}}
    assert summary["results"]["main/trained"] == 80.0 and summary["results"]["loss"] == 0.8
