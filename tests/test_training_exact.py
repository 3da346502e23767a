"""Stopped anywhere and gone on with, a phase ends with the bytes of a run that never stopped."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tasks import recipe as recipes
from tasks.errors import UserError
from tasks.files import sha256_file
from tasks.training.history import read_history
from tasks.training.init import init
from tasks.training.train import train
from tasks.workspace import Workspace
from tests.places import ROOT
from tests.warm import run_stage

WEIGHTS = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json")


def hashes(root: Path, phase: str = "phase1") -> dict[str, str]:
    return {name: sha256_file(root / "checkpoints" / phase / name) for name in WEIGHTS}


def logged(root: Path, phase: str = "phase1") -> list[dict[str, Any]]:
    """The record without what a clock or an interruption changes."""
    records = read_history(root / "metrics" / phase / "history.jsonl")
    free = {"time", "tokens_per_second", "seconds", "data_seconds"}
    return [
        {k: v for k, v in r.items() if k not in free}
        for r in records
        if r.get("event") != "resumed" and r["kind"] != "pause"
    ]


def command(root: Path, phase: str = "phase1") -> list[str]:
    return [sys.executable, "-m", "tasks.training.train", phase, "--root", str(root)]


@pytest.fixture(scope="module")
def straight(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which phase 1 was trained without a stop."""
    root = tmp_path_factory.mktemp("straight") / "work"
    shutil.copytree(tiny, root)
    done = run_stage(root)
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture(scope="module")
def stopped(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which phase 1 was stopped after step 5 and again after step 9."""
    root = tmp_path_factory.mktemp("stopped") / "work"
    shutil.copytree(tiny, root)
    for step in ("5", "9"):
        done = run_stage(root, PHASEWISE_STOP_AT_STEP=step, PHASEWISE_KEEP_CHECKPOINTS="9")
        assert done.returncode == 75 and f"stopped at step {step}" in done.stderr
    return root


@pytest.fixture
def begun(stopped: Path, tmp_path: Path) -> Path:
    """A copy of it, to go on with."""
    shutil.copytree(stopped, tmp_path / "begun")
    return tmp_path / "begun"


@pytest.fixture
def work(tiny: Path, tmp_path: Path) -> Path:
    """A fresh workspace, ready to train."""
    shutil.copytree(tiny, tmp_path / "work")
    return tmp_path / "work"


def test_a_run_that_stops_after_every_few_steps_equals_the_straight_run(
    straight: Path, begun: Path
) -> None:
    assert run_stage(begun, PHASEWISE_STOP_AT_STEP="12").returncode == 75
    assert run_stage(begun).returncode == 0
    assert hashes(begun) == hashes(straight)
    assert logged(begun) == logged(straight)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_equals_the_straight_run(straight: Path, work: Path) -> None:
    chance = random.Random(time.time_ns())
    kills = 0
    # slow the loop down so that kills land inside it: a checkpoint each step, one thread
    for _ in range(4):
        child = subprocess.Popen(
            command(work), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        history = work / "runs/phase1/history.jsonl"
        before = history.stat().st_mtime_ns if history.exists() else 0
        while child.poll() is None and (
            not history.exists() or history.stat().st_mtime_ns == before
        ):
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.4))
        child.send_signal(signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
        if (work / "checkpoints/phase1").exists():
            break
    assert kills > 0
    assert run_stage(work).returncode == 0
    assert hashes(work) == hashes(straight)
    assert logged(work) == logged(straight)


def test_sigterm_finishes_the_step_saves_and_leaves(straight: Path, work: Path) -> None:
    child = subprocess.Popen(command(work), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    history = work / "runs/phase1/history.jsonl"
    while not history.exists() or len(read_history(history)) < 4:
        assert child.poll() is None
        time.sleep(0.002)
    child.send_signal(signal.SIGTERM)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 143 and "its checkpoint is whole" in errors
    assert list((work / "runs/phase1").glob("step-*"))
    assert run_stage(work).returncode == 0
    assert hashes(work) == hashes(straight)


def test_the_second_phase_carries_the_optimizer_and_is_exact_too(
    straight: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        shutil.copytree(straight, tmp_path / name)
    assert run_stage(tmp_path / "a", "phase2").returncode == 0
    assert run_stage(tmp_path / "b", "phase2", PHASEWISE_STOP_AT_STEP="4").returncode == 75
    assert run_stage(tmp_path / "b", "phase2").returncode == 0
    assert hashes(tmp_path / "a", "phase2") == hashes(tmp_path / "b", "phase2")
    state = json.loads((tmp_path / "a/checkpoints/phase2/state.json").read_text())
    assert state["updates"] == 60 + 10


@pytest.mark.parametrize("part", ["model", "ema", "optimizer"])
def test_a_resume_that_loses_a_part_of_the_state_is_seen(
    straight: Path, begun: Path, part: str
) -> None:
    """The test above can fail: with any one part put back to an earlier step, the bytes differ."""
    from tasks.training import checkpoint

    older, newer = (begun / f"runs/phase1/step-00000000{step}" for step in (5, 9))
    shutil.copy(older / f"{part}.safetensors", newer)
    (newer / "manifest.json").unlink()
    checkpoint.seal(newer)
    assert run_stage(begun).returncode == 0
    assert hashes(begun)[f"{part}.safetensors"] != hashes(straight)[f"{part}.safetensors"]


def test_other_micro_batches_give_the_same_run_within_float_order(
    straight: Path, work: Path
) -> None:
    plain = (work / "params.yaml").read_text().replace("resid_dropout: 0.1", "resid_dropout: 0.0")
    losses = []
    for number, tokens in enumerate(("32", "64", "256")):
        root = work.parent / str(number)
        shutil.copytree(work, root)
        (root / "params.yaml").write_text(plain)
        init(Workspace(root), recipes.load(root / "params.yaml"))
        assert run_stage(root, PHASEWISE_MICRO_BATCH_TOKENS=tokens).returncode == 0
        losses.append([r["loss"] for r in logged(root) if r["kind"] == "train"])
    assert losses[0] == pytest.approx(losses[2], rel=1e-4)
    assert losses[1] == pytest.approx(losses[2], rel=1e-4)


def test_a_run_of_other_settings_is_set_aside_and_named(begun: Path) -> None:
    text = (begun / "params.yaml").read_text()
    (begun / "params.yaml").write_text(text.replace("lr: 1e-2", "lr: 2e-2"))
    done = run_stage(begun)
    assert done.returncode == 0
    assert "set aside as phase1.aside-1 (phase.lr: 0.01 -> 0.02)" in done.stdout
    assert list((begun / "runs/phase1.aside-1").glob("step-*"))


def test_settings_that_do_not_touch_the_weights_leave_a_run_alone(
    straight: Path, begun: Path
) -> None:
    text = (begun / "params.yaml").read_text()
    (begun / "params.yaml").write_text(
        text.replace("validation_tokens: 2K", "validation_tokens: 1K")
    )
    done = run_stage(begun)
    assert "going on from step 9" in done.stdout
    assert hashes(begun) == hashes(straight)


def test_a_finished_run_is_placed_again_without_training(straight: Path, tmp_path: Path) -> None:
    root = tmp_path / "work"
    shutil.copytree(straight, root)
    shutil.rmtree(root / "checkpoints/phase1")
    started = time.monotonic()
    done = run_stage(root)
    assert "going on from step 60" in done.stdout and time.monotonic() - started < 30
    assert hashes(root) == hashes(straight)


def test_two_trainers_of_one_phase_do_not_meet(work: Path) -> None:
    from tasks.files import exclusive

    (work / "runs/phase1").mkdir(parents=True)
    with exclusive(work / "runs/phase1/.lock"):
        done = run_stage(work)
    assert done.returncode == 75
    assert f"in use by process {os.getpid()}" in done.stderr


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched(work: Path) -> None:
    text = (work / "params.yaml").read_text()
    (work / "params.yaml").write_text(text.replace("lr: 1e-2", "lr: 1e30"))
    done = run_stage(work)
    assert done.returncode == 3
    assert "loss" in done.stderr and "samples" in done.stderr
    assert not (work / "checkpoints/phase1").exists()


def test_a_missing_start_names_the_command_that_makes_it(work: Path) -> None:
    with pytest.raises(UserError, match="dvc repro train@phase1"):
        train(Workspace(work), recipes.load(work / "params.yaml"), "phase2")
