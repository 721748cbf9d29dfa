"""A run of seconds for the tests of training, and a driver that ends a real `train` command at a chosen point.

    python tests/runs.py POINT NUMBER train --config=...

POINT is what the command is doing when it gets SIGNAL for the NUMBER-th time: see `POINTS`.
"""

import atexit
import concurrent.futures
import contextlib
import functools
import gc
import hashlib
import importlib.metadata
import itertools
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOTAL, SAVE = 9, 3
# Programs that run a few times each take far longer to compile well than to run: a step of the contract a quarter of the time with these.
# Later versions of jaxlib do not know the flag and end the process.
QUICK = "--xla_cpu_parallel_codegen_split_count=1" + " --xla_cpu_use_fusion_emitters=false" * importlib.metadata.version("jaxlib").startswith("0.10.")
# XLA's pool has a thread per core, and a collective holds its thread until the other devices arrive: eight devices can hold
# all threads of two cores while what they wait for has none. NPROC sets the size of the pool.
THREADS = {"NPROC": "64"}
TRACE = "VIDEOMAE_JAX_TEST_TRACE"  # file that the driver records batches in
# configs/tiny.py at its smallest, with everything that draws numbers: crops, masks, drop-path, two copies of a decode.
FIELDS = {
    "total": TOTAL, "batch_size": 8, "log.every": 1, "checkpoint.every": SAVE, "checkpoint.keep_last": 2, "data.frames": 4, "data.size": 32,
    "objective.encoder.frames": 4, "objective.encoder.size": 32, "objective.encoder.width": 32, "objective.encoder.hidden": 64,
    "objective.encoder.drop_path": 0.2, "objective.decoder.width": 32, "objective.decoder.hidden": 64, "objective.encoder_mask.ratio": 0.75,
    "evaluators.reconstruction.every": 3, "evaluators.reconstruction.clips": 8, "evaluators.reconstruction.batch_size": 4, "evaluators.pictures.clips": 2,
}


@functools.cache
def cache() -> str:
    """A folder for compiled programs that lasts as long as this process; all commands of a test session share it."""
    folder = tempfile.mkdtemp(prefix="videomae_jax_programs_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@pytest.fixture(scope="module", autouse=True)
def shared_programs() -> Iterator[None]:
    """A module that imports this takes compiled programs from `cache` too: each run of a test compiles its step anew.

    It ends with the module, for other tests count compilations.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    for values in ((cache(), 0.1), before):
        for name, value in zip(names, values, strict=True):
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is not before:
            yield


@contextlib.contextmanager
def compilations() -> Iterator[list[float]]:
    """The seconds of every compilation within."""
    import jax

    found: list[float] = []

    def note(event: str, seconds: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def world(folder: pathlib.Path, /) -> pathlib.Path:
    """The index of 16 training and 8 validation clips, written as files."""
    from videomae_jax.__main__ import main as run

    assert run(["synthesize", str(folder), "--train=16", "--val=8", "--test=0", "--workers=1"]) == 0
    return folder / "index.parquet"


def arguments(index: pathlib.Path, /, **fields: Any) -> list[str]:
    """--config and overrides of the small run; fields are named with __ for a dot."""
    changed = FIELDS | {"data.index": index} | {k.replace("__", "."): v for k, v in fields.items()}
    return ["--config=configs/tiny.py", *(f"--config.{k}={v}" for k, v in changed.items())]


def command(*words: str, devices: int = 1, point: tuple[str, int] | None = None, shell: str = "",
            trace: pathlib.Path | None = None, **kw: Any) -> "subprocess.Popen[str]":
    """Starts `python -m videomae_jax WORDS` on forced CPU devices, the driver that ends it at a point, or a line for the shell."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_cpu_collective_call_terminate_timeout_seconds=600 {QUICK}"
    env = os.environ | THREADS | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": cache(),
                        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1", "PYTHONFAULTHANDLER": "1"}
    env |= {TRACE: str(trace)} if trace else {}
    point = ("", 0) if trace and not point else point
    if words[:1] == ("train",) and not any(word.startswith("--step-limit") for word in words):
        words = (*words, "--step-limit=600")  # other tests share the cores: a slow machine is no stuck step
    start = [str(ROOT / "tests" / "runs.py"), point[0], str(point[1])] if point else ["-m", "videomae_jax"]
    words = ["bash", "-c", shell] if shell else [sys.executable, *start, *words]
    return subprocess.Popen(words, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **({"start_new_session": True} | kw))


def end(process: "subprocess.Popen[str]", /) -> tuple[str, str]:
    """Kills a process and what it started, and returns what it wrote, with the stacks of its threads where it was still running."""
    if process.poll() is None:
        process.send_signal(signal.SIGABRT)  # faulthandler writes the stacks
        time.sleep(2)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        # Children hold the pipes open: without them gone, reading to the end may never return.
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    try:
        return process.communicate(timeout=30)
    except subprocess.TimeoutExpired as error:
        return tuple((x or b"").decode(errors="replace") for x in (error.stdout, error.stderr))


def finish(process: "subprocess.Popen[str]", /, *, code: int, seconds: float = 600) -> tuple[str, str]:
    """What the process wrote, once it ends with this exit code."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        out, err = end(process)
        raise AssertionError(f"still running after {seconds} s:\n{out}\n{err}") from None
    assert process.returncode == code, f"exit code {process.returncode}, not {code}:\n{out}\n{err}"
    return out, err


def held() -> float:
    """MiB of memory that this process has now, without garbage: the peak of its life, of tests before this one, hides what grows below it."""
    status = pathlib.Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("the memory of a process stands under /proc")
    gc.collect()
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmRSS:")) / 1024


def read_until(process: "subprocess.Popen[str]", text: str, /) -> str:
    """Standard error up to the line that holds `text`."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError(f"ended without {text!r}:\n{''.join(lines)}")


def digest(directory: pathlib.Path, /, *, step: int = TOTAL) -> dict[str, str]:
    """SHA-256 of the saved parameters and of the saved optimiser state."""
    import jax
    import numpy as np

    from videomae_jax.checkpoint import Checkpointer, named

    saver = Checkpointer(directory / "checkpoints", read_only=True)
    result = {}
    for item in ("params", "opt"):
        total = hashlib.sha256()
        for name, leaf in sorted(named(jax.tree.map(np.asarray, saver.load(step, item=item))).items()):
            total.update(f"{name} {leaf.dtype} {leaf.shape}".encode() + leaf.tobytes())
        result[item] = total.hexdigest()
    saver.close()
    return result


def _at(number: int, action: Callable[[], None], /) -> Callable[[], None]:
    """Calls `action` when it has itself been called `number` times."""
    count = [0]

    def called() -> None:
        count[0] += 1
        if count[0] == number:
            action()
    return called


def in_step(arrive: Callable[[], None], /) -> None:
    """A step is dispatched and not finished."""
    from videomae_jax import assembly

    before = assembly.Step.__call__

    def step(self: Any, *args: Any) -> Any:
        result = before(self, *args)
        arrive()
        return result
    assembly.Step.__call__ = step


def in_save(arrive: Callable[[], None], /) -> None:
    """All arrays of a checkpoint are written by the background thread, its directory is not committed."""
    import orbax.checkpoint as ocp

    before = ocp.JsonCheckpointHandler.finalize

    def finalize(self: Any, directory: Any) -> None:
        arrive()
        before(self, directory)
    ocp.JsonCheckpointHandler.finalize = finalize


def in_evaluation(arrive: Callable[[], None], /) -> None:
    """An evaluator has drawn a batch."""
    from videomae_jax.evals import base

    before = base.Context.sweep

    def sweep(self: Any, source: Any, **kw: Any) -> Any:
        for batch in before(self, source, **kw):
            arrive()
            yield batch
    base.Context.sweep = sweep


def record(path: pathlib.Path, /) -> None:
    """Appends a line per training batch of this process: what every row is, whose crop, and which position of the stream."""
    import jax

    from videomae_jax import run_directory

    before = run_directory.Faults.note

    def note(self: Any, batch: Any) -> None:
        rows = [hashlib.sha256(self._source.name(int(row)).encode() + key.tobytes() + video.tobytes()).hexdigest()
                for row, key, video in zip(batch["row"], batch["key"], batch["video"], strict=True)]
        with path.with_suffix(f".{jax.process_index()}").open("a") as file:
            file.write(json.dumps({"first": int(batch["key"][0, 0]), "rows": rows}) + "\n")
        before(self, batch)
    run_directory.Faults.note = note


def recorded(path: pathlib.Path, /, *, hosts: int) -> dict[int, list[str]]:
    """{position of the first row: hashes of the rows} of the global batches that `record` saw."""
    parts = [[json.loads(line) for line in path.with_suffix(f".{host}").read_text().splitlines()] for host in range(hosts)]
    return {batches[0]["first"]: [row for batch in batches for row in batch["rows"]] for batches in zip(*parts, strict=False)}


PORTS = itertools.count(20000 + os.getpid() % 500 * 20)


def free_port() -> int:
    """A port that nobody has, of those that the system gives to nobody by itself: what asks for it listens seconds later."""
    for port in PORTS:
        with socket.socket() as found:
            try:
                found.bind(("localhost", port))
                return port
            except OSError:
                continue
    raise AssertionError("ports never end")


def pair(words: list[str], /, *, codes: tuple[int, int], point: tuple[str, int] = ("", 0), trace: pathlib.Path | None = None,
         each: Sequence[Sequence[str]] = ((), ())) -> list[str]:
    """What two processes of one device each, which form one run, wrote on standard error; the second has the point, `each` words of its own."""
    address = f"localhost:{free_port()}"
    both = [command(*words, *each[i], f"--coordinator={address}", "--processes=2", f"--process={i}", point=point if i else ("", 0), trace=trace) for i in range(2)]
    with concurrent.futures.ThreadPoolExecutor(len(both)) as readers:  # both pipes are read at a time: a full one would stop its process
        waits = [readers.submit(finish, process, code=code) for process, code in zip(both, codes, strict=True)]
        try:
            for wait in concurrent.futures.as_completed(waits):
                wait.result()
        except AssertionError:
            for process in both:
                process.kill()  # one that waits for the other, which failed
            raise
    return [wait.result()[1] for wait in waits]


def in_assemble(arrive: Callable[[], None], /) -> None:
    """The run is being put together."""
    from videomae_jax import config as configs

    before = configs.build

    def build(node: Any, /, **kw: Any) -> Any:
        arrive()
        return before(node, **kw)
    configs.build = build


def at_once(_: Callable[[], None], /) -> None:
    """Files of the other processes are waited for for two seconds, no minute; no signal comes."""
    from videomae_jax import run_directory

    run_directory.check_shared = functools.partial(run_directory.check_shared, seconds=2)


POINTS = {"assemble": in_assemble, "step": in_step, "save": in_save, "evaluation": in_evaluation, "at once": at_once}


def send(number: int, /) -> None:
    """A signal to this process; with several, steps wait until jax's preemption service, which polls, has told the others."""
    import jax

    os.kill(os.getpid(), number)
    time.sleep(6 if jax.process_count() > 1 else 0)


def main(argv: list[str], /) -> int:
    """Runs the command with a signal at a point: NAME or NAME:SIGNAL, SIGKILL where none is given."""
    from videomae_jax.__main__ import main as run

    if TRACE in os.environ:
        record(pathlib.Path(os.environ[TRACE]))
    name, _, chosen = argv[0].partition(":")
    number = signal.Signals[chosen or "SIGKILL"]
    if name:
        POINTS[name](_at(int(argv[1]), lambda: send(number)))
    return run(argv[2:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
