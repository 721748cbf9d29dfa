"""The `shapes` family of the synthetic world: a large sprite under three coloured lights drifts over a plain ground.

A clip is a pure function of (world seed, index): numpy only, an independent generator per clip. Appearance (the shape)
and motion (one of eight directions) are drawn independently of each other and of every nuisance.
"""

import dataclasses
import math

import numpy as np

from videomae_jax.errors import allow

APPEARANCES = ("disc", "square", "star", "triangle")
MOTIONS = ("east", "north", "northeast", "northwest", "south", "southeast", "southwest", "west")
_ANGLES = {"east": 0, "northeast": 45, "north": 90, "northwest": 135, "west": 180, "southwest": 225, "south": 270, "southeast": 315}


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Parameters of the family; lengths are fractions of the frame side, speeds fractions a frame.

    All sprites of a clip share shape and motion and leave the frame on one side to enter on the other, so that any
    window of any length shows the motion and no single frame tells it. The ground is plain: only the sprites carry the
    loss. Red light falls from the left, blue from above, green from between, so that the shading of a visible patch tells
    where it lies within the sprite, and hidden patches can be predicted from few visible ones by whoever has understood
    shape and place; `contrast` is the change of brightness over a radius. Texture finer than the distance of visible
    patches could not be predicted by any model.
    """

    size: int = 64
    frames: int = 24
    fps: int = 12
    sprites: int = 1
    radius: tuple[float, float] = (0.30, 0.42)
    speed: tuple[float, float] = (0.018, 0.030)
    contrast: tuple[float, float] = (0.2, 0.3)
    edge: float = 0.015

    def __post_init__(self) -> None:
        allow(self, size=(2, 4096), frames=(1, 10**5), fps=(1, 1000), sprites=(1, 100), radius=(0.001, 1), speed=(0, 1), contrast=(0, 1), edge=(1e-4, 1),
              rising=("radius", "speed", "contrast"))


@dataclasses.dataclass(frozen=True)
class Clip:
    """`video` u8 [T H W 3] and the class names of its sprites; `scene` holds what `truth` needs."""

    video: np.ndarray
    appearance: str
    motion: str
    scene: dict[str, np.ndarray]


def clip(index: int, /, *, world: Shapes, seed: int) -> Clip:
    """Clip `index` of a world."""
    rng = np.random.Generator(np.random.Philox(key=[seed, index]))
    appearance, motion = APPEARANCES[rng.integers(len(APPEARANCES))], MOTIONS[rng.integers(len(MOTIONS))]
    scene = draw_scene(rng, world=world, motion=motion)
    return Clip(video=render(scene, world=world, appearance=appearance), appearance=appearance, motion=motion, scene=scene)


def draw_scene(rng: np.random.Generator, /, *, world: Shapes, motion: str) -> dict[str, np.ndarray]:
    """Nuisances of a clip: places, sizes, turns, colours, shading, ground. Coordinates are (x, y), y downwards."""
    n, angle = world.sprites, math.radians(_ANGLES[motion])
    start = (rng.uniform(0, 1, 2) + np.arange(n)[:, None] / n + rng.uniform(-0.1, 0.1, (n, 2))) % 1
    speed = rng.uniform(*world.speed)
    return {"start": start, "velocity": speed * np.array([math.cos(angle), -math.sin(angle)]), "radius": rng.uniform(*world.radius, n),
            "turn": rng.uniform(0, 2 * math.pi, n), "base": rng.uniform(0.55, 0.7, (n, 3)),
            "tint": rng.uniform(0.6, 1, (n, 3)) * rng.uniform(*world.contrast, (n, 1)), "ground": rng.uniform(0.05, 0.2, 3)}


def distance(x: np.ndarray, y: np.ndarray, /, *, appearance: str, radius: float) -> np.ndarray:
    """Signed distance-like field of a shape centred at 0: negative inside, in units of the frame side."""
    if appearance == "disc":
        return np.hypot(x, y) - radius
    if appearance == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.85 * radius
    if appearance == "triangle":
        sides = [x * math.cos(a) + y * math.sin(a) for a in (math.pi / 2, math.pi / 2 + 2 * math.pi / 3, math.pi / 2 + 4 * math.pi / 3)]
        return np.maximum.reduce(sides) - 0.6 * radius
    return np.hypot(x, y) - radius * (0.75 + 0.3 * np.cos(5 * np.arctan2(y, x)))


def places(scene: dict[str, np.ndarray], /, *, world: Shapes) -> np.ndarray:
    """Sprite centres f64 [T n 2] on the torus."""
    times = np.arange(world.frames)[:, None, None]
    return (scene["start"][None] + times * scene["velocity"]) % 1


def local(scene: dict[str, np.ndarray], sprite: int, /, *, world: Shapes) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates (x f32 [T 1 W], y f32 [T H 1]) relative to a sprite's centre, on the torus."""
    centre = places(scene, world=world)[:, sprite]
    pixel = (np.arange(world.size) + 0.5) / world.size
    offset = ((pixel[None, None] - centre[..., None] + 0.5) % 1 - 0.5).astype(np.float32)
    return offset[:, 0, None, :], offset[:, 1, :, None]


def turned(x: np.ndarray, y: np.ndarray, /, *, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates f32 [T H W] in axes turned by `angle`."""
    c, s = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return c * x + s * y, c * y - s * x


def coverage(scene: dict[str, np.ndarray], sprite: int, /, *, world: Shapes, appearance: str) -> np.ndarray:
    """Opacity f32 [T H W] of a sprite in [0, 1]."""
    x, y = turned(*local(scene, sprite, world=world), angle=float(scene["turn"][sprite]))
    field = distance(x, y, appearance=appearance, radius=float(scene["radius"][sprite]))
    return np.clip(0.5 - field / np.float32(world.edge), 0, 1)


def render(scene: dict[str, np.ndarray], /, *, world: Shapes, appearance: str) -> np.ndarray:
    """u8 [T H W 3]: the ground, then the sprites in order."""
    image = np.broadcast_to(scene["ground"].astype(np.float32), (world.frames, world.size, world.size, 3)).copy()
    for sprite in range(world.sprites):
        alpha = coverage(scene, sprite, world=world, appearance=appearance)
        inside = alpha > 0
        x, y = (np.broadcast_to(axis, inside.shape)[inside] for axis in local(scene, sprite, world=world))
        light = -np.stack([x, (x + y) / np.float32(math.sqrt(2)), y], -1) / np.float32(scene["radius"][sprite])
        colour = scene["base"][sprite].astype(np.float32) + light * scene["tint"][sprite].astype(np.float32)
        image[inside] += alpha[inside][:, None] * (colour - image[inside])
    return np.uint8(np.round(255 * image.clip(0, 1)))


def truth(scene: dict[str, np.ndarray], /, *, world: Shapes, appearance: str) -> dict[str, np.ndarray]:
    """Exact truth at the rendered size.

    `objects` u8 [T H W] instance id (0 = background); `boxes` f32 [T n 4] tight (x1, y1, x2, y2) of the visible pixels and
    `present` bool [T n]; `flow_fwd` f32 [T-1 H W 2] displacement in pixels to the next frame, x then y.
    """
    objects = np.zeros((world.frames, world.size, world.size), np.uint8)
    for sprite in range(world.sprites):
        objects[coverage(scene, sprite, world=world, appearance=appearance) > 0.5] = sprite + 1
    boxes = np.zeros((world.frames, world.sprites, 4), np.float32)
    present = np.zeros((world.frames, world.sprites), bool)
    for t in range(world.frames):
        for sprite in range(world.sprites):
            rows, columns = np.nonzero(objects[t] == sprite + 1)
            if len(rows):
                present[t, sprite] = True
                boxes[t, sprite] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    moving = (objects[:-1] > 0)[..., None]
    return {"objects": objects, "boxes": boxes, "present": present,
            "flow_fwd": np.where(moving, scene["velocity"] * world.size, 0).astype(np.float32)}
