"""Stage `register`: the released phase as a version of the registered model, with its alias.

    exports/<phase>, verified, with the held-out figures in its card  -+
    model/, the code that reads it; evaluation/, what was measured    -+-> models:/<name>/<version>
    downloaded again, verified, made to speak, weighed by the gate
        better, or the first  -> models:/<name>@champion
        else                  -> models:/<name>@challenger

An export that is registered already keeps its version and its verdict: running this again changes
nothing. An alias moves only to a version that was fetched back whole and gave text.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import model
from tasks import stage
from tasks.errors import BAD_DATA, NO_INPUT, UserError
from tasks.evaluation.gate import Verdict
from tasks.files import fingerprint, link_or_copy, read_json, sha256_file, write_json, write_text
from tasks.recipe import Recipe
from tasks.registry import lineage, provenance, tracking, verdicts
from tasks.registry.mlflow_store import EXPORT, SEAL, Store, load, save
from tasks.release import native
from tasks.release.export import add_evaluation
from tasks.release.manifest import MANIFEST, seal, verify_export
from tasks.report.curves import read_all
from tasks.report.facts import gather
from tasks.training.history import read_history
from tasks.workspace import Workspace

if TYPE_CHECKING:
    from tasks.registry.mlflow_runs import Run

CODE = Path(__file__).with_name("registered_model.py")
EVALUATION = "evaluation"  # beside MLmodel: what was measured, for later comparisons
REQUIREMENTS = ("torch", "safetensors", "tokenizers", "numpy")


@dataclass(frozen=True)
class Release:
    """What is about to be registered: an export that is whole, its run, what was measured of it."""

    workspace: Workspace
    recipe: Recipe
    store: Store
    manifest: dict[str, Any]
    key: str
    """SHA-256 of the manifest: an export is known by it."""
    evaluation: dict[str, Any]
    runs: dict[str, str]
    """Phase -> run id."""
    run: Run
    """Of the released phase."""


def register(workspace: Workspace, recipe: Recipe) -> None:
    """Register the release's phase, once an export, and write reports/registration.json.

    Raises UserError for an export that is missing or not as it was written, for a phase that was
    not evaluated, for a champion that the registry no longer holds whole, and (exit code 69) where
    MLflow does not answer.
    """
    release = open_release(workspace, recipe)
    store, name, tags = release.store, recipe.name, version_tags(release)
    known = [v for v, its in store.versions(name).items() if its.get(EXPORT) == release.key]
    workspace.report.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".register-", dir=workspace.report) as scratch:
        place = Path(scratch)
        complete = copy_with_figures(release, place / "export")
        version = known[-1] if known else publish(release, complete, tags, place)
        speak(store, name, version, place / "fetched")
        reached, compared = verdicts.reach(store, workspace, recipe, version, place)
        if compared:
            tags[verdicts.COMPARED] = compared
        card = (complete / "README.md").read_text("utf-8")
        description = version_description(release, reached, tags, card)
        verdicts.apply(store, recipe, version, reached, tags, description)
    store.describe(name, model_description(recipe))
    record_checkpoints(release)
    write_json(workspace.registration, registration(release, version, reached, compared))
    pipeline, _ = lineage.share(store, workspace, recipe, release.runs)
    store.tag_version(name, version, {lineage.PIPELINE: pipeline})
    what = f"{recipe.release.phase}, {release.manifest['weights']} weights"
    again = " (registered before)" if known else ""
    print(f"    {name} version {version} is @{reached.alias}: {what}{again}\n    {reached.reason}")


def open_release(workspace: Workspace, recipe: Recipe) -> Release:
    """Verify the export, read what was measured, bring MLflow's runs up to date. Errors as of
    `register`."""
    phase = recipe.release.phase
    export = workspace.export(phase)
    manifest, evaluation = verify_export(export), read_json(workspace.evaluation(phase))
    runs = tracking.sync_all(workspace, recipe)
    if phase not in runs:
        raise UserError(f"{workspace.metrics(phase)}/history.jsonl is missing", exit_code=NO_INPUT)
    store, key = Store(workspace.root), sha256_file(export / MANIFEST)
    run = store.get_run(runs[phase])
    return Release(workspace, recipe, store, manifest, key, evaluation, runs, run)


def registration(
    release: Release, version: str, reached: Verdict, compared: str | None
) -> dict[str, Any]:
    """What reports/registration.json says; ``compared``: the version it was compared with."""
    recipe = release.recipe
    info = release.run.info
    return {
        "name": recipe.name,
        "version": version,
        "alias": reached.alias,
        "uri": f"models:/{recipe.name}@{reached.alias}",
        "verdict": reached.alias,
        "reason": reached.reason,
        "champion": release.store.aliases(recipe.name).get(recipe.release.alias),
        "compared_with": compared,
        "comparison": reached.comparison or _comparison_before(release.workspace, version),
        "phase": recipe.release.phase,
        "weights": release.manifest["weights"],
        "export": release.key,
        "run_id": info.run_id,
        "experiment_id": info.experiment_id,
        "tracking_uri": provenance.shown_uri(release.workspace.root),
    }


def _comparison_before(workspace: Workspace, version: str) -> dict[str, Any] | None:
    """What this file said of the version before: the gate is asked once."""
    if not workspace.registration.exists():
        return None
    found = read_json(workspace.registration)
    return found.get("comparison") if found["version"] == version else None


def model_description(recipe: Recipe) -> str:
    """What the registered model is, and how it is had, in Markdown."""
    uri = f"models:/{recipe.name}@{recipe.release.alias}"
    return (
        f"{recipe.description}\n\n"
        f"- `phasewise pull {uri} folder`: a folder that transformers opens, verified\n"
        f"- `mlflow.pyfunc.load_model('{uri}').predict(['The '])`\n"
        f"- `mlflow models serve -m {uri} --env-manager local`\n\n"
        f"`@{recipe.release.alias}` is the best so far; `@challenger` is the last that was not "
        "shown to be better, and its description says why."
    )


def version_description(release: Release, reached: Verdict, tags: dict[str, str], card: str) -> str:
    """The description of a version, with the addresses of its run and the account of its text."""
    info = release.run.info
    page = lineage.PAGE.format(experiment=info.experiment_id, run=info.run_id)
    account = lineage.account_of(release.workspace, release.recipe)
    text = lineage.ledger_words(account) if account else ""
    return verdicts.describe(reached, page, tags, text, card)


def version_tags(release: Release) -> dict[str, str]:
    """What a version is known by: its export, its making, its figures."""
    workspace, recipe, manifest = release.workspace, release.recipe, release.manifest
    phase = manifest["phase"]
    folder = dict(tracking.histories(workspace, recipe))[phase]
    header = read_history(folder / "history.jsonl")[0]
    return {
        EXPORT: release.key,
        "phasewise.phase": phase,
        "phasewise.weights": manifest["weights"],
        "phasewise.tokens": str(manifest["total_tokens"]),
        "phasewise.recipe_fingerprint": manifest["recipe"],
        **lineage.lineage_tags(release.store, workspace, recipe, phase, header),
        **bits_per_byte(release.evaluation, manifest["weights"]),
    }


def bits_per_byte(evaluation: dict[str, Any], weights: str) -> dict[str, str]:
    """The figures of the released weights as tags, one a held-out set."""
    return {
        f"bits_per_byte.{name}": f"{figures[weights]['bits_per_byte']:.4f}"
        for name, figures in evaluation.items()
    }


def measurements(workspace: Workspace, recipe: Recipe) -> dict[str, Any] | None:
    """All that the card can tell of the run; None where the data is not in this folder."""
    try:
        return gather(workspace, recipe, read_all(workspace, recipe), None)
    except UserError as error:
        if error.exit_code != NO_INPUT:
            raise
        return None


def copy_with_figures(release: Release, folder: Path) -> Path:
    """A copy of the export (its large files linked) whose card tells what was measured."""
    workspace, recipe = release.workspace, release.recipe
    shutil.copytree(workspace.export(recipe.release.phase), folder, copy_function=link_or_copy)
    add_evaluation(folder, recipe, release.evaluation, measurements(workspace, recipe))
    return folder


def publish(release: Release, export: Path, tags: dict[str, str], scratch: Path) -> str:
    """Make a new version of the registered model of an export; returns its number.

    What was measured of the phase goes along in the version's folder ``evaluation``.
    """
    recipe = release.recipe
    architecture = scratch / "architecture"
    write_architecture(architecture)
    sampling = recipe.evaluation.sampling.keywords() | {"seed": 0}
    folder = scratch / "logged"
    save(
        folder,
        python_model=str(CODE),
        artifacts={"export": str(export), "architecture": str(architecture)},
        input_example=(recipe.evaluation.prompts[:1], sampling),
        pip_requirements=requirements(),
    )
    (folder / EVALUATION).mkdir()
    for path in lineage.evaluation_files(release.workspace, recipe.release.phase):
        link_or_copy(path, folder / EVALUATION / path.name)
    tokens = int(tags["phasewise.tokens"])
    sealed = tags | {SEAL: sha256_file(export / MANIFEST)}
    return release.store.add_version(recipe.name, release.run, tokens, sealed, folder)


def write_architecture(folder: Path) -> None:
    """Write the code that reads an export: `model/`, `native.py` made a part of it, a manifest."""
    folder.mkdir()
    for path in sorted(Path(model.__file__).parent.glob("*.py")):
        shutil.copyfile(path, folder / path.name)
    text = Path(native.__file__).read_text("utf-8")
    text = re.sub(r"(?m)^( *from )model\.", r"\1.", text)
    write_text(folder / "native.py", re.sub(r"(?m)^( *from )model import", r"\1. import", text))
    for path in folder.iterdir():
        foreign = re.search(r"(?m)^ *(?:from|import) (?:model|tasks)\b.*", path.read_text("utf-8"))
        assert foreign is None, f"{path.name} would need this repository: {foreign.group()}"
    seal(folder, {})


def requirements() -> list[str]:
    """What the registered model needs, pinned to what is installed here."""
    return [f"{name}=={installed_version(name).split('+')[0]}" for name in REQUIREMENTS]


def speak(store: Store, name: str, version: str, folder: Path) -> None:
    """Fetch a version, verify its export and make it continue its own example.

    Raises UserError (exit code 65) where a file is not as it was or no text comes.
    """
    folder.mkdir()
    fetched = store.download(name, version, folder)
    verify_export(fetched / "artifacts" / "export")
    texts = load(fetched).predict(["The "], params={"max_new_tokens": 4, "temperature": 0.0})
    if len(texts) != 1 or not isinstance(texts[0], str):
        raise UserError(
            f"{name} version {version} gave {texts!r}, not a text: it is not given the alias",
            exit_code=BAD_DATA,
        )


def record_checkpoints(release: Release) -> None:
    """Let MLflow rank the phases' checkpoints, whose bytes stay in DVC."""
    workspace = release.workspace
    for phase, run_id in release.runs.items():
        manifest = workspace.checkpoint(phase) / "manifest.json"
        if manifest.exists():
            key = fingerprint(read_json(manifest)["files"])
            path = str(manifest.parent.relative_to(workspace.root))
            release.store.ensure_checkpoint(run_id, f"{phase}-checkpoint", key, {"dvc.path": path})


if __name__ == "__main__":
    stage.main(register)
