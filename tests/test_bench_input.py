"""`bench input`: the arithmetic of its figures by hand, the loader it compares with, its videos, and the command end to end."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from test_decode import encoded
from test_planes import encode, scene

from videomae_jax import __main__ as command_line
from videomae_jax import input_benchmark
from videomae_jax.benchmarks import Lap
from videomae_jax.data import augment, clips, decode, footage, index, planes, sources
from videomae_jax.errors import UserError

KEYS = ["raw_clips_per_s_core", "packed_clips_per_s_core", "reference_clips_per_s_core", "ratio_raw", "ratio_packed", "rss_growth_mb"]


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An index of one short video."""
    folder = tmp_path_factory.mktemp("one")
    (folder / "a.mkv").write_bytes(encode(scene(frames=12)))
    index.write(index.build(folder), folder / "index.parquet")
    return str(folder / "index.parquet")


def laps(*cpu: float) -> list[Lap]:
    """Laps of these CPU milliseconds; the wall clock ran ten times as long."""
    return [Lap(1e-2 * x, 1e-3 * x) for x in cpu]


def test_stages_are_differences_of_paired_repeats() -> None:
    """Each run goes one stage further than the one before."""
    found = {"raw open": laps(1, 2, 3), "raw seek": laps(2, 4, 4), "raw decode": laps(12, 14, 24), "raw convert": laps(13, 15, 25), "raw read": laps(15, 16, 30),
             "raw batch": laps(1, 1, 2), "raw transfer": laps(3, 3, 3)}
    stages = input_benchmark.stages(found, name="raw")
    assert {k: v["median"] for k, v in stages.items()} == pytest.approx({"open": 2, "seek": 1, "decode": 10, "convert": 1, "crop": 2, "batch": 1, "transfer": 3})
    assert stages["decode"] == pytest.approx({"median": 10, "min": 10, "max": 20})


def test_result_by_hand() -> None:
    """Training clips: copies over the CPU time of read, batch and transfer; ratios of paired repeats; null for what was not read."""
    found = {"raw read": laps(30, 40, 50), "raw batch": laps(6, 6, 6), "raw transfer": laps(4, 4, 4), "reference read": laps(80, 100, 120)}
    result = input_benchmark.result({"laps": found, "rss_growth_mb": 1.26}, footage.Settings(copies=4))
    assert list(result) == KEYS
    assert result == {"raw_clips_per_s_core": 80, "packed_clips_per_s_core": None, "reference_clips_per_s_core": 10, "ratio_raw": 8, "ratio_packed": None,
                      "rss_growth_mb": 1.3}


@pytest.mark.parametrize("decodes", [1, 2, 8, 33])
def test_windows_are_spread_evenly(decodes: int) -> None:
    """Of a video with as many starts, each start once: the mean cost of decoding up to it is that of many draws."""
    sampling = clips.DenseRandom(stride=1)
    drawn = [int(sampling.ids(decodes + 3, clip=4, rng=np.random.default_rng(seed))[0]) for _, seed in input_benchmark.draws(decodes)]
    assert drawn == list(range(decodes)) and [n for n, _ in input_benchmark.draws(decodes)] == list(range(decodes))


def test_verdict() -> None:
    """Supply against demand, both ways."""
    assert input_benchmark.verdict(100, step_ms=500, clips=256, cores=4).startswith("input-bound: a step of 256 clips in 500 ms needs 512 clips/s, 4 cores give 400; 5.1")
    assert input_benchmark.verdict(100, step_ms=500, clips=256, cores=6).startswith("compute-bound")


def test_the_usual_loader_reads_the_same_clips(listed: str) -> None:
    """The same draws lead to the same pixels, in float32, normalised, channels first: nothing is compared that does less."""
    source = sources.VideoClips(index=listed, split="all", frames=4, size=32, repeats=2, sampling=clips.DenseRandom(2))
    ours = source.read(0, rng=np.random.default_rng(3))["video"]
    theirs = footage.UsualLoader(source, copies=2).read(0, rng=np.random.default_rng(3))
    assert theirs.shape == (2, 3, 4, 32, 32) and theirs.dtype == np.float32
    expected = (ours / 255 - footage.MEAN) / footage.DEVIATION
    np.testing.assert_allclose(theirs.transpose(0, 2, 3, 4, 1), expected, atol=1e-5)  # float32 against float64


def test_the_usual_loader_reads_bytes_and_avi(tmp_path: pathlib.Path) -> None:
    """The bytes of an address, and frames whose times the container does not store, two B-frames in a row: the pixels of the decoder."""
    (tmp_path / "a.avi").write_bytes(encoded("mpeg4_avi"))
    (tmp_path / "b.mp4").write_bytes(encoded("cfr"))
    index.write(index.build(tmp_path), tmp_path / "index.parquet")
    source = sources.VideoClips(index=str(tmp_path / "index.parquet"), split="all", frames=4, size=32, sampling=clips.DenseRandom(3))
    for row in range(2):
        for seed in range(3):
            clip = source.clip(row, rng=np.random.default_rng(seed))
            for video in (clip.video, clip.video.read_bytes()):
                np.testing.assert_array_equal(footage.UsualLoader(source).window(clip._replace(video=video)), source.decode(clip))


def test_the_usual_loader_augments_frame_by_frame(listed: str) -> None:
    """The pixels of fine-tuning's host path from the same draws."""
    source = sources.VideoClips(index=listed, split="all", frames=4, size=32, repeats=2, sampling=clips.DenseFinetune(2), crop=augment.AugmentedCrop())
    for seed in range(4):
        ours = source.read(0, rng=np.random.default_rng(seed))["video"]
        theirs = footage.UsualLoader(source, copies=2).read(0, rng=np.random.default_rng(seed))
        expected = (ours / 255 - footage.MEAN) / footage.DEVIATION
        np.testing.assert_allclose(theirs.transpose(0, 2, 3, 4, 1), expected, atol=1e-5)  # float32 against float64


def test_written_videos_are_hard_enough(tmp_path: pathlib.Path) -> None:
    """Of the size and rate of Kinetics: between 250 and 900 kbit/s, one key frame in two seconds of one scene; pixels are those of the seed."""
    footage.write(tmp_path / "a.mp4", seconds=2, seed=1)
    info = decode.probe(tmp_path / "a.mp4")
    assert (info.width, info.height, info.frames, info.fps, len(info.keys)) == (340, 256, 60, 30, 1)
    assert 250e3 < (tmp_path / "a.mp4").stat().st_size * 8 / 2 < 900e3
    first, same, other = (footage.scene(frames=2, seed=seed) for seed in (1, 1, 2))
    assert (first == same).all() and (first != other).mean() > 0.9


def test_growth_sees_what_stays(listed: str) -> None:
    """A source that keeps four megabytes of every read grows by as much; one that keeps nothing hardly.

    In a process of its own: one that has freed much memory takes new arrays from there.
    """
    code = f"""
import numpy as np
from videomae_jax import input_benchmark
from videomae_jax.data import sources
source, kept = sources.VideoClips(index={listed!r}, split="all", frames=2, size=32), []
print(input_benchmark.growth(source, opens=30))
plain = sources.VideoClips.read
sources.VideoClips.read = lambda self, row, *, rng: kept.append(np.ones(4 * 10**6, np.uint8)) or plain(self, row, rng=rng)
print(input_benchmark.growth(source, opens=30))
"""
    root = pathlib.Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=300)
    without, keeping = map(float, done.stdout.split())
    assert without < 10 and 100 < keeping < 140


def test_damaged_videos_are_left_out(listed: str, tmp_path: pathlib.Path) -> None:
    """Of three rows the middle one was damaged after it was indexed: the next takes its place; where none can be read it is one line."""
    for name in "abc":
        (tmp_path / f"{name}.mkv").write_bytes((pathlib.Path(listed).parent / "a.mkv").read_bytes())
    index.write(index.build(tmp_path), tmp_path / "index.parquet")

    def damage(name: str) -> None:
        path = tmp_path / f"{name}.mkv"
        path.write_bytes(bytes(path.stat().st_size))

    damage("b")
    source = sources.VideoClips(index=str(tmp_path / "index.parquet"), split="all", frames=4, size=32)
    seeds = [seed for _, seed in input_benchmark.draws(3)]
    assert input_benchmark.drawn(source, 3) == ((0, seeds[0]), (2, seeds[1]), (0, seeds[2]))
    assert input_benchmark.growth(source, opens=3) < 100
    for name in "ac":
        damage(name)
    with pytest.raises(UserError, match=r"16 videos in a row cannot be read; the last one is .*\.mkv: open: "):
        input_benchmark.drawn(source, 2)


@pytest.mark.parametrize("crops", ["device", "host"])
def test_command(crops: str, listed: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One JSON line with exactly its keys; stages and verdict for people on standard error."""
    assert command_line.main(["bench", "input", f"--index={listed}", f"--crops={crops}", "--frames=4", "--stride=2", "--size=32", "--decodes=2", "--repeats=2",
                              "--opens=2", "--step-ms=0.001", "--batch=64", "--cores=1"]) == 0
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert output.out.count("\n") == 1 and list(found) == KEYS
    assert found["raw_clips_per_s_core"] > 0 < found["ratio_raw"] and found["packed_clips_per_s_core"] is found["ratio_packed"] is None
    assert all(f"  {stage} " in output.err for stage in ("open", "seek", "decode", "convert", "crop", "batch", "transfer"))
    assert f"RandAugment and crops on the {crops}: " in output.err and "Pillow, frame by frame: " in output.err
    assert ("both on the host" in output.err) == (crops == "device")
    assert "input-bound: a step of 64 clips" in output.err and ("within the step" in output.err) == (crops == "device")


@pytest.mark.parametrize(("argument", "message"), [("--repeats=0", "repeats is 0; allowed are 1 and more"), ("--crops=gpu", "crops 'gpu'; allowed are device, host"),
                                                   ("--cores=0", "--cores=0; allowed are 1 and more"),
                                                   ("--packed=packed/index.parquet", "--packed=packed/index.parquet goes with --index")])
def test_mistakes_are_one_line(argument: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and what is allowed."""
    assert command_line.main(["bench", "input", argument]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_other_systems(listed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the resident set cannot be read, one line."""
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(UserError, match="allowed is linux"):
        input_benchmark.sources_of(listed, "", footage.Settings())


@pytest.mark.slow
@pytest.mark.parametrize("where", ["host", "device"])
def test_memory_is_flat_over_thousands_of_opens(where: str, listed: str) -> None:
    """A frame of 9 kB that stayed at every read would make 46 MB of 5,000."""
    source = sources.VideoClips(index=listed, split="all", frames=4, size=32, repeats=2)
    assert input_benchmark.growth(planes.PlaneClips(source) if where == "device" else source, opens=5000) < 8
