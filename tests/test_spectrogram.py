"""Log-mel spectrograms against independent ones, and their patches."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from videomae_jax.data import audio
from videomae_jax.data.spectrogram import AST, AV_MAE, TVLT, LogMel
from videomae_jax.errors import UserError
from videomae_jax.masking import Grid
from videomae_jax.models import audio as tokens

RATE = 16000
RAW = dataclasses.replace(AST, mean=0.0, spread=1.0)


def signals(*, rate: int = RATE, seconds: float = 1.0) -> dict[str, np.ndarray]:
    """Tones, noise, a chirp, noise on an offset, silence, squares modulo a prime: f32 [n] each."""
    clock, rng = np.arange(round(rate * seconds)) / rate, np.random.Generator(np.random.PCG64(0))
    made = {"tones": 0.5 * np.sin(2 * np.pi * 440 * clock) + 0.1 * np.sin(2 * np.pi * 3000 * clock), "noise": 0.1 * rng.standard_normal(len(clock)),
            "chirp": 0.7 * np.sin(2 * np.pi * (100 * clock + 1800 * clock**2)), "offset": 0.3 + 0.01 * rng.standard_normal(len(clock)),
            "silence": np.zeros(len(clock))}
    made["residues"] = np.arange(len(clock), dtype=np.int64) ** 2 * 1103 % 65521 / 65521 - 0.5  # the same bits everywhere
    return {name: wave.astype(np.float32) for name, wave in made.items()}


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The spectrogram functions of transformers."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("transformers.audio_utils")


@pytest.mark.filterwarnings("ignore:At least one mel filter")  # 128 filters over 257 bins leave the lowest ones empty
@pytest.mark.parametrize("name", [*signals(), "speech"])
def test_kaldi_filter_bank_agrees_with_transformers(name: str, reference: Any, request: pytest.FixtureRequest) -> None:
    """All frames and bins of the AST front end, 1e-5 in the logarithm (values up to 16; float32 rounds at 1e-6)."""
    wave = audio.decode_audio(request.getfixturevalue("real_videos") / "talking_face.mp4", start=1.0, duration=2.0, rate=RATE).samples \
        if name == "speech" else signals()[name]
    bank = reference.mel_filter_bank(num_frequency_bins=257, num_mel_filters=128, min_frequency=20, max_frequency=8000, sampling_rate=RATE,
                                     norm=None, mel_scale="kaldi", triangularize_in_mel_space=True)
    theirs = reference.spectrogram(wave.astype(np.float64), reference.window_function(400, "hann", periodic=False), frame_length=400, hop_length=160,
                                   fft_length=512, power=2.0, center=False, preemphasis=0.97, mel_filters=bank, log_mel="log",
                                   mel_floor=1.192092955078125e-07, remove_dc_offset=True).T
    np.testing.assert_allclose(RAW(wave), theirs, atol=1e-5)
    if name == "speech":
        without = dataclasses.replace(RAW, preemphasis=0.0)(wave)
        assert np.abs(without - theirs).max() > 1  # the tolerance would notice a missing part


@pytest.mark.parametrize("name", signals())
def test_tvlt_agrees_with_transformers(name: str, reference: Any) -> None:
    """Slaney filters, centred windows, decibels, 80 dB of range, TVLT's scaling to [-1, 1]."""
    wave = signals(rate=44100)[name]
    bank = reference.mel_filter_bank(num_frequency_bins=1025, num_mel_filters=128, min_frequency=0, max_frequency=22050, sampling_rate=44100,
                                     norm="slaney", mel_scale="slaney")
    theirs = reference.spectrogram(wave.astype(np.float64) - wave.mean(dtype=np.float64), reference.window_function(2048, "hann"), frame_length=2048,
                                   hop_length=512, fft_length=2048, power=2.0, center=True, pad_mode="constant", mel_filters=bank, log_mel="dB",
                                   db_range=80.0).T
    np.testing.assert_allclose(TVLT(wave), np.clip((theirs - 20) / 40, -2, 0) + 1, atol=1e-5)



# Frame 50, bins 10, 40, 80, 127 by transformers.audio_utils in float64. Between and beyond the tones lies only leakage, where
# a mistake in the taper or the pre-emphasis shows first.
GOLDEN = {
    "AST": (RAW, RATE, {"residues": (-1.502078, 1.956116, 1.933250, 5.244733), "tones": (-9.710211, -13.210532, -8.144129, -15.942385)}),
    "TVLT": (TVLT, 44100, {"residues": (0.440817, 0.449200, 0.531740, 0.574731), "tones": (0.192509, -0.671268, -0.671268, -0.671268)}),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_values(name: str) -> None:
    """The front ends without the reference library."""
    mel, rate, expected = GOLDEN[name]
    for signal, values in expected.items():
        np.testing.assert_allclose(mel(signals(rate=rate)[signal])[50, [10, 40, 80, 127]], values, atol=2e-5)


def test_counts_normalisation_and_validity_of_windows() -> None:
    """10 s are 998 frames; `samples` inverts `frames`; a window is valid only if all of it is; AudioMAE divides by two std."""
    assert AST.frames(160000) == 998 and AST.frames(399) == 0 and AST.samples(1024) == 1023 * 160 + 400
    assert AST(np.zeros(399, np.float32)).shape == (0, 128) and TVLT.samples(1024) / 44100 == pytest.approx(11.89, abs=0.01)
    for mel in (AST, TVLT, AV_MAE, LogMel(window=300, hop=200)):
        assert mel.frames(mel.samples(50)) >= 50 and (mel.edges == "centre" or mel.frames(mel.samples(50) - 1) == 49)
        assert len(mel(np.zeros(mel.samples(50), np.float32))) == mel.frames(mel.samples(50))
    wave = signals()["residues"]
    np.testing.assert_allclose(AST(wave), (RAW(wave) + 4.2677) / (2 * 4.5690), atol=1e-6)
    valid = np.ones(RATE, bool)
    valid[8000] = False
    # Windows 48 (7680..8079), 49 and 50 (8000..8399) hold sample 8000, as do 240 samples more of each side.
    assert np.flatnonzero(~AST.covered(valid)).tolist() == [48, 49, 50]
    assert np.flatnonzero(~LogMel(window=400, hop=400).covered(valid)).tolist() == [20]


@pytest.mark.parametrize("change", [{"taper": "square"}, {"bank": "mel"}, {"edges": "x"}, {"high": 9000.0}, {"window": 600}, {"hop": 0}])
def test_mistakes_in_a_front_end_are_named(change: dict[str, Any]) -> None:
    """A UserError with the value and what is allowed."""
    with pytest.raises(UserError, match="allowed"):
        LogMel(**change)


def test_spectrogram_patches() -> None:
    """Token counts of the papers, raster order (time, frequency), the inverse, validity of whole tokens."""
    assert tokens.grid_of(frames=1000, mels=128, patch=(16, 16)).tokens == 496 and tokens.grid_of(frames=800, mels=128, patch=(16, 16)).tokens == 400
    assert tokens.grid_of(frames=1024, mels=128, patch=(16, 16)) == Grid(64, 1, 8)
    made = np.arange(2 * 37 * 8, dtype=np.float32).reshape(2, 37, 8)
    patches = np.asarray(tokens.patchify(made, patch=(4, 2)))
    assert patches.shape == (2, 36, 8) and np.array_equal(patches[1, 5], made[1, 4:8, 2:4].reshape(-1))
    back = tokens.unpatchify(patches, grid=Grid(9, 1, 4), patch=(4, 2))
    assert np.array_equal(np.asarray(back), made[:, :36])
    valid = np.ones((1, 37), bool)
    valid[0, 5] = False
    assert np.flatnonzero(~np.asarray(tokens.valid_tokens(valid, grid=Grid(9, 1, 4), patch=(4, 2)))[0]).tolist() == [4, 5, 6, 7]
    with pytest.raises(UserError, match="multiple of 3"):
        tokens.grid_of(frames=16, mels=8, patch=(4, 3))
