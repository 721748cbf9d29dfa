"""MARLIN: the guided mask by its published procedure, the critic's losses by hand, two players on one batch, what the evaluator counts."""

import dataclasses
import functools
import math
import pathlib
import types
from typing import Any

import jax
import jax.numpy as jnp
import mapped
import numpy as np
import pytest
import substitutes
import test_forward
import test_gpu_plans
import test_targets
import written
from mapped import value

import videomae_jax
from videomae_jax import config as configs
from videomae_jax import footprint, losses, masking, optim, parallel, part_masks
from videomae_jax.assembly import Assembly, assemble
from videomae_jax.checkpoint import Checkpointer
from videomae_jax.config import spec
from videomae_jax.data import faces, sources
from videomae_jax.data.parts import PartClips
from videomae_jax.errors import UserError
from videomae_jax.evals import parts as part_evals
from videomae_jax.evals.base import Context
from videomae_jax.masking import Grid
from videomae_jax.models import critic, heads, patches, vit
from videomae_jax.objectives import classify
from videomae_jax.objectives.mae import MAE
from videomae_jax.objectives.marlin import MARLIN
from videomae_jax.part_masks import BACKGROUND_FIRST, COMPONENTS_FIRST, SURROUNDINGS_FIRST, Guided
from videomae_jax.step import TrainState

FRAMES, SIZE, PATCH, ROWS = 4, 16, (2, 4, 4), 8
GRID = Grid(2, 4, 4)
ENCODER = vit.Encoder(width=16, depth=1, heads=2, hidden=32, patch=PATCH, frames=FRAMES, size=SIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
OBJECTIVE = MARLIN(encoder=ENCODER, decoder=vit.Decoder(width=16, depth=1, heads=2, hidden=32), encoder_mask=Guided(ratio=0.75),
                   critic=critic.Critic(hidden=24), penalty=10.0)
KEY = jax.random.key(5)
ORDER = jax.jit(Guided.order, static_argnums=0)
CANDIDATES = jax.jit(Guided.candidates, static_argnums=0, static_argnames="grid")
VISIBLE = jax.jit(Guided.visible, static_argnums=0, static_argnames="grid")


def maps(rows: int, /, *, seed: int = 0) -> np.ndarray:
    """Part maps u8 [rows T H W] of blobs: classes 0 to 10 in squares of two pixels."""
    coarse = np.random.default_rng(seed).choice(11, (rows, FRAMES, SIZE // 2, SIZE // 2), p=[0.4, 0.3, *[0.3 / 9] * 9])
    return coarse.repeat(2, 2).repeat(2, 3).astype(np.uint8)


def batch(*, rows: int = ROWS, seed: int = 0, valid: Any = None) -> dict[str, Any]:
    """Noise with part maps."""
    return mapped.batch(maps(rows, seed=seed), seed=seed, valid=valid)


@functools.cache
def initial() -> Any:
    """Parameters with nothing at 0 or 1."""
    return mapped.parameters(OBJECTIVE, batch(rows=1))


MASKS = jax.jit(OBJECTIVE.masks)
PREDICT = jax.jit(lambda params, rows, masks: OBJECTIVE.predict(params, {}, rows, KEY, masks=masks))


@functools.cache
def player(name: str) -> Any:
    """(params, rows, key) -> ({term: value}, {term: gradient}) of a player's loss in training."""
    loss = {"critic": OBJECTIVE.criticise, "train": OBJECTIVE.loss}[name]

    def values(params: Any, rows: Any, key: Any) -> dict[str, Any]:
        out = loss(params, {}, rows, key, step=0, train=True)
        return {name: value(out, name) for name in out.terms}

    return jax.jit(lambda *args: (values(*args), jax.jacrev(values)(*args)))


def prepared(rows: dict[str, Any], key: Any = KEY) -> dict[str, Any]:
    """A batch as the players see it."""
    return rows | {"visible": MASKS(rows, key).visible}


@functools.cache
def padded() -> Any:
    """A prepared batch of which three rows are padding, and what both players make of it: {name: (values, gradients)}."""
    rows = prepared(batch(valid=[True, False, True, True, False, True, True, False]))
    return rows, {name: jax.device_get(player(name)(initial(), rows, KEY)) for name in ("train", "critic")}


# -- the mask ----------------------------------------------------------------------------------------------------------


def published(parts: np.ndarray, order: np.ndarray, guided: Guided, grid: Grid) -> np.ndarray:
    """Candidates bool [t s] of one clip: the loop over the classes of the queue, for every tubelet's first frame, until the share is reached."""
    result, high, wide = [], parts.shape[1] // grid.h, parts.shape[2] // grid.w
    for frame in parts[:: len(parts) // grid.t]:
        seen = np.zeros((grid.h, grid.w), bool)
        for taken in (one for group in np.argsort(order) for one in guided.groups[group]):
            for i in range(grid.h):
                for j in range(grid.w):
                    cell = frame[i * high: (i + 1) * high, j * wide: (j + 1) * wide]
                    seen[i, j] |= bool(set(np.unique(cell)) & set(np.atleast_1d(taken)))
            if seen.sum() >= grid.slice * (1 - guided.ratio):
                break
        result.append(seen.ravel())
    return np.stack(result)


@pytest.mark.parametrize("queue", [BACKGROUND_FIRST, SURROUNDINGS_FIRST, COMPONENTS_FIRST])
@pytest.mark.parametrize("ratio", [0.75, 0.25])
def test_candidates_by_the_published_loop(queue: Any, ratio: float) -> None:
    """Token by token, for clips where the first tier is enough and for clips where it is not; the drawn tokens are candidates."""
    guided, parts = Guided(ratio=ratio, tiers=queue), maps(40)
    parts[:20][parts[:20] == 0] = 1  # no background: further tiers are needed
    keys = jax.random.split(KEY, 40)
    order = ORDER(guided, keys)
    found = np.asarray(CANDIDATES(guided, parts, order, grid=GRID))
    for row in range(40):
        np.testing.assert_array_equal(found[row], published(parts[row], np.asarray(order[row]), guided, GRID), err_msg=str(row))
    visible = np.asarray(VISIBLE(guided, keys, parts, grid=GRID))
    again = jax.vmap(lambda key: jax.random.split(key, 2))(keys)
    mine = np.asarray(CANDIDATES(guided, parts, ORDER(guided, again[:, 0]), grid=GRID)).reshape(40, -1)
    assert visible.shape == (40, guided.count(GRID)) == (40, int(32 * (1 - ratio)))
    assert np.take_along_axis(mine, visible, 1).all() and not mine.all()
    assert (np.diff(visible) > 0).all()


def test_156_of_1568_tokens_are_visible() -> None:
    """Each of 8 times has at least 20 candidates of 196, so 156 can always be drawn."""
    objective = configs.build(configs.load("configs/marlin/b.py").objective)
    example = {"parts": jax.ShapeDtypeStruct((2, 16, 224, 224), np.uint8), "key": jax.ShapeDtypeStruct((2, 2), np.uint32)}
    mask = jax.eval_shape(lambda b: objective.masks(b, KEY), example)
    assert mask.visible.shape == (2, 156) and mask.target.shape == mask.weight.shape == (2, 1412)
    assert objective.counts() == dict(objective.cost().tokens) == {"all": 1568, "visible": 156, "decoded": 1412, "decoder": 1568}
    for ratio in np.arange(0, 1, 0.01):
        guided = Guided(ratio=float(ratio))
        for grid in (Grid(8, 14, 14), Grid(4, 8, 8), Grid(2, 4, 5)):
            least = math.ceil(grid.slice * (1 - ratio) - 1e-9)
            assert grid.t * least >= guided.count(grid)


def test_tiers_in_order_and_components_in_any() -> None:
    """Background before skin before the five components, whose first is each about equally often."""
    order = np.asarray(ORDER(Guided(), jax.random.split(KEY, 2000)))
    assert (order[:, 0] < order[:, 1]).all() and (order[:, 1, None] < order[:, 2:]).all()
    assert np.bincount(order[:, 2:].argmin(1), minlength=5).min() > 320  # 400 +- 18 each
    assert len(Guided(tiers=SURROUNDINGS_FIRST).groups) == 6 and Guided(tiers=COMPONENTS_FIRST).groups[-1] == (0,)


def test_released_order_shows_background_alone_in_a_usual_crop() -> None:
    """The trap of the procedure, on faces of the world: nothing but tokens that touch background; in a tight crop skin too."""
    grid, guided = Grid(2, 14, 14), Guided()
    shares = {}
    for crop in faces.CROPS:
        parts = faces.clip(3, world=faces.Faces(size=112, frames=4, crop=crop), seed=0).parts[None]
        visible = np.asarray(VISIBLE(guided, KEY[None], parts, grid=grid))[0]
        first = parts[0, ::2].reshape(2, 14, 8, 14, 8).transpose(0, 1, 3, 2, 4).reshape(392, 64)
        shares[crop] = [(first[visible] == part).any(1).mean() for part in (0, 1)]
    assert shares["generous"][0] == 1
    assert shares["tight"][0] < 1 and shares["tight"][1] > 0.5


def test_maps_without_face_or_queue() -> None:
    """All background: every token is a candidate. Classes that the queue lacks: there are none, and any tokens are drawn, as many."""
    guided, keys = Guided(ratio=0.75), jax.random.split(KEY, 200)
    nothing = np.zeros((200, FRAMES, SIZE, SIZE), np.uint8)
    assert np.asarray(CANDIDATES(guided, nothing, ORDER(guided, keys), grid=GRID)).all()
    counts = np.bincount(np.asarray(VISIBLE(guided, keys, nothing, grid=GRID)).ravel(), minlength=32)
    assert counts.min() > 25 and counts.max() < 80  # 50 +- 6 each
    strange = Guided(ratio=0.75, tiers=(((9,),), ((10,),)))
    assert not np.asarray(CANDIDATES(strange, nothing, ORDER(strange, keys), grid=GRID)).any()
    assert len(np.unique(np.asarray(VISIBLE(strange, keys, nothing, grid=GRID)))) == 32


def test_only_the_first_frame_of_a_tubelet_is_read() -> None:
    """The second may be anything."""
    parts = maps(2)
    other = parts.copy()
    other[:, 1::2] = 6
    keys = jax.random.split(KEY, 2)
    np.testing.assert_array_equal(*(VISIBLE(Guided(0.75), keys, p, grid=GRID) for p in (parts, other)))
    other[:, 0] = 6
    assert (VISIBLE(Guided(0.75), keys, parts, grid=GRID) != VISIBLE(Guided(0.75), keys, other, grid=GRID)).any()


def test_mistakes_are_refused() -> None:
    """Queues, ratios, decoders and batches that mean nothing."""
    for queue in ((((0,), (0, 1)),), (((0,), ()),), (((0, (1, 0)),),), (((0, ()),),), ()):
        with pytest.raises(UserError, match="each class once"):
            Guided(tiers=queue)
    with pytest.raises(UserError, match="mask ratio 1.5"):
        Guided(ratio=1.5)
    with pytest.raises(UserError, match="RunningCell.*allowed is Hidden"):
        dataclasses.replace(OBJECTIVE, decoder_mask=masking.RunningCell())
    with pytest.raises(UserError, match="penalty -1.0"):
        dataclasses.replace(OBJECTIVE, penalty=-1.0)
    with pytest.raises(UserError, match="needs `parts`.*video"):
        OBJECTIVE.masks({k: v for k, v in batch().items() if k != "parts"}, KEY)


def test_masks_follow_the_place_in_the_stream_and_both_players_see_one() -> None:
    """A row keeps its mask in another batch; what `prepare` drew is what every update gets, whatever its key."""
    rows = batch()
    whole, other = MASKS(rows, KEY), MASKS({k: v[::-1] for k, v in rows.items()}, KEY)
    np.testing.assert_array_equal(whole.visible, other.visible[::-1])
    assert (whole.visible != MASKS(rows | {"key": rows["key"] + 1}, KEY).visible).any()
    whole_batch = jax.jit(lambda rows: OBJECTIVE.prepare(rows, KEY, step=0, train=True))(rows)
    np.testing.assert_array_equal(whole_batch["visible"], whole.visible)
    for key in jax.random.split(KEY):
        again = MASKS(whole_batch, key)
        np.testing.assert_array_equal(again.visible, whole.visible)
        np.testing.assert_array_equal(again.target, whole.target)
    tube = dataclasses.replace(OBJECTIVE, encoder_mask=masking.Random(ratio=0.75, layout="tube"))
    assert tube.counts()["visible"] == tube.masks(rows, KEY).visible.shape[1] == 8


# -- the critic and its losses -----------------------------------------------------------------------------------------


def scored(p: Any, x: np.ndarray) -> np.ndarray:
    """The critic in numpy: linear, leaky ReLU of slope .01, linear without bias."""
    y = x @ p["fc1"]["kernel"] + p["fc1"]["bias"]
    return np.where(y > 0, y, 0.01 * y) @ p["fc2"]["kernel"][:, 0]


def double(tree: Any) -> Any:
    """Float64 of every leaf."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def test_critic_by_a_transcription_in_numpy() -> None:
    """Scores of patches one by one; at the published size 1536-1536-1 with uniform starts of its bounds."""
    x = np.random.default_rng(2).random((2, 5, 96), np.float32)
    found = np.asarray(OBJECTIVE.score(initial(), x))
    np.testing.assert_allclose(found, scored(double(initial()["critic"]), x), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(OBJECTIVE.score(initial(), x[:, 2:3]), found[:, 2:3], rtol=1e-6)
    full = parallel.unbox(critic.Critic(hidden=1536).init(KEY, jnp.zeros((1, 1536)))["params"])
    assert jax.tree.map(jnp.shape, full) == {"fc1": {"kernel": (1536, 1536), "bias": (1536,)}, "fc2": {"kernel": (1536, 1)}}
    for leaf in jax.tree.leaves(full):
        assert 0.95 * 1536**-0.5 < np.abs(leaf).max() <= 1536**-0.5


def test_wasserstein_by_hand() -> None:
    """Scores 1, 4 of what was made and 3, 2 of what is real; the second token counts half."""
    fake, real, weight = jnp.array([[1.0, 4.0, 9.0]]), jnp.array([[3.0, 2.0, 9.0]]), jnp.array([[1.0, 0.5, 0.0]])
    terms = {"w": losses.wasserstein(fake, real, weight=weight)}
    assert float(losses.value(terms, denominators=losses.denominators(terms))) == pytest.approx((-2 + 0.5 * 2) / 1.5)
    terms = {"a": losses.adversarial(fake, weight=weight, coefficient=0.01)}
    assert float(losses.value(terms, denominators=losses.denominators(terms))) == pytest.approx(-0.01 * (1 + 0.5 * 4) / 1.5)


def test_gradient_penalty_by_hand() -> None:
    """score = (3 x0 + 4 x1) c has the gradient norm 5 c: (5 - 1)^2 = 16; |x|^2 / 2 has the norm of the point itself."""
    real, fake = jnp.array([[[0.0, 2.0], [6.0, 8.0]]]), jnp.array([[[0.0, 0.0], [0.0, 0.0]]])
    options = {"share": jnp.array([[0.25, 0.5]]), "weight": jnp.array([[1.0, 1.0]]), "coefficient": 10.0}
    linear = losses.gradient_penalty(lambda x: x @ jnp.array([3.0, 4.0]), real, fake, **options)
    np.testing.assert_allclose(linear.total, [[16.0, 16.0]], rtol=1e-6)
    assert linear.coefficient == 10
    square = losses.gradient_penalty(lambda x: 0.5 * (x * x).sum(-1), real, fake, **options)
    np.testing.assert_allclose(square.total, [[0.25, 16.0]], rtol=1e-6)  # norms .5 and 5
    slope = jax.grad(lambda c: losses.gradient_penalty(lambda x: c * x @ jnp.array([3.0, 4.0]), real, fake, **options).total.sum())(1.0)
    assert float(slope) == pytest.approx(2 * 2 * 4 * 5)  # d/dc of 2 (5 c - 1)^2
    flat = jax.grad(lambda c: losses.gradient_penalty(lambda x: c * x.sum(-1) * 0, real, fake, **options).total.sum())(1.0)
    assert np.isfinite(float(flat))


def test_players_losses_by_a_transcription_in_numpy() -> None:
    """From the predictions and patches of hidden tokens of valid rows alone, in float64."""
    rows, found = padded()
    masks, keep = MASKS(rows, KEY), rows["valid"]
    x = np.asarray(OBJECTIVE.patchify(rows), np.float64)
    predicted = np.asarray(PREDICT(initial(), plain(rows), masks).patches, np.float64)[keep]
    real = np.take_along_axis(x, np.asarray(masks.target)[..., None], 1)[keep]
    c = double(initial()["critic"])
    share = np.stack([jax.random.uniform(key, (24,)) for key in _row_keys(jax.random.split(KEY)[1], rows)])[keep, :, None]
    y = (share * real + (1 - share) * predicted) @ c["fc1"]["kernel"] + c["fc1"]["bias"]
    slope = (np.where(y > 0, 1.0, 0.01) * c["fc2"]["kernel"][:, 0]) @ c["fc1"]["kernel"].T
    wanted = {"train": {"reconstruction": ((predicted - real) ** 2).mean(), "adversarial": -0.01 * scored(c, predicted).mean()},
              "critic": {"wasserstein": scored(c, predicted).mean() - scored(c, real).mean(),
                         "penalty": 10 * ((np.linalg.norm(slope, axis=-1) - 1) ** 2).mean()}}
    for name, terms in wanted.items():
        assert terms.keys() == found[name][0].keys()
        for term, number in terms.items():
            assert float(found[name][0][term]) == pytest.approx(number, rel=2e-5, abs=1e-6), term


def plain(rows: dict[str, Any]) -> dict[str, Any]:
    """What a prediction under given masks reads."""
    return {k: rows[k] for k in ("video", "key", "valid")}


def _row_keys(rng: Any, rows: Any) -> Any:
    return jnp.stack([jax.random.fold_in(jax.random.fold_in(rng, k[0]), k[1]) for k in rows["key"]])


def test_targets_are_raw_pixels() -> None:
    """Values in [0, 1], and the encoder takes them as they are."""
    rows = batch()
    predicted = PREDICT(initial(), plain(rows), MASKS(rows, KEY))
    raw = rows["video"].reshape(ROWS, 2, 2, 4, 4, 4, 4, 3).transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(ROWS, 32, -1) / 255
    np.testing.assert_allclose(predicted.targets, np.take_along_axis(raw, np.asarray(predicted.masks.target)[..., None], 1), atol=1e-6)
    assert configs.build(configs.load("configs/marlin/l.py").objective).encoder.std == (1.0, 1.0, 1.0)


# -- two players -------------------------------------------------------------------------------------------------------


def test_each_players_gradient_reaches_what_it_trains() -> None:
    """The critic's terms leave encoder and decoder at exactly 0; reconstruction leaves the critic; adversarial passes through it to both."""
    _, found = padded()
    assert found["critic"][1].keys() == {"wasserstein", "penalty"} and found["train"][1].keys() == {"reconstruction", "adversarial"}
    for name, slopes in (found["critic"][1] | found["train"][1]).items():
        for place, slope in jax.tree_util.tree_leaves_with_path(slopes):
            path = optim.path_name(place)
            reached = path.startswith("critic/") if name in ("wasserstein", "penalty") else name == "adversarial" or not path.startswith("critic/")
            if (name, path) != ("penalty", "critic/fc1/bias"):  # piecewise linear: the slope does not feel a small shift
                assert (np.abs(slope).max() > 0) == reached, f"{name} {path}"


def test_phases_share_the_leaves() -> None:
    """Every leaf has one player."""
    first, second = OBJECTIVE.phases()
    paths = jax.tree.leaves(optim.paths(initial()))
    owners = {path: [p.name for p in (first, second) if path in jax.tree.leaves(optim.paths(optim.select(initial(), p.trains)))] for path in paths}
    assert all(len(o) == 1 for o in owners.values()) and {o[0] for o in owners.values()} == {"critic", "train"}
    assert (first.name, first.optimizer, first.data, second.optimizer) == ("critic", "critic", "same", "main")
    assert [p.repeats for p in dataclasses.replace(OBJECTIVE, critic_steps=3).phases()] == [3, 1]


@functools.cache
def game() -> Assembly:
    """A run with Adam for both players at different rates."""
    config = configs.load("configs/tiny.py")
    config.unlock()
    config.objective = configs.plain(OBJECTIVE)
    config.data = spec(Blobs, frames=FRAMES, size=SIZE, length=16)
    config.eval_data = {}
    for name, rate in (("main", 1e-3), ("critic", 5e-3)):
        config.optimizers[name] = spec(optim.AdamW, schedule=optim.Schedule(base=rate, warmup="0", unit=0, shape="constant"))
    config.update({"total": "8", "batch_size": 8, "ema": 0.0, "evaluators": {}})
    return assemble(config, trust=("test_marlin",), devices=jax.devices()[:1])


@dataclasses.dataclass(frozen=True)
class Blobs(mapped.Mapped):
    """The part maps of `maps`, one seed for each row."""

    def parts(self, row: int, /) -> np.ndarray:
        return maps(1, seed=row)


def opening() -> Any:
    """The state before the first step, which a step may overwrite."""
    opt = {p.name: game().updates[p.name].transform.init(optim.select(initial(), p.trains)) for p in OBJECTIVE.phases()}
    return TrainState(jnp.zeros((), jnp.int32), game().rng(), jax.tree.map(jnp.copy, initial()), opt, {}, {})


@functools.cache
def played() -> Any:
    """The jitted step and host copies of its states 0 to 4."""
    run = game()
    step, state = run.step(), opening()
    states = [jax.device_get((state.params, state.opt))]
    for number in range(4):
        state, metrics = step(state, batch(seed=number))
        states.append(jax.device_get((state.params, state.opt)))
    return step, states, jax.device_get(metrics)


def test_one_step_is_the_game_by_hand() -> None:
    """An update of the critic against the old model, then the model against the new critic, both under the mask drawn first."""
    run, params = game(), initial()
    rng = jax.random.fold_in(run.rng(), 0)
    rows = prepared(batch(seed=0), jax.random.fold_in(rng, 1000))
    for index, phase in enumerate(run.objective.phases()):
        update, state = run.updates[phase.name], run.updates[phase.name].transform.init(optim.select(params, phase.trains))
        for repeat in range(phase.repeats):
            slopes = player(phase.name)(params, rows, jax.random.fold_in(jax.random.fold_in(rng, index), repeat))[1]
            part, slope = (optim.select(tree, phase.trains) for tree in (params, jax.tree.map(lambda *terms: sum(terms), *slopes.values())))
            moves, state = update.transform.update(slope, state, part)
            params = optim.merge(params, jax.tree.map(lambda p, m, rate=update.rate(0): p - rate * m, part, moves))
    stepped = played()[1][1][0]
    for (path, want), got in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(stepped), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5, err_msg=optim.path_name(path))  # Adam's first step divides roundings by their size
    assert {"critic/score_real", "critic/score_fake", "critic/loss_penalty", "loss_adversarial", "loss_reconstruction", "critic/lr"} <= played()[2].keys()


def test_a_game_that_was_saved_goes_on_bit_for_bit(tmp_path: pathlib.Path) -> None:
    """Both players, the moments of both and their counts of updates: save at 2, restore, play to 4."""
    run, (step, states, last) = game(), played()
    state = opening()
    for number in range(2):
        state, _ = step(state, batch(seed=number))
    saver = Checkpointer(tmp_path)
    saver.save(2, state, meta={"step": 2})
    saver.wait()
    state = saver.restore(2, run.abstract, rng=run.rng()).state
    saver.close()
    counts = [int(x) for path, x in jax.tree_util.tree_leaves_with_path(state.opt) if "count" in str(path[-1])]
    assert counts == [2, 2]
    for number in range(2, 4):
        state, metrics = step(state, batch(seed=number))
    for got, want in zip(jax.tree.leaves(jax.device_get((state.params, state.opt))), jax.tree.leaves(states[4]), strict=True):
        np.testing.assert_array_equal(got, want)
    for key, number in last.items():
        np.testing.assert_array_equal(metrics[key], number, err_msg=key)


def test_without_a_penalty_there_is_no_such_term() -> None:
    """As released."""
    released = dataclasses.replace(OBJECTIVE, penalty=0.0)
    out = jax.eval_shape(lambda p: released.criticise(p, {}, batch(), KEY, step=0, train=True), initial())
    assert out.terms.keys() == {"wasserstein"}


@pytest.mark.parametrize("name", ["train", "critic"])
def test_no_grid_of_floats_is_made(name: str) -> None:
    """Pixels that neither player sees stay bytes: no float32 array of a compiled gradient has the values of all clips."""
    loss = {"critic": OBJECTIVE.criticise, "train": OBJECTIVE.loss}[name]

    def total(params: Any, rows: Any) -> Any:
        terms = loss(params, {}, rows, KEY, step=0, train=True).terms
        return losses.value(terms, denominators=losses.denominators(terms))

    counts, found = OBJECTIVE.counts(), test_targets.floats(jax.jit(jax.grad(total)).lower(initial(), prepared(batch())).compile().as_text())
    assert ROWS * counts["decoded"] * ENCODER.values in found and ROWS * counts["all"] * ENCODER.values not in found


# -- the evaluator -----------------------------------------------------------------------------------------------------


def slow(predicted: np.ndarray, real: np.ndarray, parts: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Numbers of the evaluator from whole videos [B T H W C], pixel by pixel."""
    hidden = np.zeros((len(real), 32), bool)
    np.put_along_axis(hidden, target, True, 1)
    area = hidden.reshape(-1, 2, 4, 4).repeat(2, 1).repeat(4, 2).repeat(4, 3)
    errors: dict[str, list[float]] = {"mse": []}
    rough: dict[str, list[list[float]]] = {"sharpness": [[], []], "sharpness_features": [[], []]}
    features = set(range(2, 10))
    for place in np.argwhere(area):
        b, t, i, j = place
        error = float(((predicted[b, t, i, j] - real[b, t, i, j]) ** 2).mean())
        errors["mse"].append(error)
        for name, classes in part_evals.FACE.items():
            if parts[b, t, i, j] in classes:
                errors.setdefault(f"mse_{name}", []).append(error)
        for k, n in ((i + 1, j), (i, j + 1)):
            if k // 4 == i // 4 and n // 4 == j // 4:
                for side, video in enumerate((predicted, real)):
                    jump = float(np.abs(video[b, t, k, n] - video[b, t, i, j]).sum())
                    rough["sharpness"][side].append(jump)
                    if {parts[b, t, i, j], parts[b, t, k, n]} <= features:
                        rough["sharpness_features"][side].append(jump)
    return {k: float(np.mean(v)) for k, v in errors.items()} | {k: sum(a) / sum(b) for k, (a, b) in rough.items()}


class Toy(Context):
    """A context whose evaluation data is in memory."""

    def source(self, split: str, /) -> Any:
        return Blobs(frames=FRAMES, size=SIZE, length=5, split=split)


def test_evaluator_by_a_slow_transcription(tmp_path: pathlib.Path) -> None:
    """Under its own mask, padding left out, over batches of unequal size."""
    toy, mask = Toy(game(), initial(), {}, 7, tmp_path), Guided(ratio=0.75, tiers=COMPONENTS_FIRST)
    found = part_evals.PartReconstruction(batch_size=3, clips=5, mask=mask).run(toy)
    rows = next(iter(toy.sweep(toy.source("val"), batch_size=ROWS)))
    masks = part_masks.draw(toy.rng, rows, encoder=mask, grid=GRID)
    predicted = PREDICT(initial(), plain(rows), masks)
    full = np.zeros((ROWS, 32, 96))
    np.put_along_axis(full, np.asarray(masks.target)[..., None], np.asarray(predicted.patches), 1)
    video = np.asarray(patches.unpatchify(full, grid=GRID, patch=PATCH))
    assert rows["valid"].tolist() == [True] * 5 + [False] * 3
    wanted = slow(video[:5], np.asarray(rows["video"])[:5] / 255, np.asarray(rows["parts"])[:5], np.asarray(masks.target)[:5])
    assert found.keys() == wanted.keys() == {"mse", "sharpness", "sharpness_features", *(f"mse_{name}" for name in part_evals.FACE)}
    for name, number in wanted.items():
        assert found[name] == pytest.approx(number, rel=1e-4), name


def test_evaluator_without_substitutes_and_padding(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors are those of the readable clips, whatever else is shown."""
    toy = Toy(game(), initial(), {}, 7, tmp_path)
    one, other = substitutes.outcomes(monkeypatch, lambda: part_evals.PartReconstruction(batch_size=3, clips=5).run(toy))
    assert one == pytest.approx(other, rel=1e-6)


def test_sharpness_of_known_pictures() -> None:
    """The picture itself has 1, half its contrast .5, its mean 0; a step between patches does not count, one inside does."""
    real = np.random.default_rng(0).random((1, 2, 96))
    parts = np.full((1, 2, 32), 5, np.uint8)
    for predicted, wanted in ((real, 1.0), (0.5 * real + 3, 0.5), (np.full_like(real, 0.3), 0.0)):
        found = part_evals.sums(predicted, real, parts, patch=PATCH)
        assert found["sharpness"] / found["sharpness/of"] == pytest.approx(wanted)
    step = np.zeros((1, 1, 2, 4, 4, 1))
    step[..., 2:, :, :] = 1  # an edge between rows 1 and 2, four pixels wide, in both frames
    assert part_evals.roughness(step, np.ones(step.shape[:-1], bool)) == 8
    inside = np.ones(step.shape[:-1], bool)
    inside[..., 1, :] = False
    assert part_evals.roughness(step, inside) == 0


def test_evaluator_refuses_what_it_cannot_judge(tmp_path: pathlib.Path) -> None:
    """A classifier predicts no patches, normalised targets are no pixels, and clips need maps."""
    classifier = classify.Classify(encoder=ENCODER, head=heads.Classifier(classes=2))
    with pytest.raises(UserError, match="^Classify predicts no hidden patches; allowed are runs of pretraining$"):
        part_evals.PartReconstruction().run(Context(types.SimpleNamespace(objective=classifier), {}, {}, 0, tmp_path))
    config = configs.load("configs/tiny.py")
    config.unlock()
    config.data, config.eval_data = spec(sources.NoiseClips, frames=8, size=64), {}
    run = assemble(config, devices=jax.devices()[:1])
    with pytest.raises(UserError, match="'channel' are no pixels"):
        part_evals.PartReconstruction().run(Context(run, {}, {}, 0, tmp_path))
    config.objective.target.normalise = "none"
    with pytest.raises(UserError, match="NoiseClips gives no `parts`"):
        part_evals.PartReconstruction().run(Context(assemble(config, devices=jax.devices()[:1]), {}, {}, 0, tmp_path))


# -- opened in Python -------------------------------------------------------------------------------------------------


def test_reconstruction_in_python_hides_by_the_parts_given(tmp_path: pathlib.Path) -> None:
    """With parts the mask is that of training, without them a uniform draw; maps of another shape are refused."""
    objective = dataclasses.replace(OBJECTIVE, encoder_mask=Guided(ratio=0.75, tiers=SURROUNDINGS_FIRST))
    model = videomae_jax.load(written.write(tmp_path / "run", objective, source=PartClips))
    video = np.random.default_rng(0).integers(100, 156, (4, FRAMES, SIZE, SIZE, 3), np.uint8)
    parts = np.full((4, FRAMES, SIZE, SIZE), 6, np.uint8)
    parts[:, :, : SIZE // 2] = 1  # skin above the middle, nose below
    panels = [model.reconstruct(video, **more).panels for more in ({"parts": parts}, {})]
    guided, blind = ((p["visible"] == p["input"]).all(-1) for p in panels)
    assert guided[:, :, : SIZE // 2].mean() == 0.5 and not guided[:, :, SIZE // 2:].any()
    assert blind[:, :, SIZE // 2:].any() and blind.mean() == 0.25
    one = model.reconstruct(video[0], parts=parts[0])
    np.testing.assert_array_equal(one.panels["visible"][0], panels[0]["visible"][0])
    for wrong, said in ((parts[..., :8], r"uint8 \(4, 4, 16, 8\)"), (parts.astype(np.float32), r"float32 \(4, 4, 16, 16\)")):
        with pytest.raises(UserError, match=rf"parts of {said}; allowed is uint8 \(4, 4, 16, 16\)"):
            model.reconstruct(video, parts=wrong)


# -- configs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, millions, decoder, hidden", [("s", 22.5, (192, 4, 3), 768), ("b", 87.4, (384, 4, 6), 1536), ("l", 305, (512, 12, 8), 2048)])
def test_released_sizes(name: str, millions: float, decoder: tuple[int, ...], hidden: int) -> None:
    """Encoder parameters as published, which count the fixed positions; decoder, critic, rates, length."""
    config = configs.load(f"configs/marlin/{name}.py")
    objective = configs.build(config.objective)
    shapes = jax.eval_shape(lambda: objective.init(KEY, {}))
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(parallel.unbox(shapes["encoder"]))) + 1568 * objective.encoder.width
    assert count / 1e6 == pytest.approx(millions, abs=0.5 if name == "l" else 0.06)
    own = (count - 1568 * objective.encoder.width) / 1e6
    assert f"The encoder has {own:.1f} million parameters; the published {millions}M count" in pathlib.Path(f"configs/marlin/{name}.py").read_text()
    d = objective.decoder
    assert (d.width, d.depth, d.heads) == decoder and objective.critic.hidden == 4 * d.width == hidden
    assert (objective.coefficient, objective.penalty, objective.critic_steps, config.batch_size, config.total) == (0.01, 0.0, 1, 64, "2000ep")
    for node in (config.optimizers.main, config.optimizers.critic):
        player = configs.build(node)
        assert player.schedule.scaled(player.schedule.base, batch=64) == pytest.approx(3.75e-5) and (player.weight_decay, player.b1, player.b2) == (0, 0.9, 0.95)


@pytest.mark.parametrize("steps", [1, 3])
def test_cost_counts_every_product_of_both_players(steps: int) -> None:
    """The multiply-adds of the traced gradients of a step, without a penalty, equal the formula exactly."""
    encoder, decoder = (dataclasses.replace(part, attention="xla") for part in (ENCODER, OBJECTIVE.decoder))  # blocks pad the queries
    objective = dataclasses.replace(OBJECTIVE, encoder=encoder, decoder=decoder, penalty=0.0, critic_steps=steps)
    rows, shapes = batch(rows=1), jax.eval_shape(lambda: parallel.unbox(objective.init(KEY, batch(rows=1))))
    rows |= {"visible": np.arange(objective.counts()["visible"], dtype=np.int32)[None]}
    counted = []
    for phase in objective.phases():
        def loss(part: Any, params: Any, rows: Any, phase: Any = phase) -> Any:
            out = phase.loss(optim.merge(params, part), {}, rows, KEY, step=0, train=True)
            return losses.value(out.terms, denominators=losses.denominators(out.terms))
        counted.append(phase.repeats * test_forward.products(jax.make_jaxpr(jax.grad(loss))(optim.select(shapes, phase.trains), shapes, rows).jaxpr))
    cost = objective.cost()
    assert 2 * sum(counted) == pytest.approx(cost.train_flops, rel=1e-12)
    assert cost.test_flops == pytest.approx(2 * MAE.cost(objective).macs)


def test_arms_of_the_toy_config_differ_as_they_say() -> None:
    """All arms see 32 of 256 tokens; one lacks the critic's pull."""
    config = configs.load("configs/toy/marlin.py")
    suite = configs.build(config.evidence)
    found = {arm.name: configs.build(arm.resolve(config).objective) for arm in suite.arms}
    assert {o.counts()["visible"] for o in found.values()} == {32}
    assert {k: (o.coefficient, o.penalty) for k, o in found.items()} == {
        "guided": (0.01, 10.0), "tube": (0.01, 10.0), "plain": (0.0, 10.0)}
    assert found["tube"].encoder_mask.layout == "tube"
    for arm in suite.arms:
        suite.evaluators(arm, arm.resolve(config))


@pytest.mark.parametrize(("task", "count"), [("appearance", 40), ("action", 35), ("sentiment", 1), ("forgery", 1)])
def test_fine_tuning_asks_for_what_the_head_gives(task: str, count: int) -> None:
    """As many attributes as classes, each column once; Adam as released."""
    config = configs.load(f"configs/marlin/finetune_{task}_b.py")
    objective, player = configs.build(config.objective), configs.build(config.optimizers.main)
    assert objective.head.classes == count == len(config.data.attributes) and objective.pretrained == "runs/marlin_b"
    assert (player.b1, player.b2, player.weight_decay, player.schedule.scaled(player.schedule.base, batch=64)) == (0.5, 0.9, 0.0, 1e-4)


def test_scores_of_the_critic_are_not_rounded_by_devices() -> None:
    """In float32, which TPUs and GPUs multiply in fewer bits by themselves."""
    test_forward.scores_are_exact(critic.Critic(hidden=6), (2, 5, 8))


def test_passes_for_the_critic_count_a_third_in_plans() -> None:
    """Encoder and decoder run forward alone while it learns, twice here."""
    run = test_gpu_plans.of("marlin/b", critic_steps="2")
    n = run.objective.counts()
    assert footprint.widths(run) == pytest.approx((1 + 2 / 3) * (12 * 768 * n["visible"] + 4 * 384 * n["decoder"])) and not footprint.pretrains(run)
