"""How training went, from the phases' histories: curves as plain values, and charts of them.

    history.jsonl -> PhaseHistory -> curve() -> `curves` of reports/report.json -> the charts
                                  -> curves_csv(), every logged step, for a spreadsheet

The x axis is the tokens of all phases up to a point, so that phases follow each other on it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.recipe import Recipe
from tasks.report.plots import Line, Style, chart, smooth, thin
from tasks.training.history import read_history
from tasks.units import show_count
from tasks.workspace import Workspace

TOKENS = "tokens, all phases"
COLUMNS = ("phase", "total_tokens", "loss", "lr", "grad_norm", "tokens_per_second")
NOISY = ("loss", "grad_norm", "tokens_per_second")  # drawn with a running mean
DIGITS = 6  # significant, of what is written down
Curve = dict[str, Any]


@dataclass(frozen=True)
class PhaseHistory:
    """One phase's records, and the tokens that were trained before it."""

    phase: str
    tokens_before: int
    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]

    @classmethod
    def of(cls, records: list[dict[str, Any]]) -> PhaseHistory:
        """Sort the records of a history.jsonl; the first is the run's."""
        return cls(
            phase=records[0]["phase"],
            tokens_before=records[0]["tokens_before"],
            train=[r for r in records if r["kind"] == "train"],
            validation=[r for r in records if r["kind"] == "validation"],
        )

    def total(self, record: dict[str, Any]) -> int:
        """Tokens of all phases up to a record."""
        return self.tokens_before + int(record["tokens"])


def read_all(workspace: Workspace, recipe: Recipe) -> list[PhaseHistory]:
    """The histories of all finished phases, parents first."""
    paths = [workspace.metrics(name) / "history.jsonl" for name in recipe.phases_in_order()]
    return [PhaseHistory.of(read_history(path)) for path in paths if path.exists()]


def curve(history: PhaseHistory) -> Curve:
    """One phase's curves as JSON values, each at most ``plots.MOST_POINTS`` points.

    Keys: phase, tokens_before, tokens (of all phases), lr; loss, grad_norm and tokens_per_second,
    each with its running mean under ``<name>_mean``; validation: set, weights, tokens,
    bits_per_byte. Loss is in nats a token.
    """
    logged = [record for record in history.train if record["loss"] is not None]  # it was finite
    xs = [history.total(record) for record in logged]
    found: Curve = {"phase": history.phase, "tokens_before": history.tokens_before}
    found["tokens"] = [round(x) for x in thin(xs, xs)[0]]
    for name in ("lr", *NOISY):
        ys = [record[name] for record in logged]
        found[name] = _rounded(thin(xs, ys)[1])
        if name in NOISY:
            found[f"{name}_mean"] = _rounded(thin(xs, smooth(ys))[1])
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for record in history.validation:
        key = record["set"], record["weights"]
        start = {"set": key[0], "weights": key[1], "tokens": [], "bits_per_byte": []}
        line = lines.setdefault(key, start)
        line["tokens"].append(history.total(record))
        line["bits_per_byte"].append(record["bits_per_byte"])
    return found | {"validation": list(lines.values())}


def loss_chart(curves: Sequence[Curve]) -> str:
    """Training loss: every step faint, its running mean strong."""
    return _noisy(curves, "loss", "Training loss", "nats a token")


def grad_norm_chart(curves: Sequence[Curve]) -> str:
    """The gradient's norm before clipping: every step faint, its running mean strong."""
    return _noisy(curves, "grad_norm", "Gradient norm", "global L2 norm")


def speed_chart(curves: Sequence[Curve]) -> str:
    """Tokens a second: every step faint, its running mean strong."""
    return _noisy(
        curves, "tokens_per_second", "Speed", "tokens a second", show_count, from_zero=True
    )


def lr_chart(curves: Sequence[Curve]) -> str:
    """The learning rate of every step."""
    lines = [Line(c["phase"], c["tokens"], c["lr"], i) for i, c in enumerate(curves)]
    return chart(lines, "Learning rate", TOKENS, "learning rate", _boundaries(curves), show_lr)


def held_out_chart(curves: Sequence[Curve]) -> str | None:
    """Bits per byte of every held-out set while training, raw against EMA; None without any."""
    names = dict.fromkeys(v["set"] for c in curves for v in c["validation"])
    lines = []
    for colour, name in enumerate(names):
        for weights in ("raw", "ema"):
            xs, ys = held_out_points(curves, name, weights)
            if xs:
                style: Style = "solid" if weights == "ema" else "dashed"
                label = f"{name.removesuffix('/validation')}, {weights}"
                lines.append(Line(label, xs, ys, colour, style, dots=True))
    if not lines:
        return None
    title = "Held-out text while training"
    return chart(lines, title, TOKENS, "bits per byte", _boundaries(curves))


def held_out_points(
    curves: Sequence[Curve], name: str, weights: str
) -> tuple[list[float], list[float]]:
    """Tokens of all phases, and bits per byte there, of one set with one kind of weights."""
    found = sorted(
        point
        for c in curves
        for v in c["validation"]
        if (v["set"], v["weights"]) == (name, weights)
        for point in zip(v["tokens"], v["bits_per_byte"], strict=True)
    )
    return [x for x, _ in found], [y for _, y in found]


def curves_csv(histories: list[PhaseHistory]) -> str:
    """Every logged step of every phase as one CSV table."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for history in histories:
        for record in history.train:
            place = {"phase": history.phase, "total_tokens": history.total(record)}
            writer.writerow(record | place)
    return out.getvalue()


def show_lr(value: float) -> str:
    """``0.003`` -> ``3e-3``."""
    return "0" if value == 0 else f"{value:.0e}".replace("e-0", "e-")


def _noisy(
    curves: Sequence[Curve],
    name: str,
    title: str,
    unit: str,
    show: Callable[[float], str] = lambda value: f"{value:g}",
    from_zero: bool = False,
) -> str:
    lines = []
    for colour, c in enumerate(curves):
        lines.append(Line(c["phase"], c["tokens"], c[name], colour, "faint"))
        lines.append(Line(c["phase"], c["tokens"], c[f"{name}_mean"], colour))
    return chart(lines, title, TOKENS, unit, _boundaries(curves), show, from_zero)


def _boundaries(curves: Sequence[Curve]) -> list[tuple[float, str]]:
    return [(c["tokens_before"], f"{c['phase']} →") for c in curves if c["tokens_before"]]


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values]
