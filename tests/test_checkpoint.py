"""Checkpoints: what they hold, on which mesh they can be read, and what happens to damaged, failed and half-written ones."""

import functools
import pathlib
import random
import shutil
import time
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import runs

from videomae_jax import agreement, checkpoint, fingerprints, manifest, parallel
from videomae_jax.checkpoint import Checkpointer, DamagedError, load_params, named
from videomae_jax.errors import StorageError, UserError
from videomae_jax.step import TrainState
from videomae_jax.transfer import transfer

# Orbax leaves coroutines behind when a file cannot be read; Python reports them when they are collected.
pytestmark = [pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"), pytest.mark.usefixtures("collected")]
MESHES = {"fsdp": parallel.Layout(data=1, fsdp=8), "mixed": parallel.Layout(data=2, fsdp=2, tensor=2), "one": parallel.Layout(data=1)}


def mesh_of(name: str) -> Any:
    """One of the meshes, over the devices it needs."""
    return MESHES[name].mesh(jax.devices()[:1] if name == "one" else None)


def state(name: str = "one", *, width: int = 16, seed: int = 0, ema: bool = True) -> tuple[TrainState, Any]:
    """A state with leaves of every dtype that is saved, sharded over fsdp, and its abstract form."""
    from jax.sharding import NamedSharding, PartitionSpec

    mesh, rng = mesh_of(name), np.random.default_rng(seed)
    params = {"a": {"kernel": rng.normal(size=(width, 24)).astype(np.float32), "half": rng.normal(size=(24,)).astype(jnp.bfloat16)},
              "b": rng.integers(0, 256, (8, 3), np.uint8)}
    moments = jax.tree.map(lambda x: (2 * x).astype(np.float32), params)
    parts = {"params": params, "opt": {"train": ({"count": np.int32(7)}, moments)}, "extra": {"flags": rng.random(16) < 0.5},
             "ema": jax.tree.map(lambda x: x + 1, params) if ema else {}}

    def place(x: Any) -> jax.Array:
        spec = PartitionSpec("fsdp") if np.ndim(x) and np.shape(x)[0] % mesh.shape["fsdp"] == 0 else PartitionSpec()
        return jax.device_put(x, NamedSharding(mesh, spec))

    found = TrainState(step=place(np.int32(0)), rng=parallel.put(jax.random.key(seed), mesh=mesh), **jax.tree.map(place, parts))
    return found, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), found)


def save(directory: pathlib.Path, steps: tuple[int, ...], /, *, name: str = "one", **kw: Any) -> Checkpointer:
    """Saves a state per step whose seed is the step."""
    saver = Checkpointer(directory, **{"keep_last": 10} | kw)
    for step in steps:
        saver.save(step, state(name, seed=step)[0], meta={"config": "{}", "samples": 4 * step, "step": step})
    saver.wait()
    return saver


def equal(left: TrainState, right: TrainState) -> None:
    """All saved items are equal bit for bit."""
    for item in checkpoint.ITEMS:
        one, two = named(getattr(left, item)), named(getattr(right, item))
        assert one.keys() == two.keys()
        for key, value in one.items():
            assert value.dtype == two[key].dtype
            assert np.asarray(value).tobytes() == np.asarray(two[key]).tobytes(), (item, key)


@pytest.mark.parametrize(("before", "after"), [("fsdp", "one"), ("one", "mixed"), ("mixed", "fsdp")])
def test_restores_on_another_mesh_bit_for_bit(tmp_path: pathlib.Path, before: str, after: str) -> None:
    """Eight devices to one and back: values, placement, step and cursor."""
    saver = save(tmp_path, (3,), name=before)
    wanted, abstract = state(after, seed=3)
    restored = saver.restore(3, abstract, rng=wanted.rng)
    equal(restored.state, wanted)
    assert int(restored.state.step) == 3 and restored.meta["samples"] == 12
    for key, leaf in named(restored.state.params).items():
        assert leaf.sharding == named(wanted.params)[key].sharding
    saver.close()


def test_keeps_the_newest_and_every_nth(tmp_path: pathlib.Path) -> None:
    """keep_last=2 and keep_every=4; a second instance sees the same; read_only removes nothing."""
    saver = save(tmp_path, (1, 2, 3, 4, 5, 6, 7), keep_last=2, keep_every=4)
    assert saver.steps() == [4, 6, 7]
    saver.close()
    (tmp_path / "00000009.orbax-checkpoint-tmp").mkdir()
    reader = Checkpointer(tmp_path, read_only=True)
    assert reader.steps() == [4, 6, 7] and (tmp_path / "00000009.orbax-checkpoint-tmp").exists()
    reader.close()
    again = save(tmp_path, (8,), keep_last=2, keep_every=4)
    assert again.steps() == [4, 7, 8] and not (tmp_path / "00000009.orbax-checkpoint-tmp").exists()
    again.close()
    with pytest.raises(UserError, match="there is no such folder"):
        Checkpointer(tmp_path / "none", read_only=True)


def test_checksum_sees_every_bit_and_no_mesh() -> None:
    """One flipped bit anywhere, a swap of two values and a change of dtype show; the mesh does not."""
    rng = np.random.default_rng(0)
    for dtype in (np.float32, jnp.bfloat16, np.uint8, np.int32, np.bool_, np.float64):
        with jax.enable_x64(dtype == np.float64):
            x = (rng.normal(size=(5, 6, 8)) * 50).astype(dtype)
            known = int(fingerprints.checksum(jnp.asarray(x)))
            for _ in range(30):
                raw = bytearray(x.tobytes())
                place = int(rng.integers(len(raw)))
                raw[place] ^= 1 if dtype == np.bool_ else 1 << int(rng.integers(8))
                assert int(fingerprints.checksum(jnp.asarray(np.frombuffer(raw, dtype).reshape(x.shape)))) != known
    swapped = np.arange(12.0, dtype=np.float32).reshape(3, 4)
    assert int(fingerprints.checksum(jnp.asarray(swapped))) != int(fingerprints.checksum(jnp.asarray(swapped[::-1])))
    assert fingerprints.fingerprints(state("fsdp")[0].params) == fingerprints.fingerprints(state("one")[0].params)


def damage(directory: pathlib.Path, kind: str, rng: random.Random) -> None:
    """Flips a bit of the file that holds an item's values, cuts it, or removes it; or flips a bit of the metadata."""
    item = rng.choice(("params", "opt", "ema"))
    data = max((p for p in (directory / item).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)  # others may be spare copies of an index
    path = directory / "meta" / "metadata" if kind == "metadata" else data
    raw = bytearray(path.read_bytes())
    if kind == "removed":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(raw[: len(raw) // 2])
    else:
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        path.write_bytes(raw)


@pytest.mark.parametrize("kind", ["flipped", "cut", "removed", "metadata"])
def test_damaged_checkpoint_is_passed_over_loudly(tmp_path: pathlib.Path, kind: str) -> None:
    """The one before is taken, the damaged one is set aside, and its step can be saved again; never a wrong value."""
    said: list[str] = []
    passed_over = 0
    for trial in range(4):
        directory = tmp_path / str(trial) / "checkpoints"
        save(directory, (1, 2)).close()
        damage(directory / "00000002", kind, random.Random(trial))
        saver = Checkpointer(directory, keep_last=5, warn=said.append)
        wanted, abstract = state(seed=1)
        restored = saver.latest_good(abstract, rng=wanted.rng)
        equal(restored.state, state(seed=restored.step)[0])
        if restored.step == 1:
            passed_over += 1
            assert "checkpoint 2" in said[-2] and "trying the one before" in said[-2] and "checkpoints_damaged" in said[-1]
            assert saver.steps() == [1] and (tmp_path / str(trial) / "checkpoints_damaged" / "00000002").is_dir()
            saver.save(2, state(seed=2)[0], meta={"config": "{}", "samples": 8, "step": 2})
            saver.wait()
            assert saver.restore(2, abstract, rng=wanted.rng).meta["samples"] == 8
        saver.close()
    assert passed_over == 4


def test_nothing_is_set_aside_while_nothing_is_readable(tmp_path: pathlib.Path) -> None:
    """With all checkpoints damaged the run ends with an error and the files stay: it does not start afresh."""
    directory = tmp_path / "checkpoints"
    save(directory, (1, 2)).close()
    for step in (1, 2):
        damage(directory / f"{step:08d}", "metadata", random.Random(0))
    saver = Checkpointer(directory, warn=lambda line: None)
    with pytest.raises(UserError, match=r"no readable checkpoint in .*; its steps are \[1, 2\]"):
        saver.latest_good(state()[1], rng=state()[0].rng)
    assert saver.steps() == [1, 2]
    saver.close()


@pytest.mark.parametrize("here", [True, False])
def test_metadata_that_one_of_several_cannot_read(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, here: bool) -> None:
    """All of them go back to the step before: the one that cannot, and the others, which are told."""
    said: list[str] = []
    saver, found = save(tmp_path, (1, 2), warn=said.append), []
    if here:
        damage(tmp_path / "00000002", "metadata", random.Random(0))

    def gathered(bad: np.ndarray) -> np.ndarray:
        found.append(bool(bad))
        return np.asarray([bool(bad), not here and len(found) == 1])  # the other process cannot read the newest

    monkeypatch.setattr("jax.experimental.multihost_utils.process_allgather", gathered)
    monkeypatch.setattr(agreement, "anywhere", functools.partial(as_two, agreement.anywhere, monkeypatch))
    assert saver.latest_good(state()[1], rng=state()[0].rng).step == 1
    assert found[0] == here and ("process 1 finds a file" in said[0] or here) and "trying the one before" in said[0]
    saver.close()


def as_two(asked: Any, monkeypatch: pytest.MonkeyPatch, *args: Any, **kw: Any) -> Any:
    """`asked` as one of two processes; the storage layer would wait for the other."""
    with monkeypatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: 2)
        return asked(*args, **kw)


class Late:
    """A second place of the second of two processes, with steps 1 and 2. The first brings 2 back, which the file system shows here `late`."""

    def __init__(self, directory: pathlib.Path, /, *, stale: bool) -> None:
        self.directory, self.stale, self.asked = directory, stale, []
        self.hidden = directory.with_name("hidden") / "00000002"
        shutil.copytree(directory / self.hidden.name, self.hidden)
        if not stale:
            shutil.rmtree(directory / self.hidden.name)

    def steps(self, *, needed: bool) -> list[int]:
        """Both."""
        return [1, 2]

    def fetch(self, step: int, /, *, into: pathlib.Path) -> bool:
        """Only the first process has `into`."""
        self.asked.append(f"fetch {step}")
        return True

    def late(self, seconds: float) -> None:
        """As time goes by."""
        self.hidden.rename(self.directory / self.hidden.name)

    def offer(self, step: int, /) -> None:
        """Nothing."""


@pytest.mark.parametrize("stale", [False, True])
def test_a_step_that_is_brought_back_is_seen_by_all(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, stale: bool) -> None:
    """Where a shared file system shows it late, or still shows an old one: no process takes another step, or part in what the others do not do."""
    directory = tmp_path / "run" / "checkpoints"
    save(directory, (1, 2)).close()
    place, told = Late(directory, stale=stale), [[1], [1, 2]]
    saver = Checkpointer(directory, keep_last=9, warn=lambda line: None, second=place)
    plain = saver._readable
    monkeypatch.setattr(saver, "_readable", lambda step, *a, **kw: [place.asked.append(f"restore {step}"), plain(step, *a, **kw)][1])
    monkeypatch.setattr(parallel, "is_lead", lambda: False)
    monkeypatch.setattr("jax.experimental.multihost_utils.broadcast_one_to_all", lambda mine: np.resize([*told.pop(0), *[-1] * agreement.MOST], len(mine)))
    monkeypatch.setattr("jax.experimental.multihost_utils.process_allgather", lambda bad: np.asarray([False, bool(bad)]))
    monkeypatch.setattr(agreement, "numbers", functools.partial(as_two, agreement.numbers, monkeypatch))
    monkeypatch.setattr(agreement, "time", types.SimpleNamespace(monotonic=time.monotonic, sleep=place.late))
    assert saver.latest_good(state()[1], rng=state()[0].rng).step == 2
    assert place.asked == ["fetch 2", "restore 2"] and not told
    saver.close()


def test_a_lost_process_is_no_damage(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that dies amid a restore breaks a collective of the others: the run is started again, and no checkpoint is passed over."""
    saver = save(tmp_path, (1, 2))

    def check(*_: Any, **__: Any) -> None:
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        raise ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer")

    monkeypatch.setattr(Checkpointer, "check_files", check)
    with pytest.raises(StorageError, match="closed by peer.*all processes have to start again"):
        saver.latest_good(state()[1], rng=state()[0].rng)
    monkeypatch.undo()
    assert saver.steps() == [1, 2]
    saver.close()


def test_arrays_that_are_read_otherwise_than_saved(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are whole and a value that is another: what restores the state, and what loads a part of it, compares the leaves."""
    saver, (wanted, abstract) = save(tmp_path, (1,)), state(seed=1)
    plain = saver._manager.restore

    def restore(step: int, /, *, args: Any) -> dict[str, Any]:
        found = dict(plain(step, args=args).items())
        return found | {"params": found["params"] | {"b": found["params"]["b"] + 1}}

    monkeypatch.setattr(saver._manager, "restore", restore)
    for read in (lambda: saver.restore(1, abstract, rng=wanted.rng), lambda: saver.load(1, item="params")):
        with pytest.raises(DamagedError, match="1 of 3 arrays do not match their checksum, first params/b"):
            read()
    monkeypatch.undo()
    equal(saver.restore(1, abstract, rng=wanted.rng).state, wanted)
    saver.close()


def test_each_process_reads_its_own_share_of_the_files(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two, the second reads the second half: together they read everything."""
    saver, asked = save(tmp_path, (1,)), {}
    meta = saver.meta(1)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(agreement, "anywhere", lambda wrong: wrong)
    monkeypatch.setattr(manifest, "problem", lambda directory, **words: asked.update(words) or "")
    saver.check_files(1, meta)
    monkeypatch.undo()
    assert (asked["part"], asked["parts"]) == (1, 2)
    saver.close()


def test_another_model_is_an_error_that_names_the_leaf(tmp_path: pathlib.Path) -> None:
    """Shapes, missing leaves and another optimiser; it is never taken for damage."""
    saver = save(tmp_path, (1,))
    good, abstract = state()
    with pytest.raises(UserError, match=r"another model: a/kernel is float32 \(16, 24\) there, float32 \(17, 24\) in this config"):
        saver.latest_good(state(width=17)[1], rng=good.rng)
    with pytest.raises(UserError, match=r"another model or optimiser \(opt\): train/1/b is .* there, absent in this config"):
        saver.restore(1, abstract.replace(opt={"train": (abstract.opt["train"][0], {"a": abstract.opt["train"][1]["a"]})}), rng=good.rng)
    with pytest.raises(UserError, match=r"another model or optimiser \(ema\): a/kernel is float32 \(16, 24\) there, float32 \(17, 24\)"):
        saver.restore(1, abstract.replace(ema=state(width=17)[1].ema), rng=good.rng)
    part = saver.restore(1, state(ema=False)[1], rng=good.rng, items=("params",))
    assert isinstance(jax.tree.leaves(part.state.opt)[0], jax.ShapeDtypeStruct)
    saver.close()


@pytest.mark.parametrize("before", [True, False])
def test_averages_may_be_turned_on_and_off(tmp_path: pathlib.Path, before: bool) -> None:
    """A fork that keeps averages from now on starts them at the parameters; one that keeps none leaves them behind."""
    saver = Checkpointer(tmp_path)
    saved, _ = state(seed=1, ema=before)
    saver.save(1, saved, meta={"step": 1})
    saver.wait()
    restored = saver.restore(1, state(ema=not before)[1], rng=saved.rng).state
    equal(restored, saved.replace(ema={} if before else saved.params))
    if not before:
        assert not {id(x) for x in jax.tree.leaves(restored.ema)} & {id(x) for x in jax.tree.leaves(restored.params)}  # both are donated
    saver.close()


def test_failed_save_is_reported_and_the_next_one_succeeds(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk in the background thread: a warning within the run, no half checkpoint, an error only if the last save fails."""
    said: list[str] = []
    saver = save(tmp_path, (1,), warn=said.append)
    before = ocp.JsonCheckpointHandler.finalize

    def full(self: Any, directory: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp.JsonCheckpointHandler, "finalize", full)
    saver.save(2, state(seed=2)[0], meta={"step": 2})
    while not said:
        saver.check()
    assert "checkpoint 2 cannot be written" in said[0] and "No space left on device" in said[0]
    assert saver.steps() == [1]
    with pytest.raises(StorageError, match="the last checkpoint, of step 2, is not written .*No space left.*; its steps are \\[1\\]"):
        saver.wait()
    monkeypatch.setattr(ocp.JsonCheckpointHandler, "finalize", before)
    saver.save(3, state(seed=3)[0], meta={"step": 3})
    saver.wait()
    assert saver.steps() == [1, 3] and len(said) == 1
    saver.close()


def test_load_params_is_checked_too(tmp_path: pathlib.Path) -> None:
    """Newest step by default, averaged weights on request, errors that name what is there."""
    save(tmp_path, (1, 2)).close()
    np.testing.assert_array_equal(load_params(tmp_path)["a"]["kernel"], np.asarray(state(seed=2)[0].params["a"]["kernel"]))
    np.testing.assert_array_equal(load_params(tmp_path, step=1, item="ema")["b"], np.asarray(state(seed=1)[0].ema["b"]))
    with pytest.raises(UserError, match=r"no checkpoint 5 in .*; its steps are \[1, 2\]"):
        load_params(tmp_path, step=5)
    with pytest.raises(UserError, match="has no 'teacher'; it has params, opt, extra, ema"):
        load_params(tmp_path, item="teacher")
    largest = max((p for p in (tmp_path / "00000002" / "params").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    raw = bytearray(largest.read_bytes())
    for place in range(0, len(raw), max(1, len(raw) // 12)):
        changed = bytearray(raw)
        changed[place] ^= 4
        largest.write_bytes(changed)
        try:
            loaded = load_params(tmp_path)
        except DamagedError:
            continue
        raise AssertionError(f"bit 2 of byte {place} is flipped, and {loaded.keys()} were loaded")


def test_transfer_is_strict_both_ways() -> None:
    """Every stray is listed at once; rename, fresh, ignore and adapt resolve them."""
    target = {"encoder": {"a": np.zeros(3), "b": np.zeros((2, 2))}, "head": np.zeros(5)}
    source = {"net": {"a": np.ones(3), "b": np.ones((4, 2))}, "old": np.ones(1), "older": np.ones(1)}
    with pytest.raises(UserError) as error:
        transfer(target, source, rename=[("^net/", "encoder/")])
    for part in ("4 parameters do not transfer", "head is not in the source", "encoder/b is (4, 2) in the source, (2, 2) in the target",
                 "old of the source is not used", "older of the source is not used"):
        assert part in str(error.value)
    found = transfer(target, source, rename=[("^net/", "encoder/")], fresh=["head"], ignore=["old.*"], adapt=lambda path, value, leaf: value[:2])
    assert found["encoder"]["a"].sum() == 3 and found["encoder"]["b"].shape == (2, 2) and found["head"] is target["head"]
    with pytest.raises(UserError, match="1 parameters do not transfer: encoder/a of the source is not used"):
        transfer(target, {"encoder": target["encoder"], "head": target["head"]}, fresh=["encoder/a"])


def test_memory_does_not_grow_with_saves(tmp_path: pathlib.Path) -> None:
    """Twenty saves of 4 MB: the process holds less than ten of them more than after the first five."""
    saver = Checkpointer(tmp_path, keep_last=1)
    big, _ = state(width=16)
    big = big.replace(params={"w": jax.device_put(np.ones((1024, 1024), np.float32), big.params["b"].sharding)}, opt={}, extra={}, ema={})

    def run(steps: range) -> float:
        for step in steps:
            saver.save(step, big, meta={"step": step})
        saver.wait()
        return runs.held()

    early = run(range(1, 6))
    late = run(range(6, 21))
    assert late - early < 10 * 4, f"memory grew from {early:.0f} to {late:.0f} MiB"
    saver.close()
