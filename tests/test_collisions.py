"""The world of colliding shapes: physics, sound, truth, and what its label and its tones can be read from."""

import dataclasses
import hashlib
import itertools

import numpy as np
import pytest

from videomae_jax.data import collisions
from videomae_jax.data.collisions import APPEARANCES, PITCHES, TEMPI, Collisions
from videomae_jax.errors import UserError

WORLD = Collisions()
SMALL = Collisions(size=32, frames=16, fps=8)
GOLDEN = {  # clip 0 of SMALL, seed 7
    "events": "f298f83e87629740", "labels": {"label": "fast_right", "appearance": "disc_square_star", "tempo": "fast", "spin": "right"},
    "video": [[108.859, 106.740, 116.703, 105.083], [107.109, 115.589, 110.224, 105.083], [107.109, 106.422, 112.448, 105.083]]}


def played(index: int, /, *, world: Collisions = WORLD, seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, str], collisions.Events]:
    """Scene, labels and events of a clip, without drawing it."""
    scene, labels = collisions.draw_scene(np.random.Generator(np.random.Philox(key=[seed, index])), world=world)
    scene["places"], events = collisions.simulate(scene, world=world)
    return scene, labels, events


def test_a_clip_is_a_function_of_seed_and_index() -> None:
    """The same arrays in any order; another seed or index gives others; golden hashes guard against drift."""
    first = [collisions.clip(i, world=SMALL, seed=7) for i in (0, 1)]
    again = [collisions.clip(i, world=SMALL, seed=7) for i in (1, 0)][::-1]
    other = collisions.clip(0, world=SMALL, seed=8)
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a.video, b.video) and np.array_equal(a.audio, b.audio) and a.labels == b.labels
    assert not np.array_equal(first[0].video, first[1].video) and not np.array_equal(first[0].video, other.video)
    assert first[0].video.shape == (16, 32, 32, 3) and first[0].video.dtype == np.uint8
    assert first[0].audio.shape == (32000,) and first[0].audio.dtype == np.float32
    # The last bits of sines may differ between builds: the picture is compared coarsely, the events to a microsecond.
    events = first[0].events
    assert hashlib.sha256(np.round(events.time, 6).tobytes() + events.sprite.tobytes() + events.pitch.tobytes()).hexdigest()[:16] == GOLDEN["events"]
    coarse = first[0].video.reshape(16, 4, 8, 4, 8, 3).mean((2, 4, 5))
    np.testing.assert_allclose(coarse[[0, 5, 15]].reshape(3, 16)[:, ::5], GOLDEN["video"], atol=0.05)
    assert first[0].labels == GOLDEN["labels"]


def test_free_flight_between_elastic_events() -> None:
    """Sprites stay in the box and apart; energy stays; places follow from the events, frame by frame."""
    for index in range(40):
        scene, _, events = played(index)
        places = scene["places"]
        assert places.min() >= WORLD.radius - 1e-9 and places.max() <= 1 - WORLD.radius + 1e-9
        for a, b in itertools.combinations(range(WORLD.sprites), 2):
            assert np.hypot(*(places[:, a] - places[:, b]).T).min() >= 2 * WORLD.radius - 1e-9
        assert (np.diff(events.time) >= 0).all() and (events.time < WORLD.duration).all() and (events.time > 0).all()
        # Between two frames without any event all sprites fly straight, at the speed the label's energy allows.
        frames = np.arange(WORLD.frames) / WORLD.fps
        quiet = [t for t in range(WORLD.frames - 1) if not ((events.time > frames[t]) & (events.time <= frames[t + 1])).any()]
        energy = [np.square((places[t + 1] - places[t]) * WORLD.fps).sum() for t in quiet]
        np.testing.assert_allclose(energy, np.square(scene["velocity"]).sum(), rtol=1e-9)


def test_momentum_is_exchanged_at_a_meeting() -> None:
    """Two sprites head on swap their velocities, at the time that geometry gives; a wall turns one component round."""
    world = Collisions(sprites=2, radius=0.1, frames=16, fps=16)
    scene = {"classes": np.array([0, 2]), "start": np.array([[0.3, 0.5], [0.7, 0.5]]), "velocity": np.array([[0.5, 0.0], [-0.5, 0.0]])}
    places, events = collisions.simulate(scene, world=world)
    np.testing.assert_allclose(events.time[:2], 0.2, atol=1e-12)
    assert events.sprite[:2].tolist() == [0, 1] and events.pitch[:2].tolist() == [PITCHES["disc"], PITCHES["star"]]
    np.testing.assert_allclose(places[8], [[0.25, 0.5], [0.75, 0.5]], atol=1e-12)  # 0.2 s there, 0.3 s back
    assert events.time[2:].tolist() == pytest.approx([0.8, 0.8]) and not events.sounding[2:].any()


def test_every_meeting_sounds_at_its_time_and_pitch() -> None:
    """The waveform is silent before a tone, is loud within 3 ms of the meeting and rings at the pitches of the two."""
    world, checked = dataclasses.replace(WORLD, noise=0.0), 0
    for index in range(12):
        clip = collisions.clip(index, world=world, seed=1)
        times = np.unique(clip.events.time[clip.events.sounding])
        lonely = [t for t in times if np.abs(times - t)[times != t].min(initial=9) > world.tone + 0.01 and t + 0.06 < world.duration]
        for time in lonely:
            first = int(np.ceil(time * world.audio_rate))
            assert not clip.audio[max(first - 100, 0): first].any() and np.abs(clip.audio[first: first + 48]).max() > 0.15
            spectrum = np.abs(np.fft.rfft(clip.audio[first: first + 800] * np.hanning(800)))
            heard = [p for p in PITCHES.values() if spectrum[round(p / 20) - 1: round(p / 20) + 2].max() > 0.3 * spectrum.max()]
            assert heard == sorted(clip.events.pitch[clip.events.time == time])
            checked += 1
    assert checked > 20
    assert np.abs(collisions.clip(0, world=WORLD, seed=1).audio).max() <= 1


def test_truth_agrees_with_the_picture() -> None:
    """Boxes are those of the objects, events are in the clip, flow moves objects onto themselves."""
    clip = collisions.clip(5, world=WORLD, seed=0)
    truth = collisions.truth(clip, world=WORLD)
    assert truth["objects"].shape == clip.video.shape[:3] and truth["present"].all()
    assert [APPEARANCES[c] for c in sorted(truth["classes"])] == clip.labels["appearance"].split("_")
    for t, n in ((0, 0), (9, 1), (31, 2)):
        rows, columns = np.nonzero(truth["objects"][t] == n + 1)
        assert truth["boxes"][t, n].tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    heard = truth["event_pitch"] > 0
    assert heard.any() and all(PITCHES[APPEARANCES[truth["classes"][o - 1]]] == p for o, p in
                               zip(truth["event_object"][heard], truth["event_pitch"][heard], strict=True))
    inside = 0.0
    flow = truth["flow_fwd"]
    assert not flow[truth["objects"][:-1] == 0].any()
    for t in range(0, 31, 5):
        y, x = np.nonzero(truth["objects"][t])
        there = np.round(np.stack([x, y], -1) + flow[t, y, x]).astype(int).clip(0, WORLD.size - 1)
        inside += np.mean(truth["objects"][t + 1][there[:, 1], there[:, 0]] == truth["objects"][t, y, x]) / 7
        before, after = clip.video[t, y, x].astype(float), clip.video[t + 1, there[:, 1], there[:, 0]].astype(float)
        # The grating turns with the sprite: followed by the flow the picture changes less than where it stands.
        assert np.abs(after - before).mean() < 0.6 * np.abs(clip.video[t + 1, y, x] - before).mean()
    assert inside > 0.93


def held_out(features: np.ndarray, targets: np.ndarray, /) -> float:
    """Accuracy of ridge regression onto one-hot classes on the second half of the rows."""
    half, classes = len(features) // 2, targets.max() + 1
    x = (features - features[:half].mean(0)) / (features[:half].std(0) + 1e-6)
    x = np.concatenate([x, np.ones((len(x), 1))], 1)
    weights = np.linalg.solve(x[:half].T @ x[:half] + half * 0.1 * np.eye(x.shape[1]), x[:half].T @ np.eye(classes)[targets[:half]])
    return float(((x[half:] @ weights).argmax(-1) == targets[half:]).mean())


def test_label_shows_in_the_motion_and_not_in_a_frame() -> None:
    """One frame gives chance for tempo and spin, exact places and turns or pixels alike; two frames or the sound give the tempo."""
    count = 1200
    clips_ = [played(i) for i in range(count)]
    tempo = np.array([TEMPI.index(labels["tempo"]) for _, labels, _ in clips_])
    spin = np.array([collisions.SPINS.index(labels["spin"]) for _, labels, _ in clips_])
    chance = 3 * np.sqrt(1 / 3 * 2 / 3 / (count / 2))  # three standard deviations of a guess
    for frame in (0, 16, 31):
        places = np.stack([scene["places"][frame] for scene, _, _ in clips_])
        gaps = np.stack([np.hypot(*(places[:, a] - places[:, b]).T) for a, b in ((0, 1), (0, 2), (1, 2))], -1)
        turns = np.stack([collisions.turns(scene, world=WORLD)[frame] for scene, _, _ in clips_])
        still = np.concatenate([places.reshape(count, -1), np.square(places).reshape(count, -1), gaps, 1 / gaps, np.cos(turns), np.sin(turns)], -1)
        assert abs(held_out(still, tempo) - 1 / 3) < chance and abs(held_out(still, spin) - 1 / 2) < chance
    assert all((scene["turning"] > 0).all() == (labels["spin"] == "right") == (scene["turning"] > 0).any() for scene, labels, _ in clips_)
    moved = np.stack([np.sqrt(np.square(np.diff(scene["places"], axis=0)).sum((1, 2)).max()) for scene, _, _ in clips_]) * WORLD.fps
    assert held_out(moved[:, None] > np.sqrt(3) * np.array([0.575, 0.9]), tempo) > 0.95  # half way between the speeds
    heard = np.array([[len(np.unique(events.time[events.sounding]))] for _, _, events in clips_], float)
    assert held_out(np.concatenate([heard, heard**2], -1), tempo) > 0.5
    world = dataclasses.replace(SMALL, frames=9)  # 8 frames a second, as SMALL: frame 8 is at 1 s
    drawn = [collisions.clip(i, world=world, seed=3) for i in range(240)]
    frames = np.stack([c.video[8] for c in drawn]).reshape(240, 8, 4, 8, 4, 3).mean((2, 4)).reshape(240, -1)
    for key, names in (("tempo", TEMPI), ("spin", collisions.SPINS)):
        guess = held_out(frames, np.array([names.index(c.labels[key]) for c in drawn]))
        assert guess < 1 / len(names) + 3 * np.sqrt(0.25 / 120)


def test_a_hidden_tone_is_told_by_the_picture_only() -> None:
    """Which pitches sound in a slot of 125 ms: who would run into whom tells, the other slots do not."""
    slots, quiet, seen, target = 16, [], [], []
    for index in range(900):
        scene, labels, events = played(index, seed=2)
        if labels["tempo"] != "medium":
            continue
        table = np.zeros((slots, len(APPEARANCES)))
        on = events.sounding
        table[(events.time[on] / WORLD.duration * slots).astype(int), np.searchsorted(list(PITCHES.values()), events.pitch[on])] = 1
        for slot in (5, 8, 11):
            places, told = scene["places"], np.zeros((2, len(APPEARANCES)))
            for t, (a, b) in itertools.product((2 * slot, 2 * slot + 1), itertools.combinations(range(WORLD.sprites), 2)):
                for way, ahead in enumerate((2 * places[t] - places[t - 1], 2 * places[t + 1] - places[t + 2])):
                    # In free flight from the frames before (or back from those after) the two would overlap.
                    overlap = 2 * WORLD.radius - np.hypot(*(ahead[a] - ahead[b]))
                    told[way, scene["classes"][[a, b]]] = np.maximum(told[way, scene["classes"][[a, b]]], 1 / (1 + np.exp(-overlap / 0.005)))
            present = np.isin(np.arange(len(APPEARANCES)), scene["classes"]).astype(float)
            quiet.append(np.concatenate([np.delete(table, slot, 0).ravel(), present]))
            seen.append(np.concatenate([told.ravel(), told.prod(0)]))
            target.append(table[slot])
    target = np.array(target)

    def explained(features: list[np.ndarray]) -> float:
        """Held-out share of the variance that ridge regression explains."""
        x = np.concatenate([np.array(features), np.ones((len(features), 1))], 1)
        half = len(x) // 2
        weights = np.linalg.solve(x[:half].T @ x[:half] + 20 * np.eye(x.shape[1]), x[:half].T @ target[:half])
        error = np.square(target[half:] - x[half:] @ weights).sum()
        return 1 - error / np.square(target[half:] - target[:half].mean(0)).sum()

    assert explained(quiet) < 0.1 < 0.5 < explained(seen)


def test_mistakes_are_named() -> None:
    """A UserError with the value and what is allowed."""
    for change in ({"sprites": 1}, {"sprites": 5}, {"radius": 0.3}):
        with pytest.raises(UserError, match="allowed"):
            Collisions(**change)
    with pytest.raises(UserError, match="found no room"):
        collisions.clip(0, world=Collisions(sprites=4, radius=0.249), seed=0)
