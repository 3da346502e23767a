"""The forgetting matrix: every phase on every held-out set, and what it changed.

    evaluation/*.json, *.details.json, *.documents.npz -> phase x set -> bits per byte, its error,
                                                          the change since the parent and its error

The change is paired: both phases paid for the same documents. It is told only where the text is
the same; ``same_protocol`` says whether both were also scored alike (a phase of a longer seq_len
sees more before each token, which is part of its change then).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tasks.evaluation.bootstrap import Difference, paired
from tasks.evaluation.documents import protocol_of, read_documents, sums_of
from tasks.files import read_json
from tasks.recipe import Recipe
from tasks.workspace import Workspace


@dataclass(frozen=True)
class Cell:
    """One phase on one set."""

    bits_per_byte: float
    se: float | None
    """Standard error; None where it is not known."""
    change: Difference | None
    """This phase less its parent; None without a parent, or where its text was another."""
    same_protocol: bool


Matrix = dict[str, dict[str, Cell]]


def forgetting_matrix(workspace: Workspace, recipe: Recipe, weights: str | None = None) -> Matrix:
    """phase -> set -> Cell, of all phases that were evaluated, parents before children.

    ``weights``: raw or ema; default: those that the recipe releases. A phase without them (one
    that keeps no EMA) is told by its raw ones.
    """
    wanted = weights or recipe.release.weights
    matrix: Matrix = {}
    for phase in recipe.phases_in_order():
        if not workspace.evaluation(phase).exists():
            continue
        parent = recipe.phases[phase].parent
        now = _Evaluated.of(workspace, phase, wanted)
        known = parent and workspace.evaluation(parent).exists()
        before = _Evaluated.of(workspace, str(parent), wanted) if known else None
        matrix[phase] = {name: _cell(name, now, before) for name in now.figures}
    return matrix


@dataclass(frozen=True)
class _Evaluated:
    """What a phase's evaluation wrote."""

    figures: dict[str, dict[str, dict[str, float]]]
    details: dict[str, Any]
    arrays: dict[str, Any]
    wanted: str

    @classmethod
    def of(cls, workspace: Workspace, phase: str, wanted: str) -> _Evaluated:
        details = workspace.evaluation(phase, "details.json")
        return cls(
            read_json(workspace.evaluation(phase)),
            read_json(details) if details.exists() else {},
            read_documents(workspace.evaluation(phase, "documents.npz")),
            wanted,
        )

    def weights(self, name: str) -> str:
        return self.wanted if self.wanted in self.figures[name] else "raw"

    def text(self, name: str) -> str | None:
        """Fingerprint of a set's text."""
        found: str | None = self.details.get("sets", {}).get(name, {}).get("fingerprint")
        return found


def _cell(name: str, now: _Evaluated, before: _Evaluated | None) -> Cell:
    row = now.figures[name][now.weights(name)]
    change, alike = None, False
    if before is not None and name in before.figures and now.text(name) is not None:
        alike = protocol_of(now.details) == protocol_of(before.details)
        mine = sums_of(now.arrays, name, now.weights(name))
        theirs = sums_of(before.arrays, name, before.weights(name))
        if now.text(name) == before.text(name) and mine is not None and theirs is not None:
            change = paired(mine.nats, theirs.nats, now.arrays[f"{name}:bytes"])
    return Cell(row["bits_per_byte"], row.get("bits_per_byte_se"), change, alike)
