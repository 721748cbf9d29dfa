"""The recipe card: what a run really does, resolved into numbers."""

import math
from typing import Any

import jax

from videomae_jax import config as configs
from videomae_jax.assembly import Assembly, state_bytes


def card(run: Assembly, /) -> dict[str, Any]:
    """Numbers of a run as plain data. FLOPs are 2 x multiply-adds; a training step counts three forward passes."""
    config, cost = run.config, run.objective.cost()
    batch, copies = config.batch_size, run.source.repeats
    epochs = run.total / run.steps_per_epoch
    schedules = {}
    for phase in run.objective.phases():
        s = configs.build(config.optimizers[phase.optimizer]).schedule
        warmup = configs.duration(s.warmup, total=run.total, steps_per_epoch=run.steps_per_epoch)
        formula = f"{s.base:g} x {batch} / {s.unit}" if s.unit else f"{s.base:g} (not scaled)"
        schedules[phase.name] = {"base_lr": s.base, "peak_lr": s.scaled(s.base, batch=batch), "peak_lr_formula": formula,
                                 "min_lr": s.scaled(s.minimum, batch=batch), "warmup_steps": warmup, "shape": s.shape}
    clips = run.total * run.clips * run.draws
    return {
        "name": config.name, "seed": config.seed,
        "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(run.abstract.params)),
        "videos_in_source": len(run.source), "decoded_clips_per_step": batch * run.draws, "copies_of_a_decode": copies,
        "global_batch_clips": run.clips * run.draws, "microbatches": config.microbatches,
        "steps": run.total, "steps_per_epoch": run.steps_per_epoch, "epochs": epochs, "effective_epochs": epochs * copies,
        "schedules": schedules,
        "tokens_per_clip": dict(cost.tokens), "tokens_seen": clips * cost.tokens["all"], "clips_seen": clips,
        "forward_macs_per_clip": cost.macs, "train_flops_per_clip": 6 * cost.macs, "train_flops_total": 6 * cost.macs * clips,
        "mesh": dict(run.mesh.shape), "checkpoint_bytes": state_bytes(run.abstract),
        "checkpoints_kept": checkpoints_kept(run), "checkpoints_disk_bytes": checkpoints_kept(run) * state_bytes(run.abstract),
    }


def checkpoints_kept(run: Assembly, /) -> int:
    """Checkpoints on disk at the end: the newest `keep_last`, one being written, and every `keep_every`-th."""
    keep, every = run.config.checkpoint.keep_last, run.config.checkpoint.keep_every
    steps = 0 if every in ("", "0") else configs.duration(every, total=run.total, steps_per_epoch=run.steps_per_epoch)
    return keep + 1 + (run.total // steps if steps else 0)


def text(values: dict[str, Any], /) -> str:
    """The card for people."""
    lines = [f"recipe card: {values['name'] or '(unnamed)'}"]
    for key, value in configs.flat(values).items():
        if key == "name":
            continue
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else f"{value:.6g}" if isinstance(value, float) else str(value)
        lines.append(f"  {key.replace('_', ' '):<42} {shown}")
    return "\n".join(lines) + "\n"
