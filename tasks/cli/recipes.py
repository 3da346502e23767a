"""`phasewise recipes list|show|use` and `phasewise check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tasks.cli.project import load_recipe, project_root
from tasks.errors import UserError, unknown_name

app = typer.Typer(help="The ready recipes, and the one in force.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="A recipe's name, as `phasewise recipes list` shows it.")]


def recipe_path(name: str) -> Path:
    """recipes/<name>.yaml. Raises UserError that lists what there is."""
    folder = project_root() / "recipes"
    path = folder / f"{name}.yaml"
    if path.parent != folder or not path.exists():
        raise unknown_name("recipe", name, [p.stem for p in folder.glob("*.yaml")])
    return path


@app.command("list")
def list_recipes() -> None:
    """List the recipes with their sizes."""
    from rich.console import Console
    from rich.table import Table

    from model.counts import count_parameters
    from tasks.units import show_count

    root = project_root()
    in_force = (root / "params.yaml").read_text() if (root / "params.yaml").exists() else ""
    table = Table("", "recipe", "parameters", "tokens", "phases", "what it is", box=None)
    for path in sorted((root / "recipes").glob("*.yaml")):
        recipe = load_recipe(path)
        parameters = count_parameters(recipe.model_config_with_vocab)["total"]
        tokens = sum(phase.tokens for phase in recipe.phases.values())
        table.add_row(
            "*" if path.read_text() == in_force else "",
            path.stem,
            f"{parameters:,}",
            show_count(tokens),
            ", ".join(recipe.phases_in_order()),
            recipe.description,
        )
    Console().print(table)
    print("* in force (params.yaml)")


@app.command()
def show(name: Name) -> None:
    """Print a recipe as it is written."""
    print(recipe_path(name).read_text(), end="")


@app.command()
def use(
    name: Name,
    force: Annotated[bool, typer.Option(help="Replace a params.yaml that was edited.")] = False,
) -> None:
    """Make a recipe the one in force: copy it to params.yaml."""
    adopt(recipe_path(name), force)
    print(f"{name} is in force; see what it takes: phasewise plan; run it: dvc repro")


def adopt(path: Path, force: bool) -> None:
    """Copy a recipe to params.yaml, never over edits that stand nowhere else unless ``force``."""
    from tasks.files import write_text

    load_recipe(path)
    target = project_root() / "params.yaml"
    if target.exists():
        ours = target.read_text()
        ready = [p.read_text() for p in (project_root() / "recipes").glob("*.yaml")]
        if ours not in ready:
            if not force:
                raise UserError(
                    "params.yaml has edits that are in no recipe",
                    hint="save it as recipes/<name>.yaml, or give --force (keeps params.yaml.bak)",
                )
            write_text(target.with_suffix(".yaml.bak"), ours)
    write_text(target, path.read_text())


def check(
    path: Annotated[Path | None, typer.Argument(help="Default: the params.yaml in force.")] = None,
) -> None:
    """Validate a recipe; exit code 2 and the faults by key where it cannot work."""
    path = path or project_root() / "params.yaml"
    recipe = load_recipe(path)
    chain = " -> ".join(recipe.phases_in_order())
    print(f"{path.name} is a valid recipe: {recipe.name}, {len(recipe.sources)} sources, {chain}")
