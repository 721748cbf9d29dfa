"""Frame accuracy, damage and colours of the decoder, on made and on real files."""

import concurrent.futures
import dataclasses
import io
import pathlib
import tempfile
import threading
from collections.abc import Sequence

import av
import numpy as np
import pytest
import runs

from videomae_jax.data import decode

BITS, FRAMES, WIDTH, HEIGHT = 8, 120, 128, 64


def bars(number: int, /, *, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A picture that spells `number`: eight vertical bars, dark 0 and bright 1."""
    levels = [235 if number >> bit & 1 else 20 for bit in range(BITS)]
    return np.repeat(np.repeat(np.repeat(np.asarray(levels, np.uint8), width // BITS)[None], height, 0)[..., None], 3, -1)


def spelt(picture: np.ndarray, /) -> int:
    """The number that a picture of bars spells."""
    step = picture.shape[1] // BITS
    return sum(int(picture[:, i * step + step // 4: (i + 1) * step - step // 4].mean() > 128) << i for i in range(BITS))


def encode(*, frames: int = FRAMES, codec: str = "libx264", container: str = "mp4", variable: bool = False, width: int = WIDTH,
           height: int = HEIGHT, **options: str) -> bytes:
    """A file of bars: closed groups of 30 pictures with three B-frames; `variable` steps 9000, 3000, 3000, ... of 1/90000 s."""
    with tempfile.NamedTemporaryFile() as file, concurrent.futures.ThreadPoolExecutor(1) as own:
        # SVT-AV1, where it runs as root, gives the thread that calls it SCHED_FIFO priority 99, for good: everything which that thread
        # starts later inherits it, and two spinning threads of that kind stop the machine.
        own.submit(_encode, file.name, frames, codec, container, variable, width, height, options).result()
        return pathlib.Path(file.name).read_bytes()


def _encode(path: str, frames: int, codec: str, container: str, variable: bool, width: int, height: int, options: dict[str, str]) -> None:
    with av.open(path, "w", format=container, options={"movflags": "faststart"} if container == "mp4" else {}) as out:
        stream = out.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.options = {"g": "30", "bf": "3", "crf": "18", "preset": "veryfast", "sc_threshold": "0"} | options
        ticks = 30000 if codec == "mpeg4" else 90000  # a second; MPEG-4 part 2 stores 16 bits
        if variable:
            stream.codec_context.time_base = decode.Fraction(1, ticks)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(bars(number % 2**BITS, width=width, height=height), format="rgb24")
            if variable:
                frame.pts, frame.time_base = (3000 * number + 6000 * -(-number // 3)) * ticks // 90000, decode.Fraction(1, ticks)
            else:
                frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def timed(times: Sequence[int], /, *, rate: int | decode.Fraction = 30, codec: str = "mpeg4", container: str = "matroska") -> bytes:
    """A file of bars at `times` in ms, or of AVI in frames, whose header says `rate` frames a second whatever they are."""
    file, ticks = io.BytesIO(), decode.Fraction(1, 1000) if container != "avi" else 1 / decode.Fraction(rate)
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.time_base = stream.codec_context.time_base = ticks
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(bars(number % 2**BITS), format="rgb24")
            frame.pts, frame.time_base = time, ticks
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


def sequential(source: decode.Video, /, *, rotation: int = 0) -> list[np.ndarray]:
    """All pictures without seeking or skipping: decoders give them in the order of presentation."""
    with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return [np.rot90(f.to_ndarray(format="rgb24"), rotation // 90) for f in container.decode(video=0)]


@pytest.fixture(scope="module")
def constant() -> bytes:
    """The conformance file with a constant frame rate."""
    return encode()


KINDS = {
    "cfr": {}, "vfr": {"variable": True}, "open_gop": {"x264-params": "open-gop=1:b-pyramid=normal"}, "no_b": {"bf": "0"},
    "one_key": {"g": "500"}, "mkv": {"container": "matroska"}, "ts": {"container": "mpegts"},
    "hevc": {"codec": "libx265", "x265-params": "log-level=none:open-gop=1"}, "mpeg4_avi": {"codec": "mpeg4", "container": "avi", "bf": "2", "qscale": "2"},
    "mpeg4_mp4": {"codec": "mpeg4", "bf": "2", "qscale": "2"}, "vp9": {"codec": "libvpx-vp9", "container": "webm", "deadline": "realtime", "cpu-used": "8"},
    "mjpeg": {"codec": "mjpeg", "container": "avi", "bf": "0"}, "hevc_vfr": {"codec": "libx265", "x265-params": "log-level=none", "variable": True},
    "mpeg4_vfr": {"codec": "mpeg4", "bf": "2", "qscale": "2", "variable": True}, "vp8": {"codec": "libvpx", "container": "webm", "deadline": "realtime", "cpu-used": "8"},
    "vp9_vfr": {"codec": "libvpx-vp9", "container": "webm", "deadline": "realtime", "cpu-used": "8", "variable": True},
    "vp9_altref": {"codec": "libvpx-vp9", "container": "mp4", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"},
    "av1": {"codec": "libsvtav1", "preset": "12", "svtav1-params": "keyint=30:lp=1"},
    "av1_vfr": {"codec": "libsvtav1", "container": "webm", "preset": "12", "svtav1-params": "keyint=30:lp=1", "variable": True},
}


def encoded(kind: str, /) -> bytes:
    """The conformance file of a kind; skips where this build of the libraries lacks the encoder."""
    try:
        av.codec.Codec(KINDS[kind].get("codec", "libx264"), "w")
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"no encoder {KINDS[kind]['codec']} in this build of FFmpeg")
    return encode(**KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_is_the_one_asked_for(kind: str) -> None:
    """Random order, repeats and single frames give the frames that their bars spell, from bytes and from a file."""
    data = encoded(kind)
    info = decode.probe(data)
    assert info.frames == FRAMES and (info.width, info.height) == (WIDTH, HEIGHT)
    order = np.random.default_rng(0).permutation(FRAMES)
    assert [spelt(p) for p in decode.decode(data, order, info=info)] == order.tolist()
    with tempfile.NamedTemporaryFile() as file:
        pathlib.Path(file.name).write_bytes(data)
        for ids in ([119], [0], [29], [30], [31], [57, 57, 3], [119, 0]):
            for source in (data, file.name):
                assert [spelt(p) for p in decode.decode(source, ids, info=info)] == ids
    assert len(info.keys) > 1 or kind in ("one_key", "mpeg4_avi"), "so that seeking is tested"


@pytest.mark.parametrize("kind", ["cfr", "vfr", "open_gop", "hevc", "hevc_vfr", "mpeg4_avi", "mpeg4_vfr", "vp9_vfr", "vp9_altref", "av1", "av1_vfr"])
def test_random_access_is_bit_identical_to_sequential(kind: str) -> None:
    """Leaving frames out and seeking change no pixel."""
    data = encoded(kind)
    info, reference, rng = decode.probe(data), sequential(data), np.random.default_rng(1)
    for _ in range(12):
        ids = rng.integers(0, FRAMES, rng.integers(1, 7))
        for picture, number in zip(decode.decode(data, ids, info=info), ids, strict=True):
            np.testing.assert_array_equal(picture, reference[number])


def test_presentation_times_of_a_variable_rate() -> None:
    """The table holds the muxed times, not multiples of a mean."""
    info = decode.probe(encode(variable=True))
    seconds = (info.pts - info.pts[0]) * info.time_base
    assert [round(float(s) * 90000) for s in seconds[:5]] == [0, 9000, 12000, 15000, 24000]
    assert info.keys.tolist() == [int(info.pts[k]) for k in (0, 30, 60, 90)]


@pytest.mark.parametrize(("container", "codec"), [("matroska", "mpeg4"), ("webm", "libvpx")])
def test_the_mean_rate_is_that_of_the_times(container: str, codec: str) -> None:
    """A header of 30 frames a second counts for nothing where a camera gave 10, wherever its times begin, or changed its rate on the way."""
    for begin in (0, 5000):
        info = decode.probe(timed(range(begin, begin + 10_000, 100), container=container, codec=codec))
        assert (info.frames, info.fps, info.duration) == (100, 10, 10)
    info = decode.probe(timed([*(1000 * i // 30 for i in range(150)), *range(5000, 605_000, 1000)], container=container, codec=codec))
    assert info.frames == 750 and info.duration == pytest.approx(604 + 604 / 749, abs=0.01)
    assert decode.probe(timed([0, 50], container=container, codec=codec)).fps == 20


def test_an_exact_rate_of_the_header_stays() -> None:
    """Times in ms tell it less exactly; AVI has times only of frames that it stores, which are no reason to count fewer a second."""
    ntsc = decode.Fraction(30000, 1001)
    for frames in (2, 3, 20, 300):
        assert decode.probe(timed([round(1000 * i / ntsc) for i in range(frames)], rate=ntsc)).fps == ntsc
    assert decode.probe(timed([0, 20, 40, 60], rate=48)).fps == 48
    info = decode.probe(timed([*range(20), *range(40, 60)], codec="mjpeg", container="avi"))
    assert info.frames == 40 and info.fps == 30


def test_absurd_times_have_a_rate() -> None:
    """Which an index can hold and a duration be divided by."""
    fps = decode._rate(None, np.asarray([-2**62, 2**62]), decode.Fraction(1), timed=True)
    assert fps > 0 and max(fps.numerator, fps.denominator) < 2**62


def test_seeks_to_the_key_frame(constant: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last frame costs one group of pictures, not the whole file, and distant frames are sought apart."""
    seen: list[int] = []
    plain = decode.Call.frames
    monkeypatch.setattr(decode.Call, "frames", lambda self, *a: [seen.append(f.pts) or f for f in plain(self, *a)])
    info = decode.probe(constant)
    for ids, most in (([119], 31), ([2, 119], 45), ([0, 60], 10)):
        seen.clear()
        assert [spelt(p) for p in decode.decode(constant, ids, info=info)] == ids
        assert len(seen) <= most


def test_nothing_is_decoded_behind_the_last_frame(constant: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first picture costs its own packet, though the decoder holds it back for B-frames; a second seek finds the decoder usable."""
    sent: list[int] = []
    plain = decode.Call.frames
    monkeypatch.setattr(decode.Call, "frames", lambda self, packet, *a: sent.append(packet is not None and packet.pts) or plain(self, packet, *a))
    info = decode.probe(constant)
    sent.clear()
    assert [spelt(p) for p in decode.decode(constant, [0], info=info)] == [0]
    assert sent == [info.pts[0], False]
    sent.clear()
    assert [spelt(p) for p in decode.decode(constant, [0, 90, 30], info=info)] == [0, 90, 30]
    assert sent == [info.pts[0], False, info.pts[30], False, info.pts[90], False]


def test_unneeded_frames_are_not_converted(constant: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """One conversion for each distinct frame."""
    converted: list[int] = []
    plain = decode._picture
    monkeypatch.setattr(decode, "_picture", lambda frame, *a: converted.append(frame.pts) or plain(frame, *a))
    info = decode.probe(constant)
    decode.decode(constant, [7, 3, 3, 7, 11, 3], info=info)
    assert converted == [int(info.pts[i]) for i in (3, 7, 11)]


def test_one_thread_and_a_closed_container(constant: bytes, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder is told its single thread before the first packet, and every container is closed, also after a failure."""
    opened, threads, plain = [], [], av.open
    path = tmp_path / "a.mp4"
    path.write_bytes(constant)

    def watched(*args: object, **kw: object) -> object:
        opened.append(plain(*args, **kw))
        return opened[-1]

    monkeypatch.setattr(av, "open", watched)
    frames = decode.Call.frames

    def counted(self: decode.Call, packet: object, *stream: object) -> object:
        context = (packet.stream if packet else stream[0]).codec_context
        threads.append((context.thread_count, context.thread_type.name))
        return frames(self, packet, *stream)

    monkeypatch.setattr(decode.Call, "frames", counted)
    info = decode.probe(path)
    decode.decode(path, [5], info=info)
    with pytest.raises(decode.DecodeError):
        decode.decode(constant[: len(constant) // 2], [119], info=info)
    assert set(threads) == {(1, "SLICE")}
    for container in opened:
        with pytest.raises(AssertionError, match="not open"):
            container.seek(0)


@pytest.mark.parametrize(("width", "height"), [(126, 98), (66, 34)])
def test_odd_sizes(width: int, height: int) -> None:
    """Sizes that are no multiple of a macroblock come out whole."""
    data = encode(frames=5, width=width, height=height)
    video = decode.decode(data, [0, 4])
    assert video.shape == (2, height, width, 3)
    np.testing.assert_allclose(video[0].astype(int), np.resize(video[0, :1], video[0].shape), atol=12)


def test_one_frame() -> None:
    """A video of a single picture."""
    data = encode(frames=1)
    info = decode.probe(data)
    assert info.frames == 1 and info.duration == pytest.approx(1 / 30)
    assert decode.decode(data, [0] * 16, info=info).shape == (16, HEIGHT, WIDTH, 3)


def coloured(rgb: tuple[int, int, int], /, *, matrix: str, full: bool, tagged: bool = True, deep: bool = False) -> bytes:
    """Four frames of one colour, converted to YUV by the matrix's own definition (ITU-R BT.601, BT.709)."""
    red, blue = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}[matrix]
    r, g, b = (x / 255 for x in rgb)
    luma = red * r + (1 - red - blue) * g + blue * b
    chroma = (b - luma) / (2 - 2 * blue), (r - luma) / (2 - 2 * red)
    planes = [255 * luma, *(128 + 255 * c for c in chroma)] if full else [16 + 219 * luma, *(128 + 224 * c for c in chroma)]
    pixels, scale = ("yuv420p10le", 4) if deep else ("yuv420p", 1)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = out.add_stream("libx265" if deep else "libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, pixels
        stream.options = {"crf": "1", "preset": "ultrafast"} | ({"x265-params": "log-level=none"} if deep else {})
        frame = av.VideoFrame(64, 64, pixels)
        for plane, value in zip(frame.planes, planes, strict=True):
            dtype = np.uint16 if deep else np.uint8
            plane.update(np.full(plane.buffer_size // np.dtype(dtype).itemsize, round(value * scale), dtype).tobytes())
        if tagged:
            for target in (stream.codec_context, frame):
                target.colorspace, target.color_range = {"bt601": 6, "bt709": 1}[matrix], 2 if full else 1
        for number in range(4):
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return buffer.getvalue()


@pytest.mark.parametrize("rgb", [(200, 30, 60), (20, 180, 220)])
@pytest.mark.parametrize("how", [{"matrix": "bt601", "full": False}, {"matrix": "bt709", "full": False}, {"matrix": "bt601", "full": True},
                                 {"matrix": "bt709", "full": True}, {"matrix": "bt601", "full": False, "tagged": False},
                                 {"matrix": "bt709", "full": False, "deep": True}], ids=str)
def test_colours(rgb: tuple[int, int, int], how: dict[str, object]) -> None:
    """Matrix and range of the stream are respected; an untagged one counts as BT.601, limited range."""
    picture = decode.decode(coloured(rgb, **how), [1])[0, 32, 32]
    np.testing.assert_allclose(picture.astype(int), rgb, atol=4)


def stage_of(source: decode.Video, /, *, ids: tuple[int, ...] = (), info: decode.VideoInfo | None = None) -> str:
    """The stage at which reading fails."""
    with pytest.raises(decode.DecodeError) as failure:
        decode.decode(source, ids, info=info) if ids else decode.probe(source)
    error = failure.value
    assert error.path in str(error) and error.code == 1 + decode.STAGES.index(error.stage)
    return error.stage


def test_damaged_files(constant: bytes, tmp_path: pathlib.Path) -> None:
    """Every kind of damage is a DecodeError with its stage."""
    empty, text = tmp_path / "empty.mp4", tmp_path / "text.mp4"
    empty.touch()
    text.write_text("not a video " * 100)
    assert stage_of(str(empty)) == "open"
    assert stage_of(text) == "open"
    assert stage_of(tmp_path / "absent.mp4") == "open"
    assert stage_of(constant[: len(constant) * 2 // 3]) == "short"
    assert stage_of(constant, ids=(120,)) == "short" and stage_of(constant, ids=(-1, 2)) == "short"
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = out.add_stream("aac", rate=16000, layout="mono")
        for start in range(0, 16384, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    assert stage_of(buffer.getvalue()) == "stream"


def flipped(data: bytes, /, *, at: float, length: int = 400) -> bytes:
    """The file with bytes of its packets overwritten."""
    start = int(len(data) * at)
    return data[:start] + b"\xab" * length + data[start + length:]


def test_flipped_bytes_never_give_a_wrong_frame(constant: bytes) -> None:
    """With a damaged middle each frame is right or a DecodeError; those before the damage stay readable."""
    info, broken, failed = decode.probe(constant), flipped(constant, at=0.6), 0
    for number in range(FRAMES):
        try:
            assert spelt(decode.decode(broken, [number], info=info)[0]) == number
        except decode.DecodeError as error:
            assert error.stage == "decode"
            failed += 1
    assert 1 <= failed <= 60
    with pytest.raises(decode.DecodeError):
        decode.count(broken)
    assert decode.count(constant) == FRAMES


def test_concealed_damage_is_not_passed_on(constant: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames behind a concealed one refer to it, up to the next key frame."""

    class Marked:
        def __init__(self, frame: object, corrupt: bool) -> None:
            self.frame, self.is_corrupt = frame, corrupt

        def __getattr__(self, name: str) -> object:
            return getattr(self.frame, name)

    info, plain = decode.probe(constant), decode.Call.frames
    monkeypatch.setattr(decode.Call, "frames", lambda self, *a: [Marked(f, f.pts == info.pts[40]) for f in plain(self, *a)])
    monkeypatch.setattr(decode, "_picture", lambda frame, info, converter: np.full((HEIGHT, WIDTH, 3), 7, np.uint8))
    monkeypatch.setattr(decode, "SKIPPING", ())
    for number, good in ((39, True), (40, False), (50, False), (60, True), (119, True)):
        if good:
            assert decode.decode(constant, [number], info=info).min() == 7
        else:
            assert stage_of(constant, ids=(number,), info=info) == "decode"


def test_a_frame_that_is_not_coded_is_the_one_on_screen(constant: bytes) -> None:
    """A time without a picture gives the picture before it, whatever else is asked; before the first picture, the first."""
    info = decode.probe(constant)
    step = int(info.pts[1] - info.pts[0])
    times = np.sort(np.concatenate([info.pts, info.pts[[50]] + step // 2, info.pts[[0]] - step]))
    gapped = dataclasses.replace(info, pts=times)
    for ids in ([52], [51, 52, 53], [1, 52, 100], [52, 52]):
        expected = [i - 1 if i < 52 else i - 2 for i in ids]
        assert [spelt(p) for p in decode.decode(constant, ids, info=gapped)] == expected
    assert spelt(decode.decode(constant, [0], info=gapped)[0]) == 0


def test_deadline(constant: bytes) -> None:
    """A call that takes longer than it may ends as a timeout, without a signal, so also in a thread."""
    info, stages = decode.probe(constant), []

    def slow() -> None:
        try:
            decode.decode(constant, [119], info=info, timeout=1e-9)
        except decode.DecodeError as error:
            stages.append(error.stage)

    thread = threading.Thread(target=slow)
    thread.start()
    thread.join()
    assert stages == ["timeout"]


def test_error_survives_pickling() -> None:
    """Workers send it to the training process."""
    import pickle

    error = pickle.loads(pickle.dumps(decode.DecodeError("a.mp4", "seek", "why")))
    assert (error.path, error.stage, error.cause, error.code) == ("a.mp4", "seek", "why", 4)
    with pytest.raises(ValueError, match="allowed are open"):
        decode.DecodeError("a.mp4", "nowhere", "")


def test_files_are_not_held_open(constant: bytes, tmp_path: pathlib.Path) -> None:
    """Neither success nor failure leaves a descriptor or much memory behind."""
    import os

    if not pathlib.Path("/proc/self/fd").is_dir():
        pytest.skip("counts descriptors under /proc")
    path, broken = tmp_path / "a.mp4", tmp_path / "b.mp4"
    path.write_bytes(constant)
    broken.write_bytes(flipped(constant, at=0.6, length=3000))
    info = decode.probe(path)

    def many(times: int) -> None:
        for _ in range(times):
            decode.decode(path, [3], info=info)
            with pytest.raises(decode.DecodeError):
                decode.decode(broken, [90, 119], info=info)

    many(20)
    memory, files = runs.held(), len(os.listdir("/proc/self/fd"))  # in this order: it collects what tests before left, descriptors too
    many(100)
    assert len(os.listdir("/proc/self/fd")) <= files
    assert runs.held() - memory < 30


REAL = ("action_test.avi", "arm_wrestling.mp4", "bottle_drumming.mp4", "face1.mp4", "face2.mp4", "face3.mp4", "flipping_pancake.mkv",
        "nasa_13013.mp4", "nasa_hdr_10bit.mp4", "rotated_90.mov", "skeleton_1080p.mp4", "speech_126px.mp4", "talking_face.mp4", "testsrc2_vp9.webm")


@pytest.mark.parametrize("clip", REAL)
def test_real_clips(real_videos: pathlib.Path, clip: str) -> None:
    """Random access equals sequential decoding on files of many makers."""
    path = real_videos / clip
    info = decode.probe(path)
    reference = sequential(path, rotation=info.rotation)
    assert len(reference) == info.frames
    rng = np.random.default_rng(0)
    for start in (0, int(rng.integers(info.frames)), info.frames - 1):
        ids = np.minimum(start + 4 * np.arange(4), info.frames - 1)
        for picture, number in zip(decode.decode(path, ids, info=info), ids, strict=True):
            assert picture.shape == (info.height, info.width, 3)
            np.testing.assert_array_equal(picture, reference[number])


def test_real_rotation(real_videos: pathlib.Path) -> None:
    """A phone video is stood upright: sky above, and portrait."""
    info = decode.probe(real_videos / "rotated_90.mov")
    assert (info.width, info.height, info.rotation) == (320, 568, 270)


def test_neighbours_are_not_swapped(real_videos: pathlib.Path) -> None:
    """XviD in AVI, as UCF101 is stored: FFmpeg's guessed times swap every second and third of three frames; ours do not, frame by frame and in one pass."""
    path = real_videos / "action_test.avi"
    info, reference = decode.probe(path), sequential(path)[:30]
    with av.open(str(path)) as container:
        guessed = [frame.pts for frame, _ in zip(container.decode(video=0), range(30), strict=False)]
    assert guessed != sorted(guessed), "the file is of this kind"
    whole = decode.decode(path, range(30), info=info)
    for number, picture in enumerate(reference):
        np.testing.assert_array_equal(whole[number], picture)
        np.testing.assert_array_equal(decode.decode(path, [number], info=info)[0], picture)


def test_frames_before_a_key_frame_early_in_an_avi() -> None:
    """AVI refuses to seek to a time before its first key frame, which a second try, a second further back, may be."""
    data = encode(frames=40, codec="mpeg4", container="avi", bf="2", qscale="2", g="12")
    assert len(decode.probe(data).keys) > 2
    assert [spelt(decode.decode(data, [n])[0]) for n in range(30)] == list(range(30))


def test_real_damage(real_videos: pathlib.Path) -> None:
    """A file with damaged packets, and one that was cut off: its header announces 12,633 frames."""
    info = decode.probe(real_videos / "corrupted.mp4")
    assert stage_of(real_videos / "corrupted.mp4", ids=(0, info.frames - 1), info=info) == "decode"
    assert stage_of(real_videos / "instruction_7min.mp4") == "short"


def test_a_title_that_is_no_text_loses_no_video() -> None:
    """Bytes that are not UTF-8, which PyAV before 19 refuses unless told otherwise."""
    good = encode(frames=5, codec="mpeg4", container="matroska")
    with tempfile.NamedTemporaryFile(suffix=".mkv") as file:
        with av.open(io.BytesIO(good)) as source, av.open(file.name, "w") as out:
            out.metadata["title"] = "TITLETITLE"
            stream = out.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    out.mux(packet)
        data = pathlib.Path(file.name).read_bytes()
    bad = data.replace(b"TITLETITLE", b"\xff\xfe\xc3(TITLE\x80")
    assert bad != data and len(decode.probe(bad).pts) == 5
