"""What belongs together: the pipeline's run above its phases, and what a version is made of.

    recipe ------------------> one run of the pipeline, found again by what it trains
    ledgers, report, dvc.lock -> its artifacts            |
    phases  ------------------> runs nested below it <----+
    export + all of these ----> tags and description of a version

A phase that two pipelines share (the second changed a later phase) stays below the first.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tasks.errors import NO_INPUT, UserError
from tasks.files import fingerprint, read_json, sha256_file
from tasks.recipe import Recipe
from tasks.registry import provenance
from tasks.registry.mlflow_runs import NOTE, RUN_KEY
from tasks.registry.mlflow_store import Store
from tasks.report.account import Account, read_account, words
from tasks.units import show_bytes, show_count
from tasks.workspace import Workspace

EXPERIMENT_NOTE = (
    "One row a pipeline, named after its recipe; open it (+) for its phases. The step of every "
    "chart is tokens, of all phases up to a point. `train`: every step. `validation`: held-out "
    "text while training, raw and `ema_`. `final_bits_per_byte`: held-out text after the phase; "
    "of a pipeline, after the released phase. Report, ledger and dvc.lock are its artifacts."
)
FILES = "mlflow.phasewise.files"  # artifact -> the beginning of its SHA-256; "mlflow.": not shown
DVC, LEDGER = "phasewise.dvc", "phasewise.ledger"  # of a version, as JSON
PIPELINE = "phasewise.pipeline_run_id"  # of a version
REPORT = "report.json"
PAGE = "#/experiments/{experiment}/runs/{run}?workflowType=machine_learning"
EVALUATION = ("json", "details.json", "documents.npz", "generation.json", "baselines.json")
_NOT_TRAINED = ("description", "evaluation", "release")  # what changes no weight


def pipeline_key(recipe: Recipe) -> str:
    """What a pipeline's run is found again by: all of a recipe that its weights are made of."""
    return f"{recipe.name}/pipeline/{fingerprint(_trained(recipe))[:16]}"


def _trained(recipe: Recipe) -> dict[str, Any]:
    return {k: v for k, v in recipe.resolved().items() if k not in _NOT_TRAINED}


def open_pipeline(store: Store, workspace: Workspace, recipe: Recipe, milliseconds: int) -> str:
    """The id of the pipeline's run, made where there is none, with the recipe's settings."""
    key = pipeline_key(recipe)
    tags = {
        "phasewise.pipeline": "true",
        "phasewise.recipe_fingerprint": recipe.fingerprint,
        "mlflow.source.name": "dvc repro",
        "mlflow.source.type": "PROJECT",
        NOTE: recipe.description,
        **provenance.user_tag(),
        **provenance.git_tags(workspace.root),
    }
    experiment = store.experiment(recipe.name, EXPERIMENT_NOTE)
    name = f"{recipe.name} {key.rsplit('/', 1)[1][:8]}"
    run = store.ensure_run(experiment, key, name, milliseconds, tags)
    settings = {k: v for k, v in _trained(recipe).items() if k != "name"}
    settings["model"] = provenance.network_settings(recipe)
    store.add(run, provenance.flat(settings), [])
    return str(run.info.run_id)


def keep(store: Store, run_id: str, files: dict[Path, str]) -> list[str]:
    """Put files into folders ("": none) of a run's artifacts, where they are not there yet.

    Returns the names of those that were sent.
    """
    known, sent = _kept(store, run_id), {}
    for path, folder in files.items():
        name, seal = f"{folder}/{path.name}".lstrip("/"), sha256_file(path)[:16]
        if known.get(name) != seal:
            store.put(run_id, path, folder)
            sent[name] = seal
    if sent:
        store.tag(run_id, {FILES: json.dumps(known | sent)})
    return list(sent)


def _kept(store: Store, run_id: str) -> dict[str, str]:
    """The artifacts that were put into a run, and what each was."""
    kept: dict[str, str] = json.loads(store.get_run(run_id).data.tags.get(FILES, "{}"))
    return kept


def fetch_report(store: Store, name: str, version: str, folder: Path) -> Path | None:
    """The report.json of the pipeline that made a version, downloaded into ``folder``; None where
    MLflow has none."""
    pipeline = store.versions(name)[version].get(PIPELINE)
    if pipeline is None or REPORT not in _kept(store, pipeline):
        return None
    return store.fetch(pipeline, REPORT, folder)


def share(
    store: Store, workspace: Workspace, recipe: Recipe, runs: dict[str, str]
) -> tuple[str, list[str]]:
    """Bring the pipeline's run up to date: recipe, ledger, report, registration, and what they say.

    Args:
        runs: phase -> run id.

    Returns the run's id and the names of the artifacts that were sent.
    """
    phases = [store.get_run(run).info for run in runs.values()]
    run_id = open_pipeline(store, workspace, recipe, min(phase.start_time for phase in phases))
    finished = all(phase.status == "FINISHED" for phase in phases)
    if finished and store.get_run(run_id).info.status != "FINISHED":  # e.g. another's phases
        store.set_status(run_id, "FINISHED", max(phase.end_time for phase in phases))
    report = workspace.report
    candidates = [
        workspace.root / "params.yaml",
        workspace.root / "dvc.lock",
        report / "report.html",
        report / REPORT,
        report / "report.md",
        workspace.registration,
    ]
    sent = keep(store, run_id, {path: "" for path in candidates if path.exists()})
    if account := account_of(workspace, recipe):
        sent += _keep_ledger(store, run_id, account)
    store.tag(run_id, {NOTE: pipeline_note(store, workspace, recipe, runs)})
    return run_id, sent


def _keep_ledger(store: Store, run_id: str, account: Account) -> list[str]:
    columns, rows = ledger_table(account)
    name, seal = "ledger.json", fingerprint(rows)[:16]
    known = _kept(store, run_id)
    if known.get(name) == seal:
        return []
    store.table(run_id, columns, rows, name)
    store.tag(run_id, {FILES: json.dumps(known | {name: seal})})
    return [name]


def pipeline_note(store: Store, workspace: Workspace, recipe: Recipe, runs: dict[str, str]) -> str:
    """The description of the pipeline's run, in Markdown: its phases, and what was registered."""
    experiment = store.experiment(recipe.name, EXPERIMENT_NOTE)
    lines = [recipe.description]
    if workspace.registration.exists():
        found = read_json(workspace.registration)
        name, version = found["name"], found["version"]
        lines += ["", f"Registered: [{name} version {version}](#/models/{name}/versions/{version}) "
                  f"as `@{found['alias']}`: {in_code(found.get('reason', ''))}"]  # fmt: skip
    if account := account_of(workspace, recipe):
        lines += ["", ledger_words(account)]
    lines += ["", "| phase | starts from | tokens | run |", "|---|---|---:|---|"]
    for phase, run_id in runs.items():
        settings = recipe.phases[phase]
        link = f"[{run_id[:8]}]({PAGE.format(experiment=experiment, run=run_id)})"
        tokens = show_count(settings.total_tokens)
        lines.append(f"| {phase} | {settings.starts_from} | {tokens} | {link} |")
    return "\n".join(lines)


def in_code(text: str) -> str:
    """``@champion`` as code: MLflow's pages take it for a person otherwise."""
    return re.sub(r"@([\w-]+)", r"`@\1`", text)


def evaluation_files(workspace: Workspace, phase: str) -> list[Path]:
    """What was measured of a phase, as files: those that there are."""
    measured = [workspace.evaluation(phase, what) for what in EVALUATION]
    return [path for path in [*measured, workspace.benchmarks] if path.exists()]


# Where the text went


def account_of(workspace: Workspace, recipe: Recipe) -> Account | None:
    """The account of the text; None where the data is not in this folder."""
    try:
        return read_account(workspace, recipe)
    except UserError as error:
        if error.exit_code != NO_INPUT:
            raise
        return None


def ledger_table(account: Account) -> tuple[list[str], list[list[Any]]]:
    """Every stage of every source: documents and bytes in, dropped by reason, out."""
    columns = [
        "source",
        "stage",
        "documents in",
        "bytes in",
        "dropped",
        "documents out",
        "bytes out",
    ]
    rows: list[list[Any]] = []
    for source in account.sources:
        for book in source.ledgers:
            gone = ", ".join(f"{words(r)} {c.documents:,}" for r, c in book.dropped.items())
            place = [source.source, book.stage, book.taken.documents, book.taken.bytes]
            rows.append([*place, gone or "nothing", book.kept.documents, book.kept.bytes])
    return columns, rows


def ledger_words(account: Account) -> str:
    """The account in one sentence."""
    taken, kept = account.downloaded, account.kept
    return (
        f"Text: {taken.documents:,} documents ({show_bytes(taken.bytes)}) in, "
        f"{account.dropped.documents:,} dropped, {kept.documents:,} "
        f"({show_bytes(kept.bytes)}) kept, {show_count(account.tokens('train'))} training tokens."
    )


# What a version is made of


def lineage_tags(
    store: Store, workspace: Workspace, recipe: Recipe, phase: str, header: dict[str, Any]
) -> dict[str, str]:
    """Where a version comes from: git, DVC's hashes, the phase's run and its parent, the ledger.

    Args:
        header: the first record of the phase's history.
    """
    git = provenance.git_tags(workspace.root)
    tags = {k.removeprefix("mlflow.source."): v for k, v in git.items()}
    if hashes := dvc_hashes(workspace.root, phase):
        tags[DVC] = json.dumps(hashes)
    tags[RUN_KEY] = header["run_key"]
    if header["parent"]:
        tags["phasewise.parent_run_key"] = header["parent"]
        for version, known in store.versions(recipe.name).items():
            if known.get(RUN_KEY) == header["parent"]:
                tags["phasewise.parent_version"] = version
                break
    if account := account_of(workspace, recipe):
        tags[LEDGER] = json.dumps(
            {
                "documents_in": account.downloaded.documents,
                "documents_dropped": account.dropped.documents,
                "documents_out": account.kept.documents,
                "bytes_in": account.downloaded.bytes,
                "bytes_out": account.kept.bytes,
                "train_tokens": account.tokens("train"),
                "tokens_drawn": account.drawn(phase),
            }
        )
    return tags


def dvc_hashes(root: Path, phase: str) -> dict[str, str]:
    """Path -> MD5, by dvc.lock, of what the phase's training and export read and wrote."""
    lock = root / "dvc.lock"
    if not lock.exists():
        return {}
    stages = YAML(typ="safe", pure=True).load(lock.read_text("utf-8"))["stages"]
    return {
        entry["path"]: entry["md5"]
        for name in (f"train@{phase}", f"export@{phase}")
        for kind in ("deps", "outs")
        for entry in stages.get(name, {}).get(kind, [])
        if "md5" in entry
    }
