"""Experiments and runs: one experiment a recipe, in it a run of the pipeline, below it one a phase.

    tasks/registry/tracking.py  history.jsonl -> a phase's run
    tasks/registry/lineage.py   the recipe, the ledgers, the report -> the pipeline's run

Each verb may be said twice, and the second time changes nothing. No word leaves with a password in
an address.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.registry.feed import Dataset, Point
from tasks.registry.local_store import artifacts
from tasks.registry.mlflow_server import Server
from tasks.registry.provenance import local_database, without_credentials, words

if TYPE_CHECKING:
    from mlflow.entities import Run

RUN_KEY = "phasewise.run_key"
PARENT = "mlflow.parentRunId"  # MLflow's page nests a run below this one
NOTE = "mlflow.note.content"  # MLflow's page shows it as the description, in Markdown
BATCH = 1000  # metrics of one request: MLflow's limit
PARAMETERS = 100  # of one request: MLflow's limit
DIGEST = 36  # characters of a dataset's digest: MLflow's limit


class Runs(Server):
    """Every method raises TrackingError (exit code 69) where MLflow does not answer or refuses."""

    def experiment(self, name: str, note: str = "") -> str:
        """The id of the experiment ``name``, made where there is none, with a note for readers."""
        with self.reaching():
            if found := self.client.get_experiment_by_name(name):
                if found.lifecycle_stage == "deleted":
                    self.client.restore_experiment(found.experiment_id)
                return str(found.experiment_id)
            local = artifacts(self.root) if local_database(self.root) else None
            # the kind that MLflow's pages open as model training, not as conversations
            tags = {"mlflow.experimentKind": "custom_model_development", NOTE: note}
            return self.client.create_experiment(name, artifact_location=local, tags=tags)

    def run(self, experiment: str, key: str) -> Run | None:
        """The run that carries the key: the oldest, should two processes have made it at once."""
        with self.reaching():
            condition = f"tags.`{RUN_KEY}` = '{key}'"
            found = self.client.search_runs([experiment], condition, order_by=["start_time ASC"])
            return min(found, key=lambda r: (r.info.start_time, r.info.run_id), default=None)

    def get_run(self, run_id: str) -> Run:
        with self.reaching():
            return self.client.get_run(run_id)

    def ensure_run(
        self, experiment: str, key: str, name: str, milliseconds: int, tags: dict[str, str]
    ) -> Run:
        """The run that carries the key, made where there is none."""
        if found := self.run(experiment, key):
            return found
        with self.reaching():
            tags = {RUN_KEY: key, **words(tags)}
            made = self.client.create_run(experiment, milliseconds, tags, name)
            kept = self.run(experiment, key) or made
            if kept.info.run_id != made.info.run_id:
                self.client.delete_run(made.info.run_id)
            return kept

    def last_points(self, run: Run) -> dict[str, Point]:
        """The last point, by its step, that MLflow has of each metric."""
        found = run.data.to_proto().metrics
        return {m.key: Point(m.key, m.value, m.step, m.timestamp) for m in found}

    def log(self, run_id: str, points: Sequence[Point]) -> None:
        """Send at most ``BATCH`` points in one request."""
        from mlflow.entities import Metric

        with self.reaching():
            metrics = [Metric(p.name, p.value, p.milliseconds, p.step) for p in points]
            self.client.log_batch(run_id, metrics)

    def add(self, run: Run, parameters: dict[str, str], datasets: Iterable[Dataset]) -> None:
        """Add the parameters that the run lacks (MLflow lets none be changed), and what it read."""
        from mlflow.entities import Dataset as Entity
        from mlflow.entities import DatasetInput, InputTag, Param

        parameters = words(parameters)
        missing = [Param(k, v) for k, v in parameters.items() if k not in run.data.params]
        inputs = [
            DatasetInput(
                Entity(
                    name=d.name,
                    digest=d.fingerprint[:DIGEST],
                    source_type="local",
                    source=json.dumps({"uri": without_credentials(d.source)}),
                    profile=json.dumps(d.figures),
                ),
                [InputTag("mlflow.data.context", d.context)],
            )
            for d in datasets
        ]
        with self.reaching():
            for first in range(0, len(missing), PARAMETERS):
                self.client.log_batch(run.info.run_id, params=missing[first : first + PARAMETERS])
            if inputs:
                self.client.log_inputs(run.info.run_id, inputs)

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set these tags of a run, others stay."""
        from mlflow.entities import RunTag

        with self.reaching():
            self.client.log_batch(run_id, tags=[RunTag(k, v) for k, v in words(tags).items()])

    def write(self, run_id: str, content: str, name: str) -> None:
        """Put a text file among the run's artifacts, in place of one of that name."""
        with self.reaching():
            self.client.log_text(run_id, without_credentials(content), name)

    def put(self, run_id: str, path: Path, folder: str = "") -> None:
        """Put a file into a folder of the run's artifacts, in place of one of its name."""
        with self.reaching():
            self.client.log_artifact(run_id, str(path), folder or None)

    def fetch(self, run_id: str, name: str, into: Path) -> Path:
        """Download a file of the run's artifacts into a folder; returns where it is."""
        with self.reaching():
            return Path(self.client.download_artifacts(run_id, name, str(into)))

    def table(self, run_id: str, columns: list[str], rows: list[list[Any]], name: str) -> None:
        """Put a table among the run's artifacts, in the form that MLflow's page shows as one."""
        self.write(run_id, json.dumps({"columns": columns, "data": rows}), name)
        with self.reaching():
            tags = self.client.get_run(run_id).data.tags
            shown = json.loads(tags.get("mlflow.loggedArtifacts", "[]"))
            if (entry := {"path": name, "type": "table"}) not in shown:
                shown.append(entry)
                self.client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps(shown))

    def set_status(self, run_id: str, status: str, milliseconds: int | None = None) -> None:
        """RUNNING, or ended as FINISHED or KILLED at a time."""
        with self.reaching():
            if status == "RUNNING":
                self.client.update_run(run_id, status)
            else:
                self.client.set_terminated(run_id, status, milliseconds)
