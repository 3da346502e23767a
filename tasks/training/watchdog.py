"""Ends a process that hangs, with the stacks of its threads on the record."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tasks.errors import INTERNAL


class Watchdog:
    """Waits for ``beat``; when none came for ``seconds``, dumps all stacks and ends the process.

    Time in which the whole process stood still (SIGSTOP, a machine asleep) does not count: then the
    watch stood still too.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._beats = 0

    def beat(self) -> None:
        self._beats += 1

    def _watch(self, over: threading.Event) -> None:
        every = min(1.0, self.seconds / 4)
        beats, silent, before = self._beats, 0.0, time.monotonic()
        while not over.wait(every):
            now = time.monotonic()
            silent, before = silent + min(now - before, 2 * every), now
            if beats != self._beats:
                beats, silent = self._beats, 0.0
            elif silent > self.seconds:
                what = f"nothing has moved for {self.seconds:g} s (PHASEWISE_HANG_SECONDS)"
                print(f"\nerror: {what}; the stacks of all threads:", file=sys.stderr, flush=True)
                faulthandler.dump_traceback(all_threads=True)
                os._exit(INTERNAL)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch while the block runs."""
        over = threading.Event()
        self.beat()
        thread = threading.Thread(target=self._watch, args=(over,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
