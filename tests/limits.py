"""How long it takes until a run of two processes has ended after something happens to one of them, and what the other says.

    python tests/limits.py [--folder=DIR] [--only=CASE,CASE]

Seconds are from the event to the end of the last process that the event did not end or stop itself; an orphan is a process
that the run started and left behind. The last line is JSON: {"cases", "late", "orphans"}.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

if __name__ == "__main__":
    sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1]), str(pathlib.Path(__file__).resolve().parent)]

import chaos
import runs

# Place, number, event, options, seconds allowed: the limit of a peer's silence (15, looked at now and then), or of a step and the moment in
# which others write their stacks too.
CASES = {
    "dead peer": ("step", 5, "SIGKILL", (), 15),
    "stopped peer": ("step", 5, "FREEZE", (), 20),
    "fault of a peer": ("step", 5, "RAISE", (), 15),
    "fault at the start": ("assemble", 2, "RAISE", ("--step-limit=0",), 20),  # no connection breaks: the silence is what is noticed
    "dead worker": ("worker", 5, "SIGKILL", ("--config.workers=1", "--step-limit=0"), 25),
    "stuck loader": ("worker", 5, "STUCK", ("--step-limit=60",), 65),
    "stuck step": ("step", 5, "STUCK", ("--step-limit=60",), 65),
}


class Reader(threading.Thread):
    """Reads what a process says, and notes when it says that the event has arrived and when it ends."""

    def __init__(self, process: "subprocess.Popen[str]", /) -> None:
        super().__init__(daemon=True)
        self.process, self.said, self.arrived, self.ended = process, "", 0.0, 0.0
        self.start()

    def run(self) -> None:
        """Until the end of the process; its children may hold its output open beyond that."""
        threading.Thread(target=self._end, daemon=True).start()
        for line in self.process.stderr:
            self.said += line
            if chaos.ARRIVED in line:
                self.arrived = time.monotonic()

    def _end(self) -> None:
        self.process.wait()
        self.ended = time.monotonic()


def alive(group: int, /) -> bool:
    """Whether a process group has members that are no zombies."""
    states = [p.read_text().rsplit(")", 1)[1].split() for p in pathlib.Path("/proc").glob("[0-9]*/stat") if _is_there(p)]
    return any(int(fields[2]) == group and fields[0] != "Z" for fields in states)


def _is_there(path: pathlib.Path, /) -> bool:
    try:
        return bool(path.read_text())
    except OSError:
        return False


def measure(words: list[str], case: str, directory: pathlib.Path, /) -> dict[str, object]:
    """{"seconds", "codes", "orphans", "said"} of a case; the second process is the one that something happens to."""
    place, number, event, options, _ = CASES[case]
    address = f"localhost:{runs.free_port()}"
    words = [*(w for w in words if not w.startswith("--peer-limit")), *options, f"--workdir={directory}", f"--coordinator={address}", "--processes=2"]
    group = [Reader(chaos.start([*words, f"--process={i}"], (place, number, event) if i else None)) for i in range(2)]
    try:
        deadline = time.monotonic() + 900
        # A process that is stopped or killed is part of the event.
        watched = group[:1] if event in ("FREEZE", "SIGKILL") and place != "worker" else group
        while not all(r.ended for r in watched):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        time.sleep(1)
        orphans = sum(alive(r.process.pid) for r in watched)
        seconds = max(r.ended or float("inf") for r in watched) - group[1].arrived if group[1].arrived else float("nan")
        return {"seconds": seconds, "codes": [r.process.poll() for r in group], "orphans": orphans, "said": "\n".join(r.said for r in group)}
    finally:
        for reader in group:
            try:
                os.killpg(reader.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def main(argv: list[str], /) -> int:
    """0 when every case ends in time and leaves nothing behind."""
    parser = argparse.ArgumentParser(description="measures limits")
    parser.add_argument("--folder", type=pathlib.Path)
    parser.add_argument("--only", default=",".join(CASES))
    options = parser.parse_args(argv)
    cases, late, orphans = options.only.split(","), 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder.resolve() if options.folder else pathlib.Path(name)
        chaos.ENV["JAX_COMPILATION_CACHE_DIR"] = str(folder / "programs")
        words = chaos.prepare(folder)
        chaos.undisturbed(words, folder, processes=2)  # so that nothing compiles below
        for number, case in enumerate(cases):
            found = measure(words, case, pathlib.Path(name) / f"run{number}")
            allowed = CASES[case][-1]
            late += not found["seconds"] <= allowed
            orphans += found["orphans"]
            lines = [line for line in found["said"].splitlines() if "watchdog" in line or "RuntimeError" in line or "rror:" in line or "heartbeat" in line]
            print(f"{case:<20} {found['seconds']:6.1f} s of {allowed}, exit codes {found['codes']}, orphans {found['orphans']}", flush=True)
            for line in dict.fromkeys(lines):
                print(f"    {line[:220]}")
    print(json.dumps({"cases": len(cases), "late": late, "orphans": orphans}))
    return int(late > 0 or orphans > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
