"""Clips of indices that list frame folders and pictures, alone or among video files."""

import os
from typing import Any

import numpy as np

from videomae_jax.data import clips, columns, index, pictures, remote, sources


class FrameClips(sources.VideoClips):
    """VideoClips whose videos may be folders of numbered pictures, or single pictures, as the column `template` of the index says.

    Frames are counted from the first picture. A row with a `stride` of its own has it instead of that of `sampling` (V2
    reads SSv2 frames, extracted at 12 a second, at stride 2, and everything else at 4). A picture is a video of one frame,
    which every sampling repeats.
    """

    def _check(self, table: Any, /) -> None:
        if index.PACKED in table.schema.names:
            super()._check(table)

    def sampling_of(self, record: dict[str, Any], /) -> Any:
        stride = record["stride"]
        return self.sampling if stride is None else clips.restrided(self.sampling, stride)

    def locate(self, record: dict[str, Any], /) -> Any:
        if record["template"] is None:
            return super().locate(record)
        place = columns.path(record)
        return pictures.Pictures(place if remote.is_remote(place) else os.fspath(self._opened.home / place), record["template"])

    def decode(self, clip: sources.Clip, /) -> np.ndarray:
        if isinstance(clip.video, pictures.Pictures):
            return pictures.decode(clip.video, clip.ids, info=clip.info, timeout=self.timeout)
        return super().decode(clip)
