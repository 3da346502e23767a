"""Two processes train to what one does, go on from each other's checkpoints, and end cleanly."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tasks import recipe as recipes
from tasks.training.init import init
from tasks.workspace import Workspace
from tests.places import ROOT
from tests.test_training_exact import command, logged, run_stage

pytestmark = pytest.mark.slow
CLOSE = 2e-5  # float order: the same sums in another order


@pytest.fixture(scope="module")
def start(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace without dropout, whose masks would differ from rank to rank."""
    root = tmp_path_factory.mktemp("ranks") / "start"
    shutil.copytree(tiny, root)
    text = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(text.replace("resid_dropout: 0.1", "resid_dropout: 0.0"))
    init(Workspace(root), recipes.load(root / "params.yaml"))
    return root


@pytest.fixture(scope="module")
def alone(start: Path) -> Path:
    root = copy(start, "alone")
    assert run_stage(root).returncode == 0
    return root


def copy(start: Path, name: str) -> Path:
    return Path(shutil.copytree(start, start.parent / name))


def equal(one: Path, other: Path) -> None:
    """Same losses at every step, same weights and average, within float order."""
    losses = [[r["loss"] for r in logged(root) if r["kind"] == "train"] for root in (one, other)]
    assert len(losses[0]) == 60
    assert losses[0] == pytest.approx(losses[1], abs=CLOSE)
    norms = [
        [r["grad_norms"] for r in logged(root) if r["kind"] == "layers"] for root in (one, other)
    ]
    for first, second in zip(*norms, strict=True):
        assert first == pytest.approx(second, rel=1e-3)
    for name in ("model", "ema", "optimizer"):
        first, second = (
            load_file(root / f"checkpoints/phase1/{name}.safetensors") for root in (one, other)
        )
        assert first.keys() == second.keys()
        assert max((first[key] - second[key]).abs().max().item() for key in first) < 10 * CLOSE


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_train_to_what_one_does(start: Path, alone: Path, parallel: str) -> None:
    root = copy(start, parallel)
    done = run_stage(root, PHASEWISE_LAUNCH="2", PHASEWISE_PARALLEL=parallel)
    assert done.returncode == 0, done.stderr
    assert f"2 processes ({parallel})" in done.stdout
    assert done.stdout.count("train@phase1") == 1, "one process speaks for all"
    equal(alone, root)


def test_a_run_goes_on_with_another_number_of_processes(start: Path, alone: Path) -> None:
    root = copy(start, "changing")
    first = run_stage(root, PHASEWISE_LAUNCH="2", PHASEWISE_STOP_AT_STEP="20")
    assert first.returncode == 75 and "stopped at step 20" in first.stderr
    second = run_stage(root, PHASEWISE_STOP_AT_STEP="40")
    assert second.returncode == 75 and "processes 2 -> 1" in second.stdout
    assert run_stage(root, PHASEWISE_LAUNCH="2", PHASEWISE_PARALLEL="fsdp").returncode == 0
    equal(alone, root)


def begin(root: Path) -> subprocess.Popen[str]:
    """Start two ranks and wait until they train."""
    child = subprocess.Popen(
        command(root), cwd=ROOT, env=os.environ | {"PHASEWISE_LAUNCH": "2"},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    history = root / "runs/phase1/history.jsonl"
    while not history.exists() or len(history.read_bytes().splitlines()) < 5:
        assert child.poll() is None
        time.sleep(0.01)
    return child


def ranks(root: Path) -> list[int]:
    """Process ids that train in ``root``, the one that launched them first."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(root).encode() in words and b"tasks.training.train" in words:
            found.append(int(folder.name))
    return sorted(found)


def test_a_rank_that_is_killed_takes_the_other_with_it_and_the_next_start_goes_on(
    start: Path, alone: Path
) -> None:
    root = copy(start, "killed")
    child = begin(root)
    os.kill(ranks(root)[-1], signal.SIGKILL)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 70 and "ended unexpectedly" in errors
    assert ranks(root) == []
    assert run_stage(root, PHASEWISE_LAUNCH="2").returncode == 0
    equal(alone, root)


def test_sigterm_reaches_all_ranks_and_leaves_a_checkpoint(start: Path, alone: Path) -> None:
    root = copy(start, "told")
    child = begin(root)
    child.send_signal(signal.SIGTERM)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 143 and errors.count("its checkpoint is whole") == 1
    assert ranks(root) == []
    assert list((root / "runs/phase1").glob("step-*"))
    assert run_stage(root).returncode == 0
    equal(alone, root)


def test_processes_that_cannot_share_a_step_are_refused(start: Path) -> None:
    root = copy(start, "three")
    done = run_stage(root, PHASEWISE_LAUNCH="3")
    assert done.returncode == 2
    assert "8 samples cannot be shared by 3 processes" in done.stderr
