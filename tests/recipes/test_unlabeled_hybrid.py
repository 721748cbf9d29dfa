"""UnlabeledHybrid: five sources at their strides, one of them declared missing, on the card with what the paper had."""

import pathlib
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from test_decode import bars, encode, spelt

from videomae_jax import config as configs
from videomae_jax.config import spec
from videomae_jax.data import index, lists, pipeline, transforms
from videomae_jax.errors import UserError
from videomae_jax.evals.base import evaluation_source

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture()
def config(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> configs.ml_collections.ConfigDict:
    """The config over small indices in the places that it names, with four whole frames a clip."""
    monkeypatch.chdir(tmp_path)
    for name, count in (("k710", 3), ("webvid", 2)):
        for i in range(count):
            (tmp_path / name / ("val" if i == 2 else "train")).mkdir(parents=True, exist_ok=True)
            (tmp_path / name / ("val" if i == 2 else "train") / f"{i}.mp4").write_bytes(encode(frames=60, bf="0"))
        index.write(index.build(tmp_path / name, val_fraction=0), tmp_path / "hybrid" / f"{name}.parquet")
    for name, folder, template, first, total in (("ssv2", "SomethingV2/frames/1", "img_{:05}.jpg", 1, 30), ("ava", "AVA2.2/frames/x", "image_{:06}.jpg", 60, 40)):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(first, first + total):
            Image.fromarray(bars(number)).save(tmp_path / folder / template.format(number), quality=95)
        (tmp_path / f"{name}.csv").write_text(f"{folder} {first} {total}\n")
        index.write(lists.build([tmp_path / f"{name}.csv"], root=str(tmp_path), form="v2", fps=Fraction(12)), tmp_path / "hybrid" / f"{name}.parquet")
    made = configs.load(str(ROOT / "configs/data/unlabeled_hybrid.py"))
    made.unlock()
    for part in made.data.parts.values():
        part.source.update({"frames": 4, "size": 128})
        part.source.crop = spec(transforms.WholeFrame)
    return made


def test_sources_keep_their_strides(config: configs.ml_collections.ConfigDict) -> None:
    """One epoch reads every clip once, SSv2 at stride 2, all else at 4."""
    source = configs.build(config.data)
    assert len(source) == 2 + 2 + 1 + 1 and source.repeats == 4
    with pipeline.stream(source, batch_size=6, seed=0, threads=2) as stream:
        batch = next(stream)
    assert sorted(set(batch["row"].tolist())) == list(range(6)) and not batch["fault"].any()
    for row, video in zip(batch["row"], batch["video"], strict=True):
        assert np.diff([spelt(p) for p in video]).tolist() == [2 if source.name(int(row)).startswith("ssv2/") else 4] * 3
    held_out = evaluation_source(config, split="val")
    assert [held_out.name(r) for r in range(len(held_out))] == ["k710/val/2.mp4"] and held_out.repeats == 1


def test_the_card_says_what_is_missing(config: configs.ml_collections.ConfigDict, tmp_path: pathlib.Path) -> None:
    """The paper's numbers beside those here; a source that is neither there nor declared stops the run with a way out."""
    told = configs.build(config.data).card(12)
    assert told["own"] == {"videos_in_recipe": 250_000, "missing": "declared"}
    assert told["ssv2"] == {"videos_in_recipe": 168_913, "videos": 1, "share": pytest.approx(1 / 6), "epochs": pytest.approx(2)}
    assert sum(part["videos_in_recipe"] for part in told.values()) == pytest.approx(1.348e6, rel=1e-3)
    (tmp_path / "hybrid/webvid.parquet").unlink()
    with pytest.raises(UserError, match=r"source 'webvid' of the mixture: no index hybrid/webvid.parquet.*--config.data.missing=own,webvid"):
        len(configs.build(config.data))
    configs.override(config, {"data.missing": "own,webvid"})
    assert len(configs.build(config.data)) == 4
