"""The report as Markdown: the same tables as the page, to diff and to paste."""

from __future__ import annotations

from tasks.release import report_tables as tables
from tasks.release.account import balance, words
from tasks.release.report import Facts, verdict
from tasks.release.report_tables import Cell, Table, printable


def markdown(facts: Facts) -> str:
    """The whole report."""
    parts = [
        f"# {facts.recipe.name}",
        facts.recipe.description,
        f"**{verdict(facts)}**",
        "## Held-out text",
        table(tables.matrix(facts.recipe, facts.evaluations)),
        "## Training",
        table(tables.speed(facts.recipe, facts.summaries)),
        "## Samples",
        *(_samples(facts, phase) for phase in reversed(facts.recipe.phases_in_order())),
        "## From download to trained token",
        table(tables.ledger(facts.account)),
        balance(facts.account),
        "## Dropped, for example",
        *_examples(facts),
        "## Recipe",
        table(tables.phases(facts.recipe)),
        table(tables.network(facts.recipe, facts.parameters)),
        table(tables.data(facts.recipe)),
        f"Recipe `{facts.recipe.fingerprint}`, export `{facts.registration['export']}`",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(content: Table) -> str:
    """A table with its groups as rows in bold, and its note."""
    width = len(content.heads)
    rule = ["---" if i < content.first_number else "---:" for i in range(width)]
    lines = [content.heads, rule]
    for name, rows in content.groups.items():
        if name:
            lines.append([f"**{_plain(name)}**"] + [""] * (width - 1))
        lines += [[_cell(cell) for cell in row] for row in rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{text}\n\n{content.note}" if content.note else text


def _cell(cell: Cell) -> str:
    text = f"**{_plain(cell.text)}**" if cell.best else _plain(cell.text)
    return " ".join([text, *(f"({_plain(line)})" for line in cell.lines)]).strip()


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _samples(facts: Facts, phase: str) -> str:
    found = [
        f"- **{_quoted(s['prompt'])}**{_quoted(s['text'])} ({s['weights']})"
        for s in facts.details[phase]["samples"]
    ]
    return "\n".join([f"After {phase}:", "", *found]) if found else ""


def _examples(facts: Facts) -> list[str]:
    found = []
    for source in facts.account.sources:
        for book in source.ledgers:
            for reason, texts in book.examples.items():
                lines = [f"- {_quoted(text)}" for text in texts]
                found.append(
                    "\n".join([f"{source.source}, {book.stage}, {words(reason)}:", "", *lines])
                )
    return found or ["Nothing was dropped."]


def _quoted(text: str) -> str:
    """Text of the corpus or the model on one line, without effect on the Markdown around it."""
    text = printable(text)
    for sign in "\\`*_[]<>#|":
        text = text.replace(sign, f"\\{sign}")
    return " ⏎ ".join(line.strip() for line in text.split("\n") if line.strip())
