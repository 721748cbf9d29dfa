"""Initial and frozen weights from files: strict, placed, told apart by their digest."""

import dataclasses
import errno
import hashlib
import json
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import noise_runs
import numpy as np
import pytest
import toy
import written

from videomae_jax import config as configs
from videomae_jax import agreement, api, externals, head_rows, optim, parallel, records, run_directory
from videomae_jax import train as loop
from videomae_jax.assembly import Assembly, assemble
from videomae_jax.checkpoint import Checkpointer
from videomae_jax.data import clips, parts, planes, sources, transforms
from videomae_jax.errors import StorageError, UserError
from videomae_jax.models import heads, mae_st, probing, resized, vit
from videomae_jax.objectives import mae
from videomae_jax.objectives.base import External
from videomae_jax.objectives.distill import Distill
from videomae_jax.objectives.probe import Probe
from videomae_jax.step import TrainState
from videomae_jax.stopping import Stop

MATRIX = np.arange(16, dtype=np.float32).reshape(4, 4)


def run_of(*weights: External, teacher: bool = True, **fields: Any) -> Assembly:
    """The toy on data=2, fsdp=2."""
    config = toy.run_config(toy.Toy(teacher=teacher, weights=weights), mesh={"data": 2, "fsdp": 2, "tensor": 1}, **fields)
    return assemble(config, trust=toy.TRUST, devices=jax.devices()[:4])


@pytest.fixture
def file(tmp_path: pathlib.Path) -> str:
    """Two matrices in a file."""
    np.savez(tmp_path / "weights.npz", **{"left/w": MATRIX, "right/w": -MATRIX})
    return str(tmp_path / "weights.npz")


def test_initial_weights_reach_parameters_teacher_and_average(file: str) -> None:
    """What starts as a copy of the parameters copies the loaded ones; every leaf keeps its partition."""
    run = run_of(External("params", file), ema=0.5)
    state = run.create()
    for tree in (state.params["left"], state.ema["left"], state.extra["teacher"]):
        np.testing.assert_array_equal(tree["w"], MATRIX)
    np.testing.assert_array_equal(state.params["right"]["w"], -MATRIX)
    for leaf, want in zip(jax.tree.leaves(state), jax.tree.leaves(run.shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(want, leaf.ndim)


def test_the_rest_of_the_state_is_that_of_a_fresh_run(file: str) -> None:
    """Leaves that stay fresh have the values of a run without external weights."""
    plain = run_of(teacher=False).create()
    state = run_of(External("params", file, fresh=("right/.*",), ignore=("right/.*",)), teacher=False).create()
    np.testing.assert_array_equal(state.params["left"]["w"], MATRIX)
    np.testing.assert_array_equal(state.params["right"]["w"], plain.params["right"]["w"])


def test_frozen_weights_are_loaded_beside_the_state(file: str) -> None:
    """Into a part of the tree, renamed; the parameters are not touched, and the step sees the loaded ones."""
    external = External("frozen/target", file, rename=(("left/", ""),), ignore=("right/.*",))
    run = run_of(external)
    np.testing.assert_array_equal(run.frozen["target"]["w"], MATRIX)
    assert run.frozen["target"]["w"].sharding == run.abstract_frozen["target"]["w"].sharding
    assert not run.frozen["target"]["w"].sharding.is_fully_replicated
    state, batch = run.create(), toy.batch(8)
    want = (batch["x"] @ np.asarray(state.params["left"]["w"]) - batch["x"] @ MATRIX) ** 2
    _, metrics = run.step()(state, parallel.to_device(batch, mesh=run.mesh))
    np.testing.assert_allclose(metrics["loss_seen"], want.sum(-1).mean(), rtol=1e-5)
    run.compile()


def test_dry_runs_need_no_files() -> None:
    """Shapes come from the objective alone."""
    run_of(External("frozen/target", "absent.npz")).compile()


@pytest.mark.parametrize("item", ["params", "ema"])
@pytest.mark.parametrize("of_run", [True, False])
def test_checkpoints_of_another_run(tmp_path: pathlib.Path, item: str, of_run: bool) -> None:
    """The newest step of a run directory or of its checkpoints, as they are or averaged."""
    source = run_of(ema=0.5, teacher=False)
    state, step = source.create(), source.step()
    saver = Checkpointer(tmp_path / "checkpoints")
    for number in (1, 2):
        state, _ = step(state, parallel.to_device(toy.batch(8, seed=number), mesh=source.mesh))
        saver.save(number, state, meta={})
    saver.close()
    path = str(tmp_path if of_run else tmp_path / "checkpoints")
    found = run_of(External("params", path, item=item), teacher=False).create()
    np.testing.assert_array_equal(found.params["left"]["w"], getattr(state, item)["left"]["w"])
    digest = externals.digest(pathlib.Path(path))
    assert digest == externals.digest(tmp_path / "checkpoints") and len(digest) == 64
    changed = next(p for p in (tmp_path / "checkpoints" / "00000002").rglob("*") if p.is_file())
    changed.write_bytes(changed.read_bytes() + b"x")
    assert externals.digest(pathlib.Path(path)) != digest


@pytest.mark.parametrize("read", range(3))
def test_a_step_that_is_removed_has_no_digest(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, read: int) -> None:
    """Before or after each of its files is read: the digest of none, or of some of them, would pass for the identity of weights."""
    for step in (1, 2):
        (tmp_path / "checkpoints" / f"{step:08d}").mkdir(parents=True)
        for name in "ab":
            (tmp_path / "checkpoints" / f"{step:08d}" / name).write_text(name)
    hashed, plain = [], hashlib.file_digest

    def file_digest(file: Any, name: str) -> Any:
        found = plain(file, name)
        hashed.append(file.name)
        if len(hashed) == read:
            shutil.rmtree(tmp_path / "checkpoints" / "00000001")
        return found

    assert api.digest(tmp_path, step=1) == api.digest(tmp_path, step=2)
    monkeypatch.setattr(hashlib, "file_digest", file_digest)
    if not read:
        shutil.rmtree(tmp_path / "checkpoints" / "00000001")
    with pytest.raises(StorageError, match="checkpoint 1 in .*checkpoints is there no more: a run in progress removes older ones; repeat the command"):
        api.digest(tmp_path, step=1)
    assert len(hashed) == read


@pytest.mark.parametrize(("external", "message"), [
    (dict(path="absent.npz"), r"'absent.npz' for params are not there; allowed are a run directory"),
    (dict(path="junk.npz"), r"'junk.npz' for params cannot be read \(.*\); allowed are a run directory"),
    (dict(path="weights.pth"), r"'weights.pth' for params are none that can be read; .*`convert` makes a run directory of others"),
    (dict(into="params/middle"), "external into 'params/middle': 'middle' is not among left, right"),
    (dict(into="params/left/w/x"), "'x' is not among an array"),
    (dict(into="params/left"), r"weights.npz into params/left: .*w is not in the source"),
    (dict(rename=(("left", "other"),)), r"weights.npz into params: 2 parameters do not transfer: left/w is not in the source; other/w of the source is not used"),
    (dict(path="small.npz"), r"left/w is \(2, 2\) in the source, \(4, 4\) in the target")])
def test_strays_are_named(external: dict[str, Any], message: str, file: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing file, a missing or unused leaf and a wrong shape each say which."""
    monkeypatch.chdir(tmp_path)
    for name in ("junk.npz", "weights.pth"):
        pathlib.Path(name).write_bytes(b"no archive")
    np.savez("small.npz", **{"left/w": MATRIX[:2, :2], "right/w": MATRIX})
    run = dataclasses.replace(run_of(), objective=toy.Toy(weights=(External(**({"into": "params", "path": file} | external)),)))
    with pytest.raises(UserError, match=message):
        run.create()


def test_an_empty_directory_holds_no_checkpoint(tmp_path: pathlib.Path) -> None:
    """It is named."""
    with pytest.raises(UserError, match=f"{tmp_path} holds no checkpoint"):
        externals.read(External("params", str(tmp_path)))


@pytest.mark.parametrize("field", [{"into": "opt"}, {"label": "perfect"}, {"item": "extra"}])
def test_fields_outside_the_allowed_sets(field: dict[str, str]) -> None:
    """The error lists what is allowed."""
    with pytest.raises(UserError, match="allowed are"):
        External(**({"into": "params", "path": "x"} | field))


def test_the_manifest_tells_files_apart(file: str, tmp_path: pathlib.Path) -> None:
    """{into: path, label, sha256}."""
    np.savez(tmp_path / "other.npz", **{"left/w": MATRIX + 1})
    weights = (External("params", file, label="small"), External("frozen/target", str(tmp_path / "other.npz")))
    found = externals.manifest(externals.settle(weights))
    assert found["params"]["path"] == file and found["params"]["label"] == "small" and found["frozen/target"]["label"] == "real"
    assert len({v["sha256"] for v in found.values()}) == 2


@pytest.mark.parametrize(("column", "label"), [("truth", "oracle"), ("faces", "real")])
def test_the_manifest_tells_whose_part_maps_are_read(column: str, label: str, tmp_path: pathlib.Path) -> None:
    """Those of the synthetic world are exact, all others a parser's; other clips need no outside part."""
    index = tmp_path / "index.parquet"
    index.write_bytes(b"table")
    source = parts.PartClips(str(index), frames=4, size=16, sampling=clips.DenseCentre(stride=2), crop=transforms.CentreCrop(), parts=column)
    for one in (source, planes.PlaneClips(source)):
        assert externals.manifest({}, source=one) == {"data/parts": {"path": str(index), "label": label, "sha256": hashlib.sha256(b"table").hexdigest()}}
    assert externals.manifest({}, source=sources.NoiseClips()) == {}


def test_pretraining_may_start_from_another_run(tmp_path: pathlib.Path) -> None:
    """MAE.initial is such an external."""
    encoder = vit.Encoder(width=8, depth=1, heads=1, hidden=8, patch=(2, 8, 8), frames=2, size=16)
    decoder = vit.Decoder(width=8, depth=1, heads=1, hidden=8)
    initial = External("params/encoder", str(tmp_path), rename=(("encoder/", ""),), ignore=("decoder/.*",))
    assert mae.MAE(encoder, decoder).externals() == ()
    assert mae.MAE(encoder, decoder, initial=initial).externals() == (initial,)


def test_weights_of_another_grid_are_refused(tmp_path: pathlib.Path) -> None:
    """Nothing else tells, for the table is no parameter; the resized encoder, the same grid and learned positions pass."""
    run = written.write(tmp_path / "run", written.pretraining())  # 2 x 4 x 4 tokens
    fields = written.ENCODER | {"frames": 8, "size": 32}
    longer = dataclasses.replace(written.classifier(), encoder=vit.Encoder(**fields), pretrained=str(run))
    with pytest.raises(UserError, match=r"positions of a grid \(2, 4, 4\) \(t, h, w\), and the encoder of params computes those of \(4, 4, 4\): use"):
        externals.check_positions(longer.externals(), encoders={"params": longer.encoder})
    for path in (run, run / "checkpoints"):
        for encoder in (resized.Encoder(**fields, trained=(2, 4, 4)), vit.Encoder(**(fields | {"frames": 4})), mae_st.Encoder(**fields), None):
            externals.check_positions([External("params", str(path))], encoders={"params": encoder})
    with pytest.raises(UserError, match="positions of a grid"):
        externals.check_positions([External("params", str(run / "checkpoints"))], encoders={"params": resized.Encoder(**fields, trained=(8, 14, 14))})
    externals.check_positions([External("params/decoder", str(run))], encoders={"params": longer.encoder})
    config = written.config(longer)
    config.data, config.batch_size = configs.spec(sources.NoiseClips, frames=8, size=32), 8
    with pytest.raises(UserError, match="positions of a grid"):
        assemble(config).create()


def test_frozen_weights_of_another_grid_are_refused(tmp_path: pathlib.Path) -> None:
    """A probe's encoder and a student's teacher of 16 frames with the weights of a run of 8; the resized ones take them."""
    fields = written.ENCODER | {"frames": 16}
    head = heads.Classifier(classes=len(written.CLASSES))
    pretrained = written.write(tmp_path / "pretrained", written.pretraining(frames=8, size=16))  # 4 x 2 x 2 tokens
    finetuned = written.write(tmp_path / "finetuned", written.classifier(frames=8), classes=written.CLASSES)

    def frozen(objective: Any) -> Any:
        config = written.config(objective)
        config.data, config.batch_size = configs.spec(sources.NoiseClips, frames=16, size=16), 8
        return assemble(config).frozen

    def probe_of(encoder: Any) -> Probe:
        return Probe(encoder=encoder, head=probing.Linear(classes=3), weights=str(pretrained))

    def student_of(teacher: Any) -> Distill:
        return Distill(encoder=vit.Encoder(**fields), head=head, teacher=teacher, teacher_head=head, weights=str(finetuned))

    for made, into in ((probe_of, "frozen/encoder"), (student_of, "frozen/teacher")):
        with pytest.raises(UserError, match=rf"positions of a grid \(4, 2, 2\) \(t, h, w\), and the encoder of {into} computes those of \(8, 2, 2\)"):
            frozen(made(vit.Encoder(**fields)))
        assert into.split("/")[1] in frozen(made(resized.Encoder(**fields, trained=(4, 2, 2))))


# -- one checkpoint of a run that goes on ------------------------------------------------------------------------------

PRETRAINING = written.pretraining(size=16)


def grown(run: pathlib.Path, *steps: int) -> pathlib.Path:
    """The pretraining `run` with checkpoints of these steps too, each with weights of its own."""
    if not run.exists():
        written.write(run, PRETRAINING)
        shutil.rmtree(run / "checkpoints")
    saver = Checkpointer(run / "checkpoints", keep_last=9)
    for step in steps:
        saver.save(step, TrainState(jnp.asarray(step), jax.random.key(0), written.tree(PRETRAINING, seed=step), {}, {}, {}), meta={"step": step})
        saver.wait()
    saver.close()
    return run


def probe_of(weights: pathlib.Path, *, total: int = 4, head: Any = probing.Linear(classes=2, count=2)) -> Assembly:
    """Heads on the frozen encoder of a run."""
    grid = configs.spec(optim.Grid, schedule=optim.Schedule(base=1.0, warmup="0", unit=0, shape="constant"), rates=(1.0, 2.0), method="lars")
    objective = Probe(encoder=vit.Encoder(**written.ENCODER), head=head, weights=str(weights), storage="float32")
    config = noise_runs.run_of(objective, optimizer=grid).config
    config.total, config.evaluators, config.eval_data = str(total), {}, {}
    return assemble(config, devices=jax.devices()[:1])


def trained(run: Assembly, directory: pathlib.Path, *, fork: bool = False) -> Assembly:
    """The run as it was claimed, and trained to its end."""
    run = run_directory.claim(run, directory, extend=True, fork=fork, say=lambda line: None)
    assert loop.train(run, directory, stop=Stop(), say=lambda line: None).finished
    return run


def begun(directory: pathlib.Path) -> list[dict[str, Any]]:
    """What every start says of the encoder."""
    return [json.loads(line)["externals"]["frozen/encoder"] for line in (directory / "starts.jsonl").read_text().splitlines()]


def of_step(frozen: Any) -> int:
    """Whose encoder it is."""
    kernel = np.asarray(frozen["encoder"]["embed"]["kernel"])
    return next(step for step in range(9) if np.array_equal(kernel, written.tree(PRETRAINING, seed=step)["encoder"]["embed"]["kernel"]))


def test_a_begun_run_keeps_the_weights_of_others(tmp_path: pathlib.Path) -> None:
    """Opened, evaluated and resumed it reads the step that it was trained with, although the pretraining has gone on; a new run takes the newest."""
    pre, directory = grown(tmp_path / "pre", 1), tmp_path / "run"
    trained(probe_of(pre), directory)
    (first,) = begun(directory)
    assert first["step"] == 1 and first["sha256"] == externals.digest(pre, step=1)
    grown(pre, 2, 3)
    plain = (directory / "starts.jsonl").read_text()
    for record in (first, {k: v for k, v in first.items() if k != "step"} | {"path": str(pre)}):  # as older starts have it
        (directory / "starts.jsonl").write_text(plain.replace(json.dumps(first), json.dumps(record)) + "{cut by a full di")
        assert of_step(api.load(directory).extra["frozen"]) == of_step(run_directory.context(directory).extra["frozen"]) == 1
    (directory / "starts.jsonl").write_text(plain)
    assert of_step(trained(probe_of(pre, total=6), directory).frozen) == 1 and begun(directory) == [first, first]
    assert of_step(trained(probe_of(pre), tmp_path / "new").frozen) == 3
    shutil.rmtree(tmp_path / "new" / "checkpoints")  # nothing is saved: it has not begun, and may begin anew
    (tmp_path / "new" / "summary.json").unlink(missing_ok=True)
    grown(pre, 4)
    assert of_step(trained(probe_of(pre), tmp_path / "new").frozen) == 4 and of_step(api.load(tmp_path / "new").extra["frozen"]) == 4


@pytest.mark.parametrize("anew", [False, True])
def test_a_begun_run_refuses_other_weights(tmp_path: pathlib.Path, anew: bool) -> None:
    """One line where its step is gone, or another pretraining has one of that number; a fork takes the newest, and what it goes on to has those."""
    pre, directory = grown(tmp_path / "pre", 1), tmp_path / "run"
    trained(probe_of(pre), directory)
    grown(pre, 2)
    shutil.rmtree(pre / "checkpoints" / "00000001")
    if anew:
        (pre / "checkpoints" / "00000002").rename(pre / "checkpoints" / "00000001")
    config, held = (directory / "config.json").read_text(), 1 if anew else 2
    said = rf"{directory} was trained with other weights for frozen/encoder than {pre} has now: with checkpoint 1, sha256 .{{12}}, and {pre} holds {held}; put them back"
    for opened, hint in ((api.load, "$"), (run_directory.context, "$"), (lambda path: trained(probe_of(pre, total=6), path), ", or go on with the newest by train --fork$")):
        with pytest.raises(UserError, match=said + hint) as error:  # nothing can take their place under heads that were trained on them
            opened(directory)
        assert "\n" not in str(error.value) and (directory / "config.json").read_text() == config
    if anew:
        return
    assert of_step(trained(probe_of(pre, total=6), directory, fork=True).frozen) == 2 and [line["step"] for line in begun(directory)] == [1, 2]
    with pytest.raises(UserError, match="with checkpoint 1, "):
        api.load(directory, step=4)
    assert of_step(api.load(directory).extra["frozen"]) == of_step(trained(probe_of(pre, total=7), directory).frozen) == 2


def test_what_is_told_is_what_was_read(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that is committed while the run begins changes nothing."""
    pre, create = grown(tmp_path / "pre", 1), Assembly.create

    def late(run: Assembly) -> TrainState:
        grown(pre, 2)
        return create(run)

    monkeypatch.setattr(Assembly, "create", late)
    assert of_step(trained(probe_of(pre), tmp_path / "run").frozen) == 1
    assert [(line["step"], line["sha256"]) for line in begun(tmp_path / "run")] == [(1, externals.digest(pre, step=1))]


def test_a_run_that_was_stopped_at_step_0_tells_what_it_began_with(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start that goes on from there reads no first weights, and takes away none of those that are told."""
    pre = grown(tmp_path / "pre", 1)
    config = noise_runs.run_of(dataclasses.replace(written.classifier(), pretrained=str(pre)), optimizer=configs.spec(optim.AdamW, schedule=optim.Schedule(base=1e-2))).config
    config.evaluators, config.eval_data = {}, {}
    run = run_directory.claim(assemble(config, devices=jax.devices()[:1]), tmp_path / "run", extend=False, fork=False, say=lambda line: None)
    with monkeypatch.context() as patch:
        patch.setattr(Stop, "requested", lambda self: True)
        assert loop.train(run, tmp_path / "run", stop=Stop(), say=lambda line: None).step == 0
    assert loop.train(run, tmp_path / "run", stop=Stop(), say=lambda line: None).finished
    record = records.load(tmp_path / "run")
    assert [(start["step"], start["saved"]) for start in record.starts] == [(0, -1), (0, 0)]
    assert record.weights["params"]["sha256"] == externals.digest(pre, step=1) and list(record.weights) == ["params"]


def test_the_values_of_a_checkpoint_are_told_beside_its_files(tmp_path: pathlib.Path) -> None:
    """Those of the same training done again are equal, although its metadata name another time or revision; another step and averages differ."""
    def told(run: pathlib.Path, step: int, *, revision: str, seed: int) -> dict[str, Any]:
        trees = [written.tree(PRETRAINING, seed=seed + i) for i in range(2)]
        saver = Checkpointer(run / "checkpoints", keep_last=9)
        saver.save(step, TrainState(jnp.asarray(step), jax.random.key(0), trees[0], {}, {}, trees[1]), meta={"step": step, "start": revision})
        saver.wait()
        saver.close()
        found = externals.manifest(externals.settle([External("params", str(run)), External("frozen/encoder", str(run), item="ema")]))
        return {"params": found["params"], "ema": found["frozen/encoder"]}

    one, again = told(tmp_path / "a", 1, revision="x", seed=0), told(tmp_path / "b", 1, revision="y", seed=0)
    later = told(tmp_path / "a", 2, revision="x", seed=7)
    for item in ("params", "ema"):
        assert one[item]["sha256"] != again[item]["sha256"] and one[item]["values"] == again[item]["values"] != later[item]["values"]
    assert one["params"]["values"] != one["ema"]["values"]
    np.savez(tmp_path / "weights.npz", x=MATRIX)
    assert "values" not in externals.manifest(externals.settle([External("params", str(tmp_path / "weights.npz"))]))["params"]


def test_processes_read_the_step_of_the_first(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose listing is older, or newer, than that of the second; where that never sees the step all have to start again."""
    pre, told = grown(tmp_path / "pre", 1, 2), [1]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr("jax.experimental.multihost_utils.broadcast_one_to_all",
                        lambda mine: np.pad(told, (0, agreement.MOST - 1), constant_values=-1) if np.ndim(mine) else np.asarray(told[0]))
    monkeypatch.setattr("jax.experimental.multihost_utils.process_allgather", lambda bad: np.asarray([False, bool(bad)]))
    monkeypatch.setitem(agreement.numbers.__kwdefaults__, "seconds", 0.0)
    (found,) = externals.settle([External("params", str(pre))])
    assert found.path == str(pre / "checkpoints" / "00000001")
    told[0] = 3
    with pytest.raises(StorageError, match=f"process 1 does not see step of {pre} 3 after 0 s; all processes have to start again"):
        externals.settle([External("params", str(pre))])
    told[0] = externals.GONE
    with pytest.raises(UserError, match=r"pre holds 1, 2; put them back"):
        externals.settle([External("frozen/encoder", str(pre))])


def test_a_checkpoint_may_be_named(tmp_path: pathlib.Path) -> None:
    """By its own folder: config and classes are those of its run."""
    pre = grown(tmp_path / "pre", 0, 2)
    step = pre / "checkpoints" / "00000000"
    assert of_step(externals.read(External("params", str(step)))) == 0 and of_step(externals.read(External("params", str(pre)))) == 2
    assert externals.digest(step) == externals.digest(pre, step=0) != externals.digest(pre)
    (pre / head_rows.CLASSES).write_text('["a", "b"]')
    assert head_rows.stored(str(step)) == head_rows.stored(str(pre / "checkpoints")) == ("a", "b")
    with pytest.raises(UserError, match="positions of a grid"):
        externals.check_positions([External("frozen/encoder", str(step))], encoders={"frozen/encoder": vit.Encoder(**written.ENCODER | {"frames": 8})})


def test_a_file_that_is_gone_is_no_traceback(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removed here, or by another host of a shared file system, which says it by a word of its own; other faults stay what they are."""
    pre = grown(tmp_path / "pre", 1)
    with pytest.raises(StorageError, match="absent.npz is there no more"):
        externals.digest(tmp_path / "absent.npz")
    for number, kind in ((errno.ESTALE, StorageError), (errno.EIO, OSError)):
        def failing(file: Any, name: str, number: int = number) -> Any:
            raise OSError(number, "said by the file system")
        monkeypatch.setattr(hashlib, "file_digest", failing)
        with pytest.raises(kind, match="checkpoint 1 in .* is there no more" if kind is StorageError else "said by"):
            externals.digest(pre)
