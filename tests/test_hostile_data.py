"""Indices, their caches and packed records are data: whatever stands in them, a read gives a clip or an error that names the file."""

import pathlib
import random
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_decode import encode

from videomae_jax.data import clips, decode, index, packed, packing, sources
from videomae_jax.errors import UserError

CASES = 120  # of each kind of bytes
WORDS: tuple[Any, ...] = (None, "", "/etc/passwd", "../../etc", "\0", "a" * 5000)
NUMBERS: tuple[Any, ...] = (None, 0, -1, 1, 2**31 - 1)
LONG: tuple[Any, ...] = (*NUMBERS, 2**62, -(2**63))
LISTS: tuple[Any, ...] = (None, [], [-1], [5, 3, 1], [None], [2**62] * 3)
HOSTILE = {"string": WORDS, "int32": NUMBERS, "int64": LONG, "double": (None, float("nan"), -1.0, 1e300), "large_list": LISTS}


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Three videos, their index, and both packed."""
    for name in "abc":
        (tmp_path / f"{name}.mp4").write_bytes(encode(frames=24, bf="0", g="12"))
    index.write(index.build(tmp_path), tmp_path / "index.parquet")
    settings = packing.Settings(frames=6, stride=2, preset="ultrafast")
    packing.pack(packing.planned(str(tmp_path / "index.parquet"), tmp_path / "p", settings=settings, shards=1))
    return tmp_path


def outcome(kind: type[sources.VideoClips], path: pathlib.Path, /) -> Counter[str]:
    """What became of opening an index and reading its rows; anything but these is raised."""
    found: Counter[str] = Counter()
    made = kind(index=str(path), frames=3, size=16, sampling=clips.DenseCentre(stride=2), split="all")
    try:
        rows = range(len(made))
    except UserError as error:
        assert "\n" not in str(error) and "parquet" in str(error)
        return Counter(refused=1)
    for row in rows:
        try:
            assert made.read(row, rng=np.random.default_rng(0))["video"].shape == (1, 3, 16, 16, 3)
            found["read"] += 1
        except decode.DecodeError as error:
            assert error.stage in decode.STAGES
            found["damaged"] += 1
        except UserError:
            found["refused"] += 1
    return found


def spoilt(raw: bytes, rng: random.Random, /, *, cut: bool) -> bytes:
    """One to four bytes are others, and the end may be missing."""
    data = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data[: rng.randrange(len(data))] if cut else data)


@pytest.mark.parametrize(("kind", "name"), [(sources.VideoClips, "index.parquet"), (packed.PackedClips, "p/index.parquet")])
def test_any_value_of_any_column(folder: pathlib.Path, kind: type[sources.VideoClips], name: str) -> None:
    """Two of three rows are spoilt; the third is read nevertheless, but for values that no column of this type can hold."""
    table, total = pq.read_table(folder / name), Counter[str]()
    for field in table.schema:
        for value in () if field.name in ("status", "split") else HOSTILE[str(field.type).split("<")[0]]:
            rows = table.to_pylist()
            rows[0][field.name] = rows[1][field.name] = value
            path = (folder / name).with_name("spoilt.parquet")
            pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
            found = outcome(kind, path)
            assert found["read"] >= 1 or found["refused"], (field.name, value, found)
            total += found
    assert total["damaged"] > 50 and total["read"] > 200


def test_a_spoilt_row_does_not_end_a_packing(folder: pathlib.Path) -> None:
    """It is left out, as any video that cannot be read."""
    rows = pq.read_table(folder / "index.parquet").to_pylist()
    rows[1]["keys"] = None
    pq.write_table(pa.Table.from_pylist(rows, schema=index.SCHEMA), folder / "spoilt.parquet")
    packing.pack(packing.planned(str(folder / "spoilt.parquet"), folder / "q", settings=packing.Settings(frames=6, stride=2, preset="ultrafast"), shards=1))
    assert outcome(packed.PackedClips, folder / "q/index.parquet") == {"read": 2}


def test_bytes_of_an_index(folder: pathlib.Path) -> None:
    """Pages have checksums, so what is read from a spoilt file is what was written."""
    raw, rng, total = (folder / "index.parquet").read_bytes(), random.Random(0), Counter[str]()
    for case in range(CASES):
        path = folder / "spoilt.parquet"
        path.write_bytes(spoilt(raw, rng, cut=case % 4 == 0))
        total += outcome(sources.VideoClips, path)
    assert total["refused"] > CASES // 2


def test_bytes_of_a_cache(folder: pathlib.Path) -> None:
    """A spoilt cache would end its readers by a signal; it is written anew, or its values are wrong and reads say so."""
    path, rng = folder / "index.parquet", random.Random(1)
    cache = path.with_suffix(".arrow")
    raw, renewed = cache.read_bytes(), 0
    for case in range(CASES):
        cache.unlink()  # in place of a change of what earlier cases have mapped
        cache.write_bytes(spoilt(raw, rng, cut=case % 4 == 0))
        found = outcome(sources.VideoClips, path)
        assert found["read"] + found["damaged"] == 3
        renewed += cache.read_bytes() == raw
    assert renewed > CASES // 2


def test_bytes_of_shards_and_records(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards have checksums; a record that passes them may still be anything."""
    shard, rng = next((folder / "p").rglob("*.array_record")), random.Random(2)
    raw, record = shard.read_bytes(), packed.record(shard, 0, name="a")
    shards, records = Counter[str](), Counter[str]()
    for case in range(CASES):
        packed._reader.cache_clear()
        shard.unlink()
        shard.write_bytes(spoilt(raw, rng, cut=case % 4 == 0))
        shards += outcome(packed.PackedClips, folder / "p/index.parquet")
    for case in range(CASES):
        data = spoilt(record[:300] if case % 2 else record, rng, cut=case % 4 == 0) + record[300:] * (case % 2)
        monkeypatch.setattr(packed, "record", lambda *a, data=data, **k: data)
        records += outcome(packed.PackedClips, folder / "p/index.parquet")
    assert shards["damaged"] > CASES // 3 and shards["read"] and records["damaged"] > CASES // 2
