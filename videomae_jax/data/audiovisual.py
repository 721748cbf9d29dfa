"""Clips with the sound that belongs to them."""

import dataclasses
import functools
import threading
from fractions import Fraction
from typing import Any

import numpy as np

from videomae_jax.data import audio, clips, columns, decode, remote, sources
from videomae_jax.data.spectrogram import AST, LogMel
from videomae_jax.errors import UserError

SPANS = ("centred", "clip", "proportional")
_fetched = threading.local()  # `last`: (address, size) and bytes of the file that a thread has fetched and read once


@dataclasses.dataclass(frozen=True)
class AudioVideoClips(sources.VideoClips):
    """VideoClips, pixel for pixel, with `audio` f32 [K S mels] and `audio_valid` bool [K S], S = `spectrogram` frames of `mel`.

    `span` places the sound by the presentation times of the sampled frames: "centred" puts the middle of S hops on the
    middle of the clip, "clip" begins with the first sampled frame and ends with the last; what S holds beyond that is
    invalid. "proportional" gives the sound the place in the file that the clip has, as share of what it leaves free: sound
    as long as the file is the whole file (Audiovisual MAE: 10 s for a shorter clip), in a shorter file it begins with it.
    A spectrogram frame is valid where the file has every sample of its window; invalid ones are 0, all of them in a file
    without sound. Copies share the sound.
    `shuffle_audio` = n > 0 gives every video the sound of another one, by a permutation drawn from n: the control that
    tells whether a model relates the two. Raises UserError for it where there is only one video.
    """

    mel: LogMel = AST
    spectrogram: int = 1024
    span: str = "centred"
    shuffle_audio: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.spectrogram < 1:
            raise UserError(f"spectrogram is {self.spectrogram} frames; allowed are 1 and more")
        if self.span not in SPANS:
            raise UserError(f"span {self.span!r}; allowed are {', '.join(SPANS)}")
        if self.shuffle_audio < 0:
            raise UserError(f"shuffle_audio is {self.shuffle_audio}; allowed are 0 (the video's own sound) and more")

    @property
    def fields(self) -> dict[str, sources.Field]:
        return super().fields | {"audio": sources.Field((self.spectrogram, self.mel.mels), "float32", "sequence"),
                                 "audio_valid": sources.Field((self.spectrogram,), "bool", "sequence")}

    @functools.cached_property
    def _heard(self) -> np.ndarray:
        """Row whose sound each row gets: a single cycle through all rows, so that none keeps its own."""
        rows = np.arange(len(self))
        if self.shuffle_audio:
            if len(rows) < 2:
                raise UserError(f"shuffle_audio needs two videos; split {self.split!r} of {self.index} has {len(rows)}")
            cycle = np.random.default_rng(self.shuffle_audio).permutation(len(rows))
            rows[cycle] = np.roll(cycle, 1)
        return rows

    def locate(self, record: dict[str, Any], /) -> decode.Video:
        """As in VideoClips; a file at an address is fetched once for the clip and its sound, which a thread reads one after the other."""
        place = columns.path(record)
        if not remote.is_remote(place):
            return super().locate(record)
        (held, data), _fetched.last = getattr(_fetched, "last", (None, b"")), (None, b"")
        if held != (place, record["size"]):
            data = super().locate(record)
            _fetched.last = (place, record["size"]), data
        return data

    def beside(self, row: int, /, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """`audio` and `audio_valid` at the times that the clip draws."""
        sound, valid = self.listen(int(self._heard[row]), rng=rng)
        return {"audio": np.repeat(sound[None], self.repeats, 0), "audio_valid": np.repeat(valid[None], self.repeats, 0)}

    def listen(self, row: int, /, *, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(spectrogram f32 [S mels], valid bool [S]) beside the frames that `rng` draws for a row. Raises DecodeError."""
        info = columns.info(record := self.record(row))
        ids = clips.at(self.sampling, fps=info.fps, pts=info.pts, time_base=info.time_base).ids(info.frames, clip=self.frames, rng=rng)
        first, last = (int(info.pts[i]) * info.time_base for i in (ids.min(), ids.max()))
        last += 1 / info.fps
        start = self._start(first, last, begin=int(info.pts[0]) * info.time_base, end=int(info.pts[-1]) * info.time_base + 1 / info.fps)
        heard = audio.decode_audio(self.locate(record), start=start, rate=self.mel.rate,
                                   duration=Fraction(self.mel.samples(self.spectrogram), self.mel.rate), timeout=self.timeout)
        valid = self.mel.covered(heard.valid)[: self.spectrogram]
        if self.span == "clip":
            valid = valid & (np.arange(self.spectrogram) < (last - first) * self.mel.rate / self.mel.hop)
        return np.where(valid[:, None], self.mel(heard.samples)[: self.spectrogram], np.float32(0)), valid

    def _start(self, first: Fraction, last: Fraction, /, *, begin: Fraction, end: Fraction) -> Fraction:
        """Time of the first sample beside a clip from `first` to `last` of a file from `begin` to `end`; all in seconds."""
        hops, lead = Fraction(self.spectrogram * self.mel.hop, self.mel.rate), Fraction(self.mel.lead, self.mel.rate)
        if self.span == "clip":
            return first - lead
        if self.span == "centred":
            return (first + last - hops) / 2 - lead
        free, room = end - begin - (last - first), end - begin - Fraction(self.mel.samples(self.spectrogram), self.mel.rate)
        return begin + max(room, Fraction(0)) * ((first - begin) / free if free > 0 else Fraction(1, 2))
