"""Parts of a stage: each runs once, in whatever process, and nothing that ended is done again."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tasks import shardwise
from tasks.errors import BAD_DATA, BUSY, USAGE, UserError
from tasks.files import sha256_file
from tasks.shardwise import TRIES, map_parts, part_folder, work_folder
from tasks.workspace import Workspace
from tests.places import ROOT

PARTS = list(range(6))


def square(part: int, out: Path, log: str) -> dict[str, Any]:
    with open(log, "a") as handle:
        handle.write(f"{part}\n")
    (out / "file.txt").write_text(str(part * part))
    return {"square": part * part, "where": (1, 2)}


def fails(part: int, out: Path) -> None:
    (out / "half.txt").write_text("half")
    if part == 2:
        raise UserError("the third is bad", where="x:3", hint="mend it", exit_code=BAD_DATA)


def dies(part: int, out: Path, times: int, log: str) -> int:
    """End the process at part 3, as often as is asked."""
    with open(log, "a") as handle:
        handle.write(f"{part}\n")
    if part == 3 and Path(log).read_text().split().count("3") <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return part


def disk_full(part: int, out: Path) -> None:
    (out / "half.txt").write_text("half")
    if part == 1:
        raise OSError(errno.ENOSPC, "No space left on device", str(out / "half.txt"))


def ran(log: Path) -> list[int]:
    return sorted(map(int, log.read_text().split())) if log.exists() else []


def here(monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
    monkeypatch.setenv("PHASEWISE_WORKERS", str(cores))


@pytest.mark.parametrize("cores", [1, 2])
def test_results_and_files_come_in_the_order_of_the_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    here(monkeypatch, cores)
    function = partial(square, log=str(tmp_path / "log"))
    with work_folder(tmp_path / "work") as work:
        results = map_parts(function, PARTS, work / "a", "key")
        assert results == [{"square": n * n, "where": [1, 2]} for n in PARTS]
        for n in PARTS:
            assert (part_folder(work / "a", n) / "file.txt").read_text() == str(n * n)
        again = map_parts(function, PARTS, work / "a", "key")
        assert again == results and ran(tmp_path / "log") == PARTS, "none ran twice"
    assert not (tmp_path / "work").exists(), "the stage has ended well"


def test_another_key_or_other_parts_start_afresh_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    function, log = partial(square, log=str(tmp_path / "log")), tmp_path / "log"
    for key, parts, expected in (("a", [1, 2], [1, 2]), ("b", [1, 2], [1, 1, 2, 2])):
        map_parts(function, parts, tmp_path / "work", key, sizes=[1, 1])
        assert ran(log) == expected
    assert "begun with other inputs or settings: starting afresh" in capsys.readouterr().out
    map_parts(function, [2], tmp_path / "work", "b", sizes=[1])
    assert ran(log) == [1, 1, 2, 2, 2]
    assert [path.name for path in tmp_path.glob("work/0*")] == ["00000"]


@pytest.mark.parametrize("cores", [1, 2])
def test_an_error_arrives_as_it_was_and_leaves_no_half_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    here(monkeypatch, cores)
    with pytest.raises(UserError, match="the third is bad") as error, work_folder(tmp_path) as work:
        map_parts(fails, PARTS, work / "a", "key")
    assert (error.value.where, error.value.hint) == ("x:3", "mend it")
    assert error.value.exit_code == BAD_DATA
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert "00000" in names and "00002" not in names and not [n for n in names if "tmp" in n]


@pytest.mark.parametrize("cores", [1, 2])
def test_a_full_disk_leaves_no_half_part_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    here(monkeypatch, cores)
    with pytest.raises(OSError, match="No space left") as error:
        map_parts(disk_full, PARTS, tmp_path / "a", "key")
    assert error.value.errno == errno.ENOSPC and "half.txt" in str(error.value.filename)
    assert not part_folder(tmp_path / "a", 1).exists()
    assert not list((tmp_path / "a").glob("*.tmp"))


def test_a_part_whose_worker_dies_goes_to_a_fresh_pool_and_no_other_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(monkeypatch, 2)
    log = tmp_path / "log"
    function = partial(dies, times=1, log=str(log))
    assert map_parts(function, PARTS, tmp_path / "a", "key") == PARTS
    assert ran(log).count(3) == 2
    log.unlink()
    with pytest.raises(UserError, match="this part of the work died: 3") as error:
        map_parts(partial(dies, times=99, log=str(log)), PARTS, tmp_path / "b", "key")
    assert ran(log).count(3) == TRIES
    assert error.value.exit_code == BUSY and "out of memory" in str(error.value)


def test_two_processes_never_work_in_one_folder(tmp_path: Path) -> None:
    with (
        work_folder(tmp_path / "work"),
        pytest.raises(UserError, match="in use by process"),
        work_folder(tmp_path / "work"),
    ):
        pass


SLOW = """
import os, sys, time
from pathlib import Path
from tasks.shardwise import map_parts, work_folder

def slow(part, out):
    time.sleep(0.2)
    with open({log!r}, "a") as handle:
        handle.write(f"{{part}}\\n")
    return os.getppid()

if __name__ == "__main__":
    with work_folder(Path({root!r})) as work:
        map_parts(slow, list(range(12)), work / "a", "key")
        print("whole")
"""


def test_a_stage_that_is_killed_goes_on_where_it_was_and_leaves_no_worker(tmp_path: Path) -> None:
    script, log = tmp_path / "slow.py", tmp_path / "log"
    script.write_text(SLOW.format(log=str(log), root=str(tmp_path / "work")))
    environment = os.environ | {"PHASEWISE_WORKERS": "2", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script)]
    first = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(list((tmp_path / "work/a").glob("0*"))) >= 2)
    first.kill()
    first.wait()
    assert len(list((tmp_path / "work/a").glob("0*"))) < 12
    before = ran(log)
    time.sleep(0.7)
    assert len(ran(log)) <= len(before) + 2, "workers end with their parent"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "of 12 parts are there already" in done.stdout and "whole" in done.stdout
    assert set(ran(log)) == set(range(12)) and len(ran(log)) <= 12 + 4
    assert not (tmp_path / "work").exists()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def test_a_function_of_the_stage_that_runs_is_known_to_others_by_its_module() -> None:
    code = (
        "import runpy, sys; sys.argv = ['x', '--help']\n"
        "from tasks import shardwise, stage\n"
        "def main(function, *_):\n"
        "    import __main__\n"
        "    found = shardwise._importable(function)\n"
        "    print(function.__module__, found.__module__, found.__qualname__)\n"
        "stage.main = main\n"
        "runpy.run_module('tasks.data.clean', run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "__main__ tasks.data.clean clean", done.stderr


def test_the_doctor_tells_an_unfinished_stage_from_one_that_runs(tmp_path: Path) -> None:
    from tasks.cli.doctor import _stages

    path = Workspace(tmp_path).work("clean", "x")
    with pytest.raises(UserError, match="third"), work_folder(path) as work:
        assert [finding.state for finding in _stages(tmp_path)] == ["ok"]
        map_parts(fails, PARTS, work / "shards", "key", sizes=[1] * 6)
    (finding,) = _stages(tmp_path)
    assert finding.state == "warn" and "clean@x is unfinished, 2 parts" in finding.detail
    assert "dvc repro clean@x" in finding.hint and "data/.work/clean@x" in finding.hint


def test_identity_follows_a_rewrite(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    os.utime(path, ns=(1, 1))
    first = shardwise.identity([path])
    path.write_text("two")
    assert shardwise.identity([path]) != first


def fingerprints(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir())}


def test_dask_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHASEWISE_DASK", "tcp://127.0.0.1:1")
    monkeypatch.setattr("tasks.executors._CONNECT_SECONDS", 0.3)
    with pytest.raises(UserError, match="no Dask scheduler answers") as error:
        map_parts(fails, [1], tmp_path / "a", "key")
    assert error.value.where == "PHASEWISE_DASK"
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UserError, match="not installed") as error:
        map_parts(fails, [1], tmp_path / "a", "key")
    assert error.value.exit_code == USAGE and "phasewise[dask]" in str(error.value)
