"""A run that dies without a word is shown as Crashed, not as Running for ever.

Every run sends a heartbeat (prefect.toml says how often). The server waits for the next one, or for
the run's end; where neither comes, the process or its machine is gone. Its stages are still shown
as Running then: whoever starts next ends them too.
"""

from __future__ import annotations

from datetime import timedelta

from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.states import Crashed

FLOWS = ["data", "pretrain", "release", "pipeline"]  # others may share the server
NAME = "Runs that went silent are Crashed"
SILENCE = timedelta(minutes=2, seconds=30)  # several heartbeats
_ENDS = [f"prefect.flow-run.{end}" for end in ("Completed", "Failed", "Cancelled", "Crashed")]


def watch_silence() -> None:
    """Install the automation on the server in force, unless it is there."""
    try:
        Automation.read(name=NAME)
    except ValueError:
        Automation(
            name=NAME,
            description="After kill -9 or a power cut a run cannot report its own end",
            trigger=EventTrigger(
                after={"prefect.flow-run.heartbeat"},
                expect={"prefect.flow-run.heartbeat", *_ENDS},
                match={"prefect.resource.id": "prefect.flow-run.*"},
                for_each={"prefect.resource.id"},
                posture=Posture.Proactive,
                threshold=1,
                within=SILENCE,
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.CRASHED,
                    message="It went silent: its process or machine is gone. Run it again.",
                )
            ],
        ).create()


def end_orphans() -> None:
    """Show as Crashed the stages that are Running in runs that have ended."""

    def states(*types: StateType) -> dict[str, object]:
        return {"state": {"type": {"any_": types}}}

    dead = states(StateType.CRASHED, StateType.CANCELLED)
    left = states(StateType.RUNNING, StateType.PENDING)
    with get_client(sync_client=True) as client:
        orphans = client.read_task_runs(
            flow_filter=FlowFilter.model_validate({"name": {"any_": FLOWS}}),
            flow_run_filter=FlowRunFilter.model_validate(dead),
            task_run_filter=TaskRunFilter.model_validate(left),
        )
        for orphan in orphans:
            end = Crashed(message="its run ended without it")
            client.set_task_run_state(orphan.id, end, force=True)
