"""From a phase's history to its MLflow run, at any time, any number of times.

    runs/<phase>/history.jsonl     -- follow: a child of the trainer, every second --> run
    metrics/<phase>/history.jsonl  -- sync: afterwards, or where DVC brought it   --> the same run

The file is the truth. How far MLflow has come is asked of MLflow itself, so there is no position to
lose; what could not be sent is still in the file and goes along the next time. The trainer knows
nothing of this: a server that is away, slow or gone costs it nothing.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from tasks import recipe as recipes
from tasks.errors import BAD_DATA, USAGE, UserError
from tasks.files import read_json
from tasks.recipe import Recipe
from tasks.release import provenance
from tasks.release.curves import PhaseHistory, loss_chart
from tasks.release.feed import Point, Tail, final_metrics, points
from tasks.release.mlflow_store import (
    BATCH,
    Dataset,
    Store,
    TrackingError,
)
from tasks.release.plots import standalone
from tasks.training.history import read_history
from tasks.workspace import Workspace

POLL_SECONDS = 1.0
LONGEST_PAUSE = 60.0


class PhaseRun:
    """The MLflow run of one phase, brought up to date from a folder with a history.jsonl.

    `read` takes what is new in the file, `send` brings it to MLflow: the first works always.
    """

    def __init__(
        self, workspace: Workspace, recipe: Recipe, phase: str, folder: Path, *, live: bool = False
    ) -> None:
        self.workspace, self.recipe, self.phase, self.folder = workspace, recipe, phase, folder
        self.run_id = ""  # known once MLflow was reached
        self.ended = False  # the history has its last record
        self._complete = False  # and MLflow has it
        self._live = live  # somebody trains it now
        self._tail = Tail(folder / "history.jsonl")
        self._header: dict[str, Any] = {}
        self._points: list[Point] = []  # not sent yet
        self._samples: list[dict[str, Any]] = []
        self._samples_sent = 0
        self._last: dict[str, Any] = {}
        self._steps: dict[str, int] = {}  # the last step that MLflow has of each metric
        self._values: dict[str, float] = {}

    def read(self) -> None:
        """Take what is new in the history. Raises UserError where it is missing or broken."""
        records = self._tail.read()
        if not records:
            return
        if not self._header:
            if records[0]["kind"] != "run":
                raise UserError(
                    "the first record must be the run's",
                    where=str(self._tail.path),
                    exit_code=BAD_DATA,
                )
            self._header = records[0]
        self._points += points(records, self._header["tokens_before"])
        self._samples += [r for r in records if r["kind"] == "sample"]
        self._last = records[-1]
        self.ended = self._last.get("event") == "finished"

    def send(self) -> None:
        """Bring MLflow up to date. Raises TrackingError where it is away: call again later."""
        if not self._header:
            return
        if not self.run_id:
            self._open()
        self._send_points()
        if self._complete:
            return
        self._send_samples()
        if self.ended:
            history = PhaseHistory.of(read_history(self._tail.path))
            self._store.write(self.run_id, standalone(loss_chart([history])), "plots/loss.svg")
            self._store.set_status(self.run_id, "FINISHED", int(self._last["time"] * 1000))
            self._complete = True

    def send_final(self, evaluation: dict[str, Any]) -> None:
        """Send ``final/<set>/<weights>_bits_per_byte``, where MLflow has not these very values."""
        step = self._header["tokens_before"] + self._header["total_tokens"]
        now = int(time.time() * 1000)
        changed = [
            Point(name, value, step, now)
            for name, value in final_metrics(evaluation).items()
            if self._values.get(name) != value
        ]
        if changed:
            self._store.log(self.run_id, changed)

    def interrupted(self) -> None:
        """Say that nobody trains this phase now, though it has not ended."""
        if self.run_id and not self.ended:
            self._store.set_status(self.run_id, "KILLED")

    def _open(self) -> None:
        """Find the run by its key or make it, and ask how far MLflow has come."""
        header = self._header
        self._store = Store(self.workspace.root, quick=self._live)
        experiment = self._store.experiment(self.recipe.name)
        run = self._store.run(experiment, header["run_key"])
        if run is None:
            tags = provenance.run_tags(self.workspace, self.recipe, self.phase)
            if header["parent"]:
                tags["phasewise.parent_run_key"] = header["parent"]
                if parent := self._store.run(experiment, header["parent"]):
                    tags["phasewise.parent_run_id"] = parent.info.run_id
            started = int(header["time"] * 1000)
            run = self._store.ensure_run(experiment, header["run_key"], self.phase, started, tags)
        run_id = run.info.run_id
        self._complete = run.info.status == "FINISHED"
        if self._live and not self._complete:
            self._store.set_status(run_id, "RUNNING")
        if not self._complete:
            self._store.write(run_id, json.dumps(self.recipe.resolved(), indent=2), "recipe.json")
        self._store.describe(run, provenance.parameters(self.recipe, self.phase), self._datasets())
        self._steps, self._values = self._store.last_steps(run), dict(run.data.metrics)
        self.run_id = run_id

    def _datasets(self) -> list[Dataset]:
        path = self.workspace.mix(self.phase)
        if not path.exists():
            return []
        return [
            Dataset(
                name=source["name"],
                source=f"data/tokens/{source['name']}",
                fingerprint=source["fingerprint"],
                figures={key: source[key] for key in ("weight", "tokens", "windows", "epochs")},
            )
            for source in read_json(path)["sources"]
        ]

    def _send_points(self) -> None:
        """Send the points beyond those that MLflow has, a batch at a time."""
        self._points = [p for p in self._points if p.step > self._steps.get(p.name, -1)]
        while batch := self._points[:BATCH]:
            self._store.log(self.run_id, batch)
            self._steps |= {p.name: p.step for p in batch}
            self._points = self._points[BATCH:]

    def _send_samples(self) -> None:
        if len(self._samples) > self._samples_sent:
            columns = ["tokens", "prompt", "text"]
            rows = [[sample[name] for name in columns] for sample in self._samples]
            self._store.table(self.run_id, columns, rows, "samples.json")
            self._samples_sent = len(self._samples)


def sync(workspace: Workspace, recipe: Recipe, phase: str, folder: Path) -> str:
    """Bring the run of ``phase`` up to date with ``folder``/history.jsonl; returns the run's id.

    Final figures go along once the phase is evaluated. Raises TrackingError (exit code 69) where
    MLflow is away, UserError for a history that is missing, empty or broken.
    """
    run = PhaseRun(workspace, recipe, phase, folder)
    run.read()
    run.send()
    if not run.run_id:
        raise UserError(f"{folder / 'history.jsonl'} is empty", exit_code=BAD_DATA)
    if workspace.evaluation(phase).exists():
        run.send_final(read_json(workspace.evaluation(phase)))
    return run.run_id


def sync_all(workspace: Workspace, recipe: Recipe) -> dict[str, str]:
    """Bring the runs of all phases up to date that have a history; returns phase -> run id."""
    runs = {}
    for phase in recipe.phases_in_order():
        for folder in (workspace.metrics(phase), workspace.run(phase)):
            if (folder / "history.jsonl").exists():
                runs[phase] = sync(workspace, recipe, phase, folder)
                break
    return runs


def follow(folder: Path, trainer: int | None = None) -> int:
    """Feed the history in runs/<phase> to MLflow while it grows; the trainer's child process.

    Ends with the phase or with the trainer, after one last try. That MLflow is away is said once;
    each try that fails makes the pause before the next one longer.

    Args:
        trainer: its process id, so that a trainer that is gone already is noticed.
    """
    trainer = trainer or os.getppid()
    root, phase = folder.resolve().parents[1], folder.resolve().name
    run = PhaseRun(Workspace(root), recipes.load(root / "params.yaml"), phase, folder, live=True)
    pause, next_try = POLL_SECONDS, 0.0
    away: TrackingError | None = None
    while True:
        alone = os.getppid() != trainer
        run.read()
        last = alone or run.ended
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
        print("usage: python -m tasks.release.tracking follow runs/<phase> [pid of the trainer]",
              file=sys.stderr)  # fmt: skip
        return USAGE
    try:
        return follow(Path(arguments[1]), *map(int, arguments[2:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
