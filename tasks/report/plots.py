"""Line charts as small SVG texts: no library, no network, light and dark as the reader has it.

Line(label, xs, ys) ... -> chart() -> "<svg>": colours are CSS variables of the page around it
                        -> standalone() -> the same with its own colours, a file to open
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from tasks.units import show_count

Style = Literal["solid", "dashed", "faint"]
WIDTH, HEIGHT = 360, 250  # drawn at about this size, so that text is 12 px on any screen
LEFT, RIGHT, BOTTOM = 52, 14, 40
LINE_HEIGHT, LETTER = 17, 6.6  # of the legend, and the mean width of a letter
MOST_POINTS = 500
COLOURS = 6
LIGHT = {
    "paper": "#ffffff", "back": "#f5f7fa", "ink": "#1d2430", "soft": "#5c6675", "line": "#d9dee6",
    "good": "#10744f", "bad": "#b3261e", "shade": "#1d243040",
    "c0": "#0b66c3", "c1": "#c4560c", "c2": "#14805e", "c3": "#7f46b8", "c4": "#b32d66",
    "c5": "#57606f",
}  # fmt: skip
DARK = {
    "paper": "#171c24", "back": "#0f1319", "ink": "#e6eaf0", "soft": "#9aa5b4", "line": "#2c3440",
    "good": "#4fd39d", "bad": "#ff8a80", "shade": "#000000a0",
    "c0": "#5fb0ff", "c1": "#ff9d57", "c2": "#45cf9f", "c3": "#c198f5", "c4": "#ff86b3",
    "c5": "#a3adba",
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One line of a chart; ``colour`` counts from 0. A faint line has no place in the legend."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: int = 0
    style: Style = "solid"
    dots: bool = False


@dataclass(frozen=True)
class Scale:
    """From values to places in the picture."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)


def chart(
    lines: Sequence[Line],
    title: str,
    x_label: str,
    y_label: str,
    marks: Iterable[tuple[float, str]] = (),
    show: Callable[[float], str] = lambda value: f"{value:g}",
    from_zero: bool = False,
) -> str:
    """An SVG of the lines, with ``marks`` as vertical lines at x with a word.

    Values that are not finite leave a gap. Raises ValueError where there is no point at all.
    """
    xs = [x for line in lines for x in line.xs]
    ys = [y for line in lines for y in line.ys if math.isfinite(y)]
    if not xs or not ys:
        raise ValueError(f"{title}: no points to draw")
    legend, top = _legend(lines)
    marks = list(marks)
    top += LINE_HEIGHT if marks else 0  # their words stand between the legend and the lines
    x_scale = Scale(min(0.0, *xs), max(*xs, min(xs) + 1), LEFT, WIDTH - RIGHT)
    y_scale = Scale(*_room(0.0 if from_zero else min(ys), max(ys)), HEIGHT - BOTTOM, top)
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
        *legend,
        *_axes(x_scale, y_scale, show),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label, "middle"),
        f'<text class="soft" text-anchor="middle" transform="translate(12 '
        f'{(top + HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)">{escape(y_label)}</text>',
        *_marks(marks, x_scale, top),
        *(part for line in lines for part in _draw(line, x_scale, y_scale)),
        "</svg>",
    ]
    return "\n".join(parts)


def standalone(svg: str) -> str:
    """The chart with its colours inside, as a file of its own."""
    paper = '<rect width="100%" height="100%" fill="var(--paper)"/>'
    style = f"<style>{colours('svg')}{CHART_CSS}</style>{paper}"
    name = '<svg xmlns="http://www.w3.org/2000/svg"'
    return svg.replace("<svg", name, 1).replace("</title>", f"</title>{style}", 1)


def colours(selector: str) -> str:
    """CSS that defines the colours: light, dark where the reader's system is, light on paper."""
    light, dark = (
        selector + "{" + "".join(f"--{k}:{v};" for k, v in table.items()) + "}"
        for table in (LIGHT, DARK)
    )
    return f"{light}@media (prefers-color-scheme: dark){{{dark}}}@media print{{{light}}}"


CHART_CSS = (
    ".chart text{font:12px system-ui,sans-serif;fill:var(--ink)}"
    ".chart text.soft{fill:var(--soft)}"
    ".chart .grid{stroke:var(--line);stroke-width:1}"
    ".chart .mark{stroke:var(--soft);stroke-width:1;stroke-dasharray:2 3}"
    ".chart .solid,.chart .dashed,.chart .faint{fill:none;stroke-width:2;"
    "stroke-linejoin:round;stroke-linecap:round}"
    ".chart .dashed{stroke-dasharray:5 4}"
    ".chart .faint{stroke-width:1;opacity:.35}"
    + "".join(f".chart .k{i}{{stroke:var(--c{i})}}.chart .d{i}{{fill:var(--c{i})}}"
              for i in range(COLOURS))
)  # fmt: skip


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values that span ``low`` to ``high``: steps of 1, 2 or 5 times a power of ten."""
    span = high - low or abs(high) or 1.0
    raw = span / (most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def thin(xs: Sequence[float], ys: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most ``MOST_POINTS`` points: the means of equal runs of points."""
    size = math.ceil(len(xs) / MOST_POINTS) or 1
    starts = range(0, len(xs), size)
    return (
        [_mean(xs[i : i + size]) for i in starts],
        [_mean(ys[i : i + size]) for i in starts],
    )


def smooth(ys: Sequence[float], share: float = 0.04) -> list[float]:
    """A centred mean over ``share`` of the points.

    Near the start, where losses fall fast, the window narrows on both sides; at the end it is cut.
    """
    reach = int(len(ys) * share / 2)
    total = [0.0]
    for y in ys:
        total.append(total[-1] + y)
    smoothed = []
    for i in range(len(ys)):
        near = min(reach, i)
        first, stop = i - near, min(i + near + 1, len(ys))
        smoothed.append((total[stop] - total[first]) / (stop - first))
    return smoothed


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _legend(lines: Sequence[Line]) -> tuple[list[str], int]:
    """The legend's parts, in as many rows as it needs, and where the plot may begin."""
    parts: list[str] = []
    x, y = float(LEFT), LINE_HEIGHT
    for line in lines:
        if line.style == "faint":
            continue
        width = 30 + len(line.label) * LETTER
        if x > LEFT and x + width > WIDTH - RIGHT:
            x, y = float(LEFT), y + LINE_HEIGHT
        kind = f"{line.style} k{line.colour % COLOURS}"
        parts.append(f'<path class="{kind}" d="M{x:.0f} {y - 4}h16"/>')
        parts.append(_text(x + 21, y, line.label, "start", soft=False))
        x += width + 8
    return parts, y + 12


def _room(low: float, high: float) -> tuple[float, float]:
    """The values with a little room around them; from 0 where they come near it."""
    margin = 0.04 * (high - low) or 0.5 * abs(high) or 1.0
    return (0.0 if 0 <= low < 0.25 * high else low - margin), high + margin


def _axes(x_scale: Scale, y_scale: Scale, show: Callable[[float], str]) -> list[str]:
    parts = []
    for value in ticks(y_scale.low, y_scale.high):
        if not y_scale.low <= value <= y_scale.high:
            continue
        y = y_scale(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 7, y + 4, show(value), "end"))
    for value in ticks(x_scale.low, x_scale.high, most=7):
        if value <= x_scale.high:
            x = x_scale(value)
            parts.append(f'<path class="grid" d="M{x:.1f} {HEIGHT - BOTTOM}v4"/>')
            parts.append(_text(x, HEIGHT - BOTTOM + 17, show_count(int(value)), "middle"))
    return parts


def _marks(marks: Iterable[tuple[float, str]], x_scale: Scale, top: int) -> list[str]:
    parts = []
    for value, word in marks:
        x = x_scale(value)
        left = x < WIDTH / 2
        parts.append(f'<path class="mark" d="M{x:.1f} {top}V{HEIGHT - BOTTOM}"/>')
        parts.append(_text(x + (-4 if left else 4), top - 5, word, "start" if left else "end"))
    return parts


def _draw(line: Line, x_scale: Scale, y_scale: Scale) -> list[str]:
    steps, pen = [], "M"
    points = list(zip(line.xs, line.ys, strict=True))
    for x, y in points:
        if math.isfinite(y):
            steps.append(f"{pen}{x_scale(x):.1f} {y_scale(y):.1f}")
        pen = "L" if math.isfinite(y) else "M"
    colour = line.colour % COLOURS
    parts = [f'<path class="{line.style} k{colour}" d="{"".join(steps)}"/>']
    if line.dots:
        parts += [
            f'<circle class="d{colour}" cx="{x_scale(x):.1f}" cy="{y_scale(y):.1f}" r="2.6">'
            f"<title>{escape(line.label)}: {y:.4g} at {show_count(int(x))}</title></circle>"
            for x, y in points
            if math.isfinite(y)
        ]
    return parts


def _text(x: float, y: float, words: str, anchor: str, soft: bool = True) -> str:
    kind = ' class="soft"' if soft else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
