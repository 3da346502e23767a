"""`phasewise plan`: what a recipe will take, before anything is spent."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tasks.cli.flags import Json
from tasks.cli.project import load_recipe, project_root
from tasks.cli.recipes import recipe_path

if TYPE_CHECKING:
    from rich.table import Table


def plan(
    recipe: Annotated[str | None, typer.Argument(help="Default: the params.yaml in force.")] = None,
    as_json: Json = False,
    measure: Annotated[
        bool, typer.Option(help="Measure this device's speed for the expected time.")
    ] = True,
) -> None:
    """Parameters, tokens and epochs a source, steps, FLOPs, memory, disk and expected time."""
    from tasks import planning
    from tasks.workspace import Workspace

    root = project_root()
    path = recipe_path(recipe) if recipe else root / "params.yaml"
    made = planning.plan(Workspace(root), load_recipe(path), measure=measure)
    if as_json:
        print(json.dumps(made, indent=2))
    else:
        _show(made)


def _show(made: dict[str, Any]) -> None:
    from rich.console import Console

    from tasks.units import show_bytes

    console = Console()
    parameters = made["parameters"]
    print(
        f"{made['name']}: {parameters['total']:,} parameters "
        f"({parameters['non_embedding']:,} not embedding, {parameters['active']:,} active)"
    )
    console.print(_phases(made))
    console.print(_sources(made))
    memory, disk = made["memory"], made["disk"]
    held = ", ".join(
        f"{part.replace('_', ' ')} {show_bytes(size)}"
        for part, size in memory.items()
        if size and part != "total"
    )
    print(f"memory  {show_bytes(memory['total'])} expected: {held}")
    print(f"disk    {show_bytes(disk['expected'])} expected of {show_bytes(disk['free'])} free")
    print(f"FLOPs   {made['flops_formula']}")
    print(f"time    {made['speed']['how']}")


def _phases(made: dict[str, Any]) -> Table:
    """What each phase is and takes."""
    from rich.table import Table

    from tasks.units import show_count, show_seconds

    table = Table("phase", "from", "tokens", "steps", "lr", "FLOPs", "time", box=None)
    for name, phase in made["phases"].items():
        seconds = phase["expected_seconds"]
        table.add_row(
            name,
            phase["starts_from"],
            show_count(phase["tokens"]),
            f"{phase['steps']:,}",
            f"{phase['lr']['peak']:g} to {phase['lr']['end']:g}",
            f"{phase['flops']:.2e}",
            show_seconds(seconds) if seconds is not None else "not measured",
        )
    return table


def _sources(made: dict[str, Any]) -> Table:
    """What each phase reads of each source."""
    from rich.table import Table

    from tasks.planning import MANY_EPOCHS
    from tasks.units import show_count

    table = Table("phase", "source", "weight", "tokens drawn", "tokens there", "epochs", box=None)
    for name, phase in made["phases"].items():
        for source, drawn in phase["sources"].items():
            there, epochs = drawn["tokens_available"], drawn["epochs"]
            warn = " (many)" if epochs and epochs > MANY_EPOCHS else ""
            table.add_row(
                name,
                source,
                f"{drawn['weight']:.3f}",
                show_count(drawn["tokens"]),
                "after `encode`" if there is None else show_count(there),
                "" if epochs is None else f"{epochs:.2f}{warn}",
            )
    return table
