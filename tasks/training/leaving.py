"""When a phase leaves before its end: told by a signal, or at a step or time limit of the machine.

SIGTERM and Ctrl-C finish the step and write a checkpoint; a second one leaves at once. A signal may
reach one process of several, so all ranks ask each other after every step.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType

from tasks.errors import BUSY
from tasks.settings import Settings
from tasks.training.world import World

ONE_DEATH_SECONDS = 0.5  # a second SIGTERM within it is the first once more


class Leaving:
    """Whether to leave, agreed on by all ranks of ``world``; listens for signals from now on.

    Attributes:
        asked: the signal that one of them was told to leave by; 1: a limit; 0: nobody asked.
    """

    def __init__(self, machine: Settings, world: World) -> None:
        self.asked = 0
        self._machine, self._world = machine, world
        self._signal, self._since = 0, 0.0
        self._started = time.monotonic()
        self._slowest = 0.0  # seconds of a step, to leave in time before a limit
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._hear)

    @property
    def exit_code(self) -> int:
        return 128 + self.asked if self.asked > 1 else BUSY

    def due(self, step: int, seconds: float) -> bool:
        """Whether to leave after this step, which took ``seconds``; every rank must ask."""
        self._slowest = max(self._slowest, seconds)
        limit, elapsed = self._machine.max_seconds, time.monotonic() - self._started
        due = step == self._machine.stop_at_step
        due |= limit is not None and elapsed + 2 * self._slowest > limit
        self.asked = self._world.most(self._signal or int(due))
        return self.asked > 0

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._signal:
            # the kernel may say more than once that a parent with threads was killed
            since = time.monotonic() - self._since
            if number == signal.SIGTERM and since < ONE_DEATH_SECONDS:
                return
            os._exit(128 + number)
        self._signal, self._since = number, time.monotonic()
        print("\n    leaving after this step; once more to leave at once", file=sys.stderr)
