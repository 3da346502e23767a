"""The flow ``pretrain``: one phase of training, and what it stands on.

python -m flows.pretrain phase2
"""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas.objects import State

from flows.dag import Dag
from flows.walk import run_name, walk


@flow(flow_run_name=run_name, persist_result=False)
def pretrain(
    phase: str,
    upstream: bool = True,
    force: bool = False,
    timeout_minutes: float | None = None,
) -> State[None]:
    """Train one phase of the recipe.

    Args:
        phase: its name in params.yaml.
        upstream: bring all that it stands on up to date first.
        force: train again, even if nothing has changed.
        timeout_minutes: stop a stage that takes longer; training goes on from there next time.
    """

    def choose(dag: Dag) -> list[str]:
        target = dag.address("train", phase)
        return dag.up_to(target) if upstream else [target]

    return walk(choose, force=[f"train@{phase}"] * force, timeout_minutes=timeout_minutes)


if __name__ == "__main__":
    from flows.command import main

    main(pretrain, check=lambda dag, given: dag.address("train", given["phase"]))
