"""Sliding features: every frame once, windows as if encoded one by one, masked tails, files that a second call leaves alone."""

import json
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
import written
from flax import traverse_util
from test_decode import encode, flipped

import videomae_jax
from videomae_jax import api, extraction
from videomae_jax.__main__ import main
from videomae_jax.checkpoint import Checkpointer
from videomae_jax.data import decode, index, windows
from videomae_jax.data.transforms import CentreCrop
from videomae_jax.errors import UserError
from videomae_jax.models import patches, probing, vit
from videomae_jax.objectives.probe import Probe
from videomae_jax.step import TrainState


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A fine-tuned run: 4 frames of 16 pixels, 2 apart."""
    return written.write(tmp_path_factory.mktemp("extraction") / "run", written.classifier(), classes=written.CLASSES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Three videos of 21, 41 and 3 frames."""
    out = tmp_path_factory.mktemp("videos")
    for name, frames, variable in (("a.mp4", 21, False), ("deep/b.mp4", 41, True), ("c.mp4", 3, False)):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(encode(frames=frames, variable=variable, g="10", bf="0"))
    return out


def extracted(run: pathlib.Path, *words: object, code: int = 0) -> None:
    """Runs the command."""
    assert main(["extract", str(run), *map(str, words)]) == code


def features(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz."""
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


# -- windows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("frames", "plan", "starts", "lengths"), [
    (20, windows.Plan(16, 1, 4, "drop"), [0, 4], [16, 16]), (15, windows.Plan(16, 1, 4, "drop"), [], []), (16, windows.Plan(16, 1, 4, "drop"), [0], [16]),
    (15, windows.Plan(16, 1, 4), [0], [15]), (17, windows.Plan(16, 1, 4), [0, 4], [16, 13]), (32, windows.Plan(16, 1, 16), [0, 16], [16, 16]),
    (11, windows.Plan(4, 2, 3), [0, 3, 6], [4, 4, 3]), (1, windows.Plan(4, 2, 3), [0], [1]), (12, windows.Plan(4, 1, 10), [0, 10], [4, 2]),
    (5, windows.Plan(4, 1, 10), [0], [4])])
def test_windows(frames: int, plan: windows.Plan, starts: list[int], lengths: list[int]) -> None:
    """V2's windows are those of "drop"; "mask" goes on until the last frame is reached, and no window begins behind it."""
    assert plan.starts(frames).tolist() == starts
    assert [plan.length(s, frames=frames) for s in starts] == lengths
    for start, length in zip(starts, lengths, strict=True):
        ids = plan.ids(start, frames=frames)
        assert ids[:length].tolist() == [start + plan.rate * i for i in range(length)] and (ids[length:] == frames - 1).all()


@pytest.mark.parametrize("plan", [windows.Plan(4, 1, 2), windows.Plan(4, 3, 5), windows.Plan(2, 1, 9)])
def test_streams_decode_every_frame_once(plan: windows.Plan, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks that begin at key frames, and the windows are those of random access."""
    path, seen = folder / "deep/b.mp4", []
    info, before = decode.probe(path), decode.decode
    monkeypatch.setattr(windows, "MOST", 13)
    monkeypatch.setattr(decode, "decode", lambda source, ids, info: seen.append(ids.tolist()) or before(source, ids, info=info))
    found = list(windows.stream(path, plan=plan, info=info, cut=lambda video: video))
    ids = [plan.ids(s, frames=info.frames) for s in plan.starts(info.frames)]
    assert sorted(i for block in seen for i in block) == np.unique(np.concatenate(ids)).tolist()
    assert len(seen) > 1 or plan.step > plan.clip
    if plan.rate == 1 and plan.step < plan.clip:
        assert [block[0] for block in seen] == [0, 10, 20, 30]  # key frames lie ten apart
    assert len(found) == len(ids)
    for clip, wanted in zip(found, ids, strict=True):
        np.testing.assert_array_equal(clip, before(path, wanted, info=info))


# -- the command -------------------------------------------------------------------------------------------------------


def test_features_equal_window_by_window_encoding(run: pathlib.Path, folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pooled and all tokens of a block, in time's order, with tails masked, whatever shares the batch; times are presentation times."""
    model = videomae_jax.load(run)
    extracted(run, folder, f"--out={tmp_path}/pooled", "--stride=4", "--batch=1")
    assert "windows of 3 videos written" in capsys.readouterr().out
    extracted(run, folder, f"--out={tmp_path}/tokens", "--stride=4", "--batch=1", "--keep=tokens", "--layer=0")
    for name in ("a.mp4", "deep/b.mp4", "c.mp4"):
        info = decode.probe(folder / name)
        plan = windows.Plan(clip=4, rate=2, step=4)
        pooled, tokens = (features(tmp_path / kind / f"{name}.npz") for kind in ("pooled", "tokens"))
        assert pooled["start"].tolist() == plan.starts(info.frames).tolist() and int(pooled["frames"]) == info.frames
        for k, start in enumerate(pooled["start"]):
            ids, length = plan.ids(start, frames=info.frames), plan.length(start, frames=info.frames)
            clip = CentreCrop()(decode.decode(folder / name, ids, info=info), size=16, rng=np.random.default_rng(0))
            more = {} if length == 4 else {"length": length}
            found = model.encode(clip, **more)
            np.testing.assert_allclose(pooled["features"][k], found.pooled[0], atol=1e-5)
            np.testing.assert_allclose(tokens["features"][k], model.encode(clip, layer=0, **more).tokens[0], atol=1e-5)
            np.testing.assert_array_equal(pooled["valid"][k], found.valid[0, :, 0, 0])
            pts = (info.pts[ids] - info.pts[0]) * float(info.time_base)
            np.testing.assert_allclose(pooled["time"][k], pts.reshape(2, 2), atol=1e-9)
    assert not pooled["valid"].all() and not np.isclose(pooled["features"][0], features(tmp_path / "pooled/a.mp4.npz")["features"][0]).all()


def test_a_second_call_goes_on(run: pathlib.Path, folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is there stays, bit for bit what is written again; other settings are refused; shards take turns."""
    words = (folder, f"--out={tmp_path}/out", "--stride=8")
    extracted(run, *words, "--shard=0/2")
    extracted(run, *words, "--shard=1/2")
    paths = sorted((tmp_path / "out").rglob("*.npz"))
    assert [p.relative_to(tmp_path / "out").as_posix() for p in paths] == ["a.mp4.npz", "c.mp4.npz", "deep/b.mp4.npz"]
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in paths}
    paths[0].unlink()
    capsys.readouterr()
    extracted(run, *words)
    assert "of 1 videos written" in (said := capsys.readouterr().out) and "2 were there" in said
    assert paths[0].read_bytes() == before[paths[0]][0]
    assert all(p.stat().st_mtime_ns == before[p][1] for p in paths[1:])
    assert main(["extract", str(run), *map(str, words[:2]), "--stride=4"]) == 2
    assert "holds features that were taken otherwise: plan: " in capsys.readouterr().err
    assert main(["extract", str(run), *map(str, words), "--unnormalised"]) == 2
    assert not [p for p in (tmp_path / "out").rglob(".*")]


def test_detector_format(run: pathlib.Path, folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """V2's windows, resize and file names; with and without the normalisation that its script leaves out."""
    import dataclasses

    for flag, kind in (((), "right"), (("--unnormalised",), "published")):
        extracted(run, folder / "a.mp4", folder / "deep/b.mp4", f"--out={tmp_path / kind}", "--format=tad", *flag)
    model, info = videomae_jax.load(run), decode.probe(folder / "a.mp4")
    found = {kind: np.load(tmp_path / kind / "a.npy") for kind in ("right", "published")}
    starts = range(0, info.frames - 3, 4)
    assert found["right"].shape == found["published"].shape == (len(starts), 16)
    plain = dataclasses.replace(model, objective=dataclasses.replace(model.objective, encoder=model.objective.encoder.clone(mean=(0.0,) * 3, std=(1.0,) * 3)))
    for k, start in enumerate(starts):
        clip = windows.Bilinear()(decode.decode(folder / "a.mp4", np.arange(start, start + 4), info=info), size=16, rng=np.random.default_rng(0))
        np.testing.assert_allclose(found["right"][k], model.encode(clip).pooled[0], atol=1e-5)
        np.testing.assert_allclose(found["published"][k], plain.encode(clip).pooled[0], atol=1e-5)
    assert np.abs(found["right"] - found["published"]).max() > 1e-2
    about = json.loads((tmp_path / "right/b.json").read_text())
    assert {k: about[k] for k in ("name", "frames", "window", "stride", "rate", "shape")} == {
        "name": "b.mp4", "frames": 41, "window": 4, "stride": 4, "rate": 1, "shape": [10, 16]}


def test_an_older_step_goes_on_while_the_run_trains(run: pathlib.Path, folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The features are labelled with the weights that made them, whatever the run has saved since."""
    mine = pathlib.Path(shutil.copytree(run, tmp_path / "run"))
    words = [folder / "a.mp4", f"--out={tmp_path}/out", "--step=0"]
    extracted(mine, *words)
    saver = Checkpointer(mine / "checkpoints")
    saver.save(7, TrainState(step=jnp.asarray(7), rng=jax.random.key(0), params=written.tree(written.classifier(), seed=1), opt={}, extra={}, ema={}), meta={})
    saver.wait()
    saver.close()
    capsys.readouterr()
    extracted(mine, *words)
    assert "1 were there" in capsys.readouterr().out and api.digest(mine, step=0) == api.digest(run, step=0) != api.digest(mine, step=7)


def test_features_of_another_encoder(folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A probe's features come from weights of others, which its own checkpoint does not hold: of two files none lie side by side."""
    weights = tmp_path / "weights.npz"
    probe = Probe(vit.Encoder(**written.ENCODER), probing.Linear(classes=3), weights=str(weights))
    mine, words = written.write(tmp_path / "run", probe), [folder / "a.mp4", f"--out={tmp_path}/out"]
    saver = Checkpointer(mine / "checkpoints")
    norm = {"mean": jnp.zeros(probe.width), "var": jnp.ones(probe.width)}
    saver.save(1, TrainState(step=jnp.asarray(1), rng=jax.random.key(0), params=written.tree(probe), opt={}, extra=norm, ema={}), meta={})
    saver.wait()
    saver.close()

    def encoder(seed: int) -> None:
        np.savez(weights, **traverse_util.flatten_dict(written.tree(written.pretraining(size=16), seed=seed), sep="/"))

    encoder(1)
    extracted(mine, *words)
    encoder(2)
    capsys.readouterr()
    extracted(mine, *words, code=2)
    assert "holds features that were taken otherwise: weights" in capsys.readouterr().err
    encoder(1)
    extracted(mine, *words)
    assert "1 were there" in capsys.readouterr().out


def test_features_of_the_best_weights(run: pathlib.Path, folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are labelled with them, so that those of the last ones do not lie beside them."""
    mine = pathlib.Path(shutil.copytree(run, tmp_path / "run"))
    written.keep_best(mine, written.classifier(), step=4, seed=1)
    words = [folder / "a.mp4", f"--out={tmp_path}/out"]
    extracted(mine, *words, "--best")
    assert f"{api.digest(mine, step=4, best=True)} step 4 " in (tmp_path / "out/extraction.json").read_text()
    extracted(mine / "best", *words)
    capsys.readouterr()
    extracted(mine, *words, code=2)
    assert "holds features that were taken otherwise: weights" in capsys.readouterr().err


def test_damaged_and_short_videos_are_named(run: pathlib.Path, folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The others are written all the same; the exit code tells; nothing half is left."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/good.mp4").write_bytes((folder / "a.mp4").read_bytes())
    (tmp_path / "in/bad.mp4").write_bytes(flipped(encode(frames=40, crf="5", g="500", bf="0"), at=0.7, length=100))
    (tmp_path / "in/short.mp4").write_bytes((folder / "c.mp4").read_bytes())
    capsys.readouterr()
    extracted(run, tmp_path / "in", f"--out={tmp_path}/out", "--tail=drop", code=1)
    out, err = capsys.readouterr()
    assert "left out: bad.mp4: decode: " in err and "left out: short.mp4: short: 3 frames are fewer than the 7 of a window" in err
    assert "of 1 videos written" in out and "2 failed" in out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["extraction.json", "good.mp4.npz"]


def test_a_video_that_fails_after_its_first_windows(run: pathlib.Path, folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows that were read before the damage share batches with those of the next video, which is whole."""
    monkeypatch.setattr(windows, "MOST", 8)
    (tmp_path / "bad.mp4").write_bytes(flipped(encode(frames=40, crf="5", g="500", bf="0"), at=0.7, length=100))
    what, seen, before = extraction.Extraction(windows.Plan(clip=4, rate=1, step=4)), [], extraction.gather
    monkeypatch.setattr(extraction, "gather", lambda batch, *words, **more: seen.extend(batch.places) or before(batch, *words, **more))
    videos = extraction.find([str(tmp_path), str(folder / "a.mp4")])
    found = extraction.extract(videomae_jax.load(run), videos, out=tmp_path / "out", what=what, weights="", batch=3)
    assert found.failed.keys() == {"bad.mp4"} and found.written == 1 and (0, 0) in seen
    extracted(run, folder / "a.mp4", f"--out={tmp_path}/alone", "--rate=1", "--stride=4", "--batch=3")
    np.testing.assert_array_equal(features(tmp_path / "out/a.mp4.npz")["features"], features(tmp_path / "alone/a.mp4.npz")["features"])


def test_long_videos_do_not_wait_for_tails_of_others(run: pathlib.Path, folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A video of many windows is written before the next is read to its end; tails of short ones still share a batch."""
    many, batches, before = [(f"{i}.mp4", folder / "deep/b.mp4") for i in range(6)], [], extraction.batched
    monkeypatch.setattr(extraction, "batched", lambda *words, **more: (batches.append(b) or b for b in before(*words, **more)))
    held, gather = [], extraction.gather

    def counting(batch: Any, *words: Any, opened: dict[int, Any], **more: Any) -> None:
        gather(batch, *words, opened=opened, **more)
        held.append(sum(sum(f is not None for f in video.features) for video in list(opened.values())))
    monkeypatch.setattr(extraction, "gather", counting)
    for step, size, tails in ((2, 2, [1] * 6), (20, 4, [4, 2])):
        batches.clear(), held.clear()
        what = extraction.Extraction(windows.Plan(clip=4, rate=1, step=step))
        extraction.extract(videomae_jax.load(run), many, out=tmp_path / str(step), what=what, weights="", batch=size)
        count = len(what.plan.starts(41))
        assert [len(b.places) for b in batches if (b.lengths < 4).any()] == tails
        assert max(held) <= count + (extraction.HELD + 2) * size
    assert count == 3


@pytest.mark.parametrize(("words", "message"), [
    (["--format=tad", "--keep=tokens"], "format 'tad' holds one vector a window"), (["--shard=2/2"], "allowed is I/N with I from 0 to N - 1"),
    (["--stride=-1"], "allowed are numbers of 1 and more"), (["--layer=5"], "layer 5; allowed are -1 and 0 to 1"), (["--batch=0"], "--batch=0")])
def test_mistakes(words: list[str], message: str, run: pathlib.Path, folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line each."""
    assert main(["extract", str(run), str(folder), f"--out={tmp_path}/out", *words]) == 2
    assert message in capsys.readouterr().err


def test_names_that_would_collide(run: pathlib.Path, folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """V2's names end before the first dot; two videos of one name from two folders; no video at all."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "._a.mp4").write_bytes(b"left by a Mac")  # `index` passes it over too
    for name in ("x.1.mp4", "x.2.mp4", "sub/a.mp4", "extraction.v.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((folder / "a.mp4").read_bytes())
    for words, message in (([tmp_path / "x.1.mp4", tmp_path / "x.2.mp4", "--format=tad"], "would be written to the same file"),
                           ([tmp_path / "x.1.mp4", tmp_path / "x.2.mp4", "--format=tad", "--shard=0/2"], "would be written to the same file"),
                           ([tmp_path / "extraction.v.mp4", "--format=tad"], "what is said of extraction.v.mp4 would be written over "),
                           ([folder / "a.mp4", tmp_path / "sub/a.mp4"], "have the same name 'a.mp4'"), ([tmp_path / "no.mp4"], "no video in "),
                           ([tmp_path / "empty"], "no videos in ")):
        assert main(["extract", str(run), *map(str, words), f"--out={tmp_path}/out"]) == 2
        assert message in capsys.readouterr().err
    assert main(["extract", str(run), str(folder / "a.mp4"), f"--out={folder}/a.mp4/out"]) == 2
    assert "a.mp4/out cannot be written" in capsys.readouterr().err


def test_an_index_in_another_folder(run: pathlib.Path, folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its paths are absolute; the features lie below --out all the same, by the names of the index, and nothing is written beside the videos."""
    before = sorted(folder.rglob("*"))
    assert main(["index", str(folder), f"--out={tmp_path}/lists/index.parquet"]) == 0
    for out in ("one", "two"):
        extracted(run, tmp_path / "lists/index.parquet", f"--out={tmp_path / out}", "--stride=8")
        assert "3 videos written" in capsys.readouterr().out
        assert sorted(p.relative_to(tmp_path / out).as_posix() for p in (tmp_path / out).rglob("*.npz")) == ["a.mp4.npz", "c.mp4.npz", "deep/b.mp4.npz"]
    assert sorted(folder.rglob("*")) == before


def altered(folder: pathlib.Path, out: pathlib.Path, /, **values: list[str | None]) -> str:
    """An index of the folder with other columns of words."""
    table = index.build(folder)
    for name, words in values.items():
        table = table.drop_columns([name] if name in table.schema.names else []).append_column(name, pa.array(words, pa.string()))
    index.write(table, out)
    return str(out)


def test_names_of_an_index_stay_below_the_folder(run: pathlib.Path, folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Absolute names, as official lists have them, lose their first '/'; two videos of one name and names that lead out are one line."""
    absolute = altered(folder, tmp_path / "absolute.parquet", name=["/data/a.mp4", "/data/c.mp4", "b.mp4"])
    assert [(name, path.name) for name, path in extraction.find([absolute])] == [("data/a.mp4", "a.mp4"), ("data/c.mp4", "c.mp4"), ("b.mp4", "b.mp4")]
    for name, message in (("../c.mp4", "'../c.mp4' would not lie below"), ("x/../../c.mp4", "would not lie below"), ("a.mp4", "have the same name 'a.mp4'")):
        words = altered(folder, tmp_path / "names.parquet", name=["a.mp4", name, "b.mp4"])
        assert main(["extract", str(run), words, f"--out={tmp_path}/out"]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("values", "kind"), [
    ({"template": [None, "img_{:05}.jpg", None]}, "folders of pictures"), ({"packed": ["0", "1", "2"]}, "packed clips"),
    ({"path": ["/a.mp4", "gs://bucket/c.mp4", "/b.mp4"]}, "addresses")])
def test_indexes_of_something_else(values: Any, kind: str, run: pathlib.Path, folder: pathlib.Path, tmp_path: pathlib.Path,
                                   capsys: pytest.CaptureFixture[str]) -> None:
    """`extract` and `predict` say what they hold, before anything is written."""
    words = altered(folder, tmp_path / "index.parquet", **values)
    for command in (["extract", str(run), words, f"--out={tmp_path}/out"], ["predict", str(run), words, f"--out={tmp_path}/p.csv"]):
        assert main(command) == 2
        assert f"is of {kind}; allowed are indexes of video files on this machine" in capsys.readouterr().err
    assert not [p for p in tmp_path.iterdir() if p.suffix not in (".parquet", ".arrow")]


@pytest.mark.parametrize("length", [0, -3, 5, 2.7, float("nan"), [4, 4, 4], [4, 0], "2", None, True])
def test_lengths_that_no_clip_has(length: Any) -> None:
    """Their mean token would be NaN, or that of other frames."""
    with pytest.raises(UserError, match=r"of 2 clips; allowed are whole numbers from 1 to 4, one for all or one a clip"):
        patches.lengths(length, rows=2, frames=4)


def test_lengths_of_clips() -> None:
    """One number for all, or one a clip; floats that are whole."""
    for given, want in ((3, [3, 3]), ([2], [2, 2]), (np.array([1, 4]), [1, 4]), (2.0, [2, 2])):
        found = patches.lengths(given, rows=2, frames=4)
        assert found.tolist() == want and found.dtype == np.int32


def test_a_clip_without_a_real_frame(run: pathlib.Path) -> None:
    """`encode` refuses it, where it would pool nothing."""
    with pytest.raises(UserError, match="length 0 of 1 clips"):
        videomae_jax.load(run).encode(np.zeros((4, 16, 16, 3), np.uint8), length=0)


class Counted(type(pathlib.Path())):
    """A path that counts how often one is compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return super().__eq__(other)

    __hash__ = pathlib.PurePath.__hash__


def test_many_names() -> None:
    """Twins among 3000 videos are found without comparing each with each."""
    what, names = extraction.Extraction(windows.Plan(clip=4)), [f"{i}.mp4" for i in range(3000)]
    assert len(extraction.targets_of(names, out=Counted("out"), what=what)) == 3000
    assert Counted.compared < 10 * 3000


def test_recipes_that_attend_padding_are_refused(run: pathlib.Path, folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a recipe overlooks `length`, its tails are no features of the video."""
    monkeypatch.setattr(patches, "present", lambda batch, grid, patch: None)
    with pytest.raises(UserError, match="does not leave out padding"):
        videomae_jax.load(run).encode(np.zeros((4, 16, 16, 3), np.uint8), length=1)
    assert main(["extract", str(run), str(folder / "c.mp4"), f"--out={tmp_path}/out"]) == 2


def check_windows(run: pathlib.Path, path: pathlib.Path, out: pathlib.Path, /, *, plan: windows.Plan) -> tuple[int, float]:
    """Compares every window of a video with a clip that is read by itself: their number, and the largest difference over the largest value."""
    info = decode.probe(path)
    extracted(run, path, f"--out={out}", f"--rate={plan.rate}", f"--stride={plan.step}", "--batch=8")
    found: Any = features(out / f"{path.name}.npz")
    assert found["start"].tolist() == plan.starts(info.frames).tolist()
    model, crop, rng = videomae_jax.load(run), CentreCrop(), np.random.default_rng(0)
    alone = []
    for start in map(int, found["start"]):
        clip = crop(decode.decode(path, plan.ids(start, frames=info.frames), info=info), size=16, rng=rng)
        length = plan.length(start, frames=info.frames)
        alone.append(model.encode(clip, **({} if length == 4 else {"length": length})).pooled[0])
    np.testing.assert_allclose(found["features"], alone, atol=1e-5)
    return len(alone), float(np.abs(found["features"] - np.stack(alone)).max() / np.abs(alone).max())


@pytest.fixture(scope="module")
def longest(real_videos: pathlib.Path) -> pathlib.Path:
    """The longest real clip that is whole."""
    found = {}
    for path in sorted(real_videos.iterdir()):
        try:
            found[decode.probe(path).duration] = path
        except decode.DecodeError:
            continue
    return found[max(found)]


def test_a_real_video(run: pathlib.Path, longest: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Features of the longest whole one equal window-by-window encoding."""
    assert decode.probe(longest).duration > 10
    check_windows(run, longest, tmp_path, plan=windows.Plan(clip=4, rate=4, step=8))


def repeated(source: pathlib.Path, path: pathlib.Path, /, *, turns: int) -> None:
    """The packets of a video before its last readable key frame, over and over, copied and not encoded again."""
    import av

    with av.open(str(source)) as file, av.open(str(path), "w") as out:
        video, packets = file.streams.video[0], []
        try:
            packets.extend(packet for packet in file.demux(video) if packet.pts is not None)
        except av.error.InvalidDataError:
            pass  # cut off: what came before is whole
        whole = max(i for i, packet in enumerate(packets) if packet.is_keyframe) or len(packets)
        stream, span = out.add_stream_from_template(video), whole * int(1 / (video.average_rate * video.time_base))
        times = [(packet.pts, packet.dts) for packet in packets[:whole]]
        for turn in range(turns):
            for packet, (pts, dts) in zip(packets[:whole], times, strict=True):
                packet.pts, packet.dts, packet.stream = pts + turn * span, dts + turn * span, stream
                out.mux(packet)


@pytest.mark.slow
def test_seven_minutes(run: pathlib.Path, real_videos: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The same for seven minutes: what is whole of the long real video, a minute with many cuts, until it is as long as it was."""
    repeated(real_videos / "instruction_7min.mp4", tmp_path / "long.mp4", turns=8)
    assert decode.probe(tmp_path / "long.mp4").duration > 420
    check_windows(run, tmp_path / "long.mp4", tmp_path / "out", plan=windows.Plan(clip=4, rate=8, step=32))


def test_zarr_holds_the_same_arrays(run: pathlib.Path, folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As an .npz, with what is no array as attributes; without the package the error names it."""
    words = (folder / "a.mp4", "--stride=4", "--keep=tokens")
    try:
        import zarr
    except ImportError:
        assert main(["extract", str(run), *map(str, words), f"--out={tmp_path}/zarr", "--format=zarr"]) == 2
        assert "needs the package zarr" in capsys.readouterr().err
        return
    extracted(run, *words, f"--out={tmp_path}/zarr", "--format=zarr")
    extracted(run, *words, f"--out={tmp_path}/npz")
    group, arrays = zarr.open_group(str(tmp_path / "zarr/a.mp4.zarr"), mode="r"), features(tmp_path / "npz/a.mp4.npz")
    for name in ("features", "start", "time", "valid"):
        np.testing.assert_array_equal(group[name][:], arrays[name])
    assert dict(group.attrs) == {k: arrays[k].item() for k in ("name", "fps", "frames", "duration")}
