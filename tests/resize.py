"""A run that is saved on N processes or devices goes on with M, for all N and M of 1, 2, 4, 8.

    python tests/resize.py [N-M ...]

Processes: the stream of the run, read by N hosts and then by M, with the same and with another batch: the global batches of
one host, bit for bit, and every clip once an epoch. Devices: training with the state split over N and then over M. Its masks
do not depend on the devices, the restored state is the saved one bit for bit, and the parameters are those of one device to
TOLERANCE; with M = N they are those of the undisturbed run bit for bit. The last line is JSON: {"pairs", "streams",
"restored", "parameters", "same_bits"}, counts of pairs that hold.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
import sys
import tempfile
from typing import Any

if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1]), str(pathlib.Path(__file__).resolve().parent)]

import numpy as np

from videomae_jax.data import pipeline, sources

SIZES = (1, 2, 4, 8)
PAIRS = tuple((before, after) for before in SIZES for after in SIZES)
LENGTH, BATCH, KEPT = 48, 8, 3  # clips; clips of a batch; batches before the change
TOLERANCE = 1e-5  # of parameters: sums over devices run in another order, and Adam divides by the root of small second moments


@dataclasses.dataclass(frozen=True)
class Drawn(sources.NoiseClips):
    """Clips that depend on their row and on every draw of their generator."""

    frames: int = 2
    size: int = 4
    length: int = LENGTH
    repeats: int = 2

    def read(self, row: int, /, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Noise of the generator, and the row as label."""
        return {"video": rng.integers(0, 256, (self.repeats, self.frames, self.size, self.size, 3), np.uint8), "label": np.full(self.repeats, row, np.int32)}


@functools.cache
def leg(hosts: int, start: int, batch: int, count: int, /) -> tuple[dict[str, np.ndarray], ...]:
    """`count` global batches from position `start` on, put together from the parts of `hosts` readers."""
    parts = []
    for host in range(hosts):
        with pipeline.stream(Drawn(), batch_size=batch, seed=3, start=start, host=host, hosts=hosts, threads=1) as stream:
            parts.append([next(stream) for _ in range(count)])
    return tuple({k: np.concatenate([part[k] for part in step]) for k in step[0]} for step in zip(*parts, strict=True))


def stream(before: int, after: int, /) -> str:
    """What is wrong with the stream over a change of hosts, "" for nothing: two epochs, the second batch size twice and once the first."""
    for batch in (BATCH, 2 * BATCH):
        rest = (2 * LENGTH - KEPT * BATCH) // batch
        found = leg(before, 0, BATCH, KEPT) + leg(after, KEPT * BATCH, batch, rest)
        wanted = leg(1, 0, BATCH, KEPT) + leg(1, KEPT * BATCH, batch, rest)
        wrong = [i for i, (a, b) in enumerate(zip(found, wanted, strict=True)) if any(not np.array_equal(a[k], b[k]) for k in b)]
        if wrong:
            return f"batch {wrong[0]} of {batch} clips is not that of one host"
        keys, labels = (np.concatenate([b[k] for b in found]) for k in ("key", "label"))
        rows = labels[keys[:, 1] == 0]  # one of the copies of each decode
        if (keys[:: 2, 0] != np.arange(len(rows))).any():
            return "positions are not consecutive"
        for epoch in range(len(rows) // LENGTH):
            counts = collections.Counter(rows[epoch * LENGTH : (epoch + 1) * LENGTH].tolist())
            if set(counts.values()) != {1} or len(counts) != LENGTH:
                return f"epoch {epoch} has clips more than once or not at all"
    return ""


class Devices:
    """Straight runs on every number of devices, each compiled once, and what comes of changing from one to the other."""

    def __init__(self, folder: pathlib.Path, /) -> None:
        self.folder = folder

    @functools.cache  # noqa: B019 (lives as long as the table)
    def run(self, devices: int, /) -> Any:
        """The assembly over the first devices, which split the state; its step is compiled once."""
        import test_train as loops

        from videomae_jax.assembly import Assembly

        class Once(Assembly):
            @functools.cached_property
            def _step(self) -> Any:
                return super().step()

            def step(self, *, norms: bool = False) -> Any:
                return self._step

        built = loops.build(devices, total=2 * KEPT, checkpoint__every=KEPT, mesh__data=1, mesh__fsdp=devices, optimizers__main__schedule__base=1e-3)
        del built.config.evaluators["recorder"]
        return Once(**{f.name: getattr(built, f.name) for f in dataclasses.fields(built)})

    @functools.cache  # noqa: B019
    def straight(self, devices: int, /) -> pathlib.Path:
        """The directory of a run without a change; it holds both checkpoints."""
        import test_train as loops

        directory = self.folder / f"straight{devices}"
        assert loops.go(self.run(devices), directory).finished
        return directory

    def digest(self, run: Any, directory: pathlib.Path, step: int, /) -> str:
        """SHA-256 of the whole state of a step, as a run of any mesh restores it."""
        import jax

        from videomae_jax import checkpoint

        saver = checkpoint.Checkpointer(directory / "checkpoints", read_only=True)
        state = saver.restore(step, run.abstract, rng=run.rng()).state
        saver.close()
        total = hashlib.sha256()
        for item in checkpoint.ITEMS:
            for name, leaf in sorted(checkpoint.named(jax.tree.map(np.asarray, getattr(state, item))).items()):
                total.update(f"{item} {name} {leaf.dtype} {leaf.shape}".encode() + leaf.tobytes())
        return total.hexdigest()

    @functools.cache  # noqa: B019
    def masks(self, devices: int, /) -> list[np.ndarray]:
        """What the objective draws for the first batch, over the mesh of a run."""
        import jax

        from videomae_jax import parallel

        run = self.run(devices)
        with pipeline.stream(run.source, batch_size=run.config.batch_size, seed=run.config.seed) as stream:
            batch = parallel.to_device(next(stream), mesh=run.mesh)
        return [np.asarray(x) for x in jax.tree.leaves(jax.jit(run.objective.masks)(batch, run.rng()))]

    def change(self, before: int, after: int, /) -> dict[str, Any]:
        """{"restored", "masks", "parameters" (largest difference from one device), "same_bits"} of a run that changes after its first checkpoint."""
        import test_train as loops

        from videomae_jax.checkpoint import load_params, named

        run, directory = self.run(after), self.folder / f"{before}to{after}"
        shutil.copytree(self.straight(before) / "checkpoints" / f"{KEPT:08d}", directory / "checkpoints" / f"{KEPT:08d}")
        saved = self.digest(self.run(before), self.straight(before), KEPT)
        restored = self.digest(run, directory, KEPT) == saved
        result = loops.go(run, directory)
        assert result.finished and result.first == KEPT
        one, two = (named(load_params(d / "checkpoints")) for d in (self.straight(1), directory))
        worst = max(float(np.max(np.abs(one[k] - two[k]))) for k in one)
        same = self.digest(run, directory, 2 * KEPT) == self.digest(run, self.straight(after), 2 * KEPT)
        shutil.rmtree(directory)
        masks = all(np.array_equal(a, b) for a, b in zip(self.masks(1), self.masks(after), strict=True))
        return {"restored": restored, "masks": masks, "parameters": worst, "same_bits": same}


def main(argv: list[str], /) -> int:
    """0 when all pairs hold, or those that are named."""
    import jax

    pairs = [tuple(int(n) for n in word.split("-")) for word in argv] or PAIRS

    jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR"))
    held = collections.Counter({"pairs": len(pairs), "streams": 0, "restored": 0, "parameters": 0, "same_bits": 0})
    with tempfile.TemporaryDirectory() as name:
        devices = Devices(pathlib.Path(name))
        print("N -> M   stream of processes   masks   restored   parameters against one device   bits of an undisturbed run")
        for before, after in pairs:
            wrong, found = stream(before, after), devices.change(before, after)
            good = {"streams": not wrong, "restored": found["restored"], "parameters": found["parameters"] <= TOLERANCE and found["masks"],
                    "same_bits": found["same_bits"]}
            held.update({k: int(v) for k, v in good.items()})
            print(f"{before} -> {after}   {wrong or 'the same':<20}   {'the same' if found['masks'] else 'OTHER'}   {'bit for bit' if found['restored'] else 'OTHER'}   "
                  f"{found['parameters']:.1e}   {'the same' if found['same_bits'] else 'others'}", flush=True)
    print(json.dumps(dict(held)))
    equal = sum(a == b for a, b in pairs)
    return int(not (held["streams"] == held["restored"] == held["parameters"] == len(pairs) and held["same_bits"] >= equal))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
