"""The recipe card: what a run really does, resolved into numbers."""

import math
from typing import Any

import jax

from videomae_jax import config as configs
from videomae_jax import externals
from videomae_jax.assembly import Assembly, state_bytes
from videomae_jax.data import planes


def card(run: Assembly, /) -> dict[str, Any]:
    """Numbers of a run as plain data.

    FLOPs are 2 x multiply-adds; a training step counts three forward passes, of frozen parts one, of the embedding of patches two.
    """
    config, cost = run.config, run.objective.cost()
    batch, copies = config.batch_size, run.source.repeats
    epochs = run.total / run.steps_per_epoch
    schedules = {}
    for phase in run.objective.phases():
        s = run.updates[phase.name].schedule
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
        "forward_macs_per_clip": cost.macs, "train_flops_per_clip": cost.train_flops, "train_flops_total": cost.train_flops * clips,
        "mesh": dict(run.mesh.shape), "checkpoint_bytes": state_bytes(run.abstract),
        "checkpoints_kept": checkpoints_kept(run), "checkpoints_disk_bytes": checkpoints_kept(run) * state_bytes(run.abstract),
        **({"outside": found} if (found := externals.outside(run.objective.externals(), source=run.source)) else {}),
        **({"crops_on_device": found} if (found := planes.report(run.source)) else {}),
        **({"sources": run.source.card(run.total * batch * run.draws)} if hasattr(run.source, "card") else {}),
    }


def checkpoints_kept(run: Assembly, /) -> int:
    """Most checkpoints that are ever on disk: the newest `keep_last`, one being written, and those kept for ever.

    Kept for ever are the saves whose step is a multiple of `keep_every`; a save happens every `every` steps.
    """
    def steps(text: str) -> int:
        return 0 if text in ("", "0") else max(1, configs.duration(text, total=run.total, steps_per_epoch=run.steps_per_epoch))

    settings = run.config.checkpoint
    every, keep_every = steps(settings.every), steps(settings.keep_every)
    for_ever = run.total // math.lcm(every, keep_every) if every and keep_every else 0
    return settings.keep_last + 1 + for_ever


def text(values: dict[str, Any], /) -> str:
    """The card for people."""
    lines = [f"recipe card: {values['name'] or '(unnamed)'}"]
    for key, value in configs.flat(values).items():
        if key == "name":
            continue
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else f"{value:.6g}" if isinstance(value, float) else str(value)
        lines.append(f"  {key.replace('_', ' '):<42} {shown}")
    return "\n".join(lines) + "\n"
