"""What a classifier does to every class: the logits of every view, a table, a picture of the confusions."""

import csv
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from videomae_jax import losses, whole

SIDE = 720  # pixels of the confusion matrix, and at least one for a cell
NAMED = 40  # up to so many classes have their names beside it
INK = np.array([8, 48, 107])


def confusion(predicted: np.ndarray, labels: np.ndarray, /, *, classes: int) -> np.ndarray:
    """Counts i64 [classes classes]: row = true class, column = predicted class; -1, no class, is counted nowhere."""
    counts, known = np.zeros((classes, classes), np.int64), predicted >= 0
    np.add.at(counts, (labels[known], predicted[known]), 1)
    return counts


def write(folder: pathlib.Path, /, *, names: Sequence[str], classes: Sequence[str], labels: np.ndarray, logits: np.ndarray, seen: np.ndarray,
          mean: np.ndarray) -> None:
    """logits.npz, per_class.csv and confusion.png, which replace those that are there together.

    `logits` f32 [N views K] of videos `names`, of which `seen` bool [N views] were readable (the others are NaN); `mean` [N K]
    are the averaged probabilities that decide, `labels` i [N], -1 for a video without any readable view. Raises OSError, and leaves
    those that are there then.
    """
    read = labels >= 0
    place, label, predicted = losses.ranks(mean[read], labels[read]), labels[read], np.asarray(losses.first(mean[read]))
    counts = confusion(predicted, label, classes=len(classes))
    with whole.replacing(folder / "logits.npz") as arrays, whole.replacing(folder / "per_class.csv") as rows, whole.replacing(folder / "confusion.png") as picture:
        with arrays.open("wb") as file:
            np.savez(file, logits=np.where(seen[..., None], logits, np.nan).astype(np.float32), seen=seen, labels=labels.astype(np.int32),
                     names=np.asarray(names), classes=np.asarray(classes))
        with rows.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(("class", "videos", "top1", "top5", "most often taken for", "share"))
            for number, name in enumerate(classes):
                table.writerow((name, *_line(place[label == number], counts[number], number, classes)))
        draw(counts, classes).save(picture, format="PNG")


def _line(place: np.ndarray, counts: np.ndarray, number: int, classes: Sequence[str], /) -> tuple[object, ...]:
    """Videos, percentages and the most frequent error of one class; empty where it has none."""
    if not len(place):
        return (0, "", "", "", "")
    wrong = np.where(np.arange(len(counts)) == number, 0, counts)
    worst = int(wrong.argmax())
    error = (classes[worst], f"{100 * wrong[worst] / len(place):.2f}") if wrong[worst] else ("", "")
    return (len(place), f"{100 * np.mean(place < 1):.2f}", f"{100 * np.mean(place < 5):.2f}", *error)


def draw(counts: np.ndarray, classes: Sequence[str], /) -> Image.Image:
    """True classes downwards, predicted ones to the right, each row relative to its sum: white 0, dark blue 1."""
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    cell = max(1, SIDE // len(classes))
    pixels = np.uint8(np.round(255 + share[..., None] * (INK - 255)))
    matrix = Image.fromarray(pixels.repeat(cell, 0).repeat(cell, 1))
    margin = 10 + 6 * max(map(len, classes)) if len(classes) <= NAMED else 24
    sheet = Image.new("RGB", (margin + matrix.width + 1, matrix.height + 25), "white")
    sheet.paste(matrix, (margin, 24))
    pen = ImageDraw.Draw(sheet)
    pen.rectangle((margin - 1, 23, margin + matrix.width, 24 + matrix.height), outline="black")
    pen.text((margin, 6), f"predicted (same order), {counts.sum()} videos", fill="black")
    for number, name in enumerate(classes if len(classes) <= NAMED else ()):
        pen.text((4, 24 + number * cell + cell // 2 - 6), name, fill="black")
    return sheet
