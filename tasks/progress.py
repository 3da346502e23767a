"""Live progress: a bar on a terminal, a plain line every few seconds on a pipe or in a log."""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tasks.settings import settings
from tasks.units import show_count, show_seconds

_TERMINAL_SECONDS = 0.2
_RECENT_SECONDS = 30.0  # that the rate is taken over, so that a pause does not spoil it for long


class Progress:
    """Counts up to ``total`` and shows rate, time left and whatever figures it is given."""

    def __init__(self, total: int | None, unit: str, title: str, done: int = 0) -> None:
        self.total, self.unit, self.title = total, unit, title
        self.done = done
        self._terminal = sys.stderr.isatty()
        self._every = _TERMINAL_SECONDS if self._terminal else settings().log_every_seconds
        self._shown = time.monotonic()
        self._marks = deque([(self._shown, done)])
        self._width = 0
        self._figures: dict[str, Any] = {}

    def advance(self, n: int = 1, **figures: Any) -> None:
        """Count ``n`` more; ``figures`` stand on the line (floats with four digits)."""
        self.done += n
        self._figures |= figures
        if time.monotonic() - self._shown >= self._every:
            self._show()

    @property
    def rate(self) -> float:
        """Units a second, lately."""
        now = time.monotonic()
        while len(self._marks) > 1 and now - self._marks[0][0] > _RECENT_SECONDS:
            self._marks.popleft()
        since, done = self._marks[0]
        return (self.done - done) / max(1e-9, now - since)

    def _line(self) -> str:
        parts = [f"    {self.title}"]
        if self.total:
            share = f"{100 * self.done / self.total:.0f} %"
            parts.append(f"{show_count(self.done)}/{show_count(self.total)} {self.unit} ({share})")
        else:
            parts.append(f"{show_count(self.done)} {self.unit}")
        for name, value in self._figures.items():
            parts.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
        parts.append(f"{show_count(float(self.rate))} {self.unit}/s")
        if self.total and self.rate > 0:
            left = max(0, self.total - self.done) / self.rate
            parts.append(f"ETA {show_seconds(left)}")
        return " · ".join(parts)

    def _show(self) -> None:
        self._shown = time.monotonic()
        line = self._line()
        self._marks.append((self._shown, self.done))
        if self._terminal:
            # a line that wraps could not be written over
            line = line[: shutil.get_terminal_size().columns - 1]
            sys.stderr.write(f"\r{line:<{self._width}}")
            self._width = len(line)
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()

    def close(self) -> None:
        """Leave the last state on the screen."""
        self._show()
        if self._terminal:
            sys.stderr.write("\n")


@contextmanager
def progress(total: int | None, unit: str, title: str, done: int = 0) -> Iterator[Progress]:
    """Show progress while the block runs.

    Args:
        total: units of the whole work, or None where that is not known.
        unit: plural noun, e.g. ``tokens``.
        title: what is being done.
        done: units done by an earlier run, which the rate leaves out.
    """
    shown = Progress(total, unit, title, done)
    try:
        yield shown
    finally:
        shown.close()


@contextmanager
def silent() -> Iterator[Progress]:
    """Progress that nobody sees, for processes that leave showing to another."""
    shown = Progress(None, "", "")
    shown._every = float("inf")
    yield shown
