"""The flow ``data``: from sources to the token windows that every phase reads.

python -m flows.data
"""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas.objects import State

from flows.walk import run_name, walk


@flow(flow_run_name=run_name, persist_result=False)
def data(timeout_minutes: float | None = None) -> State[None]:
    """Download, clean, deduplicate, split and encode the text, and mix it for every phase.

    Args:
        timeout_minutes: stop a stage that takes longer.
    """
    return walk(lambda dag: dag.up_to("mix"), timeout_minutes=timeout_minutes)


if __name__ == "__main__":
    from flows.command import main

    main(data)
