"""The same steps over devices, meshes and processes: how far apart their losses drift in float32.

    python tests/mesh_invariance.py [--steps=100] [--processes=1,2,4] [--devices=2,4,8] [--goal=1e-6]

configs/tiny.py with eight heads, drop-path and AdamW on seeded noise, on so many CPU devices in all, under each mesh: those of one process, and
shared by several processes of jax.distributed. Every run is compared with that of one device, step by step: a
table of relative differences of the loss, and as the last line JSON: {"steps", "runs", "worst", "goal", "within"}, where
`runs` maps a run to its largest difference. The exit code is 1 where one is beyond the goal.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

REFERENCE = "1 device"
FIELDS = {"batch_size": 8, "objective.encoder.frames": 4, "objective.encoder.size": 32, "objective.encoder.heads": 8, "objective.encoder.drop_path": 0.2,
          "objective.encoder_mask.ratio": 0.75, "objective.decoder.width": 64, "objective.decoder.heads": 8}
Mesh = tuple[int, int, int]


def meshes(processes: int, devices: int, /) -> dict[str, Mesh]:
    """{name: (data, fsdp, tensor)} over so many devices in all; a tensor axis lies within a process, which a run refuses otherwise."""
    if devices == 1:
        return {REFERENCE: (1, 1, 1)}
    within, title = devices // processes, f"{devices} devices" if processes == 1 else f"{processes} processes, {devices} devices"
    found = {"dp": (devices, 1, 1), "fsdp": (1, devices, 1)}
    if within > 1:
        found |= {"tp": (1, 1, devices)} if processes == 1 else {"dp x tp": (processes, 1, within)}
        found |= {"fsdp x tp": (1, devices // 2, 2)} if devices > 2 else {}
    return {f"{title}, {name}": mesh for name, mesh in found.items()}


def groups(processes: tuple[int, ...], devices: tuple[int, ...], /) -> list[tuple[int, tuple[int, ...]]]:
    """(processes, totals of devices) of the starts: one process has all totals in turn, several have just the devices that they use."""
    devices = tuple(n for n in devices if n > 1)  # one alone is the reference, in any case
    several = [(p, (n,)) for p in processes for n in devices if p > 1 and n % p == 0]
    return [(1, (1, *(devices if 1 in processes else ()))), *several]


def losses(mesh: Mesh, /, *, steps: int) -> list[float]:
    """The loss of every step of the run on this mesh, over as many devices as it has."""
    import jax

    from videomae_jax import config as configs
    from videomae_jax import parallel
    from videomae_jax.assembly import assemble
    from videomae_jax.config import spec
    from videomae_jax.data import pipeline, sources

    config = configs.load(str(ROOT / "configs" / "tiny.py"))
    configs.override(config, {k: str(v) for k, v in FIELDS.items()} | {"total": str(steps)})
    config.data = spec(sources.NoiseClips, frames=4, size=32, repeats=2)
    config.mesh = dict(config.mesh) | dict(zip(parallel.AXES, mesh, strict=True))
    run = assemble(config, devices=jax.devices()[:mesh[0] * mesh[1] * mesh[2]])
    state, step, found = run.create(), run.step(), []
    batches = pipeline.Batches(source=run.source, rows=pipeline.Shuffled(len(run.source), config.seed), seed=config.seed, start=0,
                               batch_size=config.batch_size, host=jax.process_index(), hosts=jax.process_count(), threads=1)
    for number in range(steps):
        state, values = step(state, parallel.to_device(batches[number], mesh=run.mesh))
        found.append(float(values["loss"]))
    batches.close()
    return found


def drive(steps: int, devices: tuple[int, ...], processes: int, process: int, coordinator: str, /) -> None:
    """One process: a JSON line [name, losses] for every mesh over each of the totals of devices."""
    from videomae_jax import cluster

    cluster.initialize(coordinator=coordinator, processes=processes, process=process, peer_limit=100)
    for name, mesh in (cell for n in devices for cell in meshes(processes, n).items()):
        found = losses(mesh, steps=steps)
        if process == 0:
            print(json.dumps([name, found]), flush=True)


def run(steps: int, processes: int, devices: tuple[int, ...], /) -> dict[str, list[float]]:
    """The losses of every mesh of so many processes; the last one of each is shown as soon as it is there."""
    from runs import THREADS, free_port

    address = f"localhost:{free_port()}" if processes > 1 else ""
    flags = f"--xla_force_host_platform_device_count={max(devices) // processes} --xla_cpu_collective_call_terminate_timeout_seconds=600"
    env = os.environ | THREADS | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    words = [[sys.executable, __file__, f"--steps={steps}", f"--devices={','.join(map(str, devices))}", f"--drive={processes},{i},{address}"] for i in range(processes)]
    started = [subprocess.Popen(w, cwd=ROOT, env=env, text=True, stdout=None if i else subprocess.PIPE) for i, w in enumerate(words)]
    found = {}
    try:
        for line in started[0].stdout:  # the lead's; the others print nothing
            if line.startswith('["'):  # not the notes of the collectives between processes, "[Gloo] ..."
                name, values = json.loads(line)
                found[name] = values
                print(f"{name}: {values[-1]:.9f}", file=sys.stderr, flush=True)
        codes = [process.wait(timeout=100) for process in started]
    finally:
        for process in started:
            process.kill()
    if any(codes):
        raise SystemExit(f"a run of {processes} processes failed: exit codes {codes}")
    return found


def compared(found: dict[str, list[float]], /) -> dict[str, float]:
    """The table, printed; the largest relative difference of every run from that of one device."""
    reference, worst = found.pop(REFERENCE), {}
    print(f"{'run':<34}{'step 1':>12}{'step ' + str(len(reference)):>12}{'largest':>12}")
    for name, values in found.items():
        off = [abs(a - b) / abs(b) for a, b in zip(values, reference, strict=True)]
        worst[name] = max(off)
        print(f"{name:<34}{off[0]:>12.1e}{off[-1]:>12.1e}{worst[name]:>12.1e}", flush=True)
    print(f"loss {reference[0]:.6f} at step 1, {reference[-1]:.6f} at step {len(reference)}")
    return worst


def numbers(text: str, /) -> tuple[int, ...]:
    """Those of "1,2,4"."""
    return tuple(map(int, text.split(",")))


def main(argv: list[str], /) -> int:
    """Everything; with --drive one process of it."""
    parser = argparse.ArgumentParser(description="Losses of the same steps over devices, meshes and processes.")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--processes", type=numbers, default=(1, 2, 4))
    parser.add_argument("--devices", type=numbers, default=(2, 4, 8))
    parser.add_argument("--goal", type=float, default=1e-6)
    parser.add_argument("--drive", default="", help=argparse.SUPPRESS)
    options: Any = parser.parse_args(argv)
    if options.drive:
        processes, process, coordinator = options.drive.split(",")
        drive(options.steps, options.devices, int(processes), int(process), coordinator)
        return 0
    starts = groups(options.processes, options.devices)
    if starts == [(1, (1,))]:
        parser.error(f"no run: {options.devices} devices cannot be shared by {options.processes} processes")
    worst = compared({name: values for start in starts for name, values in run(options.steps, *start).items()})
    within = max(worst.values()) <= options.goal
    print(json.dumps({"steps": options.steps, "runs": worst, "worst": max(worst.values()), "goal": options.goal, "within": within}))
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
