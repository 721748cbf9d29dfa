"""What the head of converted weights answers: one class of several, or yes or no to each of them, and what they are called."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from videomae_jax import config as configs
from videomae_jax.data import attributes, merge
from videomae_jax.errors import UserError
from videomae_jax.evals.attributes import AttributeAccuracy
from videomae_jax.evals.classification import Classification
from videomae_jax.mixing import Mixing

PROBLEM, SEVERAL = "problem_type", "multi_label_classification"  # Hugging Face's words for a sigmoid of every output
ATTRIBUTES = "videomae_jax.objectives.attributes.Attributes"  # the import path: recipes are what configs name


def class_names(settings: Mapping[str, Any], /, *, count: int, file: str = "") -> tuple[str, ...]:
    """Names of the classes from a file, else from Hugging Face's id2label; () where they are absent or mere numbers."""
    if file and len(names := merge.read_lines(file)) != count:
        raise UserError(f"--classes={file} names {len(names)} classes, and the weights have {f'a head of {count}' if count else 'no head'}")
    if file:
        return names
    labels = settings.get("id2label") or {}
    if not isinstance(labels, dict):
        raise UserError(f"id2label of the config beside the weights is a {type(labels).__name__}; needed is an object of numbers and names")
    if labels and count and len(labels) != count:
        raise UserError(f"the config beside the weights names {len(labels)} classes (id2label) for a head of {count}; correct one of them")
    names = tuple(str(labels.get(str(i), labels.get(i, ""))) for i in range(count))
    return () if not all(names) or all(re.fullmatch(r"LABEL_\d+", n) for n in names) else names


def several(config: Any, /, *, settings: Mapping[str, Any], count: int, names: Sequence[str]) -> None:
    """Makes a config of a classifier one of `count` yes-or-no attributes, in place, where the settings beside the weights say so; others stay as they are.

    Clips are neither mixed nor labels smoothed. The data ask for the `names` as columns of the index, or for numbers where none are told,
    or some of them twice.
    """
    if settings.get(PROBLEM) != SEVERAL or not count or configs.build(config.objective).head_kind == "attributes":
        return
    changes = {configs.SYMBOL: ATTRIBUTES, "mixing": configs.plain(Mixing(probability=0.0)), "smoothing": 0.0}
    columns = tuple(names) if len(set(names)) == count else tuple(map(str, range(count)))
    tests = {k: node for k, node in config.evaluators.items() if configs.symbol(node[configs.SYMBOL]) is not Classification}
    with config.ignore_type(), config.unlocked():
        config.objective.update(changes)
        config.data.update({configs.SYMBOL: f"{attributes.__name__}.{attributes.AttributeClips.__name__}", "attributes": columns})
        config.evaluators = tests | {"val": configs.spec(AttributeAccuracy, every="5%")}
