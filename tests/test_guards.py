"""An update that went wrong costs itself and nothing else; decided on the devices, whatever the mesh."""

import dataclasses
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs
import tiny
import toy

from videomae_jax import guards, optim, parallel
from videomae_jax.assembly import Assembly, assemble
from videomae_jax.config import build, plain, spec
from videomae_jax.errors import UserError
from videomae_jax.objectives.base import Output

ADAM = optim.AdamW(schedule=optim.Schedule(base=1e-2, warmup="0", unit=0, shape="constant"), clip=1.0)


@dataclasses.dataclass(frozen=True)
class Steep(toy.Toy):
    """Its first term is finite and its gradient is none where a batch's y is 0: the slope of a root at 0."""

    def loss(self, params: Any, *args: Any, **kw: Any) -> Output:
        out, rows = super().loss(params, *args, **kw), args[1]
        term = out.terms["seen"]
        root = jnp.sqrt((rows["y"] ** 2).sum(-1) * params["left"]["w"][0, 0] ** 2)
        return out.replace(terms=out.terms | {"seen": term.replace(total=term.total + root)})


@dataclasses.dataclass(frozen=True)
class Aside(toy.Toy):
    """Its loss alone is none where a batch's y is 0: what makes it so has no gradient."""

    def loss(self, params: Any, *args: Any, **kw: Any) -> Output:
        out, rows = super().loss(params, *args, **kw), args[1]
        term = out.terms["seen"]
        endless = jnp.where((rows["y"] == 0).all(-1), jnp.inf, 0.0)
        return out.replace(terms=out.terms | {"seen": term.replace(total=term.total + jax.lax.stop_gradient(endless))})


def run_of(objective: Any = None, /, *, devices: int = 1, optimizer: Any = ADAM, **fields: Any) -> Assembly:
    """The toy under Adam."""
    config = toy.run_config(objective, **fields)
    config.optimizers = {name: plain(optimizer) for name in ("main", "critic", "player")}
    return assemble(config, trust=(*toy.TRUST, "test_guards"), devices=jax.devices()[:devices])


def batches(run: Assembly, count: int) -> list[dict[str, np.ndarray]]:
    """Different batches of 8 rows."""
    return [toy.batch(8, seed=i) for i in range(count)]


def put(run: Assembly, batch: dict[str, np.ndarray]) -> Any:
    """On the mesh."""
    return parallel.to_device(batch, mesh=run.mesh)


def steps(run: Assembly, fed: list[dict[str, np.ndarray] | None]) -> tuple[Any, list[dict[str, float]]]:
    """The state after these batches; None stands for an update that is left out. Metrics of the steps taken."""
    state, step, logged = run.create(), run.step(), []
    for batch in fed:
        if batch is None:
            state = state.replace(step=parallel.put(np.int32(int(state.step) + 1), mesh=run.mesh))
        else:
            state, metrics = step(state, put(run, batch))
            logged.append({k: float(v) for k, v in metrics.items()})
    return state, logged


def same(one: Any, other: Any) -> None:
    """Every leaf of two states, bit for bit."""
    parts = [jax.tree_util.tree_leaves_with_path((s.step, s.params, s.opt, s.extra, s.ema)) for s in (one, other)]
    for (path, a), (_, b) in zip(*parts, strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), jax.tree_util.keystr(path)


def spoilt(batch: dict[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """A batch whose loss, or whose gradient alone, is not finite; in the last row, which one device holds."""
    found = {k: v.copy() for k, v in batch.items()}
    if kind == "gradient":
        found["y"][-1] = 0
    else:
        found["x"][-1, 0] = np.nan if kind == "nan" else np.inf
    return found


@pytest.mark.parametrize(("kind", "fields"), [
    ("nan", {}), ("inf", {"ema": 0.75}), ("gradient", {}), ("nan", {"microbatches": 4, "ema": 0.5}),
    ("gradient", {"devices": 4, "mesh": {"data": 2, "fsdp": 2, "tensor": 1}})], ids=["nan", "inf-ema", "gradient", "microbatches", "mesh"])
def test_bad_update_costs_exactly_itself(kind: str, fields: dict[str, Any]) -> None:
    """Bit for bit the run without that update: parameters, both moments, Adam's count, average, teacher."""
    run = run_of(Steep() if kind == "gradient" else toy.Toy(teacher="mesh" not in fields and kind == "nan"), **fields)
    fed = batches(run, 4)
    got, logged = steps(run, [*fed[:2], spoilt(fed[2], kind), fed[3]])
    want, _ = steps(run, [*fed[:2], None, fed[3]])
    same(got, want)
    assert [m["skipped"] for m in logged] == [0, 0, 1, 0]
    assert np.isfinite(logged[2]["loss"]) == (kind == "gradient") and not np.isfinite(logged[2]["grad_norm"])
    assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves((got.params, got.opt, got.extra, got.ema)))


def test_a_loss_that_is_none_counts_though_its_gradient_is_finite() -> None:
    """Whatever the loss is made of: bit for bit the run without that update."""
    run = run_of(Aside())
    fed = batches(run, 3)
    got, logged = steps(run, [fed[0], spoilt(fed[1], "gradient"), fed[2]])
    same(got, steps(run, [fed[0], None, fed[2]])[0])
    assert [m["skipped"] for m in logged] == [0, 1, 0] and np.isinf(logged[1]["loss"]) and np.isfinite(logged[1]["grad_norm"])


RANK = """
import hashlib, sys
import jax, numpy as np
import test_guards as t
from videomae_jax import cluster, parallel

process, port = map(int, sys.argv[1:])
cluster.initialize(coordinator=f"localhost:{port}", processes=2, process=process, peer_limit=60)
run = t.run_of(devices=2, mesh={"data": 2, "fsdp": 1, "tensor": 1})
for spoil in (False, True):
    fed = t.batches(run, 4)
    fed[2] = t.spoilt(fed[2], "nan") if spoil else None  # in the last row, which the second process reads
    state, logged = t.steps(run, [b and {k: v[4 * process:4 * process + 4] for k, v in b.items()} for b in fed])
    leaves = [x.addressable_data(0) for x in jax.tree.leaves((state.step, state.params, state.opt))]
    print("result", [m["skipped"] for m in logged], hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in leaves)).hexdigest(), flush=True)
"""


def test_bad_row_of_one_process_costs_all_the_update() -> None:
    """Two processes of jax.distributed agree: neither takes the update, both end with the bits of a run without it."""
    port = str(runs.free_port())
    env = os.environ | runs.THREADS | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    started = [subprocess.Popen([sys.executable, "-c", RANK, str(i), port], env=env, text=True, stdout=subprocess.PIPE) for i in range(2)]
    try:
        said = [[line for line in process.communicate(timeout=300)[0].splitlines() if line.startswith("result")] for process in started]
    finally:
        for process in started:
            process.kill()
    assert said[0] == said[1] and len(said[0]) == 2
    without, spoilt_row = (line.rsplit(" ", 1) for line in said[0])
    assert (without[0], spoilt_row[0]) == ("result [0.0, 0.0, 0.0]", "result [0.0, 0.0, 1.0, 0.0]") and without[1] == spoilt_row[1]


def test_without_the_check_one_batch_would_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batches above do poison a state."""
    monkeypatch.setattr(guards, "finite", lambda loss, norm: jnp.bool_(True))
    for kind in ("nan", "gradient"):
        run = run_of(Steep() if kind == "gradient" else None)
        state, _ = steps(run, [spoilt(batches(run, 1)[0], kind)])
        assert not all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(state.params))


def test_bad_pass_of_one_phase_leaves_the_others() -> None:
    """Of the critic's three passes the second fails: two updates of the critic, one of the player; averages follow the phases that moved."""
    run = run_of(toy.Duel(), ema=0.5)
    fed = batches(run, 4)
    fed[2]["x"][3, 0] = np.nan
    state, metrics = run.step()(run.create(), *[put(run, b) for b in fed])
    assert (int(metrics["critic/skipped"]), int(metrics["player/skipped"])) == (1, 0)
    counts = {k: int(next(s for s in v if isinstance(s, optax.ScaleByAdamState)).count) for k, v in state.opt.items()}
    assert counts == {"critic": 2, "player": 1}
    assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves((state.params, state.opt)))
    spoilt_player, metrics = run.step()(run.create(), *[put(run, b) for b in (fed[2], fed[1], fed[0], fed[3])])
    assert (int(metrics["critic/skipped"]), int(metrics["player/skipped"])) == (0, 1)
    first, right = run.create().params, spoilt_player.params["right"]["w"]
    np.testing.assert_array_equal(spoilt_player.params["left"]["w"], first["left"]["w"])
    np.testing.assert_allclose(spoilt_player.ema["right"]["w"], (first["right"]["w"] + right) / 2, rtol=1e-6)
    assert not np.array_equal(right, first["right"]["w"])


def feed(losses: list[float], *, window: int = 8, sigmas: float = 6.0) -> list[bool]:
    """Verdicts of the filter on a series of losses, of which plain descent makes updates of 1."""
    transform = guards.SpikeFilter(tiny.Recorded(ADAM.schedule), window=window, sigmas=sigmas).transform()
    grads = {"w": jnp.ones(2)}
    state, update, found = transform.init(grads), jax.jit(lambda state, value: transform.update(grads, state, grads, value=value)[1]), []
    for value in losses:
        state = update(state, jnp.float32(value))
        found.append(bool(state.accepted))
    return found


def test_spike_filter_passes_over_spikes_and_forgets_no_number() -> None:
    """Nothing before the window is full; then a spike alone; not the losses after it, nor after one that is not finite."""
    calm = [1 + 0.05 * x for x in np.random.default_rng(0).standard_normal(40)]
    assert feed(calm) == [True] * 40
    assert feed([9.0, *calm[:7]]) == [True] * 8
    assert feed([*calm[:20], 9.0, *calm[20:]]) == [True] * 20 + [False] + [True] * 20
    for poison in (np.nan, np.inf, -np.inf):
        found = feed([*calm[:20], poison, *calm[20:30], 9.0])
        assert found[21:] == [True] * 10 + [False], poison
    assert feed([*calm[:20], *[x + 1 for x in calm[:20]]])[-10:] == [True] * 10  # a lasting change


def test_spiked_update_moves_nothing_and_is_counted() -> None:
    """In the step: parameters, moments and averages stay, weight decay included; the filter itself remembers the loss."""
    run = run_of(optimizer=guards.SpikeFilter(ADAM, window=2, sigmas=3.0), ema=0.5)
    fed = batches(run, 3)
    for batch in fed:
        batch["x"][:], batch["y"][:] = fed[0]["x"], fed[0]["y"]  # losses fall
    loud = {k: v.copy() for k, v in fed[2].items()}
    loud["y"] *= 100
    (before, _), (after, logged) = steps(run, fed), steps(run, [*fed, loud])
    same(after.replace(step=before.step, opt=jax.tree.map(jnp.copy, after.opt["train"].inner)), before.replace(opt=before.opt["train"].inner))
    assert [(m["skipped"], m["spikes"]) for m in logged] == [(0, 0)] * 3 + [(0, 1)]
    assert int(after.opt["train"].count) == 4
    steps(run, [spoilt(fed[0], "nan"), *fed])
    with pytest.raises(UserError, match="spike filter with window=1"):
        guards.SpikeFilter(ADAM, window=1)


def test_filter_is_a_part_of_the_optimiser_in_a_config() -> None:
    """`spec` wraps what a recipe has; the recipe card finds the schedule."""
    node = spec(guards.SpikeFilter, optimizer=plain(ADAM))
    assert node.window == 128 and node.optimizer.clip == 1.0
    run = run_of(optimizer=build(node))
    assert run.abstract.opt["train"].losses.shape == (128,)
    assert guards.SpikeFilter(ADAM).schedule is ADAM.schedule


def test_norms_by_layer_are_those_of_the_slices() -> None:
    """Leaves under a stack give one norm a layer, also those of one modality, and of many heads; all of them together are the norm of the gradient."""
    rng = np.random.default_rng(0)
    def leaf(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    joint, sound, heads = leaf(3, 4, 5), leaf(2, 4, 5), leaf(6, 3, 4, 5)
    grads = {"encoder": {"stack": {"a": {"kernel": joint}}, "audio_stack": {"a": {"kernel": sound}}, "norm": {"scale": leaf(7)}},
             "heads": {"pooler": {"stack": {"a": {"kernel": heads}}, "cross": {"kernel": leaf(6, 4)}}}}
    found = guards.norms(jax.tree.map(jnp.asarray, grads))
    layers = {"encoder/stack": joint, "encoder/audio_stack": sound, "heads/pooler/stack": heads.swapaxes(0, 1)}
    assert found.keys() == {"norm/encoder/norm/scale", "norm/heads/pooler/cross/kernel", *(f"norm/{path}/a/kernel" for path in layers)}
    for path, leaves in layers.items():
        np.testing.assert_allclose(found[f"norm/{path}/a/kernel"], [np.linalg.norm(x) for x in leaves], rtol=1e-6)
    assert found["norm/encoder/norm/scale"].shape == found["norm/heads/pooler/cross/kernel"].shape == ()
    np.testing.assert_allclose(np.sqrt(sum(np.sum(np.square(v)) for v in found.values())), optax.tree.norm(grads), rtol=1e-6)
