"""The training step: accumulation, phases, schedule, averages, metrics, curricula."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
import toy

from videomae_jax import losses, optim, parallel
from videomae_jax.assembly import Assembly, assemble
from videomae_jax.config import spec
from videomae_jax.errors import UserError
from videomae_jax.objectives.base import Output, Phase, Stage, draws
from videomae_jax.accumulation import check_aux, cut, gradients, join
from videomae_jax.step import init_state, make_train_step

HEARD = np.array([1, 0, 1, 0, 1, 0, 0, 0])  # with two micro-batches all of them lie in the first


def run_of(objective: Any = None, /, *, devices: int = 1, **fields: Any) -> Assembly:
    """The toy assembled."""
    return assemble(toy.run_config(objective, **fields), trust=toy.TRUST, devices=jax.devices()[:devices])


def device(run: Assembly, batch: dict[str, np.ndarray]) -> Any:
    """A batch on the mesh."""
    return parallel.to_device(batch, mesh=run.mesh)


def plain(tree: Any) -> Any:
    """Numpy arrays."""
    return jax.tree.map(np.asarray, tree)


# -- accumulation ---------------------------------------------------------------------------------------------------


def loss_of(objective: toy.Toy, /) -> Any:
    """The toy's loss as `gradients` takes it."""
    return lambda params, rows: objective.loss(params, {}, rows, jax.random.key(0), step=jnp.int32(0), train=True)


def accumulated(microbatches: int, /, **kw: Any) -> tuple[Any, Output]:
    """Gradients of the toy for a batch of 8."""
    params = parallel.unbox(toy.Toy().init(jax.random.key(1), None))
    batch = {k: jnp.asarray(v, jnp.float32 if v.dtype == np.float32 else None) for k, v in toy.batch(8, **kw).items()}  # wide within `double`
    return gradients(loss_of(toy.Toy()), params, batch, microbatches=microbatches, constrain=lambda tree: tree)


@pytest.mark.parametrize("microbatches", [2, 4, 8])
@pytest.mark.parametrize("heard", [HEARD, np.zeros(8)])
def test_accumulation_is_exact_for_terms_of_different_denominators(microbatches: int, heard: np.ndarray) -> None:
    """Also where micro-batches, or the whole batch, hold no row of a term."""
    with tiny.double():
        whole, want = accumulated(1, heard=heard)
        parts, got = accumulated(microbatches, heard=heard)
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path((whole, want)), jax.tree.leaves((parts, got)), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-12, atol=1e-14, err_msg=jax.tree_util.keystr(path))
        assert np.any(whole["right"]["w"] != 0) == heard.any()


def test_the_mean_of_micro_batch_losses_would_be_wrong() -> None:
    """The batch above tells: dividing within each micro-batch and averaging gives another gradient."""
    with tiny.double():
        whole, _ = accumulated(1, heard=HEARD)
        params = parallel.unbox(toy.Toy().init(jax.random.key(1), None))

        def naive(rows: Any) -> Any:
            terms = loss_of(toy.Toy())
            return jax.grad(lambda p: losses.value((t := terms(p, rows).terms), denominators=losses.denominators(t)))(params)

        batch = {k: jnp.asarray(v) for k, v in toy.batch(8, heard=HEARD).items()}
        halves = [naive({k: v[i::2] for k, v in batch.items()}) for i in range(2)]
        mean = (halves[0]["right"]["w"] + halves[1]["right"]["w"]) / 2
        assert np.abs(mean - whole["right"]["w"]).max() > 0.1 * np.abs(whole["right"]["w"]).max()


def test_gradient_and_loss_by_hand() -> None:
    """d/dL of sum |x L - y|^2 / n is 2 x^T (x L - y) / n; the second term counts half, over heard rows only."""
    with tiny.double():
        grads, out = accumulated(2, heard=HEARD)
        params = plain(parallel.unbox(toy.Toy().init(jax.random.key(1), None)))
        batch = toy.batch(8, heard=HEARD)
        x, rows = batch["x"].astype(np.float64), HEARD > 0
        error = x @ params["left"]["w"] - batch["y"]
        np.testing.assert_allclose(grads["left"]["w"], 2 * x.T @ error / 8, rtol=1e-12)
        np.testing.assert_allclose(grads["right"]["w"], x[rows].T @ (x[rows] @ params["right"]["w"]) / 3, rtol=1e-12)
        loud = ((x[rows] @ params["right"]["w"]) ** 2).sum(-1).mean()
        np.testing.assert_allclose(losses.value(out.terms, denominators=losses.denominators(out.terms)), (error**2).sum(-1).mean() + 0.5 * loud, rtol=1e-12)


def test_the_first_pass_runs_no_network() -> None:
    """The denominators alone compile to a program without a single matrix product; the whole has as many as without accumulation."""
    params = parallel.unbox(toy.Toy().init(jax.random.key(1), None))
    batch = {k: jnp.asarray(v) for k, v in toy.batch(1024).items()}

    def products(microbatches: int) -> int:
        fn = jax.jit(lambda p, b: gradients(loss_of(toy.Toy()), p, b, microbatches=microbatches, constrain=lambda t: t))
        return fn.lower(params, batch).compile().as_text().count(" dot(")

    assert products(4) == products(1) > 0


def parted(rows: dict[str, Any], microbatches: int) -> dict[str, Any]:
    """All micro-batches one behind the other, [m B/m ...]."""
    return jax.vmap(lambda i: cut(rows, i, microbatches=microbatches))(jnp.arange(microbatches))


def test_micro_batches_keep_the_rows_of_a_device_and_join_in_order() -> None:
    """Micro-batch i holds rows i, i + m, ...; `join` undoes it."""
    rows = {"a": jnp.arange(24).reshape(12, 2), "b": jnp.arange(12)}
    parts = parted(rows, 3)
    np.testing.assert_array_equal(parts["b"][1], [1, 4, 7, 10])
    for key, value in join(parts).items():
        np.testing.assert_array_equal(value, rows[key])


def test_copies_stay_with_their_decode() -> None:
    """Two copies of six decodes: micro-batch i holds both of decodes i, i + 3, and what they share."""
    rows = {"key": jnp.arange(12), "luma": jnp.arange(6)}
    parts = parted(rows, 3)
    np.testing.assert_array_equal(parts["luma"][1], [1, 4])
    np.testing.assert_array_equal(parts["key"][1], [2, 3, 8, 9])
    np.testing.assert_array_equal(join({"key": parts["key"]}, copies=2)["key"], rows["key"])


def test_micro_batches_make_no_second_copy_of_the_batch() -> None:
    """The rows of a micro-batch are cut where they are used: temporaries shrink with the micro-batch, whatever the batch takes."""
    params = parallel.unbox(toy.Toy().init(jax.random.key(1), None))
    batch = {k: jnp.asarray(v) for k, v in toy.batch(4096).items()}
    fn = jax.jit(lambda p, b: gradients(loss_of(toy.Toy()), p, b, microbatches=16, constrain=lambda t: t)[0])
    assert fn.lower(params, batch).compile().memory_analysis().temp_size_in_bytes < 0.5 * parallel.nbytes(batch)


@pytest.mark.parametrize("microbatches", [1, 2, 4])
def test_aux_comes_in_row_order(microbatches: int) -> None:
    """What `update_extra` sees does not depend on micro-batches."""
    _, out = accumulated(microbatches)
    np.testing.assert_array_equal(out.aux["key"], np.arange(8))


@pytest.mark.parametrize("leaf", [jnp.zeros(()), jnp.zeros((3, 8)), jnp.zeros((7,))])
@pytest.mark.parametrize("microbatches", [1, 2])
def test_aux_without_rows_is_refused(leaf: Any, microbatches: int) -> None:
    """A statistic of the batch cannot be joined; the error names the leaf, with and without accumulation."""
    @dataclasses.dataclass(frozen=True)
    class Wrong(toy.Toy):
        def loss(self, *args: Any, **kw: Any) -> Output:
            return super().loss(*args, **kw).replace(aux={"mean": leaf})

    run = run_of()
    run = dataclasses.replace(run, objective=Wrong(), config=toy.run_config(microbatches=microbatches))
    with pytest.raises(ValueError, match=r"aux\['mean'\] is .* must begin with the"):
        run.step()(run.create(), device(run, toy.batch(8)))
    if microbatches == 1:
        check_aux({"mean": jnp.zeros((8, 3))}, toy.batch(8))
        coupled = type("Coupled", (Wrong,), {"batch_coupled": True})()
        dataclasses.replace(run, objective=coupled).step().lower(run.abstract, run.abstract_batch())


def test_coupled_rows_refuse_micro_batches() -> None:
    """Accumulation would silently be another loss."""
    run = run_of()
    coupled = type("Coupled", (toy.Toy,), {"batch_coupled": True})()
    with pytest.raises(UserError, match="microbatches=2, but Coupled couples the rows of a batch; allowed is 1"):
        dataclasses.replace(run, objective=coupled, config=toy.run_config(microbatches=2)).step()


@pytest.mark.parametrize("microbatches", [1, 2])
def test_gradients_are_placed_like_their_parameters(microbatches: int) -> None:
    """Every gradient, and the running sum within the loop over micro-batches, is constrained to the partition of its parameter."""
    run = run_of(devices=4, mesh={"data": 2, "fsdp": 2, "tensor": 1}, microbatches=microbatches)
    jaxpr = jax.make_jaxpr(run.jitted_step())(run.abstract, {}, run.abstract_batch())
    found: dict[bool, int] = {True: 0, False: 0}

    def walk(jaxpr: Any, inside: bool) -> None:
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "sharding_constraint" and eqn.params["sharding"] == run.shardings.params["left"]["w"]:
                found[inside] += 1
            for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr") or hasattr(x, "eqns")):
                if hasattr(value, "jaxpr") or hasattr(value, "eqns"):
                    walk(getattr(value, "jaxpr", value), inside or eqn.primitive.name == "scan")

    walk(jaxpr.jaxpr, False)
    assert found == ({False: 2, True: 0} if microbatches == 1 else {False: 2, True: 2})


# -- phases ---------------------------------------------------------------------------------------------------------


def duel(**fields: Any) -> Assembly:
    """Two optimisers with rates of their own, both rising by the step."""
    rate = {"critic": 0.1, "player": 1.0}
    nodes = {k: spec(tiny.Recorded, schedule=optim.Schedule(base=v, warmup="5", unit=0, shape="constant")) for k, v in rate.items()}
    return run_of(toy.Duel(), optimizers=nodes, **fields)


def test_phases_run_in_order_on_updated_parameters_and_fresh_batches() -> None:
    """The critic's three passes and the player's one, by hand; the schedule is read once a step, not once a pass."""
    run = duel()
    assert run.draws == draws(run.objective.phases()) == 4
    state, step = run.create(), run.step()
    left, right = (float(state.params[k]["w"][0, 0]) for k in ("left", "right"))
    others = plain({k: state.params[k]["w"].at[0, 0].set(0) for k in ("left", "right")})
    for number in range(3):
        batches = [toy.batch(8, seed=10 * number + i) for i in range(4)]
        means = [float(b["x"][:, 0].mean(dtype=np.float64)) for b in batches]
        state, metrics = step(state, *[device(run, b) for b in batches])
        rate = number / 4  # warm-up over 5 steps, both ends included
        losses_ = []
        for mean in means[1:]:
            losses_.append(mean * left * right)
            right -= 0.1 * rate * mean * left
        np.testing.assert_allclose(metrics["critic/loss"], losses_[-1], rtol=1e-5)
        np.testing.assert_allclose(metrics["player/loss"], means[0] * left * right, rtol=1e-5)
        np.testing.assert_allclose([metrics["critic/lr"], metrics["player/lr"]], [0.1 * rate, rate], rtol=1e-6)
        np.testing.assert_allclose(metrics["critic/grad_norm"], abs(means[3] * left), rtol=1e-5)
        left -= rate * means[0] * right
        np.testing.assert_allclose([state.params["left"]["w"][0, 0], state.params["right"]["w"][0, 0]], [left, right], rtol=1e-5)
    assert int(state.step) == 3
    for key, value in others.items():
        np.testing.assert_array_equal(np.asarray(state.params[key]["w"].at[0, 0].set(0)), value)


def test_moments_exist_only_for_what_a_phase_trains() -> None:
    """One optimiser state per phase."""
    run = duel()
    assert {k: list(v) for k, v in run.abstract.opt.items()} == {"critic": ["right"], "player": ["left"]}


def test_adam_counts_its_updates() -> None:
    """Three passes in a step are three updates."""
    nodes = {k: spec(optim.AdamW, schedule=optim.Schedule(base=1e-3, warmup="0", unit=0)) for k in ("critic", "player")}
    run = run_of(toy.Duel(), optimizers=nodes)
    state, _ = run.step()(run.create(), *[device(run, toy.batch(8, seed=i)) for i in range(4)])
    assert {k: int(next(s for s in v if isinstance(s, optax.ScaleByAdamState)).count) for k, v in state.opt.items()} == {"critic": 3, "player": 1}


def test_draws_differ_by_step_phase_and_seed_and_repeat_exactly() -> None:
    """Every pass has a key of its own, a function of the run's key and the step alone."""
    run, seen = duel(), []
    for seed in (0, 1, 0):
        again = dataclasses.replace(run, config=toy.run_config(toy.Duel(), seed=seed))
        state, step, values = again.create(), again.step(), []
        for _ in range(2):
            state, metrics = step(state, *[device(run, toy.batch(8, seed=i)) for i in range(4)])
            values += [float(metrics["critic/draw"]), float(metrics["player/draw"])]
        seen.append(values)
    assert len(set(seen[0] + seen[1])) == 8
    assert seen[0] == seen[2]


def test_phases_and_repeats_have_keys_of_their_own() -> None:
    """Of two repeats the last is logged, and it is not the first; two phases of one pass each differ."""
    class Twice(toy.Toy):
        def phases(self) -> tuple[Phase, ...]:
            return Phase("once", self.loss), Phase("again", self.loss), Phase("twice", self.loss, repeats=2)

    run = run_of()
    updates = {name: run.updates["train"] for name in ("once", "again", "twice")}
    state = init_state(Twice(), updates, run.rng(), toy.batch(8), ema=0.0)
    step = make_train_step(Twice(), updates, microbatches=1, ema=0.0, params_sharding=run.shardings.params)
    _, metrics = jax.jit(step)(parallel.unbox(state), {}, device(run, toy.batch(8)))
    drawn = {float(metrics[f"{name}/draw"]) for name in updates}
    key = jax.random.fold_in(jax.random.fold_in(run.rng(), 0), 2)
    assert len(drawn) == 3
    np.testing.assert_allclose(metrics["twice/draw"], jax.random.uniform(jax.random.fold_in(key, 1)), rtol=1e-6)


def test_a_wrong_number_of_batches_is_an_error() -> None:
    """The loop and the phases must agree on how many are drawn."""
    run = duel()
    with pytest.raises(UserError, match="step was given 1 batches; its phases draw 4"):
        run.step()(run.create(), device(run, toy.batch(8)))


@pytest.mark.parametrize(("phases", "count"), [
    ((Phase("a", toy.product),), 1), ((Phase("a", toy.product, data="fresh"),), 1), ((Phase("a", toy.product, repeats=3),), 1),
    ((Phase("a", toy.product), Phase("b", toy.product, repeats=2)), 1), ((Phase("a", toy.product), Phase("b", toy.product, repeats=2, data="fresh")), 3)])
def test_draws(phases: tuple[Phase, ...], count: int) -> None:
    """One batch for all "same" phases, one for each repeat of a "fresh" one."""
    assert draws(phases) == count


def test_mistakes_in_phases_are_named() -> None:
    """Values outside the allowed set, a name used twice, an optimiser or a leaf that is not there."""
    with pytest.raises(UserError, match="data 'other'; allowed are 'same' and 'fresh'"):
        Phase("a", toy.product, data="other")
    with pytest.raises(UserError, match="repeats=0; allowed are 1 and more"):
        Phase("a", toy.product, repeats=0)
    for phases, message in (((Phase("a", toy.product), Phase("a", toy.product)), "named a, a; there is at least one, and names are distinct"),
                            ((Phase("a", toy.product, optimizer="other"),), "phase 'a' wants optimizer 'other'; config.optimizers has main"),
                            ((Phase("a", toy.product, trains="middle/.*"),), "no parameter matches 'middle/")):
        config = toy.run_config()
        with pytest.raises(UserError, match=message), pytest.MonkeyPatch.context() as patch:
            patch.setattr(toy.Toy, "phases", lambda self, phases=phases: phases)
            assemble(config, trust=toy.TRUST, devices=jax.devices()[:1])


# -- averages, metrics, frozen weights, curricula -------------------------------------------------------------------


def test_the_average_follows_the_parameters() -> None:
    """ema <- 0.75 ema + 0.25 params after every step; without it nothing is kept."""
    run = run_of(ema=0.75)
    state, step = run.create(), run.step()
    want = plain(state.params)
    for key, value in state.ema.items():
        np.testing.assert_array_equal(value["w"], want[key]["w"])
    for seed in range(3):
        state, _ = step(state, device(run, toy.batch(8, seed=seed)))
        want = jax.tree.map(lambda a, p: 0.75 * a + 0.25 * np.asarray(p), want, plain(state.params))
    for key, value in want.items():
        np.testing.assert_allclose(state.ema[key]["w"], value["w"], rtol=1e-6)
    assert run_of().create().ema == {}


def test_metrics_are_named_by_phase_and_term() -> None:
    """A phase called "train" has no prefix; terms, the objective's metrics, gradient norm and rate."""
    run = run_of()
    _, metrics = run.step()(run.create(), device(run, toy.batch(8, heard=HEARD)))
    assert set(metrics) == {"loss", "loss_seen", "loss_heard", "rows", "draw", "grad_norm", "lr", "skipped"}
    np.testing.assert_allclose(metrics["loss"], metrics["loss_seen"] + 0.5 * metrics["loss_heard"], rtol=1e-6)
    two = duel()
    _, metrics = jax.eval_shape(two.step(), two.abstract, *[two.abstract_batch()] * two.draws)
    assert set(metrics) == {f"{p}/{k}" for p in ("critic", "player") for k in ("loss", "loss_product", "draw", "grad_norm", "lr", "skipped")}
    assert all(v.shape == () for v in metrics.values())


def test_a_metric_may_not_take_the_name_of_the_steps_own() -> None:
    """Else one of the two would vanish from the log."""
    run = run_of()
    objective = type("Same", (toy.Toy,), {"loss": lambda self, *a, **k: (o := toy.Toy.loss(self, *a, **k)).replace(metrics={"loss_seen": o.metrics["rows"]})})()
    with pytest.raises(ValueError, match="'train' returns metrics named loss_seen, which the step logs itself"):
        dataclasses.replace(run, objective=objective).step()(run.create(), device(run, toy.batch(8)))


def test_frozen_weights_are_seen_and_stay() -> None:
    """The loss reads them from extra["frozen"]; they are no part of the state, and a step leaves their buffers alone."""
    run = run_of(toy.Toy(teacher=True))
    state, step = run.create(), run.step()
    assert set(state.extra) == {"teacher", "number"} and "frozen" in run.seen(state.extra)
    batch = toy.batch(8)
    want = (batch["x"] @ (np.asarray(state.params["left"]["w"]) - 1)) ** 2
    for _ in range(2):
        state, metrics = step(state, device(run, batch))
        if int(state.step) == 1:
            np.testing.assert_allclose(metrics["loss_seen"], want.sum(-1).mean(), rtol=1e-5)
    np.testing.assert_array_equal(run.frozen["target"]["w"], np.ones((toy.WIDTH, toy.WIDTH)))
    assert set(state.extra) == {"teacher", "number"}
    assert (np.asarray(state.extra["number"]) == 2).all()


def test_stages_follow_one_another_by_the_step_of_the_state() -> None:
    """Scale 3 until step 2, 2 until step 4 (half of 8), then 1; in one program, and from any step."""
    run = run_of(toy.Toy(curriculum=(Stage("2", toy.Toy(scale=3.0)), Stage("50%", toy.Toy(scale=2.0)))))
    assert [end for end, _ in run.stages] == [2, 4]
    step, batch = run.step(), device(run, toy.batch(8))
    first = run.create()
    error = (np.asarray(batch["x"]) @ np.asarray(first.params["left"]["w"]) - np.asarray(batch["y"])) ** 2
    for number, scale in enumerate((3, 3, 2, 2, 1, 1)):
        state = jax.tree.map(jnp.copy, first).replace(step=parallel.put(np.int32(number), mesh=run.mesh))
        _, metrics = step(state, batch)
        np.testing.assert_allclose(metrics["loss_seen"], scale * error.sum(-1).mean(), rtol=1e-5)
    assert step.jitted._cache_size() == 1


@pytest.mark.parametrize(("stages", "message"), [
    ((Stage("4", toy.Toy()), Stage("2", toy.Toy())), r"stages end at steps \[4, 2\] of 8"),
    ((Stage("9", toy.Toy()),), r"stages end at steps \[9\] of 8"),
    ((Stage("4", toy.Toy(teacher=True)),), "changes phases or the shapes of the state"),
    ((Stage("4", toy.Duel()),), "changes phases or the shapes of the state")])
def test_stages_that_cannot_follow_one_another_are_refused(stages: tuple[Stage, ...], message: str) -> None:
    """Ends that do not grow, other phases, another state."""
    config = toy.run_config()
    with pytest.raises(UserError, match=message), pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy.Toy, "stages", lambda self: stages)
        assemble(config, trust=toy.TRUST, devices=jax.devices()[:1])
