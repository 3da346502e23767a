"""The flow of the text as a Sankey picture, twice: lying for a wide page, standing for a phone.

    wide     sources -> | -> | -> | -> | -> phases       narrow   sources
                          \\_ reason                                 |==- reason
                           \\_ reason                                |==- held out
                                                                   phases

SVG as in tasks/report/plots.py: no library, colours are the page's. On both, widths are bytes of
text up to the training text; there each phase's width is the tokens that it reads of each source.
"""

from __future__ import annotations

from html import escape
from typing import Any

from tasks.report.flow import Exit, Flow, Node, Parts, flow_of
from tasks.report.plots import COLOURS
from tasks.units import show_bytes

Draw = tuple[float, float, float, str, str]
"""A ribbon: where it starts in the last node, its width there, its tokens, its class, its words."""
BAR = 6  # how thick a node's bar is
LINE = 18  # from one label to the next
LABEL_LINE = 15  # from one line of a label to the next
MOST_EPOCHS = 3  # told of a phase; the table has all
WIDE, LEFT, RIGHT, TOP = 1056, 132, 150, 60  # with room for the labels at its sides
BAND = 190
NARROW, NARROW_BAND, LABELS = 340, 120, 152  # width, band at its widest, where labels begin
NOTE = (
    "Widths are bytes of text, at one scale from the download to the training text. From there "
    "on they are tokens at a scale of their own, repeats counted: × is passes over a source."
)
FLOW_CSS = (
    ".flow text{font:12px system-ui,sans-serif;fill:var(--ink)}.flow .soft{fill:var(--soft)}"
    ".flow text.title{font-weight:600}.flow .stop{fill:var(--ink)}"
    ".flow .band{fill-opacity:.55}.flow .dropped{fill:var(--soft);fill-opacity:.45}"
    ".flow .held_out{fill:none;stroke:var(--ink);stroke-width:1}"
    ".flow.down{display:none;max-width:420px;margin:0 auto}"
    "@media(max-width:920px){.flow.across{display:none}.flow.down{display:block}}"
    + "".join(f".flow .d{i}{{fill:var(--c{i})}}" for i in range(COLOURS))
)


def picture(ledger: dict[str, Any]) -> str:
    """Both pictures of `ledger` in reports/report.json; empty where no text came in."""
    flow = flow_of(ledger)
    if not flow.nodes or not sum(flow.nodes[0].taken.values()):
        return ""
    return _wide(flow) + _narrow(flow)


def _wide(flow: Flow) -> str:
    whole = max(sum(node.taken.values()) for node in flow.nodes)
    band = max(BAND, 30 * len(flow.sources))
    scale, step = band / whole, (WIDE - LEFT - RIGHT) / len(flow.nodes)
    parts = _source_labels(flow, scale, band)
    phases, low = _wide_phases(flow, scale, LEFT + (len(flow.nodes) - 1) * step + BAR, band)
    y = max(TOP + band, low) + 2 * LINE  # the last node's exits first: no ribbon crosses a label
    for number in reversed(range(len(flow.nodes))):
        node, x = flow.nodes[number], LEFT + number * step
        following = flow.nodes[number + 1] if number + 1 < len(flow.nodes) else None
        if following:
            parts += _bands(flow.sources, node, following, scale, x, x + step)
        start = TOP + scale * sum(node.kept.values())
        for exit_ in node.exits:
            width = max(1.0, scale * exit_.size)
            parts.append(_lying(x + BAR, start, width, x + step * 0.75, y, width, exit_.kind,
                                _told(exit_)))  # fmt: skip
            parts.append(_text(x + step * 0.75 + 7, y + width / 2 + 4, _told(exit_)))
            start += scale * exit_.size
            y += max(LINE, width + 6)
        parts += [_bar(x, TOP, BAR, scale * sum(node.taken.values())),
                  _text(x, TOP - 41, node.title, "title")]  # fmt: skip
        for line, told in enumerate(node.detail.split(" · ")):
            parts.append(_text(x, TOP - 26 + 15 * line, told, "soft"))
    return _svg("across", WIDE, y + 6, parts + phases)


def _bands(
    sources: list[str], node: Node, following: Node, scale: float, x: float, stop: float
) -> list[str]:
    """The ribbons of what goes on, a source each."""
    parts, start, end = [], float(TOP), float(TOP)
    for number, source in enumerate(sources):
        width, after = scale * node.kept.get(source, 0), scale * following.taken.get(source, 0)
        if width or after:
            told = f"{source}: {show_bytes(node.kept.get(source, 0))} after {node.title}"
            kind = f"band d{number % COLOURS}"
            parts.append(_lying(x + BAR, start, width, stop, end, after, kind, told))
        start, end = start + width, end + after
    return parts


def _wide_phases(flow: Flow, scale: float, x: float, band: float) -> tuple[list[str], float]:
    """Ribbons from the training text to what each phase reads, and where the labels end."""
    parts: list[str] = []
    stop, low = WIDE - RIGHT, 0.0
    gap = 34.0
    room = max(band - gap * (len(flow.phases) - 1), band / 2)
    unit = room / (sum(phase.size for phase in flow.phases) or 1)
    draws = _draws(flow, scale)
    y = float(TOP)
    for phase in flow.phases:
        first = y
        for start, width, tokens, kind, told in draws[phase.label]:
            parts.append(_lying(x, TOP + start, width, stop, y, unit * tokens, kind, told))
            y += unit * tokens
        label = _phase_label(phase, stop + 14, first)
        parts += [_bar(stop, first, BAR, y - first), *label]
        low = max(y, first + LABEL_LINE * len(label))
        y = low + 12
    return parts, low


def _phase_label(phase: Exit, x: float, y: float) -> list[str]:
    """Name, tokens and epochs, one below the other."""
    tokens, _, epochs = phase.detail.partition(": ")
    each = [f"{_cut(name, 14)} {passes}" for name, passes in
            (one.rsplit(" ", 1) for one in epochs.split(", ") if one)]  # fmt: skip
    if len(each) > MOST_EPOCHS + 1:
        each[MOST_EPOCHS:] = [f"and {len(each) - MOST_EPOCHS} more"]
    lines = [_text(x, y + 10, _cut(phase.label, 18), "title")]
    for number, line in enumerate([tokens, *each], 1):
        lines.append(_text(x, y + 10 + LABEL_LINE * number, line, "soft"))
    return lines


def _draws(flow: Flow, scale: float) -> dict[str, list[Draw]]:
    """Phase -> the ribbons of what it reads, a source each."""
    found: dict[str, list[Draw]] = {p.label: [] for p in flow.phases}
    place = 0.0
    for number, source in enumerate(flow.sources):
        width = scale * flow.nodes[-1].kept.get(source, 0)
        drawn = sum(phase.parts.get(source, 0) for phase in flow.phases)
        at = place
        for phase in flow.phases:
            if tokens := phase.parts.get(source):
                share = width * tokens / drawn
                told = f"{phase.label} reads {tokens:,.0f} tokens of {source}"
                found[phase.label].append((at, share, tokens, f"band d{number % COLOURS}", told))
                at += share
        place += width
    return found


def _source_labels(flow: Flow, scale: float, band: float) -> list[str]:
    """Names at the left of the first bar, each beside its band as far as there is room."""
    parts, y, low = [], float(TOP), TOP - 2.0
    left = len(flow.sources)
    for source in flow.sources:
        size = flow.nodes[0].taken.get(source, 0)
        middle = min(max(y + scale * size / 2, low + 12), TOP + band - 30 * left + 44)
        parts += [
            _text(LEFT - 10, middle, _cut(source, 14), "title", "end"),
            _text(LEFT - 10, middle + 14, show_bytes(size), "soft", "end"),
        ]
        y, low, left = y + scale * size, middle + 18, left - 1
    return parts


def _narrow(flow: Flow) -> str:
    whole = max(sum(node.taken.values()) for node in flow.nodes)
    scale = NARROW_BAND / whole
    parts: list[str] = []
    y = float(LINE)
    for number, source in enumerate(flow.sources):
        size = show_bytes(flow.nodes[0].taken.get(source, 0))
        parts += [f'<rect class="band d{number % COLOURS}" x="0" y="{y - 10:.0f}" width="12" '
                  'height="12"/>', _text(19, y, f"{_cut(source, 30)}, {size}")]  # fmt: skip
        y += LINE
    for number, node in enumerate(flow.nodes):
        last = number == len(flow.nodes) - 1
        y += 4
        start, top = y + BAR, y
        parts += [_text(LABELS, y + 9, node.title, "title"),
                  _text(LABELS, y + 24, node.detail, "soft")]  # fmt: skip
        y += 34
        edge = scale * (sum(node.kept.values()) + sum(e.size for e in node.exits))
        for exit_ in node.exits:
            width = max(1.0, scale * exit_.size)
            parts.append(_turning(edge - width, edge, start, LABELS - 8, y, width, exit_.kind,
                                  _told(exit_)))  # fmt: skip
            short = _cut(f"{exit_.label} {exit_.detail.split(', ')[0]}", 29)
            parts.append(_text(LABELS, y + width / 2 + 4, short))
            edge -= scale * exit_.size
            y += max(LINE, width + 6)
        if last:
            more, y = _narrow_phases(flow, scale, start, y)
            parts += more
        else:
            parts += _columns(flow.sources, node.kept, scale, start, y + 4 - start)
        parts.append(_bar(0, top, scale * sum(node.taken.values()), BAR))
    return _svg("down", NARROW, y + 4, parts)


def _columns(sources: list[str], kept: Parts, scale: float, y: float, height: float) -> list[str]:
    """What goes on, straight down, a source each."""
    parts, x = [], 0.0
    for number, source in enumerate(sources):
        if width := scale * kept.get(source, 0):
            parts.append(f'<rect class="band d{number % COLOURS}" x="{x:.1f}" y="{y:.1f}" '
                         f'width="{width:.1f}" height="{height:.1f}"/>')  # fmt: skip
        x += width
    return parts


def _narrow_phases(flow: Flow, scale: float, start: float, y: float) -> tuple[list[str], float]:
    parts: list[str] = []
    unit = NARROW_BAND / (sum(phase.size for phase in flow.phases) or 1)
    draws, stop = _draws(flow, scale), LABELS - 14
    for phase in flow.phases:
        y += 6
        first = y
        for x, width, tokens, kind, told in draws[phase.label]:
            parts.append(_turning(x, x + width, start, stop, y, unit * tokens, kind, told))
            y += unit * tokens
        label = _phase_label(phase, LABELS, first)
        parts += [_bar(stop, first, BAR, y - first), *label]
        y = max(y, first + LABEL_LINE * (len(label) + 1))
    return parts, y


def _lying(
    x0: float, y0: float, w0: float, x1: float, y1: float, w1: float, kind: str, told: str
) -> str:
    """A ribbon to the right: w0 wide at its start, w1 at its end."""
    half = (x0 + x1) / 2
    line = (
        f"M{x0:.1f} {y0:.1f}C{half:.1f} {y0:.1f} {half:.1f} {y1:.1f} {x1:.1f} {y1:.1f}"
        f"V{y1 + w1:.1f}C{half:.1f} {y1 + w1:.1f} {half:.1f} {y0 + w0:.1f} {x0:.1f} {y0 + w0:.1f}Z"
    )
    return _path(line, kind, told)


def _turning(
    x0: float, x1: float, y0: float, x2: float, y2: float, width: float, kind: str, told: str
) -> str:
    """A ribbon that leaves downwards between x0 and x1 and turns to the right."""
    line = (
        f"M{x1:.1f} {y0:.1f}Q{x1:.1f} {y2:.1f} {x2:.1f} {y2:.1f}V{y2 + width:.1f}"
        f"Q{x0:.1f} {y2 + width:.1f} {x0:.1f} {y0:.1f}Z"
    )
    return _path(line, kind, told)


def _path(line: str, kind: str, told: str) -> str:
    return f'<path class="{kind}" d="{line}"><title>{escape(told)}</title></path>'


def _bar(x: float, y: float, width: float, height: float) -> str:
    return (
        f'<rect class="stop" x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" '
        f'height="{max(height, 1):.1f}"/>'
    )


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    name = f' class="{kind}"' if kind else ""
    return f'<text{name} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _told(exit_: Exit) -> str:
    return f"{exit_.label}: {exit_.detail}"


def _cut(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"


def _svg(kind: str, width: int, height: float, parts: list[str]) -> str:
    title = "The way of the text, from source to token"
    return (
        f'<svg class="flow {kind}" viewBox="0 0 {width} {height:.0f}" role="img" '
        f'aria-label="{title}"><title>{title}</title>\n' + "\n".join(parts) + "\n</svg>\n"
    )
