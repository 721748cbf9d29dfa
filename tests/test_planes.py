"""Frames as planes: colour and geometry against the RGB frames of the same decoder."""

import dataclasses
import io
import pathlib

import av
import numpy as np
import pytest
from PIL import Image

from videomae_jax.data import decode, planar

MATRIX = {"bt601": 5, "bt709": 1, "bt2020": 9}


def scene(*, frames: int = 5, width: int = 96, height: int = 64, seed: int = 0, cell: int = 16) -> np.ndarray:
    """Smooth random pictures u8 [T H W 3] that change from frame to frame, with colours as strong as those of footage."""
    noise = np.random.default_rng(seed).uniform(0, 255, (frames, height // cell + 2, width // cell + 2, 3))
    noise = noise.mean(-1, keepdims=True) + 0.4 * (noise - noise.mean(-1, keepdims=True))
    return np.stack([np.asarray(Image.fromarray(x.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)) for x in noise])


def encode(video: np.ndarray, /, *, pixels: str = "yuv420p", matrix: str = "", full: bool = False, codec: str = "libx264") -> bytes:
    """A lossy but good file of the pictures, tagged with matrix and range; without `matrix`, untagged."""
    buffer, space = io.BytesIO(), MATRIX.get(matrix)
    with av.open(buffer, "w", format="matroska") as out:
        stream = out.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = *video.shape[1:3], pixels
        stream.options = {"crf": "8", "preset": "ultrafast"} | ({"x265-params": "log-level=none"} if codec == "libx265" else {})
        for number, picture in enumerate(video):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = frame.reformat(format=pixels, dst_colorspace=space, dst_color_range=2 if full else None)
            frame.pts = number
            for target in (stream.codec_context, frame) if space else ():
                target.colorspace, target.color_range = space, 2 if full else 1
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return buffer.getvalue()


def rgb(planes: decode.Planes, /) -> np.ndarray:
    """Floats [n H W 3]: chroma repeated, colour applied."""
    height, width = planes.luma.shape[1:]
    chroma = planes.chroma.repeat(2, 2).repeat(2, 3)[:, :, :height, :width]
    yuv1 = np.concatenate([planes.luma[:, None], chroma, np.ones_like(planes.luma[:, None])], 1, dtype=np.float32)
    return np.clip(np.einsum("nrc,nchw->nhwr", planes.colour, yuv1), 0, 255)


PLAIN = {f"{matrix or 'untagged'}_{'full' if full else 'limited'}": {"matrix": matrix, "full": full}
         for matrix in ("bt601", "bt709", "bt2020") for full in (False, True)} | {"untagged": {}, "yuvj": {"pixels": "yuvj420p", "matrix": "bt601", "full": True}}


@pytest.mark.parametrize("how", PLAIN.values(), ids=PLAIN)
def test_planes_are_the_frames_in_their_own_colours(how: dict[str, object]) -> None:
    """Within the rounding of FFmpeg's converter, at most two levels and without a shift of the mean; half a level more is too much."""
    data, ids = encode(scene(), **how), [3, 0, 4, 4]
    difference = rgb(decode.planes(data, ids)) - decode.decode(data, ids)
    assert np.abs(difference).max() < 2 and np.abs(difference).mean() < 0.45
    assert np.abs(difference.mean((0, 1, 2))).max() < 0.1


@pytest.mark.parametrize("how", [{"pixels": "yuv420p10le", "codec": "libx265", "matrix": "bt709"}, {"pixels": "yuv444p", "matrix": "bt601"},
                                 {"pixels": "yuv422p", "matrix": "bt709", "full": True}], ids=lambda how: how["pixels"])
def test_other_formats_become_planes(how: dict[str, object]) -> None:
    """Nothing but fine chroma is lost: brightness and mean colour stay."""
    data = encode(scene(width=192, height=128, cell=48), **how)
    difference = rgb(decode.planes(data, [0, 2])) - decode.decode(data, [0, 2])
    assert np.abs(difference).mean() < 1 and np.abs(difference.mean((0, 1, 2))).max() < 0.3


def test_pictures_become_planes() -> None:
    """RGB frames lose nothing but fine chroma either, and can be cut."""
    video = scene(width=192, height=128, cell=48)
    planes = decode.planes_of(video, cut=(10, 20, 191, 77))
    difference = rgb(planes) - video[:, 20:77, 10:191]
    assert np.abs(difference).mean() < 1 and np.abs(difference.mean((0, 1, 2))).max() < 0.3


@pytest.mark.parametrize("size", [(191, 128), (192, 127), (191, 127)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    """The last chroma of an odd side belongs to one pixel; ffv1 stores such sides."""
    data = encode(scene(width=size[0], height=size[1], cell=48), codec="ffv1")
    planes = decode.planes(data, [1])
    assert planes.luma.shape == (1, *size[::-1]) and planes.chroma.shape == (1, 2, -(-size[1] // 2), -(-size[0] // 2))
    assert np.abs(rgb(planes) - decode.decode(data, [1])).mean() < 1


@pytest.mark.parametrize("rotation", [90, 180, 270])
@pytest.mark.parametrize("size", [(191, 128), (192, 127)])
def test_odd_sides_that_are_turned_round(size: tuple[int, int], rotation: int) -> None:
    """Chroma lies where the pixels of the displayed picture are: as stored where that side keeps its beginning, else made after the rotation."""
    data = encode(scene(width=size[0], height=size[1]), codec="ffv1")
    info = decode.probe(data)
    width, height = size[::-1] if rotation % 180 else size
    shown = dataclasses.replace(info, rotation=rotation, width=width, height=height)
    found = decode.planes(data, [1], info=shown)
    if size[1] % 2 == 0 and rotation == 270:
        np.testing.assert_array_equal(rgb(found)[0], np.rot90(rgb(decode.planes(data, [1]))[0], 3))
    else:
        wanted = decode.planes_of(decode.decode(data, [1], info=shown), cut=(0, 0, width, height))
        for one, two in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("cut", [(0, 0, 96, 64), (10, 4, 60, 64), (94, 62, 96, 64), (2, 2, 3, 3)])
def test_a_cut_is_a_part_of_the_whole(cut: tuple[int, int, int, int]) -> None:
    """Exactly those pixels; chroma covers every one of them."""
    data = encode(scene())
    whole, part = decode.planes(data, [2, 1]), decode.planes(data, [2, 1], cut=cut)
    left, top, right, bottom = cut
    np.testing.assert_array_equal(part.luma, whole.luma[:, top:bottom, left:right])
    np.testing.assert_allclose(rgb(part), rgb(whole)[:, top:bottom, left:right], atol=1e-3)  # sums in another order


def test_colour_that_changes_within_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every frame has its own matrix and range."""

    class Tagged:
        def __init__(self, frame: av.VideoFrame) -> None:
            self.frame = frame
            self.colorspace, self.color_range = (1, 2) if frame.pts % 200 else (5, 1)

        def __getattr__(self, name: str) -> object:
            return getattr(self.frame, name)

    data, plain = encode(scene()), planar.views
    expected, other = decode.planes(data, [0, 1, 2]), decode.planes(encode(scene(), matrix="bt709", full=True), [0])
    monkeypatch.setattr(planar, "views", lambda frame, *rest, **kw: plain(Tagged(frame), *rest, **kw))
    found = decode.planes(data, [0, 1, 2])
    np.testing.assert_array_equal(found.luma, expected.luma)
    np.testing.assert_array_equal(found.colour[0], expected.colour[0])
    np.testing.assert_array_equal(found.colour[1], other.colour[0])
    np.testing.assert_array_equal(found.colour[2], expected.colour[0])


def test_real_videos(real_videos: pathlib.Path) -> None:
    """Rotated, full-range, 10-bit, MPEG-4, VP9 and odd files: within one level of the RGB frames on average."""
    seen = 0
    for path in sorted(real_videos.iterdir()):
        try:
            info = decode.probe(path)
            ids = np.linspace(0, min(info.frames - 1, 20), 3).astype(int)
            frames = decode.decode(path, ids, info=info)
        except decode.DecodeError:
            continue
        planes = decode.planes(path, ids, info=info)
        assert planes.luma.shape == frames.shape[:3] and np.abs(rgb(planes) - frames).mean() < 1, path.name
        seen += 1
    assert seen >= 10
