"""Classes of videos of one's own, by the views that the run was tested with: a table and a contact sheet."""

import csv
import dataclasses
import io
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from videomae_jax import config as configs
from videomae_jax import run_directory
from videomae_jax.api import Model
from videomae_jax.data import clips, decode
from videomae_jax.errors import UserError
from videomae_jax.evals.base import evaluation_source

TILE, COLUMNS, LABEL = 160, 5, 30  # pixels of a picture with its margin, pictures a row, pixels below it
MARGIN = 2


@dataclasses.dataclass(frozen=True)
class Answer:
    """A video's classes, the likeliest first, as (name, probability), and a frame of it for the sheet u8 [S S 3]; or why it has none."""

    name: str
    classes: tuple[tuple[str, float], ...] = ()
    picture: np.ndarray | None = None
    error: str = ""


def names(model: Model, /, *, given: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of the classes: those given, else those beside the weights, else those of the index the run was trained on, else
    numbers. Raises UserError where the given ones are not as many as the classes.
    """
    count = model.objective.head.classes if hasattr(model.objective, "head") else 0
    if not count:
        raise UserError(f"{type(model.objective).__name__} has no classes; allowed are fine-tuned runs")
    if given and len(given) != count:
        raise UserError(f"{len(given)} names of classes for a head of {count}")
    found = tuple(given) or model.classes or tuple(model.config.data.get("attributes", ()))
    if not found:
        try:
            found = tuple(configs.build(model.config.data, trust=model.trust).classes)
        except (UserError, OSError):
            found = ()  # the index lies on another machine
    return found if len(found) == count else tuple(map(str, range(count)))


def views(model: Model, /) -> tuple[Any, ...]:
    """Sources that cut every view of the run's test with most views; its evaluation clip where it declares none."""
    source = evaluation_source(model.config, split="all", trust=model.trust)
    if not hasattr(source, "sampling"):
        raise UserError(f"the data of this run ({type(source).__name__}) do not say how a clip is cut from a file")
    tests = [configs.build(node, trust=model.trust) for node in model.config.evaluators.values()]
    found = [test.views.sources(source) for test in tests if hasattr(test, "views")]
    return max(found, key=len, default=(source,))


def predict(model: Model, videos: Sequence[tuple[str, pathlib.Path]], /, *, classes: Sequence[str], top: int, say: Callable[[str], None]) -> list[Answer]:
    """The `top` classes of every video: the softmax of each view, then their mean. Unreadable videos are named and go on the list."""
    cuts, answers = views(model), []
    for name, path in videos:
        try:
            views_of = read(path, cuts, model=model)
        except decode.DecodeError as error:
            say(f"cannot be read: {error}")
            answers.append(Answer(name, error=f"{error.stage}: {error.cause}"))
            continue
        mean = model.classify(views_of).probabilities.astype(np.float64).mean(0)
        order = np.argsort(-mean, kind="stable")[:top]
        answers.append(Answer(name, tuple((classes[i], float(mean[i])) for i in order), tile(views_of[len(cuts) // 2, model.frames // 2])))
    return answers


def tile(frame: np.ndarray, /) -> np.ndarray:
    """A frame u8 [S S 3] at the size of the sheet; a copy, so that the views of a video do not stay in memory."""
    return np.array(Image.fromarray(frame).resize((TILE - 2 * MARGIN,) * 2, Image.Resampling.BILINEAR))


def read(path: pathlib.Path, cuts: Sequence[Any], /, *, model: Model) -> np.ndarray:
    """u8 [views T S S 3]; every frame is decoded once."""
    info, rng = decode.probe(path), np.random.default_rng(0)
    ids = [clips.of(cut.sampling, info).ids(info.frames, clip=model.frames, rng=rng) for cut in cuts]
    needed = np.unique(np.concatenate(ids))
    found = decode.decode(path, needed, info=info)
    return np.stack([cut.crop(found[np.searchsorted(needed, i)], size=model.size, rng=rng) for cut, i in zip(cuts, ids, strict=True)])


def table(answers: Sequence[Answer], path: pathlib.Path, /, *, top: int) -> None:
    """csv: video, class1, probability1, ..., error."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["video", *(f"{what}{i + 1}" for i in range(top) for what in ("class", "probability")), "error"])
    for answer in answers:
        cells = [cell for name, p in answer.classes for cell in (name, f"{p:.6f}")]
        writer.writerow([answer.name, *cells, *[""] * (2 * top - len(cells)), answer.error])
    run_directory.write(path, text.getvalue())


def sheet(answers: Sequence[Answer], path: pathlib.Path, /) -> None:
    """png: a frame of every video over its name, its class and the probability."""
    rows = -(-len(answers) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * TILE, rows * (TILE + LABEL)), "white")
    draw = ImageDraw.Draw(page)
    for i, answer in enumerate(answers):
        left, top = i % COLUMNS * TILE, i // COLUMNS * (TILE + LABEL)
        if answer.picture is not None:
            page.paste(Image.fromarray(answer.picture), (left + MARGIN, top + MARGIN))
        said = f"{answer.classes[0][0][:18]} {100 * answer.classes[0][1]:.0f} %" if answer.classes else "cannot be read"
        for line, text in enumerate((answer.name[-25:], said)):
            draw.text((left + 3, top + TILE + 13 * line), text.encode("latin-1", "replace").decode("latin-1"), fill="black" if answer.classes else "red")
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path, format="png")
