"""What was made is found again: on another machine, at an older commit, after a loss."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tasks import recipe as recipes
from tasks.cli import doctor_dvc
from tasks.data.changed import changed_files
from tasks.files import is_locked
from tasks.registry.provenance import local_database, shown_uri, tracking_uri
from tasks.workspace import Workspace, home
from tests.versioned import (
    ENVIRONMENT,
    TARGETS,
    cached,
    clone,
    contents,
    dvc,
    git,
    make_project,
    try_dvc,
)

pytestmark = pytest.mark.slow
SECRET = "a-secret-of-this-machine"


@pytest.fixture(scope="module")
def project(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tiny, tmp_path_factory.mktemp("versioned") / "project")


@dataclass
class Remote:
    """Where a remote is, what everybody may know of it, and what nobody else may."""

    url: str
    options: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)


@pytest.fixture(params=["folder", "ssh", "s3"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Remote]:
    if request.param == "folder":
        yield Remote(str(tmp_path / "remote"))
    elif request.param == "ssh":
        with ssh_server() as port:
            url = f"ssh://127.0.0.1{tmp_path}/remote"
            options = {"port": str(port), "user": "tester"}
            yield Remote(url, options, {"password": SECRET})
    else:
        with s3_server() as address:
            keys = {"access_key_id": "tester", "secret_access_key": SECRET}
            yield Remote("s3://models/tiny", {"endpointurl": address, "region": "us-east-1"}, keys)


@contextmanager
def s3_server() -> Iterator[str]:
    pytest.importorskip("dvc_s3", reason="needs dvc-s3 (extra s3)")
    moto = pytest.importorskip("moto.server", reason="needs moto[server]")
    import boto3

    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        keys = {"aws_access_key_id": "tester", "aws_secret_access_key": SECRET}
        address = f"http://{host}:{port}"
        client = boto3.client("s3", endpoint_url=address, region_name="us-east-1", **keys)
        client.create_bucket(Bucket="models")
        yield address
    finally:
        server.stop()


@contextmanager
def ssh_server() -> Iterator[int]:
    """An SSH server with SFTP on localhost, in a thread; it takes one password."""
    pytest.importorskip("dvc_ssh", reason="needs dvc-ssh (extra ssh)")
    import asyncio
    import threading

    import asyncssh

    class Server(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:
            return True

        def password_auth_supported(self) -> bool:
            return True

        def validate_password(self, username: str, password: str) -> bool:
            return password == SECRET

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    key = asyncssh.generate_private_key("ssh-ed25519")

    async def listen() -> asyncssh.SSHAcceptor:
        options = {"server_host_keys": [key], "sftp_factory": True}
        return await asyncssh.create_server(Server, "127.0.0.1", 0, **options)

    server = asyncio.run_coroutine_threadsafe(listen(), loop).result(30)
    try:
        yield server.get_port()
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def name_remote(root: Path, remote: Remote) -> None:
    """What docs/versioning.md says: the address in .dvc/config, secrets in .dvc/config.local."""
    dvc(root, "remote", "add", "--force", "--default", "storage", remote.url)
    for name, value in remote.options.items():
        dvc(root, "remote", "modify", "storage", name, value)
    give_secrets(root, remote)


def give_secrets(root: Path, remote: Remote) -> None:
    for name, value in remote.secrets.items():
        dvc(root, "remote", "modify", "--local", "storage", name, value)


def test_a_clone_gets_the_same_bytes_from_the_remote_and_trains_nothing(
    project: Path, remote: Remote, tmp_path: Path
) -> None:
    first = shutil.copytree(project, tmp_path / "first", symlinks=True)
    name_remote(first, remote)
    dvc(first, "push", "--quiet", *TARGETS, "--with-deps")
    git(first, "commit", "-qam", "a remote")
    assert git(first, "log", "--all", "--oneline", "-S", SECRET) == ""
    assert git(first, "status", "--porcelain") == "", "config.local is ignored"
    second = clone(first, tmp_path / "second")
    give_secrets(second, remote)
    dvc(second, "repro", "--pull", *TARGETS, path=broken_python(tmp_path / "bin"))
    assert contents(second) == contents(project)
    assert "up to date" in dvc(second, "status", *TARGETS)
    assert git(second, "status", "--porcelain") == ""


def broken_python(folder: Path) -> str:
    """A folder whose `python` fails, so that no stage can run."""
    folder.mkdir()
    (folder / "python").write_text("#!/bin/sh\nexit 9\n")
    (folder / "python").chmod(0o755)
    return str(folder)


def test_an_older_commit_brings_its_model_back_and_it_speaks_as_it_did(
    project: Path, tmp_path: Path
) -> None:
    def say() -> str:
        from tasks.cli import app

        command = ["generate", "--model", str(root / "exports/phase2"), "--prompt", "The "]
        done = CliRunner().invoke(app, [*command, "--temperature", "0", "--max-new-tokens", "24"])
        assert done.exit_code == 0, done.output
        return done.output

    root = clone(project, tmp_path / "again", same_cache=True)
    older, said = contents(root), say()
    text = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(text.replace("lr: 5e-3", "lr: 5e-2"))
    dvc(root, "repro", "--quiet", "export@phase2")
    git(root, "commit", "-qam", "another model")
    assert say() != said
    git(root, "checkout", "-q", "HEAD~1")
    dvc(root, "checkout", "--quiet", *TARGETS, "--with-deps")
    assert contents(root) == older
    assert say() == said


def test_the_released_model_can_be_had_by_name(project: Path, tmp_path: Path) -> None:
    root = shutil.copytree(project, tmp_path / "tagged", symlinks=True)
    git(root, "tag", "-a", "model@v1.0.0", "-m", "the first")
    dvc(tmp_path, "artifacts", "get", str(root), "model", "--out", str(tmp_path / "had"))
    ours = sorted((project / "exports/phase2").iterdir())
    assert [path.read_bytes() for path in sorted((tmp_path / "had").iterdir())] == [
        path.read_bytes() for path in ours
    ]


def test_large_files_are_in_the_cache_and_here_but_once_on_disk(project: Path) -> None:
    for path in ("checkpoints/phase1/model.safetensors", "data/tokens/letters/train-00000.bin"):
        assert cached(project, path).samefile(project / path)


def test_no_stage_writes_into_a_file_that_the_cache_has(project: Path, tmp_path: Path) -> None:
    """Root may write to files that are read-only: only names may be replaced, never contents."""
    root = shutil.copytree(project, tmp_path / "root", symlinks=True)
    shutil.rmtree(root / ".dvc/cache")
    links = {}
    for name in contents(root):
        other = tmp_path / "links" / name
        other.parent.mkdir(parents=True, exist_ok=True)
        os.link(root / name, other)
        links[name] = (other, other.read_bytes())
    workspace, recipe = Workspace(root), recipes.load(root / "params.yaml")
    remake(workspace, recipe)
    for name, (other, before) in links.items():
        assert other.read_bytes() == before, f"{name} was written in place"
    replaced = [name for name, (other, _) in links.items() if not other.samefile(root / name)]
    assert {name.split("/")[0] for name in replaced} == {
        "data", "checkpoints", "exports", "evaluation", "metrics",
    }  # fmt: skip


def remake(workspace: Workspace, recipe: recipes.Recipe) -> None:
    """Every stage again, over what it made before (DVC would have removed it first)."""
    from tasks.data.clean import clean
    from tasks.data.dedup import dedup
    from tasks.data.download import download
    from tasks.data.split import split
    from tasks.evaluation.evaluate import evaluate
    from tasks.release.export import export
    from tasks.tokens.encode import encode
    from tasks.tokens.mix import mix
    from tasks.tokens.tokenizer import tokenizer
    from tasks.training.init import init
    from tasks.training.train import train

    for source in recipe.sources:
        download(workspace, recipe, source)
        clean(workspace, recipe, source)
    for whole in (dedup, split, tokenizer):
        whole(workspace, recipe)
    for source in recipe.sources:
        encode(workspace, recipe, source)
    init(workspace, recipe)
    for phase in recipe.phases_in_order():
        for stage in (mix, train, export, evaluate):
            stage(workspace, recipe, phase)


def test_two_repro_at_once_and_a_killed_dvc_lose_nothing(project: Path, tmp_path: Path) -> None:
    root = clone(project, tmp_path / "twice", same_cache=True)
    text = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(text.replace("tokens: 15360", "tokens: 512000"))
    dvc(root, "repro", "--quiet", "mix@phase1")
    command = [sys.executable, "-m", "dvc", "repro", "train@phase1"]
    said = tmp_path / "said.txt"
    with said.open("wb") as out:
        first = subprocess.Popen(command, cwd=root, env=ENVIRONMENT, stdout=out, stderr=out)
    history = root / "runs/phase1/history.jsonl"
    wait_for(lambda: history.exists() and history.read_bytes().count(b'"kind": "train"') > 20)
    second = try_dvc(root, "repro", "train@phase1")
    assert second.returncode and f"(PID {first.pid})" in second.stderr
    assert "is busy, it is being blocked by" in second.stderr
    first.send_signal(signal.SIGKILL)
    first.wait()
    wait_for(lambda: not is_locked(root / "runs/phase1/.lock"))
    left = history.read_bytes().count(b'"kind": "train"')
    assert list((root / "runs/phase1").glob("step-*")), said.read_text()
    assert any("is gone" in finding.detail for finding in doctor_dvc.locks(root))
    (root / "params.yaml").write_text(text.replace("tokens: 15360", "tokens: 512000"))
    done = try_dvc_stopping(root, left + 20)
    assert "going on from step" in done


def test_a_killed_parent_that_the_kernel_reports_twice_asks_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tasks.training import leaving

    def exit_at_once(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", exit_at_once)
    asked = leaving.Leaving.__new__(leaving.Leaving)
    asked._signal, asked._since = 0, 0.0
    asked._hear(signal.SIGTERM, None)
    asked._hear(signal.SIGTERM, None)
    assert asked._signal == signal.SIGTERM
    asked._since -= 2 * leaving.ONE_DEATH_SECONDS
    with pytest.raises(SystemExit, match="143"):
        asked._hear(signal.SIGTERM, None)


def wait_for(condition: object, seconds: float = 60.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to it"
        time.sleep(0.02)


def try_dvc_stopping(root: Path, step: int) -> str:
    """What `dvc repro` says of a training that is stopped at a step."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro", "train@phase1"],
        cwd=root, env=ENVIRONMENT | {"PHASEWISE_STOP_AT_STEP": str(step)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_a_file_that_the_cache_lost_is_named_and_put_back(project: Path, tmp_path: Path) -> None:
    root = shutil.copytree(project, tmp_path / "lossy", symlinks=True)
    lost = cached(root, "checkpoints/phase1/model.safetensors")
    lost.unlink()
    [finding] = [f for f in doctor_dvc.pipeline(root) if f.what == "cache"]
    assert "checkpoints/phase1" in finding.detail
    command = finding.hint.partition(": dvc ")[2].split()
    dvc(root, *command)
    assert lost.read_bytes() == (root / "checkpoints/phase1/model.safetensors").read_bytes()
    assert not [f for f in doctor_dvc.pipeline(root) if f.what == "cache"]


def test_a_remote_that_is_away_is_said_and_pull_stops_before_anything_is_trained(
    project: Path, tmp_path: Path
) -> None:
    first = shutil.copytree(project, tmp_path / "first", symlinks=True)
    name_remote(first, Remote(str(tmp_path / "remote")))
    git(first, "commit", "-qam", "a remote")
    second = clone(first, tmp_path / "second")
    pulled = try_dvc(second, "pull", *TARGETS)
    assert pulled.returncode and "checkpoints/phase1" not in contents(second)
    [finding] = doctor_dvc.remote(second)
    assert finding.state == "warn" and "no such folder" in finding.detail
    assert "dvc pull && dvc repro" in finding.hint
    [finding] = [f for f in doctor_dvc.pipeline(second) if f.what == "files"]
    assert "dvc pull" in finding.hint
    (tmp_path / "remote").mkdir()
    assert next(doctor_dvc.remote(second)).state == "ok"
    name_remote(second, Remote("s3://models/tiny", {"endpointurl": "http://127.0.0.1:9"}))
    assert "127.0.0.1:9 does not answer" in next(doctor_dvc.remote(second)).detail


def test_changes_of_files_outside_are_seen(project: Path, tmp_path: Path) -> None:
    root = shutil.copytree(project, tmp_path / "changed", symlinks=True)
    workspace, recipe = Workspace(root), recipes.load(root / "params.yaml")
    assert changed_files(workspace, recipe, "letters") == []
    first, *_, last = sorted((root / "corpus/letters").glob("*.txt"))
    first.write_text(first.read_text().swapcase())  # of the same size
    last.unlink()
    (root / "corpus/letters/zz.txt").write_text("A letter that came later.")
    assert changed_files(workspace, recipe, "letters") == [
        f"changed: corpus/letters/{first.name}",
        f"gone: corpus/letters/{last.name}",
        "new: corpus/letters/zz.txt",
    ]
    [finding] = doctor_dvc.sources(root)
    assert finding.detail.startswith("letters is not what was downloaded")
    dvc(root, "repro", "--quiet", *finding.hint.partition(": dvc repro ")[2].split(";")[0].split())
    assert changed_files(workspace, recipe, "letters") == []
    shutil.rmtree(root / "corpus")
    assert changed_files(workspace, recipe, "letters") == []


def test_a_queued_experiment_has_the_records_of_its_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    queued = tmp_path / ".dvc/tmp/exps/tmp1a2b3c"
    queued.mkdir(parents=True)
    assert home(queued) == home(tmp_path) == tmp_path
    assert tracking_uri(queued) == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert local_database(queued) == tmp_path / "mlflow.db"
    assert shown_uri(queued) == shown_uri(tmp_path) == "sqlite:///mlflow.db"
    from tasks.settings import settings

    (tmp_path / ".env").write_text("PHASEWISE_THREADS=3\n")
    monkeypatch.chdir(queued)
    assert settings().threads == 3


@pytest.mark.faults
def test_experiments_of_a_queue_are_compared_by_few_figures(project: Path, tmp_path: Path) -> None:
    root = clone(project, tmp_path / "queue", same_cache=True)
    grid = "phases.phase2.lr=2e-3,2e-2"
    dvc(root, "exp", "run", "--quiet", "--queue", "--set-param", grid, "evaluate@phase2")
    dvc(root, "queue", "start", "--quiet")
    wait_for(lambda: dvc(root, "queue", "status").count("Success") == 2, 120)
    assert git(root, "status", "--porcelain") == "" and not list(root.glob(".dvc/tmp/exps/tmp*"))
    table = dvc(root, "exp", "show", "--only-changed", "--csv", "--drop", "^(?!phases|evaluation)")
    head, *rows = [line.split(",") for line in table.splitlines()]
    figures = [name for name in head if "bits_per_byte" in name]
    assert figures == [
        "evaluation/phase2.bits_per_byte.json:letters/test.ema",
        "evaluation/phase2.bits_per_byte.json:notes/test.ema",
    ]
    lr = head.index("phases.phase2.lr")
    assert {row[lr] for row in rows} == {"0.005", "0.002", "0.02"}
    assert len({row[head.index(figures[0])] for row in rows}) == 3
    name = dvc(root, "exp", "list", "--name-only").split()[0]
    changes = dvc(root, "metrics", "diff", "HEAD", name)
    assert len(changes.splitlines()) == 3 and "letters/test.ema" in changes
    dvc(root, "plots", "diff", "HEAD", name, "--out", str(root / "dvc_plots"))
    page = (root / "dvc_plots/index.html").read_text()
    for words in ("phase2: training loss", "phase2: held-out text while training"):
        assert words in page
    assert "bits per byte" in page and "nats a token" in page and name in page
