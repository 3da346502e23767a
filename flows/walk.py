"""A flow is a walk over part of DVC's DAG, upstream first.

    choose stages -> ask DVC which are unchanged -> start each when those it stands on are done

Stages that do not stand on each other run side by side, as many as the machine's settings allow,
and never two that need the accelerator. After a failure no stage is begun; those at work end well,
so that what they made is not made again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed

from flows import accelerator, dag
from flows.artifacts import try_to_show
from flows.automation import end_orphans
from flows.crew import Crew
from flows.dag import Dag
from flows.outcome import exit_code, failed, outlive_output, speak_in_words
from flows.settings import settings
from flows.stage import run_stage
from tasks.errors import BUSY, UserError
from tasks.process import die_with_parent
from tasks.recipe_edit import edit

PARAMS = Path("params.yaml")


def run_name() -> str:
    """``phase2 · 21 Nov 14:05``: what the run is about and when it began, for the list of runs."""
    what = flow_run.parameters.get("phase") or flow_run.flow_name
    return f"{what} · {datetime.now().astimezone():%d %b %H:%M}"


def walk(
    choose: Callable[[Dag], list[str]],
    *,
    changes: Sequence[str] = (),
    force: Collection[str] = (),
    timeout_minutes: float | None = None,
) -> State[None]:
    """Run stages, each after those it stands on, and begin none after one has failed.

    Args:
        choose: picks the stages, upstream first.
        changes: of the recipe, ``key=value``; checked whole, then written into params.yaml.
        force: those to run even if DVC finds them unchanged.
        timeout_minutes: of one stage.

    Returns:
        The flow's final state, with a message for people.
    """
    speak_in_words()
    outlive_output()
    _end_with_worker()
    logger = get_run_logger()
    try_to_show(logger, end_orphans)
    try:
        story = dag.load()
        addresses = choose(story)
        if changes:
            change_recipe(changes)
            story = dag.load()
            addresses = choose(story)
        before = [a for a in story.up_to(*addresses) if a not in addresses]
        stale = _stale([*addresses, *before])
    except UserError as error:
        logger.error("%s", error)
        return failed(str(error), error.exit_code)
    for change in changes:
        logger.info("the recipe has %s now", change)
    logger.info("stages: %s", ", ".join(addresses))
    not_brought = _not_brought([a for a in before if stale and a in stale])
    if not_brought:
        logger.warning("%s", not_brought)
    timeout = timeout_minutes * 60 if timeout_minutes else None
    states = Walk(story, addresses, stale, frozenset(force), timeout).run()
    for state in states.values():
        if not state.is_completed():
            return failed("; ".join(filter(None, [state.message, not_brought])), exit_code(state))
    cached = sum(state.name == "Cached" for state in states.values())
    message = f"{len(addresses) - cached} of {len(addresses)} stages run, {cached} unchanged"
    downstream = [a for a in story.stages if a not in (*addresses, *before)]
    message = "; ".join(filter(None, [message, not_brought, _left_to_do(downstream)]))
    logger.info("%s", message)
    return Completed(message=message)


def change_recipe(changes: Sequence[str]) -> None:
    """Write changes into params.yaml, all or none. Raises UserError where one cannot be.

    DVC notes the recipe's values when a stage ends, so it must not change below one that runs.
    """
    if running := dag.at_work():
        raise UserError(
            f"the recipe cannot change while DVC runs a stage (process {running[0]})",
            where=str(PARAMS),
            hint="wait for it, or stop it; then run this again",
            exit_code=BUSY,
        )
    edit(PARAMS, changes)


@dataclass(frozen=True)
class Walk:
    """Stages to run.

    Attributes:
        story: who stands on whom.
        addresses: the stages, upstream first.
        stale: those that DVC would run as things stand; None where it could not be asked.
        force: those to run in any case.
        timeout: seconds of one stage.
    """

    story: Dag
    addresses: list[str]
    stale: Collection[str] | None
    force: Collection[str]
    timeout: float | None

    def run(self) -> dict[str, State[Any]]:
        """Run them; returns the states of those that were begun, in the order of their ends."""
        done: dict[str, State[Any]] = {}
        running: set[str] = set()
        with Crew() as crew:
            while True:
                for address in self._next(done, running):
                    running.add(address)
                    crew.start(address, partial(self._stage, address, done, crew))
                if not running:
                    return done
                address, state = crew.wait()
                running.remove(address)
                done[address] = state

    def _next(self, done: dict[str, State[Any]], running: Collection[str]) -> list[str]:
        """What may begin now, beside what runs."""
        if not all(state.is_completed() for state in done.values()):
            return []
        chosen: list[str] = []
        for address in self.addresses:
            at_work = {*running, *chosen}
            if len(at_work) >= settings().at_once:
                break
            if address in done or address in at_work or not done.keys() >= self._needs(address):
                continue
            if accelerator.needed_by(address) and any(map(accelerator.needed_by, at_work)):
                continue
            chosen.append(address)
        return chosen

    def _needs(self, address: str) -> set[str]:
        """The chosen stages that a stage stands on."""
        return set(self.story.graph.successors(address)) & set(self.addresses)

    def _stage(self, address: str, done: dict[str, State[Any]], crew: Crew) -> State[Any]:
        states = [done[need] for need in sorted(self._needs(address))]
        return run_stage(
            address,
            force=address in self.force,
            unchanged=self.stale is not None
            and address not in self.stale
            and all(state.name == "Cached" for state in states),
            timeout=self.timeout,
            leash=crew.leash,
            wait_for=states,  # they are done: this draws the lines of the run's graph
            return_state=True,
        )


def _end_with_worker() -> None:
    """Have a run that a worker started end (as Crashed, its training with a checkpoint) with it.

    Otherwise it would go on where no one can cancel it.
    """
    if "PREFECT__FLOW_RUN_ID" in os.environ:
        die_with_parent()


def _stale(addresses: list[str]) -> list[str] | None:
    """What DVC would run; None where another process is at one of them, and so it cannot say."""
    try:
        return dag.stale(addresses)
    except UserError as error:
        if error.exit_code != BUSY:
            raise
        return None


def _not_brought(addresses: Iterable[str]) -> str:
    """A note on stages that were not wanted, though what was wanted stands on them."""
    names = ", ".join(addresses)
    return f"what it stands on is out of date and was left so: {names}" if names else ""


def _left_to_do(addresses: Iterable[str]) -> str:
    """What is out of date among the stages after those walked, as the end of a message.

    The walk is over and well: that DVC is busy with another run of its own does not undo it.
    """
    try:
        left = dag.stale(addresses)
    except UserError as error:
        return f"what else is out of date is not known: {error.message}"
    return f"out of date now: {', '.join(left)} (the flow pipeline runs them)" if left else ""
