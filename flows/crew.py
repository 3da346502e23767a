"""Stages side by side: a thread waits for each, and the main thread decides.

A signal reaches the main thread alone, and Prefect cannot interrupt a task in another one. So the
main thread holds a leash on every child that a thread waits for (flows/supervise.py): when it is
interrupted it pulls it, and leaves only when no child is left.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from prefect.client.schemas.objects import State

from flows.supervise import Leash

_LAST_STATE_SECONDS = 1.5  # for a stage that was stopped to say so


class Crew:
    """Runs functions that end in a state, each in a thread of its own.

    Attributes:
        leash: what the functions give to ``supervise``; pulled when the block ends by an exception.
    """

    def __init__(self) -> None:
        self.leash = Leash()
        self._threads: list[threading.Thread] = []
        self._ended: SimpleQueue[tuple[str, State[Any] | BaseException]] = SimpleQueue()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Stop all. A stage that sleeps before its next attempt has no child: it is not awaited."""
        if kind is None:
            return
        self.leash.pull()
        deadline = time.monotonic() + _LAST_STATE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def start(self, name: str, work: Callable[[], State[Any]]) -> None:
        """Begin ``work`` in a thread that sees the flow run of this one."""
        run = contextvars.copy_context().run
        thread = threading.Thread(target=run, args=(self._run, name, work), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def wait(self) -> tuple[str, State[Any]]:
        """The next one that ends, and its state; what it raised is raised here."""
        name, ended = self._ended.get()
        if isinstance(ended, BaseException):
            raise ended
        return name, ended

    def _run(self, name: str, work: Callable[[], State[Any]]) -> None:
        try:
            self._ended.put((name, work()))
        except BaseException as error:
            self._ended.put((name, error))
