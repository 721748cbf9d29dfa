"""How far a student follows its teacher on clips that neither was trained on."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax import head_rows, losses
from videomae_jax.errors import UserError
from videomae_jax.evals.base import Context
from videomae_jax.types import Array, Batch


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Share of clips with the same first class in percent, mean KL(teacher || student), and the top-1 of both where clips have labels of as many classes.

    One view of every readable clip of a split, `clips` of them spread over it (0 = all). Raises UserError where the head counts
    as many classes in another order.
    """

    every: str = "10%"
    split: str = "val"
    batch_size: int = 64
    clips: int = 0

    def run(self, context: Context, /) -> dict[str, float]:
        """{"agreement", "divergence", "student_top1", "teacher_top1"}; accuracies only of labelled clips."""
        objective = context.assembly.objective
        if not hasattr(objective, "teach"):
            raise UserError(f"{type(objective).__name__} has no teacher to agree with; allowed is a distillation")
        source = dataclasses.replace(context.source(self.split), limit=self.clips)
        if counted := len(source.classes) == objective.head.classes:
            head_rows.check_own(context.directory, source.classes)

        def compared(params: Any, extra: Any, batch: Batch, rng: Any) -> dict[str, Array]:
            student, teacher = objective.predict(params, extra, batch, rng).logits.astype(jnp.float32), objective.teach(extra, batch)
            p, q = jax.nn.log_softmax(teacher), jax.nn.log_softmax(student)
            return {"same": losses.agree(student, teacher), "divergence": jnp.sum(jnp.exp(p) * (p - q), -1),
                    "student": losses.ranks(student, batch["label"]) < 1, "teacher": losses.ranks(teacher, batch["label"]) < 1,
                    "kept": batch["valid"] & (batch["fault"] == 0), "labelled": (batch["label"] >= 0) & counted}

        compare = context.assembly.evaluator(compared)
        found = list(context.results(lambda batch: compare(context.params, context.extra, batch, context.rng), source, batch_size=self.batch_size))
        rows = {k: np.concatenate([part[k] for part in found]) for k in found[0]}
        if not rows["kept"].any():
            raise UserError(f"no clip of the split {self.split!r} can be read")
        named = rows["kept"] & rows["labelled"]
        result = {"agreement": 100 * float(rows["same"][rows["kept"]].mean()), "divergence": float(rows["divergence"][rows["kept"]].mean())}
        return result | ({f"{k}_top1": 100 * float(rows[k][named].mean()) for k in ("student", "teacher")} if named.any() else {})
