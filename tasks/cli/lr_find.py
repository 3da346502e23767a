"""`phasewise lr-find`: a range test for a phase's learning rate."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from tasks.cli.flags import Json
from tasks.cli.project import load_recipe, project_root
from tasks.errors import UserError, unknown_name

ROWS = 12


def lr_find(
    phase: Annotated[str, typer.Argument(help="A phase whose parent and mix are there.")],
    min_lr: Annotated[float, typer.Option(help="Learning rate of the first step.")] = 1e-6,
    max_lr: Annotated[float, typer.Option(help="Learning rate of the last step.")] = 1.0,
    steps: Annotated[int, typer.Option(min=20, help="Steps at most.")] = 100,
    as_json: Json = False,
) -> None:
    """Raise the learning rate step by step and see where the loss falls and where it breaks."""
    from tasks.training.lr_finder import find_lr
    from tasks.workspace import Workspace

    root = project_root()
    recipe = load_recipe(root / "params.yaml")
    if phase not in recipe.phases:
        raise unknown_name("phase", phase, recipe.phases, where=str(root / "params.yaml"))
    if not 0 < min_lr < max_lr:
        raise UserError(f"need 0 < min-lr < max-lr, got {min_lr:g} and {max_lr:g}")
    found = find_lr(Workspace(root), recipe, phase, min_lr, max_lr, steps)
    if as_json:
        print(json.dumps(asdict(found)))
        return
    low, high = min(found.losses), max(found.losses)
    print(f"{'lr':>10}  {'loss':>8}")
    for i in range(0, len(found.lrs), max(1, len(found.lrs) // ROWS)):
        bar = "#" * round(40 * (found.losses[i] - low) / max(1e-9, high - low))
        print(f"{found.lrs[i]:>10.2e}  {found.losses[i]:>8.4f}  {bar}")
    print(f"steepest fall at {found.steepest:.2e}; try lr {found.suggested:.1e} "
          f"({phase} has {recipe.phases[phase].lr:g})")  # fmt: skip
