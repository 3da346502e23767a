"""MLflow, touched here and nowhere else.

One experiment a recipe; in it a run of the pipeline, and below it a run a phase; one registered
model a recipe. `Store` has the few verbs that the release needs of it; each may be said twice, and
the second time changes nothing. No word of it leaves with a password in an address.

    tasks/registry/tracking.py  history.jsonl -> a phase's run
    tasks/registry/lineage.py   the recipe, the ledgers, the report -> the pipeline's run
    tasks/registry/register.py  exports/<phase> -> a version of the registered model
    tasks/registry/pull.py      models:/<name>@<alias> -> a plain folder
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import UNAVAILABLE, UserError
from tasks.registry.feed import FINAL, Dataset, Point
from tasks.registry.local_store import artifacts, move_along
from tasks.registry.provenance import (
    MAX_TEXT,
    local_database,
    shown_uri,
    tracking_uri,
    without_credentials,
    words,
)
from tasks.telemetry import quiet_telemetry
from tasks.workspace import home

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RUN_KEY = "phasewise.run_key"
EXPORT = "phasewise.export"  # SHA-256 of the manifest that the export stage wrote
SEAL = "phasewise.seal"  # SHA-256 of the manifest as it was registered
CHECKPOINT = "phasewise.checkpoint"
PARENT = "mlflow.parentRunId"  # MLflow's page nests a run below this one
NOTE = "mlflow.note.content"  # MLflow's page shows it as the description, in Markdown
BATCH = 1000  # metrics of one request: MLflow's limit
PARAMETERS = 100  # of one request: MLflow's limit
DIGEST = 36  # characters of a dataset's digest: MLflow's limit


class TrackingError(UserError):
    """MLflow did not answer, or refused."""


def load(folder: Path) -> Any:
    """A downloaded version, ready to `predict`; runs the code that lies in it."""
    from mlflow.pyfunc import load_model

    return load_model(str(folder))


def save(folder: Path, **pyfunc: Any) -> None:
    """`mlflow.pyfunc.save_model` into a new folder, without the paths of this machine in it."""
    from mlflow.models import Model
    from mlflow.pyfunc import save_model

    save_model(str(folder), **pyfunc)
    saved = Model.load(str(folder))
    flavor = saved.flavors["python_function"]
    flavor["model_code_path"] = Path(flavor["model_code_path"]).name
    for artifact in flavor["artifacts"].values():
        artifact["uri"] = artifact["path"]
    saved.save(str(folder / "MLmodel"))


class Store:
    """MLflow's runs and models of one working folder.

    Args:
        root: the folder of params.yaml.
        quick: give up on a server after seconds; for one that is written to while training.

    Every method raises TrackingError (exit code 69) where MLflow does not answer or refuses.
    """

    def __init__(self, root: Path, *, quick: bool = False) -> None:
        self.root = home(root)
        self.uri = tracking_uri(root)
        quiet_telemetry()
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0" if quick else "3")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5" if quick else "60")
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # the password with it
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        with self.reaching():
            from mlflow import MlflowClient

            if database := local_database(root):
                move_along(database)
            self.client: MlflowClient = MlflowClient(self.uri, registry_uri=self.uri)

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """Turn MLflow's ways of failing into one TrackingError, with no password in its words."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
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
        self, name: str, run: Run, step: int, tags: dict[str, str], folder: Path
    ) -> str:
        """Log a saved model as the run's and register it as ``name``; returns the new version.

        ``step`` is total tokens; ``tags`` are there from the version's first moment, so that it can
        be found by them; ``folder`` is as `save` wrote it.
        """
        from mlflow.entities import LoggedModelOutput

        tags = words(tags)
        with self.reaching(), self._current():
            model = self.client.create_logged_model(
                run.info.experiment_id, name, run.info.run_id, tags, model_type="language-model"
            )
            self.client.log_model_artifacts(model.model_id, str(folder))
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
            tags = {CHECKPOINT: key, "mlflow.model.isExternal": "true", **words(tags)}
            model = self.client.create_logged_model(
                experiment, name, run_id, tags, model_type="checkpoint"
            )
            self.client.finalize_logged_model(model.model_id, "READY")
            self.client.log_batch(
                run_id,
                [
                    Metric(m.key, m.value, m.timestamp, m.step, model_id=model.model_id)
                    for name in run.data.metrics
                    if name.startswith(FINAL)
                    for m in self.client.get_metric_history(run_id, name)
                ],
            )

    def tag_version(self, name: str, version: str, tags: Mapping[str, str]) -> None:
        """Bring these tags of a version up to date, others stay."""
        with self.reaching():
            for key, value in words(tags).items():
                self.client.set_model_version_tag(name, version, key, value)

    def describe(self, name: str, description: str, version: str | None = None) -> None:
        """Say what a registered model, or a version of it, is, in Markdown."""
        text = without_credentials(description)[:MAX_TEXT]
        with self.reaching():
            if version is None:
                self.client.update_registered_model(name, text)
            else:
                self.client.update_model_version(name, version, text)

    def set_alias(self, name: str, alias: str, version: str | None) -> None:
        """Point the alias at the version; None: nowhere."""
        with self.reaching():
            current = self.aliases(name).get(alias)
            if version is None and current:
                self.client.delete_registered_model_alias(name, alias)
            elif version is not None and current != version:
                self.client.set_registered_model_alias(name, alias, version)

    def download(self, name: str, version: str, into: Path, part: str = "") -> Path:
        """Download a version, or the folder ``part`` of it, into ``into``; returns where it is."""
        from mlflow.artifacts import download_artifacts

        with self.reaching(), self._current():
            uri = f"models:/{name}/{version}" + (f"/{part}" if part else "")
            return Path(download_artifacts(uri, dst_path=str(into)))
