"""The flow ``pretrain``: one phase of training, and what it stands on.

python -m flows.pretrain phase2 --tokens 2M --set phases.phase2.lr=5e-4
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.dag import Dag
from flows.walk import PARAMS, run_name, walk
from tasks.recipe_edit import edited


@flow(flow_run_name=run_name, persist_result=False)
def pretrain(
    phase: str,
    upstream: bool = True,
    force: bool = False,
    tokens: str | int | None = None,
    set: list[str] | None = None,
    timeout_minutes: float | None = None,
) -> State[None]:
    """Train one phase of the recipe.

    Args:
        phase: its name in params.yaml.
        upstream: bring all that it stands on up to date first; else train on what there is.
        force: train again, even if nothing has changed.
        tokens: how long to train it, e.g. 2M; written into params.yaml.
        set: another change of the recipe, key=value, e.g. phases.phase2.lr=1e-3; may be repeated.
        timeout_minutes: stop a stage that takes longer; training goes on from there next time.
    """

    def choose(dag: Dag) -> list[str]:
        target = dag.address("train", phase)
        return dag.up_to(target) if upstream else [target]

    return walk(
        choose,
        changes=_changes(phase, tokens, set),
        force=[f"train@{phase}"] * force,
        timeout_minutes=timeout_minutes,
    )


def check(dag: Dag, given: dict[str, Any]) -> None:
    """Raise UserError for a phase or a change of the recipe that cannot be."""
    dag.address("train", given["phase"])
    if changes := _changes(given["phase"], given["tokens"], given["set"]):
        edited(PARAMS, changes)


def _changes(phase: str, tokens: str | int | None, others: list[str] | None) -> list[str]:
    return [*(others or []), *([] if tokens is None else [f"phases.{phase}.tokens={tokens}"])]


if __name__ == "__main__":
    from flows.command import main

    main(pretrain, check=check)
