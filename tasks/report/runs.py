"""Runs to compare, wherever they are: folders, report files, registered models, revisions.

a folder    its reports/report.json; without one, gathered from what its stages wrote
a file      a report.json
models:/... the report.json that MLflow keeps of the pipeline that made a registered model
a revision  the report.json that DVC tracks at that commit, branch or tag (`dvc get`)
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import NO_INPUT, UNAVAILABLE, UserError
from tasks.files import read_json
from tasks.report.facts import Facts, gather, read_report
from tasks.workspace import Workspace

REPORT = "reports/report.json"
_DVC_SECONDS = 120


@dataclass(frozen=True)
class Run:
    """One run of a comparison.

    Attributes:
        origin: as the user named it.
        facts: as in its report.json.
        workspace: where its files are, for a folder.
    """

    origin: str
    facts: Facts
    workspace: Workspace | None = None


def open_runs(names: Sequence[str], root: Path) -> list[Run]:
    """The runs of these names; ``root`` is the project whose revisions may be named.

    Raises UserError for one that is not there, or not finished, and where two are the same.
    """
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{name} is named twice", hint="give different runs")
    return [open_run(name, root) for name in names]


def open_run(name: str, root: Path) -> Run:
    """One run: a folder, a report.json, a registered model or a revision of the project ``root``.

    Errors as of `open_runs`.
    """
    from tasks.registry.pull import SCHEME

    if name.startswith(SCHEME):
        return Run(name, _of_version(name))
    path = Path(name)
    if path.is_dir():
        return _of_folder(name, path)
    if path.is_file():
        return Run(name, read_report(path))
    if path.suffix == ".json" or name.startswith((".", "/")):
        raise UserError(f"there is no {name}", exit_code=NO_INPUT)
    return Run(name, _at_revision(name, root))


def _of_folder(name: str, folder: Path) -> Run:
    from tasks import recipe as recipes
    from tasks.report.curves import read_all

    workspace = Workspace(folder)
    if (folder / REPORT).exists():
        return Run(name, read_report(folder / REPORT), workspace)
    if not (folder / "params.yaml").exists():
        raise UserError(
            f"{name} is not a run: it has neither {REPORT} nor params.yaml",
            hint="give the folder of a finished run, or a report.json; models: phasewise compare",
            exit_code=NO_INPUT,
        )
    recipe = recipes.load(folder / "params.yaml")
    found = read_json(workspace.registration) if workspace.registration.exists() else None
    facts = gather(workspace, recipe, read_all(workspace, recipe), found)
    return Run(name, facts, workspace)


def _of_version(uri: str) -> Facts:
    """The report of the pipeline that made a registered model; a later one may have replaced it."""
    from tasks.registry.lineage import fetch_report
    from tasks.registry.pull import find, open_registry

    store = open_registry()
    version = find(store, uri)
    with tempfile.TemporaryDirectory() as scratch:
        path = fetch_report(store, version.name, version.number, Path(scratch))
        facts = read_report(path) if path else {}
    told = facts.get("registration", {})
    if (told.get("name"), told.get("version")) != (version.name, version.number):
        other = f"; its pipeline's is of version {told['version']} now" if told else ""
        raise UserError(
            f"MLflow has no report of version {version.number} of {version.name}{other}",
            where=uri,
            hint="the stage report puts it there; or give a folder or a report.json",
            exit_code=NO_INPUT,
        )
    return facts


def _at_revision(revision: str, root: Path) -> Facts:
    """The report at a revision of the project, from DVC's cache or remote.

    DVC is asked by its command line, which knows where an output of that revision is kept.
    """
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "report.json"
        command = [sys.executable, "-m", "dvc", "get", "--quiet", "--rev", revision]
        command += ["--out", str(target), str(root.resolve()), REPORT]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_DVC_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise UserError(
                f"`dvc get` of {REPORT} at {revision} took more than {_DVC_SECONDS} s",
                exit_code=UNAVAILABLE,
            ) from None
        if done.returncode or not target.exists():
            reason = done.stderr.strip().splitlines()
            raise UserError(
                f"{revision} is neither a folder, a report.json nor a revision of this project "
                f"whose {REPORT} is kept" + (f" ({reason[-1]})" if reason else ""),
                hint="a finished run keeps it: git commit dvc.lock after dvc repro; "
                "another machine's: dvc pull, or give its report.json",
                exit_code=NO_INPUT,
            )
        return read_report(target)
