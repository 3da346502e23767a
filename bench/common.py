"""What every measurement shares: turns, ratios, and how they are shown.

A module of this package has one function `bench() -> Table` and ends with `main(bench)`:

    def bench() -> Table:
        table = Table("Decoding, tokens a second", notes=["greedy, batch 1"])
        times = take_turns({"ours": ours, "theirs": theirs}, repeats=5)
        row = Row.of_times("one", times["ours"], times["theirs"], work=256, unit="tokens/s")
        table.rows.append(row)
        return table

    if __name__ == "__main__":
        main(bench)
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tasks.hardware import hardware
from tasks.units import show_bytes, show_count

__all__ = ["Row", "Table", "hardware", "main", "take_turns", "versions"]


@dataclass(frozen=True)
class Row:
    """One comparison: values of `ours` and `theirs`, a value a turn, in `unit`.

    ``better`` says which way is good: "more" (a rate) or "less" (memory, seconds).
    """

    what: str
    ours: list[float]
    theirs: list[float]
    unit: str
    better: str = "more"

    @classmethod
    def of_times(
        cls, what: str, ours: Sequence[float], theirs: Sequence[float], *, work: float, unit: str
    ) -> Row:
        """Rates out of the seconds of each turn, of which each did ``work`` units."""
        return cls(what, [work / s for s in ours], [work / s for s in theirs], unit)

    @property
    def ratios(self) -> list[float]:
        """Ours over theirs, turn by turn."""
        return [a / b for a, b in zip(self.ours, self.theirs, strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)


@dataclass
class Table:
    """What one module measured."""

    title: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def cells(self) -> list[list[str]]:
        """The heading and the rows as text."""
        lines = [["what", "ours", "theirs", "ours / theirs", "least to greatest", "turns"]]
        for row in self.rows:
            low, high = min(row.ratios), max(row.ratios)
            lines.append(
                [
                    row.what,
                    _show(statistics.median(row.ours), row.unit),
                    _show(statistics.median(row.theirs), row.unit),
                    f"{row.ratio:.2f}" + (" (less is better)" if row.better == "less" else ""),
                    f"{low:.2f} to {high:.2f}",
                    str(len(row.ours)),
                ]
            )
        return lines

    def print(self) -> None:
        """As a table on the terminal."""
        import rich.box
        import rich.console
        import rich.table

        heading, *lines = self.cells()
        shown = rich.table.Table(title=self.title, title_justify="left", box=rich.box.SIMPLE)
        shown.add_column(heading[0])
        for name in heading[1:]:
            shown.add_column(name, justify="right")
        for line in lines:
            shown.add_row(*line)
        console = rich.console.Console()
        console.print(shown)
        for note in self.notes:
            console.print(f"  {note}", highlight=False)

    def markdown(self) -> str:
        """As a section of a page."""
        heading, *lines = self.cells()
        rule = ["---", *["---:"] * (len(heading) - 1)]
        rows = [f"| {' | '.join(cells)} |" for cells in (heading, rule, *lines)]
        notes = [f"- {note}" for note in self.notes]
        return "\n".join([f"## {self.title}", "", *rows, "", *notes, ""])

    @classmethod
    def from_dict(cls, made: dict[str, Any]) -> Table:
        return cls(made["title"], [Row(**row) for row in made["rows"]], made["notes"])


def take_turns(
    runs: Mapping[str, Callable[[], object]], repeats: int, warm_ups: int = 1
) -> dict[str, list[float]]:
    """Wall-clock seconds of each run in each of ``repeats`` rounds, after ``warm_ups`` rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warm_ups + repeats):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if turn >= warm_ups:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def versions(*packages: str) -> str:
    """``torch 2.13.0, transformers 5.23.0`` and Python's own."""
    from importlib.metadata import version

    found = [f"{package} {version(package)}" for package in packages]
    return ", ".join([*found, f"Python {platform.python_version()}"])


def main(bench: Callable[[], Table]) -> None:
    """The command line of one module: print the table; ``--json FILE`` keeps it for ``bench``."""
    parser = argparse.ArgumentParser(description=bench.__doc__)
    parser.add_argument("--json", type=Path, help="write what was measured here too")
    given = parser.parse_args()
    table = bench()
    table.notes.append(hardware())
    table.print()
    if given.json:
        given.json.write_text(json.dumps(asdict(table)), "utf-8")


def _show(value: float, unit: str) -> str:
    if unit == "bytes":
        return show_bytes(value)
    return f"{show_count(float(value))} {unit}"
