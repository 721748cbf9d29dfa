"""Copies of videos from addresses: fetched once, whole or absent, never more than the disk can spare, and nothing that a batch depends on."""

import collections
import concurrent.futures
import os
import pathlib
import warnings
from collections.abc import Iterator

import fsspec
import numpy as np
import pytest
from test_decode import encode

from videomae_jax import config as configs
from videomae_jax.data import decode, index, pipeline, remote, sources
from videomae_jax.errors import UserError


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Warnings come once a process; every test hears them."""
    remote._warned.clear()
    yield
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> collections.Counter[str]:
    """How often an address was read."""
    found: collections.Counter[str] = collections.Counter()
    read = remote.read
    monkeypatch.setattr(remote, "read", lambda address, **kw: (found.update([address]), read(address, **kw))[1])
    return found


def world(folder: pathlib.Path) -> sources.VideoClips:
    """Three videos in memory and their index."""
    for i, name in enumerate("abc"):
        fsspec.filesystem("memory").pipe_file(f"/bucket/{name}.mp4", encode(frames=16 + i, bf="0"))
    index.write(index.build("memory://bucket", val_fraction=0), folder / "i.parquet")
    return sources.VideoClips(index=str(folder / "i.parquet"), frames=4, size=32, stage=str(folder / "stage"))


def files(folder: pathlib.Path) -> list[pathlib.Path]:
    """All there is in a stage."""
    return sorted(p for p in (folder / "stage").rglob("*") if p.is_file())


def test_a_video_is_fetched_once(tmp_path: pathlib.Path, fetched: collections.Counter[str]) -> None:
    """Every pass gives what a source without a stage gives, after the bucket is gone too; an exchanged video is fetched anew."""
    made = world(tmp_path)
    plain = sources.VideoClips(index=made.index, frames=4, size=32)
    want = [plain.read(row, rng=np.random.default_rng(row))["video"] for row in range(3)]
    fetched.clear()
    for _ in range(3):
        for row in range(3):
            np.testing.assert_array_equal(made.read(row, rng=np.random.default_rng(row))["video"], want[row])
    assert dict(fetched) == {f"memory://bucket/{n}.mp4": 1 for n in "abc"} and len(files(tmp_path)) == 3
    for path in files(tmp_path):
        assert path.stat().st_mode & 0o444 == 0o444  # whoever else works on this host may read it
        path.write_bytes(path.read_bytes()[:100])  # of another size than is indexed
    np.testing.assert_array_equal(made.read(0, rng=np.random.default_rng(0))["video"], want[0])
    assert sum(fetched.values()) == 4
    fsspec.filesystem("memory").rm("/bucket/b.mp4")
    with pytest.raises(decode.DecodeError, match="open: FileNotFoundError"):
        made.read(1, rng=np.random.default_rng(1))
    np.testing.assert_array_equal(made.read(0, rng=np.random.default_rng(0))["video"], want[0])
    before = {path: path.read_bytes() for path in files(tmp_path)}
    fsspec.filesystem("memory").pipe_file("/bucket/c.mp4", b"exchanged")
    for size in (7, None):
        assert remote.staged("memory://bucket/c.mp4", made.stage, size=size) == b"exchanged"
    assert {path: path.read_bytes() for path in files(tmp_path)} == before, "what is not the indexed file is not kept"


@pytest.mark.parametrize("stage", ["gs://bucket/stage", "~/stage"])
def test_a_stage_is_a_folder_of_the_host(stage: str) -> None:
    """An address would become a folder of that name."""
    with pytest.raises(UserError, match=f"stage '{stage}'; allowed is the path of a folder on a disk of the host"):
        sources.VideoClips(index="i.parquet", stage=stage)


def test_threads_and_killed_writers_share_a_stage(tmp_path: pathlib.Path, fetched: collections.Counter[str]) -> None:
    """Sixteen threads at once read whole files; what a killed process left half-written is not taken for a copy."""
    made, size = world(tmp_path), len(fsspec.filesystem("memory").cat_file("/bucket/a.mp4"))
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        got = list(pool.map(lambda i: remote.staged("memory://bucket/a.mp4", made.stage, size=size), range(64)))
    assert {len(data) for data in got} == {size} and len(files(tmp_path)) == 1
    (path,) = files(tmp_path)
    path.rename(path.with_name(".half"))
    path.with_name(".half").write_bytes(b"half")
    os.utime(path.with_name(".half"), (0, 0))
    path.with_name(".under_way").write_bytes(b"half")
    remote._sweep.cache_clear()
    assert len(remote.staged("memory://bucket/a.mp4", made.stage, size=size)) == size
    assert [p.name for p in files(tmp_path)] == [".under_way", path.name], "what was left an hour ago and more is gone"


def test_a_full_or_closed_disk_is_a_warning(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said once; videos come from their addresses."""
    made = world(tmp_path)
    free = iter(range(4 * 10**8, 0, -(10**8)))
    monkeypatch.setattr(remote.shutil, "disk_usage", lambda folder: collections.namedtuple("Usage", "total used free")(10**10, 0, next(free)))
    with pytest.warns(UserWarning, match=r"keeps no more files \(0.4 of 10.0 GB are free\)"):
        made.read(0, rng=np.random.default_rng(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.read(1, rng=np.random.default_rng(0))
    assert not files(tmp_path)
    (tmp_path / "file").write_text("")
    closed = sources.VideoClips(index=made.index, frames=4, size=32, stage=str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be"):
        closed.read(0, rng=np.random.default_rng(0))


def test_a_stage_changes_no_batch(tmp_path: pathlib.Path) -> None:
    """Over decoding processes, which share it; and a run may take one or leave it at any time."""
    (tmp_path / "v").mkdir()
    for i, name in enumerate("abcdef"):
        (tmp_path / "v" / f"{name}.mp4").write_bytes(encode(frames=16 + i, bf="0"))
    index.write(index.build(f"file://{tmp_path}/v", val_fraction=0), tmp_path / "i.parquet")
    batches = []
    for stage, workers in (("", 0), (str(tmp_path / "stage"), 2), (str(tmp_path / "stage"), 0)):
        made = sources.VideoClips(index=str(tmp_path / "i.parquet"), frames=4, size=32, stage=stage)
        with pipeline.stream(made, batch_size=6, seed=0, workers=workers) as stream:
            batches.append([{k: np.array(v) for k, v in next(stream).items()} for _ in range(3)])
    for other in batches[1:]:
        for one, two in zip(batches[0], other, strict=True):
            assert all(one[k].tobytes() == two[k].tobytes() for k in one) and not two["fault"].any()
    assert len(files(tmp_path)) == 6
    one, two = configs.load("configs/pretrain/vit_b.py"), configs.load("configs/pretrain/vit_b.py")
    configs.override(two, {"data.stage": "/ssd/stage"})
    assert {k for k, v in configs.compare(one, two).items() if v} == {"free"}
