"""One stage at a time on the accelerator: not two of one flow, and not two of one machine.

The lock is the machine's own, a file that the kernel frees. Prefect's concurrency limits are one
server's: two projects with a server each would not see each other, a run that was killed would
keep its slot until a lease ends, and with the server away none could be had. The stage's guard
holds the lock beside us, so a trainer that is still writing its last checkpoint keeps it too.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.outcome import Logger
from flows.supervise import Leash

STAGES = {"train", "evaluate", "generate", "benchmark"}  # what runs the network on the device
_POLL_SECONDS = 0.25


def needed_by(address: str) -> bool:
    """Whether a stage works on the accelerator; a machine's CPU is one where it has no other."""
    return address.partition("@")[0] in STAGES


@contextmanager
def held(lock: Path, what: str, leash: Leash, logger: Logger) -> Iterator[int]:
    """Wait for the lock and hold it for the length of the block; yields its file descriptor.

    Who inherits the descriptor holds the lock too. Raises Stopped where the leash is pulled while
    it waits.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        said = False
        while not _taken(handle):
            if not said:
                logger.info("waiting for the accelerator, which is in use by %s", _holder(handle))
                said = True
            leash.pulled.wait(_POLL_SECONDS)
            leash.check()
        os.ftruncate(handle, 0)
        os.pwrite(handle, what.encode(), 0)
        yield handle
    finally:
        os.close(handle)


def _taken(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(handle: int) -> str:
    return os.pread(handle, 4096, 0).decode(errors="replace") or "another run"
