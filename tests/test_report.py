"""The page about a run: complete, self-contained, and honest about runs that are unfinished, bare or damaged."""

import base64
import html.parser
import json
import math
import pathlib
import re
from typing import Any

import pytest
from PIL import Image

from videomae_jax import __main__ as command_line
from videomae_jax import charts, events, ledger, records, report
from videomae_jax import config as configs
from videomae_jax.charts import Line
from videomae_jax.config import spec
from videomae_jax.errors import UserError
from videomae_jax.evals import probe

VOID = ("meta", "img")


class Checker(html.parser.HTMLParser):
    """Collects text and sources, and notices a tag that is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        pass  # a drawn element such as <line/> closes itself

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> Checker:
    """The parsed page, which must be well formed and need nothing from outside."""
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    assert all(source.startswith("data:image/") for source in checker.sources)
    assert "http" not in re.sub(r"data:image/[^\"]*", "", page) and "<script" not in page and "url(" not in page
    return checker


def text_of(page: str) -> str:
    """The words of a page."""
    return re.sub(r"\s+", " ", " ".join(read(page).text))


def run(directory: pathlib.Path, lines: list[dict[str, float]], *, evaluators: bool = True, finished: bool = True, name: str = "toy") -> pathlib.Path:
    """A run directory of 100 steps with the given lines of metrics.jsonl."""
    config = configs.load("configs/tiny.py")
    config.unlock()
    config.name = name
    config.evaluators.motion = spec(probe.Probe, label="motion", train=1000, test=400, seeds=3)
    if not evaluators:
        config.evaluators = {}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(configs.to_json(config))
    (directory / "recipe_card.json").write_text(json.dumps({"name": name, "steps": 100, "train_flops_per_clip": 2e9, "schedules": {"train": {"peak_lr": 0.004}}}))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        (directory / "summary.json").write_text(json.dumps({"steps": 100, "seconds": 3723.0}))
    return directory


def training(last: int = 100) -> list[dict[str, float]]:
    """Lines of a healthy run."""
    return [{"step": s, "loss": 1.3 - 0.005 * s, "loss_zero": 0.99, "lr": 1e-3, "grad_norm": 0.1 + 1 / s, "clips_per_second": 40.0 + s % 3, "data_wait": 0.25}
            for s in range(10, last + 1, 10)]


def evaluated(step: int, trained: float) -> dict[str, float]:
    """A line of evaluator results."""
    return {"step": step, "reconstruction/loss": 0.8125, "reconstruction/loss_zero": 0.9921, "reconstruction/loss_nearest": 1.64,
            "reconstruction/loss_linear": 1.22, "reconstruction/loss_trivial": 1.22, "motion/trained": trained, "motion/trained_std": 1.25,
            "motion/untrained": 40.5, "motion/untrained_std": 0.75, "motion/pixels": 33.25, "motion/chance": 12.5, "motion/gain": trained - 40.5}


def draw(directory: pathlib.Path, step: int, clip: int) -> pathlib.Path:
    """A sheet and an animation, each with its own colours."""
    (directory / "reconstructions").mkdir(exist_ok=True)
    stem = directory / "reconstructions" / f"step{step:08d}_{clip}"
    frames = [Image.new("RGB", (8, 8), (step % 256, clip, shade)) for shade in (0, 99)]
    frames[0].save(stem.with_suffix(".png"))
    frames[0].save(stem.with_suffix(".gif"), save_all=True, append_images=frames[1:])
    return stem


# -- the page ----------------------------------------------------------------------------------------------------------


def test_time_and_events_are_on_the_page(tmp_path: pathlib.Path) -> None:
    """Every class of the ledger with its share, and the last events; neither section where there is no file."""
    assert not {"Goodput", "Events"} & set(text_of(report.page(records.load(run(tmp_path / "bare", training())))).split())
    directory = run(tmp_path / "run", training())
    begin = (tmp_path / "run").stat().st_mtime + 1e6
    lines = [{"begin": begin, "alive": None}, {"resume": -1}, {"to": begin + 100, "step": 10, "seconds": {"init": 10.0, "step": 90.0}}]
    (directory / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (directory / "events.jsonl").write_text('{"time": 1')  # cut by a full disk
    events.Events(directory, lead=True, say=lambda line: None).add("rolled back", 8, to=6, samples=[24, 32], number=1)
    text = text_of(report.page(records.load(directory)))
    assert "Goodput 90.0 % of the time that the run was up went into steps that count; 1 starts, 100.0 s" in text
    assert all(name.replace("_", " ") in text for name in ledger.CLASSES) and "10.0 %" in text
    assert "1 in all" in text and "rolled back 8 to 6, samples [24, 32], number 1" in text


def test_a_finished_run(tmp_path: pathlib.Path) -> None:
    """Status, loss, held-out loss, probe with deviations, gain and chance, throughput, card and config are on the page."""
    path = report.write(records.load(run(tmp_path, [evaluated(0, 40.5), *training(), evaluated(100, 61.0)])))
    assert path == tmp_path / "report.html" and not list(tmp_path.glob(".report*"))
    page = path.read_text()
    text = text_of(page)
    for wanted in ("finished: step 100 of 100, 1:02:03 of wall time", "0.8000", "predict zero 0.9900", "0.8125", "predict zero 0.9921", "61.0 ± 1.2",
                   "40.5 ± 0.8", "33.2", "12.5", "+20.5", "1000 training and 400 test clips at most, 3 seeds", "41.00 (40.00 to 42.00)", "25.0 %",
                   "82.0 GFLOP/s", "peak lr", "0.004", "No video was replaced", '"normalise": "channel"'):
        assert wanted in text, wanted
    for title in ("Loss", "Learning rate", "Gradient norm", "Throughput", "Share of time waiting for data"):
        assert f"<figcaption>{title}</figcaption>" in page
    for line in ("training", "predict zero (training batches)", "held-out (reconstruction)", "held-out: copy the nearest visible patch",
                 "held-out: interpolate the visible pixels"):
        assert f"</i>{line}</li>" in page
    assert "normalised within each patch" in text


def test_a_run_in_progress(tmp_path: pathlib.Path) -> None:
    """The last line may be half written, and a step that reached the total is not finished without its summary."""
    directory = run(tmp_path, training(40), finished=False)
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "lo')
    assert "in progress or stopped: step 40 of 100" in text_of(report.write(records.load(directory)).read_text())
    run(tmp_path, training(), finished=False)
    assert "in progress or stopped: step 100 of 100" in text_of(report.write(records.load(directory)).read_text())
    (directory / "summary.json").write_text(json.dumps({"steps": 50, "seconds": 1.0}))  # of before the run was extended
    assert "in progress or stopped: step 100 of 100;" in text_of(report.write(records.load(directory)).read_text())


def test_a_bare_run(tmp_path: pathlib.Path) -> None:
    """No evaluators, no pictures, no card, no metrics: the page says what is missing."""
    directory = run(tmp_path, training(), evaluators=False)
    text = text_of(report.write(records.load(directory)).read_text())
    assert "No evaluator has left a result: everything here was measured on training batches." in text
    assert "Reconstructions" not in text and "Linear probes" not in text
    (directory / "metrics.jsonl").unlink()
    (directory / "recipe_card.json").unlink()
    text = text_of(report.write(records.load(directory)).read_text())
    assert "metrics.jsonl holds no value yet." in text and "holds no recipe_card.json" in text and "step 0" in text


def test_values_that_are_not_finite(tmp_path: pathlib.Path) -> None:
    """A diverged run has a page, and the page counts what the chart leaves out."""
    lines = training(50) + [{"step": 60, "loss": math.nan}, {"step": 70, "loss": math.inf}]
    page = report.write(records.load(run(tmp_path, lines))).read_text()
    assert "2 logged loss values are not finite" in text_of(page)
    assert not re.search(r'points="[^"]*(nan|inf)', page)
    assert "not finite" not in text_of(report.write(records.load(run(tmp_path, training(50)))).read_text())


def test_pictures_are_embedded(tmp_path: pathlib.Path) -> None:
    """Four clips of the newest step, one of the oldest; an animation over the limit stays out."""
    directory = run(tmp_path, training())
    for step in (0, 50, 100):
        for clip in range(6):
            draw(directory, step, clip)
    (directory / "reconstructions" / "step00000100_1.gif").write_bytes(b"0" * (report.GIF_BYTES + 1))
    checker = read(report.write(records.load(directory)).read_text())
    shown = [base64.b64decode(source.partition(",")[2]) for source in checker.sources]
    stems = [f"step00000100_{clip}" for clip in range(report.CLIPS)] + ["step00000000_0"]
    files = [f"{stem}.{kind}" for stem in stems for kind in ("png", "gif") if (stem, kind) != ("step00000100_1", "gif")]
    assert shown == [(directory / "reconstructions" / name).read_bytes() for name in files]
    assert "TRUE mean and deviation" in " ".join(checker.text)


def test_raw_targets_need_no_caveat(tmp_path: pathlib.Path) -> None:
    """The notes about normalised targets follow the config."""
    directory = run(tmp_path, training())
    draw(directory, 100, 0)
    stored = configs.from_json((directory / "config.json").read_text())
    stored.objective.target.normalise = "none"
    (directory / "config.json").write_text(configs.to_json(stored))
    text = text_of(report.write(records.load(directory)).read_text())
    assert "TRUE mean" not in text and "normalised within" not in text and "Reconstructions" in text


def test_faults_are_counted_and_listed(tmp_path: pathlib.Path) -> None:
    """Those of every process; a line that a full disk cut, or that is being written, does not count; names are escaped."""
    directory = run(tmp_path, training(), name="<i>toy</i>")
    faults = [{"name": f"clip {i} <b>", "stage": "seek" if i % 2 else "open", "position": i} for i in range(23)]
    (directory / "faults.jsonl").write_text('{"name": "ha\n' + "".join(json.dumps(f) + "\n" for f in faults[:20]) + '{"name": "ha')
    (directory / "faults.77.jsonl").write_text("".join(json.dumps(f) + "\n" for f in faults[20:]))
    page = report.write(records.load(directory)).read_text()
    text = text_of(page)
    assert "23 videos could not be read and were replaced by others: 12 at open, 11 at seek." in text and "... and 3 more" in text
    assert "clip 1 <b>" in text and "<b>" not in page.split("<h2>Faults")[1] and "<i>toy" not in page


def test_losses_of_named_phases_are_drawn(tmp_path: pathlib.Path) -> None:
    """A recipe whose phases are not called "train" logs "critic/loss"; evaluators' losses are not taken for it."""
    lines = [{"step": s, "critic/loss": 2.0 - s / 100, "generator/loss": 1.0, "critic/lr": 1e-4} for s in range(1, 90, 10)]
    page = report.write(records.load(run(tmp_path, [*lines, evaluated(90, 50.0)]))).read_text()
    assert "</i>critic/loss</li>" in page and "</i>generator/loss</li>" in page and "</i>critic/lr</li>" in page
    assert "</i>reconstruction/loss</li>" not in page


@pytest.mark.parametrize("name", ["config.json", "recipe_card.json", "summary.json"])
def test_damaged_files_are_named(tmp_path: pathlib.Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, exit code 2, no traceback."""
    directory = run(tmp_path, training())
    (directory / name).write_text('{"a": ')
    assert command_line.main(["report", str(directory)]) == 2
    output = capsys.readouterr()
    assert re.match(f"error: {directory / name} is (damaged: |not JSON)", output.err) and output.err.count("\n") == 1 and not output.out


def test_command(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prints the path; a folder that is no run is one line."""
    assert command_line.main(["report", str(run(tmp_path / "run", training()))]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'run' / 'report.html'}\n"
    assert command_line.main(["report", str(tmp_path)]) == 2
    assert "holds no config.json" in capsys.readouterr().err and not (tmp_path / "report.html").exists()
    with pytest.raises(UserError, match="no config.json"):
        records.load(tmp_path / "absent")


@pytest.mark.parametrize(("line", "message"), [
    ("a --out=x.html", "--out goes with --compare or --scaling"), ("a --curve=c.json --out=x.html", "--out goes with --compare or --scaling"),
    ("a --metric=probe/top1", "--metric goes with --scaling"), ("--compare a b --metric=probe/top1", "--metric goes with --scaling"),
    ("a --with b", "--with goes with --curve"), ("--compare a b --with c", "--with goes with --curve"), ("--scaling a b --with c", "--with goes with --curve"),
    ("a --curve=c.json --goodput", "--goodput: not allowed with argument --curve"), ("--compare a b --curve=c.json", "--curve: not allowed with argument --compare"),
    ("--scaling a b --curve=c.json", "--curve: not allowed with argument --scaling"), ("--scaling a b --compare a b", "--compare: not allowed with argument --scaling"),
    ("--scaling a b --goodput", "--goodput: not allowed with argument --scaling"), ("--scaling a b --out=x.json", "--out=x.json; allowed is a file name that ends in .html")])
def test_options_that_nothing_would_read_are_refused(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, before a run is looked for."""
    assert command_line.main(["report", *line.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


# -- charts ------------------------------------------------------------------------------------------------------------


def test_points_lie_where_their_values_are() -> None:
    """The corners of the axes, upside down on the page; a later line may be shorter."""
    svg = charts.chart([Line("a", [(0, 1.0), (10, 2.0)]), Line("b", [(5, 1.5)])], title="t", x="x", y="y", width=200, height=100)
    left, right, top, bottom = charts.MARGIN
    (x0, y0), (x1, y1) = (map(float, p.split(",")) for p in re.search(r'points="([^"]*)"', svg)[1].split())
    assert (x0, x1) == (left, 200 - right)
    inner = 100 - top - bottom
    assert y0 == pytest.approx(100 - bottom - inner * 0.06 / 1.12, abs=0.06) and y1 == pytest.approx(top + inner * 0.06 / 1.12, abs=0.06)
    dot = re.search(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)
    assert float(dot[1]) == pytest.approx((x0 + x1) / 2, abs=0.06) and float(dot[2]) == pytest.approx((y0 + y1) / 2, abs=0.06)


@pytest.mark.parametrize(("low", "high", "expected"), [(0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0.93, 1.31, [1.0, 1.1, 1.2, 1.3]), (-4, 4, [-4, -2, 0, 2, 4]),
                                                       (20, 1200, [500, 1000])])
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    """Multiples of 1, 2 or 5 within the range."""
    assert charts.ticks(low, high) == pytest.approx(expected)


def test_a_wide_range_is_logarithmic() -> None:
    """Equal ratios are equal distances; a range with zero stays linear."""
    axis = charts.scale([0.001, 1000.0], start=0, end=100)
    assert axis.logarithmic and axis.at(1.0) == pytest.approx(50) and axis.at(10) - axis.at(1) == pytest.approx(axis.at(100) - axis.at(10))
    assert axis.ticks == pytest.approx([10.0**p for p in range(-3, 4)])
    assert not charts.scale([0.0, 1000.0], start=0, end=1).logarithmic and not charts.scale([1.0, 20.0], start=0, end=1).logarithmic
    assert charts.scale([3.0], start=0, end=1).low < 3 < charts.scale([3.0], start=0, end=1).high


def test_long_lines_are_averaged() -> None:
    """The ends stay, the mean over the rest stays, and there are at most as many points as asked for."""
    points = [(float(i), math.sin(i / 50) + i % 2) for i in range(10_000)]
    thin = charts.thinned(points)
    assert len(thin) == charts.POINTS and thin[0] == points[0] and thin[-1] == points[-1]
    inside = thin[1:-1]
    assert sum(y for _, y in inside) / len(inside) == pytest.approx(sum(y for _, y in points[1:-1]) / 9998, abs=1e-3)
    assert [x for x, _ in thin] == sorted(x for x, _ in thin) and charts.thinned(points[:7]) == points[:7]


def test_nothing_to_draw_is_no_chart() -> None:
    """Neither an empty list nor NaNs alone make a figure."""
    assert charts.chart([], title="t", x="x", y="y") == "" == charts.chart([Line("a", [(1, math.nan)])], title="t", x="x", y="y")
