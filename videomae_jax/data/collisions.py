"""The `collisions` family of the synthetic world: sprites that bounce in a box and sound where two of them meet.

A clip is a pure function of (world seed, index): numpy only, an independent generator per clip. Every sprite of a clip
has a shape of its own, and a meeting sounds the pitches of the two shapes that meet: the picture tells when and which, a
tone that is hidden cannot be told from the other tones. Label is the motion: tempo x spin. Neither shows in a
single frame, because places, turns and directions are distributed alike at all times and for all labels.
"""

import dataclasses
import itertools
import math

import numpy as np

from videomae_jax.data import shapes
from videomae_jax.errors import UserError, allow

APPEARANCES = shapes.APPEARANCES
PITCHES = dict(zip(APPEARANCES, (440.0, 830.0, 1570.0, 2960.0), strict=True))  # Hz, a factor of 1.89 apart
TEMPI = ("fast", "medium", "slow")
SPINS = ("left", "right")
ATTACK = 0.002  # seconds; a tone that begins at full loudness clicks at all pitches
ATTEMPTS = 1000


@dataclasses.dataclass(frozen=True)
class Collisions:
    """Parameters of the family; lengths are fractions of the frame side, times are seconds.

    `radius` is one for all sprites, which meet as discs of equal mass. `speed` is the root mean square over the sprites
    for (slow, medium, fast), `turning` the rate of spin in radians a second. `decay` is the time constant of a tone, cut at
    `tone` seconds: about an audio patch. `noise` is the standard deviation of the sound's floor, full scale 1.
    """

    size: int = 96
    frames: int = 32
    fps: int = 16
    sprites: int = 3
    radius: float = 0.14
    speed: tuple[float, float, float] = (0.45, 0.7, 1.1)
    turning: tuple[float, float] = (1.5, 3.5)
    grating: tuple[float, float] = (0.2, 0.35)
    contrast: tuple[float, float] = (0.25, 0.45)
    edge: float = 0.015
    audio_rate: int = 16000
    loudness: float = 0.2
    decay: float = 0.03
    tone: float = 0.15
    noise: float = 0.001

    def __post_init__(self) -> None:
        if not 2 <= self.sprites <= len(APPEARANCES):
            raise UserError(f"sprites is {self.sprites}; allowed are 2 to {len(APPEARANCES)}, one a shape")
        if not 0 < self.radius < 0.25:
            raise UserError(f"radius is {self.radius}; allowed is 0 < radius < 0.25")
        allow(self, size=(16, 4096), frames=(2, 10**5), fps=(1, 1000), speed=(0, 10), turning=(0, 1000), grating=(0.001, 10), contrast=(0, 1), edge=(1e-4, 1),
              audio_rate=(8000, 96_000), loudness=(0, 1), decay=(1e-4, 10), tone=(1e-4, 10), noise=(0, 1), rising=("speed", "turning", "grating", "contrast"))

    @property
    def duration(self) -> float:
        """Seconds of a clip."""
        return self.frames / self.fps


@dataclasses.dataclass(frozen=True)
class Events:
    """What happens, in order of time; a meeting has two rows, one a sprite, a wall bounce one.

    `time` f64 [E] seconds; `sprite` i64 [E]; `pitch` f64 [E] Hz, 0 for the silent bounces off a wall.
    """

    time: np.ndarray
    sprite: np.ndarray
    pitch: np.ndarray

    @property
    def sounding(self) -> np.ndarray:
        """bool [E]: rows of meetings."""
        return self.pitch > 0


@dataclasses.dataclass(frozen=True)
class Clip:
    """`video` u8 [T H W 3], `audio` f32 [samples] at `world.audio_rate`, events, class names; `scene` holds what `truth` needs."""

    video: np.ndarray
    audio: np.ndarray
    events: Events
    labels: dict[str, str]
    scene: dict[str, np.ndarray]


def clip(index: int, /, *, world: Collisions, seed: int) -> Clip:
    """Clip `index` of a world."""
    rng = np.random.Generator(np.random.Philox(key=[seed, index]))
    scene, labels = draw_scene(rng, world=world)
    scene["places"], events = simulate(scene, world=world)
    return Clip(video=render(scene, world=world), audio=sound(events, world=world, rng=rng), events=events, labels=labels, scene=scene)


def draw_scene(rng: np.random.Generator, /, *, world: Collisions) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Start and look of a clip, and its class names. Coordinates are (x, y), y downwards, in fractions of the side.

    `label` is tempo_spin; `appearance` the shapes present, in alphabetical order.
    """
    n = world.sprites
    tempo, spin = TEMPI[rng.integers(len(TEMPI))], SPINS[rng.integers(len(SPINS))]
    classes = rng.permutation(len(APPEARANCES))[:n]
    velocity = rng.normal(size=(n, 2))
    speed = world.speed[("slow", "medium", "fast").index(tempo)]
    tint = rng.normal(size=(n, 3))
    scene = {"classes": classes, "start": draw_places(rng, world=world),
             "velocity": velocity * (speed * math.sqrt(n / np.square(velocity).sum())),
             "turn": rng.uniform(0, 2 * math.pi, n), "turning": rng.uniform(*world.turning, n) * (1 if spin == "right" else -1),
             "wave": rng.uniform(*world.grating, n), "phase": rng.uniform(0, 2 * math.pi, n), "grain": rng.uniform(0, 2 * math.pi, n),
             "base": rng.uniform(0.3, 0.7, (n, 3)), "tint": tint / np.abs(tint).max(-1, keepdims=True) * rng.uniform(*world.contrast, (n, 1)),
             "slope": np.array(rng.uniform(0, 2 * math.pi)), "ground": rng.uniform(0.3, 0.7, 3),
             "rise": rng.choice([-1.0, 1.0], 3) * rng.uniform(0.1, 0.25, 3)}
    present = "_".join(sorted(APPEARANCES[c] for c in classes))
    return scene, {"label": f"{tempo}_{spin}", "appearance": present, "tempo": tempo, "spin": spin}


def draw_places(rng: np.random.Generator, /, *, world: Collisions) -> np.ndarray:
    """Centres f64 [n 2], uniform over those where no two sprites overlap: the distribution that the motion keeps."""
    for _ in range(ATTEMPTS):
        places = rng.uniform(world.radius, 1 - world.radius, (world.sprites, 2))
        if all(np.hypot(*(places[a] - places[b])) > 2 * world.radius for a, b in itertools.combinations(range(world.sprites), 2)):
            return places
    raise UserError(f"{world.sprites} sprites of radius {world.radius} found no room in {ATTEMPTS} draws; make them fewer or smaller")


def next_event(place: np.ndarray, velocity: np.ndarray, /, *, radius: float) -> tuple[float, int, int]:
    """(seconds from now, sprite, the sprite it meets or -1 - axis for a wall) of what happens first."""
    best = (math.inf, 0, 0)
    for a, axis in itertools.product(range(len(place)), (0, 1)):
        v = velocity[a, axis]
        if v:
            best = min(best, (max(((1 - radius if v > 0 else radius) - place[a, axis]) / v, 0.0), a, -1 - axis))
    for a, b in itertools.combinations(range(len(place)), 2):
        apart, closing = place[b] - place[a], velocity[b] - velocity[a]
        along, square = apart @ closing, closing @ closing
        under = along**2 - square * (apart @ apart - 4 * radius**2)
        if along < 0 <= under:
            best = min(best, (max((-along - math.sqrt(under)) / square, 0.0), a, b))
    return best


def simulate(scene: dict[str, np.ndarray], /, *, world: Collisions) -> tuple[np.ndarray, Events]:
    """(centres f64 [T n 2] at times t / fps, events): free flight between exact times of elastic bounces and meetings."""
    place, velocity, now = scene["start"].copy(), scene["velocity"].copy(), 0.0
    pitch = [PITCHES[APPEARANCES[c]] for c in scene["classes"]]
    centres, rows, frame = np.empty((world.frames, world.sprites, 2)), [], 0
    while True:
        wait, a, b = next_event(place, velocity, radius=world.radius)
        while frame < world.frames and frame / world.fps <= now + wait:
            centres[frame] = place + velocity * (frame / world.fps - now)
            frame += 1
        now += wait
        if now >= world.duration:
            break
        place += velocity * wait
        if b < 0:
            velocity[a, -1 - b] *= -1
            rows.append((now, a, 0.0))
        else:
            normal = (place[b] - place[a]) / np.hypot(*(place[b] - place[a]))
            swap = ((velocity[a] - velocity[b]) @ normal) * normal  # equal masses exchange the speed along the line between them
            velocity[a] -= swap
            velocity[b] += swap
            rows += [(now, a, pitch[a]), (now, b, pitch[b])]
    table = np.array(rows, np.float64).reshape(-1, 3)
    return centres, Events(time=table[:, 0], sprite=table[:, 1].astype(np.int64), pitch=table[:, 2])


def sound(events: Events, /, *, world: Collisions, rng: np.random.Generator) -> np.ndarray:
    """f32 [samples] in [-1, 1]: a decaying tone from the time of every sounding row on, over a faint noise."""
    times = np.arange(round(world.duration * world.audio_rate)) / world.audio_rate
    wave = world.noise * rng.standard_normal(len(times))
    for time, pitch in zip(events.time[events.sounding], events.pitch[events.sounding], strict=True):
        first, last = np.searchsorted(times, (time, time + world.tone))
        after = times[first:last] - time
        wave[first:last] += world.loudness * np.minimum(after / ATTACK, 1) * np.exp(-after / world.decay) * np.sin(2 * math.pi * pitch * after)
    return np.clip(wave, -1, 1).astype(np.float32)


def turns(scene: dict[str, np.ndarray], /, *, world: Collisions) -> np.ndarray:
    """Angles f64 [T n] of the sprites."""
    return scene["turn"] + scene["turning"] * (np.arange(world.frames) / world.fps)[:, None]


def local(scene: dict[str, np.ndarray], sprite: int, /, *, world: Collisions) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates (x, y) f32 [T H W] relative to a sprite's centre, in axes that turn with it."""
    pixel = (np.arange(world.size) + 0.5) / world.size
    offset = (pixel[None, None] - scene["places"][:, sprite, :, None]).astype(np.float32)
    angle = turns(scene, world=world)[:, sprite, None, None]
    c, s = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    x, y = offset[:, 0, None, :], offset[:, 1, :, None]
    return c * x + s * y, c * y - s * x


def coverage(x: np.ndarray, y: np.ndarray, sprite: int, /, *, scene: dict[str, np.ndarray], world: Collisions) -> np.ndarray:
    """Opacity f32 [T H W] of a sprite in [0, 1] at its local coordinates."""
    field = shapes.distance(x, y, appearance=APPEARANCES[scene["classes"][sprite]], radius=world.radius)
    return np.clip(0.5 - field / np.float32(world.edge), 0, 1)


def render(scene: dict[str, np.ndarray], /, *, world: Collisions) -> np.ndarray:
    """u8 [T H W 3]: a linear ramp of colour, then the sprites in order, each with a grating that turns with it."""
    pixel = (np.arange(world.size) + 0.5) / world.size - 0.5
    ramp = pixel[None, :] * math.cos(scene["slope"]) + pixel[:, None] * math.sin(scene["slope"])
    ground = (scene["ground"] + 2 * ramp[..., None] * scene["rise"]).astype(np.float32)
    image = np.broadcast_to(ground, (world.frames, world.size, world.size, 3)).copy()
    for sprite in range(world.sprites):
        x, y = local(scene, sprite, world=world)
        alpha = coverage(x, y, sprite, scene=scene, world=world)
        inside, grain = alpha > 0, float(scene["grain"][sprite])
        along = np.float32(math.cos(grain)) * x[inside] + np.float32(math.sin(grain)) * y[inside]
        shade = np.sin(np.float32(2 * math.pi / scene["wave"][sprite]) * along + np.float32(scene["phase"][sprite]))
        colour = scene["base"][sprite].astype(np.float32) + shade[:, None] * scene["tint"][sprite].astype(np.float32)
        image[inside] += alpha[inside][:, None] * (colour - image[inside])
    return np.uint8(np.round(255 * image.clip(0, 1)))


def truth(clip: Clip, /, *, world: Collisions) -> dict[str, np.ndarray]:
    """Exact truth at the rendered size.

    `objects` u8 [T H W] instance id (0 = background); `classes` u8 [n] place in APPEARANCES; `boxes` f32 [T n 4] tight
    (x1, y1, x2, y2) of the visible pixels and `present` bool [T n]; `flow_fwd` f32 [T-1 H W 2] displacement in pixels to
    the next frame, x then y; `event_time` f32 [E] seconds, `event_object` u8 [E] instance id, `event_pitch` f32 [E] Hz,
    0 for a silent bounce off a wall.
    """
    scene, n = clip.scene, world.sprites
    objects = np.zeros((world.frames, world.size, world.size), np.uint8)
    for sprite in range(n):
        objects[coverage(*local(scene, sprite, world=world), sprite, scene=scene, world=world) > 0.5] = sprite + 1
    boxes, present = np.zeros((world.frames, n, 4), np.float32), np.zeros((world.frames, n), bool)
    for t, sprite in itertools.product(range(world.frames), range(n)):
        rows, columns = np.nonzero(objects[t] == sprite + 1)
        if len(rows):
            present[t, sprite] = True
            boxes[t, sprite] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return {"objects": objects, "classes": scene["classes"].astype(np.uint8), "boxes": boxes, "present": present,
            "flow_fwd": flow(scene, objects, world=world), "event_time": clip.events.time.astype(np.float32),
            "event_object": (clip.events.sprite + 1).astype(np.uint8), "event_pitch": clip.events.pitch.astype(np.float32)}


def flow(scene: dict[str, np.ndarray], objects: np.ndarray, /, *, world: Collisions) -> np.ndarray:
    """f32 [T-1 H W 2]: the rigid motion of each object's pixels to the next frame; 0 for the background."""
    out = np.zeros((*objects[1:].shape, 2), np.float32)
    angle = turns(scene, world=world)
    for sprite in range(world.sprites):
        t, y, x = np.nonzero(objects[:-1] == sprite + 1)
        place, step = scene["places"][t, sprite], angle[t + 1, sprite] - angle[t, sprite]
        dx, dy = (x + 0.5) / world.size - place[:, 0], (y + 0.5) / world.size - place[:, 1]
        moved = np.stack([np.cos(step) * dx - np.sin(step) * dy, np.sin(step) * dx + np.cos(step) * dy], -1) + scene["places"][t + 1, sprite]
        out[t, y, x] = (moved - place - np.stack([dx, dy], -1)) * world.size
    return out
