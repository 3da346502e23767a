"""Stop the server and the worker that ``python -m flows.up`` started, and nothing else.

    python -m flows.down

A run in progress is cancelled first: its training writes a checkpoint and goes on from there when
it is run again.
"""

from __future__ import annotations

import time
from pathlib import Path

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.settings import PREFECT_HOME, PREFECT_PROFILES_PATH, temporary_settings
from prefect.states import Cancelling

from flows.command import plain_main
from flows.deployments import POOL
from flows.services import Service, client_settings, read_profile

CANCEL_SECONDS = 45.0  # a worker gives a run 30
STOP_SECONDS = 20.0
_AT_WORK = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]


def down() -> list[str]:
    """Stop what ``up`` started; returns the names of what was stopped."""
    home, profile = Path(PREFECT_HOME.value()).resolve(), PREFECT_PROFILES_PATH.value()
    server, worker = Service("server", home), Service("worker", home)
    if worker.running and server.running and (url := read_profile(profile)):
        with temporary_settings(client_settings(url)), get_client(sync_client=True) as client:
            try:
                _cancel_runs(client)
            except httpx.HTTPError as error:
                print(f"the server does not answer ({error}); stopping it all the same")
    stopped = [s.name for s in (worker, server) if s.stop(STOP_SECONDS)]
    profile.unlink(missing_ok=True)
    print(f"stopped: {', '.join(stopped)}" if stopped else "nothing was up")
    return stopped


def _cancel_runs(client: SyncPrefectClient) -> None:
    """Cancel the pool's runs at work and wait until each has ended."""
    for run in _at_work(client):
        print(f"cancelling {run.name}", flush=True)
        client.set_flow_run_state(run.id, Cancelling(message="`make down`"))
    deadline = time.monotonic() + CANCEL_SECONDS
    while _at_work(client) and time.monotonic() < deadline:
        time.sleep(0.5)


def _at_work(client: SyncPrefectClient) -> list[FlowRun]:
    return client.read_flow_runs(
        work_pool_filter=WorkPoolFilter.model_validate({"name": {"any_": [POOL]}}),
        flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": _AT_WORK}}}),
    )


if __name__ == "__main__":
    plain_main(down, __doc__)
