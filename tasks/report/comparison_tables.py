"""A comparison of runs as tables and charts that are neither HTML nor Markdown yet."""

from __future__ import annotations

import json
from typing import Any

from tasks.report.account import words
from tasks.report.curves import TOKENS, held_out_points
from tasks.report.measures import rate
from tasks.report.plots import Line, chart
from tasks.report.settings import shown
from tasks.report.tables import NONE, Cell, Table, change, figure
from tasks.units import show_bytes, show_count, show_seconds

Comparison = dict[str, Any]
FIRST = 12  # digits of a fingerprint that are shown


def runs(found: Comparison) -> Table:
    """What the runs are."""
    rows = []
    for run in found["runs"]:
        released = run["released"]
        rows.append(
            [
                Cell(run["label"]),
                Cell(f"{released['phase']}, {released['weights']}"),
                Cell(show_count(run["parameters"]["total"])),
                Cell(show_count(run["tokens"])),
                Cell(run["recipe"][:FIRST]),
                Cell(run["tokenizer"][:FIRST]),
                Cell((run["commit"] or NONE)[:FIRST]),
            ]
        )
    heads = ["Run", "Released", "Parameters", "Tokens", "Recipe", "Tokenizer", "Git commit"]
    return Table(heads, {"": rows}, first_number=2, minor=(4, 5, 6))


def bits_per_byte(found: Comparison) -> Table:
    """The runs on every set, and how far each is from the first."""
    rows = []
    for name, scores in found["figures"].items():
        values = [one["bits_per_byte"] for one in scores if one]
        least = min(values) if len(values) > 1 else None
        cells = [
            _score_cell(one, least, fingerprint)
            for one, fingerprint in zip(scores, found["sets"][name]["fingerprints"], strict=True)
        ]
        rows.append([Cell(name), *cells])
    first = found["runs"][0]["label"]
    note = (
        "Bits per byte ± standard error, less is better; then the difference from "
        f"{first} (where it lacks the set, from the first run that has it), ▼ better, ▲ worse. "
        "~ marks an error taken as if the two runs had been measured on different documents, "
        "which is more than the true one."
    )
    legend = "● the least of its set. A difference is in colour beyond two standard errors."
    return Table(["Held-out set", *_labels(found)], {"": rows}, note=note, legend=legend)


def _score_cell(
    scores: dict[str, Any] | None, least: float | None, fingerprint: str | None
) -> Cell:
    if scores is None:
        return Cell("another text" if fingerprint else NONE)
    lines: tuple[str, ...] = ()
    tone, error = "", scores.get("bits_per_byte_se")
    if error is not None:
        lines = (f"± {error:.4f}",)
    if "difference" in scores:
        text, tone = change(scores["difference"], scores.get("se"))
        lines = (*lines, text + ("" if scores.get("paired", True) else " ~"))
    value = scores["bits_per_byte"]
    return Cell(figure(value), best=value == least, lines=lines, tone=tone)


def other_figures(found: Comparison) -> Table | None:
    """Perplexities and accuracy, where they may stand side by side."""
    names = {
        "word_perplexity": "perplexity, a word",
        "perplexity": "perplexity, a token",
        "accuracy": "accuracy, a token",
    }
    groups: dict[str, list[list[Cell]]] = {}
    for key, title in names.items():
        rows = []
        for name, scores in found["figures"].items():
            values = [one.get(key) if one else None for one in scores]
            if sum(value is not None for value in values) > 1:
                rows.append([Cell(name), *(Cell(_figure(key, value)) for value in values)])
        if rows:
            groups[title] = rows
    return Table(["Held-out set", *_labels(found)], groups) if groups else None


def _figure(key: str, value: float | None) -> str:
    if value is None:
        return NONE
    return f"{100 * value:.1f} %" if key == "accuracy" else f"{value:.4g}"


def settings(found: Comparison) -> Table | None:
    """The settings that differ, in the recipe's sections."""
    groups: dict[str, list[list[Cell]]] = {}
    for key, values in found["settings"].items():
        section, _, name = key.partition(".")
        row = [Cell(name or section), *(Cell(_setting(value)) for value in values)]
        groups.setdefault(section, []).append(row)
    if not groups:
        return None
    return Table(["Setting", *_labels(found)], groups, first_number=len(found["runs"]) + 1)


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return "none" if not value else json.dumps(value)
    return shown(value)


def speed(found: Comparison) -> Table:
    """Training and generation, a run a column."""
    training, generation = found["training"], found["generation"]
    rows = [
        [Cell("training tokens"), *(Cell(f"{one['tokens']:,}") for one in training)],
        [Cell("optimizer steps"), *(Cell(f"{one['steps']:,}") for one in training)],
        [Cell("training time"), *(Cell(show_seconds(one["seconds"])) for one in training)],
        [Cell("training tokens/s, all phases"),
         *(Cell(rate(one["tokens_per_second"])) for one in training)],
        [Cell("memory"), *(Cell(_bytes(one["memory_bytes"])) for one in training)],
    ]  # fmt: skip
    batches = dict.fromkeys(k for one in generation for k in one if k.startswith("batch_"))
    for batch in batches:
        for key, title in (("prefill", "prompt"), ("decode", "generation")):
            rates = [one.get(batch, {}).get(f"{key}_tokens_per_second") for one in generation]
            rows.append(
                [Cell(f"{title} tokens/s, {words(batch)}"), *(Cell(rate(r)) for r in rates)]
            )
    if any(one.get("hardware") for one in generation):
        rows.append([Cell("measured on"), *(Cell(one.get("hardware", NONE)) for one in generation)])
    note = "Speeds compare on equal machines alone."
    return Table(["Speed", *_labels(found)], {"": rows}, note=note)


def ledger(found: Comparison) -> Table:
    """Where the text went, in totals."""
    books = found["ledger"]
    rows = [
        [Cell(title), *(_count(book[key]) for book in books)]
        for key, title in (("downloaded", "downloaded"), ("dropped", "dropped"), ("kept", "kept"))
    ]
    for key, title in (("train_tokens", "training tokens"), ("drawn_tokens", "tokens drawn")):
        rows.append([Cell(title), *(Cell(f"{book[key]:,}") for book in books)])
    rows.append([Cell("balanced"), *(Cell(shown(book["balanced"])) for book in books)])
    return Table(["Documents", *_labels(found)], {"": rows})


def charts(found: Comparison) -> dict[str, str]:
    """Title -> chart of all runs by their tokens, of what may share an axis."""
    labels, drawn = _labels(found), {}
    if found["comparable_curves"]["loss"]:
        lines = [
            Line(label, *_joined(curves), colour)
            for colour, (label, curves) in enumerate(zip(labels, found["curves"], strict=True))
        ]
        drawn["Training loss"] = chart(lines, "Training loss", TOKENS, "nats a token")
    for name in found["comparable_curves"]["held_out"]:
        lines = []
        for colour, (label, curves) in enumerate(zip(labels, found["curves"], strict=True)):
            for weights in ("ema", "raw"):
                xs, ys = held_out_points(curves, name, weights)
                if xs:
                    lines.append(Line(f"{label}, {weights}", xs, ys, colour, dots=True))
                    break
        if lines:
            drawn[f"{name}, while training"] = chart(lines, name, TOKENS, "bits per byte")
    return drawn


def _joined(curves: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """The running mean of the loss over all phases, one after the other."""
    xs = [x for c in curves for x in c["tokens"]]
    return xs, [y for c in curves for y in c["loss_mean"]]


def _labels(found: Comparison) -> list[str]:
    return [run["label"] for run in found["runs"]]


def _count(count: dict[str, int]) -> Cell:
    return Cell(f"{count['documents']:,}", lines=(show_bytes(count["bytes"]),))


def _bytes(value: float | None) -> str:
    return NONE if value is None else show_bytes(value)
