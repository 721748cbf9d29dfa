"""Which videos a packing leaves out: what is left out is left out for good, and what may pass is tried again."""

from typing import Any, NamedTuple

import numpy as np

from videomae_jax.data import deadline, decode, sources
from videomae_jax.errors import UserError


class Outcome(NamedTuple):
    """What reading a video came to: "" or "stage: cause"."""

    name: str = ""
    error: str = ""

    @property
    def late(self) -> bool:
        """Whether it was not read in time."""
        return self.error.startswith("timeout:")


def frames(source: sources.VideoClips, record: dict[str, Any], ids: np.ndarray, info: decode.VideoInfo, /, *, seconds: float) -> np.ndarray:
    """Frames `ids` of a row, u8 [len(ids) H W 3], within `seconds`; what takes longer is tried once more. Raises DecodeError."""
    def read() -> np.ndarray:
        return deadline.call(lambda: source.decode(sources.Clip(source.locate(record), ids, info, -1)), seconds=seconds, name=lambda: record["name"])

    try:
        return read()
    except decode.DecodeError as error:
        if error.stage != "timeout":
            raise
    return read()


def check(now: Outcome, before: Outcome, /, *, then: str = "the same command goes on") -> None:
    """Raises UserError where a video could not be read for what may pass: by its own error, or by that of the one read `before` as well.

    One that takes too long twice among others that do not is at fault itself, and no packing would ever end if it were not left out. `then`
    tells what to do.
    """
    if now.error.startswith("io:"):
        raise UserError(f"{now.name}: {now.error}; a video is not left out for what may pass, so the packing ends here: {then}; if it ends here "
                        "again, use an index without it and another --out")
    if now.late and before.late:
        raise UserError(f"{now.name}: {now.error}; nor was {before.name} before it read in time, which may pass, so the packing ends here: {then}; if "
                        "it ends here again, use an index without them and another --out")
