"""A user's own folder from index to checkpoint: real files of many makers, damaged ones among them."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image
from test_decode import encode, flipped

from videomae_jax import __main__ as entry
from videomae_jax.data import index, pictures, pipeline, sources

ROOT = pathlib.Path(__file__).resolve().parents[1]


def run(*words: object) -> int:
    """The exit code of a command line."""
    return entry.main(list(map(str, words)))


def trained(out: pathlib.Path, workdir: pathlib.Path, /, *, steps: int, **fields: object) -> list[dict[str, object]]:
    """Trains the tiny config on an index, checks what every run leaves, returns the lines of faults.jsonl."""
    options = [f"--config.{k}={v}" for k, v in ({"data.index": out, "total": steps} | fields).items()]
    assert run("train", f"--config={ROOT / 'configs/tiny.py'}", f"--workdir={workdir}", *options) == 0
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses and np.isfinite(losses).all()
    assert json.loads((workdir / "summary.json").read_text())["steps"] == steps
    faults = workdir / "faults.jsonl"
    return [json.loads(line) for line in faults.read_text().splitlines()] if faults.exists() else []


def test_a_link_back_up_makes_no_video_twice(tmp_path: pathlib.Path) -> None:
    """Folders of pictures and links to them elsewhere: each is one video, in one split."""
    for name in ("clips/one", "clips/two", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / name / "img_00001.jpg")
    root = tmp_path / "clips"
    (root / "one" / "up").symlink_to(root)
    (root / "up").symlink_to(root)
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    assert pictures.find(root, "img_{:05}.jpg") == ["linked", "one", "two"]
    (root / "deeper").mkdir()
    (root / "deeper" / "up").symlink_to(root)
    assert pictures.find(root, "img_{:05}.jpg") == ["linked", "one", "two"]
    assert index.build(root, template="img_{:05}.jpg").num_rows == 3


def test_real_videos(real_videos: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Indexed as they lie, trained on with every file drawn once; the file whose packets are damaged is replaced and listed."""
    assert run("index", real_videos, f"--out={tmp_path}/index.parquet", "--val-fraction=0.1") == 0
    source = sources.VideoClips(index=str(tmp_path / "index.parquet"), frames=8, size=64)
    steps = -(-len(source) // 4)
    faults = trained(tmp_path / "index.parquet", tmp_path / "run", steps=steps, **{"data.max_bad_fraction": 0.1})
    assert {f["name"] for f in faults} == {"corrupted.mp4"} and {f["stage"] for f in faults} == {"decode"}


def test_damage_that_a_header_hides(tmp_path: pathlib.Path) -> None:
    """A file that probes well and fails in decoding is replaced in training; `index --verify` keeps it out."""
    for i in range(3):
        (tmp_path / f"{i}.mp4").write_bytes(encode(frames=40, bf="0"))
    (tmp_path / "bad.mp4").write_bytes(flipped(encode(frames=40, crf="5", g="500", bf="0"), at=0.7, length=100))
    out = tmp_path / "index.parquet"
    for option, expected in (([], {"bad.mp4"}), (["--verify"], set())):
        assert run("index", tmp_path, f"--out={out}", "--val-fraction=0", *option) == 0
        source = sources.VideoClips(index=str(out), frames=8, size=64)
        assert ("bad.mp4" in {source.name(r) for r in range(len(source))}) == bool(expected)
        with pipeline.sweep(source, batch_size=len(source)) as stream:
            batch = next(stream)
        assert {source.name(int(r)) for r in batch["row"][batch["fault"] > 0]} == expected


@pytest.mark.slow
def test_trained_with_workers_on_a_moved_folder(real_videos: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Videos and index as one folder that moves between two runs; the second goes on with decoding processes."""
    home = tmp_path / "set"
    home.mkdir()
    for name in ("face1.mp4", "arm_wrestling.mp4", "testsrc2_vp9.webm", "rotated_90.mov", "speech_126px.mp4"):
        shutil.copyfile(real_videos / name, home / name)
    index.write(index.build(home, val_fraction=0.3), home / "index.parquet")
    assert trained(home / "index.parquet", tmp_path / "one", steps=2) == []
    home.rename(tmp_path / "moved")
    assert trained(tmp_path / "moved/index.parquet", tmp_path / "two", steps=2, workers=2) == []
    one, two = ([json.loads(x)["loss"] for x in (tmp_path / d / "metrics.jsonl").read_text().splitlines() if "loss" in json.loads(x)] for d in ("one", "two"))
    assert one == two
