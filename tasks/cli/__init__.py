"""The command `phasewise`, beside `dvc`, `prefect` and `mlflow`.

Each command is a thin function; what is heavy is imported when a command runs, so that --help is
instant.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import typer

from tasks.cli import (
    benchmark,
    chat,
    compare,
    data,
    dedup,
    demo,
    doctor,
    exchange,
    generate,
    lr_find,
    plan,
    profile,
    quantize,
    recipes,
    registry,
    report,
)
from tasks.cli.flags import PanelCommand
from tasks.errors import UserError, from_system
from tasks.telemetry import quiet_telemetry

app = typer.Typer(
    name="phasewise",
    help="From raw text to a small language model in the registry, phase by phase.\n\n"
    "The pipeline itself runs by `dvc repro`; its stages are `python -m tasks...`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(recipes.app, name="recipes")
app.add_typer(data.app, name="data")
data.app.command()(dedup.dedup)
app.command()(recipes.check)
app.command()(plan.plan)
app.command()(profile.profile)
app.command()(doctor.doctor)
app.command()(lr_find.lr_find)
app.command(cls=PanelCommand)(generate.generate)
app.command(cls=PanelCommand)(chat.chat)
app.command()(compare.compare)
app.command()(quantize.quantize)
app.command()(benchmark.benchmark)
app.command()(registry.pull)
app.command()(exchange.gguf)
app.command("import")(exchange.import_)
app.command()(registry.sync)
app.command()(registry.show)
app.command()(report.report)
app.command()(demo.demo)


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"phasewise {installed('phasewise')}")
        raise typer.Exit


def main() -> None:
    """Entry point: errors of the user are two lines and an exit code."""
    quiet_telemetry()
    for stream in (sys.stdout, sys.stderr):  # a model may write what a terminal cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app()
    except (UserError, OSError) as error:
        words = error if isinstance(error, UserError) else from_system(error, Path.cwd())
        if words is None:
            raise
        print(f"error: {words}", file=sys.stderr)
        sys.exit(words.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
