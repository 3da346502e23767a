"""The whole system at once: a Prefect server and worker, an MLflow server, DVC, and real training.

`prefect deployment run pretrain/phase2` is killed in the middle of training with its worker, run
again, and then the pipeline. Training goes on where it was, one version is registered, and DVC
finds nothing left to do.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import flows_toy
from tests.places import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]


class Project:
    """A project of the tiny recipe, with servers of its own on free ports."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.mlflow_url = f"http://127.0.0.1:{flows_toy.free_port()}"
        self.extra = {
            "PHASEWISE_PREFECT_PORT": flows_toy.free_port(),
            "PHASEWISE_TRACK": "true",
            "PHASEWISE_KEEP_CHECKPOINTS": "50",
            "MLFLOW_TRACKING_URI": self.mlflow_url,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }

    def run(self, *command: str) -> str:
        return flows_toy.run(self.root, *command, **self.extra)

    def states(self) -> list[str]:
        """How the flow runs stand, the newest first."""
        listed = json.loads(self.run("prefect", "flow-run", "ls", "--output", "json"))
        return [run["state"]["type"] for run in listed]

    def start_mlflow(self) -> subprocess.Popen[bytes]:
        with (self.root / "mlflow-server.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", "--workers", "1",
                 "--host", "127.0.0.1", "--port", self.mlflow_url.rpartition(":")[2],
                 "--backend-store-uri", "sqlite:///mlflow.db",
                 "--artifacts-destination", str(self.root / "mlartifacts")],
                cwd=self.root, env=flows_toy.environment() | self.extra, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def history(self) -> list[dict[str, object]]:
        """What the running training has written so far, whole lines alone."""
        path = self.root / "runs/phase1/history.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    from tests.corpus import write_corpus

    root = tmp_path_factory.mktemp("project")
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", "prefect.toml"):
        shutil.copy(ROOT / name, root)
    shutil.copy(ROOT / "tests/tiny.yaml", root / "params.yaml")
    shutil.copytree(ROOT / "model", root / "model", ignore=shutil.ignore_patterns("__pycache__"))
    write_corpus(root / "corpus")
    flows_toy.run(root, "git", "init", "-q")
    flows_toy.run(root, "dvc", "init", "-q")
    project = Project(root)
    mlflow = project.start_mlflow()
    try:
        project.run(sys.executable, "-m", "flows.up")
        yield project
    finally:
        os.killpg(mlflow.pid, signal.SIGKILL)
        mlflow.wait()
        project.run(sys.executable, "-m", "flows.down")


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not after {seconds:g} s: {what}"
        time.sleep(0.05)


def steps(history: list[dict[str, object]]) -> list[object]:
    return [record["step"] for record in history if record["kind"] == "train"]


def test_a_killed_deployment_goes_on_to_one_registered_model_and_a_clean_status(
    project: Project,
) -> None:
    project.run("prefect", "deployment", "run", "pretrain/phase2", "--param", "tokens=3K")
    assert_killed_in_training(project)
    at = len(steps(project.history()))

    project.run(sys.executable, "-m", "flows.up")  # the worker alone is started again
    said = project.run("prefect", "deployment", "run", "pretrain/phase2", "--watch")
    assert "finished successfully" in said
    history = [
        json.loads(line)
        for line in (project.root / "metrics/phase1/history.jsonl").read_text().splitlines()
    ]
    resumed = [r for r in history if r.get("event") == "resumed"]
    assert len(resumed) == 1 and 0 < resumed[0]["step"] <= at + 1, "it started again"
    assert steps(history) == list(range(1, 61)), "a step was made twice or never"

    said = project.run("prefect", "deployment", "run", "pipeline/default", "--watch")
    assert "finished successfully" in said
    assert "up to date" in project.run("dvc", "status")
    assert_registered_once(project)


def assert_killed_in_training(project: Project) -> None:
    """kill -9 the worker once phase 1 has saved a checkpoint: its run ends too, and as Crashed."""
    wait_until(lambda: len(steps(project.history())) >= 15, "15 steps of training")
    os.kill(int((project.root / ".prefect/worker.lock").read_text()), signal.SIGKILL)

    def ended() -> bool:
        return not any(
            word in command
            for command in flows_toy.processes(project.root)
            for word in ("tasks.training", "prefect.engine", " dvc ")
        )

    wait_until(ended, "the end of training and its flow")
    assert not (project.root / "checkpoints/phase1").exists()
    assert project.states() == ["CRASHED"]


def assert_registered_once(project: Project) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(project.mlflow_url)
    versions = client.search_model_versions("name='tiny'")
    assert [int(v.version) for v in versions] == [1]
    registered = client.get_registered_model("tiny")
    assert {alias: int(v) for alias, v in registered.aliases.items()} == {"champion": 1}
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    phases = [str(run.info.run_name).split()[0] for run in found]
    assert phases.count("phase1") == phases.count("phase2") == 1, "a phase has a second run"
