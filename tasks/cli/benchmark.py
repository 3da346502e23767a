"""`phasewise benchmark`: a model on tasks of lm-evaluation-harness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tasks.cli.flags import Device, Json
from tasks.errors import UserError


def benchmark(
    model: Annotated[
        str, typer.Argument(help="An exported folder, or models:/<name>@<alias>.", metavar="MODEL")
    ],
    task: Annotated[
        list[str] | None,
        typer.Option(help="A task's name; may be given again.", metavar="NAME"),
    ] = None,
    tasks_from: Annotated[
        Path | None,
        typer.Option(
            help="Folder of JSON lines, a file a task: nothing is fetched. Default: the harness's "
            "own tasks, from the hub.",
            metavar="FOLDER",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Examples of each task; all by default.", min=1)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Requests at once.", min=1)] = 16,
    device: Device = "auto",
    as_json: Json = False,
    out: Annotated[
        Path | None, typer.Option(help="Also write the JSON to this file.", metavar="FILE")
    ] = None,
) -> None:
    """Score a model on benchmark tasks, with standard errors and beside pure chance."""
    from tasks.evaluation.benchmarks import run, table
    from tasks.evaluation.local_tasks import task_files
    from tasks.files import write_json
    from tasks.registry.pull import resolve
    from tasks.release.sampler import Sampler

    if not task:
        here = f"there are: {', '.join(sorted(task_files(tasks_from)))}" if tasks_from else None
        raise UserError(
            "no task is named",
            where="--task",
            hint=here or "such as --task lambada_openai; `lm_eval ls tasks` lists all",
        )
    sampler = Sampler.open(resolve(model), device=device)
    results = run(sampler, task, tasks_from, limit=limit, batch_size=batch_size)
    record = {result.task: result.record() for result in results}
    if out is not None:
        write_json(out, record)
    print(json.dumps(record, indent=2) if as_json else table(results))
