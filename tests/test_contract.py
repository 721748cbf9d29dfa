"""What every recipe owes the trainer, checked for every file under configs/ (base.py aside).

Check 1, shapes and shardings against golden text, runs for every config at full size. The others train the shrunk
config (`tiny.py`, which also says what the author of a recipe has to do) once per distinct objective, model families
and phases, or for every config with --all. --update-golden rewrites the golden texts.
"""

import dataclasses
import difflib
import functools
import itertools
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
import pytest
import runs
import tiny

from videomae_jax import config as configs
from videomae_jax import optim, parallel, step
from videomae_jax.assembly import Assembly, assemble
from videomae_jax.checkpoint import Checkpointer
from videomae_jax.config import spec
from videomae_jax.data import pipeline
from videomae_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
GOLDEN = pathlib.Path(__file__).parent / "golden" / "contract"
NAMES = sorted(p.relative_to(ROOT / "configs").with_suffix("").as_posix() for p in (ROOT / "configs").rglob("*.py")
               if p.name not in ("base.py", "__init__.py"))
ONE, SHARED = (1, 1, 1), (2, 2, 1)
MESHES = ((4, 1, 1), SHARED, (2, 1, 2), (2, 2, 2))
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}  # a few roundings of a sum whose order changes


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`name`: every config; `kind`: the first config of every kind, or with --all every config."""
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", NAMES)
    if "kind" in metafunc.fixturenames:
        first: dict[Any, str] = {}
        for name in NAMES:
            first.setdefault(name if metafunc.config.getoption("--all") else tiny.kind(loaded(name)), name)
        metafunc.parametrize("kind", list(first.values()))


@pytest.fixture(autouse=True, scope="module")
def _forgotten() -> Iterator[None]:
    """What the checks of this module share goes with it."""
    yield
    for cache in (assembled, initial, first_step, trajectory):
        cache.cache_clear()


def loaded(name: str) -> Any:
    """A config file."""
    return configs.load(str(ROOT / "configs" / f"{name}.py"))


# -- what the checks share ------------------------------------------------------------------------------------------


def build(config: Any, mesh: tuple[int, int, int]) -> Assembly:
    """A run on the first devices, as many as the mesh has."""
    config.mesh = dict(zip(parallel.AXES, mesh, strict=True)) | {"replicated": 1.0}
    return assemble(config, trust=tiny.TRUST, devices=jax.devices()[:int(np.prod(mesh))])


@functools.cache
def assembled(name: str, mesh: tuple[int, int, int], dtype: str = "float32", microbatches: int = 1) -> Assembly:
    """The shrunk run of a config."""
    config = tiny.tiny(loaded(name), dtype=dtype)
    config.microbatches = microbatches
    return build(config, mesh)


def host(state: step.TrainState) -> dict[str, Any]:
    """What a checkpoint holds, as numpy arrays."""
    return jax.device_get({"params": state.params, "opt": state.opt, "extra": state.extra, "ema": state.ema})


@functools.cache
def initial(name: str) -> dict[str, Any]:
    """The first state, made once: the random draws of an initialisation compile as long as a step."""
    return host(assembled(name, ONE).create())


def placed(run: Assembly, saved: dict[str, Any]) -> step.TrainState:
    """A state of step 0 on the mesh of a run, in its dtypes."""
    parts = {k: jax.tree.map(lambda x, a: jax.device_put(np.asarray(x, a.dtype), a.sharding), saved[k], getattr(run.abstract, k)) for k in saved}
    return step.TrainState(step=parallel.put(np.int32(0), mesh=run.mesh), rng=run.rng(), **parts)


def host_batches(run: Assembly, *, start: int, host: int = 0, hosts: int = 1) -> Iterator[dict[str, np.ndarray]]:
    """A host's batches from step `start` on: the function of the position that a stream computes in processes and threads."""
    config = run.config
    found = pipeline.Batches(source=run.source, rows=pipeline.Shuffled(len(run.source), config.seed), seed=config.seed,
                             start=start * run.draws * config.batch_size, batch_size=config.batch_size, host=host, hosts=hosts, threads=1)
    try:
        yield from (found[number] for number in itertools.count())
    finally:
        found.close()


def batches(run: Assembly, *, start: int, count: int) -> list[list[dict[str, jax.Array]]]:
    """The batches of `count` steps from step `start` on, each a list of `draws`."""
    return _steps(run, host_batches(run, start=start), count)


def streamed(run: Assembly, *, workers: int, start: int, count: int) -> list[list[dict[str, jax.Array]]]:
    """The same through the stream of a training run."""
    with pipeline.stream(run.source, batch_size=run.config.batch_size, seed=run.config.seed, start=start * run.draws * run.config.batch_size,
                         workers=workers, threads=1) as stream:
        return _steps(run, stream, count)


def _steps(run: Assembly, found: Iterator[dict[str, np.ndarray]], count: int) -> list[list[dict[str, jax.Array]]]:
    return [[parallel.to_device(next(found), mesh=run.mesh) for _ in range(run.draws)] for _ in range(count)]


@dataclasses.dataclass(frozen=True)
class Stepped:
    """One step: its metrics and, per phase, the gradient."""

    metrics: dict[str, np.ndarray]
    gradients: dict[str, Any]


def run_step(run: Assembly, saved: dict[str, Any]) -> Stepped:
    """The first step of a run."""
    state, metrics = run.step()(placed(run, saved), *batches(run, start=0, count=1)[0])
    return Stepped(jax.device_get(metrics), jax.device_get(state.opt))


@functools.cache
def first_step(name: str, mesh: tuple[int, int, int], dtype: str, microbatches: int = 1) -> Stepped:
    """The first step of a config's shrunk run, from the same parameters on every mesh."""
    saved = initial(name)
    if dtype == "float32":
        return run_step(assembled(name, mesh, dtype, microbatches), saved)
    with tiny.double():
        return run_step(assembled(name, mesh, dtype, microbatches), saved)


def assert_same(got: Stepped, want: Stepped, *, tolerance: float) -> None:
    """Loss and gradient norm agree relative to themselves, every gradient leaf relative to the largest gradient of its phase.

    Other metrics get ten times the tolerance: in a sum of nearly equal numbers roundings add up.
    """
    assert got.metrics.keys() == want.metrics.keys()
    for key, value in want.metrics.items():
        bound = tolerance if key.split("/")[-1] in ("loss", "grad_norm") else 10 * tolerance
        np.testing.assert_allclose(got.metrics[key], value, rtol=bound, atol=bound * 1e-3, err_msg=key)
    for phase, tree in want.gradients.items():
        scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(tree))
        assert scale > 0, phase
        for (path, leaf), other in zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(got.gradients[phase]), strict=True):
            assert leaf.dtype == (np.float64 if tolerance < 1e-9 else np.float32)
            worst = np.abs(leaf - other).max() / scale
            assert worst <= tolerance, f"{phase}: gradient of {optim.path_name(path)} differs by {worst:.2g} of the largest gradient"


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """Five steps on data=2, fsdp=2: states 0 to 5 and metrics 1 to 5 on the host, compilations, a checkpoint of step 2."""

    run: Assembly
    step: Any
    states: list[dict[str, Any]]
    metrics: list[dict[str, np.ndarray]]
    compiled: int


@functools.cache
def trajectory(name: str, directory: pathlib.Path) -> Trajectory:
    """Runs it; the checkpoint goes to directory/name."""
    run, compiled = assembled(name, SHARED), 0
    state, train = placed(run, initial(name)), run.step()
    states, metrics = [host(state)], []
    saver = Checkpointer(directory / name)

    drawn = batches(run, start=0, count=5)
    for number, batch in enumerate(drawn, 1):
        with runs.compilations() as found:
            state, values = train(state, *batch)
        compiled += len(found)
        states.append(host(state))
        metrics.append(jax.device_get(values))
        if number == 2:
            saver.save(2, state, meta={"step": 2})
            saver.wait()
    saver.close()
    return Trajectory(run, train, states, metrics, compiled)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Where trajectories save."""
    return tmp_path_factory.mktemp("contract")


def named(tree: Any) -> dict[str, Any]:
    """{"a/b/c": leaf}, attribute names (Adam's mu and nu) included."""
    def name(path: Any) -> str:
        return "/".join(str(getattr(p, "key", getattr(p, "idx", getattr(p, "name", "")))) for p in path)
    return {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


# -- the checks -----------------------------------------------------------------------------------------------------


def test_1_shapes_shardings_and_config_are_the_golden_ones(name: str, request: pytest.FixtureRequest) -> None:
    """Nothing about a published recipe changes unseen, down to the partition of every leaf."""
    text, path = golden(name), GOLDEN / f"{name}.txt"
    if request.config.getoption("--update-golden"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert path.exists(), f"no {path.relative_to(ROOT)}; write it with --update-golden and read it"
    difference = list(difflib.unified_diff(path.read_text().splitlines(), text.splitlines(), "golden", "now", lineterm="", n=0))
    assert not difference, "\n".join(["if this change is meant, --update-golden", *difference])


def test_rules_reach_into_tuples() -> None:
    """Groups of numbers of any depth; what is no number stays."""
    node = ml_collections.ConfigDict({"queue": ((0,), (64, 128)), "frames": (8, 2), "layers": ("first", 12), "depth": 24}, type_safe=False)
    tiny.shrink(node, dtype="float32")
    assert dict(node.items()) == {"queue": ((0,), (16, 16)), "frames": (4, 2), "layers": ("first", 2), "depth": 2}


def test_golden_texts_belong_to_configs() -> None:
    """No text outlives its config."""
    assert {p.relative_to(GOLDEN).with_suffix("").as_posix() for p in GOLDEN.rglob("*.txt")} <= set(NAMES)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_2_loss_and_gradients_do_not_depend_on_the_mesh(kind: str, dtype: str, request: pytest.FixtureRequest) -> None:
    """One device and every split of four give the same loss, gradient norm and gradients.

    Without --all only VideoMAE's kind is compared in both precisions on all meshes, the others in float64, which tells right
    from wrong, on eight devices, split in all three ways at once.
    """
    every = request.config.getoption("--all") or tiny.kind(loaded(kind)) == tiny.kind(loaded("pretrain/vit_b"))
    if dtype == "float32" and not every:
        pytest.skip("float32 runs with --all")
    for mesh in MESHES if every else MESHES[-1:]:
        assert_same(first_step(kind, mesh, dtype), first_step(kind, ONE, dtype), tolerance=TOLERANCE[dtype])


def test_2_notices_a_gradient_scaled_by_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual mistake, a sum where a mean over devices belongs, fails the check above."""
    name, true = NAMES[0], step.gradients
    right = first_step(name, ONE, "float32")

    def scaled(*args: Any, **kw: Any) -> Any:
        grads, out = true(*args, **kw)
        return jax.tree.map(lambda g: 4 * g, grads), out

    monkeypatch.setattr(step, "gradients", scaled)
    wrong = run_step(assembled(name, (4, 1, 1)), initial(name))
    with pytest.raises(AssertionError):
        assert_same(wrong, right, tolerance=TOLERANCE["float32"])
    only_gradients = Stepped(right.metrics, wrong.gradients)
    with pytest.raises(AssertionError, match="of the largest gradient"):
        assert_same(only_gradients, right, tolerance=TOLERANCE["float32"])


def test_3_five_steps_compile_once(kind: str, checkpoints: pathlib.Path) -> None:
    """A second compilation would mean that the state changes shape, dtype or placement from step to step."""
    assert trajectory(kind, checkpoints).compiled == 1


def test_4_exactly_the_trained_leaves_change(kind: str, checkpoints: pathlib.Path) -> None:
    """Every leaf of a phase moves within four steps, in every layer of a stack; all others keep their bits."""
    done = trajectory(kind, checkpoints)
    objective = done.run.objective
    before, after = named(done.states[0]["params"]), named(done.states[4]["params"])
    for path, old in before.items():
        changed = old != after[path]
        if not any(re.fullmatch(p.trains, path) for p in objective.phases()):
            assert not changed.any(), f"no phase trains {path}, and it changed"
        elif not any(re.fullmatch(pattern, path) for pattern in objective.inert):
            assert not (still := unmoved(path, changed)), f"{path} did not change in four steps{f' at {still}' if still != [()] else ''}"
    for pattern in objective.inert:
        assert any(re.fullmatch(pattern, path) for path in before), f"inert pattern {pattern!r} matches nothing"


def unmoved(path: str, changed: np.ndarray) -> list[tuple[int, ...]]:
    """Places, by head and layer where the leaf at `path` has axes of them, at which nothing changed; () is a whole leaf."""
    axes = [0] * path.startswith("heads/") + [axis for axis in [optim.layer_axis(path)] if axis is not None]
    moved = changed.any(axis=tuple(i for i in range(changed.ndim) if i not in axes))
    return [tuple(map(int, place)) for place in np.argwhere(~moved)]


@pytest.mark.parametrize(("path", "still", "places"), [
    ("encoder/stack/attention/q/kernel", np.s_[1], [(1,)]), ("encoder/audio_stack/mlp/fc1/kernel", np.s_[1], [(1,)]),
    ("heads/stack/norm/scale", np.s_[:, 1], [(0, 1), (1, 1), (2, 1)]), ("heads/stack/norm/scale", np.s_[2, 0], [(2, 0)]),
    ("heads/linear/kernel", np.s_[2], [(2,)]), ("encoder/embed/kernel", np.s_[:], [()])])
def test_4_notices_a_layer_and_a_head_that_stand_still(path: str, still: Any, places: list[tuple[int, ...]]) -> None:
    """Of one modality's stack and of the stacks of several heads too; a single number that stands still is none."""
    changed = np.ones((3, 2, 4), bool)
    changed[0, 0, 0] = False
    assert unmoved(path, changed) == []
    changed[still] = False
    assert unmoved(path, changed) == places


@pytest.mark.parametrize("workers", [0, 1])
def test_5_a_restored_run_goes_on_bit_for_bit(kind: str, workers: int, checkpoints: pathlib.Path) -> None:
    """Save at 2, restore, run to 4: the state and metrics of the straight run, also with decoding processes."""
    done = trajectory(kind, checkpoints)
    saver = Checkpointer(checkpoints / kind, read_only=True)
    state = saver.restore(2, done.run.abstract, rng=done.run.rng()).state
    saver.close()
    for number, batch in enumerate(streamed(done.run, workers=1, start=2, count=2) if workers else batches(done.run, start=2, count=2), 2):
        state, metrics = done.step(state, *batch)
        for key, value in done.metrics[number].items():
            np.testing.assert_array_equal(metrics[key], value, err_msg=key)
    want, got = named(done.states[4]), named(host(state))
    assert want.keys() == got.keys()
    for path, value in want.items():
        np.testing.assert_array_equal(got[path], value, err_msg=path)
    assert int(state.step) == 4


def test_5_two_hosts_draw_the_batch_of_one(kind: str) -> None:
    """Joined in the order of the hosts, their blocks are the batch of a single host."""
    first, second, whole = (next(host_batches(assembled(kind, ONE), start=1, host=h, hosts=n)) for h, n in ((0, 2), (1, 2), (0, 1)))
    for key, value in whole.items():
        np.testing.assert_array_equal(np.concatenate([first[key], second[key]]), value, err_msg=key)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_6_two_micro_batches_are_the_batch(kind: str, dtype: str, request: pytest.FixtureRequest) -> None:
    """Accumulation changes neither loss nor gradients; where it would, it is refused."""
    if assembled(kind, SHARED).objective.batch_coupled:
        with pytest.raises(UserError, match="couples the rows"):
            assembled(kind, SHARED, "float32", 2).step()
        return
    if dtype == "float32" and not request.config.getoption("--all"):
        pytest.skip("float32 runs with --all")
    assert_same(first_step(kind, SHARED, dtype, 2), first_step(kind, ONE, dtype), tolerance=TOLERANCE[dtype])


def test_7_features_are_finite_and_without_chance(kind: str) -> None:
    """`represent` gives named, finite features of the documented shapes that do not depend on the place in the stream."""
    run = assembled(kind, ONE)
    state, batch = placed(run, initial(kind)), batches(run, start=0, count=1)[0][0]
    represent = run.evaluator(lambda params, extra, batch: run.objective.represent(params, extra, batch))
    first = represent(state.params, run.seen(state.extra), batch)
    other = represent(state.params, run.seen(state.extra), batch | {"key": batch["key"] + 17})
    assert first
    for features in first.values():
        rows, tokens, width = features.tokens.shape
        assert features.pooled.shape == (rows, width) and features.valid.shape == (rows, tokens) and features.valid.dtype == bool
        assert features.tokens.dtype == features.pooled.dtype == np.float32
        assert np.asarray(features.tokens).std() > 0
    for path, value in named(first).items():
        assert np.isfinite(value).all(), path
        np.testing.assert_array_equal(named(other)[path], value, err_msg=path)


@pytest.mark.slow
def test_8_four_clips_are_learnt_by_heart(kind: str) -> None:
    """With Adam the loss falls below half of what it was at the start."""
    adam = spec(optim.AdamW, schedule=optim.Schedule(base=3e-3, warmup="0", unit=0, shape="constant"), b2=0.99, weight_decay=0.0)
    config = tiny.tiny(loaded(kind), length=4, optimizer=adam)
    config.total, config.ema, config.batch_size = "600", 0.0, 4
    run = build(config, ONE)
    phases = run.objective.phases()
    key = "loss" if any(p.name == "train" for p in phases) else f"{phases[0].name}/loss"
    state, train, losses = run.create(), run.step(), []
    found = host_batches(run, start=0)
    for _ in range(run.total):
        state, metrics = train(state, *_steps(run, found, 1)[0])
        losses.append(metrics[key])
    values = np.asarray(jax.device_get(losses))
    assert values[-20:].mean() < 0.5 * values[:5].mean(), f"{key} {values[:5].mean():.4f} -> {values[-20:].mean():.4f}"


# -- golden text ----------------------------------------------------------------------------------------------------


def golden(name: str) -> str:
    """The resolved config, every leaf of the state at full size on data=2, fsdp=2, tensor=2, and the metrics of a step."""
    config = loaded(name)
    resolved = configs.flat(configs.from_json(configs.to_json(config)))
    config.unlock()
    config.data = tiny.declared(config, length=1000 * config.batch_size)
    run = build(config, (2, 2, 2))
    state, metrics = jax.eval_shape(run.jitted_step(), run.abstract, run.abstract_frozen, *[run.abstract_batch()] * run.draws)
    same = jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype and not b.weak_type, run.abstract, state)
    assert all(jax.tree.leaves(same)), "a step changes the shape or dtype of the state"
    lines = ["# config", *(f"{k} = {v!r}" for k, v in resolved.items())]
    lines += ["", "# fields of an example", *(f"{k} {f.shape} {f.dtype} {f.kind}" for k, f in run.source.fields.items())]
    lines += ["", f"# one epoch of 1000 steps: {run.total} steps", "", "# parameters: shape dtype axes partition | phase: lr scale, weight decay"]
    lines += parameter_lines(run)
    for part in ("opt", "extra", "ema"):
        lines += ["", f"# {part}", *state_lines(run, part)]
    lines += ["", "# frozen", *leaf_lines(named(run.abstract_frozen), {})]
    lines += ["", "# whole over an axis that should split them", *map(str, parallel.dropped_axes(run.boxed, mesh=run.mesh))]
    lines += ["", "# metrics of a step", *(f"{k} {v.shape} {v.dtype}" for k, v in sorted(metrics.items()))]
    return "\n".join(lines) + "\n"


def parameter_lines(run: Assembly) -> list[str]:
    """One line for every parameter."""
    axes = {optim.path_name(p): names for p, names in
            jax.tree_util.tree_leaves_with_path(parallel.logical_axes(run.boxed.params), is_leaf=lambda x: isinstance(x, tuple))}
    treated: dict[str, list[str]] = {}
    for phase in run.objective.phases():
        optimizer = configs.build(run.config.optimizers[phase.optimizer])
        part = optim.select(run.abstract.params, phase.trains)
        decay = getattr(optimizer, "layer_decay", 1.0)
        scales = named(optim.layer_scales(part, decay)) if decay != 1.0 else {}
        for path, decays in named(optim.decays(part)).items():
            scale = np.ravel(scales.get(path, 1.0))
            shown = f"{scale[0]:.6g}" if scale.size == 1 else f"{scale[0]:.6g}..{scale[-1]:.6g}"
            treated.setdefault(path, []).append(f"{phase.name}: {shown}, {getattr(optimizer, 'weight_decay', 0.0) if decays else 0.0:g}")
    return [f"{line} axes={axes[path]} | {'; '.join(treated.get(path, ['not trained']))}"
            for path, line in zip(named(run.abstract.params), leaf_lines(named(run.abstract.params), {}), strict=True)]


def state_lines(run: Assembly, part: str) -> list[str]:
    """Leaves of a part of the state; those that look and lie like the parameter that their path ends with are counted."""
    return leaf_lines(named(getattr(run.abstract, part)), named(run.abstract.params))


def leaf_lines(leaves: dict[str, Any], parameters: dict[str, Any]) -> list[str]:
    """path shape dtype partition of every leaf, but those like their parameter as one line for each prefix."""
    lines: dict[str, int] = {}
    for path, leaf in leaves.items():
        twin = next((p for p in parameters if path == p or path.endswith(f"/{p}")), None)
        same = twin is not None and all(getattr(leaf, a) == getattr(parameters[twin], a) for a in ("shape", "dtype", "sharding"))
        line = f"{path[:len(path) - len(twin)]}* as the parameters" if same else f"{path} {leaf.shape} {leaf.dtype} {tuple(leaf.sharding.spec)}"
        lines[line] = lines.get(line, 0) + 1
    return [f"{line}: {count} leaves" if line.endswith("as the parameters") else line for line, count in lines.items()]
