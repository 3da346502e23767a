"""A supervised command is heard whole, and nothing of it outlives the one who asked for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.supervise import supervise
from tests.places import ROOT

# starts a child that starts a child; each writes its process id; the last ignores SIGTERM
FAMILY = """
import os, signal, subprocess, sys, time
depth = int(sys.argv[1])
open(f"pid-{depth}", "w").write(str(os.getpid()))
if depth == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    subprocess.Popen([sys.executable, __file__, str(depth - 1)])
if depth == 2:
    while not os.path.exists("pid-0") or not open("pid-0").read():
        time.sleep(0.01)
    print("ready", flush=True)
time.sleep(60)
"""


def wait_until(condition: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "this did not come about in time"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process runs (one that has ended and is not yet collected does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def family(folder: Path) -> list[int]:
    return [int((folder / f"pid-{depth}").read_text()) for depth in (2, 1, 0)]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def supervisor(folder: Path, call: str) -> subprocess.Popen[str]:
    """A process that makes this call of ``supervise``, once the command has said that it is ready."""
    started = subprocess.Popen(
        python(f"import sys\nfrom flows.supervise import supervise\n{call}"),
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert started.stdout is not None and started.stdout.readline() == "ready\n"
    return started


def kill_9(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_every_line_of_both_streams_is_heard_in_order() -> None:
    heard: list[str] = []
    code = supervise(
        python(
            "import sys\nfor i in range(3000): print(i, file=(sys.stdout, sys.stderr)[i % 2], "
            "flush=True)\nprint('no newline at the end', end='')"
        ),
        heard.append,
    )
    assert code == 0
    assert heard == [*map(str, range(3000)), "no newline at the end"]


def test_the_exit_code_is_told_and_a_signal_is_128_and_its_number() -> None:
    assert supervise(python("raise SystemExit(65)"), print) == 65
    killed = python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert supervise(killed, print) == 128 + signal.SIGKILL


def test_a_missing_program_is_an_error_and_not_a_hang() -> None:
    heard: list[str] = []
    assert supervise(["/no/such/program"], heard.append) != 0
    assert "/no/such/program" in "\n".join(heard)


def test_an_exception_ends_the_whole_family_even_one_that_ignores_sigterm(tmp_path: Path) -> None:
    (tmp_path / "family.py").write_text(FAMILY)

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt  # as Ctrl-C, and as Prefect's cancellation, arrives

    with pytest.raises(KeyboardInterrupt):
        supervise([sys.executable, "family.py", "2"], interrupt, cwd=tmp_path, grace=0.5)
    assert not any(map(alive, family(tmp_path)))


def test_a_time_out_ends_the_command_and_hears_its_last_words(tmp_path: Path) -> None:
    heard: list[str] = []
    says_goodbye = """
import signal, sys, time
def leave(*_):
    print("checkpoint written", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, leave)
print("ready", flush=True)
time.sleep(60)
"""
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="after 2 s"):
        supervise(python(says_goodbye), heard.append, timeout=2)
    assert heard == ["ready", "checkpoint written"]
    assert time.monotonic() - started < 15


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_kill_9_of_the_parent_ends_the_whole_family(tmp_path: Path) -> None:
    (tmp_path / "family.py").write_text(FAMILY)
    call = "supervise([sys.executable, 'family.py', '2'], print, grace=0.5)"
    parent = supervisor(tmp_path, call)
    pids = family(tmp_path)
    assert all(map(alive, pids))
    kill_9(parent)
    wait_until(lambda: not any(map(alive, pids)))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_kill_9_of_the_parent_leaves_time_to_speak_and_write_a_checkpoint(tmp_path: Path) -> None:
    trainer = """
import signal, sys, time
def leave(*_):
    for i in range(10_000):
        print("writing", i, flush=True)  # nobody listens any more
    open("checkpoint", "w").write("whole")
    sys.exit(143)
signal.signal(signal.SIGTERM, leave)
print("ready", flush=True)
time.sleep(60)
"""
    (tmp_path / "trainer.py").write_text(trainer)
    kill_9(supervisor(tmp_path, "supervise([sys.executable, 'trainer.py'], print)"))
    wait_until(lambda: (tmp_path / "checkpoint").exists())


def test_what_a_killed_command_leaves_behind_is_ended(tmp_path: Path) -> None:
    """As when dvc is killed and the stage below it is not: a second one must not start beside it."""
    code = supervise(
        python(
            "import os, signal, subprocess\n"
            "open('left', 'w').write(str(subprocess.Popen(['sleep', '60']).pid))\n"
            "os.kill(os.getpid(), signal.SIGKILL)"
        ),
        print,
        cwd=tmp_path,
        grace=5,
    )
    assert code == 137
    assert not alive(int((tmp_path / "left").read_text()))
