"""Which videos a packing leaves out: what is left out is left out for good, and what may pass is tried again."""

from typing import Any

import numpy as np

from videomae_jax.data import deadline, decode, sources
from videomae_jax.errors import UserError


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


def check(name: str, error: str, before: str, /) -> None:
    """Raises UserError where a video could not be read for what may pass: by its `error`, or by that of the one `before` it as well.

    One that takes too long twice among others that do not is at fault itself, and no packing would ever end if it were not left out.
    """
    stage = error.partition(":")[0]
    if stage == "io":
        raise UserError(f"{name}: {error}; a video is not left out for what may pass, so the packing ends here: the same command goes on")
    if stage == "timeout" and before.startswith("timeout:"):
        raise UserError(f"{name}: {error}; nor was the video before read in time, which may pass, so the packing ends here: the same command goes on; if "
                        "it ends here again, use an index without the two")
