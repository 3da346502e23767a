"""The flow ``pipeline``: the whole story, from sources to a registered model and its report.

python -m flows.pipeline
"""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas.objects import State

from flows.walk import run_name, walk


@flow(flow_run_name=run_name, persist_result=False)
def pipeline(timeout_minutes: float | None = None) -> State[None]:
    """Run every stage of the recipe.

    Args:
        timeout_minutes: stop a stage that takes longer; training goes on from there next time.
    """
    return walk(lambda dag: dag.stages, timeout_minutes=timeout_minutes)


if __name__ == "__main__":
    from flows.command import main

    main(pipeline)
