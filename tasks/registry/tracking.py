"""From the phases' histories to MLflow, at any time, any number of times.

    runs/<phase>/history.jsonl     -- follow: a child of the trainer, every second --> run
    metrics/<phase>/history.jsonl  -- sync: afterwards, or where DVC brought it   --> the same run

The file is the truth; what could not be sent is still in it and goes along the next time. The
trainer knows nothing of this: a server that is away, slow or gone costs it nothing.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tasks import recipe as recipes
from tasks.errors import BAD_DATA, UNAVAILABLE, USAGE, UserError
from tasks.files import read_json
from tasks.recipe import Recipe
from tasks.registry import lineage, provenance
from tasks.registry.feed import benchmark_metrics, final_metrics, generation_metrics
from tasks.registry.mlflow_server import TrackingError
from tasks.registry.mlflow_store import Store
from tasks.registry.phase_run import SYSTEM_FILE, PhaseRun, send_changed
from tasks.registry.system_metrics import Machine, Recorder
from tasks.settings import settings
from tasks.workspace import Workspace

POLL_SECONDS = 1.0
LONGEST_PAUSE = 60.0


def sync(workspace: Workspace, recipe: Recipe, phase: str, folder: Path) -> str:
    """Bring the run of ``phase`` up to date with ``folder``/history.jsonl; returns the run's id.

    Final figures go along once the phase is evaluated. Raises TrackingError (exit code 69) where
    MLflow is away, UserError for a history that is missing, empty or broken.
    """
    run = PhaseRun(workspace, recipe, phase, folder)
    run.read()
    _bring(run)
    return run.run_id


def _bring(run: PhaseRun) -> None:
    run.send()
    if not run.run_id:
        raise UserError(f"{run.folder / 'history.jsonl'} is empty", exit_code=BAD_DATA)
    run.send_final(final_figures(run.workspace, run.recipe, run.phase))
    run.send_files()


def final_figures(workspace: Workspace, recipe: Recipe, phase: str) -> dict[str, float]:
    """What was measured of a phase after its end, by the name of the metric."""
    readers = {
        workspace.evaluation(phase): final_metrics,
        workspace.evaluation(phase, "generation.json"): generation_metrics,
    }
    if phase == recipe.release.phase:
        readers[workspace.benchmarks] = benchmark_metrics
    found: dict[str, float] = {}
    for path, metrics in readers.items():
        if path.exists():
            found |= metrics(read_json(path))
    return found


def sync_all(
    workspace: Workspace, recipe: Recipe, say: Callable[[str], object] = lambda line: None
) -> dict[str, str]:
    """Bring the runs of all phases that have a history up to date, and the pipeline's above them.

    Args:
        say: is told in a line what was sent of each.

    Returns phase -> run id. Raises as `sync`; where MLflow is away the error says what is left.
    """
    runs = [
        PhaseRun(workspace, recipe, phase, folder) for phase, folder in histories(workspace, recipe)
    ]
    for run in runs:
        run.read()
    try:
        for run in runs:
            _bring(run)
            state = (
                "finished"
                if run.ended
                else f"at step {run.step:,} of {run.header['total_steps']:,}"
            )
            say(f"{run.phase}: {run.sent:,} points sent, {state}")
        found = {run.phase: run.run_id for run in runs}
        if runs:
            files = share(workspace, recipe, found)
            say(f"pipeline: {', '.join(files) or 'nothing new'}" + (" sent" if files else ""))
    except TrackingError as error:
        raise _left(error, runs) from None
    return found


def _left(error: TrackingError, runs: list[PhaseRun]) -> TrackingError:
    """The error, with what waits: points that MLflow has taken before are counted too where it
    could not be asked."""
    left = [f"{run.waiting:,} points of {run.phase}" for run in runs if run.waiting]
    return TrackingError(
        error.message + (f"; left to send: {', '.join(left)}" if left else ""),
        where=error.where,
        hint=f"nothing is lost; once it answers: phasewise sync ({error.hint})",
        exit_code=UNAVAILABLE,
    )


def histories(workspace: Workspace, recipe: Recipe) -> list[tuple[str, Path]]:
    """Phase and folder of every history there is: of the finished phase, or of the running one."""
    found = []
    for phase in recipe.phases_in_order():
        for folder in (workspace.metrics(phase), workspace.run(phase)):
            if (folder / "history.jsonl").exists():
                found.append((phase, folder))
                break
    return found


def share(workspace: Workspace, recipe: Recipe, runs: dict[str, str]) -> list[str]:
    """Bring the pipeline's run up to date: its artifacts, and the released phase's figures.

    Args:
        runs: phase -> run id.

    Returns the names of the artifacts that were sent.
    """
    store = Store(workspace.root)
    run_id, files = lineage.share(store, workspace, recipe, runs)
    released = recipe.release.phase
    if released in runs:
        known = store.last_points(store.get_run(run_id))
        before = [recipe.phases[name] for name in (*recipe.parents(released), released)]
        step, now = sum(p.total_tokens for p in before), int(time.time() * 1000)
        figures = final_figures(workspace, recipe, released)
        send_changed(store, run_id, known, figures, step, now)
    return files


def share_report(workspace: Workspace, recipe: Recipe) -> None:
    """Put the report that was just written beside what MLflow has; away, it is said and left."""
    if not settings().track:
        return
    try:
        sync_all(workspace, recipe)
    except TrackingError as error:
        print(f"    {error}", file=sys.stderr)


def follow(folder: Path, trainer: int | None = None) -> int:
    """Feed the history in runs/<phase> to MLflow while it grows; the trainer's child process.

    Looks at the machine meanwhile. Ends with the phase or with the trainer, after one last try.
    That MLflow is away is said once; each try that fails makes the pause before the next longer.

    Args:
        trainer: its process id, so that a trainer that is gone already is noticed.
    """
    trainer = trainer or os.getppid()
    root, phase = folder.resolve().parents[1], folder.resolve().name
    run = PhaseRun(Workspace(root), recipes.load(root / "params.yaml"), phase, folder, live=True)
    recorder = Recorder(folder / SYSTEM_FILE, Machine(trainer, folder))
    pause, next_try = POLL_SECONDS, 0.0
    away: TrackingError | None = None
    while True:
        alone = os.getppid() != trainer
        run.read()
        last = alone or run.ended
        if run.header and not last:
            recorder.look(run.header["run_key"], run.tokens)
        if last or time.monotonic() >= next_try:
            try:
                run.send()
                if alone:
                    run.interrupted()
                away, pause = None, POLL_SECONDS
            except TrackingError as error:
                if away is None:
                    print(f"    {error}\n    training goes on without it", file=sys.stderr)
                away, pause = error, min(2 * pause, LONGEST_PAUSE)
            next_try = time.monotonic() + pause
        if last:
            return away.exit_code if away else 0
        time.sleep(POLL_SECONDS)


def reachable(workspace: Workspace) -> tuple[str, TrackingError | None]:
    """Where MLflow's record is, and why it does not answer, if it does not. Makes no database."""
    where = provenance.shown_uri(workspace.root)
    database = provenance.local_database(workspace.root)
    if database and not database.exists():
        return f"{where}, made by the first run", None
    try:
        Store(workspace.root, quick=True).models()
    except TrackingError as error:
        return where, error
    return where, None


def main(arguments: list[str]) -> int:
    """``follow runs/<phase> [pid]``: feed a phase's history to MLflow while it grows."""
    if arguments[:1] != ["follow"] or len(arguments) not in (2, 3):
        print("usage: python -m tasks.registry.tracking follow runs/<phase> [pid of the trainer]",
              file=sys.stderr)  # fmt: skip
        return USAGE
    try:
        return follow(Path(arguments[1]), *map(int, arguments[2:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
