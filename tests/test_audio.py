"""Sound windows and clips with sound, on made and on real files."""

import dataclasses
import io
import pathlib
import threading
from typing import Any

import av
import fsspec
import numpy as np
import pytest

from videomae_jax.data import audio, clips, decode, index, pipeline, remote, transforms
from videomae_jax.data.audiovisual import AudioVideoClips
from videomae_jax.data.sources import VideoClips
from videomae_jax.data.spectrogram import AST
from videomae_jax.errors import UserError

RATE = 16000
BURSTS = (0.5, 1.3333, 2.71, 3.4)  # seconds
RAW = dataclasses.replace(AST, mean=0.0, spread=1.0)


def bursts(*, rate: int, seconds: float, times: tuple[float, ...] = BURSTS) -> np.ndarray:
    """Silence with tones of 50 ms and 1 kHz at the given times, f32 [n]."""
    clock = np.arange(round(rate * seconds)) / rate
    wave = np.zeros(len(clock), np.float32)
    for time in times:
        on = (clock >= time) & (clock < time + 0.05)
        wave[on] = 0.5 * np.sin(2 * np.pi * 1000 * (clock[on] - time))
    return wave


def bars(number: int, /) -> np.ndarray:
    """Four bars of one of four levels, u8 [32 32 3], that spell a number below 256 in base four."""
    levels = [30 + 65 * (number >> 2 * place & 3) for place in range(4)]
    return np.repeat(np.repeat(np.uint8(levels), 8)[None, :, None], 32, 0).repeat(3, -1)


def spelt(video: np.ndarray, /) -> np.ndarray:
    """Numbers i64 [T] that pictures u8 [T 32 32 3] of bars spell."""
    levels = video.reshape(len(video), 32, 4, 8, 3)[:, :, :, 2:6].mean((1, 3, 4))
    return (np.round((levels - 30) / 65).astype(np.int64) << np.array([0, 2, 4, 6])).sum(-1)


def encode(*, seconds: float = 4.0, codec: str = "aac", container: str = "mp4", rate: int = RATE, wave: np.ndarray | None = None,
           gap: tuple[float, float] | None = None, layout: str = "mono", sound: bool = True, start: float = 0.0) -> bytes:
    """A file of 25 fps pictures that spell their number and of `wave` (default: bursts); no sound within `gap` seconds."""
    buffer, wave = io.BytesIO(), bursts(rate=rate, seconds=seconds) if wave is None else wave
    with av.open(buffer, "w", format=container) as out:
        video = out.add_stream("mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        video.options, video.bit_rate = {"g": "1", "qmin": "1", "qmax": "2"}, 4_000_000
        stream = out.add_stream(codec, rate=rate, layout=layout) if sound else None
        for number in range(round(25 * seconds)):
            frame = av.VideoFrame.from_ndarray(bars(number), format="rgb24")
            frame.pts = number
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        for part in range(0, len(wave) if sound else 0, 1024):
            if gap and gap[0] * rate <= part < gap[1] * rate:
                continue
            frame = av.AudioFrame.from_ndarray(np.tile(wave[None, part: part + 1024], (1 if layout == "mono" else 2, 1)), format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, part + round(start * rate), decode.Fraction(1, rate)
            out.mux(stream.encode(frame))
        if stream:
            out.mux(stream.encode(None))
    return buffer.getvalue()


def onsets(samples: np.ndarray, /, *, rate: int = RATE) -> np.ndarray:
    """Seconds at which the level first passes a tenth after at least 0.2 s below it."""
    loud = np.flatnonzero(np.abs(samples) > 0.1)
    return loud[np.diff(loud, prepend=-rate) > 0.2 * rate] / rate


@pytest.mark.parametrize("kind", [
    {}, {"rate": 44100}, {"rate": 8000}, {"codec": "pcm_s16le", "container": "matroska"}, {"codec": "mp3", "container": "avi", "rate": 44100},
    {"codec": "libopus", "container": "matroska", "rate": 48000}, {"layout": "stereo", "rate": 48000}, {"codec": "flac", "container": "matroska"},
    {"codec": "aac", "container": "mpegts", "rate": 48000}], ids=lambda k: "-".join(map(str, k.values())) or "aac")
def test_sound_lies_where_its_time_says(kind: dict[str, Any]) -> None:
    """Bursts begin within 1 ms of their times, whether read whole or in a window entered by seeking."""
    data = encode(**kind)
    shift = float(decode.probe(data).pts[0] * decode.probe(data).time_base)  # MPEG-TS starts its clock later
    # MP3 in AVI carries no edit list: the encoder's delay of 1105 samples stays, as players play it.
    delay = 1105 / 44100 if kind.get("codec") == "mp3" else 0.0
    whole = audio.decode_audio(data, start=shift, duration=4.0, rate=RATE)
    np.testing.assert_allclose(onsets(whole.samples), np.array(BURSTS) + delay, atol=1.5e-3)
    for start in (1.2, 2.5001):
        part = audio.decode_audio(data, start=shift + start, duration=1.2, rate=RATE)
        expected = [t + delay - start for t in BURSTS if start < t + delay < start + 1.15]
        assert part.valid.all()
        np.testing.assert_allclose(onsets(part.samples), expected, atol=1.5e-3)


def test_a_ramp_gives_every_sample_its_own_time() -> None:
    """Lossless sound without resampling comes back sample for sample; with it, within half a sample."""
    rng = np.random.default_rng(0)
    wave = np.cumsum(rng.normal(0, 0.002, 4 * RATE)).astype(np.float32)
    data = encode(codec="pcm_f32le", container="mov", wave=wave)
    for first in (0, 1, 777, 30001):
        got = audio.decode_audio(data, start=first / RATE, duration=0.5, rate=RATE)
        assert np.array_equal(got.samples, wave[first: first + 8000]) and got.valid.all()
    clock = np.arange(0, 4, 1 / 48000)
    data = encode(codec="pcm_f32le", container="mov", rate=48000, wave=np.sin(2 * np.pi * 300 * clock).astype(np.float32))
    for start in (0.3, 1.23456, 2.5):
        got = audio.decode_audio(data, start=start, duration=1.0, rate=RATE).samples
        phase = np.angle(np.mean(got * np.exp(-2j * np.pi * 300 * np.arange(RATE) / RATE))) + np.pi / 2
        late = (phase / (2 * np.pi * 300) - start + 1 / 600) % (1 / 300) - 1 / 600
        assert abs(late) < 0.5 / 48000 + 1e-6


def test_what_the_file_lacks_is_zero_and_invalid() -> None:
    """Before the start, after the end, in a gap, and where there is no sound at all."""
    wave = np.full(4 * RATE, 0.25, np.float32)
    data = encode(codec="pcm_s16le", container="matroska", wave=wave)
    got = audio.decode_audio(data, start=-0.5, duration=1.0, rate=RATE)
    assert not got.valid[:7990].any() and got.valid[8010:].all() and not got.samples[~got.valid].any()
    np.testing.assert_allclose(got.samples[got.valid], 0.25, atol=1e-4)
    late = audio.decode_audio(data, start=3.5, duration=2.0, rate=RATE)
    assert late.valid.sum() == pytest.approx(8000, abs=20) and not late.samples[~late.valid].any()
    beyond = audio.decode_audio(data, start=30.0, duration=1.0, rate=RATE)
    assert len(beyond.samples) == RATE and not beyond.valid.any()
    holed = audio.decode_audio(encode(codec="pcm_s16le", container="matroska", wave=wave, gap=(1.0, 2.0)), start=0.0, duration=4.0, rate=8000)
    missing = np.flatnonzero(~holed.valid)
    assert 0.9 < len(missing) / 8000 < 1.1 and not holed.samples[missing].any()
    assert np.array_equal(missing, np.arange(missing[0], missing[-1] + 1)) and 0.95 < missing[0] / 8000 < 1.1
    mute = audio.decode_audio(encode(sound=False), start=0.0, duration=1.0, rate=RATE)
    assert mute.samples.shape == (RATE,) and not mute.valid.any() and not mute.samples.any()


def test_a_late_stream_keeps_its_time() -> None:
    """Sound that begins after the picture is not drawn to the front."""
    got = audio.decode_audio(encode(codec="pcm_s16le", container="matroska", start=0.75), start=0.0, duration=4.0, rate=RATE)
    np.testing.assert_allclose(onsets(got.samples), np.array(BURSTS[:3]) + 0.75, atol=1.5e-3)
    assert not got.valid[: int(0.74 * RATE)].any()


def test_channels_are_averaged() -> None:
    """Two equal channels give the level of one, from integers and from floats."""
    for codec in ("pcm_s16le", "pcm_f32le", "pcm_u8"):
        got = audio.decode_audio(encode(codec=codec, container="matroska", layout="stereo", wave=np.full(RATE, 0.25, np.float32), seconds=1.0),
                                 start=0.1, duration=0.5, rate=RATE)
        np.testing.assert_allclose(got.samples, 0.25, atol=1 / 128)


def test_errors_name_the_stage(tmp_path: pathlib.Path) -> None:
    """Not a video, a file cut short, a stalled file, a senseless window."""
    with pytest.raises(decode.DecodeError, match="open"):
        audio.decode_audio(b"nothing", start=0.0, duration=1.0, rate=RATE)
    path = tmp_path / "cut.mp4"
    _cut(path)
    assert audio.decode_audio(path, start=0.5, duration=0.5, rate=RATE).valid.all()
    with pytest.raises(decode.DecodeError) as failure:
        audio.decode_audio(path, start=6.0, duration=1.0, rate=RATE)
    assert failure.value.stage == "short" and failure.value.path == str(path)
    with pytest.raises(decode.DecodeError, match="timeout"):
        audio.decode_audio(encode(), start=0.0, duration=1.0, rate=RATE, timeout=-1.0)
    with pytest.raises(UserError, match="allowed"):
        audio.decode_audio(encode(), start=0.0, duration=-1.0, rate=RATE)


@pytest.mark.parametrize("fill", [0xFF, 0xAB, 0])
def test_damage_matters_where_it_is_heard(fill: int) -> None:
    """A broken packet spoils the windows that it reaches into, and none before or after."""
    data = encode(container="matroska", wave=np.random.default_rng(0).normal(0, 0.1, 4 * RATE).astype(np.float32))
    with av.open(io.BytesIO(data)) as container:
        time, packet = next((p.pts * p.time_base, bytes(p)) for p in container.demux(audio=0) if p.pts is not None and p.pts * p.time_base > 2)
    broken = data.replace(packet, bytes([fill]) * len(packet))
    assert broken != data
    for start in (0.5, float(time) + 0.14, 2.5):
        assert audio.decode_audio(broken, start=start, duration=0.5, rate=RATE).valid.all()
    for start in (1.8, float(time) + 0.07):
        with pytest.raises(decode.DecodeError, match="decode"):
            audio.decode_audio(broken, start=start, duration=0.5, rate=RATE)


def _cut(path: pathlib.Path, /) -> None:
    """Writes the first five eighths of an mp4 with 8 s of sound whose index lies in front."""
    noise = np.random.default_rng(0).normal(0, 0.1, 8 * RATE).astype(np.float32)
    with av.open(io.BytesIO(encode(seconds=8.0, wave=noise))) as source, av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as out:
        sound = source.streams.audio[0]
        target = out.add_stream_from_template(sound)
        for packet in source.demux(sound):
            if packet.dts is not None:
                packet.stream = target
                out.mux(packet)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 5 // 8])


def test_nothing_stays_open(tmp_path: pathlib.Path) -> None:
    """No thread and no file descriptor outlives a call."""
    path = tmp_path / "sound.mp4"
    path.write_bytes(encode())
    descriptors, threads = len(list(pathlib.Path("/proc/self/fd").iterdir())), threading.active_count()
    for start in (0.0, 2.0):
        audio.decode_audio(path, start=start, duration=1.0, rate=RATE)
    assert len(list(pathlib.Path("/proc/self/fd").iterdir())) == descriptors and threading.active_count() == threads


REAL = {"flipping_pancake.mkv": 10.37, "talking_face.mp4": 10.01, "action_test.avi": 6.56, "nasa_13013.mp4": 13.06}


@pytest.mark.parametrize("name", REAL)
def test_windows_of_real_files_agree_with_the_whole(name: str, real_videos: pathlib.Path) -> None:
    """A window is the same stretch of the whole; Matroska's clock of 1 ms allows 8 samples."""
    whole = audio.decode_audio(real_videos / name, start=0.0, duration=14.0, rate=RATE)
    assert whole.valid.sum() / RATE == pytest.approx(REAL[name], abs=0.02) and np.abs(whole.samples).max() > 0.3
    assert whole.valid[: int(REAL[name] * RATE) - 400].all()
    shifts = range(-8, 9) if name.endswith("mkv") else (0,)
    for start in (1.3, 3.21, 5.0):
        part = audio.decode_audio(real_videos / name, start=start, duration=1.0, rate=RATE).samples[64:-64]
        first = round(start * RATE) + 64
        assert min(np.abs(part - whole.samples[first + s: first + s + len(part)]).max() for s in shifts) < 1e-3


def test_a_long_file_is_entered_by_seeking(real_videos: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window at 50 s decodes two seconds, not fifty; where the cut file ends, the error says so."""
    path, decoded = real_videos / "instruction_7min.mp4", []
    frames = decode.Call.frames
    monkeypatch.setattr(decode.Call, "frames", lambda self, packet: decoded.append(packet) or frames(self, packet))
    got = audio.decode_audio(path, start=50.0, duration=1.0, rate=RATE)
    assert got.valid.all() and got.samples.std() > 0.01 and len(decoded) < 3 * 44100 / 1024
    with pytest.raises(decode.DecodeError, match="short: the header announces sound up to 421"):
        audio.decode_audio(path, start=300.0, duration=1.0, rate=RATE)


def folder(path: pathlib.Path, files: dict[str, bytes], /) -> str:
    """Writes files and their index, returns the index's path."""
    for name, data in files.items():
        (path / name).write_bytes(data)
    index.write(index.build(path, val_fraction=0.0), path / "index.parquet")
    return str(path / "index.parquet")


def toned(pitch: float, /) -> np.ndarray:
    """4 s of one tone."""
    return (0.3 * np.sin(2 * np.pi * pitch * np.arange(4 * RATE) / RATE)).astype(np.float32)


CLIP: dict[str, Any] = {"split": "all", "frames": 8, "size": 32, "crop": transforms.WholeFrame(), "mel": RAW}


def source(path: str, /, **fields: Any) -> AudioVideoClips:
    """A small source over an index."""
    return AudioVideoClips(**{"index": path, "sampling": clips.DenseRandom(stride=4), "spectrogram": 128, "span": "clip", **CLIP, **fields})


def onset_frames(mel: np.ndarray, /) -> np.ndarray:
    """Frames at which the power of the whole spectrogram first reaches half of its peak."""
    power = np.exp(mel).sum(-1)
    on = np.flatnonzero(power > 0.5 * power.max())
    return on[np.diff(on, prepend=-100) > 15]


@pytest.mark.parametrize("span", ["clip", "centred"])
def test_sound_and_picture_of_a_clip_belong_together(span: str, tmp_path: pathlib.Path) -> None:
    """The pictures spell their numbers and so the times; every burst is heard within a hop of where it then must be."""
    made, heard = source(folder(tmp_path, {"a.mp4": encode()}), span=span), 0
    for seed in range(6):
        example = made.read(0, rng=np.random.default_rng(seed))
        numbers = spelt(example["video"][0])
        start = numbers[0] / 25
        if span == "centred":
            start = (numbers[0] + numbers[-1] + 1) / 2 / 25 - 0.64
        got, valid = example["audio"][0], example["audio_valid"][0]
        times = start + (onset_frames(np.where(valid[:, None], got, -16)) + 0.5) * 0.01
        end = (numbers[-1] + 1) / 25 if span == "clip" else start + 1.28
        expected = [t for t in BURSTS if start + 0.03 < t < end - 0.05]
        times = [t for t in times if start + 0.03 < t < end - 0.05]
        # The first window with half of a burst's power is centred on the onset or up to a hop later.
        assert len(times) == len(expected) and all(-0.002 < t - e < 0.0105 for t, e in zip(times, expected, strict=True))
        heard += len(expected)
        if span == "clip":
            assert valid[:-14].sum() > 100 and not valid[round((end - start) / 0.01) + 1:].any() and not got[~valid].any()
    assert heard >= 4


def test_video_is_that_of_the_silent_source(tmp_path: pathlib.Path) -> None:
    """Adding sound changes no pixel, label or later draw; copies share the sound; fields tell shapes and types."""
    path = folder(tmp_path, {"a.mp4": encode()})
    loud = source(path, repeats=3, crop=transforms.MultiScaleCrop())
    silent = VideoClips(index=path, split="all", frames=8, size=32, repeats=3, sampling=clips.DenseRandom(stride=4))
    ours, theirs = np.random.default_rng(5), np.random.default_rng(5)
    example, plain = loud.read(0, rng=ours), silent.read(0, rng=theirs)
    assert all(np.array_equal(example[key], plain[key]) for key in plain) and ours.random() == theirs.random()
    assert {k: (v.shape[1:], str(v.dtype)) for k, v in example.items()} == {k: (f.shape, f.dtype) for k, f in loud.fields.items()}
    assert example["audio"].shape[0] == 3 and np.array_equal(example["audio"][0], example["audio"][2])


def test_a_file_at_an_address_is_fetched_once_for_both(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures and their own sound come from one fetch, and are those of the file; nothing is kept for a later read."""
    local, fetched, read = source(folder(tmp_path, {"a.mp4": encode()})), [], remote.read
    fsspec.filesystem("memory").pipe_file("/sounds/a.mp4", (tmp_path / "a.mp4").read_bytes())
    index.write(index.build("memory://sounds", val_fraction=0.0), tmp_path / "away.parquet")
    monkeypatch.setattr(remote, "read", lambda address: fetched.append(address) or read(address))
    away = source(str(tmp_path / "away.parquet"))
    for seed in range(2):
        want, got = (made.read(0, rng=np.random.default_rng(seed)) for made in (local, away))
        assert all(np.array_equal(got[key], want[key]) for key in want)
    assert fetched == ["memory://sounds/a.mp4"] * 2


def test_sound_has_the_time_of_a_clip(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`timeout` limits the decoding of the sound as that of the pictures."""
    given, plain = [], audio.decode_audio
    monkeypatch.setattr(audio, "decode_audio", lambda *x, timeout=None, **kw: given.append(timeout) or plain(*x, timeout=timeout, **kw))
    source(folder(tmp_path, {"a.mp4": encode()}), timeout=7.0).read(0, rng=np.random.default_rng(0))
    assert given == [7.0]


def test_shuffled_sound_is_another_rows(tmp_path: pathlib.Path) -> None:
    """Every row hears exactly one other row, the same in every epoch; the picture stays."""
    pitches = (300.0, 700.0, 1500.0, 3000.0)
    path = folder(tmp_path, {f"{i}.mp4": encode(wave=toned(p)) for i, p in enumerate(pitches)})

    def loudest(made: AudioVideoClips, seed: int) -> list[int]:
        """Peak bin of every row."""
        return [int(made.read(row, rng=np.random.default_rng(seed))["audio"][0][:100].mean(0).argmax()) for row in range(len(made))]

    paired, shuffled = loudest(source(path), 0), loudest(source(path, shuffle_audio=1), 0)
    assert sorted(paired) == paired and len(set(paired)) == 4
    assert sorted(shuffled) == paired and not any(a == b for a, b in zip(paired, shuffled, strict=True))
    assert loudest(source(path, shuffle_audio=1), 7) == shuffled
    assert any(loudest(source(path, shuffle_audio=n), 0) != shuffled for n in range(2, 6))
    a, b = (source(path, shuffle_audio=n).read(0, rng=np.random.default_rng(0))["video"] for n in (0, 1))
    assert np.array_equal(a, b)
    with pytest.raises(UserError, match="two videos"):
        source(path, shuffle_audio=1, limit=1).read(0, rng=np.random.default_rng(0))


def test_mistakes_in_a_source_are_named() -> None:
    """A UserError with the value and what is allowed."""
    for change in ({"span": "all"}, {"spectrogram": 0}, {"shuffle_audio": -1}, {"frames": 0}):
        with pytest.raises(UserError, match="allowed"):
            source("index.parquet", **change)


def test_batches_mix_real_clips_with_and_without_sound(real_videos: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Through the pipeline: the same batches from threads and from processes, mute clips all invalid and zero."""
    names = [*REAL, "arm_wrestling.mp4"]
    path = folder(tmp_path, {name: (real_videos / name).read_bytes() for name in names})
    made = source(path, mel=AST, frames=4, repeats=2, spectrogram=96, span="centred")
    batches = []
    for workers in (0, 2):
        with pipeline.stream(made, batch_size=10, seed=0, workers=workers) as stream:
            batches.append({k: np.array(v) for k, v in next(stream).items()})
    assert all(np.array_equal(batches[0][key], batches[1][key]) for key in batches[0])
    batch = batches[0]
    mute = np.array([made.name(row) == "arm_wrestling.mp4" for row in batch["row"]])
    assert batch["audio"].shape == (20, 96, 128) and batch["audio_valid"].dtype == bool and not batch["fault"].any()
    assert mute.sum() == 4 and not batch["audio"][mute].any() and not batch["audio_valid"][mute].any()
    assert batch["audio_valid"][~mute].mean() > 0.9 and np.isfinite(batch["audio"]).all() and (batch["audio"][~mute].std((1, 2)) > 0.05).all()
