"""Losses that jump: told by the median of those before, which one spike cannot move."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable

WINDOW = 64  # losses that the median is taken of
ENOUGH = 16  # with fewer, nothing is a spike: the first losses fall fast


class Spikes:
    """The last losses of a run. ``losses`` is its whole state and belongs in a checkpoint."""

    def __init__(self, factor: float | None, losses: Iterable[float] = ()) -> None:
        self.factor = factor
        self.losses = deque(losses, maxlen=WINDOW)

    def found(self, loss: float) -> bool:
        """Whether ``loss`` is more than ``factor`` times the median of the window."""
        if self.factor is None or len(self.losses) < ENOUGH:
            return False
        return loss > self.factor * statistics.median(self.losses)

    def add(self, loss: float) -> None:
        """Remember a loss that was no spike."""
        if self.factor is not None:
            self.losses.append(loss)
