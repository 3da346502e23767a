"""The command line of a stage: ``python -m tasks.data.clean <source>``.

A stage is a function ``(workspace, recipe[, name]) -> None`` from files to files. This module gives
it a command, a header with its place in the story, and errors as words and an exit code.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks import recipe as recipes
from tasks.errors import UserError, from_system
from tasks.recipe import Recipe
from tasks.telemetry import quiet_telemetry
from tasks.workspace import Workspace


def stages(recipe: Recipe) -> list[str]:
    """Every stage of the recipe by its DVC address, in the order of the story."""
    names = list(recipe.sources)
    phases = recipe.phases_in_order()
    return [
        *(f"download@{name}" for name in names),
        *(f"clean@{name}" for name in names),
        "dedup",
        "split",
        "tokenizer",
        *(f"encode@{name}" for name in names),
        *(f"mix@{name}" for name in phases),
        "init",
        *(f"train@{name}" for name in phases),
        *(f"export@{name}" for name in phases),
        *(f"evaluate@{name}" for name in phases),
        *(f"baselines@{name}" for name in phases),
        *(f"generate@{name}" for name in phases),
        "benchmark",
        "register",
        "report",
    ]


def main(function: Callable[..., Any], argument: str | None = None) -> None:
    """Run a stage from the command line; ``argument`` is 'source', 'phase' or None."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {inspect.getmodule(function).__spec__.name}",  # type: ignore[union-attr]
        description=inspect.getdoc(function),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if argument:
        parser.add_argument(argument, help=f"name of a {argument} in params.yaml")
    parser.add_argument("--root", type=Path, default=Path(), help="folder of params.yaml")
    arguments = parser.parse_args()
    sys.exit(run(function, arguments.root, getattr(arguments, argument) if argument else None))


def run(function: Callable[..., Any], root: Path, name: str | None = None) -> int:
    """Run a stage in ``root`` and return its exit code; errors are printed as words."""
    quiet_telemetry()
    started = time.monotonic()
    try:
        recipe = recipes.load(root / "params.yaml")
        address = function.__name__ + (f"@{name}" if name else "")
        known = stages(recipe)
        if address not in known:
            from tasks.errors import unknown_name

            prefix = f"{function.__name__}@"
            names = [s.removeprefix(prefix) for s in known if s.startswith(prefix)]
            raise unknown_name("name", name or "", names, where=str(root / "params.yaml"))
        if not one_of_many():
            print(f"[{known.index(address) + 1}/{len(known)}] {address}", flush=True)
        function(Workspace(root), recipe, *([name] if name else []))
    except (UserError, OSError) as error:
        words = error if isinstance(error, UserError) else from_system(error, root)
        if words is None:
            raise
        print(f"error: {words}", file=sys.stderr)
        return words.exit_code
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    if not one_of_many():
        print(f"    done in {time.monotonic() - started:.1f} s", flush=True)
    return 0


def one_of_many() -> bool:
    """Whether torchrun started this process, as one of those that do a stage together."""
    return "TORCHELASTIC_RUN_ID" in os.environ
