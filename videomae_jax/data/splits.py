"""Which split a video is in: what its folders or its list tell, else a hash of its name."""

import hashlib
from typing import Any

from videomae_jax.errors import UserError

SPLITS = ("train", "val", "test")
FOLDERS = {"train": "train", "training": "train", "val": "val", "validation": "val", "valid": "val", "test": "test", "testing": "test"}


def check(val_fraction: float, /) -> None:
    """Raises UserError unless it is a share of videos that leaves some to train on."""
    if not 0 <= val_fraction < 1:
        raise UserError(f"val_fraction is {val_fraction}; allowed is 0 <= val_fraction < 1")


def from_folder(name: str, /) -> tuple[str, str]:
    """(split, label) that the folders of a relative path tell; "" where they do not."""
    parts = name.split("/")[:-1]
    split = FOLDERS.get(parts[0].lower(), "") if parts else ""
    rest = parts[1:] if split else parts
    return split, rest[0] if rest else ""


def place(name: str, /) -> float:
    """A number in [0, 1) that depends on a name only."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def draw(rows: list[dict[str, Any]], /, *, val_fraction: float) -> None:
    """Fills missing splits in place: "val" where the hash of the name is below `val_fraction`, else "train"."""
    drawn = [row for row in rows if row["split"] is None]
    for row in drawn:
        row["split"] = "val" if place(row["name"]) < val_fraction else "train"
    readable = sorted((row for row in drawn if row["status"] == "ok"), key=lambda row: place(row["name"]))
    if len(readable) == len([row for row in rows if row["status"] == "ok"]) > 1 and val_fraction > 0:
        readable[0]["split"], readable[-1]["split"] = "val", "train"
