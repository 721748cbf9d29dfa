"""The `faces` family of the synthetic world: animated cartoon faces with exact part maps, and forged ones.

A clip is a pure function of (world, seed, index): numpy only, an independent generator per clip. Identity, expression,
gesture, forgery and every nuisance are drawn independently of each other. An identity spans `clips_each` consecutive
indices, so splits with disjoint index ranges share none.
"""

import dataclasses
import io
import math

import numpy as np
from PIL import Image

from videomae_jax.data import face_drawing
from videomae_jax.data.face_drawing import PARTS, Acting, Person, Pose, Rgb
from videomae_jax.errors import UserError, allow

__all__ = ["CROPS", "EXPRESSIONS", "FORGERIES", "GESTURES", "PARTS", "Clip", "Faces", "clip", "truth"]

CROPS = ("generous", "tight")
FORGERIES = ("none", "spatial", "temporal", "both")
GESTURES = ("nod", "shake", "still", "tilt")
STYLES = ("bald", "long", "short")
HAIR: dict[str, Rgb] = {"black": (0.1, 0.08, 0.09), "blond": (0.85, 0.68, 0.3), "brown": (0.36, 0.2, 0.1), "grey": (0.62, 0.62, 0.64),
                        "red": (0.66, 0.25, 0.1)}
IRIS: tuple[Rgb, ...] = ((0.25, 0.14, 0.06), (0.2, 0.4, 0.65), (0.25, 0.45, 0.25), (0.4, 0.42, 0.45))
LIGHT_SKIN, DARK_SKIN = np.array([0.95, 0.78, 0.66]), np.array([0.46, 0.29, 0.2])
# smile, opening, narrow, brow, frown, lids at full strength
EXPRESSIONS = {"angry": (-0.08, 0.02, 0.9, -0.06, -0.45, 0.7), "happy": (0.2, 0.12, 1.1, 0.02, 0.0, 0.8), "neutral": (0.0, 0.0, 1.0, 0.0, 0.0, 1.0),
               "sad": (-0.16, 0.0, 0.9, 0.03, 0.4, 0.7), "surprised": (0.0, 0.32, 0.7, 0.13, 0.0, 1.35)}
PATCH = (0.06, 0.66, 0.72)  # centre v and half axes of the forged region in face coordinates


@dataclasses.dataclass(frozen=True)
class Faces:
    """Parameters of the family; lengths are fractions of the frame side.

    `crop` "generous" leaves background on far more than a tenth of all patches, "tight" on less (16-pixel patches of a
    224-pixel frame). `forged` is the share of
    clips with a forged face, the three kinds alike; without its forgery such a clip would be the same. `quality` is the JPEG quality that every frame, real or forged, passes
    before encoding (0 = none; 90, 40 and 10 mimic high, low and very low quality); it changes nothing else of a clip.
    """

    size: int = 128
    frames: int = 24
    fps: int = 12
    clips_each: int = 4
    crop: str = "generous"
    forged: float = 0.0
    quality: int = 0
    sway: float = 0.03
    turn: float = 0.16
    roll: float = 0.25
    period: tuple[float, float] = (9.0, 14.0)
    jitter: int = 4

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise UserError(f"crop {self.crop!r}; allowed are {', '.join(CROPS)}")
        allow(self, forged=(0, 1), quality=(0, 100), clips_each=(1, 10**6), frames=(2, 10**5), size=(16, 4096), fps=(1, 1000), sway=(0, 1),
              turn=(0, math.pi), roll=(0, math.pi), period=(1, 10**5), jitter=(0, 4096), rising=("period",))


@dataclasses.dataclass(frozen=True)
class Clip:
    """`video` u8 [T H W 3], `parts` u8 [T H W] (places in PARTS), `forged_mask` bool [T H W] and class names by label."""

    video: np.ndarray
    parts: np.ndarray
    forged_mask: np.ndarray
    labels: dict[str, str]


def clip(index: int, /, *, world: Faces, seed: int) -> Clip:
    """Clip `index` of a world. `labels["label"]` is the expression, which a frame shows; `gesture` needs several."""
    identity = index // world.clips_each
    person, names = draw_person(np.random.Generator(np.random.Philox(key=[seed, identity], counter=[0, 0, 0, 1])))
    rng = np.random.Generator(np.random.Philox(key=[seed, index]))
    expression, gesture = list(EXPRESSIONS)[rng.integers(len(EXPRESSIONS))], GESTURES[rng.integers(len(GESTURES))]
    drawn, forged = FORGERIES[rng.integers(1, len(FORGERIES))], rng.random() < world.forged
    kind = drawn if forged else "none"
    pose, yaw, pitch = draw_pose(rng, world=world, gesture=gesture)
    acting = draw_acting(rng, world=world, expression=expression, yaw=yaw, pitch=pitch)
    light = (rng.uniform(-0.15, 0.15), rng.uniform(-0.12, 0.02))
    ground = draw_ground(rng, world=world, person=person, pose=pose)
    video, parts, mask = forge(rng, ground, pose, person, acting, light=light, kind=kind, reach=world.jitter)
    labels = {"label": expression, "expression": expression, "gesture": gesture, **names, "identity": str(identity), "forged": kind,
              "authentic": "forged" if forged else "real"}
    return Clip(compressed(video, quality=world.quality), parts, mask, labels)


def truth(clip: Clip, /, *, world: Faces) -> dict[str, np.ndarray]:
    """Exact truth at the rendered size.

    `parts` u8 [T H W], places in PARTS; `boxes` f32 [T 1 4] tight (x1, y1, x2, y2) of the face without hair and `present` bool
    [T 1]; `forged` u8, place in FORGERIES; `forged_mask` bool [T H W].
    """
    boxes, present = np.zeros((len(clip.parts), 1, 4), np.float32), np.zeros((len(clip.parts), 1), bool)
    for t, parts in enumerate(clip.parts):
        rows, columns = np.nonzero((parts > 0) & (parts < PARTS.index("hair")))
        if len(rows):
            present[t] = True
            boxes[t] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return {"parts": clip.parts, "boxes": boxes, "present": present, "forged": np.array(FORGERIES.index(clip.labels["forged"]), np.uint8),
            "forged_mask": clip.forged_mask}


def draw_person(rng: np.random.Generator, /) -> tuple[Person, dict[str, str]]:
    """An identity and its attributes."""
    hair, style = list(HAIR)[rng.integers(len(HAIR))], STYLES[rng.integers(len(STYLES))]
    glasses, lipstick = bool(rng.integers(2)), bool(rng.integers(2))
    person = Person(skin=(0.5, 0.5, 0.5), hair=HAIR[hair], brow=tuple(0.75 * c for c in HAIR[hair]), iris=(0, 0, 0), lip=(0, 0, 0), style=style,
                    glasses=glasses, cheek=rng.uniform(0.7, 0.8), part=rng.uniform(-0.3, 0.3), fringe=rng.uniform(-0.68, -0.5), **draw_features(rng))
    tone = rng.uniform()
    skin = tone * LIGHT_SKIN + (1 - tone) * DARK_SKIN + rng.uniform(-0.03, 0.03, 3)
    lip = np.array([0.78, 0.1, 0.18]) if lipstick else 0.72 * skin * np.array([1.05, 0.72, 0.75])
    person = dataclasses.replace(person, skin=tuple(skin.tolist()), lip=tuple(lip.tolist()), iris=IRIS[rng.integers(len(IRIS))])
    yes = ("no", "yes")
    return person, {"hair": hair, "style": style, "glasses": yes[glasses], "lipstick": yes[lipstick]}


def draw_features(rng: np.random.Generator, /) -> dict[str, float]:
    """Sizes and places of eyes, brows, nose and mouth."""
    ranges = {"eye_gap": (0.29, 0.36), "eye_height": (-0.14, -0.06), "eye_width": (0.15, 0.19), "eye_open": (0.085, 0.115), "brow_gap": (0.22, 0.27),
              "brow_thick": (0.035, 0.055), "nose_width": (0.08, 0.12), "nose_length": (0.17, 0.22), "mouth_height": (0.52, 0.58),
              "mouth_width": (0.27, 0.33), "lip_upper": (0.05, 0.07), "lip_lower": (0.06, 0.09)}
    return {name: rng.uniform(*limits) for name, limits in ranges.items()}


def sines(phase: float, /, *, period: float, frames: int) -> np.ndarray:
    """f32 [T]: a sine of the frame number; math.sin, because numpy's rounding differs between processors."""
    return np.array([math.sin(phase + 2 * math.pi * t / period) for t in range(frames)], np.float32)


def draw_pose(rng: np.random.Generator, /, *, world: Faces, gesture: str) -> tuple[Pose, np.ndarray, np.ndarray]:
    """Pose and the shift of the features by yaw and pitch, f32 [T] each.

    Every clip draws a phase for yaw, pitch and roll; a gesture lets one of them run and holds the others. So any one
    frame has the same distribution under every gesture.
    """
    swings = {}
    for freedom, moving in (("yaw", "shake"), ("pitch", "nod"), ("roll", "tilt")):
        phase, period = rng.uniform(0, 2 * math.pi), rng.uniform(*world.period)
        swing = sines(phase, period=period, frames=world.frames)
        swings[freedom] = swing if gesture == moving else np.full_like(swing, math.sin(phase))
    tight = world.crop == "tight"
    scale, spread, less = (rng.uniform(0.78, 0.8), 0.01, 0.4) if tight else (rng.uniform(0.34, 0.39), 0.04, 1.0)
    x, y = 0.5 + rng.uniform(-spread, spread), (0.39 if tight else 0.5) + rng.uniform(-spread, spread)
    angles, turn = (less * world.roll * swings["roll"].astype(np.float64)).tolist(), less * world.turn
    sway = np.float32(less * world.sway)
    pose = Pose(x=np.float32(x) + sway * swings["yaw"], y=np.float32(y) + sway * swings["pitch"],
                cosine=np.array([math.cos(a) for a in angles], np.float32), sine=np.array([math.sin(a) for a in angles], np.float32), scale=scale)
    return pose, np.float32(turn) * swings["yaw"], np.float32(0.7 * turn) * swings["pitch"]


def draw_acting(rng: np.random.Generator, /, *, world: Faces, expression: str, yaw: np.ndarray, pitch: np.ndarray) -> Acting:
    """An expression that swells and fades, over it speech, glances and blinks."""
    def wave(low: float, high: float) -> np.ndarray:
        return sines(rng.uniform(0, 2 * math.pi), period=rng.uniform(low, high), frames=world.frames)

    strength = np.float32(0.75) + np.float32(0.25) * wave(16, 30)
    smile, opening, narrow, brow, frown, lids = (np.float32(value) for value in EXPRESSIONS[expression])
    talk = np.float32(rng.uniform(0.02, 0.12) * rng.integers(2)) * np.maximum(wave(3.5, 5) * wave(6, 9), 0)
    blink = np.zeros(world.frames, np.float32)
    at = rng.uniform(0, 18)
    while at < world.frames:
        blink = np.maximum(blink, np.clip(1.6 - np.abs(np.arange(world.frames) - at), 0, 1).astype(np.float32))
        at += rng.uniform(10, 30)
    open_lids = (np.float32(1) + (lids - np.float32(1)) * strength) * (np.float32(1) - blink)
    return Acting(yaw=yaw, pitch=pitch, smile=smile * strength, opening=opening * strength + talk, narrow=np.float32(1) + (narrow - np.float32(1)) * strength,
                  brow=brow * strength, frown=frown * strength, lids=open_lids, gaze=np.float32(0.05) * wave(14, 40))


def draw_ground(rng: np.random.Generator, /, *, world: Faces, person: Person, pose: Pose) -> np.ndarray:
    """f32 [3 H W]: a ramp of colour, a neck and shoulders, all of it background and at rest."""
    centre, rise, shirt = rng.uniform(0.25, 0.75, 3), rng.uniform(-0.25, 0.25, (3, 2)), rng.uniform(0.1, 0.8, 3)
    pixel = ((np.arange(world.size) + 0.5) / world.size - 0.5).astype(np.float32)
    slopes = rise.astype(np.float32)
    ramp = slopes[:, :1, None] * pixel[None, None, :] + slopes[:, 1:, None] * pixel[None, :, None]
    mean = [np.float32([(float(p.min()) + float(p.max())) / 2]) for p in (pose.x, pose.y)]
    still = Pose(x=mean[0], y=mean[1], cosine=np.ones(1, np.float32), sine=np.zeros(1, np.float32), scale=pose.scale)
    page = face_drawing.canvas(centre.astype(np.float32)[:, None, None] + ramp, still)
    page.paint(lambda u, v: np.maximum(np.abs(u) - np.float32(0.36), np.float32(0.5) - v), (-0.5, 0.5, 0.5, 4), tuple(0.8 * c for c in person.skin), 0)
    page.paint(lambda u, v: face_drawing.ellipse(u, v - np.float32(2.2), a=1.35, b=0.85), (-1.5, 1, 1.5, 4), tuple(shirt.tolist()), 0)
    return page.image[:, 0]


def forge(rng: np.random.Generator, ground: np.ndarray, pose: Pose, person: Person, acting: Acting, /, *, light: tuple[float, float], kind: str,
          reach: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Video u8 [T H W 3], parts and mask of the forged region of a clip whose forgery is `kind`.

    A second face is blended into an ellipse of the first. "spatial": it has the features of another person and a tinted
    skin, and the border is soft or a dark seam. "temporal": in each frame the same person makes the face of another one up
    to `reach` frames away, a little displaced, so that every single frame is plausible. "both" does both. Glasses lie over it.
    """
    frames = len(pose.x)
    moved = np.clip(np.arange(frames) + rng.integers(-reach, reach + 1, frames), 0, frames - 1)
    slips, donor, tint = rng.uniform(-0.05, 0.05, (2, frames)).astype(np.float32), draw_features(rng), rng.uniform(0.04, 0.09)
    dark, sign = bool(rng.integers(2)) and kind != "temporal", rng.choice([-1.0, 1.0], 3)
    page = face_drawing.canvas(ground, pose)
    face_drawing.face(page, person, acting, light=light)
    mask = np.zeros(page.parts.shape, bool)
    if kind != "none":
        other, second, played = face_drawing.canvas(ground, pose), person, acting
        if kind != "temporal":
            skin = np.clip(np.array(person.skin) + sign * tint, 0.05, 1.0)
            second = dataclasses.replace(person, skin=tuple(skin.tolist()), **donor)
        if kind != "spatial":
            played = dataclasses.replace(acting.at(moved), yaw=acting.yaw + slips[0], pitch=acting.pitch + slips[1])
        face_drawing.face(other, second, played, light=light)
        middle, a, b = PATCH
        border = face_drawing.ellipse(page.u, page.v - np.float32(middle), a=a, b=b)
        mask = border < 0
        page.image += unit(np.float32(0.5) - border * np.float32(60 if dark else 8)) * (other.image - page.image)
        if dark:
            page.image *= np.float32(1) - np.float32(0.35) * unit(np.float32(1) - np.abs(border) * np.float32(30))
        page.parts[mask] = other.parts[mask]
    if person.glasses:
        face_drawing.glasses(page, person, acting)
    video = np.empty((*page.parts.shape, 3), np.uint8)
    for channel, values in enumerate(unit(page.image)):
        video[..., channel] = values * np.float32(255) + np.float32(0.5)
    return video, page.parts, mask


def unit(values: np.ndarray, /) -> np.ndarray:
    """Values f32 cut to [0, 1]."""
    return np.clip(values, np.float32(0), np.float32(1))


def compressed(video: np.ndarray, /, *, quality: int) -> np.ndarray:
    """u8 [T H W 3] after JPEG at `quality`, or as it is for 0."""
    if not quality:
        return video
    out = np.empty_like(video)
    for place, frame in zip(out, video, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
        place[...] = np.asarray(Image.open(buffer))
    return out
