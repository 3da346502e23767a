"""How a stage or a flow ends: a state that people can read, and an exit code that a script can.

A failure is told in words (a UserError), and never with a traceback.
"""

from __future__ import annotations

import logging
import os
import signal
from typing import Any

import httpx
from prefect import Task
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging.handlers import PrefectConsoleHandler
from prefect.states import Failed

from tasks.errors import BUSY, INTERNAL, UNAVAILABLE, UserError

Logger = logging.Logger | logging.LoggerAdapter[Any]
_PASSING = {UNAVAILABLE, BUSY}
TIMED_OUT = "TimedOut"


def failed(message: str, code: int, name: str = "Failed") -> State[Any]:
    """A failed state with a message for people and an exit code for the command line."""
    return Failed(name=name, message=message, data=UserError(message, exit_code=code))


def exit_code(state: State[Any]) -> int:
    """The exit code of a final state."""
    if state.is_completed():
        return 0
    error = state.result(raise_on_failure=False)
    return error.exit_code if isinstance(error, UserError) else INTERNAL


def worth_retrying(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether the same command may succeed next time.

    So it may after a signal ended it, a service was away, or something was busy or interrupted. A
    wrong recipe or bad data stays wrong, and so does a stage that takes too long.
    """
    code = exit_code(state)
    return state.name != TIMED_OUT and (code in _PASSING or signal_of(code) is not None)


def signal_of(code: int) -> signal.Signals | None:
    """The signal that an exit code of 128 + n stands for."""
    try:
        return signal.Signals(code - 128)
    except ValueError:
        return None


class InWords(logging.Filter):
    """Keeps tracebacks of errors that speak for themselves out of the logs of runs.

    Prefect's engine logs one for every failed flow, and an empty one for a state that was returned.
    A server that does not answer is said in a line.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if not isinstance(record.exc_info, tuple):
            return True
        if record.exc_info[0] is None or isinstance(record.exc_info[1], httpx.TransportError):
            record.exc_info = None
        return not (record.exc_info and isinstance(record.exc_info[1], UserError))


def speak_in_words() -> None:
    """Install the filter on the logs of flow and task runs, once."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logger = logging.getLogger(name)
        if not any(isinstance(known, InWords) for known in logger.filters):
            logger.addFilter(InWords())


def outlive_output() -> None:
    """Have a run go on, or end in order, when nobody reads its output any more.

    The worker that read it may be gone: rich, which Prefect logs with, would exit there and then,
    and the run would never say how it ended.
    """

    def silence() -> None:
        with open(os.devnull, "w") as nowhere:
            for stream in (1, 2):
                os.dup2(nowhere.fileno(), stream)

    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for handler in [h for logger in loggers for h in getattr(logger, "handlers", [])]:
        if isinstance(handler, PrefectConsoleHandler):
            handler.console.on_broken_pipe = silence
