"""Damages checkpoints at random and asks for the newest good one: what is detected, and whether it is ever wrong.

    python tests/corruption.py --cases=1000 [--seed=0]

The last line is JSON: {"cases", "detected", "restored_good"}. A case counts as detected when the damaged step is passed
over, and as restored well when the state that comes back is bit for bit one that was saved. Damage that touches only
what the storage layer writes when it commits, and on which no value depends, is left out.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import shutil
import sys
import tempfile
from typing import Any

if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1]), str(pathlib.Path(__file__).resolve().parent)]

STEPS = (1, 2, 3)
KINDS = ("bit", "bits", "cut", "emptied", "grown", "zeroed", "removed", "stale", "mixed", "moved", "strange", "item", "whole", "link")


def files(directory: pathlib.Path, /) -> list[pathlib.Path]:
    """What damage may hit: everything but what the commit adds."""
    from videomae_jax import manifest

    return sorted(p for p in directory.rglob("*") if p.is_file() and p.name not in manifest.LATE)


def damage(step: pathlib.Path, older: pathlib.Path, kind: str, rng: random.Random, /) -> str:
    """Damages a checkpoint directory in place, with pieces of an older one for some kinds; says what it did."""
    path = rng.choice(files(step))
    name, raw = path.relative_to(step).as_posix(), bytearray(path.read_bytes())
    if kind in ("bit", "bits"):
        for place in rng.sample(range(8 * len(raw)), min(8 * len(raw), 1 if kind == "bit" else rng.randint(2, 40))):
            raw[place // 8] ^= 1 << place % 8
        path.write_bytes(raw)
    elif kind in ("cut", "emptied"):
        path.write_bytes(raw[: rng.randrange(len(raw)) if kind == "cut" else 0])
    elif kind == "grown":
        path.write_bytes(raw + rng.randbytes(rng.randint(1, 100)))
    elif kind == "zeroed":  # a block that was never written
        first = rng.randrange(len(raw))
        last = min(len(raw), first + rng.randint(1, 4096))
        raw[first:last] = bytes(last - first) if any(raw[first:last]) else b"\xff" * (last - first)
        path.write_bytes(raw)
    elif kind == "removed":
        path.unlink()
    elif kind == "stale":  # a file of another step in the place of one of this
        other = rng.choice([p for p in files(older) if p.read_bytes() != bytes(raw)])
        path.write_bytes(other.read_bytes())
    elif kind == "mixed":  # files of two steps side by side: a save that was taken for another
        other = rng.choice(files(older))
        place = step / other.relative_to(older)
        if place.exists() and place.read_bytes() == other.read_bytes():
            place = place.with_name(f"{place.name}.old")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(other.read_bytes())
    elif kind == "moved":
        path.rename(path.with_name(f"{path.name}_"))
    elif kind == "strange":
        path.with_name(f"strange{rng.randrange(100)}").write_bytes(rng.randbytes(10))
    elif kind == "item":
        shutil.rmtree(rng.choice([p for p in step.iterdir() if p.is_dir()]))
    elif kind == "whole":  # the whole directory is that of another step
        shutil.rmtree(step)
        shutil.copytree(older, step)
    else:  # a link to the same bytes elsewhere
        outside = step.parent.parent / "outside"
        outside.write_bytes(raw)
        path.unlink()
        path.symlink_to(outside)
    return name


def run(cases: int, /, *, seed: int = 0, folder: pathlib.Path, say: Any = print) -> dict[str, int]:
    """Damages and restores `cases` times; the counts of the last line."""
    import test_checkpoint

    from videomae_jax.checkpoint import Checkpointer

    saved = folder / "saved"
    test_checkpoint.save(saved, STEPS).close()
    wanted, abstract = {s: test_checkpoint.state(seed=s)[0] for s in STEPS}, test_checkpoint.state()[1]
    found, missed = collections.Counter(), []
    rng = random.Random(seed)
    for case in range(cases):
        kind = KINDS[case % len(KINDS)]
        directory = folder / "damaged" / "checkpoints"
        shutil.copytree(saved, directory)
        what = damage(directory / f"{STEPS[-1]:08d}", directory / f"{STEPS[-2]:08d}", kind, rng)
        saver = Checkpointer(directory, keep_last=9, warn=lambda line: None)
        restored = saver.latest_good(abstract, rng=wanted[1].rng)
        saver.close()
        found["detected"] += restored.step == STEPS[-2]
        try:
            test_checkpoint.equal(restored.state, wanted[restored.step])
            found["restored_good"] += 1
        except AssertionError:
            missed.append(f"case {case}: {kind} of {what}: step {restored.step} came back with other values")
        if restored.step != STEPS[-2]:
            missed.append(f"case {case}: {kind} of {what}: step {restored.step} came back")
        found[kind] += restored.step == STEPS[-2]
        shutil.rmtree(folder / "damaged")
    for kind in KINDS:
        say(f"{kind:<8} {found[kind]} of {len(range(KINDS.index(kind), cases, len(KINDS)))} detected")
    for line in missed:
        say(line)
    return {"cases": cases, "detected": found["detected"], "restored_good": found["restored_good"]}


def main(argv: list[str], /) -> int:
    """0 when every case was detected and restored well."""
    parser = argparse.ArgumentParser(description="fuzzes checkpoints")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        result = run(options.cases, seed=options.seed, folder=pathlib.Path(folder))
    print(json.dumps(result))
    return int(not result["cases"] == result["detected"] == result["restored_good"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
