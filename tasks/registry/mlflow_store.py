"""The registered models, one a recipe, and their versions; with the runs, all that MLflow keeps.

    tasks/registry/register.py  exports/<phase> -> a version of the registered model
    tasks/registry/pull.py      models:/<name>@<alias> -> a plain folder

Each verb but `add_version` may be said twice, and the second time changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.registry.feed import FINAL
from tasks.registry.mlflow_runs import Runs
from tasks.registry.provenance import MAX_TEXT, without_credentials, words

if TYPE_CHECKING:
    from mlflow.entities import Run

EXPORT = "phasewise.export"  # SHA-256 of the manifest that the export stage wrote
SEAL = "phasewise.seal"  # SHA-256 of the manifest as it was registered
CHECKPOINT = "phasewise.checkpoint"


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


class Store(Runs):
    """MLflow's runs and models of one working folder.

    Every method raises TrackingError (exit code 69) where MLflow does not answer or refuses.
    """

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
