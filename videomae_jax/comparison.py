"""Two runs side by side on one page: what differs between their configs, their curves, and their values at the same step."""

import html
import pathlib
from collections.abc import Sequence

from videomae_jax import config as configs
from videomae_jax import metrics, pages, records, reference, run_directory, starts
from videomae_jax.charts import Line, chart
from videomae_jax.errors import UserError
from videomae_jax.records import Record

CURVES = ("loss", "grad_norm", "lr", "clips_per_second")  # of training; every value of an evaluator gets a chart beside them
LIMITS = {"never": "another model or objective: the losses may measure different things", "fork": "data, batch, seed or optimiser",
          "extend": "length", "free": "no influence on what is learned"}


def write(directories: Sequence[pathlib.Path], out: pathlib.Path, /) -> pathlib.Path:
    """Writes the page `out` about two run directories, finished or not, and returns its path. Raises UserError for other files."""
    if out.suffix != ".html":
        raise UserError(f"--out={out}; allowed is a file name that ends in .html")
    found = [records.load(directory) for directory in directories]
    try:
        run_directory.write(out, page(found, names=labels(directories)))
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


def shared(runs: Sequence[Record], name: str, /) -> int | None:
    """The last step at which both runs have a value of this name."""
    steps = [{int(step) for step, _ in record.series(name)} for record in runs]
    return max(steps[0] & steps[1], default=None)


def at(record: Record, name: str, step: int, /) -> float:
    """A value at a step that has one."""
    return next(value for s, value in reversed(record.series(name)) if int(s) == step)


def values(runs: Sequence[Record], /) -> list[list[str]]:
    """Rows: name, last shared step, both values there, their difference, the last values of each run."""
    names = dict.fromkeys(key for record in runs for line in record.lines for key in line if key != "step")
    rows = []
    for name in names:
        step, last = shared(runs, name), [record.last(name) for record in runs]
        cells = ["", "", "", ""]
        if step is not None:
            pair = [at(record, name, step) for record in runs]
            cells = [f"{step:,}", *map(pages.number, pair), f"{pair[1] - pair[0]:+.4g}"]
        rows.append([name, *cells, *("" if value is None else pages.number(value) for value in last)])
    return rows


def differences(runs: Sequence[Record], /) -> str:
    """Fields of the configs that differ, by what they change."""
    found = configs.compare(runs[0].config, runs[1].config)
    parts = []
    for kind, meaning in LIMITS.items():
        if found[kind]:
            rows = [[line.partition(": ")[0], *line.partition(": ")[2].partition(" -> ")[::2]] for line in found[kind]]
            parts.append(f"<h3>{html.escape(meaning)} ({len(rows)})</h3>" + pages.table(["field", "first", "second"], rows))
    return "<h2>Configs</h2>" + ("".join(parts) or "<p>The configs are equal.</p>")


def curves(runs: Sequence[Record], /, *, names: Sequence[str]) -> str:
    """Both runs in one chart for every curve that either has."""
    evaluated = dict.fromkeys(f"{group}/{value}" for record in runs for group, found in record.evaluators.items() for value in found)
    parts = []
    for name in (*CURVES, *evaluated):
        lines = [Line(label, record.series(name), marks=name in evaluated) for record, label in zip(runs, names, strict=True)]
        parts.append(chart(lines, title=name, x="step", y=name.rpartition("/")[2], width=440, height=240))
    return f'<h2>Curves</h2><div class="two">{"".join(parts)}</div>'


def caveats(runs: Sequence[Record], /) -> str:
    """What a reader must know before the numbers are compared."""
    found = configs.compare(runs[0].config, runs[1].config)
    lines = []
    if found["never"]:
        lines.append("The runs have other models or objectives: losses of recipes with other targets or masks do not compare; evaluators with the same protocol do.")
    if runs[0].total != runs[1].total:
        lines.append(f"The runs are {runs[0].total:,} and {runs[1].total:,} steps long, so their learning rates differ at the same step.")
    if not all(record.finished for record in runs):
        lines.append("Not both runs are finished.")
    if others := reference.remeasured(runs[0].config, runs[1].config):
        lines.append(f"They are measured otherwise ({', '.join(others)}): results of those evaluators do not compare.")
    moved = all(record.data for record in runs) and runs[0].data != runs[1].data
    if moved:
        lines.append(f"They were trained on other clips ({runs[0].data['clips']:,} and {runs[1].data['clips']:,}).")
    if len({(record.config.seed, record.total) for record in runs}) == 1 and not any(found[k] for k in ("fork", "never", "extend")) and not others and not moved:
        lines.append("Seed and settings are equal: a difference is one of machines or code.")
    elif len({record.config.seed for record in runs}) > 1 or found["fork"] or found["never"]:
        lines.append("One seed each: a difference says nothing about chance. `evaluate --suite=evidence` trains several.")
    lines.append(f"{', '.join(metrics.TIMING)} compare machines as much as runs.")
    return "".join(pages.note(line) for line in lines)


def page(runs: Sequence[Record], /, *, names: Sequence[str]) -> str:
    """The whole page."""
    heading = pages.table(["", *names], [["name", *(str(r.config.name) for r in runs)], ["step", *(f"{r.step:,} of {r.total:,}" for r in runs)],
                                       ["finished", *("yes" if r.finished else "no" for r in runs)],
                                       ["last start", *(starts.text(r.starts[-1]) if r.starts else "not recorded" for r in runs)]])
    head = ["value", "last shared step", *(f"{n} there" for n in names), "second - first", *(f"{n}, last" for n in names)]
    body = "\n".join((heading, caveats(runs), "<h2>Values</h2>", pages.table(head, values(runs)), curves(runs, names=names), differences(runs)))
    return pages.page(f"{names[0]} and {names[1]}", "two runs compared", body)
