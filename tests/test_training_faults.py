"""What goes wrong while training costs no more than it must, and is on the record."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tasks import recipe as recipes
from tasks.errors import UserError
from tasks.files import read_json
from tasks.tokens.mix import mix
from tasks.training import checkpoint, loop
from tasks.training.history import read_history
from tasks.training.state import TrainState
from tasks.training.train import train
from tasks.workspace import Workspace
from tests.places import ROOT
from tests.test_training_exact import command, hashes, logged
from tests.warm import run_stage

STEPS = 60


@pytest.fixture
def work(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "work"))


def run(root: Path, **changes: Any) -> None:
    """Train phase 1 in this process, with settings of the phase changed."""
    text = (root / "params.yaml").read_text()
    lines = "".join(f"  {key}: {value}\n" for key, value in changes.items())
    (root / "params.yaml").write_text(text.replace("training:\n", "training:\n" + lines))
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        train(Workspace(root), recipes.load(root / "params.yaml"), "phase1")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def weights(root: Path) -> dict[str, torch.Tensor]:
    return load_file(root / "checkpoints/phase1/model.safetensors")


def events(root: Path, name: str) -> list[dict[str, Any]]:
    path = root / "metrics/phase1/history.jsonl"
    path = path if path.exists() else root / "runs/phase1/history.jsonl"
    return [r for r in read_history(path) if r.get("event") == name]


def spoil(
    monkeypatch: pytest.MonkeyPatch, steps: set[int], change: Callable[[TrainState, float], float]
) -> None:
    """Let ``change`` have the loss and the gradients of some steps (from 0)."""
    accumulate = loop.accumulate

    def spoiled(state: TrainState, *arguments: Any) -> Any:
        loss, *rest = accumulate(state, *arguments)
        return (change(state, loss) if state.step in steps else loss, *rest)

    monkeypatch.setattr(loop, "accumulate", spoiled)


def break_gradients(state: TrainState, loss: float) -> float:
    next(iter(state.model.parameters())).grad.fill_(float("nan"))  # type: ignore[union-attr]
    return loss


# Losses and gradients -----------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_not_finite_leaves_the_weights_alone_and_is_counted(
    work: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    before: dict[str, torch.Tensor] = {}
    step = loop.update

    def watched(state: TrainState, *arguments: Any) -> Any:
        if state.step == 7:
            before.update({n: p.detach().clone() for n, p in state.model.named_parameters()})
        result = step(state, *arguments)
        if state.step == 7:
            assert all(p.equal(before[n]) for n, p in state.model.named_parameters())
        return result

    monkeypatch.setattr(loop, "update", watched)
    change = break_gradients if what == "gradient" else lambda state, loss: float("nan")
    spoil(monkeypatch, {7, 20}, change)
    run(work)
    assert before
    assert [e["step"] for e in events(work, "skipped")] == [8, 21]
    state = read_json(work / "checkpoints/phase1/state.json")
    assert (state["skipped"], state["updates"], state["skipped_in_row"]) == (2, STEPS - 2, 0)
    assert all(t.isfinite().all() for t in weights(work).values())


def test_a_bad_step_where_a_phase_validates_and_ends_costs_no_more(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {29, STEPS - 1}, break_gradients)
    run(work, validate_every=0.5, select="best", select_on="letters/validation")
    assert [e["step"] for e in events(work, "skipped")] == [30, STEPS]
    state = read_json(work / "checkpoints/phase1/state.json")
    assert state["step"] == STEPS and state["skipped"] == 2, "no sound step was ever validated"
    validated = {r["step"] for r in logged(work) if r["kind"] == "validation"}
    assert validated == {30, STEPS}
    assert not [r for r in logged(work) if r["kind"] == "layers"], "their gradients say nothing"


def test_too_many_bad_steps_in_a_row_stop_at_the_last_good_checkpoint(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, set(range(11, STEPS)), lambda state, loss: float("inf"))
    with pytest.raises(UserError, match="step 14 of phase1: loss inf.*samples 112 to 119") as error:
        run(work, max_skipped=3, checkpoint_every=256)
    assert error.value.exit_code == 3 and "phasewise data trace" in str(error.value)
    newest = checkpoint.newest(work / "runs/phase1")
    assert newest and newest.name.endswith("11"), "none was written while steps were bad"


def test_a_spike_is_reported_and_skipped_only_where_the_recipe_says_so(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(shutil.copytree(work, tmp_path / "other"))
    spoil(monkeypatch, {30}, lambda state, loss: 100 * loss)
    run(work, spike_factor=5.0)
    assert [e["step"] for e in events(work, "spike")] == [31] and not events(work, "skipped")
    run(other, spike_factor=5.0, on_spike="skip")
    assert [e["why"] for e in events(other, "skipped")] == ["spike"]
    assert read_json(other / "checkpoints/phase1/state.json")["updates"] == STEPS - 1
    assert hashes(work) != hashes(other)


def test_the_window_of_spikes_survives_a_stop(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(shutil.copytree(work, tmp_path / "other"))
    spoil(monkeypatch, {30}, lambda state, loss: 100 * loss)
    run(work, spike_factor=5.0, on_spike="skip")
    monkeypatch.setenv("PHASEWISE_STOP_AT_STEP", "28")
    from tasks.settings import settings

    settings.cache_clear()
    with pytest.raises(UserError, match="stopped at step 28"):
        run(other, spike_factor=5.0, on_spike="skip")
    monkeypatch.delenv("PHASEWISE_STOP_AT_STEP")
    settings.cache_clear()
    run(other)
    assert hashes(other) == hashes(work)


def test_fp16_overflow_lowers_the_scale_and_its_state_survives_a_stop(
    tiny: Path, tmp_path: Path
) -> None:
    roots = []
    for name in ("straight", "stopped"):
        root = Path(shutil.copytree(tiny, tmp_path / name))
        text = (root / "params.yaml").read_text()
        text = text.replace("precision: fp32", "precision: fp16")  # emulated, so few steps
        (root / "params.yaml").write_text(text.replace("tokens: 15360", "tokens: 3072"))
        mix(Workspace(root), recipes.load(root / "params.yaml"), "phase1")
        roots.append(root)
    straight, stopped = roots
    assert run_stage(straight).returncode == 0
    assert run_stage(stopped, PHASEWISE_STOP_AT_STEP="5").returncode == 75
    assert run_stage(stopped).returncode == 0
    assert hashes(straight) == hashes(stopped)
    scaler = read_json(straight / "checkpoints/phase1/state.json")["scaler"]
    assert scaler and scaler["scale"] > 0


# Disks, time, memory ------------------------------------------------------------------------------


def test_a_checkpoint_that_cannot_be_written_costs_no_training(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = Path(shutil.copytree(work, tmp_path / "straight"))
    run(straight)
    save = checkpoint.save

    def full(folder: Path, *arguments: Any) -> None:
        if folder.name in ("step-000000012", "step-000000018"):
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        save(folder, *arguments)

    monkeypatch.setattr(checkpoint, "save", full)
    run(work)
    assert capsys.readouterr().err.count("could not be written") == 2
    assert hashes(work) == hashes(straight)


def test_a_last_checkpoint_that_cannot_be_written_is_an_error_and_the_next_run_finishes(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = Path(shutil.copytree(work, tmp_path / "straight"))
    run(straight)
    save = checkpoint.save

    def full(folder: Path, *arguments: Any) -> None:
        if folder.name == f"step-{STEPS:09d}":
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        save(folder, *arguments)

    with monkeypatch.context() as during:
        during.setattr(checkpoint, "save", full)
        with pytest.raises(OSError, match="No space left"):
            run(work)
    assert not (work / "checkpoints/phase1").exists()
    run(work)
    assert hashes(work) == hashes(straight)


def test_a_time_limit_leaves_a_checkpoint_and_the_next_run_goes_on(work: Path) -> None:
    done = run_stage(work, PHASEWISE_MAX_SECONDS="0.05")
    assert done.returncode == 75 and "its checkpoint is whole" in done.stderr
    assert list((work / "runs/phase1").glob("step-*"))


def test_a_device_without_memory_names_the_setting_that_helps(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(loop, "accumulate", no_memory)
    with pytest.raises(UserError, match="PHASEWISE_MICRO_BATCH_TOKENS.*Tried to allocate") as error:
        run(work)
    assert "set it to 128 or less" in str(error.value)


def test_a_process_that_hangs_ends_with_its_stacks() -> None:
    code = (
        "import time\nfrom tasks.training.watchdog import Watchdog\n"
        "with Watchdog(0.3).watching():\n    time.sleep(30)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=25,
        check=False,
    )
    assert done.returncode == 70
    assert "nothing has moved for 0.3 s" in done.stderr and "<module>" in done.stderr


def test_a_sample_that_cannot_be_drawn_costs_no_training(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tasks.training.samples import Samples

    def broken(self: Samples) -> list[dict[str, Any]]:
        raise RuntimeError("no words")

    monkeypatch.setattr(Samples, "_draw", broken)
    run(work)
    assert capsys.readouterr().err.count("no samples were drawn") == 3, "then it gives up"
    assert len(list((work / "checkpoints").glob("phase1"))) == 1


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_samples_are_drawn_at_every_validation(work: Path, precision: str) -> None:
    text = (work / "params.yaml").read_text()
    (work / "params.yaml").write_text(text.replace("precision: fp32", f"precision: {precision}"))
    run(work, validate_every=0.5)
    drawn = [r for r in logged(work) if r["kind"] == "sample"]
    assert [r["step"] for r in drawn] == [30, 60]
    assert all(r["prompt"] == "The " and r["text"] and r["weights"] == "ema" for r in drawn)


def test_evaluating_drawing_and_saving_change_nothing(work: Path, tmp_path: Path) -> None:
    often = Path(shutil.copytree(work, tmp_path / "often"))
    run(work)
    run(often, validate_every=256, checkpoint_every=256)
    assert hashes(work) == hashes(often)


# Selection, adoption ------------------------------------------------------------------------------


def test_the_best_checkpoint_is_kept_and_placed_and_patience_ends_the_phase(work: Path) -> None:
    # a rate that is far too high: the validation soon gets worse for good
    run(work, select="best", select_on="letters/validation", patience=3, validate_every=512,
        checkpoint_every=256, schedule="constant")  # fmt: skip
    records = logged(work)
    scores = {
        r["step"]: r["bits_per_byte"]
        for r in records
        if r["kind"] == "validation" and r["set"] == "letters/validation" and r["weights"] == "ema"
    }
    best = min(scores, key=lambda step: scores[step])
    state = read_json(work / "checkpoints/phase1/state.json")
    assert state["step"] == best
    last = max(scores)
    assert last == STEPS or last == best + 3 * 2


def test_going_on_under_other_settings_is_asked_for_and_on_the_record(work: Path) -> None:
    assert run_stage(work, PHASEWISE_STOP_AT_STEP="5").returncode == 75
    text = (work / "params.yaml").read_text()
    (work / "params.yaml").write_text(text.replace("lr: 1e-2", "lr: 2e-2"))
    done = run_stage(work, PHASEWISE_ADOPT="1")
    assert done.returncode == 0 and "going on from step 5" in done.stdout
    [event] = events(work, "adopted")
    assert event["changed"] == ["phase.lr: 0.01 -> 0.02"] and event["step"] == 5


def test_a_run_of_another_network_cannot_be_adopted(work: Path) -> None:
    assert run_stage(work, PHASEWISE_STOP_AT_STEP="5").returncode == 75
    from tasks.training.init import init

    text = (work / "params.yaml").read_text()
    (work / "params.yaml").write_text(text.replace("d_ff: 64", "d_ff: 96"))
    init(Workspace(work), recipes.load(work / "params.yaml"))
    done = run_stage(work, PHASEWISE_ADOPT="1")
    assert done.returncode == 2 and "model.d_ff: 64 -> 96" in done.stderr


# Everything at once -------------------------------------------------------------------------------


@pytest.mark.faults
def test_fifty_kills_at_random_moments_end_with_the_bytes_of_a_straight_run(
    work: Path, tmp_path: Path
) -> None:
    straight = Path(shutil.copytree(work, tmp_path / "straight"))
    assert run_stage(straight).returncode == 0
    seed = time.time_ns()
    chance = random.Random(seed)
    kills = 0
    while kills < 50:
        # an open end: without it a few long-lived runs would finish the phase
        environment = os.environ | {"PHASEWISE_STOP_AT_STEP": str(chance.randrange(1, STEPS))}
        child = subprocess.Popen(command(work), cwd=ROOT, env=environment,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        try:
            child.wait(timeout=chance.uniform(0.5, 8))
        except subprocess.TimeoutExpired:
            how = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
            child.send_signal(how)
            if how == signal.SIGSTOP:
                time.sleep(0.5)
                child.send_signal(signal.SIGCONT)
                time.sleep(chance.uniform(0, 1))
                child.kill()
            child.wait(timeout=60)
            kills += 1
        if (work / "checkpoints/phase1").exists():
            shutil.rmtree(work / "checkpoints/phase1")
            shutil.rmtree(work / "runs/phase1")
    assert run_stage(work).returncode == 0
    assert hashes(work) == hashes(straight), f"seed {seed}"
    assert logged(work) == logged(straight), f"seed {seed}"
