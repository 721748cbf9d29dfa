"""Two runs side by side on one page: what differs between their configs, their curves, and their values at the same step."""

import datetime
import html
import pathlib
from collections.abc import Sequence

from videomae_jax import config as configs
from videomae_jax import report, run_directory
from videomae_jax.charts import Line, chart
from videomae_jax.errors import UserError
from videomae_jax.report import Record

CURVES = ("loss", "grad_norm", "lr", "clips_per_second")  # of training; every value of an evaluator gets a chart beside them
LIMITS = {"never": "another model or objective: the losses may measure different things", "fork": "data, batch, seed or optimiser",
          "extend": "length", "free": "no influence on what is learned"}
TIMING = ("clips_per_second", "data_wait", "data_wait_ms")  # they compare machines as well


def write(directories: Sequence[pathlib.Path], out: pathlib.Path, /) -> pathlib.Path:
    """Writes the page `out` about two run directories, finished or not, and returns its path. Raises UserError for other files."""
    if out.suffix != ".html":
        raise UserError(f"--out={out}; allowed is a file name that ends in .html")
    records = [report.load(directory) for directory in directories]
    try:
        run_directory.write(out, page(records, names=labels(directories)))
    except OSError as error:
        raise UserError(f"cannot write to --out={out}: {error.strerror}") from error
    return out


def labels(directories: Sequence[pathlib.Path], /) -> list[str]:
    """The ends of the paths, as long as needed to tell them apart. Raises UserError for one run given twice."""
    paths = [directory.resolve() for directory in directories]
    if paths[0] == paths[1]:
        raise UserError(f"{directories[0]} is given twice; needed are two runs")
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        found = ["/".join(path.parts[-count:]) for path in paths]
        if found[0] != found[1]:
            return found
    return [str(path) for path in paths]


def shared(records: Sequence[Record], name: str, /) -> int | None:
    """The last step at which both runs have a value of this name."""
    steps = [{int(step) for step, _ in record.series(name)} for record in records]
    return max(steps[0] & steps[1], default=None)


def at(record: Record, name: str, step: int, /) -> float:
    """A value at a step that has one."""
    return next(value for s, value in reversed(record.series(name)) if int(s) == step)


def values(records: Sequence[Record], /) -> list[list[str]]:
    """Rows: name, last shared step, both values there, their difference, the last values of each run."""
    names = dict.fromkeys(key for record in records for line in record.lines for key in line if key != "step")
    rows = []
    for name in names:
        step, last = shared(records, name), [record.last(name) for record in records]
        cells = ["", "", "", ""]
        if step is not None:
            pair = [at(record, name, step) for record in records]
            cells = [f"{step:,}", *map(report.number, pair), f"{pair[1] - pair[0]:+.4g}"]
        rows.append([name, *cells, *("" if value is None else report.number(value) for value in last)])
    return rows


def differences(records: Sequence[Record], /) -> str:
    """Fields of the configs that differ, by what they change."""
    found = configs.compare(records[0].config, records[1].config)
    parts = []
    for kind, meaning in LIMITS.items():
        if found[kind]:
            rows = [[line.partition(": ")[0], *line.partition(": ")[2].partition(" -> ")[::2]] for line in found[kind]]
            parts.append(f"<h3>{html.escape(meaning)} ({len(rows)})</h3>" + report.table(["field", "first", "second"], rows))
    return "<h2>Configs</h2>" + ("".join(parts) or "<p>The configs are equal.</p>")


def curves(records: Sequence[Record], /, *, names: Sequence[str]) -> str:
    """Both runs in one chart for every curve that either has."""
    evaluated = dict.fromkeys(f"{group}/{value}" for record in records for group, found in record.evaluators.items() for value in found)
    parts = []
    for name in (*CURVES, *evaluated):
        lines = [Line(label, record.series(name), marks=name in evaluated) for record, label in zip(records, names, strict=True)]
        parts.append(chart(lines, title=name, x="step", y=name.rpartition("/")[2], width=440, height=240))
    return f'<h2>Curves</h2><div class="two">{"".join(parts)}</div>'


def caveats(records: Sequence[Record], /) -> str:
    """What a reader must know before the numbers are compared."""
    found = configs.compare(records[0].config, records[1].config)
    lines = []
    if found["never"]:
        lines.append("The runs have other models or objectives: losses of recipes with other targets or masks do not compare; evaluators with the same protocol do.")
    if records[0].total != records[1].total:
        lines.append(f"The runs are {records[0].total:,} and {records[1].total:,} steps long, so their learning rates differ at the same step.")
    if not all(record.finished for record in records):
        lines.append("Not both runs are finished.")
    if len({record.config.seed for record in records}) == 1 and not found["fork"] and not found["never"]:
        lines.append("Seed and settings are equal: a difference is one of machines or code.")
    else:
        lines.append("One seed each: a difference says nothing about chance. `evaluate --suite=evidence` trains several.")
    lines.append(f"{', '.join(TIMING)} compare machines as much as runs.")
    return "".join(report.note(line) for line in lines)


def page(records: Sequence[Record], /, *, names: Sequence[str]) -> str:
    """The whole page."""
    title = html.escape(f"{names[0]} and {names[1]}")
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    runs = report.table(["", *names], [["name", *(str(r.config.name) for r in records)], ["step", *(f"{r.step:,} of {r.total:,}" for r in records)],
                                       ["finished", *("yes" if r.finished else "no" for r in records)]])
    head = ["value", "last shared step", *(f"{n} there" for n in names), "second - first", *(f"{n}, last" for n in names)]
    body = "\n".join((runs, caveats(records), "<h2>Values</h2>", report.table(head, values(records)), curves(records, names=names), differences(records)))
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>{title}</title><style>{report.STYLE}</style></head><body><main>\n<h1>{title}</h1>\n"
            f'<p class="sub">two runs compared; page of {now}</p>\n{body}\n</main></body></html>\n')
