"""The stream is a pure function of (seed, position), fails as it promises, and leaves nothing behind."""

import dataclasses
import gc
import multiprocessing
import os
import pathlib
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from videomae_jax import parallel
from videomae_jax.data import decode, pipeline, sources
from videomae_jax.errors import UserError

LENGTH, BATCH, COPIES, STEPS = 11, 8, 2, 4  # a batch of 8 straddles the border of a pass over 11 rows
ROOT = pathlib.Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Examples that tell their row, their draws and who read them; `log` gets a line per read."""

    length: int = LENGTH
    repeats: int = COPIES
    broken: tuple[int, ...] = ()
    log: str = ""
    delay: float = 0.0
    classes: tuple[str, ...] = ()

    @property
    def fields(self) -> dict[str, sources.Field]:
        """The row that was read, with eight draws a copy; a long one that needs alignment; facts of the process."""
        return {"video": sources.Field((3, 3), "uint8", "image"), "drawn": sources.Field((8,), "int64", "static"),
                "label": sources.Field((), "int32", "static"), "process": sources.Field((3,), "int64", "static")}

    def __len__(self) -> int:
        return self.length

    def name(self, row: int, /) -> str:
        return f"clip_{row}.mp4"

    def read(self, row: int, /, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
        time.sleep(self.delay)
        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{row}\n")
        if row in self.broken:
            raise decode.DecodeError(self.name(row), "decode", "broken on purpose")
        bridge = sys.modules.get("jax._src.xla_bridge")
        process = [os.getpid(), int(bool(bridge) and bridge.backends_are_initialized()), "torch" in sys.modules]
        return {"video": rng.integers(0, 256, (self.repeats, 3, 3), np.uint8), "drawn": rng.integers(0, 10**9, (self.repeats, 8)),
                "label": np.full(self.repeats, row, np.int32), "process": np.tile(np.asarray(process), (self.repeats, 1))}


def merged(parts: list[dict[str, np.ndarray]], /) -> dict[str, np.ndarray]:
    """Rows of all parts, but for the facts of their processes."""
    return {k: np.concatenate([np.array(p[k]) for p in parts]) for k in parts[0] if k != "process"}


def drawn(source: Any, /, *, steps: int = STEPS, hosts: int = 1, **options: Any) -> dict[str, np.ndarray]:
    """The first global batches of a stream, put together from its hosts, one after the other."""
    opened = [pipeline.stream(source, batch_size=BATCH, host=h, hosts=hosts, **options) for h in range(hosts)]
    try:
        return merged([next(s) for _ in range(steps) for s in opened])
    finally:
        for s in opened:
            s.close()


def assert_equal(first: dict[str, np.ndarray], second: dict[str, np.ndarray], /) -> None:
    """Bit-identical keys, types and values."""
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert value.dtype == second[key].dtype
        np.testing.assert_array_equal(value, second[key], err_msg=key)


@pytest.fixture(scope="module")
def straight() -> dict[str, np.ndarray]:
    """One host, one thread, no workers; two rows are broken."""
    return drawn(Rows(broken=(3, 7)), seed=5, threads=1)


def test_keys_of_a_batch(straight: dict[str, np.ndarray]) -> None:
    """Types and rows of what a batch always has; key is (position, copy) with the copies of a clip side by side."""
    rows = STEPS * BATCH * COPIES
    assert {k: (v.dtype.name, v.shape) for k, v in straight.items()} == {
        "video": ("uint8", (rows, 3, 3)), "drawn": ("int64", (rows, 8)), "label": ("int32", (rows,)), "key": ("uint32", (rows, 2)),
        "row": ("int32", (rows,)), "fault": ("int32", (rows,)), "valid": ("bool", (rows,))}
    assert straight["key"].tolist() == [[p, c] for p in range(STEPS * BATCH) for c in range(COPIES)]
    assert straight["valid"].all()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_any_number_of_hosts_and_threads(straight: dict[str, np.ndarray], hosts: int, threads: int) -> None:
    """Global batches, draws, keys and substitutes are bit-identical, in the same places."""
    assert_equal(drawn(Rows(broken=(3, 7)), seed=5, hosts=hosts, threads=threads), straight)


@pytest.mark.parametrize("workers", [0, 1])
def test_positions_of_a_host_may_lie_apart(straight: dict[str, np.ndarray], workers: int) -> None:
    """Each row of the global batch is that of one host, whichever positions a host reads; the last batch of a sweep is padded behind its last row on each."""
    hosts = (((0, 2), (5, 8)), ((2, 5),))
    whole = merged(swept(Rows(), batch=BATCH)[0])
    for blocks in hosts:
        places = np.concatenate([np.arange(*block) for block in blocks])
        with pipeline.stream(Rows(broken=(3, 7)), batch_size=BATCH, seed=5, blocks=blocks, workers=workers) as stream:
            found = merged([next(stream) for _ in range(STEPS)])
        rows = (np.arange(STEPS)[:, None, None] * BATCH + places[:, None]) * COPIES + np.arange(COPIES)
        assert_equal(found, {k: v[rows.reshape(-1)] for k, v in straight.items()})
        with pipeline.sweep(Rows(), batch_size=BATCH, blocks=blocks, workers=workers) as sweep:
            found = merged(list(sweep))
        rows = ((np.arange(2)[:, None, None] * BATCH + places[:, None]) * COPIES + np.arange(COPIES)).reshape(-1)
        np.testing.assert_array_equal(found["valid"], whole["valid"][rows])
        assert_equal({k: v[found["valid"]] for k, v in found.items()}, {k: v[rows[found["valid"]]] for k, v in whole.items()})


@pytest.mark.parametrize(("hosts", "workers"), [
    (1, 4), (2, 2), *(pytest.param(h, w, marks=pytest.mark.slow) for h in (1, 2, 4, 8) for w in (1, 2, 3, 4))])
def test_any_number_of_workers(straight: dict[str, np.ndarray], hosts: int, workers: int) -> None:
    """Processes change nothing either."""
    assert_equal(drawn(Rows(broken=(3, 7)), seed=5, hosts=hosts, workers=workers), straight)


@pytest.mark.parametrize("start", [0, 1, 5, 8, 11, 24])
def test_resume_from_any_position(straight: dict[str, np.ndarray], start: int) -> None:
    """What follows a position does not depend on where the stream began."""
    rest = drawn(Rows(broken=(3, 7)), seed=5, start=start, steps=(STEPS * BATCH - start) // BATCH, hosts=2)
    assert_equal(rest, {k: v[start * COPIES: start * COPIES + len(rest["row"])] for k, v in straight.items()})


def test_resume_with_workers(straight: dict[str, np.ndarray]) -> None:
    """Another worker count after a restart."""
    assert_equal(drawn(Rows(broken=(3, 7)), seed=5, start=16, steps=2, workers=2), {k: v[16 * COPIES:] for k, v in straight.items()})


def test_far_positions() -> None:
    """A long run addresses its data by number alone: no walking there, and keys wrap at 2^32."""
    far = drawn(Rows(), seed=0, start=2**40 + 3, steps=1)
    assert far["key"][::COPIES, 0].tolist() == [*range(3, 11)]
    assert_equal(far, drawn(Rows(), seed=0, start=2**40 + 3, steps=1, hosts=4))


def test_seeds_and_copies_differ(straight: dict[str, np.ndarray]) -> None:
    """Another seed gives another order and other draws; so does every copy and every pass."""
    other = drawn(Rows(broken=(3, 7)), seed=6)
    assert (other["row"] != straight["row"]).any() and (other["drawn"] != straight["drawn"]).any(axis=-1).all()
    assert len(np.unique(straight["drawn"], axis=0)) == len(straight["drawn"])
    same_order = drawn(Rows(broken=(3, 7)), seed=5 + 2**32)
    assert (same_order["drawn"] != straight["drawn"]).any(axis=-1).all(), "draws use all 64 bits of the seed"


@pytest.mark.parametrize("length", [1, 7, 11, 64])
def test_every_pass_is_a_permutation(length: int) -> None:
    """Each row exactly once in each pass, though batches straddle its border, and in another order each time."""
    passes = 5
    rows = drawn(Rows(length=length), seed=3, steps=-(-passes * length // BATCH))["row"][:: COPIES][: passes * length].reshape(passes, length)
    assert (np.sort(rows, axis=1) == np.arange(length)).all()
    if length > 4:
        assert len({tuple(r) for r in rows}) == passes


def swept(source: Any, /, *, batch: int, hosts: int = 1, **options: Any) -> list[list[dict[str, np.ndarray]]]:
    """Batches of a sweep of every host."""
    found = []
    for host in range(hosts):
        with pipeline.sweep(source, batch_size=batch, host=host, hosts=hosts, **options) as stream:
            found.append([{k: np.array(v) for k, v in b.items()} for b in stream])
    return found


@pytest.mark.parametrize(("length", "batch", "hosts", "workers"), [
    (11, 4, 1, 0), (11, 4, 2, 0), (11, 4, 4, 0), (9, 8, 8, 0), (8, 8, 4, 0), (1, 8, 8, 0), (11, 4, 1, 2), (3, 4, 1, 3)])
def test_sweep_covers_every_row_once(length: int, batch: int, hosts: int, workers: int) -> None:
    """Rows in order, exactly once; as many batches on every host; the rest is padding that repeats the part's last example."""
    parts = swept(Rows(length=length), batch=batch, hosts=hosts, workers=workers)
    assert {len(p) for p in parts} == {-(-length // batch)}
    whole = merged([p[i] for i in range(len(parts[0])) for p in parts])
    assert whole["row"][whole["valid"]].tolist() == [r for r in range(length) for _ in range(COPIES)]
    assert whole["label"].tolist() == whole["row"].tolist() and len(whole["row"]) == -(-length // batch) * batch * COPIES
    assert whole["key"][whole["valid"]].tolist() == [[r, c] for r in range(length) for c in range(COPIES)]
    for part in (p[-1] for p in parts):
        padding = part["row"][~part["valid"]]
        read = part["row"][part["valid"]]
        assert set(padding.tolist()) <= ({int(read[-1])} if len(read) else {length - 1})
    again = merged([b for b in swept(Rows(length=length), batch=batch, hosts=1)[0]])
    for key in whole:
        np.testing.assert_array_equal(whole[key][whole["valid"]], again[key][again["valid"]])


def test_sweep_replaces_what_cannot_be_read() -> None:
    """An unreadable row stays valid, is marked, and its substitute is another row, the same for any split of the work."""
    whole = merged(swept(Rows(broken=(2,)), batch=4)[0])
    assert whole["row"][whole["fault"] > 0].tolist() == [2, 2] and whole["valid"][whole["fault"] > 0].all()
    assert 2 not in whole["label"]
    parts = swept(Rows(broken=(2,)), batch=4, hosts=2)
    np.testing.assert_array_equal(merged([p[i] for i in range(3) for p in parts])["label"][: 11 * COPIES], whole["label"][: 11 * COPIES])


def test_a_broken_clip_is_replaced_and_marked(straight: dict[str, np.ndarray]) -> None:
    """`row` is what the position asked for, `label` what was read; the code is the stage's; every occurrence is marked."""
    failed = np.isin(straight["row"], (3, 7))
    assert failed.sum() >= 2 * COPIES
    assert (straight["fault"] == np.where(failed, 1 + decode.STAGES.index("decode"), 0)).all()
    assert (straight["label"] == straight["row"])[~failed].all() and not np.isin(straight["label"], (3, 7)).any()
    whole = drawn(Rows(), seed=5)
    for key in whole:
        np.testing.assert_array_equal(straight[key][~failed], whole[key][~failed], err_msg="a broken clip changes no other")
    substitutes = {int(p): int(label) for p, label in zip(straight["key"][failed, 0], straight["label"][failed], strict=True)}
    assert len(set(substitutes.values())) > 1, "substitutes depend on the position"


def test_substitutes_that_fail_are_replaced_too() -> None:
    """One readable row is found by every position, for none is tried twice; the first failure is the one that counts."""
    source, failed = Rows(broken=tuple(range(1, LENGTH))), []
    for position in range(60):
        example, fault = pipeline.read(source, position % LENGTH, seed=1, position=position)
        assert example["label"].tolist() == [0] * COPIES
        failed.append(fault)
    assert failed == [0 if position % LENGTH == 0 else 1 + decode.STAGES.index("decode") for position in range(60)]


def test_many_broken_clips_do_not_end_a_run() -> None:
    """With half of the rows damaged the chance that a position finds none is 2^-17, and none of these does."""
    source = Rows(length=1000, broken=tuple(range(0, 1000, 2)), repeats=1)
    labels = [int(pipeline.read(source, 0, seed=0, position=p)[0]["label"][0]) for p in range(2000)]
    assert len(set(labels)) > 400, "substitutes are spread over all rows"


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_readable_is_a_users_error(workers: int, tmp_path: pathlib.Path) -> None:
    """A row and its substitutes that all fail end in one error that names them, also out of a worker."""
    log = tmp_path / "reads"
    source = Rows(broken=tuple(range(LENGTH)), log=str(log))
    with pytest.raises(UserError) as failure:
        drawn(source, seed=0, threads=1, workers=workers)
    message = r"a video and all of its 10 substitutes cannot be read: (clip_\d+\.mp4: decode: broken on purpose; ){11}`index --verify` leaves damaged videos out"
    assert re.fullmatch(message, str(failure.value)) and len(set(re.findall(r"clip_\d+", str(failure.value)))) == LENGTH
    with pytest.raises(UserError):
        log.unlink()
        pipeline.read(source, 0, seed=0, position=0)
    assert sorted(map(int, log.read_text().splitlines())) == [*range(LENGTH)]
    with pytest.raises(UserError, match=f"its {pipeline.ATTEMPTS} substitutes"):
        pipeline.read(Rows(length=100, broken=tuple(range(100))), 0, seed=0, position=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_memory_is_bounded(workers: int, tmp_path: pathlib.Path) -> None:
    """While nobody takes batches, as many of them are read as documented and no more."""
    log = tmp_path / "reads"
    most = pipeline.WAITING * workers if workers else pipeline.AHEAD
    with pipeline.stream(Rows(log=str(log)), batch_size=BATCH, seed=0, workers=workers) as stream:
        for taken in (1, 4):
            while stream._running.taken < taken:
                next(stream)
            until = time.monotonic() + 60
            while len(log.read_text().splitlines()) < (taken + most) * BATCH and time.monotonic() < until:
                time.sleep(0.05)
            time.sleep(1)
            assert len(log.read_text().splitlines()) == (taken + most) * BATCH
            assert len(left(stream._running.batches.segments or "none")) <= most + bool(workers)  # and the list of the processes


def test_a_failing_read_leaves_no_writer_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a batch fails, no thread goes on writing into memory that is about to be given back."""
    slow, running = Rows(broken=(0,)), []
    monkeypatch.setattr(pipeline, "ATTEMPTS", 0)

    def fill(self: pipeline.Batches, batch: Any, place: int, position: int) -> None:
        if position == 0:
            raise UserError("first")
        running.append(position)
        time.sleep(0.3)
        running.remove(position)

    monkeypatch.setattr(pipeline.Batches, "_fill", fill)
    batches = pipeline.Batches(slow, range(LENGTH), 0, 0, BATCH, 0, 1, 4)
    with pytest.raises(UserError, match="first"):
        batches[0]
    assert not running
    batches.close()


@pytest.mark.parametrize("pause", [0.0, 0.02, 0.1, 0.3])
def test_close_while_reading(pause: float) -> None:
    """Threads in the middle of a batch end soon, whatever they are doing; otherwise the process would never exit.

    Those of `deadline` stay for the next stream, and keep no process.
    """
    before = set(threading.enumerate())
    with pipeline.stream(Rows(delay=0.04), batch_size=BATCH, seed=0, threads=1) as stream:
        next(stream)
        time.sleep(pause)
    until = time.monotonic() + 20
    while (rest := {t for t in threading.enumerate() if t not in before and not (t.name == "read" and t.daemon)}) and time.monotonic() < until:
        time.sleep(0.05)
    assert not rest


def test_batches_outlive_the_stream() -> None:
    """Memory that came from a worker is the batch's own: it stays when the stream ends, and lies where devices can use it."""
    with pipeline.stream(Rows(), batch_size=BATCH, seed=2, workers=1) as stream:
        segments = stream._running.batches.segments
        batches = [next(stream) for _ in range(STEPS)]
        views = [b["drawn"][1:, ::2] for b in batches]
        pids = {int(p) for b in batches for p in b["process"][:, 0]}
        assert pids == {p.pid for p in multiprocessing.active_children() if p.name.startswith("grain")}
        assert not any(b["process"][:, 1:].any() for b in batches), "a worker has started a backend or loaded torch"
    gc.collect()
    assert_equal(merged(batches), drawn(Rows(), seed=2))
    for batch, view in zip(batches, views, strict=True):
        np.testing.assert_array_equal(view, batch["drawn"][1:, ::2])
        assert all(type(v) is np.ndarray and v.ctypes.data % pipeline.ALIGNMENT == 0 for v in batch.values())
        batch["video"][...] = 0
    assert not left(segments)
    with pytest.raises(ValueError, match="closed"):
        next(stream)


def left(segments: str, /) -> list[str]:
    """Names of shared memory that begin so."""
    return [p.name for p in pipeline.SHARED.glob(f"{segments}*")]


def test_signals_to_workers_do_not_stop_them() -> None:
    """Ctrl-C and a cluster's SIGTERM reach every process; the training process alone decides, and needs batches until it has."""
    with pipeline.stream(Rows(), batch_size=BATCH, seed=2, workers=1) as stream:
        pid = int(next(stream)["process"][0, 0])
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
        got = [next(stream) for _ in range(2 + pipeline.WAITING)]
        assert int(got[-1]["process"][0, 0]) == pid


def test_a_killed_worker_is_an_error() -> None:
    """Not a hang; and what it had written does not stay."""
    with pipeline.stream(Rows(), batch_size=BATCH, seed=2, workers=2) as stream:
        os.kill(int(next(stream)["process"][0, 0]), signal.SIGKILL)
        begin = time.monotonic()
        with pytest.raises(RuntimeError, match="exit code -9"):
            for _ in range(10 * pipeline.WAITING):
                next(stream)
        assert time.monotonic() - begin < 60
        segments = stream._running.batches.segments
    assert not left(segments)


SCRIPT = """
import multiprocessing, os, signal, sys
from videomae_jax.data import pipeline
from test_pipeline import Rows

def run(how):
    stream = pipeline.stream(Rows(), batch_size=8, seed=0, workers=2)
    batch = next(stream)
    print(stream._running.batches.segments, *[p.pid for p in multiprocessing.active_children()], flush=True)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "inside":
        with stream:
            raise KeyError("inside")
    raise KeyError("outside")

if __name__ == "__main__":
    run(sys.argv[1])
"""


@pytest.mark.parametrize("how", ["inside", "outside", "kill"])
def test_nothing_stays_after_a_crash(how: str, tmp_path: pathlib.Path) -> None:
    """An exception, within the `with` or without one, leaves no memory, process or warning; a killed process no memory or process."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    with (tmp_path / "errors").open("w+") as errors:
        done = subprocess.run([sys.executable, script, how], stdout=subprocess.PIPE, stderr=errors, env=environment, text=True, timeout=120, check=False)
        segments, *pids = done.stdout.split()
        until = time.monotonic() + 30
        while time.monotonic() < until and (left(segments) or any(map(alive, pids))):
            time.sleep(0.2)
        errors.seek(0)
        text = errors.read()
    assert not left(segments) and not any(map(alive, pids)) and len(pids) == 2
    if how != "kill":
        assert text.splitlines()[-1] == f"KeyError: '{how}'", text
        assert "leaked" not in text and "Exception ignored" not in text


@dataclasses.dataclass(frozen=True)
class Held(Rows):
    """Rows whose processes stay for a while between the making of shared memory and its setting up."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        ftruncate = os.ftruncate
        os.ftruncate = lambda *given: (time.sleep(1.0), ftruncate(*given))[1]


def test_nothing_stays_of_memory_that_was_being_made(tmp_path: pathlib.Path) -> None:
    """A training process that is killed takes its workers along, at whatever they are."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("import Rows", "import Held as Rows"))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run([sys.executable, script, "kill"], stdout=subprocess.PIPE, env=environment, text=True, timeout=120, check=False)
    segments, *pids = done.stdout.split()
    until = time.monotonic() + 30
    while time.monotonic() < until and (left(segments) or any(map(alive, pids))):
        time.sleep(0.2)
    assert not left(segments) and not any(map(alive, pids)) and len(pids) == 2


def alive(pid: str, /) -> bool:
    """Whether a process runs; a zombie does not."""
    stat = pathlib.Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_modules_of_the_data_path_do_not_load_jax() -> None:
    """All but the pipeline, whose Grain loads jax itself (and starts no backend)."""
    code = ("import sys; from videomae_jax.data import clips, decode, index, sources, transforms; "
            "sys.exit(any(m in sys.modules for m in ('jax', 'flax', 'torch', 'tensorflow', 'grain')))")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_small_shared_memory_is_told_before_it_kills(monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers often have 64 MB; a worker would die of a bus error without a word."""
    monkeypatch.setattr(pipeline.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10_000})())
    with pytest.raises(UserError, match=r"shared memory.*allowed are fewer workers \(--config.workers, .*--config.batch_size"):
        pipeline.stream(Rows(), batch_size=BATCH, seed=0, workers=2)
    pipeline.stream(Rows(), batch_size=BATCH, seed=0).close()


def test_the_order_of_a_pass_is_that_of_earlier_versions() -> None:
    """Another one would give a run that goes on under a new Grain other data than it began with."""
    assert [pipeline.Shuffled(40, 3)[p] for p in range(8)] == [29, 30, 31, 7, 26, 3, 18, 19]
    assert [pipeline.Shuffled(40, 3)[p] for p in range(40, 48)] == [36, 24, 15, 7, 26, 10, 28, 4]


def mesh_of(order: list[int], /, *, tensor: int = 1) -> Any:
    """A mesh as far as its rows are asked for: the process of every device, along the batch."""
    devices = np.asarray([types.SimpleNamespace(process_index=process) for process in order]).reshape(-1, 1, tensor)
    return types.SimpleNamespace(devices=devices, shape=dict(zip(parallel.AXES, devices.shape, strict=True)))


def test_a_host_reads_what_its_devices_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every position once over all processes; neighbours are one block, a tensor group counts once, and no decoded clip is of two processes."""
    def owned(order: list[int], decodes: int, /, *, repeats: int = 1, tensor: int = 1) -> list[Any]:
        found = []
        for process in sorted(set(order)):
            monkeypatch.setattr(jax, "process_index", lambda process=process: process)
            found.append(parallel.rows(mesh_of(order, tensor=tensor), decodes, repeats=repeats))
        return found

    assert owned([0, 0, 0], 7, repeats=3) == [((0, 7),)]
    assert owned([0, 0, 1, 1], 8) == [((0, 4),), ((4, 8),)] and owned([1, 1, 0, 0], 8, repeats=2) == [((4, 8),), ((0, 4),)]
    assert owned([0, 1, 1, 0], 8) == [((0, 2), (6, 8)), ((2, 6),)]
    assert owned([0, 0, 1, 1, 1, 1, 0, 0], 8, tensor=2) == [((0, 2), (6, 8)), ((2, 6),)]
    assert owned([0, 0, 1, 1, 0, 0, 1, 1], 4, repeats=4) == [((0, 1), (2, 3)), ((1, 2), (3, 4))]
    with pytest.raises(UserError, match="4 decoded clips x 4 repeats over 8 batch devices: .* two processes; allowed are multiples of 8 decoded clips"):
        owned([0, 1, 1, 0, 0, 0, 1, 1], 4, repeats=4)


def test_what_travels_to_workers_is_small() -> None:
    """Neither threads nor the shuffled order travel."""
    batches = pipeline.Batches(Rows(length=10**6), pipeline.Shuffled(10**6, 0), 0, 0, BATCH, 0, 1, 2)
    first = batches[0]
    data = pickle.dumps(batches)
    assert len(data) < 20_000
    assert_equal({k: v for k, v in pickle.loads(data)[0].items() if k != "process"}, {k: v for k, v in first.items() if k != "process"})
    batches.close()


@pytest.mark.parametrize(("options", "message"), [
    ({"batch_size": 0}, "batch_size is 0"), ({"hosts": 3}, "multiples of 3"), ({"host": 2, "hosts": 2}, "host 2"), ({"workers": -1}, "workers is -1"),
    ({"threads": 0}, "threads is 0"), ({"hosts": 0}, "hosts is 0")])
@pytest.mark.parametrize("make", [pipeline.stream, pipeline.sweep])
def test_arguments_are_checked(make: Any, options: dict[str, int], message: str) -> None:
    """Every wrong number names itself and what is allowed."""
    with pytest.raises(UserError, match=message):
        make(Rows(), **({"batch_size": BATCH, "seed": 0} | options))


def test_a_source_that_breaks_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """An array of another shape than declared names the example and both shapes."""
    plain = Rows.read
    monkeypatch.setattr(Rows, "read", lambda self, row, *, rng: plain(self, row, rng=rng) | {"video": np.zeros((COPIES, 3, 4), np.uint8)})
    with pytest.raises(ValueError, match=r"clip_\d+\.mp4: video has the shape \(2, 3, 4\); the source declares \(2, 3, 3\)"):
        drawn(Rows(), seed=0)


def test_iterates() -> None:
    """A stream is its own iterator; a sweep ends."""
    with pipeline.sweep(Rows(), batch_size=4) as stream:
        assert isinstance(stream, Iterator) and len(list(stream)) == 3
        assert list(stream) == []
