"""What the server knows of this project: a work pool, and a deployment for each way to run it.

data/default   pretrain/<phase>, one for each of the recipe   release/default   pipeline/default
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowFilter
from prefect.deployments.runner import EntrypointType
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from flows.data import data
from flows.pipeline import pipeline
from flows.pretrain import pretrain
from flows.release import release

POOL = "phasewise"


def create_pool(client: SyncPrefectClient) -> None:
    """A pool of processes on this machine, one run at a time, since each wants all of it."""
    try:
        client.read_work_pool(POOL)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(
            WorkPoolCreate(
                name=POOL,
                type="process",
                description="This machine: one run at a time, the others wait their turn",
                base_job_template=template,
                concurrency_limit=1,
            )
        )


def register(client: SyncPrefectClient, phases: Iterable[str], root: Path) -> list[str]:
    """Create or update the deployments of a recipe; remove those of phases it no longer has.

    Returns their names, ``<flow>/<deployment>``.
    """
    wanted: list[tuple[Flow, str, dict[str, str]]] = [
        (data, "default", {}),
        *((pretrain, phase, {"phase": phase}) for phase in phases),
        (release, "default", {}),
        (pipeline, "default", {}),
    ]
    for flow, name, parameters in wanted:
        flow.to_deployment(
            name,
            parameters=parameters,
            work_pool_name=POOL,
            job_variables={"working_dir": str(root)},
            entrypoint_type=EntrypointType.MODULE_PATH,
        ).apply()
    _remove_others(client, pretrain.name, {name for flow, name, _ in wanted if flow is pretrain})
    return [f"{flow.name}/{name}" for flow, name, _ in wanted]


def _remove_others(client: SyncPrefectClient, flow: str, names: set[str]) -> None:
    of_flow = FlowFilter.model_validate({"name": {"any_": [flow]}})
    for deployment in client.read_deployments(flow_filter=of_flow):
        if deployment.work_pool_name == POOL and deployment.name not in names:
            client.delete_deployment(deployment.id)
