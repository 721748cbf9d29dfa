"""One run over two processes of jax.distributed is the run of one process, and each goes on where the other stopped."""

import dataclasses
import pathlib
import re
import shutil
import sys

import av
import chaos
import numpy as np
import pytest
import runs

from videomae_jax import metrics
from videomae_jax.checkpoint import load_params, named
from videomae_jax.data import index
from videomae_jax.watchdog import STUCK

TOTAL = 15


@dataclasses.dataclass(frozen=True)
class Chain:
    """A run by two processes, one, and two again, twice, beside a straight run by one; all over two devices. `kept` follows the first leg.

    Before the last leg the run directory is wiped: it goes on from the durable place.
    """

    straight: pathlib.Path
    chained: pathlib.Path
    kept: list[str]
    said: list[list[str]]
    hosts: tuple[int, ...] = (2, 1, 2, 2)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Runs all legs once. Signals reach the second process only: after Ctrl-C in step 4 it exits with 130 and the lead with 75, after SIGTERM both with 75."""
    folder = tmp_path_factory.mktemp("processes")
    straight, chained = folder / "straight" / "run", folder / "chained" / "run"
    words = ["train", *runs.arguments(runs.world(folder / "world"), total=TOTAL)]
    runs.finish(runs.command(*words, f"--workdir={straight}", devices=2, trace=straight.parent / "trace"), code=0)
    words = [*words, f"--workdir={chained}", f"--durable={folder / 'durable'}", "--durable-grace=300", "--peer-limit=120"]
    said = [runs.pair(words, codes=(75, 130), point=("step:SIGINT", 4), trace=chained.parent / "leg0")]
    kept = sorted(p.name for p in (chained / "checkpoints").iterdir())
    said += [[runs.finish(runs.command(*words, devices=2, point=("step:SIGTERM", 3), trace=chained.parent / "leg1"), code=75)[1]]]
    said += [runs.pair(words, codes=(75, 75), point=("step:SIGTERM", 2), trace=chained.parent / "leg2")]
    shutil.rmtree(chained)
    said += [runs.pair(words, codes=(0, 0), trace=chained.parent / "leg3")]
    return Chain(straight, chained, kept, said)


def test_processes_stop_at_one_step_with_one_checkpoint(chain: Chain) -> None:
    """Ctrl-C on one process, which the other is told of within a second; only the lead speaks; the checkpoint is whole and the only new one."""
    step = int(re.search(r"stopped at step (\d+) of 15", chain.said[0][0])[1])
    assert 4 <= step <= 7
    assert "stopped at step" not in chain.said[0][1]
    assert chain.kept == [f"{(step - 1) // 3 * 3:08d}", f"{step:08d}"]
    assert f"resuming from step {step} " in chain.said[1][0] and f"resuming from step {step + 3} " in chain.said[2][0]
    last = int(re.search(r"stopped at step (\d+) of 15", chain.said[2][0])[1])
    assert step + 3 < last < 15 and "stopped at step" not in chain.said[2][1] and f"resuming from step {last} " in chain.said[3][0]
    assert f"the run directory {chain.chained} is taken up again from" in chain.said[3][0]
    assert "finished at step 15" in chain.said[3][0] and "finished" not in chain.said[3][1]
    assert (chain.chained / "summary.json").exists()


def test_stream_does_not_depend_on_processes(chain: Chain) -> None:
    """Names, keys and crops of every global batch, row by row, over all legs."""
    wanted = runs.recorded(chain.straight.parent / "trace", hosts=1)
    assert set(range(0, 8 * TOTAL, 8)) <= wanted.keys()
    seen = set()
    for leg, hosts in enumerate(chain.hosts):
        for first, rows in runs.recorded(chain.chained.parent / f"leg{leg}", hosts=hosts).items():
            if first in wanted:  # batches that were read ahead beyond the end are not needed
                assert rows == wanted[first], (leg, first)
                seen.add(first)
    assert set(range(0, 8 * TOTAL, 8)) <= seen
    assert len({row for rows in wanted.values() for row in rows}) == sum(map(len, wanted.values()))  # no crop comes twice


def test_losses_and_evaluations_are_those_of_one_process(chain: Chain) -> None:
    """Every line once, every value to 1e-6: sums over devices run in another order, or, for evaluators, float32 programs differ."""
    wanted, found = ([line for line in metrics.read(d)] for d in (chain.straight, chain.chained))
    assert [line["step"] for line in found] == [line["step"] for line in wanted]
    for left, right in zip(wanted, found, strict=True):
        for name in left.keys() - set(metrics.TIMING):
            assert right[name] == pytest.approx(left[name], rel=1e-5 if name == "pictures/psnr_hidden" else 2e-6, abs=1e-9), (left["step"], name)


def test_parameters_are_those_of_one_process(chain: Chain) -> None:
    """Adam divides by the root of small second moments, which enlarges the last bits of a gradient: 1e-5."""
    wanted, found = (named(load_params(d / "checkpoints")) for d in (chain.straight, chain.chained))
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-5, err_msg=name)


TUNED = {
    "total": 2, "batch_size": 8, "workers": 0, "optimizers.main.schedule.warmup": 0, "data.frames": 4, "data.size": 16,
    "objective.head.classes": 4, "objective.head.init_scale": 1.0,
    "objective.pretrained": "", "objective.mixing.rows": 8, "objective.encoder.width": 32, "objective.encoder.depth": 2, "objective.encoder.heads": 2,
    "objective.encoder.hidden": 64, "objective.encoder.patch": (2, 8, 8), "objective.encoder.frames": 4, "objective.encoder.size": 16,
    "objective.encoder.dtype": "float32", "evaluators.test.batch_size": 9,
    "evaluators.test.views.sampling.views": 2, "evaluators.test.views.sampling.stride": 2}


def footage(folder: pathlib.Path, /) -> pathlib.Path:
    """The index of 16 training and 13 validation clips of four classes: 30 pictures of 48 x 32 of moving noise, a seed of its own for each."""
    folder.mkdir()
    for number in range(29):
        texture = np.random.default_rng(number).integers(0, 256, (8, 32, 3), np.uint8).repeat(4, 0).repeat(4, 1)
        with av.open(str(folder / f"{number:02}.mp4"), "w") as out:
            stream = out.add_stream("libx264", rate=30)
            stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
            for place in range(30):
                out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(texture[:, 2 * place: 2 * place + 48]), format="rgb24")))
            out.mux(stream.encode(None))
    rows = [f"{i:02}.mp4,{'abcd'[i % 4]},{'train' if i < 16 else 'val'}\n" for i in range(29)]
    (folder / "labels.csv").write_text("path,label,split\n" + "".join(rows))
    index.write(index.build(folder, labels=folder / "labels.csv"), folder / "index.parquet")
    return folder / "index.parquet"


def test_every_view_is_tested_once_by_uneven_processes(tmp_path: pathlib.Path) -> None:
    """2 x 3 views of 13 clips, 26 decodes in batches of four: of the last one process has padding alone. Logits and accuracy are one process's."""
    words = ["train", "--config=configs/finetune/k400_s.py", f"--config.data.index={footage(tmp_path / 'world')}",
             *(f"--config.{k}={v}" for k, v in TUNED.items())]
    runs.finish(runs.command(*words, f"--workdir={tmp_path}/one"), code=0)
    runs.pair([*words, f"--workdir={tmp_path}/two", "--peer-limit=120"], codes=(0, 0))
    one, two = (dict(np.load(tmp_path / name / "test" / "logits.npz")) for name in ("one", "two"))
    assert two["logits"].shape == (13, 6, 4) and two["seen"].all() and len(set(two["names"])) == 13
    assert np.unique(two["logits"].reshape(-1, 4).round(4), axis=0).shape == (78, 4)  # so that none can stand for another
    for name in ("names", "labels", "seen", "classes"):
        np.testing.assert_array_equal(two[name], one[name])
    np.testing.assert_allclose(two["logits"], one["logits"], atol=1e-4 * np.abs(one["logits"]).max())
    chances = np.exp(two["logits"], dtype=np.float64)
    chances = (chances / chances.sum(-1, keepdims=True)).mean(1)
    lines = [line for line in metrics.read(tmp_path / "two") if "test/videos" in line]
    assert len(lines) == 1 and (lines[0]["test/videos"], lines[0]["test/unreadable"]) == (13, 0)
    assert lines[0]["test/top1"] == pytest.approx(100 * np.mean(chances.argmax(-1) == two["labels"]))
    assert lines[0]["test/loss"] == pytest.approx(-np.log(chances[np.arange(13), two["labels"]]).mean(), rel=1e-5)
    for name, value in next(line for line in metrics.read(tmp_path / "one") if "test/videos" in line).items():
        assert not name.startswith("test/") or lines[0][name] == pytest.approx(value, rel=1e-5), name


def test_a_disk_of_each_host_is_no_run_directory(tmp_path: pathlib.Path) -> None:
    """Both end before the first step and say why; nothing but a folder with a lock is left, which the next try may use."""
    words = ["train", *runs.arguments(runs.world(tmp_path / "world"))]
    said = runs.pair(words, codes=(2, 2), point=("at once", 1), each=[[f"--workdir={tmp_path / host / 'run'}"] for host in ("a", "b")])
    for text in said:
        assert "process 1 of 2 does not see what process 0 writes to --workdir=" in text and "Traceback" not in text, text
    assert [path.name for path in (tmp_path / "a" / "run").iterdir()] == [".lock"] and not (tmp_path / "b").exists()


RING = """
import sys
from videomae_jax import cluster, parallel
cluster.initialize(coordinator=sys.argv[1], processes=2, process=int(sys.argv[2]), peer_limit=120)
import jax, numpy as np
from videomae_jax.data import pipeline, sources
for order in ([0, 1, 2, 3], [0, 2, 3, 1], [2, 0, 1, 3], [3, 2, 1, 0]):
    mesh = parallel.Mesh(np.array(jax.devices())[order].reshape(4, 1, 1), parallel.AXES)
    with pipeline.stream(sources.NoiseClips(frames=1, size=8, length=64, repeats=2), batch_size=8, seed=0, blocks=parallel.rows(mesh, 8, repeats=2)) as stream:
        batch = next(stream)
    print(parallel.gather(parallel.to_device({"key": batch["key"]}, mesh=mesh), mesh=mesh)["key"].tolist())
"""


def test_rows_follow_the_stream_in_any_order_of_devices(tmp_path: pathlib.Path) -> None:
    """Two processes of two devices, which a mesh takes in turns, as it does where it follows a torus: row r is position r all the same."""
    path = tmp_path / "ring.py"
    path.write_text(RING)
    address = f"localhost:{runs.free_port()}"
    both = [runs.command(devices=2, shell=f"exec {sys.executable} {path} {address} {i}") for i in range(2)]
    for process in both:
        said, _ = runs.finish(process, code=0)
        assert [line for line in said.splitlines() if line[:2] == "[["] == [str([[position, copy] for position in range(8) for copy in range(2)])] * 4


@pytest.mark.slow
def test_stuck_loader_of_one_process_ends_both(tmp_path: pathlib.Path) -> None:
    """The second never gets its batch: both leave their stacks, it is named, or who has named it, and both end: the first with the watchdog's code."""
    words = ["train", *runs.arguments(runs.world(tmp_path / "world")), f"--workdir={tmp_path / 'run'}", "--step-limit=8"]
    codes, said = chaos.once(words, ("worker", 6, "STUCK"), processes=2, victim=1, seconds=900)
    assert STUCK in codes and 0 not in codes, said  # the end of one may break the connection under the other before its own
    texts = [(tmp_path / "run" / "stacks" / f"{rank}.txt").read_text() for rank in range(2)]
    assert any("process 1 is behind: data_wait" in text for text in texts), texts
    for rank, text in enumerate(texts):
        assert ("process 1 is behind: data_wait" in text or f"process {1 - rank} has given up" in text) and "Thread 0x" in text, text
    assert "disturb" in (tmp_path / "run" / "stacks" / "1.txt").read_text()
