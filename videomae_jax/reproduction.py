"""The result tables of VideoMAE and VideoMAE V2: the commands of all stages of every row, and how far runs are from what is published.

Evidence of a figure: "code" (documents and scripts of the official repositories), "abstract" (of the paper), "secondary" (told by
others, among them answers of the authors) or "unverified" (recalled: to be checked in the paper before it is quoted).
"""

import dataclasses
import json
import pathlib
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from videomae_jax import config as configs
from videomae_jax import reference, run_directory
from videomae_jax.errors import UserError

EVIDENCE = ("code", "abstract", "secondary", "unverified")
# Training and validation clips of the official lists (V2 docs/DATASET.md); split 1 of UCF101 and HMDB51.
COUNTS = {"k400": (240_436, 19_796), "k600": (366_006, 27_935), "k710": (658_340, 66_803), "ssv2": (168_913, 24_777), "ucf101": (9_537, 3_783),
          "hmdb51": (3_570, 1_530), "hybrid": (1_348_000, 0)}
ROUNDED = {"hybrid": 500}  # clips that a run may be off: the paper tells this count in thousands, all others to the clip
TOLERANCE = 0.3  # points of top-1: the binomial deviation of 85 % on 20,000 videos is 0.25
MFU = 0.35  # of the peak, for chip-hours: what `plan` predicts of B to g on GPUs is 22 to 37 %, of L to g on TPUs 40 to 53 %
TEST = ("evaluators.test.", "eval_data.")  # any run may change them, and then the test is another one
STARTS = ("pretrained", "weights")  # fields of an objective that name the run of an earlier stage
# What makes the index of a stage's data: V2's list for pretraining with any list for fine-tuning as held-out videos, and which classes of Kinetics-710 are those of the others.
INDEXES = {
    "hybrid": "python -m videomae_jax index --list=hybrid.csv --format=v2 --list=val.csv --format=v1 --root=DATA --out=hybrid.parquet",
    "k710": "python -m videomae_jax index --merge=k400.parquet,k600.parquet,k700.parquet --out=k710.parquet --aliases=k710_identical_label_merge.json"}
PLACES = ("data.index", "objective.classes", *(f"objective.{name}" for name in STARTS))  # what differs from machine to machine


@dataclasses.dataclass(frozen=True)
class Stage:
    """One `train` command: the config, the name of its run directory, the data set, further words; `inferred` says what of it no script or text of
    the authors tells."""

    config: str
    run: str
    data: str
    words: tuple[str, ...] = ()
    inferred: str = ""

    @property
    def file(self) -> str:
        """The config file."""
        return f"configs/{self.config}.py"

    @property
    def command(self) -> str:
        """The line for a shell, with run directories below runs/, where the configs look for the stage before."""
        words = ("python", "-m", "videomae_jax", "train", f"--config={self.file}", f"--workdir=runs/{self.run}",
                 f"--config.data.index={self.data}.parquet", *self.words)
        return shlex.join(words)


@dataclasses.dataclass(frozen=True)
class Row:
    """A published result: top-1 and top-5 in percent (0 = not published) with its evidence, over `views`, and the stages that lead to it.

    `missing` says why there are no stages. `hours` tells what the authors report of the time of training; `top5_evidence` is of the top-5 alone where it
    has another source. Where `metric` is another one than top-1, `top1` holds that, in percent.
    """

    name: str
    stages: tuple[Stage, ...]
    top1: float
    top5: float
    evidence: str
    views: str = "5x3"
    hours: str = ""
    missing: str = ""
    top5_evidence: str = ""
    metric: str = "top-1"

    def __post_init__(self) -> None:
        for tag in (self.evidence, self.top5_evidence or self.evidence):
            if tag not in EVIDENCE:
                raise UserError(f"evidence {tag!r}; allowed are {', '.join(EVIDENCE)}")
        if bool(self.stages) is bool(self.missing):
            raise UserError(f"row {self.name!r} has stages, or says why not")

    @property
    def inferred(self) -> str:
        """The stages that no script or text of the authors tells, and what of them; "" for none."""
        return "; ".join(f"{stage.config} on {stage.data}, {stage.inferred}" for stage in self.stages if stage.inferred)

    @property
    def why(self) -> str:
        """Why the row cannot be run here, "" where it can: `missing`, or the first config of a stage that is not there."""
        for stage in self.stages:
            try:
                configs.find(stage.file)
            except UserError:
                return f"{stage.file} is not here"
        return self.missing


UNSCRIPTED = "of which the authors give no script"
DISTILLED = "of which the authors tell no temperature, length, rate and labels (configs/distill/base.py)"
STUDENT = "the last stage, taken for the student of K710 tested by its rows of these classes, since \"further fine-tuned\" is listed apart"


def _v2(size: str) -> Stage:
    # Its list holds frame folders, each with its stride, beside video files.
    words = ("--config.data.__symbol__=videomae_jax.data.frame_folders.FrameClips",)
    return Stage(f"pretrain/vit_{size}", f"vit_{size}", "hybrid", words, UNSCRIPTED if size == "s" else "")


def _v1(data: str, size: str, *, epochs: str = "") -> Stage:
    run = f"videomae_{data}_{size}{epochs}"
    return Stage(f"videomae/{data}_{size}", run, data, (f"--config.total={epochs}ep",) if epochs else ())


def _tune(name: str, data: str, *words: str) -> Stage:
    return Stage(f"finetune/{name}", f"finetune_{name}", data, words)


K710_G = (_v2("g"), _tune("k710_g", "k710"))
K710_S = Stage("finetune/k400_s", "finetune_k710_s", "k710", ("--config.objective.head.classes=710", "--config.objective.pretrained=runs/vit_s"), UNSCRIPTED)
S_K710 = (*K710_G, _v2("s"), K710_S, Stage("distill/k710_s", "distill_k710_s", "k710", inferred=DISTILLED))
B_K710 = (*K710_G, _v2("b"), _tune("k710_b", "k710"), Stage("distill/k710_b", "distill_k710_b", "k710", inferred=DISTILLED))
# One step at rate 0, then the test: the weights stay those of the stage before, and the head has its rows of the data's classes.
UNCHANGED = ("total=1", "optimizers.main.schedule.base=0", "optimizers.main.schedule.minimum=0", "optimizers.main.schedule.warmup=0")


def _student(size: str, data: str) -> Stage:
    """The test of the distilled student of K710 on other Kinetics, by the rows of its head."""
    fields = (f"objective.pretrained=runs/distill_k710_{size}", "objective.start=model", f"objective.classes=k710_to_{data}.json", *UNCHANGED)
    head = () if data == "k400" else (f"--config.objective.head.classes={data.removeprefix('k')}",)
    return Stage(f"finetune/k400_{size}", f"distill_k710_{size}_on_{data}", data, (*head, *(f"--config.{field}" for field in fields)), STUDENT)


G_HOURS = "pretraining 241 h on 64 A100 [secondary]"
NO_SCRIPT = "no script of the authors tells its hyper-parameters"
NO_PLACES = "only classification is measured here, no detection in space or time"
ROWS: tuple[Row, ...] = (
    Row("V2 g K710", K710_G, 83.8, 96.4, "code", hours=G_HOURS),
    Row("V2 g K400", (_v2("g"), _tune("k400_g", "k400")), 87.2, 97.4, "code", hours=G_HOURS),
    Row("V2 g K710 K400", (*K710_G, _tune("k400_g_after_k710", "k400")), 88.4, 98.0, "code", hours=G_HOURS),
    Row("V2 g K710 K600", (*K710_G, _tune("k600_g_after_k710", "k600")), 88.8, 98.2, "code", hours=G_HOURS),
    Row("V2 g SSv2", (_v2("g"), _tune("ssv2_g", "ssv2")), 77.0, 95.9, "code", views="2x3", hours=G_HOURS),
    Row("V2 g K710 UCF101", (*K710_G, _tune("ucf101_g", "ucf101")), 99.6, 100.0, "code", hours=G_HOURS),
    Row("V2 g K710 HMDB51", (*K710_G, _tune("hmdb51_g", "hmdb51")), 88.1, 98.5, "code", hours=G_HOURS),
    Row("V2 g K710 K400, 64 frames of 266", (), 90.0, 98.4, "abstract", views="6 [secondary]", missing=NO_SCRIPT, top5_evidence="unverified"),
    Row("V2 g K710 K600, 64 frames of 266", (), 89.9, 98.5, "abstract", views="6 [secondary]", missing=NO_SCRIPT, top5_evidence="unverified"),
    Row("V2 g SSv1", (), 68.7, 91.9, "abstract", views="-", missing=NO_SCRIPT, top5_evidence="unverified"),
    Row("V2 H K400", (_v2("h"), _tune("k400_h", "k400")), 86.9, 0, "secondary"),
    Row("V2 H K600", (_v2("h"), _tune("k600_h", "k600")), 0, 0, "code"),
    Row("V2 H K710", (_v2("h"), _tune("k710_h", "k710")), 0, 0, "code"),
    Row("V2 H K710 K400", (), 88.6, 0, "secondary", missing=NO_SCRIPT),
    Row("V2 H SSv2", (_v2("h"), _tune("ssv2_h", "ssv2")), 76.8, 0, "unverified", views="2x3"),
    Row("V2 L K400", (_v2("l"), _tune("k400_l", "k400")), 85.4, 0, "unverified"),
    Row("V2 L SSv2", (_v2("l"), _tune("ssv2_l", "ssv2")), 75.7, 0, "unverified", views="2x3"),
    Row("V2 B K400", (_v2("b"), _tune("k400_b", "k400")), 81.5, 0, "unverified"),
    Row("V2 B SSv2", (_v2("b"), _tune("ssv2_b", "ssv2")), 71.2, 0, "unverified", views="2x3"),
    Row("V2 B K400, encoder masks alone, 800 epochs", (), 81.52, 94.88, "secondary", views="-", missing=NO_SCRIPT),
    Row("V2 B SSv2, encoder masks alone, 800 epochs", (), 71.22, 93.31, "secondary", views="-", missing=NO_SCRIPT),
    Row("V2 B SSv2, masks of the ablation", (), 70.15, 0, "secondary", views="2x3", missing=NO_SCRIPT, hours="15.9 h on 64 GPUs [secondary]"),
    Row("V2 B SSv2, ablation, encoder masks alone", (), 70.28, 0, "secondary", views="2x3", missing=NO_SCRIPT, hours="28.4 h on 64 GPUs [secondary]"),
    Row("V2 B SSv2, ablation, frames", (), 69.76, 0, "unverified", views="2x3", missing=NO_SCRIPT),
    Row("V2 B SSv2, ablation, random tokens", (), 64.87, 0, "unverified", views="2x3", missing=NO_SCRIPT),
    Row("V2 B SSv2, ablation, loss on all decoded tokens", (), 66.74, 0, "unverified", views="2x3", missing=NO_SCRIPT),
    Row("V2 B SSv2, ablation, 25 % hidden from the decoder", (), 70.22, 0, "unverified", views="2x3", missing=NO_SCRIPT),
    Row("V2 B SSv2, ablation, 75 % hidden from the decoder", (), 70.01, 0, "unverified", views="2x3", missing=NO_SCRIPT),
    Row("V2 g THUMOS14", (), 69.6, 0, "code", views="-", missing=NO_PLACES, metric="average mAP"),
    Row("V2 g FineAction", (), 18.2, 0, "code", views="-", missing=NO_PLACES, metric="average mAP"),
    Row("V2 g AVA", (), 42.6, 0, "secondary", views="-", missing=NO_PLACES, metric="mAP"),
    Row("V2 g AVA-Kinetics", (), 43.9, 0, "secondary", views="-", missing=NO_PLACES, metric="mAP"),
    Row("V2 S distilled K710", S_K710, 77.6, 0, "code", hours=G_HOURS),
    Row("V2 S distilled K400", (*S_K710, _student("s", "k400")), 83.7, 0, "code", hours=G_HOURS),
    Row("V2 S distilled K600", (*S_K710, _student("s", "k600")), 83.1, 0, "code", hours=G_HOURS),
    Row("V2 S distilled K400, tuned further", (), 84.0, 0, "code", views="7x3", missing=NO_SCRIPT),
    Row("V2 S distilled K600, tuned further", (), 84.6, 0, "code", views="7x3", missing=NO_SCRIPT),
    Row("V2 B distilled K710", B_K710, 81.5, 0, "code", hours=G_HOURS),
    Row("V2 B distilled K400", (*B_K710, _student("b", "k400")), 86.6, 0, "code", hours=G_HOURS),
    Row("V2 B distilled K600", (*B_K710, _student("b", "k600")), 85.9, 0, "code", hours=G_HOURS),
    Row("V2 B distilled K400, tuned further", (), 87.1, 0, "code", views="7x3", missing=NO_SCRIPT),
    Row("V2 B distilled K600, tuned further", (), 87.4, 0, "code", views="7x3", missing=NO_SCRIPT),
    Row("V1 S K400", (_v1("k400", "s"), _tune("k400_s", "k400")), 79.0, 93.8, "code"),
    Row("V1 B K400, 800 epochs", (_v1("k400", "b", epochs="800"), _tune("v1_k400_b800", "k400")), 80.0, 94.4, "code",
        hours="pretraining 27 h on 64 V100 [secondary]"),
    Row("V1 B K400, 800 epochs, second row", (), 81.0, 94.8, "code", missing=NO_SCRIPT),
    Row("V1 B K400, 1600 epochs", (_v1("k400", "b"), _tune("v1_k400_b1600", "k400")), 81.5, 95.1, "code"),
    Row("V1 L K400", (_v1("k400", "l"), _tune("v1_k400_l", "k400")), 85.2, 96.8, "code"),
    Row("V1 H K400", (_v1("k400", "h"), _tune("v1_k400_h", "k400")), 86.6, 97.1, "code"),
    Row("V1 H K710 K400", (), 88.1, 0, "secondary", missing=NO_SCRIPT),
    Row("V1 L K400, 32 frames of 320", (), 86.1, 97.3, "code", views="4x3", missing=NO_SCRIPT),
    Row("V1 H K400, 32 frames of 320", (), 87.4, 97.6, "code", views="4x3", missing=NO_SCRIPT),
    Row("V1 S SSv2", (_v1("ssv2", "s"), _tune("v1_ssv2_s", "ssv2")), 66.8, 90.3, "code", views="2x3"),
    Row("V1 B SSv2, 800 epochs", (_v1("ssv2", "b", epochs="800"), _tune("v1_ssv2_b800", "ssv2")), 69.6, 92.0, "code", views="2x3"),
    Row("V1 B SSv2, 2400 epochs", (_v1("ssv2", "b"), _tune("v1_ssv2_b2400", "ssv2")), 70.8, 92.4, "code", views="2x3"),
    Row("V1 L SSv2", (), 74.3, 94.6, "code", views="2x3", missing=NO_SCRIPT),
    Row("V1 H SSv2", (), 74.8, 0, "unverified", views="2x3", missing=NO_SCRIPT),
    Row("V1 L SSv2, 32 frames", (), 75.4, 95.2, "code", views="1x3", missing=NO_SCRIPT),
    Row("V1 B UCF101", (_v1("ucf101", "b"), _tune("ucf101_b", "ucf101")), 91.3, 0, "code",
        hours="pretraining 30 h on 8 GPUs [secondary]"),
    Row("V1 B HMDB51", (), 62.6, 0, "code", missing=NO_SCRIPT),
    Row("V1 B K400 UCF101", (), 96.1, 0, "code", missing=NO_SCRIPT),
    Row("V1 B K400 HMDB51", (), 73.3, 0, "code", missing=NO_SCRIPT),
    Row("V1 S K400 AVA", (), 22.5, 0, "code", views="-", missing=NO_PLACES, metric="mAP"),
    Row("V1 S K400 AVA, with labels of K400", (), 28.4, 0, "code", views="-", missing=NO_PLACES, metric="mAP"),
    Row("V1 B K400 AVA", (), 26.7, 0, "code", views="-", missing=NO_PLACES, metric="mAP"),
    Row("V1 B K400 AVA, with labels of K400", (), 31.8, 0, "code", views="-", missing=NO_PLACES, metric="mAP"),
    Row("V1 L K400 AVA", (), 34.3, 0, "code", views="-", missing=NO_PLACES, metric="mAP"),
    Row("V1 L K400 AVA, with labels of K400", (), 37.0, 0, "code", views="-", missing=NO_PLACES, metric="mAP"),
    Row("V1 H K400 AVA", (), 36.5, 0, "code", views="-", missing=NO_PLACES, metric="mAP"),
    Row("V1 H K400 AVA, with labels of K400", (), 39.5, 0, "code", views="-", missing=NO_PLACES, metric="mAP"),
    Row("V1 L K700 AVA", (), 36.1, 0, "code", views="-", missing=NO_PLACES, metric="mAP"),
    Row("V1 L K700 AVA, with labels of K700", (), 39.3, 0, "code", views="-", missing=NO_PLACES, metric="mAP"),
)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the runs say of a row: "match", "miss", "not run", "no recipe" or "no figure", the measured top-1, and what is to be known of it."""

    row: Row
    verdict: str
    top1: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def counted(self) -> str:
        """What the row counts as: a match with notes is "match, with deviations", reached by another recipe, on other data or in another test."""
        return "match, with deviations" if self.verdict == "match" and self.notes else self.verdict


def judge(row: Row, runs: pathlib.Path, /, *, tolerance: float = TOLERANCE) -> Verdict:
    """Compares the test of the last stage with the published top-1: a match is not more than `tolerance` points below it.

    A run in progress counts as not run. Noted are fields that differ from the shipped config, those of the test among them, another number of
    training clips or tested videos than that of the official lists, a start from another directory than that of the stage before, and earlier
    stages that are not below `runs`, are unfinished or differ themselves.
    """
    if row.why:
        return Verdict(row, "no recipe", notes=(row.why,))
    stage = row.stages[-1]
    folder = runs / stage.run
    results = _read(folder / "summary.json").get("results")
    top1 = results.get("test/top1") if isinstance(results, dict) else None
    if top1 is None or not _finished(folder):
        return Verdict(row, "not run")
    notes = changes(stage, folder)
    videos, wanted = results.get("test/videos"), COUNTS[stage.data][1]
    if videos != wanted:
        notes += (f"tested on {f'{videos:.0f}' if videos else 'an unknown number of'} videos; the official list has {wanted}",)
    notes += tuple(f"{earlier.run}: {note}" for earlier in row.stages[:-1] for note in _before(earlier, runs / earlier.run))
    if not row.top1:
        return Verdict(row, "no figure", top1, notes)
    return Verdict(row, "match" if top1 >= row.top1 - tolerance else "miss", top1, notes)


def _before(stage: Stage, folder: pathlib.Path, /) -> tuple[str, ...]:
    """What is to be known of the run of a stage that others start from."""
    if not (folder / "config.json").is_file():
        return (f"no run under {folder}",)
    return (() if _finished(folder) else ("unfinished",)) + changes(stage, folder)


def _finished(folder: pathlib.Path, /) -> bool:
    """Whether a run directory has the summary of all steps of its recipe card."""
    done, total = (_read(folder / name).get("steps") for name in ("summary.json", "recipe_card.json"))
    return done is not None and done == total


def changes(stage: Stage, folder: pathlib.Path, /) -> tuple[str, ...]:
    """How a run differs from the shipped config and the official list: fields that change weights or test, the run it starts from, its clips.

    Other paths count nothing where they lead to a directory of the same name, or here to that of the stage before, beside `folder`.
    """
    shipped = configs.load(stage.file)
    configs.override(shipped, dict(word.removeprefix("--config.").split("=", 1) for word in stage.words))
    stored = run_directory.open_run(folder)
    found = configs.compare(shipped, stored)
    lines = [line for kind in ("never", "fork", "extend") for line in found[kind]]
    lines += [line for line in found["free"] if line.startswith(TEST) and not re.match(reference.SCHEDULING, line)]
    lines = [line for line in lines if not line.startswith(tuple(f"{place}:" for place in PLACES))]
    for name in STARTS:
        wanted, started = (config.objective.get(name, "") for config in (shipped, stored))
        if not _same(started, folder.parent / pathlib.Path(wanted).name if wanted else None):
            lines.append(f"objective.{name}: {wanted!r} -> {started!r}")
    clips, listed = _read(folder / run_directory.DATA).get("clips"), COUNTS[stage.data][0]
    if clips is None or abs(clips - listed) > ROUNDED.get(stage.data, 0):
        lines.append(f"trained on {'an unknown number of' if clips is None else clips} clips; the official list has {listed}")
    return tuple(lines)


def _same(started: str, wanted: pathlib.Path | None, /) -> bool:
    """Whether a stored start is the run directory `wanted`, its checkpoints or the last of them; one that is not there was of another machine, and has its name."""
    if wanted is None or not started:
        return not wanted and not started
    path = pathlib.Path(started)
    if path.parent.name == "checkpoints" and path.name.isdigit() and int(path.name) == _read(wanted / "summary.json").get("steps"):
        path = path.parent
    path = path.parent if path.name == "checkpoints" else path
    return path.name == wanted.name and (not path.exists() or path.resolve() == wanted.resolve())


def _read(path: pathlib.Path, /) -> dict[str, Any]:
    """A JSON object, {} where there is no file. Raises UserError where it is damaged."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object")
    return found


def chip_hours(topology: str, /, *, say: Callable[[str], None] = lambda line: None) -> dict[Stage, dict[str, Any]]:
    """`forecast.stage` of every stage at MFU of the chip's peak. Raises UserError for an unknown topology."""
    from videomae_jax import forecast, topologies

    where, found = topologies.find(topology), {}
    for stage in dict.fromkeys(stage for row in ROWS if not row.why for stage in row.stages):
        say(f"counting {stage.config}")
        config = configs.load(stage.file)
        configs.override(config, dict(word.removeprefix("--config.").split("=", 1) for word in stage.words))
        trained, tested = COUNTS[stage.data]
        config = forecast.without_index(config, videos=trained)
        found[stage] = forecast.stage(config, where, MFU, tested=tested if "test" in config.evaluators else 0)
    return found


def lines(verdicts: Iterable[Verdict], /, *, hours: Mapping[Stage, Mapping[str, Any]] = {}) -> list[str]:
    """A Markdown page: the table of all rows, then the commands, data counts and `chip_hours` of every row that has a recipe."""
    shown = ["| row | views | published top-1 / top-5 | evidence | measured top-1 | verdict |", "|---|---|---|---|---|---|"]
    kept = list(verdicts)
    for v in kept:
        published = f"{v.row.top1:g} / {f'{v.row.top5:g}' if v.row.top5 else '-'}" if v.row.top1 else "-"
        if v.row.metric != "top-1":
            published = f"{v.row.top1:g} {v.row.metric}"
        measured = "-" if v.top1 is None else f"{v.top1:.2f}"
        evidence = v.row.evidence + (f", top-5 {v.row.top5_evidence}" if v.row.top5_evidence else "")
        shown.append(f"| {v.row.name} | {v.row.views} | {published} | {evidence} | {measured} | {'; '.join((v.counted, *v.notes))} |")
    for v in (v for v in kept if not v.row.why):
        shown += ["", f"## {v.row.name}", ""]
        shown += [f"    {INDEXES[data]}" for data in dict.fromkeys(stage.data for stage in v.row.stages) if data in INDEXES]
        shown += [f"    {stage.command}" for stage in v.row.stages]
        counts: Mapping[str, tuple[int, int]] = {stage.data: COUNTS[stage.data] for stage in v.row.stages}
        shown += ["", "Clips: " + "; ".join(f"{name} {train:,} train" + (f", {val:,} val" if val else "") for name, (train, val) in counts.items()) + "."]
        shown += [f"Reported: {v.row.hours}."] if v.row.hours else []
        shown += [f"Inferred: {v.row.inferred}."] if v.row.inferred else []
        if hours:
            each = [hours[stage] for stage in v.row.stages]
            total = sum(one["chip_hours"] + one.get("test_chip_hours", 0.0) for one in each)
            shown += ["Chip-hours: " + " + ".join(f"{one['chip_hours']:,.0f}" for one in each) + f", with tests {total:,.0f} [computed]."]
    return shown


def page(runs: pathlib.Path, /, *, tolerance: float = TOLERANCE, hours: Mapping[Stage, Mapping[str, Any]] = {}) -> tuple[str, dict[str, int]]:
    """The page as text and the number of rows of every verdict, matches with deviations apart (`Verdict.counted`)."""
    verdicts = [judge(row, runs, tolerance=tolerance) for row in ROWS]
    counts: dict[str, int] = {}
    for v in verdicts:
        counts[v.counted] = counts.get(v.counted, 0) + 1
    return "\n".join(lines(verdicts, hours=hours)) + "\n", counts
