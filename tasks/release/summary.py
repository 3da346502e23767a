"""What a finished run is told in the terminal: the model, its figures, and where to look.

Reads files alone, so it is there at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tasks.errors import NO_INPUT, UserError
from tasks.files import read_json
from tasks.recipe import Recipe
from tasks.release.provenance import without_credentials
from tasks.workspace import Workspace


def summary(workspace: Workspace, recipe: Recipe) -> str:
    """The registered model, its bits per byte on every held-out set, the report, the two UIs.

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
    width = max(len(name) for name in figures)
    lines = [
        f"Registered  {found['name']} version {found['version']} as {found['uri']} "
        f"({found['weights']} weights after {found['phase']})",
        "",
        f"Bits per byte {'':<{max(0, width - 12)}}  {'raw':>7}  {'EMA':>7}",
    ]
    for name, by_weights in sorted(figures.items()):
        shown = "  ".join(_figure(by_weights.get(weights)) for weights in ("raw", "ema"))
        lines.append(f"  {name:<{width}}  {shown}")
    page = workspace.report / "report.html"
    lines += ["", f"Report      {page}", f"MLflow      {mlflow_command()}", "Prefect     make up"]
    return "\n".join(lines)


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


def _figure(values: dict[str, float] | None) -> str:
    return f"{values['bits_per_byte']:>7.4f}" if values else f"{'-':>7}"
