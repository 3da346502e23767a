"""MLflow, touched here and nowhere else.

One experiment a recipe, one run a phase, one registered model a recipe. `Store` has the few verbs
that the release needs of it; each may be said twice, and the second time changes nothing.

    tasks/release/tracking.py  history.jsonl -> runs
    tasks/release/register.py  exports/<phase> -> a version of the registered model
    tasks/release/pull.py      models:/<name>@<alias> -> a plain folder
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.errors import UNAVAILABLE, UserError
from tasks.release.feed import Point
from tasks.release.provenance import (
    local_database,
    shown_uri,
    tracking_uri,
    without_credentials,
)
from tasks.telemetry import quiet_telemetry

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RUN_KEY = "phasewise.run_key"
EXPORT = "phasewise.export"  # SHA-256 of the manifest that the export stage wrote
SEAL = "phasewise.seal"  # SHA-256 of the manifest as it was registered
CHECKPOINT = "phasewise.checkpoint"
BATCH = 1000  # metrics of one request: MLflow's limit
PARAMETERS = 100  # of one request: MLflow's limit
DIGEST = 36  # characters of a dataset's digest: MLflow's limit


class Dataset(NamedTuple):
    """What a run read: a name, where it lies, its fingerprint and a few figures."""

    name: str
    source: str
    fingerprint: str
    figures: dict[str, Any]


class TrackingError(UserError):
    """MLflow did not answer, or refused."""


def load(folder: Path) -> Any:
    """A downloaded version, ready to `predict`; runs the code that lies in it."""
    from mlflow.pyfunc import load_model

    return load_model(str(folder))


class Store:
    """MLflow's runs and models of one working folder.

    Args:
        root: the folder of params.yaml.
        quick: give up on a server after seconds; for one that is written to while training.

    Every method raises TrackingError (exit code 69) where MLflow does not answer or refuses.
    """

    def __init__(self, root: Path, *, quick: bool = False) -> None:
        self.root = root.resolve()
        self.uri = tracking_uri(root)
        quiet_telemetry()
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1" if quick else "3")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5" if quick else "60")
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # the password with it
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        with self.reaching():
            from mlflow import MlflowClient

            self.client: MlflowClient = MlflowClient(self.uri, registry_uri=self.uri)

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """Turn MLflow's ways of failing into one TrackingError, with no password in its words."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError) as error:
            first_line = str(error).strip().split("\n", 1)[0]
            raise TrackingError(
                without_credentials(first_line),
                where=f"MLflow at {shown_uri(self.root)}",
                hint="is the server up, and MLFLOW_TRACKING_URI its address? for a 403, start it "
                "with --allowed-hosts",
                exit_code=UNAVAILABLE,
            ) from None

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Parts of MLflow look models up at the process's address, whoever asks: make it ours."""
        before = os.environ.get("MLFLOW_TRACKING_URI")
        os.environ["MLFLOW_TRACKING_URI"] = self.uri
        try:
            yield
        finally:
            del os.environ["MLFLOW_TRACKING_URI"]
            if before is not None:
                os.environ["MLFLOW_TRACKING_URI"] = before

    # Runs

    def experiment(self, name: str) -> str:
        """The id of the experiment ``name``, made where there is none."""
        with self.reaching():
            if found := self.client.get_experiment_by_name(name):
                if found.lifecycle_stage == "deleted":
                    self.client.restore_experiment(found.experiment_id)
                return str(found.experiment_id)
            local = (self.root / "mlartifacts").as_uri() if local_database(self.root) else None
            # the kind that MLflow's pages open as model training, not as conversations
            tags = {"mlflow.experimentKind": "custom_model_development"}
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
            tags = {RUN_KEY: key, **tags}
            made = self.client.create_run(experiment, milliseconds, tags, name)
            kept = self.run(experiment, key) or made
            if kept.info.run_id != made.info.run_id:
                self.client.delete_run(made.info.run_id)
            return kept

    def last_steps(self, run: Run) -> dict[str, int]:
        """The highest step that MLflow has of each metric."""
        return {metric.key: metric.step for metric in run.data.to_proto().metrics}

    def log(self, run_id: str, points: Sequence[Point]) -> None:
        """Send at most ``BATCH`` points in one request."""
        from mlflow.entities import Metric

        with self.reaching():
            metrics = [Metric(p.name, p.value, p.milliseconds, p.step) for p in points]
            self.client.log_batch(run_id, metrics)

    def describe(self, run: Run, parameters: dict[str, str], datasets: Iterable[Dataset]) -> None:
        """Add the parameters that the run lacks (MLflow lets none be changed), and what it read."""
        from mlflow.entities import Dataset as Entity
        from mlflow.entities import DatasetInput, InputTag, Param

        missing = [Param(k, v) for k, v in parameters.items() if k not in run.data.params]
        context = [InputTag("mlflow.data.context", "train")]
        inputs = [
            DatasetInput(
                Entity(
                    name=d.name,
                    digest=d.fingerprint[:DIGEST],
                    source_type="local",
                    source=json.dumps({"uri": d.source}),
                    profile=json.dumps(d.figures),
                ),
                context,
            )
            for d in datasets
        ]
        with self.reaching():
            for first in range(0, len(missing), PARAMETERS):
                self.client.log_batch(run.info.run_id, params=missing[first : first + PARAMETERS])
            if inputs:
                self.client.log_inputs(run.info.run_id, inputs)

    def write(self, run_id: str, content: str, name: str) -> None:
        """Put a text file among the run's artifacts, in place of one of that name."""
        with self.reaching():
            self.client.log_text(run_id, content, name)

    def table(self, run_id: str, columns: list[str], rows: list[list[Any]], name: str) -> None:
        """Put a table among the run's artifacts, in the form that MLflow's page shows as one."""
        self.write(run_id, json.dumps({"columns": columns, "data": rows}), name)
        with self.reaching():
            shown = json.dumps([{"path": name, "type": "table"}])
            self.client.set_tag(run_id, "mlflow.loggedArtifacts", shown)

    def set_status(self, run_id: str, status: str, milliseconds: int | None = None) -> None:
        """RUNNING, or ended as FINISHED or KILLED at a time."""
        with self.reaching():
            if status == "RUNNING":
                self.client.update_run(run_id, status)
            else:
                self.client.set_terminated(run_id, status, milliseconds)

    # Models

    def models(self) -> list[str]:
        """The names of all registered models."""
        with self.reaching():
            return sorted(model.name for model in self.client.search_registered_models())

    def versions(self, name: str) -> dict[str, dict[str, str]]:
        """The versions of a registered model, the newest first, and the tags of each."""
        with self.reaching():
            found = self.client.search_model_versions(f"name = '{name}'")
            return {str(v.version): v.tags for v in sorted(found, key=lambda v: -int(v.version))}

    def aliases(self, name: str) -> dict[str, str]:
        """The aliases of a registered model and the version of each."""
        with self.reaching():
            found = self.client.get_registered_model(name).aliases
            return {alias: str(version) for alias, version in found.items()}

    def add_version(
        self, name: str, run: Run, step: int, tags: dict[str, str], scratch: Path, **pyfunc: Any
    ) -> str:
        """Log a model of the run and register it as ``name``; returns the new version.

        Args:
            step: total tokens.
            tags: there from the version's first moment, so that it can be found by them.
            scratch: a folder to be made, for the files before they are sent.
            pyfunc: goes to `mlflow.pyfunc.save_model`.
        """
        from mlflow.entities import LoggedModelOutput
        from mlflow.pyfunc import save_model

        save_model(str(scratch), **pyfunc)
        with self.reaching(), self._current():
            model = self.client.create_logged_model(
                run.info.experiment_id, name, run.info.run_id, tags, model_type="language-model"
            )
            self.client.log_model_artifacts(model.model_id, str(scratch))
            self.client.finalize_logged_model(model.model_id, "READY")
            self.client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step)])
            if name not in self.models():
                self.client.create_registered_model(name)
            source = f"models:/{model.model_id}"
            version = self.client.create_model_version(
                name, source, run.info.run_id, tags, model_id=model.model_id
            )
            return str(version.version)

    def ensure_checkpoint(self, run_id: str, name: str, key: str, tags: dict[str, str]) -> None:
        """Have a model of the run whose bytes are elsewhere, with the run's final figures."""
        from mlflow.entities import Metric

        with self.reaching():
            run = self.client.get_run(run_id)
            experiment, condition = run.info.experiment_id, f"tags.`{CHECKPOINT}` = '{key}'"
            if self.client.search_logged_models([experiment], condition):
                return
            tags = {CHECKPOINT: key, "mlflow.model.isExternal": "true", **tags}
            model = self.client.create_logged_model(
                experiment, name, run_id, tags, model_type="checkpoint"
            )
            self.client.finalize_logged_model(model.model_id, "READY")
            self.client.log_batch(
                run_id,
                [
                    Metric(m.key, m.value, m.timestamp, m.step, model_id=model.model_id)
                    for name in run.data.metrics
                    if name.startswith("final/")
                    for m in self.client.get_metric_history(run_id, name)
                ],
            )

    def promote(self, name: str, version: str, alias: str, tags: dict[str, str]) -> None:
        """Point the alias at the version, and bring these tags of it up to date."""
        with self.reaching():
            for key, value in tags.items():
                self.client.set_model_version_tag(name, version, key, value)
            if self.aliases(name).get(alias) != version:
                self.client.set_registered_model_alias(name, alias, version)

    def download(self, name: str, version: str, into: Path, part: str = "") -> Path:
        """Download a version, or the folder ``part`` of it, into ``into``; returns where it is."""
        from mlflow.artifacts import download_artifacts

        with self.reaching(), self._current():
            uri = f"models:/{name}/{version}" + (f"/{part}" if part else "")
            return Path(download_artifacts(uri, dst_path=str(into)))
