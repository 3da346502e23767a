"""What a finished run is told in the terminal: the model, its figures, and where to look.

Reads files alone, so it is there at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from tasks.errors import NO_INPUT, UserError
from tasks.files import read_json
from tasks.recipe import Recipe
from tasks.registry.provenance import local_database, without_credentials
from tasks.workspace import Workspace

HEAD = "Bits per byte"


def summary(workspace: Workspace, recipe: Recipe) -> str:
    """The registered model and the gate's verdict on it; its bits per byte on every held-out set
    with their standard errors, beside counting alone; what to look at next.

    Raises UserError (exit code 66) where nothing is registered yet.
    """
    if not workspace.registration.exists():
        raise UserError(
            f"nothing is registered yet: {workspace.registration} is missing",
            hint="run the pipeline: dvc repro (the small one: phasewise demo)",
            exit_code=NO_INPUT,
        )
    found = read_json(workspace.registration)
    figures = read_json(workspace.evaluation(found["phase"]))
    counted = workspace.evaluation(found["phase"], "baselines.json")
    baselines = read_json(counted) if counted.exists() else {}
    lines = [
        f"Registered  {found['name']} version {found['version']} as {found['uri']} "
        f"({found['weights']} weights after {found['phase']})",
        *_elsewhere(workspace),
        *([f"Gate        {found['reason']}"] if found.get("reason") else []),
        "",
        *_table(figures, baselines),
        *_beaten(figures, baselines, found["weights"]),
        "",
        f"Report      {workspace.report / 'report.html'}",
        f"Try it      phasewise generate --model {found['uri']} --prompt {_prompt(recipe)}",
        f"MLflow      {mlflow_command()}",
        "Prefect     make up",
    ]
    return "\n".join(lines)


def _elsewhere(workspace: Workspace) -> list[str]:
    """Said where DVC brought the record of a registry that is another machine's."""
    database = local_database(workspace.root)
    if database is None or database.exists():
        return []
    return ["            on another machine; on this one: dvc repro --force --single-item register"]


def mlflow_command() -> str:
    """The command that opens MLflow's pages, or the address where a server shows them already."""
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    if address.startswith("http"):
        return without_credentials(address)
    program = Path(sys.prefix) / "bin" / "mlflow"
    if program.is_relative_to(Path.cwd()):
        program = program.relative_to(Path.cwd())
    store = without_credentials(address) or "sqlite:///mlflow.db"
    return (
        f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false {program} server --workers 1 "
        f"--host 127.0.0.1 --backend-store-uri {store}"
    )


def _table(figures: dict[str, Any], baselines: dict[str, Any]) -> list[str]:
    """A line a set; columns: raw, EMA, and each baseline; only as wide as there are figures."""
    kinds = sorted({kind for by_kind in baselines.values() for kind in by_kind})
    columns = [[HEAD, *(f"  {name}" for name in sorted(figures))]]
    for weights, title in (("raw", "raw"), ("ema", "EMA")):
        shown = [_figure(by_weights.get(weights)) for _, by_weights in sorted(figures.items())]
        columns.append([title, *shown])
    for kind in kinds:
        columns.append([kind, *(_figure(baselines.get(n, {}).get(kind)) for n in sorted(figures))])
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in zip(*columns, strict=True)
    ]


def _beaten(figures: dict[str, Any], baselines: dict[str, Any], weights: str) -> list[str]:
    """A line for each baseline that does better than the released weights: on which sets."""
    worse: dict[str, list[str]] = {}
    for name, by_weights in sorted(figures.items()):
        for kind, values in baselines.get(name, {}).items():
            if values["bits_per_byte"] < by_weights[weights]["bits_per_byte"]:
                worse.setdefault(kind, []).append(name)
    return [f"  counting alone ({kind}) does better on {', '.join(names)}"
            for kind, names in sorted(worse.items())]  # fmt: skip


def _figure(values: dict[str, float] | None) -> str:
    if values is None:
        return "-"
    error = values.get("bits_per_byte_se")
    return f"{values['bits_per_byte']:.4f}" + (f" ± {error:.4f}" if error is not None else "")


def _prompt(recipe: Recipe) -> str:
    import shlex

    return shlex.quote(recipe.evaluation.prompts[0])
