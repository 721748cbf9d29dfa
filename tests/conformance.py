"""The conformance of the decoder: container x codec x mode, every frame by random access against a sequential reference decode.

    python tests/conformance.py [--only=mp4/h264] [--videos=DIR]

Files are made by FFmpeg's encoders, 72 pictures that spell their numbers, closed groups of 24. A cell counts the frames that are, bit
for bit, what PyAV gives from first to last without seeking or skipping, asked for in order and, five at a time, in random order, and that
spell the right number. "none" is a mode that the container or codec has not, "no encoder" one that this build of FFmpeg cannot make. Real
files, and those that are damaged, follow. The last line is JSON: {"files", "frames", "wrong", "refused", "expected_refusals"}.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from fractions import Fraction

if __name__ == "__main__":
    os.environ.setdefault("SVT_LOG", "1")  # errors alone
    sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1]), str(pathlib.Path(__file__).resolve().parent)]

import av
import numpy as np
from test_decode import REAL, bars, sequential, spelt

from videomae_jax.data import decode

FRAMES, GROUP, AT_ONCE = 72, 24, 5
WIDTH, HEIGHT, ODD = 128, 64, (125, 63)
TICKS = 30000  # of a second, in files of variable rate: MPEG-4 part 2 stores 16 bits
TURN = 270  # counter-clockwise: what the matrix of a phone held upright asks for
FULL = 2  # FFmpeg's number for full range
CODECS = {"h264": "libx264", "hevc": "libx265", "mpeg4": "mpeg4", "vp8": "libvpx", "vp9": "libvpx-vp9", "av1": "libsvtav1", "mjpeg": "mjpeg"}
CONTAINERS = {"mp4": ("mp4", ("h264", "hevc", "mpeg4", "vp9", "av1")), "mov": ("mov", ("h264", "hevc", "mpeg4")),
              "mkv": ("matroska", ("h264", "hevc", "mpeg4", "vp9", "av1")), "webm": ("webm", ("vp8", "vp9", "av1")),
              "ts": ("mpegts", ("h264", "hevc")), "avi": ("avi", ("mpeg4", "mjpeg"))}
MODES = ("plain", "vfr", "b_frames", "10_bit", "full_range", "rotated", "odd_size")
DEEP = {"h264", "hevc", "vp9", "av1"}
DAMAGED = {"corrupted.mp4": "decode", "instruction_7min.mp4": "short"}  # and the stage at which they are refused


@dataclasses.dataclass(frozen=True)
class Case:
    """One file to be made."""

    container: str
    codec: str
    mode: str

    @property
    def possible(self) -> bool:
        """Whether container and codec know the mode."""
        return {"vfr": self.container != "avi", "b_frames": self.codec not in ("vp8", "mjpeg"), "10_bit": self.codec in DEEP,
                "full_range": self.codec not in ("mpeg4", "vp8"), "rotated": self.container in ("mp4", "mov")}.get(self.mode, True)

    @property
    def size(self) -> tuple[int, int]:
        """Stored width and height."""
        return ODD if self.mode == "odd_size" else (WIDTH, HEIGHT)

    @property
    def pixels(self) -> str:
        """Pixel format; x264 and x265 make odd sizes of 4:4:4 alone."""
        if self.codec == "mjpeg":
            return "yuvj420p"
        if self.mode == "odd_size" and self.codec in ("h264", "hevc"):
            return "yuv444p"
        return "yuv420p10le" if self.mode == "10_bit" else "yuv420p"

    @property
    def options(self) -> dict[str, str]:
        """Of the encoder: B-frames in "b_frames" (references of others, open groups, alternate references), none in "plain"."""
        ordered = self.mode == "b_frames"
        return {"h264": {"bf": "3" if ordered else "0", "preset": "veryfast", "crf": "18", "sc_threshold": "0", "x264-params": f"open-gop={int(ordered)}:b-pyramid=normal"},
                "hevc": {"preset": "ultrafast", "crf": "18", "x265-params": f"log-level=none:bframes={3 * ordered}:open-gop={int(ordered)}:scenecut=0:keyint={GROUP}"},
                "mpeg4": {"bf": "2" if ordered else "0", "qscale": "2"}, "vp8": {"deadline": "realtime", "cpu-used": "8", "crf": "10", "b": "1M"},
                "vp9": {"deadline": "good" if ordered else "realtime", "cpu-used": "8", "crf": "20", "auto-alt-ref": str(int(ordered)), "lag-in-frames": str(16 * ordered)},
                "av1": {"preset": "12", "crf": "20", "svtav1-params": f"keyint={GROUP}:lp=1:pred-struct={1 + ordered}"}, "mjpeg": {"qscale": "2"}}[self.codec]


def cases(only: str = "", /) -> Iterator[Case]:
    """All cells of the table, or those of "container/codec"."""
    for container, (_, codecs) in CONTAINERS.items():
        for codec in codecs:
            if only in ("", f"{container}/{codec}"):
                yield from (Case(container, codec, mode) for mode in MODES)


def make(case: Case, path: pathlib.Path, /) -> None:
    """Writes the file of a case, in a thread of its own.

    SVT-AV1, where it runs as root, gives the thread that calls it SCHED_FIFO priority 99, for good, and everything which that thread
    starts later inherits it: two spinning threads of that kind stop the machine.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as own:
        own.submit(_encode, case, path).result()
    if case.mode == "rotated":
        path.write_bytes(turned(path.read_bytes()))


def _encode(case: Case, path: pathlib.Path, /) -> None:
    width, height = case.size
    variable, full = case.mode == "vfr", case.mode == "full_range" or case.codec == "mjpeg"
    with av.open(str(path), "w", format=CONTAINERS[case.container][0]) as out:
        stream = out.add_stream(CODECS[case.codec], rate=30)
        stream.width, stream.height, stream.pix_fmt, stream.options = width, height, case.pixels, case.options | {"g": str(GROUP)}
        stream.codec_context.color_range = FULL if full else 1
        if variable:
            stream.codec_context.time_base = Fraction(1, TICKS)
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(bars(number, width=width // 8 * 8, height=height), format="rgb24")
            frame = frame.reformat(width=width, height=height, format=case.pixels, dst_color_range=FULL if full else 1)
            frame.color_range = FULL if full else 1
            if variable:  # steps of 3, 1, 1 thirtieths of a second
                frame.pts, frame.time_base = (1000 * number + 2000 * -(-number // 3)) * TICKS // 30000, Fraction(1, TICKS)
            else:
                frame.pts, frame.time_base = number, Fraction(1, 30)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def turned(data: bytes, /) -> bytes:
    """An mp4 or mov file whose track header asks for a quarter turn clockwise."""
    place = data.index(b"tkhd") + 4
    matrix = place + (52 if data[place] else 40)  # version 1 has three fields of 64 bits
    values = (0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    return data[:matrix] + b"".join(v.to_bytes(4, "big", signed=True) for v in values) + data[matrix + 36:]


def wrong(path: pathlib.Path, /, *, rotation: int, spelling: bool, seed: int = 0) -> tuple[int, int]:
    """(frames of the file, those that differ from the reference or are not what they spell), in order and in random order."""
    reference, info = sequential(path, rotation=rotation), decode.probe(path)
    count = len(reference)
    if info.frames != count:
        return count, count
    bad, order = set(), np.random.default_rng(seed).permutation(count)
    for ids in (np.arange(count), *(order[i: i + AT_ONCE] for i in range(0, count, AT_ONCE))):
        for number, picture in zip(ids.tolist(), decode.decode(path, ids, info=info), strict=True):
            if not np.array_equal(picture, reference[number]):
                bad.add(number)
    upright = (np.rot90(picture, -rotation // 90) for picture in reference)
    return count, len(bad | {n for n, p in enumerate(upright) if spelling and spelt(p[:, : p.shape[1] // 8 * 8]) != n})


def encodes(case: Case, /) -> bool:
    """Whether this build of FFmpeg has the encoder, for the pixel format."""
    try:
        return case.pixels in {f.name for f in av.codec.Codec(CODECS[case.codec], "w").video_formats}
    except av.codec.codec.UnknownCodecError:
        return False


def cell(case: Case, folder: pathlib.Path, /) -> tuple[str, int, int]:
    """(text, frames, wrong ones) of a case."""
    if not case.possible:
        return "none", 0, 0
    if not encodes(case):
        return "no encoder", 0, 0
    path = folder / f"a.{case.container}"
    make(case, path)
    try:
        frames, bad = wrong(path, rotation=TURN if case.mode == "rotated" else 0, spelling=True)
    except decode.DecodeError as error:
        return error.stage, FRAMES, FRAMES
    bad += abs(FRAMES - frames)
    return f"{FRAMES - bad}/{FRAMES}", FRAMES, bad


def table(only: str, /) -> dict[str, int]:
    """Prints the table of made files as it grows; the counts."""
    count = {"files": 0, "frames": 0, "wrong": 0}
    print(f"{'container/codec':<16}" + "".join(f"{mode:>12}" for mode in MODES))
    with tempfile.TemporaryDirectory() as name:
        row = ""
        for case in cases(only):
            text, frames, bad = cell(case, pathlib.Path(name))
            row = f"{row or case.container + '/' + case.codec:<16}{text:>12}"
            if case.mode == MODES[-1]:
                print(row, flush=True)
                row = ""
            count = {"files": count["files"] + (frames > 0), "frames": count["frames"] + frames, "wrong": count["wrong"] + bad}
    return count


def real(folder: pathlib.Path, /) -> dict[str, int]:
    """Prints a line for every real file; the counts, with those of damaged files that are refused where they should be."""
    count = {"files": 0, "frames": 0, "wrong": 0, "refused": 0, "expected_refusals": 0}
    for path in sorted(p for p in folder.iterdir() if p.name in (*REAL, *DAMAGED)):
        if path.name in DAMAGED:
            stage = refusal(path)
            print(f"{path.name:<28}refused at {stage or 'no stage'}; expected {DAMAGED[path.name]}")
            count = count | {"refused": count["refused"] + (stage == DAMAGED[path.name]), "expected_refusals": count["expected_refusals"] + 1}
            continue
        info = decode.probe(path)
        frames, bad = wrong(path, rotation=info.rotation, spelling=False)
        print(f"{path.name:<28}{info.codec}, {info.width} x {info.height}: {frames - bad}/{frames}", flush=True)
        count = count | {"files": count["files"] + 1, "frames": count["frames"] + frames, "wrong": count["wrong"] + bad}
    return count


def refusal(path: pathlib.Path, /) -> str:
    """The stage at which reading a whole file fails; "" where it does not."""
    try:
        info = decode.probe(path)
        decode.decode(path, [0, info.frames - 1], info=info)
    except decode.DecodeError as error:
        return error.stage
    return ""


def main(argv: list[str], /) -> int:
    """0 when no frame is wrong and every damaged file is refused."""
    parser = argparse.ArgumentParser(description="conformance of the decoder")
    parser.add_argument("--only", default="", help="a row, as mp4/h264")
    parser.add_argument("--videos", default=str(pathlib.Path(__file__).resolve().parents[2] / "shared" / "videos"), help="folder of real files")
    options = parser.parse_args(argv)
    if options.only and not list(cases(options.only)):
        parser.error(f"--only={options.only}; allowed are {', '.join(f'{c}/{k}' for c, (_, codecs) in CONTAINERS.items() for k in codecs)}")
    made, found = table(options.only), {"files": 0, "frames": 0, "wrong": 0, "refused": 0, "expected_refusals": 0}
    if not options.only and pathlib.Path(options.videos).is_dir():
        found = real(pathlib.Path(options.videos))
    total = {k: made.get(k, 0) + v for k, v in found.items()}
    print(json.dumps(total))
    return int(total["wrong"] > 0 or total["refused"] < total["expected_refusals"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
