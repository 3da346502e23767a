"""A stage as a Prefect task: what DVC did is what the state says, and what may pass is retried."""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType
from prefect.states import Crashed, Running
from prefect.testing.utilities import prefect_test_harness

from flows import artifacts
from flows.automation import FLOWS, end_orphans
from flows.data import data
from flows.outcome import InWords, exit_code, failed, worth_retrying
from flows.pipeline import pipeline
from flows.pretrain import pretrain
from flows.release import release
from flows.stage import Heard, run_stage
from tasks.errors import BUSY, NO_INPUT, UNAVAILABLE, USAGE, UserError
from tasks.workspace import Workspace
from tests import flows_toy

STAGE = "download@stdlib"


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=90):
        yield


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return flows_toy.make(tmp_path)


def run(address: str = STAGE, retries: int = 3, **options: Any) -> State[Any]:
    """Run one stage within a flow, with no time between retries."""
    states = []

    @flow
    def one() -> None:
        task = run_stage.with_options(retries=retries, retry_delay_seconds=0)
        states.append(task(address, return_state=True, **options))

    one()
    return states[0]


def test_a_stage_runs_once_and_is_cached_after_that_and_runs_again_by_force(toy: Path) -> None:
    assert run().name == "Completed"
    assert run().name == "Cached"
    assert flows_toy.times_run(toy, "download") == 1
    assert run(force=True).name == "Completed"
    assert flows_toy.times_run(toy, "download") == 2
    assert flows_toy.run(toy, "dvc", "status", STAGE).strip().endswith("up to date.")


def test_a_usage_error_is_told_in_the_stages_words_and_is_not_retried(toy: Path) -> None:
    (toy / "fail-download").write_text(str(USAGE))
    state = run()
    assert state.name == "Failed"
    assert exit_code(state) == USAGE
    assert state.message is not None
    assert "toy.txt: it is broken" in state.message and "mend it" in state.message
    assert flows_toy.times_run(toy, "download") == 1


def test_a_stage_killed_by_a_signal_is_retried(toy: Path) -> None:
    (toy / "die-download").write_text("")
    assert run().name == "Completed"
    assert flows_toy.times_run(toy, "download") == 2


def test_force_starts_from_the_beginning_and_a_retry_goes_on(toy: Path) -> None:
    (toy / "die-download").write_text("")
    assert run(force=True).name == "Completed"
    assert (toy / "ran-download").read_text() == "stdlib true\nstdlib false\n"


def test_retries_come_to_an_end(toy: Path) -> None:
    (toy / "fail-download").write_text(str(BUSY))
    assert exit_code(run(retries=1)) == BUSY
    assert flows_toy.times_run(toy, "download") == 2


def test_a_stage_that_another_process_runs_is_busy(toy: Path) -> None:
    (toy / "slow-download").write_text("30")
    other = subprocess.Popen(
        ["dvc", "repro", "--single-item", STAGE],
        cwd=toy,
        env=flows_toy.environment(),
        stdout=subprocess.DEVNULL,
        process_group=0,
    )
    try:
        while not flows_toy.times_run(toy, "download"):
            time.sleep(0.05)
        state = run(retries=0)
    finally:
        os.killpg(other.pid, signal.SIGKILL)
        other.wait()
    assert exit_code(state) == BUSY
    assert state.message is not None and "is busy" in state.message


def test_a_stage_that_takes_too_long_is_stopped_and_not_retried(toy: Path) -> None:
    (toy / "slow-download").write_text("60")
    state = run(timeout=2)
    assert state.name == "TimedOut" and state.is_failed()
    assert flows_toy.times_run(toy, "download") <= 1  # 0: dvc itself took as long to begin


def test_an_unknown_stage_is_a_failure_in_dvcs_words(toy: Path) -> None:
    state = run("download@nowhere")
    assert state.is_failed()
    assert state.message is not None and "'download@nowhere' not found" in state.message


def test_a_flow_stops_at_the_first_failure_with_its_message_and_exit_code(toy: Path) -> None:
    (toy / "fail-clean-stdlib").write_text(str(NO_INPUT))
    state = pretrain("phase1", return_state=True)
    assert state.is_failed()
    assert exit_code(state) == NO_INPUT
    assert state.message is not None and state.message.startswith("clean@stdlib failed")
    assert flows_toy.times_run(toy, "dedup") == 0


def test_a_flow_refuses_a_phase_that_the_recipe_has_not(toy: Path) -> None:
    state = pretrain("phase3", return_state=True)
    assert exit_code(state) == USAGE
    assert state.message is not None
    assert "no phase 'phase3'" in state.message and "phase1, phase2" in state.message
    assert flows_toy.times_run(toy, "download") == 0


@pytest.mark.parametrize(
    ("code", "again"),
    [(BUSY, True), (UNAVAILABLE, True), (137, True), (143, True)]
    + [(code, False) for code in (1, 2, 3, 65, 66, 70, 73, 255)],
)
def test_only_what_may_pass_by_itself_is_retried(code: int, again: bool) -> None:
    assert worth_retrying(None, None, failed("x", code)) is again


@pytest.mark.parametrize(
    ("lines", "code", "reason"),
    [
        (
            ["Running stage 'a':", "error: b", "hint: c", "more",
             "ERROR: failed to reproduce 'a': failed to run: python x y, exited with 65"],
            65, "failed with exit code 65: b\nhint: c",
        ),
        (
            ["Running stage 'a':", "Traceback (most recent call last):", "KeyError: 'x'",
             "ERROR: failed to reproduce 'a': failed to run: python x, exited with 1"],
            1, "failed with exit code 1: KeyError: 'x'",
        ),
        (
            ["Running stage 'a':", "step 3",
             "ERROR: failed to reproduce 'a': failed to run: python x, exited with -9"],
            137, "was ended by SIGKILL",
        ),
        (
            ["ERROR: failed to reproduce 'a': output 'b' does not exist"],
            None, "could not run: output 'b' does not exist",
        ),
        (
            ["ERROR: failed to reproduce 'a': '/x/b' is busy, it is being blocked by:",
             "  (PID 5): dvc repro"],
            BUSY, "could not run: '/x/b' is busy, it is being blocked by:",
        ),
        ([], None, "could not run: dvc ended without a word"),
    ],
)  # fmt: skip
def test_why_a_stage_failed_is_learnt_from_what_was_said(
    lines: list[str], code: int | None, reason: str
) -> None:
    heard = Heard(logging.getLogger("quiet"))
    for line in lines:
        heard.line(line)
    assert heard.exit_code == code
    assert heard.reason == reason
    assert heard.started is ("Running stage 'a':" in lines)


def test_an_error_that_speaks_for_itself_leaves_no_traceback_in_the_log() -> None:
    def record(error: BaseException | None) -> logging.LogRecord:
        return logging.LogRecord(
            "x", logging.ERROR, "x", 1, "m", (), (type(error), error, None) if error else None
        )

    told, empty = record(UserError("x")), record(None)
    empty.exc_info = (None, None, None)
    assert not InWords().filter(told)
    assert InWords().filter(empty) and empty.exc_info is None
    assert InWords().filter(record(KeyError("x")))


def test_a_stage_that_runs_in_a_run_that_has_ended_is_shown_as_crashed() -> None:
    assert sorted(FLOWS) == sorted(f.name for f in (data, pipeline, pretrain, release))
    with get_client(sync_client=True) as client:

        def begun(end: State[Any] | None) -> UUID:
            run = client.create_flow_run(pretrain, state=Running())
            task = client.create_task_run(run_stage, run.id, dynamic_key="0", state=Running())
            if end:
                client.set_flow_run_state(run.id, end, force=True)
            return task.id

        alive, killed = begun(None), begun(Crashed())
        end_orphans()
        assert client.read_task_run(alive).state_type == StateType.RUNNING
        assert client.read_task_run(killed).state_type == StateType.CRASHED


def test_progress_follows_a_history_that_grows_and_starts_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[float, str]] = []

    def show(key: str, percent: float, description: str) -> str:
        shown.append((percent, description))
        return key

    def create(percent: float, key: str, description: str) -> str:
        return show(key, percent, description)

    monkeypatch.setattr(artifacts, "create_progress_artifact", create)
    monkeypatch.setattr(artifacts, "update_progress_artifact", show)

    def line(kind: str, **rest: Any) -> str:
        return json.dumps({"kind": kind} | rest) + "\n"

    def train(tokens: int) -> str:
        return line("train", tokens=tokens, loss=2.5, tokens_per_second=100.0)

    history = tmp_path / "runs/phase1/history.jsonl"
    history.parent.mkdir(parents=True)
    history.write_text(line("run", total_tokens=1000) + train(999))
    follower = artifacts.Follower(Workspace(tmp_path), "phase1", logging.getLogger("quiet"))
    follower._publish()
    assert shown == []  # an earlier run's
    history.write_text(line("run", total_tokens=1000) + train(100) + '{"kind": "tra')
    follower._publish()
    history.write_text(line("run", total_tokens=1000) + train(100) + train(400))
    follower._publish()
    assert [percent for percent, _ in shown] == [10.0, 40.0]
    assert "400 of 1K tokens" in shown[-1][1] and "6s left" in shown[-1][1]
    history.write_text(line("run", total_tokens=1000) + train(50))
    follower._publish()
    assert shown[-1][0] == 5.0


def test_the_page_of_a_phase_has_its_losses_measures_and_samples() -> None:
    records: list[dict[str, Any]] = [
        {"kind": "train", "step": i, "tokens": i * 1000, "loss": 9 - i / 50, "lr": 1e-3,
         "tokens_per_second": 5e4} for i in range(1, 101)
    ]  # fmt: skip
    records += [
        {"kind": "validation", "step": 50, "tokens": 50_000, "set": "old", "weights": "raw", "bits_per_byte": 9.0,
         "perplexity": 9.0},
        {"kind": "validation", "step": 100, "tokens": 100_000, "set": "news/validation",
         "weights": "ema", "bits_per_byte": 1.25, "perplexity": 20.0},
        {"kind": "sample", "step": 100, "tokens": 100_000, "prompt": "The ", "text": "cat\nsat"},
        {"kind": "event", "event": "finished"},
    ]  # fmt: skip
    page = artifacts.training_page("phase1", records, "[MLflow](http://127.0.0.1/)")
    assert page.count("e-03") == 12  # thinned
    assert "| 1K | 8.9800 |" in page and "| 100K | 7.0000 |" in page
    assert "| news/validation | ema | 1.2500 | 20.00 |" in page and "old" not in page
    assert "**The**" in page and "    cat\n    sat" in page
    assert "[MLflow](http://127.0.0.1/)" in page
    picture = re.search(r"!\[loss\]\(data:image/svg\+xml;base64,([\w+/=]+)\)", page)
    assert picture is not None and b"Training loss of phase1" in base64.b64decode(picture[1])


def test_a_phase_that_has_just_begun_has_a_page_too() -> None:
    assert artifacts.training_page("phase1", [{"kind": "run"}], "").startswith("# phase1")
