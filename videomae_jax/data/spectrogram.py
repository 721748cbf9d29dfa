"""Log-mel spectrograms in numpy, with the constants of the published audio-visual systems.

Evidence of a number: [code] read in the named repository, [unverified] recalled, [ours] chosen here.
"""

import dataclasses
import functools
import math

import numpy as np

from videomae_jax.errors import UserError

ALLOWED = {"taper": ("hann", "periodic_hann", "hamming"), "bank": ("kaldi", "slaney"), "edges": ("snip", "centre"),
           "level": ("frame", "clip"), "logarithm": ("natural", "decibel")}
EPSILON = 2.0**-23  # float32's, the floor of Kaldi's filter bank in torchaudio


@dataclasses.dataclass(frozen=True)
class LogMel:
    """Sound f32 [n] -> f32 [frames mels]: clip((log mel - mean) / spread, *limits).

    `window`, `hop` and `fft` count samples, `low` and `high` are in Hz. The mean is subtracted from every window or from
    the whole sound (`level`), then `preemphasis` x[i] - p x[i-1] is applied inside each window with its first sample
    repeated, then the `taper`. `bank` "kaldi" is triangles of height 1 in Kaldi's mel scale, "slaney" triangles of area 1
    in Hz in Slaney's. Powers below `floor` are raised to it; `dynamic` cuts what lies more decibels below the peak of the
    sound. `edges` "snip" takes the windows that fit, "centre" pads with zeros so that window t is centred on sample t hop.
    """

    rate: int = 16000
    window: int = 400
    hop: int = 160
    fft: int = 512
    mels: int = 128
    low: float = 20.0
    high: float = 8000.0
    taper: str = "hann"
    bank: str = "kaldi"
    edges: str = "snip"
    level: str = "frame"
    preemphasis: float = 0.97
    logarithm: str = "natural"
    floor: float = EPSILON
    dynamic: float = math.inf
    mean: float = 0.0
    spread: float = 1.0
    limits: tuple[float, float] = (-math.inf, math.inf)

    def __post_init__(self) -> None:
        for field, allowed in ALLOWED.items():
            if getattr(self, field) not in allowed:
                raise UserError(f"LogMel: {field} {getattr(self, field)!r}; allowed are {', '.join(allowed)}")
        for field in ("rate", "hop", "mels"):
            if getattr(self, field) < 1:
                raise UserError(f"LogMel: {field} is {getattr(self, field)}; allowed are 1 and more")
        if not 2 <= self.window <= self.fft:
            raise UserError(f"LogMel: window is {self.window}; allowed are 2 to fft = {self.fft}")
        if not 0 <= self.low < self.high <= self.rate / 2:
            raise UserError(f"LogMel: low {self.low} and high {self.high}; allowed is 0 <= low < high <= rate / 2 = {self.rate / 2:g}")
        for field in ("spread", "floor"):
            if not 0 < getattr(self, field) < math.inf:
                raise UserError(f"LogMel: {field} is {getattr(self, field)}; allowed are numbers above 0")

    def frames(self, samples: int, /) -> int:
        """Windows of a sound of `samples` samples."""
        return 1 + samples // self.hop if self.edges == "centre" else max(0, 1 + (samples - self.window) // self.hop)

    def samples(self, frames: int, /) -> int:
        """Samples to take for `frames` windows."""
        return frames * self.hop if self.edges == "centre" else (frames - 1) * self.hop + self.window

    @property
    def lead(self) -> int:
        """Samples that the first window reaches before the time from which window t is centred on (t + 1/2) hop; "centre": t hop."""
        return 0 if self.edges == "centre" else (self.window - self.hop) // 2

    def windows(self, samples: np.ndarray, /) -> np.ndarray:
        """[n] -> a view [frames window] of the samples, zeros around them where the edges are centred."""
        if self.edges == "centre":
            samples = np.pad(samples, (self.window // 2, self.window - self.window // 2))
        if len(samples) < self.window:
            return np.zeros((0, self.window), samples.dtype)
        return np.lib.stride_tricks.sliding_window_view(samples, self.window)[:: self.hop]

    def covered(self, valid: np.ndarray, /) -> np.ndarray:
        """bool [n] of samples -> bool [frames]: every sample of the window is valid (the padding counts as valid)."""
        return ~self.windows(~valid).any(-1)

    def powers(self, samples: np.ndarray, /) -> np.ndarray:
        """Mel powers f64 [frames mels] of a sound f32 [n]."""
        samples = np.asarray(samples, np.float64)
        if self.level == "clip" and len(samples):
            samples = samples - samples.mean()
        windows = self.windows(samples)
        if self.level == "frame":
            windows = windows - windows.mean(-1, keepdims=True)
        if self.preemphasis:
            windows = windows - self.preemphasis * np.concatenate([windows[:, :1], windows[:, :-1]], -1)
        spectrum = np.fft.rfft(windows * _taper(self.taper, self.window), self.fft)
        return np.square(np.abs(spectrum)) @ _bank(self)

    def __call__(self, samples: np.ndarray, /) -> np.ndarray:
        """Sound f32 [n], full scale 1 -> f32 [frames mels]."""
        level = np.log(np.maximum(self.powers(samples), self.floor))
        if self.logarithm == "decibel":
            level = level * (10 / math.log(10))
        if level.size and math.isfinite(self.dynamic):
            unit = 1.0 if self.logarithm == "decibel" else math.log(10) / 10
            level = np.maximum(level, level.max() - self.dynamic * unit)
        return np.clip((level - self.mean) / self.spread, *self.limits).astype(np.float32)


@functools.lru_cache(maxsize=16)
def _taper(name: str, length: int, /) -> np.ndarray:
    """f64 [length]."""
    if name == "hamming":
        return np.hamming(length)
    return np.hanning(length) if name == "hann" else np.hanning(length + 1)[:-1]


def kaldi_mel(hertz: np.ndarray | float, /) -> np.ndarray:
    """Kaldi's (HTK's) mel scale in natural units."""
    return 1127 * np.log1p(np.asarray(hertz, np.float64) / 700)


def slaney_mel(hertz: np.ndarray | float, /) -> np.ndarray:
    """Slaney's mel scale (Auditory Toolbox): 3 mel in 200 Hz up to 1000 Hz, then 27 mel in a factor of 6.4."""
    hertz = np.asarray(hertz, np.float64)
    return np.where(hertz < 1000, hertz * 3 / 200, 15 + np.log(np.maximum(hertz, 1000) / 1000) * 27 / math.log(6.4))


def slaney_hertz(mel: np.ndarray, /) -> np.ndarray:
    """Inverse of `slaney_mel`."""
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((np.maximum(mel, 15) - 15) * math.log(6.4) / 27))


@functools.lru_cache(maxsize=16)
def _bank(mel: LogMel, /) -> np.ndarray:
    """Filters f64 [fft / 2 + 1, mels]."""
    bins = np.arange(mel.fft // 2 + 1) * mel.rate / mel.fft
    scale = kaldi_mel if mel.bank == "kaldi" else slaney_mel
    corners = np.linspace(scale(mel.low), scale(mel.high), mel.mels + 2)
    place, corners = (kaldi_mel(bins), corners) if mel.bank == "kaldi" else (bins, slaney_hertz(corners))
    left, middle, right = corners[:-2], corners[1:-1], corners[2:]
    rise = (place[:, None] - left) / (middle - left)
    fall = (right - place[:, None]) / (right - middle)
    filters = np.maximum(np.minimum(rise, fall), 0)
    return filters if mel.bank == "kaldi" else filters * 2 / (right - left)


# AudioMAE and AST [code: facebookresearch/AudioMAE; torchaudio.compliance.kaldi.fbank]: 25 ms Hanning windows every 10 ms,
# 128 bins, no dither, no energy; pre-emphasis .97, removal of the mean, 20 Hz and float32's epsilon are defaults there.
# (x - mean) / (2 std) with AudioSet's -4.2677 and 4.5690; 1024 frames for 10 s, which are 998: the paper pads with 0
# *before* it normalises, here missing frames are 0 after it and marked invalid.
AST = LogMel(mean=-4.2677, spread=2 * 4.5690)
# MAViL's code is not public; it is said to use the front end of AudioMAE [unverified].
MAVIL = AST
# Audiovisual MAE: 16 kHz, 128 bins, 100 frames a second [code: scenic av_mae]; 25 ms Hamming windows are MBT's [unverified].
# Pretraining takes the spectrogram as stored, fine-tuning normalises by 1.102 and 2.762 [code]; the logarithm and the
# filters behind these are not established, so filters and statistics are AST's and the division is by one std [ours].
AV_MAE = LogMel(taper="hamming", preemphasis=0.0, mean=-4.2677, spread=4.5690)
# TVLT [code: zinengtang/TVLT, librosa's defaults]: 44.1 kHz, 2048 samples every 512, the mean of the sound subtracted;
# clip((dB - 20) / 40, -2, 0) + 1, and 80 dB below the peak at most. The paper's data paths differ in whether they resample.
TVLT = LogMel(rate=44100, window=2048, hop=512, fft=2048, low=0.0, high=22050.0, taper="periodic_hann", bank="slaney", edges="centre",
              level="clip", preemphasis=0.0, logarithm="decibel", floor=1e-10, dynamic=80.0, mean=-20.0, spread=40.0, limits=(-1.0, 1.0))
