"""`phasewise report`: one run's report anew, or several runs beside each other, as a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tasks.cli.project import project_root
from tasks.errors import UserError

FORMS = (".html", ".md", ".json")


def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN...",
            help="The folder of a run, a report.json, models:/<name>@<alias>, or a git revision of "
            "this project; default: this project.",
        ),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Beside each other; a single RUN beside this project."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Where it goes; .html, .md or .json says the form.")
    ] = None,
    examples: Annotated[
        bool,
        typer.Option(help="Quote dropped documents; not in a report of text you may not pass on."),
    ] = True,
) -> None:
    """Write the report of a run, or a comparison of runs, as one file to read or to send."""
    from tasks.registry.pull import SCHEME
    from tasks.report.runs import open_run, open_runs

    names = runs or []
    target = out or Path("comparison.html" if compare else "report.html")
    if target.suffix not in FORMS:
        raise UserError(
            f"{target} has no form that is written here", hint=f"end it in {', '.join(FORMS)}"
        )
    if not compare and len(names) > 1:
        raise UserError(f"{len(names)} runs are a comparison", hint="add --compare")
    elsewhere = [name for name in names if Path(name).exists() or name.startswith(SCHEME)]
    root = Path.cwd() if names and elsewhere == names else project_root()
    if compare:
        if len(names) < 2:
            root = project_root()
            names = [str(root), *names]
        _write_comparison(open_runs(names, root), target)
    else:
        facts = open_run(names[0] if names else str(root), root).facts
        _write_report(facts if examples else without_examples(facts), target)
    print(target)


def without_examples(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts with no document of the sources quoted."""
    ledger = facts["ledger"]
    sources = {
        name: source | {"stages": [stage | {"examples": {}} for stage in source["stages"]]}
        for name, source in ledger["sources"].items()
    }
    return facts | {"ledger": ledger | {"sources": sources}}


def _write_report(facts: dict[str, Any], target: Path) -> None:
    from tasks.report.markdown import markdown
    from tasks.report.page import page

    _write(facts, target, page, markdown)


def _write_comparison(runs: list[Any], target: Path) -> None:
    from tasks.report.comparison import compare_runs
    from tasks.report.comparison_page import markdown, page

    _write(compare_runs(runs), target, page, markdown)


def _write(
    found: dict[str, Any],
    target: Path,
    page: Callable[[dict[str, Any]], str],
    markdown: Callable[[dict[str, Any]], str],
) -> None:
    from tasks.files import write_text

    forms = {
        ".html": page,
        ".md": markdown,
        ".json": lambda value: json.dumps(value, indent=2, ensure_ascii=False) + "\n",
    }
    write_text(target, forms[target.suffix](found))
