"""A comparison of runs to read: as one HTML page, and as Markdown."""

from __future__ import annotations

from tasks.report import comparison_tables as tables
from tasks.report import html
from tasks.report import markdown as markup
from tasks.report.comparison_tables import Comparison

CURVES = "Lines are EMA weights where a run has them, else raw."


def page(found: Comparison) -> str:
    """The whole page."""
    names = [run["label"] for run in found["runs"]]
    notes = "".join(f"<li>{html.text(note)}</li>" for note in found["notes"])
    said = f'<div class="said"><b>Not compared</b><ul>{notes}</ul></div>' if notes else ""
    drawn = html.figures(dict(tables.charts(found)))
    same = "<p>Every setting is the same.</p>"
    sections = {
        "figures": (
            "Held-out text",
            html.table(tables.bits_per_byte(found), "pinned")
            + html.titled("Other figures", html.table(tables.other_figures(found), "pinned")),
        ),
        "curves": ("Curves", drawn and f'{drawn}<p class="note">{CURVES}</p>'),
        "settings": ("Settings that differ", html.table(tables.settings(found), "pinned") or same),
        "speed": ("Speed", html.table(tables.speed(found), "pinned")),
        "data": ("From download to trained token", html.table(tables.ledger(found), "pinned")),
    }
    head = f"<h1>{html.text(' · '.join(names))}</h1>\n{html.table(tables.runs(found))}{said}"
    return html.document(f"{' · '.join(names)} · comparison", head, sections, "")


def markdown(found: Comparison) -> str:
    """The same, to diff and to paste."""
    names = " · ".join(markup.quoted(run["label"]) for run in found["runs"])
    parts = [
        f"# {names}",
        markup.table(tables.runs(found)),
        *markup.part("Not compared:", "\n".join(f"- {markup.quoted(n)}" for n in found["notes"])),
        "## Held-out text",
        markup.table(tables.bits_per_byte(found)),
        markup.table(tables.other_figures(found)),
        "## Settings that differ",
        markup.table(tables.settings(found)) or "Every setting is the same.",
        "## Speed",
        markup.table(tables.speed(found)),
        "## From download to trained token",
        markup.table(tables.ledger(found)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
