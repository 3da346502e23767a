"""`phasewise pull`, `phasewise sync` and `phasewise show`: the registry and the record."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tasks.cli.project import load_recipe, project_root
from tasks.workspace import Workspace


def pull(
    model: Annotated[
        str, typer.Argument(help="models:/<name>@<alias> or models:/<name>/<version>")
    ],
    folder: Annotated[Path, typer.Argument(help="Where the exported folder goes.")],
) -> None:
    """Fetch a registered model, verified, as a folder that transformers opens."""
    from tasks.registry.pull import pull as fetch

    fetch(model, folder)
    print(f"{model} is at {folder}; try it: phasewise generate --model {folder} --prompt 'The'")


def sync() -> None:
    """Bring MLflow up to date with what was trained while it was away (exit 69: still away)."""
    from tasks.registry.tracking import sync_all

    root = project_root()
    if not sync_all(Workspace(root), load_recipe(root / "params.yaml"), print):
        print("nothing to send: no phase was trained here yet")


def show() -> None:
    """What was made last: the registered model, its figures, where to look."""
    from tasks.report.account import ledger_summary
    from tasks.report.summary import summary

    root = project_root()
    recipe = load_recipe(root / "params.yaml")
    print(ledger_summary(Workspace(root), recipe))
    print(summary(Workspace(root), recipe))
