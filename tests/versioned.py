"""A small project under git and DVC, trained and measured, for the tests of versioning."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

from tasks import recipe as recipes
from tasks.files import sha256_file
from tasks.stage import stages
from tasks.workspace import Workspace
from tests.places import ROOT

FOLDERS = ("data", "checkpoints", "exports", "evaluation", "metrics")
TARGETS = ("export", "evaluate")  # these, and all that they stand on
MADE = ("download", "clean", "dedup", "split", "tokenizer", "encode", "mix", "init", "train")
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT),
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PHASEWISE_TRACK": "false",
    "DVC_NO_ANALYTICS": "1",
}


def dvc(root: Path, *arguments: str, path: str = "") -> str:
    """What a command of DVC's printed, run in this process (ten times sooner); it must succeed.

    Args:
        path: a folder of programs that are found before any others.
    """
    from dvc.cli import main

    out, env = io.StringIO(), dict(ENVIRONMENT)
    env["PATH"] = os.pathsep.join(filter(None, [path, env["PATH"]]))
    with contextlib.chdir(root), patch.dict(os.environ, env), contextlib.redirect_stdout(out):
        code = main(list(arguments))
    assert code == 0, f"dvc {' '.join(arguments)}: {code}, {out.getvalue()}"
    return out.getvalue()


def try_dvc(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The same as a process of its own, which may fail."""
    return subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=root, env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip


def git(root: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *arguments]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout


def clone(project: Path, root: Path, *, same_cache: bool = False) -> Path:
    """A second machine's clone; with ``same_cache`` a second working folder of this one."""
    git(project, "clone", "-q", str(project), str(root))
    if same_cache:
        dvc(root, "cache", "dir", "--local", str(project / ".dvc/cache"))
        dvc(root, "checkout", "--quiet", *TARGETS, "--with-deps")
    return root


def make_project(tiny: Path, root: Path) -> Path:
    """The workspace ``tiny``, trained, exported and evaluated, committed to DVC and git."""
    from tasks.evaluation.evaluate import evaluate
    from tasks.release.export import export
    from tasks.training.train import train

    shutil.copytree(tiny, root)
    shutil.copytree(ROOT / "model", root / "model", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, root)
    workspace, recipe = Workspace(root), recipes.load(root / "params.yaml")
    for phase in recipe.phases_in_order():
        for stage in (train, export, evaluate):
            stage(workspace, recipe, phase)
    git(root, "init", "-q")
    dvc(root, "init", "-q")
    shutil.copy(ROOT / ".dvc/config", root / ".dvc")
    shutil.copytree(ROOT / ".dvc/plots", root / ".dvc/plots")
    made = [s for s in stages(recipe) if s.partition("@")[0] in (*MADE, *TARGETS)]
    dvc(root, "commit", "--force", "--quiet", *made)
    git(root, "add", ".")
    git(root, "commit", "-qm", "a model")
    return root


def contents(root: Path) -> dict[str, str]:
    """SHA-256 of every file that the stages made."""
    return {
        str(path.relative_to(root)): sha256_file(path)
        for folder in FOLDERS
        for path in sorted((root / folder).rglob("*"))
        if path.is_file() and ".work" not in path.parts
    }


def cached(root: Path, path: str) -> Path:
    """The file of DVC's cache that a file of the workspace is linked to, or a copy of."""
    import hashlib

    digest = hashlib.md5((root / path).read_bytes(), usedforsecurity=False).hexdigest()
    return root / ".dvc/cache/files/md5" / digest[:2] / digest[2:]
