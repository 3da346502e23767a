"""Start a Prefect server and a worker for this project, and register its deployments.

    python -m flows.up

Both go on when the terminal is closed, keep their state in .prefect/, and listen on this machine
alone. Doing it twice is fine: what runs is left alone, and the deployments follow the recipe.
"""

from __future__ import annotations

import argparse
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from platform import node

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_PROFILES_PATH,
    temporary_settings,
)

from flows import dag
from flows.automation import watch_silence
from flows.command import healthy
from flows.deployments import POOL, create_pool, register
from flows.services import (
    HOST,
    Service,
    check_free,
    port,
    prefect,
    read_profile,
    server_command,
    server_env,
    write_profile,
)
from tasks.errors import USAGE, UserError


def up() -> str:
    """Bring the server and the worker up and return the server's address.

    Raises UserError for a busy port, a faulty recipe, or a process that does not start.
    """
    phases = dag.load().names("train")
    home = Path(PREFECT_HOME.value()).resolve()
    server, worker = Service("server", home), Service("worker", home)
    base = _start_server(server)
    url = f"{base}/api"
    server.wait_for(lambda: healthy(url))
    write_profile(PREFECT_PROFILES_PATH.value(), url)
    with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
        create_pool(client)
        names = register(client, phases, Path.cwd())
        watch_silence()
        now = datetime.now(UTC)
        command = prefect("worker", "start", "--pool", POOL, "--name", node())
        if worker.start(command, os.environ | {"PREFECT_API_URL": url}):
            worker.wait_for(lambda: _has_worker(client, now))
    print(_next_steps(base, home, names))
    return base


def _start_server(server: Service) -> str:
    """Start the server unless it runs; returns its address."""
    number = port()
    base = f"http://{HOST}:{number}"
    if server.running:
        there = read_profile(PREFECT_PROFILES_PATH.value())
        if there not in (None, f"{base}/api"):
            raise UserError(
                f"the server is up at {there}, not on port {number}",
                where="PHASEWISE_PREFECT_PORT",
                hint="`make down` first, or leave the port as it is",
                exit_code=USAGE,
            )
        return base
    check_free(number)
    server.start(server_command(number), server_env(number))
    return base


def _has_worker(client: SyncPrefectClient, since: datetime) -> bool:
    workers = client.read_workers_for_work_pool(POOL)
    return any(w.last_heartbeat_time and w.last_heartbeat_time >= since for w in workers)


def _next_steps(base: str, home: Path, names: list[str]) -> str:
    program = Path(sys.executable).parent / "prefect"
    if program.is_relative_to(Path.cwd()):
        program = program.relative_to(Path.cwd())
    lines = [
        f"Prefect is up: {base} (logs and state in {home.name}/)",
        "  run one of these, from this folder:",
        *(f"    {program} deployment run {name}" for name in names),
        "  stop both: make down",
        f"  in another folder, set PREFECT_API_URL={base}/api",
    ]
    if (other := os.environ.get("PREFECT_API_URL")) not in (None, "", f"{base}/api"):
        lines.append(f"  note: your PREFECT_API_URL={other} wins over this server; unset it")
    return "\n".join(lines)


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m flows.up",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    try:
        up()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
