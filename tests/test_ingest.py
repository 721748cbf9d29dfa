"""Crops on the device against crops on the host: pixels, draws, canvases, what is refused."""

import dataclasses
import math
import pathlib
import pickle
import re
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from test_planes import encode, scene

from videomae_jax import assembly, ingest, parallel
from videomae_jax import config as configs
from videomae_jax.data import augment, clips, index, mixture, pipeline, planes, sources, three_crop, transforms, unread
from videomae_jax.data.parts import PartClips
from videomae_jax.erasing import Erasing
from videomae_jax.errors import UserError
from videomae_jax.models import probing
from videomae_jax.objectives import probe

SIZE, FRAMES = 48, 3
CROPS = {"multi_scale": transforms.MultiScaleCrop(), "resized": transforms.RandomResizedCrop(area=(0.3, 1.0)),
         "mirrored": transforms.RandomResizedCrop(flip=1.0), "whole": transforms.WholeFrame(), "centre": transforms.CentreCrop(),
         "three": three_crop.ThreeCrop(view=2)}
COLOURS = {"601_limited": {"matrix": "bt601"}, "709_limited": {"matrix": "bt709"}, "601_full": {"matrix": "bt601", "full": True},
           "709_full": {"matrix": "bt709", "full": True}}
cut = jax.jit(ingest.cut, static_argnames="size")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A video of every matrix and range, 128 x 96; a larger and an upright one, both in split val."""
    directory = tmp_path_factory.mktemp("scenes")
    made = {name: encode(scene(width=128, height=96), **how) for name, how in COLOURS.items()}
    made |= {"large": encode(scene(width=320, height=240, cell=40)), "upright": encode(scene(width=96, height=128))}
    for name, data in made.items():
        (directory / f"{name}.mkv").write_bytes(data)
    lines = ["path,label,split", *(f"{name}.mkv,x,{'train' if name in COLOURS else 'val'}" for name in made)]
    (directory / "labels.csv").write_text("\n".join(lines))
    index.write(index.build(directory, labels=directory / "labels.csv"), directory / "index.parquet")
    return directory


def source(folder: pathlib.Path, /, **kw: Any) -> sources.VideoClips:
    """Clips of the scenes."""
    options = {"frames": FRAMES, "size": SIZE, "repeats": 2, "sampling": clips.DenseRandom(stride=1), "canvas": (96, 128)} | kw
    return sources.VideoClips(index=str(folder / "index.parquet"), **options)


def both(made: sources.VideoClips, row: int, /, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`video` [K T size size 3] of a row from the host and from the device; checks that both leave the generator in the same state."""
    rngs = [np.random.default_rng(seed) for _ in range(2)]
    host = made.read(row, rng=rngs[0])
    shipped = planes.PlaneClips(made).read(row, rng=rngs[1])
    assert repr(rngs[0].bit_generator.state) == repr(rngs[1].bit_generator.state)
    np.testing.assert_array_equal(host["label"], shipped["label"])
    return host["video"], np.asarray(cut(shipped, size=made.size))


def difference(pair: tuple[np.ndarray, np.ndarray], /) -> np.ndarray:
    """Device minus host."""
    return pair[1].astype(float) - pair[0]


@pytest.mark.parametrize("crop", CROPS.values(), ids=CROPS)
def test_crops_are_those_of_the_host(crop: object, folder: pathlib.Path) -> None:
    """For every crop, matrix and range: within one grey level on average, without a shift of colour, from the same draws."""
    made = source(folder, crop=crop)
    for row in range(len(COLOURS)):
        for seed in range(3):
            found = difference(both(made, row, seed=seed))
            assert np.abs(found).mean() < 0.5 and np.abs(found).max() <= 4, made.name(row)
            assert np.abs(found.mean((0, 1, 2, 3))).max() < 0.2, made.name(row)


def test_weights_are_those_of_pillow() -> None:
    """Enlarging, reducing and mirroring: rows of a resized identity, where the filter sees the crop alone and where it sees the whole."""
    for start, length, size in ((3, 20, 9), (0, 32, 32), (5, 7, 16), (11, 21, 20)):
        eye = Image.fromarray(np.eye(32, dtype=np.float32)[start: start + length, start: start + length])
        expected = np.asarray(eye.resize((length, size), Image.Resampling.BILINEAR))
        values = [np.full(1, x, np.float32) for x in (start, length, start, start + length)]
        for mirrored in (False, True):
            found = np.asarray(ingest.weights(*values, np.full(1, mirrored), size=size, pixels=32))[0]
            np.testing.assert_allclose(found[:: -1 if mirrored else 1, start: start + length], expected, atol=1e-5)  # places of pixels in float32
            assert not found[:, :start].any() and not found[:, start + length:].any()
    whole = np.asarray(Image.fromarray(np.eye(32, dtype=np.float32)).resize((32, 20), Image.Resampling.BILINEAR))[5:15]
    values = [np.full(1, x, np.float32) for x in (5 * 1.6, 10 * 1.6, 0, 32)]
    np.testing.assert_allclose(np.asarray(ingest.weights(*values, np.zeros(1, bool), size=10, pixels=32))[0], whole, atol=1e-5)


def test_part_maps_follow_the_windows(folder: pathlib.Path) -> None:
    """What a source reads beside the video is the same with crops on the device, drawn under the same windows."""
    for row, name in enumerate(COLOURS):
        np.save(folder / f"{name}.npy", np.random.default_rng(row).integers(0, 9, (5, 96, 128), np.uint8))
    lines = ["path,label,split,maps", *(f"{name}.mkv,x,train,{name}.npy" for name in COLOURS)]
    (folder / "maps.csv").write_text("\n".join(lines))
    index.write(index.build(folder, labels=folder / "maps.csv"), folder / "maps.parquet")
    made = PartClips(index=str(folder / "maps.parquet"), frames=FRAMES, size=SIZE, repeats=2, sampling=clips.DenseRandom(stride=1), parts="maps",
                     crop=CROPS["mirrored"])
    shipped = ingest.placed(made, platform="gpu", batch_size=4, ways=2)
    host, device = (s.read(2, rng=np.random.default_rng(7)) for s in (made, shipped))
    assert device["parts"].shape == (2, *shipped.fields["parts"].shape) and device["parts"].any()
    np.testing.assert_array_equal(device["parts"], host["parts"])


def test_larger_and_upright_videos(folder: pathlib.Path) -> None:
    """What exceeds the canvas is resized twice, at the price of fine detail; what is smaller is padded, at none."""
    small = source(folder, split="val", canvas=(96, 128), crop=CROPS["centre"], repeats=1)
    names = [small.name(row) for row in range(2)]
    for row, name in enumerate(names):
        assert np.abs(difference(both(small, row))).mean() < (1.5 if name == "large.mkv" else 1.2)
        assert np.abs(difference(both(dataclasses.replace(small, canvas=(240, 320)), row))).mean() < 0.5
    shipped = planes.PlaneClips(dataclasses.replace(small, canvas=(240, 320))).read(names.index("upright.mkv"), rng=np.random.default_rng(0))
    assert shipped["luma"].shape == (1, FRAMES, 240, 320) and not shipped["luma"][..., 128:, :].any() and not shipped["luma"][..., 96:].any()


def test_folders_of_pictures(folder: pathlib.Path) -> None:
    """What a source decodes in its own way crosses as planes too."""

    class Folders(sources.VideoClips):
        def clip(self, row: int, /, *, rng: np.random.Generator) -> sources.Clip:
            return super().clip(row, rng=rng)._replace(video=(row,))

        def decode(self, clip: sources.Clip, /) -> np.ndarray:
            return scene(frames=len(clip.ids), width=128, height=96, cell=48)

    options = {field.name: getattr(source(folder), field.name) for field in dataclasses.fields(sources.VideoClips)}
    found = difference(both(Folders(**options), 0))
    assert np.abs(found).mean() < 1 and np.abs(found.mean((0, 1, 2, 3))).max() < 0.3


def test_only_the_union_of_the_crops_is_kept(folder: pathlib.Path) -> None:
    """A crop that fits a canvas smaller than its video is not resized on the way."""
    made = source(folder, crop=transforms.MultiScaleCrop(scales=(0.5,)), repeats=1, canvas=(48, 48))
    assert np.abs(difference(both(made, 0))).mean() < 0.5
    assert planes.PlaneClips(made).read(0, rng=np.random.default_rng(0))["box"][0, 2:].tolist() == [48, 48]


def test_derived_canvas(folder: pathlib.Path) -> None:
    """The largest frame, but no more than crops of this size need, lying like most videos; padding and larger shares by hand."""
    def facts(**kw: Any) -> tuple[Any, ...]:
        return tuple(planes.report(planes.PlaneClips(source(folder, **kw))).values())

    assert facts(canvas=(0, 0), size=224) == ("96 x 128", 0, 0)
    covered = (4 * 128 * 96 + 148 * 196 + 96 * 128) / 6
    for size in (56, 128):
        assert facts(canvas=(0, 0), split="all", size=size) == ("148 x 196", pytest.approx(1 - covered / (148 * 196)), pytest.approx(1 / 6))
    assert facts(canvas=(0, 0), split="val", size=224) == ("240 x 320", pytest.approx((1 - 96 * 128 / 240 / 320) / 2), 0)
    assert facts(split="all") == ("96 x 128", pytest.approx((1 - 96 / 128) / 6), pytest.approx(2 / 6))
    assert planes.report(source(folder)) == {}


def test_a_mixture_has_one_canvas(folder: pathlib.Path) -> None:
    """The largest of its parts, from the split it reads; rows, draws and labels are those of the mixture on the host."""
    own = {"large": source(folder, split="all", size=32, limit=2), "small": source(folder, canvas=(0, 0), size=32)}
    mixed = mixture.Concat(parts={name: mixture.Part(made) for name, made in own.items()} | {"none": mixture.Part(source(folder))}, missing=("none",), split="train")
    shipped = ingest.placed(mixed, platform="gpu", batch_size=4, ways=2)
    assert type(shipped) is mixture.Concat and shipped.fields["luma"].shape == (FRAMES, 96, 128) and len(shipped) == len(mixed)
    assert [shipped.name(r) for r in range(len(mixed))] == [mixed.name(r) for r in range(len(mixed))] and shipped.classes == mixed.classes
    assert planes.report(shipped).keys() == own.keys() and planes.report(shipped)["small"]["larger"] == 0
    host, device = (s.read(len(mixed) - 1, rng=np.random.default_rng(2)) for s in (mixed, shipped))
    assert np.abs(np.asarray(cut({k: device[k] for k in ingest.CONSUMED if k in device}, size=32)).astype(float) - host["video"]).mean() < 0.5
    other = dataclasses.replace(mixed, parts=dict(mixed.parts) | {"large": mixture.Part(dataclasses.replace(own["large"], crops="host"))})
    assert ingest.placed(other, platform="gpu", batch_size=4, ways=2) is other
    wrong = dataclasses.replace(mixed, parts=dict(mixed.parts) | {"large": mixture.Part(dataclasses.replace(own["large"], crops="device", crop="none"))})
    with pytest.raises(UserError, match="crops='device': source 'large': no window is known of the crop str"):
        ingest.placed(wrong, platform="gpu", batch_size=4, ways=2)


def test_a_batch_goes_through_the_stream(folder: pathlib.Path) -> None:
    """Planes are shared by the copies of a decode; `video` and everything else equal the batch of the host, also for padded rows."""
    made = source(folder, crop=CROPS["multi_scale"])
    shipped = pickle.loads(pickle.dumps(planes.PlaneClips(made)))
    with pipeline.sweep(made, batch_size=3, seed=5) as host, pipeline.sweep(shipped, batch_size=3, seed=5) as device:
        for expected, batch in zip(host, device, strict=True):
            assert batch["luma"].shape == (3, FRAMES, 96, 128) and batch["box"].shape == (6, 4)
            found = {k: np.asarray(v) for k, v in jax.jit(lambda b: ingest.ingest(b, fields=made.fields))(batch).items()}
            assert found.keys() == expected.keys()
            for key in expected.keys() - {"video"}:
                np.testing.assert_array_equal(found[key], expected[key])
            assert found["video"].dtype == np.uint8 and np.abs(found["video"].astype(float) - expected["video"]).mean() < 0.5


def test_hosts_and_workers_change_no_plane(folder: pathlib.Path) -> None:
    """The global batch of one host is that of two hosts one after the other, and that of a worker process, key by key."""
    shipped = planes.PlaneClips(source(folder, crop=CROPS["mirrored"], repeats=3))

    def batch(**kw: int) -> dict[str, np.ndarray]:
        with pipeline.stream(shipped, batch_size=4, seed=2, start=4, **kw) as stream:
            return {k: v.copy() for k, v in next(stream).items()}

    straight, worked = batch(), batch(workers=1)
    parts = [batch(hosts=2, host=h) for h in range(2)]
    assert straight["luma"].shape[0] == 4 and straight["box"].shape[0] == 12
    for key, value in straight.items():
        np.testing.assert_array_equal(np.concatenate([p[key] for p in parts]), value)
        np.testing.assert_array_equal(worked[key], value)


def test_other_batches_pass(folder: pathlib.Path) -> None:
    """A batch that holds `video` already is not touched."""
    batch = {"video": np.zeros((1, 2, 4, 4, 3), np.uint8)}
    assert ingest.ingest(batch, fields={}) is batch


def test_where_crops_are_cut(folder: pathlib.Path) -> None:
    """"auto" takes the device where there is one and it can; "host" never; "device" always."""
    made, options = source(folder), {"batch_size": 4, "ways": 2}
    assert ingest.placed(made, platform="cpu", **options) is made
    assert ingest.placed(made, platform="gpu", **options) == planes.PlaneClips(made)
    assert ingest.placed(made, platform="tpu", batch_size=3, ways=2) is made
    host, device = (dataclasses.replace(made, crops=where) for where in ("host", "device"))
    assert ingest.placed(host, platform="gpu", **options) is host
    assert ingest.placed(device, platform="cpu", **options) == planes.PlaneClips(device)
    noise = sources.NoiseClips()
    assert ingest.placed(noise, platform="gpu", **options) is noise


def test_what_cannot_be_cut_on_the_device(folder: pathlib.Path) -> None:
    """Sources that read otherwise, unknown crops, rows that do not divide: one line each; "auto" stays on the host."""

    class Stills(sources.VideoClips):
        def read(self, row: int, /, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
            return {k: v[:, :1] if k == "video" else v for k, v in super().read(row, rng=rng).items()}

    parts = Stills(index=str(folder / "index.parquet"), frames=FRAMES, size=SIZE, crops="device")
    with pytest.raises(UserError, match="crops='device': Stills reads in a way of its own.*allowed is data.crops='host'"):
        ingest.placed(parts, platform="gpu", batch_size=4, ways=2)
    automatic = dataclasses.replace(parts, crops="auto")
    assert ingest.placed(automatic, platform="gpu", batch_size=4, ways=2) is automatic
    with pytest.raises(UserError, match="no window is known of the crop str; allowed are AugmentedCrop, CentreCrop"):
        ingest.placed(source(folder, crop="none", crops="device"), platform="gpu", batch_size=4, ways=2)
    with pytest.raises(UserError, match=r"CentreCrop\(antialias=False\): a device resizes whole frames with antialiasing alone"):
        ingest.placed(source(folder, crop=transforms.CentreCrop(antialias=False), crops="device"), platform="gpu", batch_size=4, ways=2)
    with pytest.raises(UserError, match="3 decoded clips are no multiple of 2 batch devices"):
        ingest.placed(source(folder, crops="device"), platform="gpu", batch_size=3, ways=2)
    with pytest.raises(UserError, match="crops 'gpu'; allowed are auto, device, host"):
        source(folder, crops="gpu")
    for canvas in ((0, 64), (63, 64), (-2, 2)):
        with pytest.raises(UserError, match="allowed are two even numbers"):
            planes.PlaneClips(source(folder, canvas=canvas))


def test_real_videos(real_videos: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Footage at 224 from a canvas of 256 x 342: within one level of the host, within 2.5 where the video is larger than the canvas."""
    for name in ("arm_wrestling.mp4", "nasa_13013.mp4", "flipping_pancake.mkv", "bottle_drumming.mp4", "skeleton_1080p.mp4", "rotated_90.mov"):
        (tmp_path / name).symlink_to(real_videos / name)
    index.write(index.build(tmp_path), tmp_path / "index.parquet")
    made = source(tmp_path, split="all", frames=2, size=224, canvas=(0, 0), repeats=2)
    high, wide = planes.sides(made)
    assert (high, wide) == (256, 342)
    for row in range(len(made)):
        larger = made.record(row)["height"] > high or made.record(row)["width"] > wide
        assert np.abs(difference(both(made, row, seed=1))).mean() < (2.5 if larger else 1), made.name(row)


def training(folder: pathlib.Path, /, **more: str) -> assembly.Assembly:
    """A small model on two copies of every scene, on two devices."""
    config = configs.load("configs/tiny.py")
    assignments = {"objective.encoder.width": "32", "objective.encoder.hidden": "64", "objective.encoder.depth": "1", "objective.decoder.width": "32",
                   "objective.decoder.hidden": "64", "objective.encoder.size": "32", "data.size": "32", "data.index": str(folder / "index.parquet"),
                   "data.sampling.stride": "1", "batch_size": "2"}
    configs.override(config, assignments | {name.replace("__", "."): value for name, value in more.items()})
    return assembly.assemble(config, devices=jax.devices()[:2])


def test_a_training_step_takes_planes(folder: pathlib.Path) -> None:
    """On two devices, by a config's own enum: the same masks and draws, a loss that differs by the rounding of pixels alone."""
    losses = {}
    for where in ("host", "device"):
        run = training(folder, data__crops=where)
        assert isinstance(run.source, planes.PlaneClips) == (where == "device") and run.clips == 4
        with pipeline.stream(run.source, batch_size=2, seed=0) as stream:
            batch = parallel.to_device(next(stream), mesh=run.mesh)
        assert {k: (x.shape, x.dtype, x.sharding) for k, x in run.abstract_batch().items()} == {k: (x.shape, x.dtype, x.sharding) for k, x in batch.items()}
        losses[where] = float(run.step()(run.create(), batch)[1]["loss"])
    assert losses["device"] != losses["host"] and losses["device"] == pytest.approx(losses["host"], rel=1e-2)


def test_clips_are_cut_a_micro_batch_at_a_time(folder: pathlib.Path) -> None:
    """Four copies of four decodes in two micro-batches on two devices: no device ever holds its eight clips, only the four of a micro-batch, whose
    gradients make the step of the whole batch."""
    states, most = [], []
    for microbatches in ("1", "2"):
        run = training(folder, data__crops="device", data__repeats="4", batch_size="4", microbatches=microbatches)
        with pipeline.stream(run.source, batch_size=4, seed=0) as stream:
            batch = parallel.to_device(next(stream), mesh=run.mesh)
        compiled = run.compile()
        clip = run.config.data.frames * 32 * 32 * 3
        most.append(max(math.prod(map(int, shape.split(","))) for shape in re.findall(r"u8\[([\d,]+,3)\]", compiled.as_text())) / clip)
        states.append(compiled(run.create(), run.frozen, batch))
    assert most == [8, 4]
    for a, b in zip(*(jax.tree.leaves((s.params, m["loss"])) for s, m in states), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-5, atol=2e-6)


def test_who_needs_the_clips_of_a_whole_batch(folder: pathlib.Path) -> None:
    """Objectives that prepare it, probes where they erase, and batches whose decodes do not divide among micro-batches and devices."""
    made = training(folder, data__crops="device", data__repeats="4", batch_size="4", microbatches="2")
    assert [made.defers(ways=ways, microbatches=m) for ways, m in ((2, 2), (1, 4), (2, 1), (2, 4))] == [True, True, False, False]

    class Preparing(type(made.objective)):  # type: ignore[misc]
        def prepare(self, batch: Any, rng: Any, /, **kw: Any) -> Any:
            return batch

    whole = Preparing(**{f.name: getattr(made.objective, f.name) for f in dataclasses.fields(made.objective)})
    for run in (dataclasses.replace(made, objective=whole), dataclasses.replace(made, stages=((1, whole),))):
        assert not run.defers(ways=2, microbatches=2)
    probed = probe.Probe(encoder=made.objective.encoder, head=probing.Attentive(classes=3), weights="")

    class Flipped(probe.Probe):
        def prepare(self, batch: Any, rng: Any, /, **kw: Any) -> Any:
            return batch | {"video": batch["video"][:, :, :, ::-1]}

    own = Flipped(**{f.name: getattr(probed, f.name) for f in dataclasses.fields(probed)})
    for objective, defers in ((probed, True), (dataclasses.replace(probed, erasing=Erasing(probability=0.1)), False), (own, False)):
        assert dataclasses.replace(made, objective=objective).defers(ways=2, microbatches=2) == defers


def test_devices_cut_their_own_crops(folder: pathlib.Path) -> None:
    """Planes and windows of a clip lie on the same device: no pixel crosses to another."""
    mesh = parallel.Layout().mesh(jax.devices()[:4])
    shipped = planes.PlaneClips(source(folder))
    with pipeline.stream(shipped, batch_size=4, seed=0) as stream:
        batch = parallel.to_device(next(stream), mesh=mesh)

    def traced(batch: Any) -> Any:
        with parallel.use(mesh):
            return ingest.ingest(batch, fields=shipped.source.fields)

    compiled = jax.jit(traced).lower(batch).compile()
    assert not [line for line in compiled.as_text().splitlines() if "all-" in line or "collective-" in line]
    assert compiled(batch)["video"].sharding.is_equivalent_to(batch["box"].sharding, 5)


def test_shapes_of_data_that_are_not_here(folder: pathlib.Path) -> None:
    """A plan counts what would cross: planes of 256 x 342 for crops of 224, also of a mixture; crops of the host where it would cut them."""
    made, options = sources.VideoClips(index="absent.parquet", repeats=4), {"batch_size": 4, "ways": 2}
    found = ingest.placed(unread.Unread(made, 99), platform="tpu", **options)
    assert len(found) == 99 and found.repeats == 4 and found.fields["luma"].shape == (16, 256, 342) and "video" not in found.fields
    own = ingest.placed(unread.Unread(dataclasses.replace(made, canvas=(64, 96)), 99), platform="gpu", **options)
    assert own.fields["luma"].shape == (16, 64, 96)
    mixed = mixture.Concat(parts={"a": mixture.Part(made), "b": mixture.Part(dataclasses.replace(made, canvas=(300, 200)))})
    assert ingest.placed(unread.Unread(mixed, 99), platform="gpu", **options).fields["luma"].shape == (16, 300, 342)
    for where, platform in (("host", "tpu"), ("auto", "cpu")):
        kept = unread.Unread(dataclasses.replace(made, crops=where), 99)
        assert ingest.placed(kept, platform=platform, **options) is kept
    assert all(sources.names(one, kind) == () for one in (found, unread.Unread(made, 99)) for kind in ("attributes", "classes"))
    tuned = unread.Unread(dataclasses.replace(made, crop=augment.AugmentedCrop()), 99)
    assert ingest.placed(tuned, platform="tpu", **options) is tuned
