"""Kills, stops and interrupts a run at random moments until it is done, again and again, and compares the bits with an undisturbed run.

    python tests/chaos.py --kills=100 [--seed=0] [--processes=1,2,4] [--minutes=30] [--folder=DIR]

A disturbance is a signal (SIGKILL, SIGTERM, SIGSTOP with SIGCONT after a while) at a place: within a step, a save, a restore
or an evaluation of one of the processes, or to one of its decoding workers. The last line is JSON: {"kills", "mismatches",
"processes"}; `kills` counts the disturbances that arrived, `mismatches` the runs whose parameters, optimiser state, losses
or list of checkpoints differ from the undisturbed run of as many processes. After `--minutes` nothing is disturbed any
more. `--folder` keeps data, compiled programs and undisturbed runs for the next call.
"""

import argparse
import collections
import json
import multiprocessing
import os
import pathlib
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1]), str(pathlib.Path(__file__).resolve().parent)]

import runs

ARRIVED = "chaos: arrived"
PAUSE = 1.5  # seconds until a stopped process goes on
SIGNALS = ("SIGKILL", "SIGTERM", "SIGSTOP")
PLACES = {"step": 6, "save": 2, "restore": 1, "evaluation": 2, "worker": 6}  # and how often a start may pass it before the signal
# All programs of a start come from the cache, however small; nobody else needs more threads than there are cores.
ENV = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1", "OPENBLAS_NUM_THREADS": "1",
       "PYTHONPATH": os.pathsep.join((str(runs.ROOT), str(runs.ROOT / "tests")))}


def in_restore(arrive: Callable[[], None], /) -> None:
    """The files of a checkpoint are found whole, nothing is read."""
    from videomae_jax.checkpoint import Checkpointer

    before = Checkpointer.check_files

    def check(self: Any, *args: Any, **kw: Any) -> None:
        before(self, *args, **kw)
        arrive()
    Checkpointer.check_files = check


def at_batch(arrive: Callable[[], None], /) -> None:
    """A batch has come from a worker."""
    from videomae_jax import run_directory

    before = run_directory.Faults.note

    def note(self: Any, batch: Any) -> None:
        arrive()
        before(self, batch)
    run_directory.Faults.note = note


def disturb(place: str, name: str, /) -> None:
    """Sends the signal to this process, or to its first worker; a stopped one is woken by a third."""
    sys.stderr.write(f"{ARRIVED}\n")
    sys.stderr.flush()
    if name == "STUCK":  # no signal: this thread alone goes no further
        time.sleep(3600)
    if name == "RAISE":
        raise RuntimeError("a fault of this process alone")
    if name == "FREEZE":  # for ever
        os.kill(os.getpid(), signal.SIGSTOP)
    target = multiprocessing.active_children()[0].pid if place == "worker" else os.getpid()
    if name == "SIGSTOP":
        subprocess.Popen(["bash", "-c", f"sleep {PAUSE}; kill -CONT {target}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.kill(target, signal.SIGSTOP)
    elif place == "worker":
        os.kill(target, signal.SIGKILL)  # it ignores SIGTERM, which is the business of its parent
    else:
        runs.send(signal.Signals[name])


def drive(argv: list[str], /) -> int:
    """The command argv[3:] with a signal argv[2] when it passes the place argv[0] for the argv[1]-th time."""
    from videomae_jax.__main__ import main as command

    place, number, name, *words = argv
    hook = {"restore": in_restore, "worker": at_batch, **runs.POINTS}[place]
    hook(runs._at(int(number), lambda: disturb(place, name)))
    return command(words)


def start(words: list[str], plan: tuple[str, int, str] | None, /) -> "subprocess.Popen[str]":
    """The command, disturbed by plan."""
    begin = ("-m", "videomae_jax") if plan is None else (str(pathlib.Path(__file__).resolve()), "--drive", *map(str, plan))
    limit = () if any(word.startswith("--step-limit") for word in words) else ("--step-limit=600",)  # a slow machine is no stuck step
    line = shlex.join(["exec", "env", *(f"{k}={v}" for k, v in ENV.items()), sys.executable, *begin, *words, *limit])
    return runs.command(shell=line)


def once(words: list[str], plan: tuple[str, int, str] | None, /, *, processes: int, victim: int, seconds: float) -> tuple[list[int], str]:
    """One start of all processes, one of them disturbed: exit codes and what all said. Raises AssertionError when one hangs."""
    if processes == 1:
        group = [start(words, plan)]
    else:
        address = f"localhost:{runs.free_port()}"
        group = [start([*words, f"--coordinator={address}", f"--processes={processes}", f"--process={i}"], plan if i == victim else None) for i in range(processes)]
    return ended(group, seconds=seconds, what=str(plan))


def ended(group: list["subprocess.Popen[str]"], /, *, seconds: float, what: str) -> tuple[list[int], str]:
    """Exit codes of processes and what all said. Raises AssertionError when one hangs; none is left."""
    try:
        said = [p.communicate(timeout=seconds)[1] for p in group]
        return [p.returncode for p in group], "\n".join(said)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"a process still runs after {seconds} s: {what}") from None
    finally:
        for p in group:
            p.kill()


def differences(directory: pathlib.Path, reference: pathlib.Path, /, *, step: int) -> list[str]:
    """What of a finished run is not that of the reference."""
    from videomae_jax import metrics

    def lines(where: pathlib.Path) -> list[dict[str, float]]:
        return [{k: v for k, v in line.items() if k not in metrics.TIMING} for line in metrics.read(where)]

    found = [item for item, value in runs.digest(directory, step=step).items() if value != runs.digest(reference, step=step)[item]]
    return found + (["metrics"] if lines(directory) != lines(reference) else [])


def campaign(words: list[str], reference: pathlib.Path, folder: pathlib.Path, /, *, kills: int, seed: int, processes: int, total: int,
             plans: tuple[tuple[str, str], ...] = (), seconds: float = 900, until: float = float("inf"), say: Callable[[str], None] = print) -> dict[str, Any]:
    """Disturbed runs until `kills` have arrived, or time.time() is `until`; `plans` gives (place, signal) in order, otherwise they are drawn."""
    rng, counts, wrong, number = random.Random(seed), collections.Counter(), 0, 0
    while sum(counts.values()) < kills and time.time() < until:
        directory, number = folder / f"run{processes}_{number}", number + 1
        for starts in range(200):
            planned = plans[sum(counts.values())] if sum(counts.values()) < len(plans) else (rng.choice(list(PLACES)), rng.choice(SIGNALS))
            first = not (directory / "checkpoints").exists() or not any(p.name.isdigit() for p in (directory / "checkpoints").iterdir())
            place = "step" if planned[0] == "restore" and first else planned[0]
            plan = (place, rng.randint(1, PLACES[place]), planned[1]) if sum(counts.values()) < kills and time.time() < until else None
            # A loader may wait for ever for a worker that is gone: then the watchdog ends the process.
            extra = ["--config.workers=1", "--step-limit=15"] if place == "worker" else []
            victim = 0 if place == "save" else rng.randrange(processes)  # the first process alone commits
            codes, said = once([*words, *extra, f"--workdir={directory}"], plan, processes=processes, victim=victim, seconds=seconds)
            if ARRIVED in said:
                counts[f"{plan[2] if plan[0] != 'worker' or plan[2] == 'SIGSTOP' else 'SIGKILL'} in {plan[0]}"] += 1
            say(f"{processes} processes, run {number}, start {starts + 1}: {plan}, arrived {ARRIVED in said}, exit codes {codes}")
            if set(codes) == {0}:
                break
            if 2 in codes:
                raise AssertionError(said)
        else:
            raise AssertionError(f"{directory} never ends")
        found = differences(directory, reference, step=total)
        wrong += bool(found)
        say(f"{processes} processes, run {number}: {'the same bits' if not found else f'OTHER {found}'}")
    return {"counts": dict(counts), "mismatches": wrong}


def prepare(folder: pathlib.Path, /) -> list[str]:
    """The command that is disturbed; its data lie in `folder`, which may hold them already."""
    world = folder / "world"
    index = world / "index.parquet" if world.exists() else runs.world(world)
    return ["train", f"--config={runs.ROOT / 'tests' / 'disturbed.py'}", "--trust=disturbed", f"--config.data.index={index}", "--peer-limit=60"]


def undisturbed(words: list[str], folder: pathlib.Path, /, *, processes: int) -> pathlib.Path:
    """The run that nothing happens to, made where it is not there yet."""
    directory = folder / f"undisturbed{processes}"
    if not (directory / "summary.json").exists():
        codes, said = once([*words, f"--workdir={directory}"], None, processes=processes, victim=0, seconds=1800)
        assert set(codes) == {0}, said
    return directory


def main(argv: list[str], /) -> int:
    """0 when no run differs."""
    parser = argparse.ArgumentParser(description="disturbs runs")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", default="1,2,4")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--folder", type=pathlib.Path)
    options = parser.parse_args(argv)
    layouts, table, wrong, until = [int(x) for x in options.processes.split(",")], {}, 0, time.time() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder.resolve() if options.folder else pathlib.Path(name)
        ENV["JAX_COMPILATION_CACHE_DIR"] = str(folder / "programs")
        words = prepare(folder)
        for processes in layouts:
            reference = undisturbed(words, folder, processes=processes)
            share = options.kills // len(layouts) + (processes == layouts[0]) * (options.kills % len(layouts))
            found = campaign(words, reference, pathlib.Path(name), kills=share, seed=options.seed + processes, processes=processes, total=9, until=until)
            wrong += found["mismatches"]
            table |= {f"{k}, {processes} processes": v for k, v in found["counts"].items()}
    for key, value in sorted(table.items()):
        print(f"{value:>4} x {key}")
    print(json.dumps({"kills": sum(table.values()), "mismatches": wrong, "processes": layouts}))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(drive(sys.argv[2:]) if sys.argv[1:2] == ["--drive"] else main(sys.argv[1:]))
