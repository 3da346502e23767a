"""Flows as people run them: from a terminal with no server, and by `make up` and a deployment."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import services
from flows.services import Service, check_free, read_profile, write_profile
from tasks.errors import USAGE, UserError
from tests import flows_toy

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def wait_for(path: Path, text: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists() or text not in path.read_text():
        assert time.monotonic() < deadline, f"{text!r} did not appear in {path}"
        time.sleep(0.1)


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Service]:
    service = Service("sleeper", tmp_path)
    yield service
    service.stop(5)


def test_a_service_is_started_once_and_stopped(sleeper: Service) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert not sleeper.running
    assert sleeper.start(command, os.environ) and sleeper.running
    pid = sleeper.lock.read_text()
    assert not sleeper.start(command, os.environ)
    assert sleeper.lock.read_text() == pid
    assert sleeper.stop(5) and not sleeper.running
    assert not sleeper.stop(5)


def test_a_service_that_ignores_sigterm_is_ended_by_force(sleeper: Service) -> None:
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1); time.sleep(60)"
    sleeper.start([sys.executable, "-u", "-c", stubborn], os.environ)
    wait_for(sleeper.log, "1")
    assert sleeper.stop(0.5) and not sleeper.running


def test_a_process_of_somebody_else_is_never_taken_for_the_service(sleeper: Service) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    sleeper.lock.write_text(str(other.pid))  # as after a crash, when the number was given again
    try:
        assert not sleeper.running and not sleeper.stop(1)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_service_that_ends_at_once_is_told_with_its_last_words(sleeper: Service) -> None:
    sleeper.start([sys.executable, "-c", "raise SystemExit('no database')"], os.environ)
    with pytest.raises(UserError, match="no database"):
        sleeper.wait_for(lambda: False)


def test_a_busy_port_is_an_error_that_names_another() -> None:
    with socket.socket() as taken:
        taken.bind((services.HOST, 0))
        taken.listen()
        number = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"PHASEWISE_PREFECT_PORT={number + 1} make up"):
            check_free(number)
    check_free(number)


def test_a_port_that_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHASEWISE_PREFECT_PORT", "99999")
    with pytest.raises(UserError, match="PHASEWISE_PREFECT_PORT"):
        services.port()


def test_the_profile_tells_where_the_server_is(tmp_path: Path) -> None:
    path = tmp_path / ".prefect/profiles.toml"
    assert read_profile(path) is None
    write_profile(path, "http://127.0.0.1:4321/api")
    assert read_profile(path) == "http://127.0.0.1:4321/api"


@pytest.mark.parametrize("flow", ["data", "pretrain", "release", "pipeline", "up", "down"])
def test_help_is_told(flow: str, tmp_path: Path) -> None:
    said = flows_toy.run(tmp_path, sys.executable, "-m", f"flows.{flow}", "--help")
    assert f"python -m flows.{flow}" in said


def test_a_wrong_phase_is_refused_in_words_before_any_server_starts(tmp_path: Path) -> None:
    root = flows_toy.make(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "flows.pretrain", "phase3"],
        cwd=root, env=flows_toy.environment(), text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == USAGE
    assert done.stderr.startswith("error: params.yaml: the recipe has no phase 'phase3'")
    assert "phase1, phase2" in done.stderr and "Traceback" not in done.stderr


def test_a_server_that_was_named_and_does_not_answer_is_an_error(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/api"
    said = flows_toy.run(
        flows_toy.make(tmp_path), sys.executable, "-m", "flows.data",
        check=False, PREFECT_API_URL=url,
    )  # fmt: skip
    assert f"no Prefect server answers at {url}" in said and "Traceback" not in said


@linux
@pytest.mark.slow
def test_a_flow_needs_no_server_and_leaves_nothing_behind(tmp_path: Path) -> None:
    root = flows_toy.make(tmp_path, sources=["stdlib"])
    said = flows_toy.run(root, sys.executable, "-m", "flows.pretrain", "phase1")
    assert "9 of 9 stages run, 0 unchanged" in said and "Traceback" not in said
    assert "up to date" in flows_toy.run(root, "dvc", "status", "--with-deps", "train@phase1")

    refused = flows_toy.run(root, sys.executable, "-m", "flows.release", check=False)
    assert refused.startswith("error: not up to date: mix@phase2, train@phase2")

    flows_toy.run(root, "dvc", "repro", "mix@phase2")
    (root / "slow-train").write_text("60")
    log = root / "interrupted.log"
    with log.open("wb") as out:
        flow = subprocess.Popen(
            [sys.executable, "-m", "flows.pretrain", "phase2", "--no-upstream"],
            cwd=root, env=flows_toy.environment(), stdout=out, stderr=out, process_group=0,
        )  # fmt: skip
    wait_for(log, "toy train phase2")
    os.killpg(flow.pid, signal.SIGINT)  # Ctrl-C
    assert flow.wait(60) == 130
    assert "run the same command again" in log.read_text()
    assert (root / "runs/phase2/saved").exists()
    assert flows_toy.processes(root) == []


@linux
@pytest.mark.slow
def test_up_a_deployment_a_cancelled_run_and_down(tmp_path: Path) -> None:
    root = flows_toy.make(tmp_path, sources=["stdlib"])
    port = free_port()

    def run(*command: str) -> str:
        return flows_toy.run(root, *command, PHASEWISE_PREFECT_PORT=port)

    def deployments() -> set[str]:
        listed = json.loads(run("prefect", "deployment", "ls", "--output", "json"))
        return {deployment["name"] for deployment in listed}

    try:
        said = run(sys.executable, "-m", "flows.up")
        assert "deployment run pretrain/phase2" in said and port in said
        assert deployments() == {"default", "phase1", "phase2"}

        said = run("prefect", "deployment", "run", "pretrain/phase2", "--watch")
        assert "finished successfully" in said
        assert "up to date" in run("dvc", "status", "--with-deps", "train@phase2")
        assert flows_toy.times_run(root, "train") == 2

        flows_toy.edit_params(root, "  phase2:", "  phase3:")
        pid = (root / ".prefect/server.lock").read_text()
        run(sys.executable, "-m", "flows.up")  # again: what runs is left alone
        assert (root / ".prefect/server.lock").read_text() == pid
        assert deployments() == {"default", "phase1", "phase3"}

        run("dvc", "repro", "mix@phase3")
        (root / "slow-train").write_text("60")
        run("prefect", "deployment", "run", "pretrain/phase3", "-p", "upstream=false")
        wait_for(root / "runs/phase3/history.jsonl", "loss")
        said = run(sys.executable, "-m", "flows.down")
        assert "cancelling phase3" in said and "stopped: worker, server" in said
        assert (root / "runs/phase3/saved").exists()
        assert flows_toy.processes(root) == []
    finally:
        flows_toy.run(root, sys.executable, "-m", "flows.down", check=False)
