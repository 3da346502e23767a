"""One stage as one Prefect task: the work itself is done by DVC, in a supervised child.

    dvc --wait-for-lock repro --single-item train@phase2

So a flow does what ``dvc repro`` would have done, and ``dvc status`` is clean after it. A stage
that DVC finds unchanged ends in a state named Cached. DVC answers every failure with 255, so what
happened is learnt from its output.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import task_run
from prefect.states import Cancelled, Completed

from flows import accelerator
from flows.artifacts import showing
from flows.outcome import TIMED_OUT, Logger, failed, signal_of, speak_in_words, worth_retrying
from flows.settings import settings
from flows.supervise import Leash, Stopped, supervise
from tasks.errors import BUSY
from tasks.settings import settings as work_settings

RETRY_DELAYS = [5.0, 30.0, 120.0]
_STARTED = re.compile(r"Running stage '(.+)':")
_DVC_ERROR = re.compile(r"ERROR: (?:failed to reproduce '[^']*': )?(.*)")
_EXITED = re.compile(r"failed to run: .* exited with (-?\d+)")
_BUSY = "is busy, it is being blocked by"
_CHATTER = re.compile(
    r"To track the changes with|\s+git add|To enable auto staging|\s+dvc config|Use `dvc push`"
    r"|(Generating|Updating) lock file|Data and pipelines are up to date"
)


@task(
    name="stage",
    task_run_name="{address}",
    retries=len(RETRY_DELAYS),
    retry_delay_seconds=RETRY_DELAYS,
    retry_condition_fn=worth_retrying,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def run_stage(
    address: str,
    force: bool = False,
    unchanged: bool = False,
    timeout: float | None = None,
    leash: Leash | None = None,
) -> State[None]:
    """Bring one stage up to date.

    Args:
        address: e.g. ``train@phase2``.
        force: run it even if DVC finds it unchanged, from the beginning (a retry goes on from where
            the attempt before it ended).
        unchanged: whether DVC was just asked and found nothing to do.
        timeout: seconds after which it is stopped, not counting a wait for the accelerator.
        leash: ends it when pulled.

    Returns:
        Completed, Cached (nothing to do), TimedOut, Cancelled (the leash was pulled), or Failed
        with what the stage said.
    """
    speak_in_words()
    if unchanged and not force:
        return _cached(address)
    logger, leash = get_run_logger(), leash or Leash()
    heard = Heard(logger)
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", address]
    env = _environment()
    if force:
        command.append("--force")
        env["PHASEWISE_RESTART"] = str(task_run.run_count == 1).lower()
    try:
        with _its_turn(address, leash, logger) as keep, showing(address, Path()) as show:
            code = supervise(command, heard.line, env=env, timeout=timeout, leash=leash, keep=keep)
            if code == 0 and heard.started:
                show()
    except TimeoutError as error:
        return failed(f"{address} was {error}; run it again to go on", BUSY, name=TIMED_OUT)
    except Stopped:
        return Cancelled(message=f"{address} was stopped; run it again to go on")
    if code == 0:
        return Completed(message=f"{address} is done") if heard.started else _cached(address)
    return failed(f"{address} {heard.reason}", heard.exit_code or code)


def _cached(address: str) -> State[None]:
    return Completed(name="Cached", message=f"{address} is unchanged")


@contextmanager
def _its_turn(address: str, leash: Leash, logger: Logger) -> Iterator[list[int]]:
    """The turn of a stage that needs the accelerator; yields the descriptors of its lock."""
    if not accelerator.needed_by(address):
        yield []
        return
    who = f"process {os.getpid()} ({address} in {Path.cwd()})"
    with accelerator.held(settings().accelerator, who, leash, logger) as lock:
        yield [lock]


class Heard:
    """What the child said, line by line; each goes to the log as it comes."""

    def __init__(self, logger: Logger) -> None:
        self.started = False
        self.exit_code: int | None = None
        self._logger = logger
        self._dvc_error = ""
        self._said: deque[str] = deque(maxlen=40)

    def line(self, line: str) -> None:
        line = line.rstrip()
        if not line:
            return
        self._logger.log(_level(line), "%s", line)
        if _STARTED.fullmatch(line):
            self.started = True
        elif match := _DVC_ERROR.match(line):
            self._dvc_error = match[1]
            if exited := _EXITED.fullmatch(match[1]):
                code = int(exited[1])
                self.exit_code = code if code >= 0 else 128 - code
            elif _BUSY in match[1]:
                self.exit_code = BUSY
        else:
            self._said.append(line)

    @property
    def reason(self) -> str:
        """Why it failed: the stage's own error with its hint, else its last line, else DVC's."""
        if self.exit_code in (None, BUSY) and not self._own_error:
            return f"could not run: {self._dvc_error or 'dvc ended without a word'}"
        if number := signal_of(self.exit_code or 0):
            return f"was ended by {number.name}"
        last = self._own_error or (self._said[-1] if self._said else "it said nothing")
        return f"failed with exit code {self.exit_code}: {last}"

    @property
    def _own_error(self) -> str:
        lines = list(self._said)
        for i in reversed(range(len(lines))):
            if lines[i].startswith("error: "):
                hints = [line for line in lines[i + 1 :] if line.startswith("hint: ")]
                return "\n".join([lines[i].removeprefix("error: "), *hints[:1]])
        return ""


def _level(line: str) -> int:
    if line.lower().startswith("error:"):
        return logging.ERROR
    if _CHATTER.match(line):
        return logging.DEBUG
    return logging.WARNING if line.lower().startswith("warning:") else logging.INFO


def _environment() -> dict[str, str]:
    """For dvc and the stage below it: this Python first, lines as they come and not too many."""
    known = work_settings().model_fields_set
    defaults = {} if "log_every_seconds" in known else {"PHASEWISE_LOG_EVERY_SECONDS": "15"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return defaults | os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1"}
