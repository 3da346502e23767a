"""A tracking server on PostgreSQL that hands artifacts on; and what befalls training without one.

Between the server and us lies a wire that the tests cut, choke, and let answer nonsense.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run

from tasks.errors import UNAVAILABLE
from tasks.files import sha256_file
from tasks.registry import tracking
from tasks.registry.mlflow_store import Store
from tasks.registry.register import register
from tasks.release.manifest import verify_export
from tasks.workspace import Workspace
from tests.places import ROOT
from tests.release_workspace import STEPS, append, history, make_workspace, write_export

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
POSTGRESQL = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:]
SECRET = "not-to-be-seen"


class Wire:
    """A local port that passes bytes on to another one, or does what ``mode`` says.

    Modes: pass, cut (connections are closed at once), hang (accepted, never answered), and a
    status of HTTP that answers whatever is asked.
    """

    def __init__(self, target: int) -> None:
        self.mode, self._target = "pass", target
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._held: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        if self.mode == "hang":
            self._held.append(client)
            return
        if self.mode == "cut":
            client.close()
            return
        if self.mode != "pass":
            client.recv(65536)
            reply = (
                f"HTTP/1.1 {self.mode} Trouble\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
            client.sendall(reply.encode())
            client.close()
            return
        server = socket.create_connection(("127.0.0.1", self._target))
        mode = self.mode
        back = threading.Thread(target=self._pump, args=(server, client, mode), daemon=True)
        back.start()
        self._pump(client, server, mode)

    def _pump(self, source: socket.socket, sink: socket.socket, mode: str) -> None:
        """A connection that was open when the mode changed ends: its next request needs another."""
        source.settimeout(0.05)
        while True:
            try:
                chunk = source.recv(65536)
            except TimeoutError:
                if self.mode == mode:
                    continue
                chunk = b""
            except OSError:
                chunk = b""
            try:
                if not chunk:
                    sink.shutdown(socket.SHUT_WR)
                    return
                sink.sendall(chunk)
            except OSError:
                return

    def close(self) -> None:
        for held in (self._socket, *self._held):
            held.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def unprivileged() -> dict[str, Any]:
    """How to start a program as somebody else than root, which PostgreSQL refuses to run as."""
    if os.getuid():
        return {}
    user = pwd.getpwnam("postgres")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an empty PostgreSQL that a password protects."""
    if not POSTGRESQL:
        pytest.skip("no PostgreSQL at /usr/lib/postgresql")
    pytest.importorskip("psycopg2", reason="MLflow talks to PostgreSQL through psycopg2")
    try:
        other = unprivileged()
    except KeyError:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    folder = Path(f"/tmp/phasewise-postgresql-{os.getpid()}")
    folder.mkdir(mode=0o700)
    if other:
        os.chown(folder, other["user"], other["group"])
    data, port = folder / "data", free_port()
    (folder / "password").write_text(SECRET)
    (folder / "password").chmod(0o644)
    make = [POSTGRESQL[0] / "initdb", "-D", data, "-U", "mlflow", "-A", "scram-sha-256"]
    options = ["-N", "--locale=C", "--encoding=UTF8", f"--pwfile={folder / 'password'}"]
    subprocess.run([*make, *options], **other, cwd=folder, check=True, capture_output=True)
    settings = {"port": port, "unix_socket_directories": folder, "fsync": "off"}
    server = subprocess.Popen(
        [POSTGRESQL[0] / "postgres", "-D", data, *(f"--{k}={v}" for k, v in settings.items())],
        **other, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(lambda: _listens(port))
        yield f"postgresql+psycopg2://mlflow:{SECRET}@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=30)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def server(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    """A wire to an MLflow server on that database; its artifacts are in ``server.files``."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    command = ["server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    places = ["--backend-store-uri", database, "--artifacts-destination", str(folder / "files")]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *command, *places],
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    wire = Wire(port)
    wire.files = folder / "files"  # type: ignore[attr-defined]
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}"), seconds=90)
        yield wire
    finally:
        wire.close()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def address(server: Wire, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The server's, with a password in it, as the tracking address of this process."""
    uri = f"http://me:{SECRET}@127.0.0.1:{server.port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for name, value in (("MAX_RETRIES", "0"), ("TIMEOUT", "30")):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)
    yield uri
    server.mode = "pass"


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def points(workspace: Workspace, run: Run, name: str = "train/loss") -> list[int]:
    found = Store(workspace.root).client.get_metric_history(run.info.run_id, name)
    return [metric.step for metric in found]


def records(key: str, phase: str = "phase1") -> list[dict[str, Any]]:
    """A phase's history under a run key of its own."""
    found = history(phase)
    return [found[0] | {"run_key": f"demo/{phase}/{key}", "fingerprint": key}, *found[1:]]


def test_runs_resume_registration_and_pull_all_go_through_the_server(
    tmp_path: Path, address: str, server: Wire
) -> None:
    workspace, recipe = make_workspace(tmp_path / "project", tracked=False)
    folder = workspace.run("phase1")
    folder.mkdir(parents=True)
    append(folder / "history.jsonl", history("phase1", 25))
    first = tracking.sync(workspace, recipe, "phase1", folder)  # a run that was killed here
    runs = tracking.sync_all(workspace, recipe)  # and went on to its end
    assert runs["phase1"] == first
    run = Store(workspace.root).get_run(first)
    assert run.info.status == "FINISHED" and run.info.artifact_uri.startswith("mlflow-artifacts:")
    assert len(set(points(workspace, run))) == len(points(workspace, run)) == STEPS["phase1"]
    write_export(workspace, recipe, "phase2")
    register(workspace, recipe)
    assert json.loads(workspace.registration.read_text())["tracking_uri"] == (
        f"http://127.0.0.1:{server.port}"
    )
    assert not (workspace.root / "mlflow.db").exists()
    assert not (workspace.root / "mlartifacts").exists()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", "from tasks.cli import main; main()", "pull",
         "models:/demo@champion", "here"],
        cwd=elsewhere, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    verify_export(elsewhere / "here")
    weights = "model.safetensors"
    assert sha256_file(elsewhere / "here" / weights) == sha256_file(
        workspace.export("phase2") / weights
    )
    assert SECRET not in done.stdout + done.stderr
    files = [p for p in server.files.rglob("*") if p.is_file()]  # type: ignore[attr-defined]
    assert {"loss.svg", "ledger.json", "phase2.details.json", weights} <= {p.name for p in files}
    assert not any(SECRET.encode() in path.read_bytes() for path in files)
    store = Store(workspace.root)
    for run in store.client.search_runs(["1"]):
        assert SECRET not in json.dumps(run.to_dictionary())
    assert SECRET not in str(dict(store.client.get_model_version("demo", "1")))


@pytest.mark.parametrize("mode", ["cut", "hang", "500", "507"])
def test_a_server_that_fails_while_a_phase_trains_is_left_alone_and_caught_up_with(
    tmp_path: Path, address: str, server: Wire, mode: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    workspace, recipe = make_workspace(tmp_path, tracked=False)
    shutil.rmtree(workspace.metrics("phase1"))
    shutil.rmtree(workspace.metrics("phase2"))
    folder, lines = workspace.run("phase1"), records(mode)
    folder.mkdir(parents=True)
    append(folder / "history.jsonl", lines[:10])
    monkeypatch.setattr(tracking, "POLL_SECONDS", 0.05)
    left: list[int] = []
    follow = threading.Thread(target=lambda: left.append(tracking.main(["follow", str(folder)])))
    follow.start()
    store = Store(workspace.root)

    def run() -> Run | None:
        found = store.client.get_experiment_by_name("demo")
        return store.run(found.experiment_id, lines[0]["run_key"]) if found else None

    wait_for(lambda: (there := run()) is not None and "train/loss" in there.data.metrics)
    server.mode = mode
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    append(folder / "history.jsonl", lines[10:20])
    time.sleep(0.3)
    started = time.monotonic()
    append(folder / "history.jsonl", lines[20:])
    assert time.monotonic() - started < 1  # what the trainer does
    follow.join(timeout=20)
    assert left == [UNAVAILABLE]
    assert capsys.readouterr().err.count("training goes on without it") == 1
    server.mode = "pass"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    found = tracking.sync_all(workspace, recipe)
    there = store.get_run(found["phase1"])
    assert there.info.status == "FINISHED"
    assert len(set(points(workspace, there))) == len(points(workspace, there)) == STEPS["phase1"]
