"""The report as one HTML page: styles and charts inside, no script, nothing fetched.

Text of the corpus and of the model is shown as text: it is escaped, and the page forbids scripts.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

from tasks.release import curves
from tasks.release import report_tables as tables
from tasks.release.account import balance, show_bytes, words
from tasks.release.plots import CHART_CSS, colours
from tasks.release.report import Facts, verdict
from tasks.release.report_tables import Cell, Table
from tasks.units import show_count, show_seconds

STYLE = Path(__file__).with_name("report.css")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
SECTIONS = {
    "results": "Held-out text",
    "training": "Training",
    "samples": "Samples",
    "data": "From download to trained token",
    "recipe": "Recipe",
}


def page(facts: Facts) -> str:
    """The whole page."""
    name = text(facts.recipe.name)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{name} · report</title>
<style>
{colours(":root")}
{STYLE.read_text("utf-8")}{CHART_CSS}
</style>
</head>
<body>
<main>
<header>
<h1>{name}</h1>
<p class="soft">{text(facts.recipe.description)}</p>
<p class="verdict">{strong(verdict(facts))}</p>
{tiles(facts)}
<nav>{"".join(f'<a href="#{key}">{title}</a>' for key, title in SECTIONS.items())}</nav>
</header>
{section("results", table(tables.matrix(facts.recipe, facts.evaluations)))}
{section("training", charts(facts), table(tables.speed(facts.recipe, facts.summaries)))}
{section("samples", *(samples(facts, p) for p in reversed(facts.recipe.phases_in_order())))}
{section("data", flow(facts), table(tables.ledger(facts.account)), balanced(facts), drops(facts))}
{section("recipe", settings(facts))}
{footer(facts)}
</main>
</body>
</html>
"""


def text(words_: str) -> str:
    """Any text as HTML text."""
    return escape(tables.printable(words_))


def strong(sentence: str) -> str:
    """A sentence whose part before the first comma stands out."""
    first, comma, rest = text(sentence).partition(",")
    return f"<b>{first}</b>{comma}{rest}"


def section(key: str, *parts: str) -> str:
    return f'<section id="{key}">\n<h2>{SECTIONS[key]}</h2>\n' + "\n".join(parts) + "\n</section>"


def tiles(facts: Facts) -> str:
    """The figures to see first."""
    seconds = sum(summary["seconds"] for summary in facts.summaries.values())
    tokens = sum(summary["tokens"] for summary in facts.summaries.values())
    shown = [(f"bits per byte, {name}", f"{value:.4f}") for name, value in facts.released.items()]
    shown = shown[:4]
    shown.append(("parameters", show_count(facts.parameters["total"])))
    shown += [("tokens trained on", show_count(tokens)), ("training", show_seconds(seconds))]
    cells = "".join(f"<div><dt>{text(k)}</dt><dd>{text(v)}</dd></div>" for k, v in shown)
    return f'<dl class="tiles">{cells}</dl>'


def table(content: Table, kind: str = "") -> str:
    """A table that scrolls by itself where the screen is narrower."""
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
    note = f'<p class="note">{text(content.note)}</p>' if content.note else ""
    return (
        f"<div{_class(['wide', kind])}><table><thead><tr>{heads}</tr></thead>\n"
        + "\n".join(bodies)
        + f"</table></div>{note}"
    )


def _cells(row: list[Cell], kinds: list[list[str]]) -> Iterable[str]:
    for i, cell in enumerate(row):
        tag = "th" if i == 0 else "td"
        names = _class(kinds[i] + ["best"] * cell.best)
        words_ = text(cell.text).replace("/", "/<wbr>")
        lines = "".join(f"<small>{text(line)}</small>" for line in cell.lines)
        bar = ""
        if cell.bar is not None:
            bar = f'<span class="bar"><i style="width:{100 * cell.bar:.1f}%"></i></span>'
        yield f"<{tag}{names}>{words_}{lines}{bar}</{tag}>"


def _class(names: list[str]) -> str:
    joined = " ".join(filter(None, names))
    return f' class="{joined}"' if joined else ""


def charts(facts: Facts) -> str:
    """Loss, held-out bits per byte and learning rate over the tokens of all phases."""
    drawn = {
        "Training loss": curves.loss_chart(facts.histories),
        "Held-out text while training, raw and EMA": curves.held_out_chart(facts.histories),
        "Learning rate": curves.lr_chart(facts.histories),
        "Gradient norm": curves.grad_norm_chart(facts.histories),
    }
    figures = [
        f"<figure><figcaption>{title}</figcaption>{svg}</figure>"
        for title, svg in drawn.items()
        if svg
    ]
    return f'<div class="charts">{"".join(figures)}</div><h3>Speed</h3>'


def samples(facts: Facts, phase: str) -> str:
    """What the phase wrote with each of its weights; those of the release stand open."""
    parts: list[str] = []
    found = facts.details[phase]["samples"]
    for weights in dict.fromkeys(sample["weights"] for sample in found):
        quotes = "".join(
            f"<blockquote><b>{text(s['prompt'])}</b>{text(s['text'])}</blockquote>"
            for s in found
            if s["weights"] == weights
        )
        quotes = f'<div class="samples">{quotes}</div>'
        title = text(f"{phase}, {weights} weights")
        if (phase, weights) == (facts.registration["phase"], facts.registration["weights"]):
            parts.insert(0, f'<p class="note">{title}</p>{quotes}')
        else:
            parts.append(f"<details><summary>{title}</summary>{quotes}</details>")
    return "\n".join(parts)


def flow(facts: Facts) -> str:
    """The whole way of the text in one sentence."""
    account = facts.account
    drawn = sum(account.drawn(phase) for phase in facts.recipe.phases)
    return (
        f"<p>{account.downloaded.documents:,} documents ({show_bytes(account.downloaded.bytes)}) "
        f"came in, {account.dropped.documents:,} were dropped, {account.kept.documents:,} "
        f"({show_bytes(account.kept.bytes)}) became {account.tokens('train'):,} training tokens; "
        f"the phases trained on {drawn:,}, repeats counted.</p>"
    )


def balanced(facts: Facts) -> str:
    """Whether every document is accounted for."""
    kind, sign = ("balanced", "✓ ") if facts.account.balanced else ("unbalanced", "✗ ")
    return f'<p class="{kind}"><b>{sign}</b>{text(balance(facts.account))}</p>'


def drops(facts: Facts) -> str:
    """Examples of what was dropped, by source, stage and reason."""
    found = []
    for source in facts.account.sources:
        for book in source.ledgers:
            for reason, examples in book.examples.items():
                count = book.dropped[reason].documents
                title = f"{source.source} · {book.stage} · {words(reason)} ({count:,})"
                quotes = "".join(f"<blockquote>{text(e)}</blockquote>" for e in examples)
                found.append(f"<details><summary>{text(title)}</summary>{quotes}</details>")
    return "<h3>Dropped, for example</h3>" + "".join(found) if found else ""


def settings(facts: Facts) -> str:
    """The recipe as a paper's tables."""
    recipe = facts.recipe
    return (
        '<div class="settings">'
        + table(tables.phases(recipe), "first")
        + table(tables.network(recipe, facts.parameters))
        + table(tables.data(recipe))
        + "</div>"
    )


def footer(facts: Facts) -> str:
    """How to use the model, and the fingerprints of what it was made of."""
    r = facts.registration
    commands = (
        f'phasewise generate --model {r["uri"]} --prompt "The "\n'
        f"phasewise pull {r['uri']} {r['name']}"
    )
    prints = f"recipe {facts.recipe.fingerprint} · export {r['export']} · run {r['run_id']}"
    return f"<h2>Use it</h2><pre>{text(commands)}</pre><footer>{text(prints)}</footer>"
