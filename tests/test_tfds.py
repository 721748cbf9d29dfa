"""Data sets that TensorFlow Datasets prepared: made here by the library itself, read without TensorFlow."""

import io
import json
import pathlib
import pickle
import shutil
import sys
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from test_decode import bars, spelt

from videomae_jax import config as configs
from videomae_jax.data import clips, decode, pipeline, sources, transforms
from videomae_jax.data.tfds_packing import Info
from videomae_jax.data.tfds_source import TfdsClips
from videomae_jax.errors import UserError
from videomae_jax.evals.base import evaluation_source


def stored(number: int, /) -> io.BytesIO:
    """A picture that spells its number, as a file."""
    file = io.BytesIO()
    Image.fromarray(bars(number % 256)).save(file, "PNG")
    return io.BytesIO(file.getvalue())


class Spelling(tfds.core.GeneratorBasedBuilder):
    """Videos of 20 to 25 frames that begin at 10 times their class, in nested features."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> Any:
        features = {"clip": {"video": tfds.features.Sequence(tfds.features.Image(shape=(64, 128, 3), encoding_format="png"))},
                    "label": tfds.features.ClassLabel(names=["run", "walk", "jump"]), "title": tfds.features.Text()}
        return Info(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager: Any) -> Any:
        return {"train": self._generate_examples(6), "validation": self._generate_examples(2)}

    def _generate_examples(self, count: int) -> Any:
        for i in range(count):
            yield i, {"clip": {"video": [stored(10 * (i % 3) + k) for k in range(20 + i)]}, "label": i % 3, "title": f"t{i}"}


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The prepared data set."""
    made = Spelling(data_dir=str(tmp_path_factory.mktemp("tfds")), file_format="array_record")
    made.download_and_prepare()
    return made


def source(builder: Any, /, **kw: Any) -> TfdsClips:
    """Whole frames, 4 of them at stride 2."""
    return TfdsClips(**({"folder": str(builder.data_dir), "frames": 4, "size": 128, "sampling": clips.DenseRandom(stride=2), "crop": transforms.WholeFrame()} | kw))


def rng(seed: int = 0, /) -> np.random.Generator:
    """A generator."""
    return np.random.default_rng(seed)


def test_clips_of_a_prepared_data_set(builder: Any) -> None:
    """Frames, labels, classes and splits are those of the data set, as its own reader gives them; TensorFlow is not loaded."""
    made = source(builder, repeats=2)
    assert made.classes == ("run", "walk", "jump") and len(made) == 6 and len(source(builder, split="val")) == 2 and len(source(builder, split="all", limit=4)) == 4
    theirs = builder.as_data_source(split="train")
    for row in range(6):
        example = made.read(row, rng=rng(row))
        assert {k: (v.shape, v.dtype.name) for k, v in example.items()} == {k: ((2, *f.shape), f.dtype) for k, f in made.fields.items()}
        numbers = [spelt(p) for p in example["video"][0]]
        whole = [spelt(p) for p in theirs[row]["clip"]["video"]]
        assert example["label"].tolist() == [theirs[row]["label"]] * 2 and np.diff(numbers).tolist() == [2, 2, 2] and set(numbers) <= set(whole)
    assert len({spelt(source(builder).read(0, rng=rng(seed))["video"][0, 0]) for seed in range(20)}) > 5
    assert "tensorflow" not in sys.modules


def test_the_stream_with_processes(builder: Any) -> None:
    """The same batches as without; what travels is small."""
    made = source(builder)
    assert len(pickle.dumps(made)) < 2000
    drawn = []
    for workers in (0, 1):
        with pipeline.stream(made, batch_size=3, seed=2, workers=workers) as stream:
            drawn.append([next(stream) for _ in range(4)])
    for one, other in zip(*drawn, strict=True):
        for key, value in one.items():
            np.testing.assert_array_equal(value, other[key], err_msg=key)


def copied(builder: Any, folder: pathlib.Path, /, **files: Any) -> pathlib.Path:
    """A copy of the data set with changed json files."""
    out = pathlib.Path(shutil.copytree(builder.data_dir, folder / "copy"))
    for name, change in files.items():
        content = json.loads((out / f"{name}.json").read_text())
        change(content)
        (out / f"{name}.json").write_text(json.dumps(content))
    return out


def test_the_video_feature(builder: Any, tmp_path: pathlib.Path) -> None:
    """`tfds.features.Video` cannot be made without TensorFlow; what it writes into features.json is this, and its records are those of a sequence of images."""
    def video(content: dict[str, Any]) -> None:
        content["featuresDict"]["features"]["clip"]["featuresDict"]["features"]["video"] = {
            "pythonClassName": "tensorflow_datasets.core.features.video_feature.Video",
            "video": {"shape": {"dimensions": ["-1", "64", "128", "3"]}, "dtype": "uint8", "encodingFormat": "png"}}
    folder = copied(builder, tmp_path, features=video)
    np.testing.assert_array_equal(source(builder, folder=str(folder)).read(1, rng=rng())["video"], source(builder).read(1, rng=rng())["video"])


def test_several_shards(builder: Any, tmp_path: pathlib.Path) -> None:
    """Rows go through the shards of a split in order, and through all splits."""
    folder = copied(builder, tmp_path, dataset_info=lambda info: info["splits"][0].update(shardLengths=["6", "6"]))
    name = f"{builder.name}-train.array_record"
    for i in range(2):
        shutil.copyfile(folder / f"{name}-00000-of-00001", folder / f"{name}-{i:05}-of-00002")
    made = source(builder, folder=str(folder), split="all")
    assert [made.name(r) for r in (0, 5, 6, 11, 12, 13)] == [f"{name}-0000{i}-of-00002[{p}]" for i, p in ((0, 0), (0, 5), (1, 0), (1, 5))] + [
        f"{builder.name}-validation.array_record-00000-of-00001[{p}]" for p in (0, 1)]
    np.testing.assert_array_equal(made.read(7, rng=rng())["video"], made.read(1, rng=rng())["video"])


def test_mistakes(builder: Any, tmp_path: pathlib.Path) -> None:
    """Another folder, format, split, feature: one line with what there is."""
    for fields, said in (({"folder": str(tmp_path)}, "dataset_info.json cannot be read"), ({"split": "holdout"}, "no example in split 'holdout'; it has train, validation"),
                         ({"video": "movie"}, "video 'movie' of .*; its features of this kind are clip/video"), ({"label": "title"}, "label 'title' of .* are label"),
                         ({"folder": "gs://b/ucf101/1.0.0"}, "data set gs://b/ucf101/1.0.0 is an address")):
        with pytest.raises(UserError, match=said):
            len(source(builder, **fields))
    tfrecord = copied(builder, tmp_path, dataset_info=lambda info: info.update(fileFormat="tfrecord"))
    with pytest.raises(UserError, match="is stored as tfrecord; allowed is array_record"):
        len(source(builder, folder=str(tfrecord)))


def test_a_config_changes_its_symbol(builder: Any) -> None:
    """As the README says: the fields of the new class are there, those of the old one are gone, and what is needed is asked for."""
    config = configs.load("configs/tiny.py")
    configs.override(config, {"data.__symbol__": "videomae_jax.data.tfds_source.TfdsClips"})
    assert "index" not in config.data and config.data.frames == 8
    with pytest.raises(UserError, match="TfdsClips needs a value for 'folder'"):
        configs.build(config.data)
    configs.override(config, {"data.folder": str(builder.data_dir), "data.frames": "4"})
    assert len(configs.build(config.data)) == 6 and len(evaluation_source(config, split="val")) == 2
    configs.override(config, {"data.__symbol__": "videomae_jax.data.sources.NoiseClips"})
    assert set(config.eval_data) == {"repeats"} and len(evaluation_source(config, split="val")) > 0
    assert configs.build(config.data) == sources.NoiseClips(frames=4, size=config.data.size, repeats=config.data.repeats)


def test_a_new_symbol_comes_before_its_fields() -> None:
    """In whatever order they are given, and where the evaluation data are locked."""
    config = configs.load("configs/scaling/toy.py")
    configs.override(config, {"data.length": "8", "data.__symbol__": "videomae_jax.data.sources.NoiseClips"})
    assert config.data.length == 8 and "crop" not in config.eval_data


def test_damage_is_replaced(builder: Any, tmp_path: pathlib.Path) -> None:
    """A cut shard is a typed error of every row in it."""
    folder = copied(builder, tmp_path)
    shard = folder / f"{builder.name}-train.array_record-00000-of-00001"
    shard.write_bytes(shard.read_bytes()[:60000])
    made = source(builder, folder=str(folder), split="all")
    with pytest.raises(decode.DecodeError, match="train.array_record-00000-of-00001"):
        made.read(0, rng=rng())
    with pipeline.sweep(made, batch_size=8) as stream:
        assert next(stream)["fault"].astype(bool).tolist() == [True] * 6 + [False] * 2
