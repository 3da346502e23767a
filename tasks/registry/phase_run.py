"""The MLflow run of one phase: brought up to date from its history, whatever MLflow has already.

    history.jsonl  metrics against tokens, samples, the end  -+
    system.jsonl   what the machine did meanwhile            -+-> one run, below the pipeline's
    recipe, mix    settings and data, once                   -+

How far MLflow has come is asked of MLflow, so there is no position to lose.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from tasks.errors import BAD_DATA, UserError
from tasks.files import read_json
from tasks.recipe import Recipe
from tasks.registry import lineage, provenance
from tasks.registry.feed import SYSTEM, Dataset, Point, Tail, points
from tasks.registry.mlflow_runs import BATCH, PARENT
from tasks.registry.mlflow_store import Store
from tasks.report.curves import (
    PhaseHistory,
    curve,
    grad_norm_chart,
    held_out_chart,
    loss_chart,
    lr_chart,
)
from tasks.report.plots import standalone
from tasks.training.history import read_history
from tasks.workspace import Workspace

SYSTEM_FILE = "system.jsonl"


class PhaseRun:
    """The run of one phase, brought up to date from a folder with a history.jsonl.

    `read` takes what is new in the files, `send` brings it to MLflow: the first works always.

    Attributes:
        run_id: known once MLflow was reached.
        ended: the history has its last record.
        sent: points that MLflow took from us.
        step, tokens: of the phase, by the last record that says them.
    """

    def __init__(
        self, workspace: Workspace, recipe: Recipe, phase: str, folder: Path, *, live: bool = False
    ) -> None:
        self.workspace, self.recipe, self.phase, self.folder = workspace, recipe, phase, folder
        self.run_id = self.pipeline_id = ""
        self.ended = False
        self.sent = self.step = self.tokens = 0
        self.header: dict[str, Any] = {}
        self._complete = False  # MLflow has the end
        self._live = live  # somebody trains it now
        self._tail = Tail(folder / "history.jsonl")
        self._system = Tail(workspace.run(phase) / SYSTEM_FILE)
        self._points: list[Point] = []  # not sent yet
        self._samples: list[dict[str, Any]] = []
        self._samples_sent = 0
        self._last: dict[str, Any] = {}
        self._known: dict[str, Point] = {}  # the last point that MLflow has of each metric

    @property
    def waiting(self) -> int:
        """Points that were read and that MLflow is not known to have."""
        return len(self._points)

    def read(self) -> None:
        """Take what is new. Raises UserError where the history is missing or broken."""
        records = self._tail.read()
        if records and not self.header:
            if records[0]["kind"] != "run":
                raise UserError(
                    "the first record must be the run's",
                    where=str(self._tail.path),
                    exit_code=BAD_DATA,
                )
            self.header = records[0]
        for record in records:
            self.step = record.get("step", self.step)
            self.tokens = record.get("tokens", self.tokens)
        if records:
            self._samples += [r for r in records if r["kind"] == "sample"]
            self._last = records[-1]
            self.ended = self._last.get("event") == "finished"
        if self.header:
            seen = self._system.read() if self._system.path.exists() else []
            records += [r for r in seen if r["run_key"] == self.header["run_key"]]
            self._points += points(records, self.header["tokens_before"])

    def send(self) -> None:
        """Bring MLflow up to date. Raises TrackingError where it is away: call again later."""
        if not self.header:
            return
        if not self.run_id:
            self._open()
        self._send_points()
        if self._complete:
            return
        self._send_samples()
        if self.ended:
            self._send_charts()
            self._set_status("FINISHED", int(self._last["time"] * 1000))
            self._complete = True

    def send_final(self, figures: dict[str, float]) -> None:
        """Send what was measured after the end, where MLflow has not these very values."""
        step = self.header["tokens_before"] + self.header["total_tokens"]
        now = int(time.time() * 1000)
        self.sent += send_changed(self._store, self.run_id, self._known, figures, step, now)

    def send_files(self) -> list[str]:
        """Put the phase's evaluation among the artifacts, and name the held-out sets."""
        details = self.workspace.evaluation(self.phase, "details.json")
        if details.exists():
            sets = read_json(details)["sets"]
            self._store.add(
                self._store.get_run(self.run_id),
                {},
                [_held_out_set(name, facts) for name, facts in sets.items()],
            )
        files = lineage.evaluation_files(self.workspace, self.phase)
        return lineage.keep(self._store, self.run_id, dict.fromkeys(files, "evaluation"))

    def interrupted(self) -> None:
        """Say that nobody trains this phase now, though it has not ended."""
        if self.run_id and not self.ended:
            self._set_status("KILLED", None)

    def _open(self) -> None:
        """Find the run by its key or make it, and ask how far MLflow has come."""
        header = self.header
        self._store = Store(self.workspace.root, quick=self._live)
        experiment = self._store.experiment(self.recipe.name, lineage.EXPERIMENT_NOTE)
        started = int(header["time"] * 1000)
        pipeline = lineage.open_pipeline(self._store, self.workspace, self.recipe, started)
        run = self._store.run(experiment, header["run_key"])
        if run is None:
            tags = {
                PARENT: pipeline,
                **provenance.run_tags(self.workspace, self.recipe, self.phase),
            }
            if header["parent"]:
                tags["phasewise.parent_run_key"] = header["parent"]
                if parent := self._store.run(experiment, header["parent"]):
                    tags["phasewise.parent_run_id"] = parent.info.run_id
            name = f"{self.phase} {header['fingerprint'][:8]}"
            run = self._store.ensure_run(experiment, header["run_key"], name, started, tags)
        elif PARENT not in run.data.tags:
            self._store.tag(run.info.run_id, {PARENT: pipeline})
        # a phase that several pipelines share stays with the first
        self.pipeline_id = run.data.tags.get(PARENT, pipeline)
        self._complete = run.info.status == "FINISHED"
        run_id = run.info.run_id
        if not self._complete:
            recipe = json.dumps(self.recipe.resolved(), indent=2)
            self._store.write(run_id, recipe, "recipe.json")
        self._store.add(run, provenance.parameters(self.recipe, self.phase), self._datasets())
        self._known = self._store.last_points(run)
        self.run_id = run_id
        if self._live and not self._complete:
            self._set_status("RUNNING", None)

    def _set_status(self, status: str, milliseconds: int | None) -> None:
        """Of the phase; while it is trained the pipeline's is the same."""
        self._store.set_status(self.run_id, status, milliseconds)
        if self._live or status == "FINISHED":
            self._store.set_status(self.pipeline_id, status, milliseconds)

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
        self._points = [point for point in self._points if self._is_new(point)]
        while batch := self._points[:BATCH]:
            self._store.log(self.run_id, batch)
            self._known |= {point.name: point for point in batch}
            self.sent += len(batch)
            self._points = self._points[BATCH:]

    def _is_new(self, point: Point) -> bool:
        """By its step: one that was trained again after a stop is there already. The machine is
        looked at several times a step where steps are long."""
        known = self._known.get(point.name)
        if known is None or point.step != known.step:
            return known is None or point.step > known.step
        return point.name.startswith(SYSTEM) and point.milliseconds > known.milliseconds

    def _send_samples(self) -> None:
        if len(self._samples) > self._samples_sent:
            columns = ["tokens", "prompt", "text"]
            rows = [[sample[name] for name in columns] for sample in self._samples]
            self._store.table(self.run_id, columns, rows, "samples.json")
            self._samples_sent = len(self._samples)

    def _send_charts(self) -> None:
        curves = [curve(PhaseHistory.of(read_history(self._tail.path)))]
        charts = {
            "loss": loss_chart(curves),
            "lr": lr_chart(curves),
            "grad_norm": grad_norm_chart(curves),
            "held_out": held_out_chart(curves),
        }
        for name, picture in charts.items():
            if picture:
                self._store.write(self.run_id, standalone(picture), f"plots/{name}.svg")


def send_changed(
    store: Store,
    run_id: str,
    known: dict[str, Point],
    figures: dict[str, float],
    step: int,
    milliseconds: int,
) -> int:
    """Send the figures that MLflow has otherwise or not at all; returns how many."""
    changed = [
        Point(name, value, step, milliseconds)
        for name, value in figures.items()
        if name not in known or known[name].value != value
    ]
    for first in range(0, len(changed), BATCH):
        store.log(run_id, changed[first : first + BATCH])
    return len(changed)


def _held_out_set(name: str, facts: dict[str, Any]) -> Dataset:
    figures = {k: v for k, v in facts.items() if k != "fingerprint"}
    return Dataset(name, f"data/tokens/{name}", facts["fingerprint"], figures, "eval")
