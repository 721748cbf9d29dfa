"""Cartoon faces: purity, exact part maps, labels that need video, forgeries that stay where they say."""

import collections
import dataclasses
import hashlib

import numpy as np
import pytest

from videomae_jax.data import face_drawing, faces, synthetic
from videomae_jax.errors import UserError

SMALL = faces.Faces(size=32, frames=12)
PALETTE = {"background": (0.0, 0.0, 1.0), "skin": (0.0, 0.7, 0.0), "brow": (1.0, 1.0, 0.0), "iris": (0.0, 1.0, 1.0), "lip": (1.0, 0.0, 1.0), "hair": (1.0, 0.5, 0.0)}


def ridge_accuracy(features: np.ndarray, labels: list[str], /, *, penalty: float) -> float:
    """Held-out accuracy of a ridge classifier with standardised features, trained on the first two thirds."""
    classes, numbers = np.unique(labels, return_inverse=True)
    split = 2 * len(labels) // 3
    mean, std = features[:split].mean(0), features[:split].std(0) + 1e-6
    x = (features - mean) / std
    target = np.eye(len(classes))[numbers[:split]]
    gram = x[:split] @ x[:split].T
    dual = np.linalg.solve(gram + penalty * x.shape[1] * np.eye(split), target - target.mean(0))
    return float((np.argmax(x[split:] @ (x[:split].T @ dual), 1) == numbers[split:]).mean())


@pytest.fixture(scope="module")
def crowd() -> list[faces.Clip]:
    """720 small clips, each of another person."""
    world = dataclasses.replace(SMALL, clips_each=1)
    return [faces.clip(i, world=world, seed=11) for i in range(720)]


def test_clips_are_pure_functions_of_seed_and_index() -> None:
    """In any order, with any other clips made before; another seed or index gives other arrays."""
    once = {i: faces.clip(i, world=SMALL, seed=3) for i in (0, 5, 2)}
    for i in (2, 0, 5):
        again = faces.clip(i, world=SMALL, seed=3)
        np.testing.assert_array_equal(again.video, once[i].video)
        np.testing.assert_array_equal(again.parts, once[i].parts)
        assert again.labels == once[i].labels
    assert (faces.clip(0, world=SMALL, seed=4).video != once[0].video).any()
    assert (once[0].video != once[2].video).any()


def test_golden_hash() -> None:
    """The pixels of a clip, exactly: drawing uses only operations that round alike on every processor."""
    clip = faces.clip(7, world=faces.Faces(size=64, frames=6, forged=1.0), seed=1)
    assert clip.labels["forged"] == "both"
    assert hashlib.sha256(clip.video.tobytes()).hexdigest()[:16] == "c3480bc3481eaded"
    assert hashlib.sha256(clip.parts.tobytes() + clip.forged_mask.tobytes()).hexdigest()[:16] == "035058b0dad70560"


def painted(person: face_drawing.Person) -> face_drawing.Canvas:
    """A person of pure colours, large, with an open mouth and unlit, on pure blue."""
    count = 5
    still, step = np.zeros(count, np.float32), np.linspace(-0.1, 0.1, count).astype(np.float32)
    ones = np.ones(count, np.float32)
    pose = face_drawing.Pose(x=0.5 + step, y=0.5 - step, cosine=ones, sine=still, scale=0.38)
    acting = face_drawing.Acting(yaw=step, pitch=-step, smile=step, opening=ones * 0.3, narrow=ones, brow=still, frown=3 * step, lids=ones, gaze=still)
    ground = np.broadcast_to(np.float32(PALETTE["background"])[:, None, None], (3, 256, 256))
    page = face_drawing.canvas(ground, pose)
    face_drawing.face(page, person, acting, light=(0.0, 0.0))
    return page


@pytest.mark.parametrize("style", faces.STYLES)
def test_part_maps_are_where_the_colours_are(style: str) -> None:
    """Away from borders, a pixel has a colour of its part, and a pixel of that colour belongs to the part."""
    person, _ = faces.draw_person(np.random.default_rng(0))
    person = dataclasses.replace(person, style=style, **{k: PALETTE[k] for k in ("skin", "brow", "iris", "lip", "hair")})
    page = painted(person)
    red, green, blue = person.skin
    colours = {"background": [PALETTE["background"]], "skin": [person.skin, (0, 0.63, 0)], "brow": [person.brow], "nose": [(0.92 * red, 0.74 * green, 0.7 * blue)],
               "eye": [person.iris, (0.1, 0.07, 0.07), (0.97, 0.97, 0.95), (0.04, 0.04, 0.05)], "upper lip": [(0.82, 0, 0.82)],
               "inner mouth": [(0.28, 0.05, 0.07)], "lower lip": [person.lip], "hair": [tuple(f * c for c in person.hair) for f in (0.8, 0.9, 1.0, 1.1, 1.2)]}
    table = [(name, c) for name, group in colours.items() for c in group]
    distance = np.stack([np.abs(page.image - np.float32(c)[:, None, None, None]).sum(0) for _, c in table])
    names = np.array([name for name, _ in table])[distance.argmin(0)]
    told = np.array([part.removeprefix("right ").removeprefix("left ") for part in face_drawing.PARTS])[page.parts]
    pads = np.pad(page.parts, ((0, 0), (2, 2), (2, 2)), mode="edge")
    inner = np.logical_and.reduce([pads[:, 2 + dy: 258 + dy, 2 + dx: 258 + dx] == page.parts for dy in (-2, 0, 2) for dx in (-2, 0, 2)])
    pure = inner & (distance.min(0) < 0.12)  # streaks of hair lie between the listed shades
    assert pure.sum() > 0.97 * inner.sum()
    np.testing.assert_array_equal(names[pure], told[pure])
    expected = set(range(len(faces.PARTS))) - ({faces.PARTS.index("hair")} if style == "bald" else set())
    assert set(np.unique(page.parts)) == expected
    for side, other in (("right eye", "left eye"), ("right brow", "left brow")):
        columns = [np.nonzero(page.parts == faces.PARTS.index(part))[2].mean() for part in (side, other)]
        assert columns[0] < columns[1], "the person's right is on the left of the picture"


def test_a_part_reaches_to_half_coverage() -> None:
    """The area of a painted ellipse on the map is that of geometry to 0.5 %, and so is its mean brightness."""
    still, size, scale = np.zeros(1, np.float32), 256, 0.4
    pose = face_drawing.Pose(x=still + 0.5, y=still + 0.5, cosine=still + np.float32(0.8), sine=still + np.float32(0.6), scale=scale)
    page = face_drawing.canvas(np.zeros((3, size, size), np.float32), pose)
    page.paint(lambda u, v: face_drawing.ellipse(u, v, a=0.6, b=0.3), (-0.7, -0.7, 0.7, 0.7), (1.0, 1.0, 1.0), 6)
    area = np.pi * 0.6 * 0.3 * (scale * size) ** 2
    assert abs((page.parts == 6).sum() / area - 1) < 0.005
    assert abs(page.image[0].sum() / area - 1) < 0.005


@pytest.mark.parametrize("crop", faces.CROPS)
def test_windows_cut_nothing(crop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Painting each layer on its window alone gives the pixels of painting it on the whole frame."""
    world = faces.Faces(size=64, frames=8, clips_each=1, crop=crop, forged=0.6)
    made = [faces.clip(i, world=world, seed=8) for i in range(25)]
    monkeypatch.setattr(face_drawing.Canvas, "window", lambda self, box: (slice(0, 64), slice(0, 64)))
    for i, clip in enumerate(made):
        whole = faces.clip(i, world=world, seed=8)
        np.testing.assert_array_equal(clip.video, whole.video)
        np.testing.assert_array_equal(clip.parts, whole.parts)


def test_a_closed_eye_leaves_a_line() -> None:
    """Blinks close the lids for a frame or two; both eyes stay on the map."""
    areas = []
    for i in range(12):
        clip = faces.clip(i, world=faces.Faces(size=128, frames=24), seed=0)
        areas.append((clip.parts == faces.PARTS.index("left eye")).sum((1, 2)))
    areas = np.array(areas)
    assert areas.min() > 0
    assert (areas.min(1) < 0.5 * np.median(areas, 1)).mean() > 0.5, "most clips of two seconds have a blink"


def test_background_share_of_patches() -> None:
    """Background touches far more than a tenth of the 14 x 14 patches of a generous crop, less than a tenth of a tight one."""
    for crop, low, high in (("generous", 0.3, 0.9), ("tight", 0.0, 0.1)):
        for i in range(0, 80, 4):
            parts = faces.clip(i, world=faces.Faces(size=56, frames=8, crop=crop), seed=3).parts
            share = (parts.reshape(8, 14, 4, 14, 4) == 0).any((2, 4)).mean((1, 2))
            assert low <= share.min() and share.max() <= high, (crop, i)


def test_boxes_are_tight() -> None:
    """Shrinking a box by one pixel on any side loses a pixel of the face; growing it gains none."""
    clip = faces.clip(2, world=SMALL, seed=0)
    truth = faces.truth(clip, world=SMALL)
    assert truth["present"].all()
    for parts, box in zip(clip.parts, truth["boxes"][:, 0].astype(int), strict=True):
        inside = (parts > 0) & (parts < 10)
        x1, y1, x2, y2 = box
        assert inside[y1:y2, x1:x2].sum() == inside.sum()
        for edge in (inside[y1, x1:x2], inside[y2 - 1, x1:x2], inside[y1:y2, x1], inside[y1:y2, x2 - 1]):
            assert edge.any()


def test_identities_stay_within_a_split() -> None:
    """An identity spans consecutive clips with one set of attributes; no split shares one with another."""
    attributes = ("hair", "style", "glasses", "lipstick", "identity")
    plan = synthetic.Plan(world=faces.Faces(size=16, frames=2, clips_each=3), train=6, val=6, test=6)
    seen = collections.defaultdict(set)
    for _, split, index in plan.clips():
        labels = synthetic.example(index, plan=plan).labels
        seen[split].add(tuple(labels[a] for a in attributes))
    assert all(2 <= len(people) <= 3 for people in seen.values()), "six clips, three an identity"
    owners = collections.Counter(identity for people in seen.values() for identity in {p[-1] for p in people})
    assert set(owners.values()) == {1}
    for people in seen.values():
        assert len({p[-1] for p in people}) == len(people), "an identity keeps its attributes"


def test_the_gesture_needs_several_frames(crowd: list[faces.Clip]) -> None:
    """A ridge classifier on one frame is at chance (4 classes, 240 held-out clips: 25 +- 2.8 %); on the change over time it is far above."""
    gestures = [clip.labels["gesture"] for clip in crowd]
    one = np.stack([clip.video[5].astype(np.float64).ravel() for clip in crowd]) / 255
    change = np.stack([np.std(clip.video.astype(np.float64), axis=0).mean(-1).reshape(8, 4, 8, 4).mean((1, 3)).ravel() for clip in crowd])
    assert ridge_accuracy(one, gestures, penalty=1.0) < 0.25 + 4 * 0.028
    assert ridge_accuracy(change, gestures, penalty=0.1) > 0.7


def test_the_expression_shows_in_a_frame(crowd: list[faces.Clip]) -> None:
    """The same classifier on one frame, features aligned by the part maps, reads the expression: the control of the test above."""
    shape = np.stack([parts_shape(clip, frame=5) for clip in crowd])
    assert ridge_accuracy(shape, [clip.labels["expression"] for clip in crowd], penalty=0.01) > 0.6
    assert ridge_accuracy(shape, [clip.labels["gesture"] for clip in crowd], penalty=0.01) < 0.25 + 4 * 0.028


def parts_shape(clip: faces.Clip, /, *, frame: int) -> np.ndarray:
    """Areas of the parts and spread and place of each within the face."""
    out = []
    for part in range(1, 10):
        rows, columns = np.nonzero(clip.parts[frame] == part)
        out += [len(rows), *((rows.mean(), columns.mean(), rows.std(), columns.std()) if len(rows) else (0, 0, 0, 0))]
    return np.array(out, np.float64)


@pytest.fixture(scope="module")
def pairs() -> list[tuple[faces.Clip, faces.Clip]]:
    """Real clips and the same ones forged."""
    world = faces.Faces(size=64, frames=6, clips_each=1)
    return [(faces.clip(i, world=world, seed=2), faces.clip(i, world=dataclasses.replace(world, forged=1.0), seed=2)) for i in range(60)]


def test_a_forgery_changes_its_region_only(pairs: list[tuple[faces.Clip, faces.Clip]]) -> None:
    """Real and forged versions agree in every label but the forgery and in every pixel away from the mask, and differ inside it."""
    kinds = collections.Counter()
    for real, forged in pairs:
        assert real.labels["forged"] == "none" and real.labels["authentic"] == "real" and not real.forged_mask.any()
        assert {k: v for k, v in real.labels.items() if k not in ("forged", "authentic")} == {
            k: v for k, v in forged.labels.items() if k not in ("forged", "authentic")}
        kinds[forged.labels["forged"]] += 1
        reach = 2
        pads = np.pad(forged.forged_mask, ((0, 0), (reach, reach), (reach, reach)))
        size = real.parts.shape[1]
        near = np.logical_or.reduce([pads[:, y: y + size, x: x + size] for y in range(2 * reach + 1) for x in range(2 * reach + 1)])
        np.testing.assert_array_equal(forged.video[~near], real.video[~near])
        np.testing.assert_array_equal(forged.parts[~forged.forged_mask], real.parts[~forged.forged_mask])
        assert (forged.video != real.video)[forged.forged_mask].mean() > 0.02
        assert 0.05 < forged.forged_mask.mean() < 0.4
        white = (forged.video.min(-1) > 235) & forged.forged_mask
        assert np.isin(forged.parts[white], [faces.PARTS.index("right eye"), faces.PARTS.index("left eye")]).all(), "parts are those of the forged face"
        truth = faces.truth(forged, world=faces.Faces(size=64, frames=6))
        assert faces.FORGERIES[truth["forged"]] == forged.labels["forged"]
    assert set(kinds) == {"spatial", "temporal", "both"} and min(kinds.values()) >= 10


def test_a_temporal_forgery_flickers_and_a_spatial_one_does_not(pairs: list[tuple[faces.Clip, faces.Clip]]) -> None:
    """The second difference in time inside the region grows by temporal forgery only."""
    growth = collections.defaultdict(list)
    for real, forged in pairs:
        moved = [np.abs(np.diff(c.video.astype(np.float64), n=2, axis=0)).mean(-1)[forged.forged_mask[1:-1]].mean() for c in (forged, real)]
        growth[forged.labels["forged"]].append(moved[0] - moved[1])
    assert np.mean(growth["temporal"]) > 2 and np.mean(growth["both"]) > 2
    assert abs(np.mean(growth["spatial"])) < 0.5 * np.mean(growth["temporal"])


def test_a_temporal_forgery_plays_other_frames() -> None:
    """A mouth that opens steadily does so in the real clip, and jumps back and forth in the forged one unless the jitter is 0."""
    count, person = 16, faces.draw_person(np.random.default_rng(0))[0]
    still, ones = np.zeros(count, np.float32), np.ones(count, np.float32)
    pose = face_drawing.Pose(x=still + 0.5, y=still + 0.5, cosine=ones, sine=still, scale=0.4)
    acting = face_drawing.Acting(yaw=still, pitch=still, smile=still, opening=np.linspace(0.02, 0.4, count).astype(np.float32), narrow=ones, brow=still,
                                 frown=still, lids=ones, gaze=still)
    steps = {}
    for kind, reach in (("none", 4), ("temporal", 0), ("temporal", 4)):
        _, parts, _ = faces.forge(np.random.default_rng(1), np.zeros((3, 128, 128), np.float32), pose, person, acting, light=(0.0, 0.0), kind=kind, reach=reach)
        steps[kind, reach] = np.diff((parts == faces.PARTS.index("inner mouth")).sum((1, 2)))
    assert steps["none", 4].min() > 0 and steps["temporal", 0].min() > -5
    assert steps["temporal", 4].min() < -50


def test_the_forgery_does_not_follow_identity_or_label() -> None:
    """Attributes, expression and gesture predict nothing (300 held-out clips: 50 +- 2.9 %)."""
    world = faces.Faces(size=16, frames=2, forged=0.5)
    labels = [faces.clip(i, world=world, seed=5).labels for i in range(900)]
    keys = ("hair", "style", "glasses", "lipstick", "expression", "gesture")
    columns = [np.array([row[k] == value for row in labels], np.float64) for k in keys for value in sorted({row[k] for row in labels})]
    forged = [row["authentic"] for row in labels]
    assert 0.44 < np.mean([f == "forged" for f in forged]) < 0.56
    assert ridge_accuracy(np.stack(columns, 1), forged, penalty=0.1) < 0.5 + 4 * 0.029


def test_quality_changes_pixels_only() -> None:
    """A lower JPEG quality errs more; parts, masks and labels stay. Real and forged clips pass the same way."""
    for share in (0.0, 1.0):
        base = faces.Faces(size=64, frames=3, forged=share)
        clips = {q: faces.clip(1, world=dataclasses.replace(base, quality=q), seed=0) for q in (0, 90, 40, 10)}
        errors = [np.abs(clips[q].video.astype(int) - clips[0].video).mean() for q in (90, 40, 10)]
        assert 0 < errors[0] < errors[1] < errors[2]
        for clip in clips.values():
            np.testing.assert_array_equal(clip.parts, clips[0].parts)
            assert clip.labels == clips[0].labels


@pytest.mark.parametrize(("field", "value"), [("crop", "loose"), ("forged", 1.5), ("quality", -1), ("clips_each", 0), ("size", 8)])
def test_mistakes_name_the_value(field: str, value: object) -> None:
    """One line with the value and what is allowed."""
    with pytest.raises(UserError, match=str(value)):
        faces.Faces(**{field: value})
