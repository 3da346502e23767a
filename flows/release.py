"""The flow ``release``: from trained phases to a registered model and the report.

python -m flows.release
"""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas.objects import State

from flows.dag import Dag, stale
from flows.walk import run_name, walk
from tasks.errors import NO_INPUT, UserError


def stages(dag: Dag) -> list[str]:
    """What stands on the trained phases. Raises UserError where one of them is not up to date."""
    if missing := stale(dag.up_to("train")):
        raise UserError(
            f"not up to date: {', '.join(missing)}",
            hint="train the phases first (flow pretrain), or run it all (flow pipeline)",
            exit_code=NO_INPUT,
        )
    return dag.after("train")


@flow(flow_run_name=run_name, persist_result=False)
def release(timeout_minutes: float | None = None) -> State[None]:
    """Export, evaluate, register and report the phases that are trained.

    It trains nothing: where a phase is not up to date it says so and stops.

    Args:
        timeout_minutes: stop a stage that takes longer.
    """
    return walk(stages, timeout_minutes=timeout_minutes)


if __name__ == "__main__":
    from flows.command import main

    main(release, check=lambda dag, given: stages(dag))
