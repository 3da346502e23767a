"""What a machine does to a pipeline: stops it, fills its disk, turns its clock; and what that costs."""

from __future__ import annotations

import importlib
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tasks import recipe as recipes
from tasks.release.export import export
from tasks.training.history import read_history
from tasks.training.train import train
from tasks.workspace import Workspace
from tests.places import ROOT
from tests.refusals import refusal, run_stage
from tests.test_training_exact import command, hashes, logged


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which phase 1 was trained and exported without a disturbance."""
    root = Path(shutil.copytree(tiny, tmp_path_factory.mktemp("trained") / "work"))
    workspace, recipe = Workspace(root), recipes.load(root / "params.yaml")
    with quiet_signals():
        train(workspace, recipe, "phase1")
    export(workspace, recipe, "phase1")
    return root


class quiet_signals:
    """Training in this process takes signal handlers; give them back."""

    def __enter__(self) -> None:
        self.before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


@pytest.fixture
def work(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "work"))


# F06, F44: processes that stand still ----------------------------------------------------------------


def test_a_run_that_was_stopped_and_continued_ends_the_same_and_is_not_taken_for_hung(
    trained: Path, work: Path
) -> None:
    environment = os.environ | {"PHASEWISE_HANG_SECONDS": "2"}
    child = subprocess.Popen(command(work), cwd=ROOT, env=environment,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
    history = work / "runs/phase1/history.jsonl"
    while not history.exists() or history.read_bytes().count(b'"kind": "train"') < 5:
        assert child.poll() is None, child.communicate()[0]
        time.sleep(0.002)
    child.send_signal(signal.SIGSTOP)
    time.sleep(3)
    child.send_signal(signal.SIGCONT)
    said, _ = child.communicate(timeout=60)
    assert child.returncode == 0, said
    assert hashes(work) == hashes(trained) and logged(work) == logged(trained)
    speeds = [r["tokens_per_second"] for r in read_history(work / "metrics/phase1/history.jsonl")
              if r["kind"] == "train"]  # fmt: skip
    assert min(speeds) > 0
    assert sum(speed < statistics.median(speeds) / 20 for speed in speeds) <= 2, "the pause alone"


def test_a_step_that_hangs_ends_with_its_stacks_and_the_next_run_goes_on(
    trained: Path, work: Path
) -> None:
    code = f"""
import sys, time
from pathlib import Path
from tasks import stage
from tasks.training import loop, train

accumulate, calls = loop.accumulate, []
def hanging(*arguments):
    calls.append(1)
    if len(calls) == 14:
        time.sleep(60)
    return accumulate(*arguments)
loop.accumulate = hanging
sys.exit(stage.run(train.train, Path({str(work)!r}), "phase1"))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PHASEWISE_HANG_SECONDS": "2"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 70, done.stderr
    assert "nothing has moved for 2 s" in done.stderr and "hanging" in done.stderr
    assert not (work / "checkpoints/phase1").exists()
    with quiet_signals():
        train(Workspace(work), recipes.load(work / "params.yaml"), "phase1")
    assert hashes(work) == hashes(trained)


# F04: Ctrl-C ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_once_saves_and_twice_leaves_at_once(trained: Path, work: Path, times: int) -> None:
    slow = "import time; time.sleep(3)" if times == 2 else "pass"  # the step that is under way
    code = f"""
import os, signal, sys
from pathlib import Path
from tasks import stage
from tasks.training import loop, train

accumulate, calls = loop.accumulate, []
def interrupted(*arguments):
    calls.append(1)
    if len(calls) == 9:
        for _ in range({times}):
            os.kill(os.getpid(), signal.SIGINT)
        {slow}
    return accumulate(*arguments)
loop.accumulate = interrupted
sys.exit(stage.run(train.train, Path({str(work)!r}), "phase1"))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    saved = sorted(path.name for path in (work / "runs/phase1").glob("step-*"))
    assert (saved[-1:] == ["step-000000009"]) == (times == 1), saved
    with quiet_signals():
        train(Workspace(work), recipes.load(work / "params.yaml"), "phase1")
    assert hashes(work) == hashes(trained)


# F10, F11: disks --------------------------------------------------------------------------------------


class Stage(NamedTuple):
    """A stage of the story: its function is called like its module."""

    module: str
    argument: str | None
    out: str

    @property
    def name(self) -> str:
        return self.module.rsplit(".", 1)[1]

    def run(self, capsys: pytest.CaptureFixture[str], root: Path) -> tuple[int, str]:
        function = getattr(importlib.import_module(self.module), self.name)
        return run_stage(capsys, function, root, self.argument)

    def removed(self, root: Path, place: Path) -> tuple[Path, dict[str, bytes]]:
        """A copy of a workspace in which its output is missing, and what that held."""
        copy = Path(shutil.copytree(root, place))
        whole = contents(copy / self.out)
        shutil.rmtree(copy / self.out)
        return copy, whole


STAGES = [
    Stage("tasks.data.download", "letters", "data/raw/letters"),
    Stage("tasks.data.clean", "letters", "data/clean/letters"),
    Stage("tasks.data.dedup", None, "data/dedup"),
    Stage("tasks.data.split", None, "data/documents"),
    Stage("tasks.tokens.tokenizer", None, "data/tokenizer"),
    Stage("tasks.tokens.encode", "letters", "data/tokens/letters"),
    Stage("tasks.tokens.mix", "phase1", "data/mix/phase1"),
    Stage("tasks.training.init", None, "checkpoints/init"),
    Stage("tasks.training.train", "phase1", "checkpoints/phase1"),
    Stage("tasks.release.export", "phase1", "exports/phase1"),
]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_disk_that_is_full_leaves_no_half_output_and_the_next_run_ends_the_same(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    stage: Stage,
) -> None:
    """The system refuses the last byte of the stage's largest file (RLIMIT_FSIZE)."""
    root, whole = stage.removed(trained, tmp_path / "work")
    if stage.name == "train":
        shutil.rmtree(root / "runs/phase1")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with quiet_signals():
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(map(len, whole.values())) - 1, hard))
        try:
            answer = stage.run(capsys, root)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        refusal(answer, 73, "File too large", "hint: make room", "run the same command again")
        assert not (root / stage.out).exists()
        assert not [path for path in root.rglob("*") if path.name.endswith(".tmp")]
        if stage.name == "train":
            assert "training goes on" in answer[1], "only the last checkpoint has to be written"
        code, said = stage.run(capsys, root)
    assert code == 0, said
    same = contents(root / stage.out)
    assert same.keys() == whole.keys()
    clock = ("history.jsonl", "summary.json", "local.json", "manifest.json")  # hold times
    differ = [key for key in whole if same[key] != whole[key] and Path(key).name not in clock]
    assert not differ


WITHOUT_HANDLERS = [s for s in STAGES if s.name != "train"]


@pytest.mark.parametrize("stage", WITHOUT_HANDLERS, ids=lambda stage: stage.name)
def test_ctrl_c_leaves_no_half_output_and_the_next_run_ends_the_same(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    stage: Stage,
) -> None:
    """It comes just before the first file or folder would get its final name."""
    root, whole = stage.removed(trained, tmp_path / "work")

    def ctrl_c(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr(os, "rename", ctrl_c)
        during.setattr(os, "replace", ctrl_c)
        code, said = stage.run(capsys, root)
    assert code == 130 and "run the same command again to go on" in said
    assert not (root / stage.out).exists()
    assert not [path for path in root.rglob("*") if path.name.endswith(".tmp")]
    assert stage.run(capsys, root)[0] == 0
    assert contents(root / stage.out) == whole


def in_a_namespace(*arguments: str, prepare: str) -> subprocess.CompletedProcess[str]:
    """Run a stage after ``prepare`` has mounted what it needs, where nobody else sees it."""
    script = f'{prepare} || exit 200; exec "$@"'
    unshare = ["unshare", "--mount", "--map-root-user"] if os.geteuid() else ["unshare", "--mount"]
    done = subprocess.run(
        [*unshare, "sh", "-c", script, "sh", sys.executable, "-m", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 200 or done.stderr.startswith("unshare"):
        pytest.skip("nothing may be mounted here")
    return done


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare here")
def test_a_disk_without_space_costs_checkpoints_and_the_last_one_is_an_error(work: Path) -> None:
    (work / "runs").mkdir()
    done = in_a_namespace(
        "tasks.training.train", "phase1", "--root", str(work),
        prepare=f"mount -t tmpfs -o size=800k tmpfs '{work}/runs'",
    )  # fmt: skip
    refusal((done.returncode, done.stderr), 73, "No space left on device", "hint: make room")
    assert "a checkpoint could not be written" in done.stderr and "training goes on" in done.stderr
    assert not (work / "checkpoints/phase1").exists()


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare here")
def test_a_read_only_folder_is_refused_before_training_starts(work: Path) -> None:
    (work / "runs").mkdir()
    done = in_a_namespace(
        "tasks.training.train", "phase1", "--root", str(work),
        prepare=f"mount -t tmpfs -o ro tmpfs '{work}/runs'",
    )  # fmt: skip
    refusal((done.returncode, done.stderr), 73, "Read-only file system", "runs", "hint: give")
    assert "tokens in" not in done.stdout, "training had begun"


@pytest.mark.parametrize("place", ["runs", "runs/phase1"])
def test_a_file_in_the_place_of_a_folder_is_refused_before_training_starts(
    work: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    (work / place).parent.mkdir(exist_ok=True)
    (work / place).write_text("")
    with quiet_signals():
        refusal(run_stage(capsys, train, work, "phase1"), 73, str(work / "runs"), "hint: move")


# F40, F42: clocks and devices ---------------------------------------------------------------------------


def test_a_clock_that_jumps_changes_no_result_and_no_duration(
    trained: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10**6))
    decade = 315_360_000
    monkeypatch.setattr(time, "time", lambda: float((-1) ** (n := next(clock)) * n % 7 * decade))
    monkeypatch.setenv("PHASEWISE_STOP_AT_STEP", "20")
    from tasks.errors import UserError
    from tasks.settings import settings

    settings.cache_clear()
    workspace, recipe = Workspace(work), recipes.load(work / "params.yaml")
    with quiet_signals():
        with pytest.raises(UserError, match="stopped at step 20"):
            train(workspace, recipe, "phase1")
        for folder in (work / "runs/phase1").glob("step-*"):  # the newest looks like the oldest
            os.utime(folder, (1, 2_000_000_000 - int(folder.name[-9:])))
        monkeypatch.delenv("PHASEWISE_STOP_AT_STEP")
        settings.cache_clear()
        train(workspace, recipe, "phase1")
    assert hashes(work) == hashes(trained) and logged(work) == logged(trained)
    records = read_history(work / "metrics/phase1/history.jsonl")
    steps = [r for r in records if r["kind"] == "train"]
    assert [r["step"] for r in steps] == list(range(1, 61))
    assert all(0 < r["tokens_per_second"] < 1e8 for r in steps)
    assert all(0 <= r["seconds"] < 60 for r in records if "seconds" in r)


def test_a_device_that_is_not_there_is_an_error_unless_the_choice_was_left_open(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from tasks.settings import settings

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.setenv("PHASEWISE_DEVICE", "cuda")
    settings.cache_clear()
    with quiet_signals():
        refusal(run_stage(capsys, train, work, "phase1"), 2, "no cuda device", "hint: ")
    monkeypatch.setenv("PHASEWISE_DEVICE", "auto")
    monkeypatch.setenv("PHASEWISE_STOP_AT_STEP", "1")
    settings.cache_clear()
    with quiet_signals():
        assert run_stage(capsys, train, work, "phase1")[0] == 75
