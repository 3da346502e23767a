"""MLflow is fed from the history: twice changes nothing, and its absence costs training nothing."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tasks import cli
from tasks import recipe as recipes
from tasks.errors import BAD_DATA, NO_INPUT, UNAVAILABLE, UserError
from tasks.files import write_json
from tasks.recipe import Recipe
from tasks.registry import lineage, provenance, system_metrics, tracking
from tasks.registry.feed import Tail, points
from tasks.registry.local_store import move_along
from tasks.registry.mlflow_runs import BATCH
from tasks.registry.mlflow_server import TrackingError
from tasks.registry.mlflow_store import Store
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
    """The runs of the phases, by phase."""
    found = client(workspace).search_runs(["1"], "tags.`phasewise.phase` != ''")
    assert len({r.info.run_name for r in found}) == len(found), "a phase has two runs"
    return {r.info.run_name.split()[0]: r for r in found}


def pipelines(workspace: Workspace) -> list[Run]:
    return list(client(workspace).search_runs(["1"], "tags.`phasewise.pipeline` = 'true'"))


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
    used = {d.dataset.name: {t.value for t in d.tags} for d in run.inputs.dataset_inputs}
    assert used.pop("stdlib") == used.pop("packages") == {"train"}
    assert used == {name: {"eval"} for name in BITS["phase2"]}
    assert all(len(d.dataset.digest) == 36 for d in run.inputs.dataset_inputs)
    for name, (raw, ema) in BITS["phase2"].items():
        dotted = name.replace("/", ".")
        assert run.data.metrics[f"final_bits_per_byte/{dotted}.raw"] == raw
        assert run.data.metrics[f"final_bits_per_byte/{dotted}.ema"] == ema
    assert run.data.metrics["validation/stdlib/ema_bits_per_byte"] == 1.9091
    files = Path(run.info.artifact_uri.removeprefix("file://"))
    assert len(json.loads((files / "samples.json").read_text())["data"]) == 4
    assert json.loads((files / "recipe.json").read_text()) == recipe.resolved()
    assert (files / "plots/loss.svg").read_text().startswith("<svg")
    assert (files / "evaluation/phase2.json").read_bytes() == (
        workspace.evaluation("phase2").read_bytes()
    )


def test_the_phases_lie_below_one_run_of_the_pipeline_that_is_found_again(
    finished: tuple[Workspace, Recipe],
) -> None:
    workspace, recipe = finished
    tracking.sync_all(*finished)
    (workspace.report / "report.html").parent.mkdir()
    (workspace.report / "report.html").write_text("the report")
    said: list[str] = []
    tracking.sync_all(workspace, recipe, said.append)
    assert said == [
        "phase1: 0 points sent, finished",
        "phase2: 0 points sent, finished",
        "pipeline: report.html sent",
    ]
    [pipeline] = pipelines(workspace)
    assert {r.data.tags["mlflow.parentRunId"] for r in runs(workspace).values()} == {
        pipeline.info.run_id
    }
    assert pipeline.data.params["phases.phase2.lr"] == "0.001"
    assert pipeline.data.params["sources.packages.max_bytes"] == "12000000"
    assert pipeline.data.metrics["final_bits_per_byte/packages.test.ema"] == 1.7474
    assert pipeline.info.start_time == int(STARTED * 1000)
    assert pipeline.info.status == "FINISHED"
    files = Path(pipeline.info.artifact_uri.removeprefix("file://"))
    assert {p.name for p in files.iterdir()} == {"params.yaml", "report.html", "ledger.json"}
    ledger = json.loads((files / "ledger.json").read_text())
    assert ["stdlib", "clean", 1200, 120000, "not english 7, too short 23"] in [
        row[:5] for row in ledger["data"]
    ]
    for run in runs(workspace).values():
        assert f"runs/{run.info.run_id}" in pipeline.data.tags["mlflow.note.content"]


def test_another_recipe_is_another_pipeline_and_a_shared_phase_stays_where_it_was(
    finished: tuple[Workspace, Recipe],
) -> None:
    workspace = finished[0]
    first = tracking.sync_all(*finished)
    text = (workspace.root / "params.yaml").read_text()
    (workspace.root / "params.yaml").write_text(text.replace("lr: 1e-3", "lr: 2e-3"))
    records = history("phase2")
    records[0]["run_key"] = "demo/phase2/another"
    records[0]["fingerprint"] = "another"
    (workspace.metrics("phase2") / "history.jsonl").unlink()
    append(workspace.metrics("phase2") / "history.jsonl", records)
    second = tracking.sync_all(workspace, recipes.load(workspace.root / "params.yaml"))
    assert second["phase1"] == first["phase1"] and second["phase2"] != first["phase2"]
    old, new = sorted(pipelines(workspace), key=lambda r: r.data.params["phases.phase2.lr"])
    assert new.data.params["phases.phase2.lr"] == "0.002"
    parents = {
        run: client(workspace).get_run(run).data.tags["mlflow.parentRunId"]
        for run in (*first.values(), *second.values())
    }
    assert parents == {
        first["phase1"]: old.info.run_id,
        first["phase2"]: old.info.run_id,
        second["phase2"]: new.info.run_id,
    }


def test_a_pipeline_whose_phases_ended_before_it_was_made_has_ended_too(
    finished: tuple[Workspace, Recipe],
) -> None:
    tracking.sync_all(*finished)
    [made] = pipelines(finished[0])
    client(finished[0]).update_run(made.info.run_id, "RUNNING")
    tracking.sync_all(*finished)
    [found] = pipelines(finished[0])
    assert found.info.status == "FINISHED" and found.info.end_time == made.info.end_time


def test_what_evaluation_does_not_train_is_no_other_pipeline(tmp_path: Path) -> None:
    workspace, recipe = make_workspace(tmp_path, tracked=False)
    text = (workspace.root / "params.yaml").read_text()
    (workspace.root / "params.yaml").write_text(
        text.replace("temperature: 0.7", "temperature: 0.1")
    )
    other = recipes.load(workspace.root / "params.yaml")
    assert other.fingerprint != recipe.fingerprint
    assert lineage.pipeline_key(other) == lineage.pipeline_key(recipe)


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
    assert run.data.metrics["final_bits_per_byte/stdlib.test.raw"] == 1.0


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
    append(folder / "history.jsonl", [last | {"loss": None, "grad_norm": float("nan")}])
    append(folder / "history.jsonl", history("phase1")[-1:])
    figures = {"raw": {"bits_per_byte": float("inf"), "perplexity": 1.0}}
    workspace.evaluation("phase1").write_text(json.dumps({"stdlib/test": figures}))
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
    follow = [sys.executable, "-m", "tasks.registry.tracking", "follow", str(folder)]
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
    assert provenance.without_credentials("https://h/x?private_token=abc&a=1#b s3://b?sig=z") == (
        "https://h/x?private_token=***&a=1#b s3://b?sig=***"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "topsecret")
    assert "topsecret" not in provenance.without_credentials("401 for 'Bearer topsecret'")
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


def test_sync_says_what_was_sent_and_while_mlflow_is_away_what_is_left(
    finished: tuple[Workspace, Recipe],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(finished[0].root)
    Path("dvc.yaml").touch()
    Path("recipes").mkdir()
    monkeypatch.setattr(sys, "argv", ["phasewise", "sync"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", closed_port())
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == UNAVAILABLE
    assert "left to send: 192 points of phase1, 112 points of phase2" in capsys.readouterr().err
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(SystemExit) as sent:
        cli.main()
    assert sent.value.code in (0, None)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "phase1: 200 points sent, finished"  # with the 8 of its evaluation
    assert said[-1] == "pipeline: params.yaml, ledger.json sent"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("train/loss", "train/loss"),
        ("a//b", "a/b"),
        ("../../etc", "etc"),
        ("/x/", "x"),
        ("50 % <b>", "50 _ _b_"),
        ("", "_"),
        ("é日", "é日"),
        ("x" * 300, "x" * 250),
    ],
)
def test_any_text_makes_a_name_that_mlflow_takes(text: str, name: str) -> None:
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name

    assert provenance.record_name(text) == name
    _validate_metric_name(name)
    _validate_param_name(name)


def test_parameters_and_tags_of_any_length_and_name_are_taken(tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path)
    store = Store(workspace.root)
    tags = {"long": "t" * 9000, "odd?name": "https://me:secret@host/x"}
    run = store.ensure_run(store.experiment("demo"), "key", "phase1", 1000, tags)
    store.add(run, {"long": "p" * 9000, "x/../?": "1"}, [])
    store.add(store.get_run(run.info.run_id), {"long": "another"}, [])  # MLflow lets none change
    found = store.get_run(run.info.run_id).data
    assert found.params == {"long": "p" * 5000, "x/_": "1"}
    assert found.tags["odd_name"] == "https://host/x" and len(found.tags["long"]) == 5000


def test_the_machine_is_looked_at_while_a_phase_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, recipe = make_workspace(tmp_path)
    folder = start_running(workspace, steps=5)
    cut = '{"kind": "sys'  # a crash while it was written
    (folder / "system.jsonl").write_text(cut)
    monkeypatch.setattr(system_metrics, "SECONDS", 0.05)
    monkeypatch.setattr(tracking, "POLL_SECONDS", 0.02)

    def end() -> None:
        wait_for(lambda: (folder / "system.jsonl").read_text().count("\n") > 3)
        append(folder / "history.jsonl", history("phase1")[-1:])

    threading.Thread(target=end).start()
    assert tracking.main(["follow", str(folder)]) == 0
    run = runs(workspace)["phase1"]
    looks = [json.loads(line) for line in (folder / "system.jsonl").read_text().splitlines()]
    assert len(looks) > 3 and {look["tokens"] for look in looks} == {5 * BATCH_TOKENS}
    tracking.sync(workspace, recipe, "phase1", folder)
    for name in ("cpu_utilization_percentage", "trainer_memory_megabytes"):
        sent = values(workspace, run, f"system/{name}")
        assert [step for step, _, _ in sent] == [5 * BATCH_TOKENS] * len(looks)
    assert all(0 < value < 1e7 for _, value, _ in sent)


def test_a_gpu_is_looked_at_through_nvidia_smi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text(
        "#!/bin/sh\necho '0, 97, 40000, 80000, 310.5'\necho '1, [N/A], 1, 80000, [N/A]'\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    figures = system_metrics.Machine(os.getpid(), tmp_path).figures()
    assert figures["gpu_0_utilization_percentage"] == 97
    assert figures["gpu_0_memory_usage_percentage"] == 50
    assert figures["gpu_0_power_usage_watts"] == 310.5
    assert "gpu_1_utilization_percentage" not in figures
    assert math.isclose(figures["gpu_0_memory_usage_megabytes"], 41943, abs_tol=1)
    fake.write_text("#!/bin/sh\nexit 9\n")
    assert "gpu_0_power_usage_watts" not in system_metrics.Machine(os.getpid(), tmp_path).figures()


def test_figures_of_the_machine_that_are_no_numbers_are_left_out() -> None:
    record = {"kind": "system", "tokens": 1, "time": 2.0, "figures": {"a": float("nan"), "b": 3}}
    assert [p.name for p in points([record], 10)] == ["system/b"]


def test_a_moved_folder_takes_its_artifacts_along(
    finished: tuple[Workspace, Recipe], tmp_path: Path
) -> None:
    recipe = finished[1]
    tracking.sync_all(*finished)
    new = tmp_path.with_name(tmp_path.name + " moved")
    tmp_path.rename(new)
    moved = Workspace(new)
    store = Store(new)
    for run in runs(moved).values():
        assert run.info.artifact_uri.startswith((new / "mlartifacts").as_uri())
        listed = {f.path for f in store.client.list_artifacts(run.info.run_id)}
        assert {"plots", "evaluation", "samples.json"} <= listed
    said: list[str] = []
    tracking.sync_all(moved, recipe, said.append)
    assert said[-1] == "pipeline: nothing new"
    assert move_along(new / "mlflow.db") == 0
    new.rename(tmp_path)
