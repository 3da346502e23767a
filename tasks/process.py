"""Processes that cannot be orphaned.

    flow ── guard ── dvc ── stage ── its workers
              └─ watches: flow gone, or told to stop → SIGTERM to the group, a grace, SIGKILL

``die_with_parent`` asks the kernel to signal a process when its parent ends, however it ends. Run
as a script, this file is the guard: a small process between a flow and its command that ends the
command's whole group when it has to, so that not even ``kill -9`` of the flow leaves a second
writer behind. It imports nothing of the project, so it starts at once, from any folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36
_POLL_SECONDS = 0.05
_LAST_WORDS_SECONDS = 1.0


def die_with_parent(signal_number: int = signal.SIGTERM, *, parent: int | None = None) -> None:
    """Have the kernel send ``signal_number`` to this process when its parent ends (Linux).

    The request outlives ``exec`` but not ``fork``; strictly, it is about the parent's thread that
    started this process. Elsewhere than on Linux it does nothing.

    Args:
        signal_number: what to send.
        parent: process id of the parent, where known; one that ended before the request was made
            is then noticed too.
    """
    parent = os.getppid() if parent is None else parent
    _prctl(_PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal_number)


def guarded(command: Sequence[str], *, grace: float) -> list[str]:
    """``command`` below a guard that ends it when this process does, or on SIGTERM.

    What it runs gets SIGTERM, with all its descendants, and SIGKILL after ``grace`` seconds.
    """
    return [sys.executable, __file__, str(os.getpid()), str(grace), *command]


def guard(command: Sequence[str], *, parent: int, grace: float) -> int:
    """Run ``command`` in its own process group; return its exit code (128 + n for signal n).

    On SIGTERM, or when the process ``parent`` ends, the group gets SIGTERM and, after ``grace``
    seconds, SIGKILL. The same befalls what a failed command left behind.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.signal(signal.SIGTERM, _stop)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # orphans become ours, so that their end can be waited for
    die_with_parent(parent=parent)
    source, sink = os.pipe()
    child = subprocess.Popen(command, process_group=0, stdout=sink, stderr=sink, preexec_fn=_begin)
    os.close(sink)
    relay = threading.Thread(target=_relay, args=(source,), daemon=True)
    relay.start()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        code = child.wait()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except _Stopped:
        code = -signal.SIGTERM
    if code:
        end_group(child.pid, grace)
    relay.join(_LAST_WORDS_SECONDS)  # a descendant that lives on may hold the pipe open
    return code if code >= 0 else 128 - code


def end_group(group: int, grace: float) -> None:
    """SIGTERM to a process group; SIGKILL to what is left of it after ``grace`` seconds."""
    deadline = time.monotonic() + grace
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)
        while time.monotonic() < deadline:
            _reap()
            os.killpg(group, 0)
            time.sleep(_POLL_SECONDS)
        os.killpg(group, signal.SIGKILL)


class _Stopped(BaseException):
    """The guard was told to end its command."""


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Stopped


def _relay(source: int) -> None:
    """Hand the command's output on. Nobody listening is no reason for it to end: it may be just
    then that it writes its checkpoint, so its words are taken in all the same."""
    heard = True
    while chunk := os.read(source, 65536):
        while heard and chunk:
            try:
                chunk = chunk[os.write(sys.stdout.fileno(), chunk) :]
            except OSError:
                heard = False


def _begin() -> None:
    """In the child, before ``exec``: listen to SIGTERM, and end with the guard."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    die_with_parent()


def _reap() -> None:
    """Collect children that have ended: a zombie still counts as a member of its group."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _prctl(option: int, value: int) -> None:
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")


if __name__ == "__main__":
    sys.exit(guard(sys.argv[3:], parent=int(sys.argv[1]), grace=float(sys.argv[2])))
