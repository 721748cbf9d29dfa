"""Looks for false alarms: a slow compile, starved cores and slow storage, under the limits that a run has by default.

    python tests/calm.py [--compile=120] [--storage=40] [--burners=4] [--processes=1,2] [--total=30]

The first step takes --compile seconds longer, every save lies --storage seconds with the storage layer, and --burners processes a core
do nothing but compute. The limit of a step is that of an accelerator, 60 s, and a peer may be silent for 15 s. Every run has to end by
itself, with exit code 0 and without a word of the watchdog. The last line is JSON: {"runs", "alarms", "seconds"}.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1]), str(pathlib.Path(__file__).resolve().parent)]

import chaos
import runs


def drive(argv: list[str], /) -> int:
    """The command argv[2:], whose first step takes argv[0] seconds longer and whose saves take argv[1]."""
    from videomae_jax import assembly
    from videomae_jax.__main__ import main as command
    from videomae_jax.checkpoint import Checkpointer

    slow, storage, *words = argv
    step, commit, compiled = assembly.Step.__call__, Checkpointer._seal, []

    def first(self: Any, *args: Any) -> Any:
        if not compiled:
            compiled.append(time.sleep(float(slow)))
        return step(self, *args)

    def late(self: Any) -> None:
        time.sleep(float(storage))
        commit(self)

    assembly.Step.__call__, Checkpointer._seal = first, late
    return command(words)


@contextlib.contextmanager
def burners(count: int, /) -> Iterator[None]:
    """So many processes that compute for nothing."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def run(words: list[str], /, *, processes: int, compile_: float, storage: float, seconds: float = 3600) -> tuple[list[int], str]:
    """Exit codes and what all processes said."""
    begin = [sys.executable, str(pathlib.Path(__file__).resolve()), "--drive", str(compile_), str(storage), *words]
    several = [f"--coordinator=localhost:{runs.free_port()}", f"--processes={processes}"] if processes > 1 else []
    lines = [shlex.join(["exec", "env", *(f"{k}={v}" for k, v in chaos.ENV.items()), *begin, *several, *([f"--process={i}"] if several else [])])
             for i in range(processes)]
    return chaos.ended([runs.command(shell=line) for line in lines], seconds=seconds, what="a calm run")


def main(argv: list[str], /) -> int:
    """0 when nothing was alarmed."""
    parser = argparse.ArgumentParser(description="looks for false alarms")
    parser.add_argument("--compile", type=float, default=120)
    parser.add_argument("--storage", type=float, default=40)
    parser.add_argument("--burners", type=int, default=4)
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--total", type=int, default=30)
    options = parser.parse_args(argv)
    alarms, begin, counts = 0, time.monotonic(), [int(n) for n in options.processes.split(",")]
    with tempfile.TemporaryDirectory() as name, burners(options.burners * (os.cpu_count() or 1)):
        chaos.ENV["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(name) / "programs")
        words = [w for w in chaos.prepare(pathlib.Path(name)) if not w.startswith("--peer-limit")]
        for processes in counts:
            codes, said = run([*words, f"--config.total={options.total}", "--step-limit=60", f"--workdir={name}/run{processes}"], processes=processes,
                              compile_=options.compile, storage=options.storage)
            alarm = set(codes) != {0} or "watchdog:" in said
            alarms += alarm
            print(f"{processes} processes: exit codes {codes}, {'ALARM: ' + said[-2000:] if alarm else 'no alarm'}", flush=True)
    print(json.dumps({"runs": len(counts), "alarms": alarms, "seconds": round(time.monotonic() - begin, 1)}))
    return int(alarms > 0)


if __name__ == "__main__":
    sys.exit(drive(sys.argv[2:]) if sys.argv[1:2] == ["--drive"] else main(sys.argv[1:]))
