"""Mask counts, patterns and distributions of VideoMAE V1, V2 and MAE-ST."""

import collections
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomae_jax import masking
from videomae_jax.errors import UserError
from videomae_jax.masking import FLOOR, Grid, Hidden, Layout, Random, RandomDecoded, RunningCell

B16 = Grid(8, 14, 14)  # 16 frames of 224 x 224 in tubelets of 2 x 16 x 16
G14 = Grid(8, 16, 16)  # the same clip in tubelets of 2 x 14 x 14
ROWS = 1000
CHI2 = 5  # deviations a sum of squares may lie from its mean; 5 sigma under fixed seeds


def keys(count: int, /) -> jax.Array:
    """One key per row."""
    return jax.random.split(jax.random.key(0), count)


@functools.partial(jax.jit, static_argnames=("encoder", "decoder", "grid"))
def draw(rng: jax.Array, /, *, encoder: Random, decoder: object, grid: Grid) -> masking.Mask:
    """Compiled once per strategy."""
    return masking.draw(rng, encoder=encoder, decoder=decoder, grid=grid)


def drawn(*, encoder: Random = Random(0.9), decoder: object = RunningCell(0.5), grid: Grid = B16) -> masking.Mask:
    """Masks of ROWS rows as numpy arrays."""
    return jax.tree.map(np.asarray, draw(keys(ROWS), encoder=encoder, decoder=decoder, grid=grid))


@pytest.mark.parametrize(("grid", "ratio", "masked", "visible"), [
    (B16, 0.75, 147, 392), (B16, 0.8, 156, 320), (B16, 0.85, 166, 240), (B16, 0.9, 176, 160), (B16, 0.95, 186, 80),
    (G14, 0.75, 192, 512), (G14, 0.8, 204, 416), (G14, 0.85, 217, 312), (G14, 0.9, 230, 208), (G14, 0.95, 243, 104)])
def test_tube_counts(grid: Grid, ratio: float, masked: int, visible: int) -> None:
    """int(ratio * positions) are masked in each of 8 time steps."""
    assert grid.slice - masking.kept(ratio, of=grid.slice) == masked
    assert Random(ratio).count(grid) == visible 


def test_counts_of_mae_st_and_of_the_random_generator() -> None:
    """MAE-ST rounds the visible count down (156 of 1568), V2's generator of random tokens the masked one (157)."""
    assert Random(0.9, "token", "visible").count(B16) == 156
    assert Random(0.9, "token").count(B16) == 157


def test_tube_is_constant_in_time_sorted_and_distinct() -> None:
    """The same positions in every time step, raster order."""
    ids = drawn().visible[:16]
    assert ids.dtype == np.int32 and (np.diff(ids, axis=1) > 0).all() and ids.min() >= 0 and ids.max() < 1568
    steps = ids.reshape(16, 8, 20)
    assert (steps - 196 * np.arange(8)[None, :, None] == steps[:, :1]).all()
    assert len({row.tobytes() for row in steps[:, 0]}) == 16  # rows draw on their own


@pytest.mark.parametrize(("layout", "of", "tokens"), [("tube", 196, 8), ("token", 1568, 1), ("slice", 1568, 1), ("frame", 8, 196)])
def test_random_masks_are_uniform(layout: str, of: int, tokens: int) -> None:
    """Each of the `of` units (of `tokens` tokens each) is visible in a quarter of 1024 rows: sum of the squared standard scores."""
    rows, strategy = 1024, Random(0.75, layout)
    ids = np.asarray(jax.jit(lambda k: strategy.visible(k, grid=B16))(keys(rows)))
    unit = {"tube": ids % 196, "frame": ids // 196}.get(layout, ids)
    counts = np.bincount(unit.ravel(), minlength=of) / tokens
    assert counts.sum() == rows * of / 4
    scores = (counts - rows / 4) ** 2 / (rows / 4 * 3 / 4)
    assert abs(scores.sum() - of) < CHI2 * np.sqrt(2 * of)


def test_pairs_of_tube_positions_are_independent() -> None:
    """Of positions 0 and 1 both are visible with probability k(k-1) / n(n-1)."""
    ids = np.asarray(Random(0.5).visible(keys(8192), grid=Grid(1, 2, 3)))
    assert ids.shape == (8192, 3)
    pairs = collections.Counter(tuple(row) for row in ids.tolist())
    assert set(pairs) == set(itertools.combinations(range(6), 3))
    expected = 8192 / 20
    assert all(abs(n - expected) < CHI2 * np.sqrt(expected) for n in pairs.values())


def test_layouts() -> None:
    """FRAME keeps whole time steps, SLICE a fixed count in each, TOKEN neither."""
    frame = np.asarray(Random(0.5, "frame").visible(keys(4), grid=Grid(4, 14, 14))).reshape(4, 2, 196)
    assert (frame - frame[..., :1] == np.arange(196)).all() and (frame[..., 0] % 196 == 0).all()
    piece = np.asarray(Random(0.9, "slice").visible(keys(4), grid=Grid(4, 14, 14)))
    assert all((np.bincount(row // 196, minlength=4) == 20).all() for row in piece)
    assert (np.diff(piece, axis=1) > 0).all()
    assert (piece.reshape(4, 4, 20) - 196 * np.arange(4)[None, :, None] != piece.reshape(4, 4, 20)[:, :1]).any()
    token = np.asarray(Random(0.9, "token").visible(keys(4), grid=Grid(4, 14, 14)))
    assert any((np.bincount(row // 196, minlength=4) != 20).any() for row in token)


def test_logits_weigh_the_draw() -> None:
    """Gumbel top-k draws without replacement in proportion to exp(logits); FLOOR comes last; no key is the exact top-k."""
    probability = np.array([0.5, 0.25, 0.125, 0.125])
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(probability)), (8192, 1, 4))
    first = np.asarray(masking.select(keys(8192), logits, keep=1, layout=Layout.TOKEN))[:, 0]
    counts = np.bincount(first, minlength=4)
    assert (np.abs(counts - 8192 * probability) < CHI2 * np.sqrt(8192 * probability)).all()
    floored = jnp.zeros((64, 1, 6)).at[..., :3].set(FLOOR)
    ids = np.asarray(masking.select(keys(64), floored, keep=4, layout=Layout.TOKEN))
    assert (ids[:, 1:] == [3, 4, 5]).all() and set(ids[:, 0]) == {0, 1, 2}  # ties on the floor break at random
    exact = masking.select(None, jnp.asarray([[[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]]]), keep=1, layout=Layout.SLICE)
    assert exact.tolist() == [[0, 4]]
    tube = masking.select(None, jnp.asarray([[[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]]]), keep=2, layout=Layout.TUBE)
    assert tube.tolist() == [[1, 2, 4, 5]]


CELLS = {0.5: "10/01 00/11 01/10 11/00", 0.25: "00/01 00/10 01/00 10/00", 0.75: "11/01 10/11 01/11 11/10"}  # 1 = not decoded


@pytest.mark.parametrize("ratio", CELLS)
@pytest.mark.parametrize("grid", [B16, G14, Grid(8, 6, 4)])
def test_running_cell_golden_sequences(ratio: float, grid: Grid) -> None:
    """The cells of the clip that starts at 0, period 4 in time, tiled over the frame; start p is the same sequence p steps on."""
    maps = RunningCell(ratio).maps(grid)
    assert maps.shape == (4, grid.t, grid.h, grid.w) and maps.dtype == bool
    cells = [np.array([[c == "0" for c in line] for line in cell.split("/")]) for cell in CELLS[ratio].split()]
    for start, step in itertools.product(range(4), range(grid.t)):
        assert (maps[start, step] == np.tile(cells[(start + step) % 4], (grid.h // 2, grid.w // 2))).all()
    assert len({m.tobytes() for m in maps}) == 4


@pytest.mark.parametrize(("grid", "ratio", "decoded"), [(B16, 0.25, 1176), (B16, 0.5, 784), (B16, 0.75, 392), (G14, 0.5, 1024)])
def test_running_cell_counts_and_starts(grid: Grid, ratio: float, decoded: int) -> None:
    """Decoded tokens per clip; all four starts are drawn equally often; raster order."""
    target = drawn(decoder=RunningCell(ratio), grid=grid).target
    assert target.shape == (ROWS, decoded) and (np.diff(target, axis=1) > 0).all()
    maps = {np.flatnonzero(m).astype(np.int32).tobytes(): p for p, m in enumerate(RunningCell(ratio).maps(grid))}
    counts = np.bincount([maps[row.tobytes()] for row in target], minlength=4)
    assert (np.abs(counts - ROWS / 4) < CHI2 * np.sqrt(ROWS * 3 / 16)).all()


@pytest.mark.parametrize("grid", [Grid(8, 7, 7), Grid(8, 14, 7), Grid(8, 7, 14)])
def test_running_cell_refuses_odd_grids(grid: Grid) -> None:
    """112 / 16 = 7 positions are not a multiple of the 2 x 2 cell."""
    with pytest.raises(UserError, match=f"{grid.h}x{grid.w} tokens; both must be even"):
        RunningCell(0.5).maps(grid)


@pytest.mark.parametrize(("grid", "ratio", "positions", "duplicates"), [
    (B16, 0.5, 704, 80), (B16, 0.25, 1056, 120), (B16, 0.75, 352, 40), (G14, 0.5, 920, 104)])
def test_loss_positions_are_a_constant(grid: Grid, ratio: float, positions: int, duplicates: int) -> None:
    """Decoded and hidden tokens of 1000 draws: no variance, because a tube meets every phase of the cell equally often."""
    mask = drawn(decoder=RunningCell(ratio), grid=grid)
    weight = mask.weight
    assert weight.dtype == np.float32 and set(np.unique(weight)) == {0, 1}
    assert (weight.sum(1) == positions).all() and ((1 - weight).sum(1) == duplicates).all()
    for row in range(0, ROWS, 250):  # the weight is 0 exactly where the encoder sees the token
        assert (weight[row] == ~np.isin(mask.target[row], mask.visible[row])).all()
    assert mask.visible_valid.all() and mask.visible_valid.shape == mask.visible.shape


def test_loss_positions_vary_when_time_is_no_multiple_of_four() -> None:
    """With 6 time steps the count depends on the draw: the denominator must be counted, not assumed."""
    assert len(set(drawn(grid=Grid(6, 6, 6)).weight.sum(1))) > 1


@pytest.mark.parametrize(("grid", "visible", "selected", "supervised"), [
    (Grid(4, 8, 8), 28, 128, 114), (Grid(8, 8, 8), 56, 256, 228), (Grid(8, 6, 6), 32, 144, 128), (Grid(8, 12, 12), 120, 576, 516)])
def test_small_grids(grid: Grid, visible: int, selected: int, supervised: int) -> None:
    """Small clips: visible, decoded and supervised tokens."""
    mask = drawn(grid=grid)
    assert (mask.visible.shape[1], mask.target.shape[1]) == (visible, selected)
    assert (mask.weight.sum(1) == supervised).all()


@pytest.mark.parametrize(("grid", "hidden"), [(B16, 1408), (G14, 1840)])
def test_v1_decodes_the_complement(grid: Grid, hidden: int) -> None:
    """Every hidden token once, in raster order, with weight 1."""
    mask = drawn(decoder=Hidden(), grid=grid)
    assert mask.target.shape == (ROWS, hidden) and (mask.weight == 1).all()
    for visible, target in zip(mask.visible[:8], mask.target[:8], strict=True):
        assert (target == np.setdiff1d(np.arange(grid.tokens), visible)).all()


def test_decoder_masks_of_the_ablation() -> None:
    """Random tokens and whole frames, half of them decoded, drawn apart from the encoder's mask."""
    mask = drawn(decoder=RandomDecoded(0.5, "token"))
    token = mask.target
    assert token.shape == (ROWS, 784) and (np.diff(token, axis=1) > 0).all()
    frame = drawn(decoder=RandomDecoded(0.5, "frame")).target.reshape(ROWS, 4, 196)
    assert (frame // 196 == frame[..., :1] // 196).all() and len({row.tobytes() for row in frame}) > 1
    supervised = mask.weight.sum(1)
    assert abs(supervised.mean() - 704) < CHI2 * np.sqrt(36 / ROWS)  # hypergeometric: 784 draws, 1408 of 1568 hidden, variance 36
    assert abs(supervised.var() - 36) < CHI2 * 36 * np.sqrt(2 / ROWS)


def test_masks_follow_the_key_of_the_row() -> None:
    """A row's mask depends on its key alone, not on its place or on its neighbours."""
    order = np.array([4, 0, 5])
    whole = drawn()
    part = draw(keys(ROWS)[order], encoder=Random(0.9), decoder=RunningCell(0.5), grid=B16)
    assert (whole.visible[order] == part.visible).all() and (whole.target[order] == part.target).all()


def test_complement_indicator_and_take() -> None:
    """Small cases by hand."""
    ids = jnp.asarray([[1, 3], [0, 4]], jnp.int32)
    assert masking.indicator(ids, tokens=5).tolist() == [[0, 1, 0, 1, 0], [1, 0, 0, 0, 1]]
    assert masking.complement(ids, tokens=5).tolist() == [[0, 2, 4], [1, 2, 3]]
    tokens = jnp.arange(20).reshape(2, 5, 2)
    assert masking.take(tokens, ids=ids).tolist() == [[[2, 3], [6, 7]], [[10, 11], [18, 19]]]


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Random(0.9, "cube"), "layout 'cube'; allowed are token, tube, frame, slice"),
    (lambda: Random(1.0), "ratio 1.0; allowed are 0 to below 1"), (lambda: Random(-0.1), "ratio -0.1"),
    (lambda: RunningCell(0.6), "ratio 0.6; allowed are 0.25, 0.5 and 0.75"),
    (lambda: RandomDecoded(0.5, "cell"), "layout 'cell'"),
    (lambda: masking.kept(0.5, of=8, truncate="up"), "truncate 'up'; allowed are 'masked' and 'visible'"),
    (lambda: masking.select(None, jnp.zeros((1, 2, 3)), keep=4, layout=Layout.TUBE), r"keep 4 of 3 \(tube\); allowed are 1 to 3"),
    (lambda: masking.select(None, jnp.zeros((1, 2, 3)), keep=0, layout=Layout.TOKEN), r"keep 0 of 6 \(token\)")])
def test_mistakes(make: object, message: str) -> None:
    """Each names the value and what is allowed."""
    with pytest.raises(UserError, match=message):
        make()
