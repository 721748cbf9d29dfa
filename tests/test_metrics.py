"""Means that add up, files that survive a kill, a progress line, and metrics that are read one interval late."""

import io
import json
import os
import pathlib
import re
import struct
import subprocess
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from videomae_jax import metrics
from videomae_jax.metrics import Clock, Mean, Progress, Writer


def test_mean_adds_up_over_parts() -> None:
    """Weighted, not a mean of means; 0 where nothing counts."""
    whole = Mean(jnp.asarray([1.0, 4.0, 9.0]), jnp.asarray([1.0, 2.0, 1.0]))
    assert float(whole.reduce().value()) == 14 / 4
    parts = [Mean(whole.total[:1], whole.weight[:1]).reduce(), Mean(whole.total[1:], whole.weight[1:]).reduce()]
    assert float(Mean(parts[0].total + parts[1].total, parts[0].weight + parts[1].weight).value()) == 14 / 4
    empty = Mean(jnp.zeros(2), jnp.zeros(2)).reduce().value()
    assert float(empty) == 0


def test_overview_lists_leaves_and_total() -> None:
    """Names, shapes and the sum."""
    text = metrics.overview({"a": {"kernel": np.zeros((3, 4), np.float32)}, "b": np.zeros(5, np.float32)})
    assert "a/kernel" in text and "(3, 4)" in text and "17" in text


def filled(directory: pathlib.Path, /, *, tail: str = "") -> pathlib.Path:
    """A run directory with steps 1 to 5 and some more text."""
    writer = Writer(directory, step=-1, lead=True)
    for step in range(1, 6):
        writer.write(step, {"loss": 1 / step})
    writer.close()
    path = directory / "metrics.jsonl"
    path.write_text(path.read_text() + tail)
    return path


def steps(directory: pathlib.Path, /) -> list[int]:
    """Steps on file."""
    return [line["step"] for line in metrics.read(directory)]


@pytest.mark.parametrize(("step", "kept"), [(3, [1, 2, 3]), (5, [1, 2, 3, 4, 5]), (0, []), (-1, [])])
@pytest.mark.parametrize("tail", ["", '{"step": 6, "lo', "{}\n", "\n"], ids=["whole", "half", "strange", "blank"])
def test_writer_cuts_what_a_resumed_run_redoes(step: int, kept: list[int], tail: str, tmp_path: pathlib.Path) -> None:
    """Lines after the step go, and a half-written last line with them; new lines follow on lines of their own."""
    path = filled(tmp_path, tail=tail)
    assert steps(tmp_path) == [1, 2, 3, 4, 5]  # reading passes over the rest too
    writer = Writer(tmp_path, step=step, lead=True)
    assert steps(tmp_path) == kept
    writer.write(step + 1, {"loss": 0.5, "lr": 1e-3})
    writer.close()
    lines = path.read_text().splitlines()
    assert [json.loads(x)["step"] for x in lines] == [*kept, step + 1]
    assert json.loads(lines[-1]) == {"step": step + 1, "loss": 0.5, "lr": 1e-3}
    assert not list(tmp_path.glob("*.tmp"))


def test_writer_flushes_every_line(tmp_path: pathlib.Path) -> None:
    """A killed process loses nothing that was written."""
    writer = Writer(tmp_path, step=-1, lead=True)
    writer.write(1, {"loss": 2.0})
    assert metrics.read(tmp_path) == [{"step": 1, "loss": 2.0}]
    writer.close()


@pytest.mark.parametrize(("step", "purge"), [(-1, 0), (0, 1), (7, 8)])
def test_writer_purges_tensorboard_after_the_step(step: int, purge: int, tmp_path: pathlib.Path) -> None:
    """Also after step 0; scalars go to both files, at once."""
    writer = Writer(tmp_path, step=step, lead=True)
    writer.write(9, {"loss": 1.5, "lr": 0.25})
    first, second, *scalars = events(tmp_path / "tensorboard")
    assert first.file_version == "brain.Event:2"
    assert (second.step, second.session_log.status) == (purge, second.session_log.START)
    assert [(e.step, e.summary.value[0].tag, e.summary.value[0].simple_value) for e in scalars] == [(9, "loss", 1.5), (9, "lr", 0.25)]
    writer.close()


def test_events_behind_a_full_disk_can_be_read(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk takes a part of a line of values and then nothing, and has room again: the line is gone, those around it are whole."""
    writer = Writer(tmp_path, step=-1, lead=True)
    writer.write(1, {"loss": 1.0})

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, data: bytes) -> int:
            return self.file.write(data[:7])

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    plain = writer._events._file
    writer._events._file = Full(plain)
    writer.write(2, {"loss": 2.0})
    writer._events._file = plain
    writer.write(3, {"loss": 3.0})
    writer.close()
    assert [e.step for e in events(tmp_path / "tensorboard")[2:]] == [1, 3]


def test_events_begin_once_there_is_room(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A disk that takes no file at the start costs the events until it does, and not the start; those behind are whole."""
    (tmp_path / "tensorboard").touch()  # no folder can be made there
    writer = Writer(tmp_path, step=4, lead=True)
    writer.write(5, {"loss": 1.0})
    assert "the TensorBoard events of step 5 cannot be written (File exists)\n" == capsys.readouterr().err
    (tmp_path / "tensorboard").unlink()
    writer.write(6, {"loss": 2.0})
    writer.close()
    assert [line["step"] for line in metrics.read(tmp_path)] == [5, 6]
    assert [(e.file_version, e.step) for e in events(tmp_path / "tensorboard")] == [("brain.Event:2", 0), ("", 5), ("", 6)]


def events(directory: pathlib.Path) -> list[Any]:
    """Of the only file there, in the framing of TFRecord: length, its checksum, data, their checksum."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = directory.iterdir()
    data, found = path.read_bytes(), []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        found.append(Event.FromString(data[12: 12 + size]))
        data = data[16 + size:]
    return found


def test_torch_is_not_loaded_with_tensorboard(tmp_path: pathlib.Path) -> None:
    """One that cannot be imported is not noticed, and can be asked for afterwards."""
    (tmp_path / "torch.py").write_text("raise RuntimeError('loaded')")
    code = ("import pathlib, sys; from videomae_jax import metrics; metrics.Writer(pathlib.Path(sys.argv[1]), step=0, lead=True).close()\n"
            "try:\n    import torch\nexcept RuntimeError as error:\n    print(error)")
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{pathlib.Path(__file__).resolve().parents[1]}"}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout == "loaded\n", done.stderr


def test_only_the_lead_writes(tmp_path: pathlib.Path) -> None:
    """Other processes leave no file and do not fail."""
    writer = Writer(tmp_path, step=-1, lead=False)
    writer.write(1, {"loss": 1.0})
    writer.close()
    assert not list(tmp_path.iterdir()) and metrics.read(tmp_path) == []


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Always."""
        return True


def shown(progress: Progress, *at: int) -> None:
    """Draws some steps."""
    for step in at:
        progress.show(step, loss=0.98765, clips_per_second=123.45, wait=0.126)


LINE = r"\[#{5}\.{15}\] step 25/100  loss 0\.9877  123\.5 clips/s  ETA \d+:\d\d:\d\d  data wait 13%"


def test_progress_on_a_terminal() -> None:
    """One line, redrawn at every call, ended once."""
    stream = Terminal()
    progress = Progress(total=100, first=0, lead=True, stream=stream)
    shown(progress, 25, 26)
    progress.close()
    text = stream.getvalue()
    assert text.count("\r\x1b[2K[") == 2 and text.endswith("\n") and text.count("\n") == 1
    assert re.fullmatch(LINE, text.split("\r\x1b[2K")[1])


def test_progress_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole lines without control characters, at most one in 5 seconds, the first at once and the last always."""
    now = [3.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = Progress(total=100, first=0, lead=True, stream=stream)
    for moment, step in ((3.0, 25), (7.9, 26), (8.0, 27), (9.0, 28), (9.1, 100)):
        now[0] = moment
        shown(progress, step)
    progress.close()
    lines = stream.getvalue().split("\n")
    assert lines.pop() == "" and not set("\r\x1b") & set(stream.getvalue())
    assert [re.search(r"step (\d+)", x)[1] for x in lines] == ["25", "27", "100"]
    assert re.fullmatch(LINE, lines[0])
    assert "ETA 0:00:14" in lines[1] and lines[2].startswith(f"[{'#' * 20}] step 100/100") and "ETA 0:00:00" in lines[2]


def test_progress_of_a_resumed_run_and_of_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time left follows the steps of this process; processes other than the lead say nothing."""
    now = [0.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = Progress(total=100, first=80, lead=True, stream=stream)
    now[0] = 10.0
    shown(progress, 90)
    assert "ETA 0:00:10" in stream.getvalue()  # 10 steps took 10 seconds
    silent = Terminal()
    other = Progress(total=100, first=0, lead=False, stream=silent)
    shown(other, 1, 100)
    other.close()
    assert silent.getvalue() == ""


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3599, "0:59:59"), (90061, "25:01:01")])
def test_clock_text(seconds: float, text: str) -> None:
    """h:mm:ss with rounded seconds."""
    assert metrics.clock(seconds) == text


class Late:
    """A metric that must not be read before the next step was dispatched."""

    def __init__(self, value: float) -> None:
        self.value, self.ready = value, False

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if not self.ready:
            raise AssertionError("read before the next dispatch")
        return np.asarray(self.value, dtype)


class Recorder:
    """A writer that keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict]] = []

    def write(self, step: int, values: dict, /) -> None:
        """Keeps a line."""
        self.lines.append((step, dict(values)))


def timed(monkeypatch: pytest.MonkeyPatch) -> tuple[Clock, Recorder, list[float]]:
    """A clock of 4 clips a step with a known time."""
    now = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    recorder = Recorder()
    return Clock(Progress(total=100, first=0, lead=True, stream=io.StringIO()), recorder, clips=4), recorder, now


def test_metrics_are_read_one_interval_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """put(step) reads the metrics of the put before; close reads the last."""
    clock, recorder, _ = timed(monkeypatch)
    queued = [Late(float(step)) for step in (1, 10, 20)]
    clock.put(1, {"loss": queued[0]})
    assert recorder.lines == []
    with pytest.raises(AssertionError, match="read before"):  # so the test can tell
        np.asarray(queued[0])
    queued[0].ready = True  # step 10 is dispatched now
    clock.put(10, {"loss": queued[1]})
    assert [step for step, _ in recorder.lines] == [1]
    queued[1].ready = True
    clock.put(20, {"loss": queued[2]})
    queued[2].ready = True
    clock.close()
    assert [(step, values["loss"]) for step, values in recorder.lines] == [(1, 1.0), (10, 10.0), (20, 20.0)]


def test_rates_of_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips over the time between two readings that are equally late, share of it spent waiting for data; none for other ones."""
    clock, recorder, now = timed(monkeypatch)
    for step, moment, wait in ((1, 80.0, 0.0), (10, 100.0, 0.0), (20, 110.0, 5.0), (30, 112.0, 0.5), (40, 114.0, 9.0), (45, 115.0, 0.0)):
        now[0] = moment
        clock.wait += wait
        clock.put(step, {"loss": 1.0})
    clock.close()
    assert recorder.lines[:2] == [(1, {"loss": 1.0}), (10, {"loss": 1.0})]
    assert recorder.lines[2] == (20, {"loss": 1.0, "clips_per_second": 20.0, "data_wait": 0.25, "data_wait_ms": 50.0})
    assert recorder.lines[3][1]["data_wait"] == 1.0  # never above 1
    assert recorder.lines[3][1]["data_wait_ms"] == 900.0
    assert recorder.lines[4:] == [(40, {"loss": 1.0}), (45, {"loss": 1.0})]
    assert clock.last["clips_per_second"] == 20.0


class Device:
    """A device that takes `seconds` a step, once Python has asked for it and it is done with the step before: the time of both."""

    def __init__(self, now: list[float], /, *, seconds: float) -> None:
        self._now, self._seconds, self._done = now, seconds, [now[0]]

    def ask(self, *, more: float = 0.0) -> "Step":
        """The next step, which may take some seconds more."""
        self._done.append(max(self._done[-1], self._now[0]) + self._seconds + more)
        return Step(self._now, self._done[-1])


class Step:
    """What a step gives; who looks at it waits until it is done."""

    def __init__(self, now: list[float], done: float) -> None:
        self._now, self._done = now, done

    def block_until_ready(self) -> None:
        """Waits."""
        self._now[0] = max(self._now[0], self._done)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        self.block_until_ready()
        return np.asarray(1.0, dtype)


@pytest.mark.parametrize(("python", "device"), [(0.01, 1.0), (1.0, 0.01)], ids=["device", "data"])
@pytest.mark.parametrize(("total", "every"), [(100, 5), (200, 10), (200, 15), (200, 20), (400, 20), (600, 30), (800, 80)])
def test_rates_between_evaluations(monkeypatch: pytest.MonkeyPatch, total: int, every: int, python: float, device: float) -> None:
    """Any two with a line between them have a rate there, once the step is compiled, and all rates are true ones, whoever waits for whom."""
    clock, recorder, now = timed(monkeypatch)
    machine, step = Device(now, seconds=device), Step(now, now[0])
    for number in range(total + 1):
        if number % every == 0:
            clock.flush(number, step)
            now[0] += 1000.0
            clock.restart(number)
        if number == total:
            break
        now[0] += python
        clock.wait += python
        step = machine.ask(more=60.0 * (number == 0))
        if number == 0 or (number + 1) % 10 == 0:
            clock.put(number + 1, {"loss": step})
    rated = [(number, values["clips_per_second"], values["data_wait"]) for number, values in recorder.lines if "clips_per_second" in values]
    lines = {-(-number // every) for number, _ in recorder.lines if number > every}
    assert {-(-number // every) for number, *_ in rated if number > every} == lines and len(lines) >= total // every // 2
    for _, rate, wait in rated:
        assert rate == pytest.approx(4.0, rel=0.02) and wait == pytest.approx(python, rel=0.02)


def test_evaluation_is_left_out_of_the_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """flush and restart around an evaluation: two readings before the next, or its own wait, give a rate."""
    clock, recorder, now = timed(monkeypatch)
    clock.put(1, {"loss": 1.0})
    clock.put(10, {"loss": 1.0})
    now[0] = 105.0
    clock.flush(15, ())
    now[0] = 1105.0  # a long evaluation
    clock.restart(15)
    for step, moment in ((20, 1110.0), (30, 1112.0), (40, 1116.0)):
        now[0] = moment
        clock.put(step, {"loss": 1.0})
    clock.flush(40, ())
    now[0] = 2000.0
    clock.restart(40)
    clock.put(50, {"loss": 1.0})
    now[0] = 2005.0
    clock.flush(50, ())
    rates = {step: values.get("clips_per_second") for step, values in recorder.lines}
    assert rates == {1: None, 10: None, 20: None, 30: 10.0, 40: None, 50: 8.0}


def test_rates_begin_after_the_first_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation before the first step starts no rate: the compilation would be in it."""
    clock, recorder, now = timed(monkeypatch)
    clock.restart(0)
    clock.put(1, {"loss": 1.0})
    now[0] = 160.0
    clock.flush(5, ())
    clock.restart(5)
    clock.put(10, {"loss": 1.0})
    now[0] = 162.0
    clock.flush(10, ())
    assert [values.get("clips_per_second") for _, values in recorder.lines] == [None, 10.0]


def test_a_rate_that_is_not_measured_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The progress line has neither speed nor waiting before an interval gave them."""
    stream = io.StringIO()
    clock = Clock(Progress(total=2, first=1, lead=True, stream=stream), Recorder(), clips=4)
    clock.put(2, {"loss": 1.0})
    clock.flush(2, ())
    assert stream.getvalue() == "[####################] step 2/2  loss 1.0000  ETA 0:00:00\n"


def test_flush_twice_writes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line is written for a step once, whoever asks for it."""
    clock, recorder, _ = timed(monkeypatch)
    clock.put(1, {"critic/loss": 2.0})  # a recipe without a metric "loss" shows its first one
    clock.flush(1, ())
    clock.flush(1, ())
    clock.close()
    assert recorder.lines == [(1, {"critic/loss": 2.0})]


def test_progress_speaks_on_the_standard_error_of_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run in one process must not write to a stream that was replaced and closed meanwhile."""
    for _ in range(2):
        stream = io.StringIO()
        monkeypatch.setattr("sys.stderr", stream)
        Progress(total=1, first=0, lead=True).show(1, loss=0.5, clips_per_second=1.0, wait=0.0)
        assert "step 1/1" in stream.getvalue()
        stream.close()
