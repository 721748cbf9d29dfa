"""report.html of a run directory: one self-contained page that says what was run and what came out, with its limits."""

import base64
import collections
import dataclasses
import html
import math
import pathlib
from collections.abc import Sequence

from videomae_jax import config as configs
from videomae_jax import events, ledger, metrics, pages, reference, run_directory
from videomae_jax.charts import Line, chart
from videomae_jax.pages import note, number, table
from videomae_jax.records import Record

CLIPS = 4  # drawn clips shown of a step
GIF_BYTES = 3_000_000  # a larger animation is left out of the page
SHOWN = 20  # faults listed
PROBE = ("trained", "untrained", "pixels", "chance")
TRIVIAL = {"loss_zero": "predict zero", "loss_nearest": "copy the nearest visible patch", "loss_linear": "interpolate the visible pixels"}


def write(record: Record, /) -> pathlib.Path:
    """Writes report.html into the directory of a run and returns its path."""
    path = record.directory / "report.html"
    run_directory.write(path, page(record))
    return path


def page(record: Record, /) -> str:
    """The whole page."""
    name = record.config.name or "unnamed run"
    state = "finished" if record.finished else "in progress or stopped"
    of = f" of {record.total:,}" if record.total else ""
    took = f", {metrics.clock(record.summary['seconds'])} of wall time in the last call" if record.finished else ""
    sections = (tiles, losses, reference.section, pictures, probes, results, optimisation, throughput, time_spent, faults, card, ran, settings)
    body = "\n".join(section(record) for section in sections)
    return pages.page(name, f"{state}: step {record.step:,}{of}{took}", body)


def tiles(record: Record, /) -> str:
    """The few numbers that say how the run stands."""
    loss, zero = record.last("loss"), record.last("loss_zero")
    found = [("training loss", f"{loss:.4f}", f"predict zero {zero:.4f}" if zero is not None else "")] if loss is not None else []
    for group, names in record.evaluators.items():
        if {"loss", "loss_zero"} <= set(names):
            found.append((f"held-out loss ({group})", f"{record.last(f'{group}/loss'):.4f}", f"predict zero {record.last(f'{group}/loss_zero'):.4f}"))
    for group, names in record.evaluators.items():
        if set(PROBE) <= set(names):
            gain = record.last(f"{group}/trained") - record.last(f"{group}/untrained")
            found.append((f"probe: {group}", f"{record.last(f'{group}/trained'):.1f} %", f"{gain:+.1f} points over untrained"))
    rates = [v for _, v in record.series("clips_per_second")]
    if rates:
        wait = record.last("data_wait")
        found.append(("throughput", f"{sorted(rates)[len(rates) // 2]:,.1f} clips/s", f"data wait {100 * wait:.0f} % at last" if wait is not None else ""))
    if not found:
        return note("metrics.jsonl holds no value yet.")
    return '<div class="tiles">' + "".join(
        f'<div class="tile"><span>{html.escape(a)}</span><b>{html.escape(b)}</b><span>{html.escape(c)}</span></div>' for a, b, c in found) + "</div>"


def losses(record: Record, /) -> str:
    """Training and held-out loss beside predictors that learn nothing."""
    names = list(dict.fromkeys(k for line in record.lines for k in line))
    trained = [n for n in names if (n == "loss" or n.endswith("/loss")) and n.partition("/")[0] not in record.config.evaluators]
    lines = [Line("training" if n == "loss" else n, record.series(n)) for n in trained]
    if record.series("loss_zero"):
        lines.append(Line("predict zero (training batches)", record.series("loss_zero"), dash=True))
    for group, values in record.evaluators.items():
        if "loss" in values:
            lines.append(Line(f"held-out ({group})", record.series(f"{group}/loss"), marks=True))
            lines += [Line(f"held-out: {what}", record.series(f"{group}/{k}"), dash=True) for k, what in TRIVIAL.items()
                      if k in values and not (k == "loss_zero" and record.series("loss_zero"))]
    drawn = chart(lines, title="Loss", x="step", y="loss") + later(lines)
    broken = sum(not math.isfinite(v) for line in lines for _, v in line.points)
    warning = note(f"{broken} logged loss values are not finite and are left out of the chart.") if broken else ""
    return f"<h2>Loss</h2>{warning}{drawn}{caveats(record) if drawn else ''}" if drawn or warning else ""


def later(lines: Sequence[Line], /) -> str:
    """The lines after the first fifth of the steps on their own scale, where the start and the trivial predictors hide the rest."""
    end = max((x for line in lines for x, _ in line.finite), default=0)
    close = [dataclasses.replace(line, points=[(x, y) for x, y in line.points if x >= end / 5]) for line in lines if not line.name.startswith("held-out: ")]
    return chart(close, title="Loss after the first fifth", x="step", y="loss", height=240) if sum(len(line.points) > 1 for line in close) else ""


def normalisation(record: Record, /) -> str:
    """How the targets are normalised, "" where the recipe does not say."""
    target = record.config.objective.get("target", {})
    return str(target.get("normalise", "")) if hasattr(target, "get") else ""


def caveats(record: Record, /) -> str:
    """What a reader of the loss must know."""
    if normalisation(record) not in ("channel", "joint"):
        return ""
    return note("Targets are normalised within each patch, so predicting zero means predicting each patch's true mean, and scores about 1. "
                "A loss a little below 1 can already be much structure, and losses of recipes with other targets or masks do not compare.")


def pictures(record: Record, /) -> str:
    """Reconstructions of the newest step that has some, and the first clip of the oldest for comparison."""
    if not record.pictures:
        return ""
    steps = list(record.pictures)
    parts = ["<h2>Reconstructions of held-out clips</h2>"]
    if normalisation(record) in ("channel", "joint"):
        parts.append(note("The model predicts normalised patches. They are drawn with the TRUE mean and deviation of each patch, which the model "
                          "does not predict: colour and contrast come from the answer, only the structure within a patch is predicted."))
    for path in record.pictures[steps[-1]][:CLIPS]:
        parts.append(figure(path, f"step {steps[-1]:,}, clip {path.stem.partition('_')[2]}"))
    if len(steps) > 1:
        parts.append(figure(record.pictures[steps[0]][0], f"for comparison: step {steps[0]:,}, clip {record.pictures[steps[0]][0].stem.partition('_')[2]}"))
    return "".join(parts)


def figure(path: pathlib.Path, caption: str, /) -> str:
    """The sheet of a clip and, where it is small enough, its animation, embedded."""
    images, gif = [path], path.with_suffix(".gif")
    images += [gif] if gif.is_file() and gif.stat().st_size <= GIF_BYTES else []
    shown = "".join(f'<img alt="{html.escape(caption)}" src="data:image/{p.suffix[1:]};base64,{base64.b64encode(p.read_bytes()).decode()}">' for p in images)
    return f"<figure><figcaption>{html.escape(caption)}</figcaption>{shown}</figure>"


def probes(record: Record, /) -> str:
    """Frozen-feature accuracy beside the untrained encoder, raw pixels and chance."""
    rows, fields = [], set()
    for group, names in record.evaluators.items():
        if not set(PROBE) <= set(names):
            continue

        def cell(kind: str, group: str = group) -> str:
            deviation = record.last(f"{group}/{kind}_std")
            return f"{record.last(f'{group}/{kind}'):.1f}" + (f" ± {deviation:.1f}" if deviation is not None else "")

        step = record.series(f"{group}/trained")[-1][0]
        gain = record.last(f"{group}/trained") - record.last(f"{group}/untrained")
        rows.append([group, number(int(step)), *(cell(k) for k in PROBE), f"{gain:+.1f}"])
        node = record.config.evaluators[group]
        fields.add((node.get("train", "?"), node.get("test", "?"), node.get("seeds", "?")))
    if not rows:
        return ""
    size = "; ".join(f"{a} training and {b} test clips at most, {c} seeds" for a, b, c in sorted(fields, key=str))
    return ("<h2>Linear probes of the frozen encoder</h2>" + table(["accuracy in %", "step", *PROBE, "gain"], rows) + note(
        f"Ridge regression on frozen features: {size}; ± is the deviation over seeds. "
        "What the untrained encoder or raw pixels reach was not learnt by this run."))


def results(record: Record, /) -> str:
    """Every evaluator value at its first and its last step."""
    rows = []
    for group, names in record.evaluators.items():
        for name in names:
            found = record.series(f"{group}/{name}")
            rows.append([f"{group}/{name}", number(found[0][1]), number(found[-1][1]), f"{int(found[0][0]):,}", f"{int(found[-1][0]):,}"])
    if not rows:
        return "<h2>Evaluators</h2>" + note("No evaluator has left a result: everything here was measured on training batches.")
    return f"<h2>Evaluators</h2><details><summary>{len(rows)} values</summary>{table(['value', 'first', 'last', 'first step', 'last step'], rows)}</details>"


def optimisation(record: Record, /) -> str:
    """Learning rate and gradient norm."""
    names = list(dict.fromkeys(k for line in record.lines for k in line))
    parts = [chart([Line(n, record.series(n)) for n in names if n == key or n.endswith(f"/{key}")], title=title, x="step", y=y, width=440, height=220)
             for key, title, y in (("lr", "Learning rate", "rate"), ("grad_norm", "Gradient norm", "norm"))]
    return f'<h2>Optimisation</h2><div class="two">{"".join(parts)}</div>' if any(parts) else ""


def throughput(record: Record, /) -> str:
    """Clips a second and the share of the time that the step waited for data."""
    rate, wait = record.series("clips_per_second"), record.series("data_wait")
    if not rate:
        return ""
    flops = record.card.get("train_flops_per_clip")
    parts = [chart([Line("clips/s", rate)], title="Throughput", x="step", y="clips/s", width=440, height=220, zero=True),
             chart([Line("data wait", [(s, 100 * v) for s, v in wait])], title="Share of time waiting for data", x="step", y="%", width=440, height=220, zero=True)]
    ordered = sorted(v for _, v in rate)
    rows = [["clips/s, median (lowest to highest interval)", f"{ordered[len(ordered) // 2]:,.2f} ({ordered[0]:,.2f} to {ordered[-1]:,.2f})"]]
    if wait:
        rows.append(["data wait, mean over intervals", f"{100 * sum(v for _, v in wait) / len(wait):.1f} %"])
    if flops:
        rows.append(["model FLOP/s at the median, all devices", f"{ordered[len(ordered) // 2] * flops / 1e9:,.1f} GFLOP/s"])
    return f'<h2>Throughput</h2><div class="two">{"".join(parts)}</div>{table([], rows)}'


def time_spent(record: Record, /) -> str:
    """Where the time of all starts went, and what went wrong meanwhile."""
    found, happened = ledger.goodput(record.directory), events.read(record.directory)
    parts = []
    if found is not None:
        rows = [[name.replace("_", " "), f"{found.seconds[name]:,.1f}", f"{100 * found.seconds[name] / max(found.wall, 1e-9):.1f} %"] for name in ledger.CLASSES]
        parts.append(f"<h2>Goodput</h2><p>{100 * found.share:.1f} % of the time that the run was up went into steps that count; {found.starts} starts, "
                     f"{found.wall:,.1f} s from first to last.</p>" + table(["class", "seconds", "share of wall time"], rows))
    if happened:
        rows = [[str(e.get("event", "?")), number(e.get("step", "?")), ", ".join(f"{k} {v}" for k, v in e.items() if k not in ("event", "step", "time"))]
                for e in happened[-SHOWN:]]
        parts.append(f"<h2>Events</h2><p>{len(happened)} in all, the last ones:</p>" + table(["event", "step", "what"], rows))
    return "".join(parts)


def faults(record: Record, /) -> str:
    """Videos that could not be read and were replaced."""
    if not record.faults:
        return "<h2>Faults</h2><p>No video was replaced.</p>"
    stages = collections.Counter(str(f.get("stage", "?")) for f in record.faults)
    rows = [[str(f.get("name", "?")), str(f.get("stage", "?")), number(f.get("position", "?"))] for f in record.faults[:SHOWN]]
    more = f"<p>... and {len(record.faults) - SHOWN} more in faults.jsonl</p>" if len(record.faults) > SHOWN else ""
    counts = ", ".join(f"{n} at {stage}" for stage, n in stages.most_common())
    return (f"<h2>Faults</h2><p>{len(record.faults)} videos could not be read and were replaced by others: {html.escape(counts)}.</p>"
            f"{table(['video', 'stage', 'position in the stream'], rows)}{more}")


def card(record: Record, /) -> str:
    """The recipe card."""
    if not record.card:
        return "<h2>Recipe card</h2>" + note("The directory holds no recipe_card.json.")
    rows = [[k.replace("_", " ").replace(".", ": "), number(v)] for k, v in configs.flat(dict(record.card)).items()]
    return f"<h2>Recipe card</h2>{table(['quantity', 'value'], rows)}"


def ran(record: Record, /) -> str:
    """What every start ran on, the last ones."""
    rows = [[number(s["step"]), s["time"], f"{s['devices']} x {s['device']}, {s['processes']} process{'es' * (s['processes'] > 1)}",
             ", ".join(f"{k} {v}" for k, v in s["mesh"].items()), str(s["revision"] or s["videomae_jax"]),
             ", ".join(f"{k} {v}" for k, v in (("Python", s["python"]), *s["libraries"].items()))] for s in record.starts[-SHOWN:]]
    return f"<h2>Starts</h2>{table(['from step', 'time', 'devices', 'mesh', 'revision', 'versions'], rows)}" if rows else ""


def settings(record: Record, /) -> str:
    """The resolved config, folded away."""
    text = html.escape(configs.to_json(record.config))
    return f"<h2>Config</h2><details><summary>config.json</summary><pre>{text}</pre></details>"
