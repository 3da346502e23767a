"""MLflow is fed from the history: twice changes nothing, and its absence costs training nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tasks.errors import BAD_DATA, NO_INPUT, UNAVAILABLE, UserError
from tasks.files import write_json
from tasks.recipe import Recipe
from tasks.release import provenance, tracking
from tasks.release.feed import Tail
from tasks.release.mlflow_store import BATCH, Store, TrackingError
from tasks.workspace import Workspace
from tests.places import ROOT
from tests.release_workspace import (
    BATCH_TOKENS,
    BITS,
    STARTED,
    STEPS,
    append,
    history,
    make_workspace,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRACKING_URI", "HTTP_REQUEST_MAX_RETRIES", "HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(f"MLFLOW_{name}", "")  # so that what is set below is undone
        monkeypatch.delenv(f"MLFLOW_{name}")


@pytest.fixture
def finished(tmp_path: Path) -> tuple[Workspace, Recipe]:
    return make_workspace(tmp_path)


def client(workspace: Workspace) -> MlflowClient:
    return MlflowClient(f"sqlite:///{workspace.root / 'mlflow.db'}")


def runs(workspace: Workspace) -> dict[str, Run]:
    found = client(workspace).search_runs(["1"])
    assert len({r.info.run_name for r in found}) == len(found), "a phase has two runs"
    return {r.info.run_name: r for r in found}


def values(workspace: Workspace, run: Run, name: str) -> list[tuple[int, float, int]]:
    found = client(workspace).get_metric_history(run.info.run_id, name)
    return [(m.step, m.value, m.timestamp) for m in found]


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def start_running(workspace: Workspace, steps: int) -> Path:
    folder = workspace.run("phase1")
    folder.mkdir(parents=True)
    append(folder / "history.jsonl", history("phase1", steps))
    return folder


def test_syncing_twice_makes_one_run_a_phase_and_sends_no_point_twice(
    finished: tuple[Workspace, Recipe],
) -> None:
    workspace = finished[0]
    first = tracking.sync_all(*finished)
    assert tracking.sync_all(*finished) == first
    assert {name: r.info.run_id for name, r in runs(workspace).items()} == first
    for phase, run in runs(workspace).items():
        sent = values(workspace, run, "train/loss")
        before = 0 if phase == "phase1" else STEPS["phase1"]
        records = [r for r in history(phase) if r["kind"] == "train"]
        assert sent == [
            (before * BATCH_TOKENS + r["tokens"], r["loss"], int(r["time"] * 1000)) for r in records
        ]
        assert run.info.status == "FINISHED"
        assert run.info.end_time == int((STARTED + before + STEPS[phase]) * 1000)


def test_a_run_carries_settings_data_lineage_samples_and_the_final_figures(
    finished: tuple[Workspace, Recipe],
) -> None:
    workspace, recipe = finished
    ids = tracking.sync_all(*finished)
    run = runs(workspace)["phase2"]
    assert run.data.params["lr"] == "0.001"
    assert run.data.params["model.d_model"] == "128"
    assert run.data.params["mixture.stdlib"] == "0.7"
    assert run.data.params["tokenizer.vocab_size"] == "4096"
    assert run.data.params["seed"] == "42"
    assert run.data.tags["phasewise.recipe_fingerprint"] == recipe.fingerprint
    assert run.data.tags["phasewise.parent_run_id"] == ids["phase1"]
    assert {d.dataset.name for d in run.inputs.dataset_inputs} == {"stdlib", "packages"}
    assert all(len(d.dataset.digest) == 36 for d in run.inputs.dataset_inputs)
    for name, (raw, ema) in BITS["phase2"].items():
        assert run.data.metrics[f"final/{name}/raw_bits_per_byte"] == raw
        assert run.data.metrics[f"final/{name}/ema_bits_per_byte"] == ema
    assert run.data.metrics["validation/stdlib/ema_bits_per_byte"] == 1.9091
    files = Path(run.info.artifact_uri.removeprefix("file://"))
    assert len(json.loads((files / "samples.json").read_text())["data"]) == 4
    assert json.loads((files / "recipe.json").read_text()) == recipe.resolved()
    assert (files / "plots/loss.svg").read_text().startswith("<svg")


def test_figures_of_a_new_evaluation_take_the_place_of_the_old(
    finished: tuple[Workspace, Recipe],
) -> None:
    workspace = finished[0]
    tracking.sync_all(*finished)
    figures = json.loads(workspace.evaluation("phase1").read_text())
    figures["stdlib/test"]["raw"]["bits_per_byte"] = 1.0
    write_json(workspace.evaluation("phase1"), figures)
    tracking.sync_all(*finished)
    run = runs(workspace)["phase1"]
    assert run.data.metrics["final/stdlib/test/raw_bits_per_byte"] == 1.0


def test_a_resumed_run_goes_on_in_the_same_mlflow_run_without_doubled_steps(tmp_path: Path) -> None:
    workspace, recipe = make_workspace(tmp_path)
    folder = start_running(workspace, steps=25)
    first = tracking.sync(workspace, recipe, "phase1", folder)
    again = history("phase1")
    for record in again[21:]:  # steps after the checkpoint of step 20 are done, and timed, again
        record["time"] += 3600
    (folder / "history.jsonl").unlink()
    append(folder / "history.jsonl", again)
    assert tracking.sync(workspace, recipe, "phase1", folder) == first
    sent = values(workspace, runs(workspace)["phase1"], "train/loss")
    assert [step for step, _, _ in sent] == [s * BATCH_TOKENS for s in range(1, 41)]


def test_more_points_than_one_request_takes_all_arrive(tmp_path: Path) -> None:
    workspace, recipe = make_workspace(tmp_path)
    folder = workspace.run("phase1")
    folder.mkdir(parents=True)
    header, step = history("phase1", 1)
    steps = [step | {"tokens": 10 * n, "step": n} for n in range(1, BATCH + 2)]
    append(folder / "history.jsonl", [header, *steps])
    tracking.sync(workspace, recipe, "phase1", folder)
    assert len(values(workspace, runs(workspace)["phase1"], "train/lr")) == BATCH + 1


def test_values_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    workspace, recipe = make_workspace(tmp_path)
    folder = start_running(workspace, steps=1)
    last = history("phase1", 2)[-1]
    append(folder / "history.jsonl", [last | {"loss": float("nan"), "grad_norm": None}])
    tracking.sync(workspace, recipe, "phase1", folder)
    run = runs(workspace)["phase1"]
    assert len(values(workspace, run, "train/loss")) == 1
    assert len(values(workspace, run, "train/lr")) == 2


def test_a_dead_server_is_an_error_in_words_without_its_password(
    finished: tuple[Workspace, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = closed_port().replace("//", "//somebody:secret@")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError) as caught:
        tracking.sync_all(*finished)
    assert caught.value.exit_code == UNAVAILABLE
    assert "secret" not in str(caught.value) and "127.0.0.1" in str(caught.value)
    where, error = tracking.reachable(finished[0])
    assert error is not None and "secret" not in where


def test_the_follower_of_a_dead_server_says_so_once_and_the_record_is_caught_up_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, recipe = make_workspace(tmp_path)
    folder = start_running(workspace, steps=10)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", closed_port())
    monkeypatch.setattr(tracking, "POLL_SECONDS", 0.02)
    end = threading.Timer(0.5, append, (folder / "history.jsonl", history("phase1")[-1:]))
    end.start()
    started = time.monotonic()
    assert tracking.main(["follow", str(folder)]) == UNAVAILABLE
    assert time.monotonic() - started < 10
    assert capsys.readouterr().err.count("training goes on without it") == 1
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    tracking.sync(workspace, recipe, "phase1", folder)
    assert len(values(workspace, runs(workspace)["phase1"], "train/loss")) == 10


def test_the_follower_goes_on_when_mlflow_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, _ = make_workspace(tmp_path)
    folder = start_running(workspace, steps=10)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", closed_port())
    monkeypatch.setattr(tracking, "POLL_SECONDS", 0.02)
    threading.Timer(0.3, os.environ.pop, ("MLFLOW_TRACKING_URI",)).start()
    rest = history("phase1")[len(history("phase1", 10)) :]
    threading.Timer(1.5, append, (folder / "history.jsonl", rest)).start()
    assert tracking.main(["follow", str(folder)]) == 0
    run = runs(workspace)["phase1"]
    assert run.info.status == "FINISHED"
    assert len(values(workspace, run, "train/loss")) == STEPS["phase1"]


def test_a_server_that_accepts_and_never_answers_holds_the_follower_for_seconds_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, _ = make_workspace(tmp_path)
    folder = start_running(workspace, steps=2)
    append(folder / "history.jsonl", history("phase1")[-1:])
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        started = time.monotonic()
        assert tracking.main(["follow", str(folder)]) == UNAVAILABLE
    assert time.monotonic() - started < 10


def test_the_follower_outlives_a_killed_trainer_just_long_enough_to_send_the_rest(
    tmp_path: Path,
) -> None:
    workspace, _ = make_workspace(tmp_path)
    folder = start_running(workspace, steps=3)
    follow = [sys.executable, "-m", "tasks.release.tracking", "follow", str(folder)]
    code = (
        f"import subprocess; p = subprocess.Popen({follow!r}); print(p.pid, flush=True); p.wait()"
    )
    trainer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    assert trainer.stdout is not None
    follower = int(trainer.stdout.readline())
    wait_for(lambda: client(workspace).get_experiment_by_name("demo") is not None)
    append(folder / "history.jsonl", history("phase1", 9)[4:])
    trainer.send_signal(signal.SIGKILL)
    trainer.communicate()
    wait_for(lambda: not Path(f"/proc/{follower}").exists())
    run = runs(workspace)["phase1"]
    assert run.info.status == "KILLED"
    assert len(values(workspace, run, "train/loss")) == 9


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_follower_whose_trainer_is_gone_already_sends_what_there_is_and_ends(
    tmp_path: Path,
) -> None:
    workspace, _ = make_workspace(tmp_path)
    folder = start_running(workspace, steps=3)
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert tracking.main(["follow", str(folder), str(gone.pid)]) == 0
    assert runs(workspace)["phase1"].info.status == "KILLED"


def test_a_server_is_fed_over_http_and_its_password_is_printed_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, _ = make_workspace(tmp_path)
    folder = start_running(workspace, steps=STEPS["phase1"])
    append(folder / "history.jsonl", history("phase1")[-1:])
    address = closed_port()
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    serve = ["server", "--workers", "1", "--host", "127.0.0.1", "--port", address.split(":")[-1]]
    store = ["--backend-store-uri", f"sqlite:///{workspace.root / 'mlflow.db'}"]
    files = ["--artifacts-destination", str(tmp_path / "files")]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *serve, *store, *files],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(lambda: answers(address), seconds=60)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address.replace("//", "//me:secret@"))
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        done = subprocess.run(
            [sys.executable, "-m", "tasks.release.tracking", "follow", str(folder)],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    assert done.stdout + done.stderr == ""
    run = runs(workspace)["phase1"]
    assert run.info.status == "FINISHED" and run.info.artifact_uri.startswith("mlflow-artifacts:")
    assert len(values(workspace, run, "train/loss")) == STEPS["phase1"]
    assert list((tmp_path / "files").rglob("loss.svg"))


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def test_two_processes_that_make_the_same_run_end_with_one(tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path)
    one, other = Store(workspace.root), Store(workspace.root)
    experiment = one.experiment("demo")
    kept = one.ensure_run(experiment, "key", "phase1", 1000, {})
    find = other.run
    answers = iter([None])  # the other looked before the first had made it
    other.run = lambda *a: next(answers, find(*a))  # type: ignore[method-assign]
    assert other.ensure_run(experiment, "key", "phase1", 2000, {}).info.run_id == kept.info.run_id
    assert len(client(workspace).search_runs([experiment])) == 1


def test_a_tail_reads_only_whole_new_lines(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    tail = Tail(path)
    with pytest.raises(UserError) as missing:
        tail.read()
    assert missing.value.exit_code == NO_INPUT
    path.write_text('{"kind": "a"}\n{"kind"')
    assert tail.read() == [{"kind": "a"}]
    assert tail.read() == []
    path.write_text('{"kind": "a"}\n{"kind": "b"}\n')
    assert tail.read() == [{"kind": "b"}]
    path.write_text('{"kind": "c"}\n')  # cut: a resumed run begins again
    assert tail.read() == [{"kind": "c"}]


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"no": "kind"}', '"kind"'])
def test_a_broken_history_is_named_by_file_and_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('{"kind": "run"}\n' + line + "\n")
    with pytest.raises(UserError, match=r"history.jsonl:2: not a record") as caught:
        Tail(path).read()
    assert caught.value.exit_code == BAD_DATA


def test_the_command_says_how_it_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    assert tracking.main(["folow", "runs/phase1"]) == 2
    assert "follow runs/<phase> [pid of the trainer]" in capsys.readouterr().err


def test_asking_whether_mlflow_is_there_makes_no_database(tmp_path: Path) -> None:
    assert tracking.reachable(Workspace(tmp_path))[1] is None
    assert not list(tmp_path.iterdir())


def test_addresses_are_written_down_without_passwords(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert provenance.without_credentials("see https://me:pw@host/x and sqlite:////a@b/c") == (
        "see https://host/x and sqlite:////a@b/c"
    )
    assert provenance.shown_uri(tmp_path) == "sqlite:///mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://token@host:5000")
    assert provenance.shown_uri(tmp_path) == "https://host:5000"


def test_git_tags_name_commit_and_remote_without_its_token(tmp_path: Path) -> None:
    assert provenance.git_tags(tmp_path) == {}
    for command in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "x"],
        ["remote", "add", "origin", "https://token@example.org/me/it.git"],
    ):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    tags = provenance.git_tags(tmp_path)
    assert len(tags["mlflow.source.git.commit"]) == 40
    assert tags["phasewise.git_dirty"] == "false"
    assert tags["mlflow.source.git.repoURL"] == "https://example.org/me/it.git"
    (tmp_path / "new").touch()
    assert provenance.git_tags(tmp_path)["phasewise.git_dirty"] == "true"
