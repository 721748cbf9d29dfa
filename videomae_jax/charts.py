"""Line charts as inline SVG, without a plotting library: they print sharp and need no script."""

import dataclasses
import html
import math
from collections.abc import Sequence

POINTS = 500  # of a line; longer ones are averaged in equal parts
LOGARITHMIC = 30.0  # ratio of the largest to the smallest value above which the axis is logarithmic
MARGIN = (62, 12, 12, 40)  # left, right, top, bottom
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#555555")  # Okabe and Ito: distinct to every eye


@dataclasses.dataclass(frozen=True)
class Line:
    """A named line of (x, y) points; `dash` draws it dashed, `marks` a dot at every point."""

    name: str
    points: Sequence[tuple[float, float]]
    dash: bool = False
    marks: bool = False

    @property
    def finite(self) -> list[tuple[float, float]]:
        """Points without NaN and infinity."""
        return [(x, y) for x, y in self.points if math.isfinite(y)]


def thinned(points: Sequence[tuple[float, float]], /, *, most: int = POINTS) -> list[tuple[float, float]]:
    """At most `most` points: means over equal runs of neighbours; the first and the last point stay."""
    if len(points) <= most:
        return list(points)
    inner, parts = points[1:-1], most - 2
    bounds = [i * len(inner) // parts for i in range(parts + 1)]
    means = [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run))
             for a, b in zip(bounds, bounds[1:], strict=False) if (run := inner[a:b])]
    return [points[0], *means, points[-1]]


def ticks(low: float, high: float, /, *, count: int = 5) -> list[float]:
    """About `count` round numbers within [low, high]."""
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    spacing = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / spacing - 1e-9)
    return [n * spacing for n in range(first, math.floor(high / spacing + 1e-9) + 1)]


def decades(low: float, high: float, /) -> list[float]:
    """1, 2 and 5 times the powers of ten within [low, high]; powers alone over three decades and more."""
    steps = (1,) if high / low >= 1e3 else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [m * 10.0**p for p in powers for m in steps if low <= m * 10.0**p <= high]


def label(value: float, /) -> str:
    """A tick label."""
    return f"{value:,.0f}" if abs(value) >= 1000 and value == round(value) else f"{value:.4g}"


@dataclasses.dataclass(frozen=True)
class Axis:
    """Values to places on the page: linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float, /) -> float:
        """The place of a value."""
        low, high, value = (math.log(v) for v in (self.low, self.high, value)) if self.logarithmic else (self.low, self.high, value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        """Values with a grid line."""
        found = decades(self.low, self.high) if self.logarithmic else ticks(self.low, self.high)
        return found if len(found) > 1 else [self.low, self.high]


def scale(values: Sequence[float], /, *, start: float, end: float, zero: bool = False) -> Axis:
    """An axis with a margin around `values`; logarithmic where they span much; from 0 with `zero`."""
    low, high = min(values), max(values)
    if not zero and low > 0 and high / low > LOGARITHMIC:
        return Axis(low / 1.15, high * 1.15, start, end, logarithmic=True)
    pad = 0.06 * (high - low) or abs(high) * 0.05 or 1.0
    return Axis(0.0 if zero else low - pad, high + pad, start, end)


def chart(lines: Sequence[Line], /, *, title: str, x: str, y: str, width: int = 880, height: int = 320, zero: bool = False) -> str:
    """An <figure> with one SVG and its legend, or "" when no line has a finite point."""
    drawn = [(line, thinned(line.finite), COLOURS[i % len(COLOURS)]) for i, line in enumerate(lines)]
    drawn = [d for d in drawn if d[1]]
    if not drawn:
        return ""
    left, right, top, bottom = MARGIN
    places = [p for _, points, _ in drawn for p in points]
    xs = [p[0] for p in places]
    across = Axis(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, left, width - right)
    up = scale([p[1] for p in places], start=height - bottom, end=top, zero=zero)
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">']
    for value in up.ticks:
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{up.at(value):.1f}" y2="{up.at(value):.1f}"/>'
                     f'<text x="{left - 6}" y="{up.at(value) + 4:.1f}" text-anchor="end">{label(value)}</text>')
    for value in across.ticks:
        parts.append(f'<text x="{across.at(value):.1f}" y="{height - bottom + 16}" text-anchor="middle">{label(value)}</text>')
    parts.append(f'<text x="{(left + width - right) / 2}" y="{height - 4}" text-anchor="middle">{html.escape(x)}</text>'
                 f'<text transform="translate(13 {(top + height - bottom) / 2}) rotate(-90)" text-anchor="middle">{html.escape(y)}</text>')
    for line, points, colour in drawn:
        path = " ".join(f"{across.at(a):.1f},{up.at(b):.1f}" for a, b in points)
        dash = ' stroke-dasharray="6 4"' if line.dash else ""
        if len(points) > 1:
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"{dash}/>')
        if line.marks or len(points) == 1:
            parts += [f'<circle cx="{across.at(a):.1f}" cy="{up.at(b):.1f}" r="3.2" fill="{colour}"><title>{label(a)}: {b:.6g}</title></circle>'
                      for a, b in points]
    legend = "".join(f'<li><i style="border-top:3px {"dashed" if line.dash else "solid"} {colour}"></i>{html.escape(line.name)}</li>'
                     for line, _, colour in drawn)
    return f'<figure><figcaption>{html.escape(title)}</figcaption>{"".join(parts)}</svg><ul class="legend">{legend}</ul></figure>'
