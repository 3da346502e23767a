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
    """Waits for ``beat``; when none came for ``seconds``, dumps all stacks and ends the process."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.beat()

    def beat(self) -> None:
        self._last = time.monotonic()

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(min(1.0, self.seconds / 4)):
            if time.monotonic() - self._last > self.seconds:
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
