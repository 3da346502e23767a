"""Run a command that is heard line by line and never outlives the one who asked for it.

The command runs below a guard (tasks/process.py), in a session of its own. Whatever ends the wait
(a cancelled flow, Ctrl-C, a time-out, an exception, even ``kill -9`` of this process) ends the
command and all its descendants: SIGTERM, a grace in which training writes a checkpoint, SIGKILL.
"""

from __future__ import annotations

import codecs
import contextlib
import math
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tasks.process import guarded

GRACE_SECONDS = 25.0  # a Prefect worker kills a cancelled flow after 30
_POLL_SECONDS = 0.5
_MARGIN_SECONDS = 3.0


def supervise(
    command: Sequence[str],
    on_line: Callable[[str], None],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    grace: float = GRACE_SECONDS,
) -> int:
    """Run ``command`` to its end and return its exit code (128 + n where signal n ended it).

    Args:
        command: the program and its arguments; no shell is involved.
        on_line: called in this thread with each line of output, both streams as they come.
        cwd: folder to run in.
        env: environment; default: this process's.
        timeout: seconds after which the command is stopped.
        grace: seconds between SIGTERM and SIGKILL.

    Raises:
        TimeoutError: the command was stopped because it took longer than ``timeout``.
    """
    child = subprocess.Popen(
        guarded(command, grace=grace),
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        _relay(child, on_line, timeout)
        code = child.wait()
        return code if code >= 0 else 128 - code
    except BaseException:
        _end(child, on_line, grace + _MARGIN_SECONDS)
        raise
    finally:
        assert child.stdout is not None
        child.stdout.close()


def _relay(
    child: subprocess.Popen[bytes], on_line: Callable[[str], None], timeout: float | None
) -> None:
    """Hand on lines until the output ends, which it does when the guard ends."""
    assert child.stdout is not None
    source = child.stdout.fileno()
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    rest = ""
    while True:
        if time.monotonic() > deadline:
            raise TimeoutError(f"stopped after {timeout:g} s")
        if not select.select([source], [], [], _POLL_SECONDS)[0]:
            continue
        if not (chunk := os.read(source, 65536)):
            break
        *lines, rest = (rest + decode(chunk)).replace("\r", "\n").split("\n")
        for line in lines:
            on_line(line)
    if rest:
        on_line(rest)


def _end(child: subprocess.Popen[bytes], on_line: Callable[[str], None], patience: float) -> None:
    """Tell the guard to end everything, hear the last words, and wait until it is done."""
    child.terminate()
    deadline = time.monotonic() + patience
    with contextlib.suppress(Exception):  # the error that brought us here is the one to report
        _relay(child, on_line, patience)
    try:
        child.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
