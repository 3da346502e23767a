"""Stages side by side: as many as allowed, one on the accelerator, and none left behind."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.testing.utilities import prefect_test_harness

from flows import accelerator
from flows.crew import Crew
from flows.data import data
from flows.outcome import exit_code
from flows.pipeline import pipeline
from flows.pretrain import pretrain
from flows.supervise import Leash, Stopped, supervise
from flows.walk import Walk
from tasks.errors import BUSY, NO_INPUT, USAGE
from tests import flows_toy
from tests.places import ROOT


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PHASEWISE_ACCELERATOR_LOCK", str(tmp_path / "accelerator.lock"))
    monkeypatch.setenv("PHASEWISE_STAGES_AT_ONCE", "4")
    return flows_toy.make(tmp_path)


def spans(root: Path) -> dict[str, tuple[float, float]]:
    """When each stage began and ended."""
    lines = (root / "spans").read_text().splitlines()
    return {name: (float(a), float(b)) for name, a, b in map(str.split, lines)}


def overlap(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] < b[1] and b[0] < a[1]


def test_stages_run_side_by_side_and_never_two_on_the_accelerator(toy: Path) -> None:
    (toy / "slow-download").write_text("2")
    for stage in accelerator.STAGES:
        (toy / f"slow-{stage}").write_text("0.3")
    assert exit_code(pipeline(return_state=True)) == 0
    ran = spans(toy)
    assert overlap(ran["download@stdlib"], ran["download@packages"])
    busy = [(name, span) for name, span in ran.items() if accelerator.needed_by(name)]
    assert len(busy) >= 4
    for i, (name, span) in enumerate(busy):
        for other, its in busy[:i]:
            assert not overlap(span, its), f"{name} beside {other}"
    assert "up to date" in flows_toy.run(toy, "dvc", "status")


def test_after_a_failure_nothing_begins_and_what_runs_ends_well(toy: Path) -> None:
    (toy / "fail-download-stdlib").write_text(str(NO_INPUT))
    (toy / "slow-download-packages").write_text("3")
    state = data(return_state=True)
    assert exit_code(state) == NO_INPUT
    assert state.message is not None and state.message.startswith("download@stdlib failed")
    assert "download@packages" in spans(toy)
    assert flows_toy.times_run(toy, "clean") == 0
    (toy / "fail-download-stdlib").unlink()
    assert exit_code(data(return_state=True)) == 0
    assert flows_toy.times_run(toy, "download") == 3  # the one that ended well is not run again


def test_no_more_begin_than_allowed(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import dag

    story = dag.load()
    walk = Walk(story, story.stages, None, frozenset(), None)
    assert walk._next({}, set()) == ["download@stdlib", "download@packages"]
    monkeypatch.setenv("PHASEWISE_STAGES_AT_ONCE", "1")
    assert walk._next({}, set()) == ["download@stdlib"]
    assert walk._next({}, {"download@stdlib"}) == []


def test_changes_are_in_the_recipe_and_the_status_is_clean(toy: Path) -> None:
    state = pretrain("phase2", tokens="320", set=["phases.phase2.lr=2e-3"], return_state=True)
    assert exit_code(state) == 0
    text = (toy / "params.yaml").read_text()
    assert "    tokens: 320 # the short one\n" in text and "    lr: 2e-3\n" in text
    assert "up to date" in flows_toy.run(toy, "dvc", "status", "--with-deps", "train@phase2")


def test_a_wrong_change_is_refused_before_anything_runs(toy: Path) -> None:
    before = (toy / "params.yaml").read_text()
    for given, words in (
        ({"phase": "phase2", "set": ["phases.phase2.tokns=1M"]}, "phases.phase2.tokens"),
        ({"phase": "phase2", "tokens": "many"}, "expected a count"),
        ({"phase": "phase3", "tokens": "1M"}, "phase1, phase2"),
    ):
        state = pretrain(**given, return_state=True)
        assert exit_code(state) == USAGE
        assert state.message is not None and words in state.message
    assert (toy / "params.yaml").read_text() == before
    assert flows_toy.times_run(toy, "download") == 0


def test_without_upstream_what_is_stale_is_named_and_left(toy: Path) -> None:
    flows_toy.run(toy, "dvc", "repro", "train@phase2")
    flows_toy.edit_params(toy, "vocab_size: 320", "vocab_size: 384")
    state = pretrain("phase2", upstream=False, force=True, return_state=True)
    assert exit_code(state) == 0 and state.message is not None
    assert "1 of 1 stages run" in state.message
    assert "is out of date and was left so: tokenizer" in state.message
    assert flows_toy.times_run(toy, "tokenizer") == 1


def test_the_recipe_does_not_change_below_a_stage_that_runs(toy: Path) -> None:
    (toy / "slow-download").write_text("60")
    other = subprocess.Popen(
        ["dvc", "repro", "--single-item", "download@stdlib"],
        cwd=toy, env=flows_toy.environment(), stdout=subprocess.DEVNULL, process_group=0,
    )  # fmt: skip
    try:
        while not flows_toy.times_run(toy, "download"):
            time.sleep(0.05)
        state = pretrain("phase1", tokens=2048, return_state=True)
    finally:
        os.killpg(other.pid, signal.SIGKILL)
        other.wait()
    assert exit_code(state) == BUSY
    assert state.message is not None and "while DVC runs a stage" in state.message
    assert "2048" not in (toy / "params.yaml").read_text()


def test_an_exception_in_the_main_thread_ends_the_children_of_all_threads(tmp_path: Path) -> None:
    code = (
        "import pathlib, signal, sys, time\n"
        "def leave(*_): pathlib.Path(sys.argv[1]).write_text('saved'); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, leave)\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    ready = threading.Semaphore(0)
    raised: list[type[BaseException]] = []

    def work(crew: Crew, path: str) -> None:
        try:
            command = [sys.executable, "-c", code, path]
            supervise(command, lambda line: ready.release(), leash=crew.leash, cwd=tmp_path)
        except BaseException as error:
            raised.append(type(error))
            raise

    with pytest.raises(KeyboardInterrupt), Crew() as crew:
        for path in ("one", "two"):
            crew.start(path, lambda path=path: work(crew, path))  # type: ignore[misc]
        for _ in range(2):
            assert ready.acquire(timeout=60)
        raise KeyboardInterrupt
    assert (tmp_path / "one").exists() and (tmp_path / "two").exists()
    assert raised == [Stopped, Stopped]
    with pytest.raises(Stopped):
        supervise([sys.executable, "-c", ""], print, leash=crew.leash)


def test_two_runs_wait_for_each_other_and_a_killed_one_frees_the_accelerator(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lock, logger = tmp_path / "accelerator.lock", logging.getLogger("accelerator")
    code = (
        "import sys, time, logging\nfrom pathlib import Path\n"
        "from flows.accelerator import held\nfrom flows.supervise import Leash\n"
        "with held(Path(sys.argv[1]), 'train@phase1', Leash(), logging.getLogger()):\n"
        "    print('held', flush=True)\n    time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    pulled = Leash()
    pulled.pulled.set()
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(Stopped),
        accelerator.held(lock, "b", pulled, logger),
    ):
        raise AssertionError("two held it")
    assert "in use by train@phase1" in caplog.text
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with accelerator.held(lock, "b", Leash(), logger) as handle:
        child = subprocess.Popen(["sleep", "60"], pass_fds=[handle])
    with pytest.raises(Stopped), accelerator.held(lock, "c", pulled, logger):
        raise AssertionError("a stage that still ends keeps it")
    child.kill()
    child.wait()


def test_help_and_errors_of_changes_on_the_command_line(toy: Path) -> None:
    said = flows_toy.run(
        toy, sys.executable, "-m", "flows.pretrain", "phase2", "--set", "phases.phase2.lrr=1",
        check=False,
    )  # fmt: skip
    assert said.startswith("error: params.yaml: phases.phase2.lrr: unknown key")
    assert "did you mean phases.phase2.lr?" in said and "Traceback" not in said
