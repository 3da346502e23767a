"""The whole story by `dvc repro`, on the planted corpus: killed once on the way, and clean at the end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks import recipe as recipes
from tasks.cli import doctor_dvc
from tasks.files import sha256_file
from tasks.report.summary import summary
from tasks.stage import stages
from tasks.workspace import Workspace
from tests.places import ROOT

pytestmark = pytest.mark.slow
WEIGHTS = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json")
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT),
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PHASEWISE_TRACK": "true",
}


def dvc(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=root, env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project of the tiny recipe after one `dvc repro` that was killed and one that went through."""
    from tests.corpus import write_corpus

    root = tmp_path_factory.mktemp("project")
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, root)
    shutil.copy(ROOT / "tests/tiny.yaml", root / "params.yaml")
    shutil.copytree(ROOT / "model", root / "model", ignore=shutil.ignore_patterns("__pycache__"))
    write_corpus(root / "corpus")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "project"]):
        subprocess.run([*git, *command], cwd=root, check=True)
    dvc(root, "init", "-q")
    kill_in_training(root)
    dvc(root, "repro")
    yield root


def kill_in_training(root: Path) -> None:
    """Start `dvc repro` and kill -9 all of it once phase 1 has made some steps."""
    child = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro"], cwd=root, env=ENVIRONMENT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    history = root / "runs/phase1/history.jsonl"
    while not history.exists() or history.read_bytes().count(b'"kind": "train"') < 15:
        assert child.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert not (root / "checkpoints/phase1").exists()


def test_a_killed_dvc_repro_goes_on_to_the_bytes_of_a_straight_run(
    project: Path, tiny: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny, tmp_path / "straight")
    for phase in ("phase1", "phase2"):
        subprocess.run(
            [sys.executable, "-m", "tasks.training.train", phase, "--root", str(tmp_path / "straight")],
            cwd=ROOT, check=True, capture_output=True,
        )  # fmt: skip
        for name in WEIGHTS:
            ours = project / "checkpoints" / phase / name
            assert sha256_file(ours) == sha256_file(
                tmp_path / "straight/checkpoints" / phase / name
            )
    events = (project / "metrics/phase1/history.jsonl").read_text()
    assert '"event": "resumed"' in events


def test_nothing_is_left_to_do(project: Path) -> None:
    assert "up to date" in dvc(project, "status")
    assert "Running stage" not in dvc(project, "repro")


def test_git_sees_the_lock_alone(project: Path) -> None:
    done = subprocess.run(
        ["git", "status", "--porcelain", "--", ".", ":!.dvc"],
        cwd=project, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == ["??", "dvc.lock"]


def test_dvc_runs_the_stages_that_the_work_knows(project: Path) -> None:
    listed = dvc(project, "stage", "list", "--name-only").split()
    assert sorted(listed) == sorted(stages(recipes.load(project / "params.yaml")))


def test_the_figures_that_count_are_dvcs_metrics(project: Path) -> None:
    metrics = json.loads(dvc(project, "metrics", "show", "--json"))[""]["data"]
    shown = {name: figures["data"] for name, figures in metrics.items() if "bits" in name}
    assert set(shown) == {f"evaluation/phase{n}.bits_per_byte.json" for n in (1, 2)}
    figures = json.loads((project / "evaluation/phase2.json").read_text())
    for name, by_weights in shown["evaluation/phase2.bits_per_byte.json"].items():
        assert name.endswith("/test")
        assert by_weights == {"ema": figures[name]["ema"]["bits_per_byte"]}
        assert 0 < by_weights["ema"] < 10 and by_weights["ema"] != figures[name]["raw"]
    training = json.loads((project / "metrics/phase1/summary.json").read_text())
    assert training["steps"] == 60


def test_one_version_is_registered_under_its_alias(project: Path) -> None:
    registration = json.loads((project / "reports/registration.json").read_text())
    assert registration["name"] == "tiny" and str(registration["version"]) == "1"
    assert registration["uri"] == "models:/tiny@champion"


def test_the_report_has_the_whole_account(project: Path) -> None:
    text = (project / "reports/report.md").read_text()
    for word in ("letters", "notes", "exact", "near", "contaminated", "drawn by phase2"):
        assert word in text
    assert "Every stage balances" in text


def test_a_clone_has_everything_and_registers_the_export_in_its_own_registry(
    project: Path, tmp_path: Path
) -> None:
    dvc(project, "remote", "add", "--local", "--force", "--default", "r", str(tmp_path / "remote"))
    dvc(project, "push", "--quiet")
    second = tmp_path / "second"
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost"]
    for command in (
        ["add", "."], ["commit", "-qm", "a model", "--allow-empty"],
        ["clone", "-q", str(project), str(second)],
    ):  # fmt: skip
        subprocess.run([*git, *command], cwd=project, check=True)
    dvc(second, "remote", "add", "--local", "--default", "r", str(tmp_path / "remote"))
    dvc(second, "pull", "--quiet")
    assert "Running stage" not in dvc(second, "repro")
    [finding] = doctor_dvc.registry(second)
    assert "was registered elsewhere" in finding.detail and not (second / "mlflow.db").exists()
    assert "on another machine" in summary(Workspace(second), recipes.load(second / "params.yaml"))
    dvc(second, *finding.hint.removeprefix("dvc ").split())
    assert list(doctor_dvc.registry(second)) == []
    ours, theirs = (
        json.loads((root / "reports/registration.json").read_text()) for root in (project, second)
    )
    assert (ours["export"], ours["uri"]) == (theirs["export"], theirs["uri"])


def test_a_change_runs_only_what_hangs_on_it(project: Path, tmp_path: Path) -> None:
    plan = dvc(project, "repro", "--dry")
    assert "Running stage" not in plan
    path = project / "params.yaml"
    before = path.read_text()
    try:
        path.write_text(before.replace("lr: 5e-3", "lr: 4e-3"))
        stale = dvc(project, "status", "--json")
        assert {name for name in json.loads(stale) if name.startswith("train@")} == {"train@phase2"}
        assert not any(
            name.startswith(("encode", "tokenizer", "dedup")) for name in json.loads(stale)
        )
    finally:
        path.write_text(before)
