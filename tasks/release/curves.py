"""How training went, from the phases' histories: the charts, and one table for `dvc plots`.

The x axis is the tokens of all phases up to a point, so that phases follow each other on it.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any

from tasks.recipe import Recipe
from tasks.release.plots import Line, Style, chart, smooth, thin
from tasks.training.history import read_history
from tasks.workspace import Workspace

TOKENS = "tokens, all phases"
COLUMNS = ("phase", "total_tokens", "loss", "lr", "grad_norm", "tokens_per_second")


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


def loss_chart(histories: list[PhaseHistory]) -> str:
    """Training loss: every step faint, its running mean strong."""
    lines = _noisy(histories, "loss")
    return chart(lines, "Training loss", TOKENS, "nats a token", _boundaries(histories))


def grad_norm_chart(histories: list[PhaseHistory]) -> str:
    """The gradient's norm before clipping: every step faint, its running mean strong."""
    lines = _noisy(histories, "grad_norm")
    return chart(lines, "Gradient norm", TOKENS, "global norm", _boundaries(histories))


def lr_chart(histories: list[PhaseHistory]) -> str:
    """The learning rate of every step."""
    lines = [
        Line(h.phase, *thin([h.total(r) for r in h.train], [r["lr"] for r in h.train]), colour)
        for colour, h in enumerate(histories)
    ]
    return chart(lines, "Learning rate", TOKENS, "learning rate", _boundaries(histories), _show_lr)


def held_out_chart(histories: list[PhaseHistory]) -> str | None:
    """Bits per byte of every held-out set while training, raw against EMA; None without any."""
    names = dict.fromkeys(r["set"] for h in histories for r in h.validation)
    lines = []
    for colour, name in enumerate(names):
        for weights in ("raw", "ema"):
            found = [
                (h.total(r), r["bits_per_byte"])
                for h in histories
                for r in h.validation
                if r["set"] == name and r["weights"] == weights
            ]
            if found:
                xs, ys = zip(*sorted(found), strict=True)
                style: Style = "solid" if weights == "ema" else "dashed"
                label = f"{name.removesuffix('/validation')}, {weights}"
                lines.append(Line(label, xs, ys, colour, style, dots=True))
    if not lines:
        return None
    title = "Held-out text while training"
    return chart(lines, title, TOKENS, "bits per byte", _boundaries(histories))


def curves_csv(histories: list[PhaseHistory]) -> str:
    """Every logged step of every phase as one CSV table, for `dvc plots`."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for history in histories:
        for record in history.train:
            place = {"phase": history.phase, "total_tokens": history.total(record)}
            writer.writerow(record | place)
    return out.getvalue()


def _noisy(histories: list[PhaseHistory], name: str) -> list[Line]:
    lines = []
    for colour, history in enumerate(histories):
        xs = [history.total(r) for r in history.train]
        ys = [r[name] for r in history.train]
        lines.append(Line(history.phase, *thin(xs, ys), colour, "faint"))
        lines.append(Line(history.phase, *thin(xs, smooth(ys)), colour))
    return lines


def _boundaries(histories: list[PhaseHistory]) -> list[tuple[float, str]]:
    return [(h.tokens_before, f"{h.phase} →") for h in histories if h.tokens_before]


def _show_lr(value: float) -> str:
    return "0" if value == 0 else f"{value:.0e}".replace("e-0", "e-")
