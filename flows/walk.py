"""A flow is a walk over part of DVC's DAG: one stage after the other, upstream first.

Stages run one at a time. They share this machine's cores and its accelerator, so side by side they
would end no sooner; and a stage that is called in the main thread can be interrupted, which one in
a thread pool cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from datetime import datetime

from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed

from flows import dag
from flows.dag import Dag
from flows.outcome import exit_code, failed, speak_in_words
from flows.stage import run_stage
from tasks.errors import UserError


def run_name() -> str:
    """``phase2 · 21 Nov 14:05``: what the run is about and when it began, for the list of runs."""
    what = flow_run.parameters.get("phase") or flow_run.flow_name
    return f"{what} · {datetime.now().astimezone():%d %b %H:%M}"


def walk(
    choose: Callable[[Dag], list[str]],
    *,
    force: Collection[str] = (),
    timeout_minutes: float | None = None,
) -> State[None]:
    """Run stages in order and stop at the first that fails.

    Args:
        choose: picks the stages, upstream first.
        force: those to run even if DVC finds them unchanged.
        timeout_minutes: of one stage.

    Returns:
        The flow's final state, with a message for people.
    """
    speak_in_words()
    logger = get_run_logger()
    try:
        story = dag.load()
        addresses = choose(story)
    except UserError as error:
        logger.error("%s", error)
        return failed(str(error), error.exit_code)
    logger.info("stages in order: %s", ", ".join(addresses))
    cached = 0
    timeout = timeout_minutes * 60 if timeout_minutes else None
    for address in addresses:
        state = run_stage(address, address in force, timeout, return_state=True)
        if not state.is_completed():
            return failed(state.message, exit_code(state))
        cached += state.name == "Cached"
    run = len(addresses) - cached
    message = f"{run} of {len(addresses)} stages run, {cached} unchanged"
    message += _left_to_do(a for a in story.stages if a not in addresses)
    logger.info("%s", message)
    return Completed(message=message)


def _left_to_do(addresses: Iterable[str]) -> str:
    """What is out of date among stages that were not walked, as the end of a message.

    The walk is over and well: that DVC is busy with another run of its own does not undo it.
    """
    try:
        left = dag.stale(addresses)
    except UserError as error:
        return f"; what else is out of date is not known: {error.message}"
    return f"; out of date now: {', '.join(left)} (the flow pipeline runs them)" if left else ""
