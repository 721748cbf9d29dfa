"""What the checks of a restore cost, and how long a save holds up training: a state of the size of a recipe, without training it.

    python tests/verification.py [--config=configs/pretrain/vit_b.py] [--repeats=5] [--cold] [--dir=DIR]

Restores with all checks, without those of files, without those of arrays and without any come in turn, so that load and caches
hit all alike. With --cold the files leave the page cache before each, as on a machine that starts; --dir says on which storage. The last line is JSON: {"bytes", "blocked_s", "restore_s", "share_files", "share_arrays", "share"} with medians; shares
are of a restore without checks, in wall time, and "cpu_share" in the time of all cores.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1])]

KINDS = {"all": (), "files": ("files",), "arrays": ("arrays",), "none": ("files", "arrays")}  # and what is left out


@contextlib.contextmanager
def without(*checks: str) -> Iterator[None]:
    """Leaves checks out."""
    from videomae_jax import checkpoint

    with contextlib.ExitStack() as stack:
        if "files" in checks:
            stack.enter_context(mock.patch.object(checkpoint.manifest, "problem", lambda *a, **k: ""))
        if "arrays" in checks:
            stack.enter_context(mock.patch.object(checkpoint, "different", lambda tree, saved: []))
        yield


def forget(folder: pathlib.Path, /) -> None:
    """Takes the files of a folder out of the page cache, once they are on the disk."""
    for path in (p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def state(config: str, /) -> Any:
    """The assembly of a config, and a state with noise for values: zeros would compress."""
    import jax
    import numpy as np

    from videomae_jax import config as configs
    from videomae_jax.assembly import assemble
    from videomae_jax.data import sources

    chosen = configs.load(config)
    chosen.data = configs.spec(sources.NoiseClips, frames=chosen.data.frames, size=chosen.data.size)
    run, rng = assemble(chosen), np.random.default_rng(0)

    def filled(x: Any) -> Any:
        if not np.issubdtype(x.dtype, np.floating):
            return jax.device_put(np.zeros(x.shape, x.dtype), x.sharding)
        return jax.device_put(rng.standard_normal(x.shape, np.float32).astype(x.dtype), x.sharding)

    return run, run.abstract.replace(rng=run.rng(), **{k: jax.tree.map(filled, getattr(run.abstract, k)) for k in ("params", "opt", "extra", "ema")})


def main(argv: list[str], /) -> int:
    """0."""
    parser = argparse.ArgumentParser(description="measures checks")
    parser.add_argument("--config", default="configs/pretrain/vit_b.py")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--dir", default=None)
    options = parser.parse_args(argv)
    import jax

    from videomae_jax.assembly import state_bytes
    from videomae_jax.checkpoint import Checkpointer

    run, found = state(options.config)
    blocked: list[float] = []
    wall: dict[str, list[float]] = {kind: [] for kind in KINDS}
    cpu: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        saver = Checkpointer(pathlib.Path(name), keep_last=1)
        for step in range(options.repeats + 1):
            begin = time.monotonic()
            saver.save(step, found, meta={"step": step})
            blocked.append(time.monotonic() - begin)
            saver.wait()
        del found
        for repeat in range(options.repeats + 1):  # the first compiles and fills caches
            for kind, left in KINDS.items():
                if options.cold:
                    forget(pathlib.Path(name))
                with without(*left):
                    begin, used = time.monotonic(), time.process_time()
                    restored = saver.restore(options.repeats, run.abstract, rng=run.rng())
                    jax.block_until_ready(restored.state.params)
                    if repeat:
                        wall[kind].append(time.monotonic() - begin)
                        cpu[kind].append(time.process_time() - used)
                    del restored
        saver.close()

    def share(times: dict[str, list[float]], less: str) -> float:
        """Median over rounds of what the checks add that `less` leaves out, as a share of a restore without checks."""
        return statistics.median((a - b) / n for a, b, n in zip(times["all"], times[less], times["none"], strict=True))

    print(json.dumps({"bytes": state_bytes(run.abstract), "blocked_s": statistics.median(blocked[1:]), "blocked_first_s": blocked[0],
                      "restore_s": statistics.median(wall["none"]), "restore_cpu_s": statistics.median(cpu["none"]),
                      "share_files": share(wall, "files"), "share_arrays": share(wall, "arrays"), "share": share(wall, "none"),
                      "cpu_share_files": share(cpu, "files"), "cpu_share_arrays": share(cpu, "arrays"), "cpu_share": share(cpu, "none")}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
