"""What the numbers of this machine's GPU or TPU are worth: attention kernels beside the plain form, and training beside this machine's CPU.

    python tests/accelerator.py [--steps=20] [--size=S] [--batch=4]

Kernels: output and gradients in bfloat16, with and without padding, of the token counts and head sizes of VideoMAE V2, against the
plain form in float32 at highest precision; goal: no further from it than twice the plain form in bfloat16. Training: VideoMAE V2 on
seeded noise, the same steps on the CPU in float32 and here; the largest relative difference of the loss; goals 1e-5 in float32 at
highest precision and 1 % in bfloat16; float32 at default precision, which GPUs round to TF32, is given beside them. One JSON line last; exit
code 1 where a goal is missed.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]
SHAPES = ((160, 64), (160, 80), (208, 88), (944, 64), (1232, 64), (2048, 88))  # tokens, channels a head; the shortest first, should time run out
EXACT, CLOSE = 1e-5, 0.01
RUNS = {"float32, highest": ("float32", "highest", EXACT), "float32, default": ("float32", "default", None), "bfloat16": ("bfloat16", "default", CLOSE)}


def distance(a: Any, b: Any, /) -> float:
    """|a - b| / |b| over all elements, in float32."""
    import jax
    import jax.numpy as jnp

    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    apart = [float(jnp.linalg.norm((x - y).astype(jnp.float32)) / jnp.linalg.norm(y.astype(jnp.float32))) for x, y in pairs]
    return float(np.max(apart))  # which NaN passes through, as max() does not


def kernels() -> dict[str, Any]:
    """{shape: distances of the device's kernel and of the plain form in bfloat16 from the plain form in float32}."""
    import jax
    import jax.numpy as jnp

    from videomae_jax.models import attention

    found = {}
    for tokens, size in SHAPES:
        name = attention.chosen(tokens=tokens, size=size, dtype=jnp.bfloat16)
        for padded in (0, tokens // 5):
            keys = jax.random.split(jax.random.key(tokens), 4)
            q, k, v, g = (jax.random.normal(key, (2, tokens, 4, size), jnp.float32).astype(jnp.bfloat16) for key in keys)
            # Holes, and another number of them in every row.
            valid = jnp.stack([jax.random.permutation(k, tokens) >= n for k, n in zip(keys, (padded, padded // 2), strict=False)]) if padded else None

            def both(implementation: str, arrays: Any) -> Any:
                y, back = jax.vjp(lambda *x: attention.attend(*x, implementation=implementation, valid=valid, scale=size**-0.5), *arrays[:3])
                return y, back(arrays[3])

            def all_three(*arrays: Any) -> Any:
                with jax.default_matmul_precision("highest"):
                    exact = both("xla", [x.astype(jnp.float32) for x in arrays])
                return both(name, arrays), both("xla", arrays), exact

            kernel, plain, exact = jax.jit(all_three)(q, k, v, g)
            row = {"kernel": name, "distance": distance(kernel, exact), "plain": distance(plain, exact)}
            print(f"{tokens} tokens of {size}, {padded} padded: {name} {row['distance']:.2e}, plain form {row['plain']:.2e}", flush=True)
            found[f"{tokens} x {size}, {padded} padded"] = row
    return found


def losses(size: str, *, dtype: str, steps: int, batch: int) -> list[float]:
    """Losses of the first steps of V2 pretraining on seeded noise, on this process's default device."""
    import jax

    from videomae_jax import config as configs
    from videomae_jax import optim, parallel
    from videomae_jax.assembly import assemble
    from videomae_jax.config import spec
    from videomae_jax.data import pipeline, sources

    config = configs.load(str(ROOT / "configs" / "pretrain" / f"vit_{size.lower()}.py"))
    config.unlock()
    config.batch_size, config.total = batch, str(steps)
    config.data = spec(sources.NoiseClips, frames=16, size=224)
    config.optimizers.main = spec(optim.AdamW, schedule=optim.Schedule(base=1e-4, warmup="25%"), b1=0.9, b2=0.95, weight_decay=0.05)
    for node in (config.objective.encoder, config.objective.decoder):
        node.dtype = dtype
    run = assemble(config, devices=jax.devices()[:1])
    state, step, found = run.create(), run.step(), []
    with pipeline.stream(run.source, batch_size=batch, seed=config.seed, host=0, hosts=1) as stream:
        for _ in range(steps):
            state, metrics = step(state, parallel.to_device(next(stream), mesh=run.mesh))
            found.append(float(metrics["loss"]))
    return found


def elsewhere(options: argparse.Namespace, platform: str, dtype: str, precision: str, /) -> subprocess.Popen[str]:
    """The same training in a process of its own."""
    call = [sys.executable, __file__, f"--steps={options.steps}", f"--size={options.size}", f"--batch={options.batch}", f"--losses={dtype}"]
    env = os.environ | {"JAX_DEFAULT_MATMUL_PRECISION": precision} | ({"JAX_PLATFORMS": platform} if platform else {})
    return subprocess.Popen(call, env=env | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}, stdout=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str], /) -> list[float]:
    """The losses that a process printed; raises CalledProcessError where it failed."""
    text = process.communicate()[0]
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return json.loads(text.splitlines()[-1])


def main(argv: list[str], /) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", default="S")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--losses", default="", help=argparse.SUPPRESS)  # of this process: the dtype
    options = parser.parse_args(argv)
    if options.losses:
        print(json.dumps(losses(options.size, dtype=options.losses, steps=options.steps, batch=options.batch)))
        return 0
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    reference = elsewhere(options, "cpu", "float32", "highest")
    runs = {name: elsewhere(options, "", dtype, precision) for name, (dtype, precision, _) in RUNS.items()}
    import jax

    table = kernels()
    exact = finished(reference)
    apart = {name: float(np.max(np.abs(np.divide(finished(run), exact) - 1))) for name, run in runs.items()}
    for name, value in apart.items():
        print(f"{name}: loss of {options.steps} steps within {value:.2e} of the CPU's (goal {RUNS[name][2] or 'none'}); last {exact[-1]:.6f}")
    met = all(row["distance"] <= 2 * row["plain"] for row in table.values()) and all(apart[k] <= goal for k, (_, _, goal) in RUNS.items() if goal)
    print(json.dumps({"device": jax.devices()[0].device_kind, "jax": jax.__version__, "kernels": table, "apart": apart, "met": met}))
    return not met


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
