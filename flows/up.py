"""Start a Prefect server and a worker for this project, and register its deployments.

    python -m flows.up

Both go on when the terminal is closed, keep their state in .prefect/, and listen on this machine
alone unless told. Doing it twice is fine: what runs is left alone, and the deployments follow the
recipe.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from platform import node

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_HOME, PREFECT_PROFILES_PATH, temporary_settings

from flows import dag
from flows.automation import end_orphans, watch_silence
from flows.command import healthy, plain_main
from flows.deployments import POOL, create_pool, register
from flows.services import (
    Service,
    address,
    auth_string,
    base_url,
    check_free,
    client_env,
    client_settings,
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
    with temporary_settings(client_settings(url)), get_client(sync_client=True) as client:
        _check_password(client)
        create_pool(client)
        names = register(client, phases, Path.cwd())
        watch_silence()
        end_orphans()
        now = datetime.now(UTC)
        command = prefect("worker", "start", "--pool", POOL, "--name", node())
        if worker.start(command, client_env(url)):
            worker.wait_for(lambda: _has_worker(client, now))
    print(_next_steps(base, home, names))
    return base


def _start_server(server: Service) -> str:
    """Start the server unless it runs; returns its address."""
    host, number = address()
    base = base_url(host, number)
    if server.running:
        there = read_profile(PREFECT_PROFILES_PATH.value())
        if there not in (None, f"{base}/api"):
            raise UserError(
                f"the server is up at {there}, not at {base}/api",
                where="PHASEWISE_PREFECT_PORT",
                hint="`make down` first, or leave host and port as they are",
                exit_code=USAGE,
            )
        return base
    check_free(host, number)
    server.start(server_command(host, number), server_env(host, number))
    return base


def _check_password(client: SyncPrefectClient) -> None:
    """Raise UserError where the server, started earlier, has another password than ours."""
    try:
        client.read_work_pools(limit=1)
    except PrefectHTTPStatusError as error:
        if error.response.status_code != HTTPStatus.UNAUTHORIZED:
            raise
        raise UserError(
            "the server that runs does not take this password",
            where="PREFECT_SERVER_API_AUTH_STRING",
            hint="`make down` first, or set the one it was started with",
            exit_code=USAGE,
        ) from None


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
    if auth_string():
        lines.append("  elsewhere, set PREFECT_API_AUTH_STRING to the server's password too")
    if (other := os.environ.get("PREFECT_API_URL")) not in (None, "", f"{base}/api"):
        lines.append(f"  note: your PREFECT_API_URL={other} wins over this server; unset it")
    return "\n".join(lines)


if __name__ == "__main__":
    plain_main(up, __doc__)
