"""Clips of a data set that TensorFlow Datasets prepared as ArrayRecord, read without TensorFlow.

    tfds build ucf101 --file_format=array_record          # once, anywhere; TensorFlow is needed for it by most builders
    --config.data.__symbol__=videomae_jax.data.tfds_source.TfdsClips --config.data.folder=~/tensorflow_datasets/ucf101/ucf101_1/2.0.0

The files are read directly, by features.json and dataset_info.json: `tfds.data_source` decodes every frame of a video where
a clip needs a few, and its Video feature cannot even be made without TensorFlow (tensorflow-datasets 4.9.10).
"""

import dataclasses
import functools
import io
import json
import pathlib
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from videomae_jax.data import clips, decode, packed, remote, sources, transforms
from videomae_jax.data.splits import FOLDERS
from videomae_jax.errors import UserError


class _Opened(NamedTuple):
    """A prepared data set as one process sees it: per row its shard, place and name; names of features and classes."""

    shards: list[tuple[pathlib.Path, int, str]]  # file, records, split
    ends: np.ndarray
    rows: np.ndarray
    video: str
    label: str
    classes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class TfdsClips:
    """`video` u8 [K T size size 3] and `label` i32 [K] from a prepared version folder, the one with features.json.

    `split` is a split of the data set, or train, val or test for those that begin so (validation is val), or all. `video` and `label`
    name its features, levels joined by a slash; "" is the only Video (or Sequence of Image) and the only ClassLabel there is, -1 where
    there is none. `fps` is what `PerSecond` counts with, which the format does not say.
    """

    folder: str
    split: str = "train"
    video: str = ""
    label: str = ""
    frames: int = 16
    size: int = 224
    repeats: int = 1
    limit: int = 0
    sampling: Any = clips.DenseRandom()
    crop: Any = transforms.MultiScaleCrop()
    fps: float = 25.0
    timeout: float = 30.0
    max_bad_fraction: float = 0.01

    def __post_init__(self) -> None:
        sources.check_numbers(self)
        if not self.fps > 0:
            raise UserError(f"fps is {self.fps}; allowed are numbers above 0")

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @functools.cached_property
    def _opened(self) -> _Opened:
        home = remote.local(self.folder, what="data set").expanduser()
        info, features = (_json(home / name) for name in ("dataset_info.json", "features.json"))
        if info.get("fileFormat", info.get("file_format")) != "array_record":
            raise UserError(f"{home} is stored as {info.get('fileFormat')}; allowed is array_record: tfds build --file_format=array_record, or tfds convert_format")
        kinds = dict(_kinds(features))
        video, label = _chosen(self.video, kinds, "video", home=home), _chosen(self.label, kinds, "label", home=home)
        shards = _shards(home, info, split=self.split)
        ends = np.cumsum([count for _, count, _ in shards])
        names = home / f"{label.replace('/', '-')}.labels.txt"
        classes = tuple(names.read_text().splitlines()) if label and names.is_file() else ()
        return _Opened(shards, ends, sources.spread(np.arange(int(ends[-1])), limit=self.limit), video, label, classes)

    @property
    def fields(self) -> Mapping[str, sources.Field]:
        """Keys of an example."""
        return {"video": sources.Field((self.frames, self.size, self.size, 3), "uint8", "image"), "label": sources.Field((), "int32", "static")}

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names of the label, as the data set numbers them."""
        return self._opened.classes

    def __len__(self) -> int:
        return len(self._opened.rows)

    def _place(self, row: int, /) -> tuple[pathlib.Path, int]:
        number, opened = int(self._opened.rows[row]), self._opened
        shard = int(np.searchsorted(opened.ends, number, "right"))
        return opened.shards[shard][0], number - int(opened.ends[shard]) + opened.shards[shard][1]

    def name(self, row: int, /) -> str:
        """The shard and the place in it: the format has no names."""
        shard, place = self._place(row)
        return f"{shard.name}[{place}]"

    def read(self, row: int, /, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Frames of a record; only those of the clip are decoded. Raises DecodeError."""
        shard, place = self._place(row)
        found = tf_example_pb2.Example.FromString(packed.record(shard, place, name="")).features.feature
        stored = found[self._opened.video].bytes_list.value
        if not stored:
            raise decode.DecodeError(self.name(row), "index", "the video has no frame")
        ids = clips.at(self.sampling, fps=Fraction(self.fps).limit_denominator(1001)).ids(len(stored), clip=self.frames, rng=rng)
        pictures = {number: self._picture(row, stored[number]) for number in np.unique(ids).tolist()}
        if len({p.shape for p in pictures.values()}) > 1:
            raise decode.DecodeError(self.name(row), "decode", f"frames of different sizes: {sorted({p.shape for p in pictures.values()})}")
        video = np.stack([pictures[number] for number in ids.tolist()])
        crops = np.stack([self.crop(video, size=self.size, rng=rng) for _ in range(self.repeats)])
        label = found[self._opened.label].int64_list.value[0] if self._opened.label else -1
        return {"video": crops, "label": np.full(self.repeats, label, np.int32)}

    def _picture(self, row: int, data: bytes, /) -> np.ndarray:
        try:
            return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:  # what PIL raises for damage
            raise decode.DecodeError(self.name(row), "decode", str(error).splitlines()[0]) from error


def _json(path: pathlib.Path, /) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); needed is the folder of a version that TensorFlow Datasets prepared") from error


def _kinds(node: dict[str, Any], prefix: str = "", /) -> Iterator[tuple[str, str]]:
    """(name, "video" | "label") of the features that matter, names as they stand in records."""
    if "featuresDict" in node:
        for name, child in node["featuresDict"]["features"].items():
            yield from _kinds(child, f"{prefix}/{name}" if prefix else name)
    elif "video" in node or "image" in node.get("sequence", {}).get("feature", {}):
        yield prefix, "video"
    elif "classLabel" in node:
        yield prefix, "label"


def _chosen(name: str, kinds: dict[str, str], kind: str, /, *, home: pathlib.Path) -> str:
    """The feature of a kind; "" for a label where there is none."""
    known = [n for n, k in kinds.items() if k == kind]
    if (name and name not in known) or (not name and (len(known) > 1 or (kind == "video" and not known))):
        raise UserError(f"{kind} {name!r} of {home}; its features of this kind are {', '.join(known) or '(none)'}")
    return name or (known[0] if known else "")


def _shards(home: pathlib.Path, info: dict[str, Any], /, *, split: str) -> list[tuple[pathlib.Path, int, str]]:
    """(file, records, split) of the shards of a split."""
    splits = {s["name"]: s for s in info["splits"]}
    wanted = [n for n in splits if split in ("all", n)] or [n for n in splits if FOLDERS.get(n) == split]
    found = []
    for name in wanted:
        lengths = [int(n) for n in splits[name]["shardLengths"]]
        for i, count in enumerate(lengths):
            place = {"DATASET": info["name"], "SPLIT": name, "FILEFORMAT": "array_record", "SHARD_X_OF_Y": f"{i:05}-of-{len(lengths):05}",
                     "SHARD_INDEX": f"{i:05}", "NUM_SHARDS": f"{len(lengths):05}"}
            found.append((home / splits[name].get("filepathTemplate", "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}").format(**place), count, name))
    if not sum(count for _, count, _ in found):
        raise UserError(f"{home} has no example in split {split!r}; it has {', '.join(splits)}")
    return found
