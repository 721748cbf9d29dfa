"""Disturbs a run for minutes, starting it again each time, and compares its ledger with what an outside clock saw.

    python tests/soak.py --minutes=10 [--seed=0] [--folder=DIR]

The truth is a trace of every change of phase that the disturbed processes leave, and the moments at which this process started
them and saw them end: nothing of it passes through the ledger. The table has seconds of both by class; the last line is JSON:
{"starts", "wall_s", "sum_error", "worst_error"}: the sum of the classes against the wall time, and the largest difference of a
class from the truth, both as shares of the wall time.
"""

import argparse
import json
import os
import pathlib
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1]), str(pathlib.Path(__file__).resolve().parent)]

import chaos
import runs

TRACE = "VIDEOMAE_JAX_TEST_PHASES"


def drive(argv: list[str], /) -> int:
    """The command, with a line of [time, phase, step] for every change of phase, "resume" for a restored state, and "end" when the loop is over."""
    from videomae_jax import upkeep
    from videomae_jax.__main__ import main as command

    file = open(os.environ[TRACE], "a", buffering=1)  # noqa: SIM115 (it ends with the process)
    at, begin, finish = upkeep.Upkeep.at, upkeep.Upkeep.begin, upkeep.Upkeep.finish

    def traced(self: Any, phase: str, step: int) -> None:
        file.write(json.dumps([time.time(), phase, step]) + "\n")
        at(self, phase, step)

    def begun(self: Any, back: Any) -> Any:
        found = begin(self, back)
        file.write(json.dumps([time.time(), "resume", found[3]]) + "\n")
        return found

    def finished(self: Any, *args: Any) -> None:
        finish(self, *args)
        file.write(json.dumps([time.time(), "end", 0]) + "\n")

    upkeep.Upkeep.at, upkeep.Upkeep.begin, upkeep.Upkeep.finish = traced, begun, finished
    return command(argv)


def truth(starts: list[tuple[float, float, list[list[Any]]]], /) -> dict[str, float]:
    """Seconds by class of starts (begin, end, trace): what came after the state that the next start went on from is lost."""
    from videomae_jax.ledger import CLASSES, REPEATED

    total = dict.fromkeys(CLASSES, 0.0)
    spans: list[tuple[str, int, float]] = []  # phase, step of the state that it led to, seconds; of what may still be lost
    for number, (begin, end, trace) in enumerate(starts):
        if number:
            total["idle"] += begin - starts[number - 1][1]
        resumed = next((step for _, phase, step in trace if phase == "resume"), None)
        if resumed is not None:
            kept = [s for s in spans if s[1] <= resumed]
            for phase, step, seconds in spans:
                if step > resumed:
                    total["lost" if phase in REPEATED else phase] += seconds
            spans = kept
        marks = [[begin, "init", 0], *(line for line in trace if line[1] != "resume"), [end, "end", 0]]
        for (since, phase, step), (until, _, after) in zip(marks, marks[1:], strict=False):
            # A batch is for the state after; a save or an evaluation counts for the state that it is of.
            reached = step + 1 if phase == "data_wait" else max(step, after)
            spans.append((phase, reached, until - since))
    for phase, _, seconds in spans:
        total[phase] += seconds
    return total


def soak(words: list[str], folder: pathlib.Path, /, *, minutes: float, seed: int, seconds: tuple[float, float] = (40.0, 110.0)) -> dict[str, Any]:
    """Starts and ends the run until the time is over; {"truth", "ledger", "wall"} and how often it was started."""
    from videomae_jax import ledger

    rng, until, starts, directory = random.Random(seed), time.time() + 60 * minutes, [], folder / "run"
    while time.time() < until:
        trace = folder / f"trace{len(starts)}"
        os.environ[TRACE] = str(trace)
        begin = time.time()
        line = [sys.executable, str(pathlib.Path(__file__).resolve()), "--drive", *words, f"--workdir={directory}"]
        process = runs.command(shell=shlex.join(["exec", "env", *(f"{k}={v}" for k, v in chaos.ENV.items()), *line]))
        try:
            process.communicate(timeout=min(rng.uniform(*seconds), max(until - time.time(), 1)))
        except subprocess.TimeoutExpired:
            process.send_signal(rng.choice([signal.SIGKILL, signal.SIGTERM]) if time.time() < until else signal.SIGTERM)
            process.communicate(timeout=300)
        lines = [json.loads(text) for text in trace.read_text().splitlines() if text.endswith("]")] if trace.exists() else []
        # A process that ends by itself is idle while it goes away; one that is killed is lost to its end.
        end = next((when for when, phase, _ in lines if phase == "end"), time.time())
        if lines:  # else it ended before it had books, which is idle time to them
            starts.append((begin, end, [line for line in lines if line[1] != "end"]))
        print(f"start {len(starts)}: exit code {process.returncode} after {end - begin:.1f} s", flush=True)
        time.sleep(rng.uniform(0, 3))
    return {"truth": truth(starts), "ledger": ledger.goodput(directory), "wall": starts[-1][1] - starts[0][0], "starts": len(starts)}


def main(argv: list[str], /) -> int:
    """0 when the classes sum to the wall time within 0.5 % and none is off by more than 1 %."""
    parser = argparse.ArgumentParser(description="compares the ledger with an outside clock")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder.resolve() if options.folder else pathlib.Path(name)
        chaos.ENV["JAX_COMPILATION_CACHE_DIR"] = str(folder / "programs")
        words = [*chaos.prepare(folder), "--config.total=100000000", "--config.checkpoint.every=200", "--config.evaluators.sums.every=500", "--config.log.every=50"]
        found = soak(words, pathlib.Path(name), minutes=options.minutes, seed=options.seed)
    books, wall = found["ledger"].seconds, found["wall"]
    for name in books:
        print(f"{name:<12} ledger {books[name]:8.1f} s   truth {found['truth'][name]:8.1f} s")
    sums, worst = abs(sum(books.values()) - wall) / wall, max(abs(books[k] - found["truth"][k]) for k in books) / wall
    print(json.dumps({"starts": found["starts"], "wall_s": round(wall, 1), "sum_error": round(sums, 5), "worst_error": round(worst, 5)}))
    return int(sums > 0.005 or worst > 0.01)


if __name__ == "__main__":
    sys.exit(drive(sys.argv[2:]) if sys.argv[1:2] == ["--drive"] else main(sys.argv[1:]))
