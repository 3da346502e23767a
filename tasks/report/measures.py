"""Benchmarks, speed, and what was measured of generated text: tables as in tables.py."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tasks.report.account import words
from tasks.report.tables import NONE, Cell, Facts, Table, figure
from tasks.units import show_bytes, show_seconds

COUNTS = ("texts", "tokens", "spans")  # what the measures were taken of


def benchmarks(facts: Facts) -> Table | None:
    """Tasks with their standard error, beside chance."""
    rows = []
    for task, found in facts.get("benchmarks", {}).items():
        chance = found.get("chance")
        rows.append(
            [
                Cell(task),
                Cell(str(found["metric"])),
                Cell(figure(found["value"], found.get("se"), 3)),
                Cell(figure(chance, digits=3)),
                Cell(_above(found["value"], found.get("se"), chance)),
                Cell(f"{found['n']:,}" if "n" in found else NONE),
                Cell(str(found.get("harness", NONE))),
            ]
        )
    heads = ["Task", "Metric", "Score", "Chance", "Above chance", "Questions", "Harness"]
    note = "Score ± its standard error; above chance where it is more than two of them over it."
    return Table(heads, {"": rows}, first_number=2, note=note, minor=(1, 5, 6)) if rows else None


def _above(value: float, error: float | None, chance: float | None) -> str:
    if chance is None or error is None:
        return NONE
    return "yes" if value - chance > 2 * error else "no"


def training(facts: Facts) -> Table:
    """How long each phase took."""
    rows = []
    for phase, found in facts["training"].items():
        memory = found.get("memory_bytes")
        rows.append(
            [
                Cell(phase),
                Cell(f"{found['tokens']:,}"),
                Cell(f"{found['steps']:,}"),
                Cell(f"{found['tokens_per_second']:,.0f}"),
                Cell(show_seconds(found["seconds"])),
                Cell(show_bytes(memory) if memory else NONE),
                Cell(f"{found['loss']:.4f}"),
                Cell(str(found.get("resumed", 0))),
            ]
        )
    heads = ["Phase", "Tokens", "Steps", "Tokens/s", "Training", "Memory", "Last loss", "Resumed"]
    note = (
        "Tokens/s is the median step's; the last loss, in nats a token, is the mean of the last "
        "2 % of the steps."
    )
    return Table(heads, {"": rows}, note=note, minor=(2, 5, 7))


def measures(facts: Facts) -> Table | None:
    """What was measured of generated text, a line a phase and its weights."""
    made = facts.get("generation", {})
    lines = {
        f"{phase} {words(weights)}": found
        for phase, one in made.items()
        for weights, found in one.get("measures", {}).items()
    }
    names = [name for name in _names(lines.values()) if name not in COUNTS]
    if not names:
        return None
    rows = [[Cell(where), *(Cell(_short(found.get(n))) for n in names)] for where, found in
            lines.items()]  # fmt: skip
    spans = {one.get("settings", {}).get("memorised_span") for one in made.values()} - {None}
    of = f"spans of {spans.pop()} tokens" if len(spans) == 1 else "its spans"
    note = (
        "distinct n: share of n-grams that are different, more is more varied; memorised share: of "
        f"{of}, those that stand word for word in the training text. held out: what people wrote, "
        "measured the same way."
    )
    return Table(["Generated", *map(words, names)], {"": rows}, note=note)


def generation_speed(facts: Facts) -> Table | None:
    """Tokens a second of generation, by batch."""
    rows, hardware = [], ""
    for phase, made in facts.get("generation", {}).items():
        found = made.get("speed") or {}
        hardware = str(found.get("hardware", hardware))
        memory = found.get("peak_memory_bytes")
        for batch, rates in found.items():
            if not isinstance(rates, dict) or not batch.startswith("batch_"):
                continue
            rows.append(
                [
                    Cell(phase),
                    Cell(batch.removeprefix("batch_")),
                    Cell(rate(rates.get("prefill_tokens_per_second"))),
                    Cell(rate(rates.get("decode_tokens_per_second"))),
                    Cell(show_bytes(memory) if memory else NONE),
                ]
            )
    heads = ["Phase", "Batch", "Prompt, tokens/s", "Generation, tokens/s", "Peak memory"]
    note = f"Measured on {hardware}." if hardware else ""
    return Table(heads, {"": rows}, note=note, minor=(4,)) if rows else None


def _names(lines: Iterable[dict[str, Any]]) -> list[str]:
    """The names that any line has a number under, in the order in which they come."""
    found: dict[str, None] = {}
    for line in lines:
        found |= {name: None for name, value in line.items() if isinstance(value, int | float)}
    return list(found)


def _short(value: float | None) -> str:
    return NONE if value is None else f"{value:.3g}"


def rate(value: float | None) -> str:
    """Tokens a second; a dash for what was not measured."""
    return NONE if value is None else f"{value:,.0f}"
