"""Finding the project and its recipe, from wherever inside it a command is run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.errors import NO_INPUT, UserError

if TYPE_CHECKING:
    from tasks.recipe import Recipe


def project_root() -> Path:
    """The nearest folder at or above the current one that holds dvc.yaml.

    Raises UserError (exit code 66) outside a project.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").exists() and (folder / "recipes").is_dir():
            return folder
    raise UserError(
        "this is not inside a phasewise project (no dvc.yaml with recipes/ beside it)",
        hint="cd into the clone of the repository",
        exit_code=NO_INPUT,
    )


def load_recipe(path: Path) -> Recipe:
    """``tasks.recipe.load``, imported only when a command needs it: building the schema takes
    longer than all of --help."""
    from tasks import recipe

    return recipe.load(path)
