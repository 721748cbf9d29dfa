"""Cartoon faces as painted layers: every layer colours pixels and claims them for one part of the face.

Arrays see only + - * / sqrt, min, max and floor, which IEEE 754 rounds alike everywhere, so that the pixels of a clip can be
compared by their hash. Face coordinates (u, v) have their origin between the eyes and the nose, v downwards; the chin
lies near v = 1. They move, turn and grow with the head.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

PARTS = ("background", "skin", "right brow", "left brow", "right eye", "left eye", "nose", "upper lip", "inner mouth", "lower lip", "hair")
KEEP = -1  # a layer that lies over the parts without claiming them
EDGE = 1.2  # pixels over which a border fades
Rgb = tuple[float, float, float]
Box = tuple[float, float, float, float]  # u0, v0, u1, v1


@dataclasses.dataclass(frozen=True)
class Person:
    """What stays the same in all clips of an identity; lengths in face coordinates, colours in [0, 1]."""

    skin: Rgb
    hair: Rgb
    brow: Rgb
    iris: Rgb
    lip: Rgb
    style: str
    glasses: bool
    cheek: float  # half width of the head
    part: float  # where the hairline is highest
    fringe: float  # height of the hairline
    eye_gap: float
    eye_height: float
    eye_width: float
    eye_open: float
    brow_gap: float
    brow_thick: float
    nose_width: float
    nose_length: float
    mouth_height: float
    mouth_width: float
    lip_upper: float
    lip_lower: float


@dataclasses.dataclass(frozen=True)
class Acting:
    """State of the face over the frames, each f32 [T]; `yaw` and `pitch` shift the features within the head."""

    yaw: np.ndarray
    pitch: np.ndarray
    smile: np.ndarray
    opening: np.ndarray
    narrow: np.ndarray
    brow: np.ndarray
    frown: np.ndarray
    lids: np.ndarray
    gaze: np.ndarray

    def at(self, frames: np.ndarray, /) -> "Acting":
        """The states of other frames."""
        return Acting(**{f.name: getattr(self, f.name)[frames] for f in dataclasses.fields(self)})


@dataclasses.dataclass(frozen=True)
class Pose:
    """Place f32 [T] (x, y) in the frame, roll as (cosine, sine) f32 [T] and half height of the head, in frame sides."""

    x: np.ndarray
    y: np.ndarray
    cosine: np.ndarray
    sine: np.ndarray
    scale: float


@dataclasses.dataclass
class Canvas:
    """`image` f32 [3 T H W], `parts` u8 [T H W] and the face coordinates `u`, `v` f32 [T H W] of the pixel centres."""

    image: np.ndarray
    parts: np.ndarray
    u: np.ndarray
    v: np.ndarray
    pose: Pose

    def window(self, box: Box, /) -> tuple[slice, slice]:
        """Rows and columns that a box of face coordinates reaches in any frame."""
        size, pose, margin = self.parts.shape[1], self.pose, 3 / self.parts.shape[1]
        corners = [(u * pose.scale, v * pose.scale) for u in box[::2] for v in box[1::2]]
        across = np.stack([pose.x + u * pose.cosine - v * pose.sine for u, v in corners])
        down = np.stack([pose.y + u * pose.sine + v * pose.cosine for u, v in corners])
        cut = [int(size * min(max(float(edge), 0.0), 1.0)) for edge in (down.min() - margin, down.max() + margin, across.min() - margin,
                                                                      across.max() + margin)]
        return slice(cut[0], cut[1]), slice(cut[2], cut[3])

    def paint(self, field: Callable[[np.ndarray, np.ndarray], np.ndarray], box: Box, colour: Rgb, part: int, /, *,
              shade: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None, softness: float = 0.0) -> None:
        """Colours where `field(u, v)`, a distance in face coordinates, is negative, and gives pixels covered by more than half to `part`.

        `shade` multiplies the colour; `softness` widens the faded border to that many face units.
        """
        rows, columns = self.window(box)
        u, v = self.u[:, rows, columns], self.v[:, rows, columns]
        if not u.size:
            return
        slope = np.float32(1 / max(softness, EDGE / (self.pose.scale * self.parts.shape[1])))
        alpha = np.clip(np.float32(0.5) - field(u, v) * slope, np.float32(0), np.float32(1))
        factor = shade(u, v) if shade else None
        for channel, value in zip(self.image[:, :, rows, columns], colour, strict=True):
            wanted = np.float32(value) if factor is None else factor * np.float32(value)
            channel += alpha * (wanted - channel)
        if part != KEEP:
            self.parts[:, rows, columns][alpha > 0.5] = part


def canvas(ground: np.ndarray, pose: Pose, /) -> Canvas:
    """A canvas over a resting background f32 [3 H W]."""
    frames, size = len(pose.x), ground.shape[1]
    pixel = ((np.arange(size) + 0.5) / size).astype(np.float32)
    x, y = pixel[None, None, :] - pose.x[:, None, None], pixel[None, :, None] - pose.y[:, None, None]
    c, s, grow = pose.cosine[:, None, None], pose.sine[:, None, None], np.float32(1 / pose.scale)
    image = np.broadcast_to(ground[:, None], (3, frames, size, size)).copy()
    return Canvas(image, np.zeros((frames, size, size), np.uint8), (c * x + s * y) * grow, (c * y - s * x) * grow, pose)


def ellipse(u: np.ndarray, v: np.ndarray, /, *, a: float, b: float) -> np.ndarray:
    """Distance to an ellipse of half axes a, b around 0, to first order; negative inside."""
    x, y = u * np.float32(1 / a), v * np.float32(1 / b)
    steep = np.sqrt((x * np.float32(1 / a)) ** 2 + (y * np.float32(1 / b)) ** 2 + np.float32(1e-6))
    return np.float32(0.5) * (x * x + y * y - np.float32(1)) / steep


def lens(u: np.ndarray, v: np.ndarray, /, *, width: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Distance-like field between two parabolas through (+-width, 0) that reach v = -up and v = down; negative inside."""
    rest = np.float32(1) - (u / width) ** 2
    return np.maximum(np.maximum(-v - up * rest, v - down * rest), np.abs(u) - width)


def over(frames: np.ndarray, /) -> np.ndarray:
    """[T] as [T 1 1]."""
    return frames[:, None, None]


def around(acting: Acting, box: Box, /, *, gain: float = 1.0) -> Box:
    """A box that also holds everything that yaw and pitch carry out of it."""
    u, v = gain * acting.yaw, gain * acting.pitch
    return box[0] + float(u.min()), box[1] + float(v.min()), box[2] + float(u.max()), box[3] + float(v.max())


def streaks(u: np.ndarray, v: np.ndarray, /) -> np.ndarray:
    """Coarse strands of hair: a triangle wave across the head, in 0.8 .. 1.2."""
    wave = u * np.float32(3.1) + v * np.float32(0.6)
    return np.float32(0.8) + np.float32(0.8) * np.abs(wave - np.floor(wave) - np.float32(0.5))


def lit(light: tuple[float, float], /) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Shading that grows linearly towards the light."""
    return lambda u, v: np.float32(1) + np.float32(light[0]) * u + np.float32(light[1]) * v


def face(page: Canvas, person: Person, acting: Acting, /, *, light: tuple[float, float]) -> None:
    """Paints a head with all its parts, but without glasses, onto a canvas."""
    head(page, person, light=light)
    nose(page, person, acting, light=light)
    mouth(page, person, acting)
    for side in (-1, 1):
        eye(page, person, acting, side=side)
        brow(page, person, acting, side=side)


def head(page: Canvas, person: Person, /, *, light: tuple[float, float]) -> None:
    """Hair behind the head, ears, skin and the hair over the forehead."""
    hair, skin, a = PARTS.index("hair"), PARTS.index("skin"), person.cheek
    if person.style == "long":
        page.paint(lambda u, v: ellipse(u, v - np.float32(0.2), a=a + 0.22, b=1.35), (-1.1, -1.25, 1.1, 1.6), person.hair, hair, shade=streaks)
    elif person.style == "short":
        page.paint(lambda u, v: ellipse(u, v + np.float32(0.2), a=a + 0.1, b=0.98), (-1, -1.25, 1, 0.8), person.hair, hair, shade=streaks)
    shade = lit(light)
    for side in (-1, 1):
        middle = np.float32(side * (a + 0.01))
        page.paint(lambda u, v, m=middle: ellipse(u - m, v - np.float32(0.02), a=0.1, b=0.17), (side * a - 0.15, -0.2, side * a + 0.15, 0.25),
                   tuple(0.9 * c for c in person.skin), skin, shade=shade)
    page.paint(lambda u, v: ellipse(u, v, a=a, b=1.0), (-0.9, -1.05, 0.9, 1.05), person.skin, skin, shade=shade)
    if person.style != "bald":
        def forehead(u: np.ndarray, v: np.ndarray) -> np.ndarray:
            line = v - np.float32(person.fringe) - np.float32(0.9) * (u - np.float32(person.part)) ** 2
            return np.maximum(ellipse(u, v + np.float32(0.2), a=a + 0.1, b=0.98), np.float32(0.8) * line)

        page.paint(forehead, (-1, -1.25, 1, 0.4), person.hair, hair, shade=streaks)


def nose(page: Canvas, person: Person, acting: Acting, /, *, light: tuple[float, float]) -> None:
    """A bridge that widens to the tip, in a redder skin; it moves more than the rest when the head turns."""
    right, down = over(acting.yaw) * np.float32(1.4), over(acting.pitch) * np.float32(1.4)
    length, width = np.float32(person.nose_length), person.nose_width
    red, green, blue = person.skin

    def field(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        x, y = u - right, v - down - np.float32(0.2)
        taper = np.float32(width) * (np.float32(0.75) + np.float32(0.45) * y / length)
        return np.maximum(np.abs(x) - taper, ellipse(x, y, a=2 * width, b=person.nose_length))

    box = around(acting, (-2 * width, 0.2 - person.nose_length, 2 * width, 0.2 + person.nose_length), gain=1.4)
    page.paint(field, box, (0.92 * red, 0.74 * green, 0.7 * blue), PARTS.index("nose"), shade=lit(light))


def mouth(page: Canvas, person: Person, acting: Acting, /) -> None:
    """Two lips around the inner mouth; a smile lifts the corners."""
    width = over(acting.narrow) * np.float32(person.mouth_width)
    half, bend = over(acting.opening) * np.float32(0.5), over(acting.smile)

    def local(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = u - over(acting.yaw)
        return x, v - over(acting.pitch) - np.float32(person.mouth_height) + bend * ((x / width) ** 2 - np.float32(0.5))

    def between(up: np.ndarray, down: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        return lambda u, v: np.float32(0.8) * lens(*local(u, v), width=width, up=up, down=down)

    thick, thin = np.float32(person.lip_lower), np.float32(person.lip_upper)
    reach = float(half.max()) + person.lip_upper + person.lip_lower + 0.5 * float(np.abs(bend).max())
    box = around(acting, (-float(width.max()), person.mouth_height - reach, float(width.max()), person.mouth_height + reach))
    page.paint(between(-half, half + thick), box, person.lip, PARTS.index("lower lip"))
    page.paint(between(half + thin, half), box, tuple(0.82 * c for c in person.lip), PARTS.index("upper lip"))
    page.paint(between(half, half), box, (0.28, 0.05, 0.07), PARTS.index("inner mouth"))


def eye(page: Canvas, person: Person, acting: Acting, /, *, side: int) -> None:
    """Lashes, white, iris and pupil within the lids; a closed eye leaves the line of the lashes. `side` -1 is the person's right."""
    part, width = PARTS.index("right eye" if side < 0 else "left eye"), np.float32(person.eye_width)
    middle, height = np.float32(side * person.eye_gap), np.float32(person.eye_height)
    opened = over(acting.lids) * np.float32(person.eye_open)
    wide, high = person.eye_width + 0.03, float(opened.max()) + 0.03
    box = around(acting, (side * person.eye_gap - wide, person.eye_height - high, side * person.eye_gap + wide, person.eye_height + high))

    def local(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return u - middle - over(acting.yaw), v - height - over(acting.pitch)

    def white(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return lens(*local(u, v), width=width, up=opened, down=opened)

    def ball(radius: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        def field(u: np.ndarray, v: np.ndarray) -> np.ndarray:
            x, y = local(u, v)
            return np.maximum(white(u, v), ellipse(x - over(acting.gaze), y, a=radius, b=radius))
        return field

    lash = np.float32(0.03)
    page.paint(lambda u, v: lens(*local(u, v), width=width + lash, up=opened + lash, down=opened + np.float32(0.6) * lash), box, (0.1, 0.07, 0.07), part)
    page.paint(white, box, (0.97, 0.97, 0.95), part)
    page.paint(ball(0.085), box, person.iris, part)
    page.paint(ball(0.04), box, (0.04, 0.04, 0.05), part)


def brow(page: Canvas, person: Person, acting: Acting, /, *, side: int) -> None:
    """An arch over the eye; `frown` lowers its inner end."""
    middle, height = np.float32(side * person.eye_gap), np.float32(person.eye_height - person.brow_gap)

    def field(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        x = (u - middle - over(acting.yaw)) * np.float32(side)
        line = over(acting.frown) * x - np.float32(0.5) * x * x + over(acting.brow)
        return ellipse(x, v - height - over(acting.pitch) + line, a=0.21, b=person.brow_thick)

    reach = person.brow_thick + float((np.abs(acting.brow) + 0.21 * np.abs(acting.frown)).max()) + 0.03
    place = person.eye_height - person.brow_gap
    box = around(acting, (side * person.eye_gap - 0.21, place - reach, side * person.eye_gap + 0.21, place + reach))
    page.paint(field, box, person.brow, PARTS.index("right brow" if side < 0 else "left brow"))


def glasses(page: Canvas, person: Person, acting: Acting, /) -> None:
    """Rims and a bridge; they lie over the parts and claim none."""
    def field(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        x, y = np.abs(u - over(acting.yaw)), v - np.float32(person.eye_height) - over(acting.pitch)
        rim = np.abs(ellipse(x - np.float32(person.eye_gap), y, a=0.26, b=0.22))
        bridge = np.maximum(x - np.float32(person.eye_gap - 0.26), np.abs(y + np.float32(0.03)))
        return np.minimum(rim, bridge) - np.float32(0.022)

    box = around(acting, (-person.eye_gap - 0.29, person.eye_height - 0.25, person.eye_gap + 0.29, person.eye_height + 0.25))
    page.paint(field, box, (0.09, 0.09, 0.13), KEEP)
