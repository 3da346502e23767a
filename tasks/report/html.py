"""What the pages are put together from: the document around, tables, tiles, figures.

Styles and charts are inside, no script, nothing is fetched. Text of the corpus and of the model is
shown as text: it is escaped, and the page forbids scripts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

from tasks.report.plots import CHART_CSS, colours
from tasks.report.sankey import FLOW_CSS
from tasks.report.tables import Cell, Table, printable

STYLE = Path(__file__).with_name("report.css")
_UNBROKEN = re.compile(r"([±▲▼=]) ")  # a sign and its figure stay on one line
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def document(title: str, head: str, sections: Mapping[str, tuple[str, str]], foot: str) -> str:
    """A whole page; ``sections``: id -> title, content. Sections without content are left out."""
    there = {key: part for key, part in sections.items() if part[1].strip()}
    links = "".join(f'<a href="#{key}">{text(name)}</a>' for key, (name, _) in there.items())
    body = "\n".join(
        f'<section id="{key}">\n<h2>{text(name)}</h2>\n{content}\n</section>'
        for key, (name, content) in there.items()
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{text(title)}</title>
<style>
{colours(":root")}
{STYLE.read_text("utf-8")}{CHART_CSS}{FLOW_CSS}
</style>
</head>
<body>
<main>
<header>
{head}
<nav>{links}</nav>
</header>
{body}
{foot}
</main>
</body>
</html>
"""


def text(words: str) -> str:
    """Any text as HTML text."""
    return escape(printable(words))


def tiles(shown: Iterable[tuple[str, str]]) -> str:
    """The figures to see first: what it is, and its value."""
    cells = "".join(f"<div><dt>{text(k)}</dt><dd>{text(v)}</dd></div>" for k, v in shown)
    return f'<dl class="tiles">{cells}</dl>'


def figures(drawn: Mapping[str, str | None]) -> str:
    """Charts under their titles, two a row where there is room."""
    found = [
        f"<figure><figcaption>{text(title)}</figcaption>{svg}</figure>"
        for title, svg in drawn.items()
        if svg
    ]
    return f'<div class="charts">{"".join(found)}</div>' if found else ""


def titled(title: str, content: str) -> str:
    """Content under a heading of its own; nothing where there is none."""
    return f"<h3>{text(title)}</h3>{content}" if content else ""


def table(content: Table | None, kind: str = "") -> str:
    """A table that scrolls by itself where the screen is narrower."""
    if content is None or not any(content.groups.values()):
        return ""
    kinds = [
        ["number"] * (i >= content.first_number) + ["minor"] * (i in content.minor)
        for i in range(len(content.heads))
    ]
    heads = "".join(
        f'<th scope="col"{_class(names)}>{text(head)}</th>'
        for head, names in zip(content.heads, kinds, strict=True)
    )
    bodies = []
    for name, rows in content.groups.items():
        group = f'<tr class="group"><th colspan="{len(kinds)}">{text(name)}</th></tr>'
        body = "".join("<tr>" + "".join(_cells(row, kinds)) + "</tr>\n" for row in rows)
        bodies.append(f"<tbody>\n{group if name else ''}{body}</tbody>")
    told = " ".join(filter(None, (content.note, content.legend)))
    note = f'<p class="note">{text(told)}</p>' if told else ""
    return (
        f"<div{_class(['wide', kind])}><table><thead><tr>{heads}</tr></thead>\n"
        + "\n".join(bodies)
        + f"</table></div>{note}"
    )


def _cells(row: list[Cell], kinds: list[list[str]]) -> Iterable[str]:
    for i, cell in enumerate(row):
        tag = "th" if i == 0 else "td"
        shade = [f"shade{cell.shade}"] * bool(cell.shade)
        names = _class(kinds[i] + shade + ["best"] * cell.best)
        words = text(cell.text).replace("/", "/<wbr>")
        lines = "".join(_lines(cell))
        bar = ""
        if cell.bar is not None:
            bar = f'<span class="bar"><i style="width:{100 * cell.bar:.1f}%"></i></span>'
        yield f"<{tag}{names}>{words}{lines}{bar}</{tag}>"


def _lines(cell: Cell) -> Iterable[str]:
    """The small lines; the tone is of the last."""
    for number, line in enumerate(cell.lines, 1):
        tone = _class([cell.tone] if number == len(cell.lines) else [])
        words = _UNBROKEN.sub(r"\1&nbsp;", text(line))
        yield f"<small{tone}>{words}</small>"


def _class(names: list[str]) -> str:
    joined = " ".join(filter(None, names))
    return f' class="{joined}"' if joined else ""
