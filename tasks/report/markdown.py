"""The report as Markdown: the same tables as the page, to diff and to paste."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tasks.report import measures, settings, tables
from tasks.report.account import balance, words
from tasks.report.tables import Cell, Facts, Table, printable
from tasks.report.words import gate, loading, verdict


def markdown(facts: Facts) -> str:
    """The whole report."""
    breaks = {name: source["breaks"] for name, source in facts["ledger"]["sources"].items()}
    parts = [
        f"# {facts['name']}",
        facts["description"],
        f"**{verdict(facts)}**",
        _plain(gate(facts)),
        "## Held-out text",
        table(tables.released(facts)),
        *part("### Every phase on every set", table(tables.matrix(facts))),
        "### The sets",
        table(settings.held_out(facts)),
        *part("## Benchmarks", table(measures.benchmarks(facts))),
        "## Training",
        table(measures.training(facts)),
        *part("## Samples", "\n\n".join(_samples(facts))),
        *part("### Measured of generated text", table(measures.measures(facts))),
        *part("### Speed of generation", table(measures.generation_speed(facts))),
        "## From download to trained token",
        table(settings.ledger(facts)),
        balance(breaks),
        *_examples(facts["ledger"]),
        "## Recipe",
        table(settings.phases(facts)),
        table(settings.network(facts)),
        table(settings.data(facts)),
        "## Lineage",
        table(settings.lineage(facts)),
        "## Use it",
        *(f"{title}:\n\n```\n{code}\n```" for title, code in loading(facts).items()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def part(title: str, content: str) -> list[str]:
    """A heading and what stands below it; nothing where there is nothing."""
    return [title, content] if content else []


def table(content: Table | None) -> str:
    """A table with its groups as rows in bold, and its note."""
    if content is None or not any(content.groups.values()):
        return ""
    width = len(content.heads)
    rule = ["---" if i < content.first_number else "---:" for i in range(width)]
    lines = [[_plain(head) for head in content.heads], rule]
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
    return printable(text).replace("|", "\\|").replace("\n", " ")


def _samples(facts: Facts) -> Iterable[str]:
    """The samples of each phase, the last first."""
    for phase, made in reversed(facts.get("generation", {}).items()):
        found = [
            f"- **{quoted(s['prompt'])}**{_gap(s)}{quoted(s['text'])} ({s['weights']})"
            for s in made.get("samples", [])
        ]
        if found:
            yield "\n".join([f"After {phase}:", "", *found])


def _gap(sample: dict[str, str]) -> str:
    """The white space between a prompt and its text, which `quoted` takes off both."""
    apart = sample["prompt"][-1:].isspace() or sample["text"][:1].isspace()
    return " " if apart else ""


def _examples(ledger: dict[str, Any]) -> list[str]:
    found = []
    for name, source in ledger["sources"].items():
        for book in source["stages"]:
            for reason, texts in book["examples"].items():
                lines = [f"- {quoted(text)}" for text in texts]
                found.append("\n".join([f"{name}, {book['stage']}, {words(reason)}:", "", *lines]))
    return ["## Dropped, for example", *found] if found else []


def quoted(text: str) -> str:
    """Text of the corpus or the model on one line, without effect on the Markdown around it."""
    text = printable(text)
    for sign in "\\`*_[]<>#|":
        text = text.replace(sign, f"\\{sign}")
    return " ⏎ ".join(line.strip() for line in text.split("\n") if line.strip())
