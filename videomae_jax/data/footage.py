"""Video files for measuring input: as large and as hard to decode as those of Kinetics, without being theirs; and the loader that is usual for them."""

import dataclasses
import pathlib

import av
import numpy as np
from PIL import Image

from videomae_jax.data import augment, decode, sources
from videomae_jax.errors import UserError

WIDTH, HEIGHT, FPS = 340, 256, 30  # Kinetics as it is commonly stored
GRAIN = 4.5  # standard deviation of the noise in grey levels: with it x264 makes 500 kbit/s, what a clip of Kinetics has
MEAN, DEVIATION = (np.asarray(v, np.float32) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))  # of ImageNet, as everybody normalises


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is read: clips of `frames` frames `stride` apart, `copies` crops of `size` squared of one decode.

    `crops` are cut on the "host" or left to the "device", whose own time is given apart. A repeat reads `decodes` clips, the
    same by every way; the resident set is followed over `opens` further reads.
    """

    frames: int = 16
    stride: int = 4
    size: int = 224
    copies: int = 4
    crops: str = "device"
    decodes: int = 8
    repeats: int = 5
    opens: int = 300

    def __post_init__(self) -> None:
        if self.crops not in ("device", "host"):
            raise UserError(f"crops {self.crops!r}; allowed are device, host")
        for field, least in (("frames", 1), ("stride", 1), ("size", 1), ("copies", 1), ("decodes", 1), ("repeats", 1), ("opens", 0)):
            if getattr(self, field) < least:
                raise UserError(f"{field} is {getattr(self, field)}; allowed are {least} and more")


def texture(rng: np.random.Generator, /, *, width: int, height: int) -> np.ndarray:
    """f32 [height width 3] around 128 with the 1/f spectrum of natural pictures."""
    total = np.zeros((height, width, 3), np.float32)
    cells = 256
    while cells >= 2:
        shape = (height // cells + 2, width // cells + 2, 3)
        grey = rng.normal(size=(*shape[:2], 1))
        coarse = (grey + 0.3 * rng.normal(size=shape)).astype(np.float32)
        for channel in range(3):
            total[..., channel] += np.asarray(Image.fromarray(coarse[..., channel]).resize((width, height), Image.Resampling.BICUBIC)) * 14 * (cells / 256) ** 0.2
        cells //= 2
    return 128 + total


def scene(*, frames: int, seed: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """u8 [frames height width 3]: a shaking pan over a texture, four things that move before it, grain."""
    rng = np.random.default_rng(seed)
    wide, high = width + 160, height + 120
    back, grain = texture(rng, width=wide, height=high), rng.normal(scale=GRAIN, size=(7, height, width, 1)).astype(np.float32)
    things = [(texture(rng, width=width // 3, height=height // 2) + rng.normal(scale=30, size=3), rng.uniform(0, 6.28, 4), rng.uniform(0.2, 1.2, 2)) for _ in range(4)]
    rows, columns = np.ogrid[: height // 2, : width // 3]
    inside = ((rows / (height / 4) - 1) ** 2 + (columns / (width / 6) - 1) ** 2 < 1)[..., None]
    out = np.empty((frames, height, width, 3), np.uint8)
    for number in range(frames):
        time = number / FPS
        left, top = (int((side - size) / 2 * (1 + 0.8 * np.sin(0.5 * time + seed)) + rng.normal(scale=0.6)) for side, size in ((wide, width), (high, height)))
        left, top = min(max(left, 0), wide - width), min(max(top, 0), high - height)
        picture = back[top: top + height, left: left + width].copy()
        for pixels, phase, speed in things:
            x = int((width - pixels.shape[1]) / 2 * (1 + np.sin(speed[0] * time * 2 + phase[0])))
            y = int((height - pixels.shape[0]) / 2 * (1 + np.sin(speed[1] * time * 2 + phase[1])))
            place = picture[y: y + pixels.shape[0], x: x + pixels.shape[1]]
            np.copyto(place, pixels, where=inside)
        out[number] = np.clip(picture + grain[number * 3 % 7], 0, 255)
    return out


def write(path: pathlib.Path, /, *, seconds: float, seed: int) -> None:
    """An mp4 with the defaults of x264: crf 23, medium, a key frame every 250 frames or at a cut, B-frames that others refer to."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for picture in scene(frames=round(seconds * FPS), seed=seed):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))


@dataclasses.dataclass(frozen=True)
class UsualLoader:
    """The clips of `source` the usual way: PyAV decodes in order from the key frame before the window, every frame of the window
    becomes RGB, every stride-th is kept, each is cropped and resized by PIL (the crop of the source), then normalised in float32.

    `copies` crops of one decode: 1 is usual, more is VideoMAE V2's repeated augmentation. One thread, as with one process a core. With
    an AugmentedCrop every frame goes through RandAugment by itself, as timm's and V2's do.
    """

    source: sources.VideoClips
    copies: int = 1

    def read(self, row: int, /, *, rng: np.random.Generator) -> np.ndarray:
        """f32 [copies 3 T size size], normalised."""
        clip = self.source.clip(row, rng=rng)
        video = self.window(clip)
        crops = [self.crop(video, rng=rng) for _ in range(self.copies)]
        return np.stack([((c.astype(np.float32) / 255 - MEAN) / DEVIATION).transpose(3, 0, 1, 2) for c in crops])

    def crop(self, video: np.ndarray, /, *, rng: np.random.Generator) -> np.ndarray:
        """u8 [T size size 3] of frames u8 [T H W 3]."""
        made = self.source.crop
        if isinstance(made, augment.AugmentedCrop):
            for name, argument in made.policy.draw(rng):
                video = np.concatenate([augment.OPERATIONS[name].apply(frame[None], argument) for frame in video])
            made = dataclasses.replace(made, policy=augment.RandAugment(count=0))
        return made(video, size=self.source.size, rng=rng)

    def window(self, clip: sources.Clip, /) -> np.ndarray:
        """u8 [T H W 3]."""
        first, last, found = int(clip.info.pts[clip.ids.min()]), int(clip.info.pts[clip.ids.max()]), {}
        call = decode.Call(clip.video, decode.TIMEOUT)
        with call.open() as container:
            stream = call.stream(container)
            if container.format.name == decode.UNTIMED:  # whose frames the index numbers otherwise than PyAV
                frames = call.seek(container, stream, first)
            else:
                container.seek(first, stream=stream)
                frames = container.decode(stream)
            for frame in frames:
                if frame.pts >= first:
                    found[frame.pts] = frame.to_ndarray(format="rgb24")
                if frame.pts >= last:
                    break
        return np.stack([found[int(clip.info.pts[i])] for i in clip.ids])


def stages(clip: sources.Clip, /) -> dict[str, object]:
    """Ways to begin reading a clip, each going one stage further: open, seek (with its key frame), decode. Values are functions without arguments."""
    def opened() -> None:
        call = decode.Call(clip.video, decode.TIMEOUT)
        with call.open() as container:
            call.stream(container)

    def sought() -> None:
        call = decode.Call(clip.video, decode.TIMEOUT)
        with call.open() as container:
            next(call.seek(container, call.stream(container), int(clip.info.pts[clip.ids.min()])))

    def decoded() -> None:
        decode._read(clip.video, clip.ids, info=clip.info, timeout=decode.TIMEOUT, convert=lambda frame: None)

    return {"open": opened, "seek": sought, "decode": decoded}
