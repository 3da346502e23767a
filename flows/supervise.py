"""Run a command that is heard line by line and never outlives the one who asked for it.

The command runs below a guard (tasks/process.py), in a session of its own. Whatever ends the wait
(a cancelled flow, Ctrl-C, a time-out, an exception, even ``kill -9`` of this process) ends the
command and all its descendants: SIGTERM, a grace in which training writes a checkpoint, SIGKILL.

A signal reaches the main thread alone. A wait in another thread looks at a leash, which the main
thread pulls when it is interrupted.
"""

from __future__ import annotations

import codecs
import contextlib
import math
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tasks.process import guarded

GRACE_SECONDS = 25.0  # a Prefect worker kills a cancelled flow after 30
_POLL_SECONDS = 0.5
_MARGIN_SECONDS = 3.0


class Stopped(Exception):
    """The leash was pulled: the command has been ended, or was never begun."""


class Leash:
    """What one thread holds of the commands that other threads wait for."""

    def __init__(self) -> None:
        self.pulled = threading.Event()
        self._held: set[object] = set()

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Be one that ``pull`` waits for, for the length of the block. Raises Stopped if pulled."""
        self._held.add(one := object())  # first, so that a pull in between waits for it
        try:
            self.check()
            yield
        finally:
            self._held.discard(one)

    def check(self) -> None:
        if self.pulled.is_set():
            raise Stopped

    def pull(self) -> None:
        """End all commands, and wait until they have ended."""
        self.pulled.set()
        while self._held:
            time.sleep(_POLL_SECONDS / 10)


def supervise(
    command: Sequence[str],
    on_line: Callable[[str], None],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    grace: float = GRACE_SECONDS,
    leash: Leash | None = None,
    keep: Sequence[int] = (),
) -> int:
    """Run ``command`` to its end and return its exit code (128 + n where signal n ended it).

    Args:
        command: the program and its arguments; no shell is involved.
        on_line: called in this thread with each line of output, both streams as they come.
        cwd: folder to run in.
        env: environment; default: this process's.
        timeout: seconds after which the command is stopped.
        grace: seconds between SIGTERM and SIGKILL.
        leash: ends the command when pulled.
        keep: file descriptors that the guard keeps open until all has ended.

    Raises:
        TimeoutError: the command was stopped because it took longer than ``timeout``.
        Stopped: it was stopped, or not begun, because the leash was pulled.
    """
    leash = leash or Leash()
    with leash.holding():
        child = subprocess.Popen(
            guarded(command, grace=grace),
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=keep,
        )
        try:
            _relay(child, on_line, timeout, leash)
            code = child.wait()
            return code if code >= 0 else 128 - code
        except BaseException:
            _end(child, on_line, grace + _MARGIN_SECONDS)
            raise
        finally:
            assert child.stdout is not None
            child.stdout.close()


def _relay(
    child: subprocess.Popen[bytes],
    on_line: Callable[[str], None],
    timeout: float | None,
    leash: Leash,
) -> None:
    """Hand on lines until the output ends, which it does when the guard ends."""
    assert child.stdout is not None
    source = child.stdout.fileno()
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    rest = ""
    while True:
        leash.check()
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
        _relay(child, on_line, patience, Leash())
    try:
        child.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
