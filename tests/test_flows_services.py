"""Flows as people run them: from a terminal with no server, and by `make up` and a deployment."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import prefect
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_SERVER_API_AUTH_STRING,
    temporary_settings,
)

from flows import services
from flows.command import healthy
from flows.services import Service, check_free, read_profile, write_profile
from tasks.errors import UNAVAILABLE, USAGE, UserError
from tests import flows_toy
from tests.places import ROOT

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


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
            check_free(services.HOST, number)
    check_free(services.HOST, number)


def test_a_port_that_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHASEWISE_PREFECT_PORT", "99999")
    with pytest.raises(UserError, match="PHASEWISE_PREFECT_PORT"):
        services.address()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "192.168.0.7"])
def test_an_address_that_others_reach_needs_a_password(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHASEWISE_PREFECT_HOST", host)
    with pytest.raises(UserError, match="has no password") as caught:
        services.address()
    assert "PREFECT_SERVER_API_AUTH_STRING" in str(caught.value)
    with temporary_settings({PREFECT_SERVER_API_AUTH_STRING: "me:secret"}):
        assert services.address()[0] == host
        client = services.client_settings("http://x/api")
        assert client[PREFECT_API_AUTH_STRING] == "me:secret"
        assert "secret" not in " ".join(services.server_command(host, 4200))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_this_machine_alone_needs_none(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHASEWISE_PREFECT_HOST", host)
    assert services.address()[0] == host


def test_all_interfaces_are_reached_by_an_address_that_can_be_reached() -> None:
    assert services.base_url("0.0.0.0", 42) == "http://127.0.0.1:42"
    assert services.base_url("0.0.0.0", 42, seen_from_afar=True) == f"http://{platform.node()}:42"
    assert services.base_url("::1", 42) == "http://[::1]:42"


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_a_pools_template_fits_what_its_worker_knows(kind: str) -> None:
    """Each value of the job is a variable that the template declares, and no key is made up."""
    template = json.loads((ROOT / f"deploy/{kind}-pool.json").read_text())
    declared = template["variables"]["properties"]
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used == set(declared)
    views = Path(prefect.__file__).parent / "server/api/collections_data/views"
    known = json.loads((views / "aggregate-worker-metadata.json").read_text())
    default = known[f"prefect-{kind}"][kind]["default_base_job_configuration"]
    assert set(template["job_configuration"]) <= set(default["job_configuration"])
    for name in declared.keys() & default["variables"]["properties"].keys():
        assert declared[name].get("type") == default["variables"]["properties"][name].get("type")
    jsonschema.Draft202012Validator.check_schema(template["variables"])
    given = {"volumes": ["/srv/project:/workspace"]} if kind == "docker" else {"gpus": 1}
    jsonschema.validate(given, template["variables"])


def test_the_dockerfile_copies_what_is_there() -> None:
    lines = (ROOT / "deploy/Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert {"requirements.lock", "flows", "tasks", "model"} <= set(copied)
    assert all((ROOT / word).exists() for word in copied)
    allowed = (ROOT / "deploy/Dockerfile.dockerignore").read_text().splitlines()
    assert {f"!{word}" for word in copied} <= set(allowed)


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
    url = f"http://127.0.0.1:{flows_toy.free_port()}/api"
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
    """With a password, which is in no file and no log, and without which nobody is let in."""
    root = flows_toy.make(tmp_path, sources=["stdlib"])
    port, password = flows_toy.free_port(), "toy:a-word-of-its-own"

    def run(*command: str, **extra: str) -> str:
        own = {"PHASEWISE_PREFECT_PORT": port, "PREFECT_SERVER_API_AUTH_STRING": password}
        client = {"PREFECT_API_AUTH_STRING": password}
        return flows_toy.run(root, *command, **own | client | extra)

    def ask(question: Callable[[SyncPrefectClient], Any]) -> Any:
        url = f"http://127.0.0.1:{port}/api"
        known = {PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: password}
        with temporary_settings(known), get_client(sync_client=True) as client:
            return question(client)

    def deployments() -> set[str]:
        return {d.name for d in ask(lambda client: client.read_deployments())}

    try:
        said = run(sys.executable, "-m", "flows.up", PREFECT_API_AUTH_STRING="")
        assert "deployment run pretrain/phase2" in said and port in said
        assert deployments() == {"default", "phase1", "phase2"}
        refused = httpx.get(f"http://127.0.0.1:{port}/api/work_pools/phasewise")
        assert refused.status_code == httpx.codes.UNAUTHORIZED

        said = run("prefect", "deployment", "run", "pretrain/phase2", "--watch")
        assert "finished successfully" in said
        assert "up to date" in run("dvc", "status", "--with-deps", "train@phase2")
        assert flows_toy.times_run(root, "train") == 2

        flows_toy.edit_params(root, "  phase2:", "  phase3:")
        flows_toy.edit_params(root, "{phase: phase2}", "{phase: phase3}")
        pid = (root / ".prefect/server.lock").read_text()
        run(sys.executable, "-m", "flows.up")  # again: what runs is left alone
        assert (root / ".prefect/server.lock").read_text() == pid
        assert deployments() == {"default", "phase1", "phase3"}

        pool = WorkPoolCreate(name="phasewise-process", type="process")
        ask(lambda client: client.create_work_pool(pool))
        run("prefect", "--no-prompt", "deploy", "--all")
        deployed = ask(lambda client: client.read_deployment_by_name("pretrain/process"))
        assert [list(step.values()) for step in deployed.pull_steps] == [[{"directory": str(root)}]]
        run("prefect", "deployment", "run", "pretrain/process", "--param", "phase=phase1")
        run("prefect", "worker", "start", "--pool", "phasewise-process", "--run-once")
        runs = ask(lambda client: client.read_flow_runs())
        assert [r.state.type for r in runs] == [StateType.COMPLETED, StateType.COMPLETED]

        run("dvc", "repro", "mix@phase3")
        (root / "slow-train").write_text("60")
        run("prefect", "deployment", "run", "pretrain/phase3", "-p", "upstream=false")
        wait_for(root / "runs/phase3/history.jsonl", "loss")
        said = run(sys.executable, "-m", "flows.down")
        assert "cancelling phase3" in said and "stopped: worker, server" in said
        assert (root / "runs/phase3/saved").exists()
        assert flows_toy.processes(root) == []
        written = [p for p in root.rglob("*") if p.is_file() and p.suffix != ".pyc"]
        assert not [p for p in written if password.encode() in p.read_bytes()]
    finally:
        flows_toy.run(
            root, sys.executable, "-m", "flows.down", check=False,
            PREFECT_SERVER_API_AUTH_STRING=password,
        )  # fmt: skip


@pytest.mark.faults
@linux
@pytest.mark.slow
def test_a_server_that_goes_away_neither_stops_nor_spoils_a_run(tmp_path: Path) -> None:
    """For some seconds: nobody notices. For good: the work is whole, and the end is said so."""
    root = flows_toy.make(tmp_path, sources=["stdlib"])
    flows_toy.run(root, "dvc", "repro", "train@phase1")
    number = int(flows_toy.free_port())
    url = f"http://127.0.0.1:{number}/api"
    extra = {"PREFECT_API_URL": url, "PREFECT_CLIENT_MAX_RETRIES": "2"}
    (root / "slow-train").write_text("8")
    server = Service("server", root / ".prefect")

    def start() -> None:
        command = services.server_command(services.HOST, number)
        server.start(command, flows_toy.environment() | {"PREFECT_HOME": str(root / ".prefect")})
        server.wait_for(lambda: healthy(url))

    def begin(log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "flows.pretrain", "phase1", "--force"],
                cwd=root, env=flows_toy.environment() | extra, stdout=out, stderr=out,
            )  # fmt: skip

    def kill_server() -> None:
        os.kill(int(server.lock.read_text()), signal.SIGKILL)

    try:
        start()
        flow = begin(root / "away.log")
        wait_for(root / "away.log", "toy train phase1")
        kill_server()
        time.sleep(3)
        start()
        assert flow.wait(120) == 0, (root / "away.log").read_text()
        listed = flows_toy.run(root, "prefect", "flow-run", "ls", "--output", "json", **extra)
        assert [r["state"]["type"] for r in json.loads(listed)] == ["COMPLETED"]

        flow = begin(root / "gone.log")
        wait_for(root / "gone.log", "toy train phase1")
        kill_server()
        assert flow.wait(180) == UNAVAILABLE
        said = (root / "gone.log").read_text()
        assert "train@phase1 is done" in said and "the Prefect server is gone" in said
        assert "up to date" in flows_toy.run(root, "dvc", "status", "train@phase1")
        assert flows_toy.times_run(root, "train") == 3
    finally:
        server.stop(5)
