"""What each phase changed on each held-out set: the forgetting matrix as plain values."""

from __future__ import annotations

from typing import Any

from tasks.recipe import Recipe
from tasks.workspace import Workspace

Changes = dict[str, dict[str, dict[str, dict[str, Any]]]]


def changes(
    workspace: Workspace, recipe: Recipe, figures: dict[str, Any], details: dict[str, Any]
) -> Changes:
    """phase -> set -> raw or ema -> ``change`` in bits per byte since the parent, with the same
    weights; its ``se``, paired by document; ``same_protocol``.

    Left out: a phase without a parent, and a set whose text is another now. ``se`` is missing where
    the documents' scores were not kept.
    """
    from tasks.evaluation.forgetting import forgetting_matrix

    found: Changes = {}
    for weights in ("raw", "ema"):
        matrix = forgetting_matrix(workspace, recipe, weights)
        for phase, by_set in matrix.items():
            parent = recipe.phases[phase].parent
            for name, cell in by_set.items():
                if parent is None or not _same_text(details, phase, parent, name):
                    continue
                now = figures[phase][name].get(weights)
                then = figures[parent].get(name, {}).get(weights)
                if now is None or then is None:
                    continue
                change: dict[str, Any] = {"change": now["bits_per_byte"] - then["bits_per_byte"]}
                if cell.change:
                    change["same_protocol"] = cell.same_protocol
                    if cell.se is not None:  # a single document has no spread
                        change["se"] = cell.change.se
                found.setdefault(phase, {}).setdefault(name, {})[weights] = change
    return found


def _same_text(details: dict[str, Any], phase: str, parent: str, name: str) -> bool:
    texts = {details[one]["sets"].get(name, {}).get("fingerprint") for one in (phase, parent)}
    return len(texts) == 1
