"""`phasewise doctor`: is this machine fit to run, and what was left unfinished here?"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import typer

from tasks.cli import doctor_dvc
from tasks.cli.finding import Finding
from tasks.cli.project import load_recipe, project_root
from tasks.errors import UserError
from tasks.files import is_locked
from tasks.workspace import Workspace

LOW_DISK_BYTES = 5 * 10**9


def doctor() -> None:
    """Check Python, torch, disk, servers, DVC, git, telemetry, locks and unfinished runs."""
    root = project_root()
    worst = 0
    for check in CHECKS:
        for finding in check(root):
            mark = {"ok": "ok  ", "warn": "warn", "bad": "BAD "}[finding.state]
            print(f"{mark}  {finding.what:<16} {finding.detail}")
            if finding.hint:
                print(f"      {'':<16} -> {finding.hint}")
            worst = max(worst, ("ok", "warn", "bad").index(finding.state))
    if worst == 2:
        raise typer.Exit(1)


def _python(root: Path) -> Iterator[Finding]:
    fit = sys.version_info >= (3, 11)
    detail = f"{platform.python_version()} at {sys.executable}"
    yield Finding(
        "ok" if fit else "bad", "python", detail, "" if fit else "3.11 or newer is needed"
    )


def _torch(root: Path) -> Iterator[Finding]:
    import torch

    from tasks.settings import settings
    from tasks.training.device import open_device

    try:
        device = open_device(settings(), "bf16")
    except UserError as error:
        yield Finding("bad", "torch", error.message, error.hint or "")
        return
    yield Finding("ok", "torch", f"{torch.__version__} on {device.describe()}")


def _disk(root: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(root).free
    state = "ok" if free > LOW_DISK_BYTES else "warn"
    yield Finding(
        state,
        "disk",
        f"{free / 1e9:.0f} GB free",
        "" if state == "ok" else "`phasewise plan` says what the recipe needs",
    )
    try:
        with tempfile.TemporaryFile(dir=root) as handle:
            handle.write(b"x" * 4096)
            os.fsync(handle.fileno())
    except OSError as error:
        yield Finding("bad", "disk", f"cannot write to {root}: {error}")


def _recipe(root: Path) -> Iterator[Finding]:
    try:
        recipe = load_recipe(root / "params.yaml")
    except UserError as error:
        yield Finding("bad", "recipe", str(error).replace("\n", "; "), "phasewise check")
        return
    yield Finding("ok", "recipe", f"{recipe.name}, fingerprint {recipe.fingerprint[:12]}")


def _hub(root: Path) -> Iterator[Finding]:
    from tasks.settings import settings

    mirror = settings().hub
    if mirror is None:
        yield Finding("ok", "hub", "the Hugging Face hub (PHASEWISE_HUB=<folder> stands in for it)")
    elif mirror.is_dir():
        yield Finding("ok", "hub", f"mirror folder {mirror}")
    else:
        yield Finding("bad", "hub", f"PHASEWISE_HUB: no folder {mirror}")


def _prefect(root: Path) -> Iterator[Finding]:
    """Import the server in a child: some versions of its own dependencies stop it there."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import prefect.server.api.server, prefect; print(prefect.__version__)",
        ],
        capture_output=True,
        text=True,
        cwd=root,
        check=False,
    )
    if done.returncode == 0:
        yield Finding("ok", "prefect", f"{done.stdout.split()[-1]}, its server imports")
    else:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        yield Finding(
            "bad",
            "prefect",
            f"its server does not import: {last}",
            "install the pinned lock: make install",
        )


def _mlflow(root: Path) -> Iterator[Finding]:
    from tasks.registry.tracking import reachable

    where, error = reachable(Workspace(root))
    if error is None:
        yield Finding("ok", "mlflow", where)
    else:
        yield Finding(
            "warn",
            "mlflow",
            f"{where}: {error}",
            "training goes on without it; catch up later: phasewise sync",
        )


def _git(root: Path) -> Iterator[Finding]:
    done = subprocess.run(
        ["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=False
    )
    if done.returncode:
        yield Finding("warn", "git", "not a repository: results are tied to no commit", "git init")
    elif done.stdout:
        yield Finding(
            "warn",
            "git",
            f"{len(done.stdout.splitlines())} uncommitted changes",
            "commit, so that a result names the code it came from",
        )
    else:
        yield Finding("ok", "git", "clean")


def _telemetry(root: Path) -> Iterator[Finding]:
    names = (
        "DO_NOT_TRACK",
        "DVC_NO_ANALYTICS",
        "MLFLOW_DISABLE_TELEMETRY",
        "PREFECT_SERVER_ANALYTICS_ENABLED",
    )
    states = ", ".join(f"{name}={os.environ.get(name, 'unset')}" for name in names)
    yield Finding("ok", "telemetry", f"off in every command of phasewise ({states})")


def _runs(root: Path) -> Iterator[Finding]:
    for run in sorted((root / "runs").glob("*")):
        if ".aside-" in run.name:
            yield Finding("warn", "runs", f"{run.name} was set aside", "delete it when not needed")
        elif is_locked(run / ".lock"):
            yield Finding("ok", "runs", f"{run.name} is training now")
        elif not (root / "checkpoints" / run.name).exists():
            steps = sorted(run.glob("step-*"))
            at = f"at {steps[-1].name}" if steps else "before its first checkpoint"
            yield Finding(
                "warn",
                "runs",
                f"{run.name} is unfinished, {at}",
                f"go on: dvc repro train@{run.name}",
            )


def _stages(root: Path) -> Iterator[Finding]:
    for work in sorted((root / "data/.work").glob("*/")):
        if is_locked(work / ".lock"):
            yield Finding("ok", "stages", f"{work.name} is running now")
        else:
            parts = len(list(work.glob("*/[0-9]*")))
            yield Finding(
                "warn",
                "stages",
                f"{work.name} is unfinished, {parts:,} parts of it are done",
                f"go on: dvc repro {work.name}; or delete {work.relative_to(root)}",
            )


CHECKS: tuple[Callable[[Path], Iterator[Finding]], ...] = (
    _python,
    _torch,
    _disk,
    _recipe,
    _hub,
    _prefect,
    _mlflow,
    doctor_dvc.registry,
    doctor_dvc.pipeline,
    doctor_dvc.remote,
    doctor_dvc.locks,
    doctor_dvc.sources,
    _git,
    _telemetry,
    _stages,
    _runs,
)
