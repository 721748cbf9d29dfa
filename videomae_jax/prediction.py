"""Classes of videos of one's own, by the views that the run was tested with: a table and a contact sheet."""

import csv
import dataclasses
import hashlib
import io
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
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
SHOWN = 300  # videos on a sheet: their pictures are in memory, and few viewers open a larger page


@dataclasses.dataclass(frozen=True)
class Answer:
    """A video's classes, the likeliest first, as (name, probability), and a frame of it for the sheet u8 [S S 3]; or why it has none."""

    name: str
    classes: tuple[tuple[str, float], ...] = ()
    picture: np.ndarray | None = None
    error: str = ""


class Journal:
    """Answers as they come, a JSON line each in a file beside the table `out`, so that the same command goes on where it stopped.

    `known` holds those of an earlier call by (name, path) of the video; one that could not be read is tried again. Raises UserError
    where the file holds answers that were given otherwise (`settings`) or something else, and where it cannot be written.
    """

    def __init__(self, out: pathlib.Path, /, *, settings: Mapping[str, Any]) -> None:
        self.out, self.path = out, out.with_name(f"{out.name}.partial")
        first = json.dumps(settings, sort_keys=True)
        try:
            lines = self.path.read_text(errors="replace").split("\n")[:-1] if self.path.is_file() else []  # what follows the last line end was cut off
            self.known = self._read(lines, json.loads(first)) if lines else {}
            run_directory.write(self.path, "".join(f"{line}\n" for line in (first, *lines[1:])))
        except OSError as error:
            raise UserError(f"--out={out} cannot be written ({error})") from error

    def _read(self, lines: Sequence[str], settings: Mapping[str, Any], /) -> dict[tuple[str, str], Answer]:
        """The answers in the lines behind the settings."""
        try:
            stored, *rows = map(json.loads, lines)
            other = [key for key, value in settings.items() if stored[key] != value]
            found = {(row["name"], row["path"]): Answer(row["name"], tuple((str(name), float(p)) for name, p in row["classes"])) for row in rows}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path} does not hold the answers of an earlier call ({error!r}); remove it, or use another --out") from error
        if other:
            raise UserError(f"{self.path} holds the answers of an earlier call with other {', '.join(other)}; remove it, or use another --out")
        return found

    def note(self, path: pathlib.Path, answer: Answer, /) -> None:
        """Keeps the classes of a video."""
        try:
            with self.path.open("a") as file:
                file.write(json.dumps({"name": answer.name, "path": place(path), "classes": answer.classes}) + "\n")
        except OSError as error:
            raise UserError(f"--out={self.out} cannot be written ({error})") from error

    def close(self) -> None:
        """Removes the file, when all is in the table."""
        self.path.unlink(missing_ok=True)


def place(path: pathlib.Path, /) -> str:
    """A path that means the same from every folder."""
    return str(path.absolute())


def settings(model: Model, /, *, weights: str, classes: Sequence[str], top: int) -> dict[str, Any]:
    """What decides the answers but for the videos; `weights` are the digest of the model's."""
    cuts = {name: model.config[name] for name in ("data", "eval_data", "evaluators")}
    return {"weights": [weights, model.step, getattr(model.objective, "chosen", 0)], "views": hashlib.sha256(configs.to_json(cuts).encode()).hexdigest(),
            "classes": list(classes), "top": top}


def names(model: Model, /, *, given: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of the classes: those given, else those beside the weights, else those of the index the run was trained on, else
    numbers. Raises UserError where the given ones are not as many as the classes.
    """
    count = model.objective.head.classes if hasattr(model.objective, "head") else 0
    if not count:
        raise UserError(f"{type(model.objective).__name__} has no classes; allowed are fine-tuned runs")
    if given and len(given) != count:
        raise UserError(f"{len(given)} names of classes for a head of {count}")
    found = tuple(given) or model.classes
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


def predict(model: Model, videos: Sequence[tuple[str, pathlib.Path]], /, *, classes: Sequence[str], top: int, journal: Journal,
            say: Callable[[str], None]) -> list[Answer]:
    """The `top` classes of every video: the softmax of each view, then their mean. Unreadable videos are named and go on the list.

    Those that the journal knows are not judged again. The first SHOWN have pictures.
    """
    cuts, answers = views(model), []
    middle = len(cuts) // 2
    for number, (name, path) in enumerate(videos):
        known = journal.known.get((name, place(path)))
        if known and number >= SHOWN:
            answers.append(known)
            continue
        try:
            views_of = read(path, cuts[middle:middle + 1] if known else cuts, model=model)
        except decode.DecodeError as error:
            say(f"cannot be read: {error}")
            answers.append(known or Answer(name, error=f"{error.stage}: {error.cause}"))
            continue
        answer = known or judged(model, name, views_of, classes=classes, top=top)
        if not known:
            journal.note(path, answer)
        picture = tile(views_of[len(views_of) // 2, model.frames // 2]) if number < SHOWN else None
        answers.append(dataclasses.replace(answer, picture=picture))
    return answers


def judged(model: Model, name: str, views_of: np.ndarray, /, *, classes: Sequence[str], top: int) -> Answer:
    """The answer for a video by its views u8 [views T S S 3]."""
    mean = model.classify(views_of).probabilities.astype(np.float64).mean(0)
    if not np.isfinite(mean).all():
        return Answer(name, error="the probabilities of the model are not finite")
    return Answer(name, tuple((classes[i], float(mean[i])) for i in np.argsort(-mean, kind="stable")[:top]))


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
    """png: a frame of each of the first SHOWN videos over its name, its class and the probability."""
    answers = answers[:SHOWN]
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
