"""Prefect's processes on this machine: the server and the worker behind the deployments, which go
on when the terminal is closed, and a temporary server for a run that finds none.

Each of the two holds a lock on its file in .prefect/ for as long as it lives, and the kernel frees
the lock however it ends. So whether it runs, and whether the process id in the file is its own, is
never a guess: no process of anyone else is taken for it, nor stopped.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from platform import node
from typing import Any

from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_SERVER_API_AUTH_STRING,
)

from flows.settings import settings
from tasks.errors import UNAVAILABLE, USAGE, UserError
from tasks.files import is_locked, write_text
from tasks.process import guarded

HOST = "127.0.0.1"
START_SECONDS = 90.0
_PROFILE = "phasewise"
_POLL_SECONDS = 0.2
_LOG_LINES = 15


def address() -> tuple[str, int]:
    """Where the server listens: this machine alone, unless told.

    Raises UserError for an address that others can reach without a password: who reaches the
    server runs commands on its workers.
    """
    host, number = settings().prefect_host, settings().prefect_port
    if not _is_loopback(host) and not auth_string():
        raise UserError(
            f"other machines can reach {host}, and the server has no password",
            where="PHASEWISE_PREFECT_HOST",
            hint="set PREFECT_SERVER_API_AUTH_STRING=<user>:<password> in the environment or in "
            "the git-ignored .env, or leave the host as it is",
            exit_code=USAGE,
        )
    return host, number


def auth_string() -> str | None:
    """The server's password, ``user:password``; never written down nor printed here."""
    return PREFECT_SERVER_API_AUTH_STRING.value() or None


def client_settings(url: str) -> dict[Any, Any]:
    """Prefect's settings for a client of our server at ``url``."""
    password = PREFECT_API_AUTH_STRING.value() or auth_string()
    return {PREFECT_API_URL: url} | ({PREFECT_API_AUTH_STRING: password} if password else {})


def client_env(url: str) -> dict[str, str]:
    """The same as an environment, for a child process."""
    ours = {setting.name: str(value) for setting, value in client_settings(url).items()}
    return os.environ | ours


def base_url(host: str, number: int, *, seen_from_afar: bool = False) -> str:
    """The address to use: of all interfaces, this machine's loopback or, from afar, its name."""
    if host != "localhost" and ip_address(host).is_unspecified:
        host = node() if seen_from_afar else HOST
    return f"http://[{host}]:{number}" if ":" in host else f"http://{host}:{number}"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        raise UserError(
            f"expected an IP address, got {host!r}",
            where="PHASEWISE_PREFECT_HOST",
            hint=f"{HOST} is this machine alone",
        ) from None


def check_free(host: str, number: int) -> None:
    """Raise UserError where another program listens on the port."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, number))
        except OSError:
            raise UserError(
                f"port {number} is in use by another program",
                where="PHASEWISE_PREFECT_PORT",
                hint=f"choose a free one: PHASEWISE_PREFECT_PORT={number + 1} make up",
                exit_code=UNAVAILABLE,
            ) from None


@dataclass(frozen=True)
class Service:
    """A process that goes on when the terminal is closed.

    Args:
        name: what people call it.
        home: folder of its files, ``<name>.lock`` and ``<name>.log``.
    """

    name: str
    home: Path

    @property
    def lock(self) -> Path:
        return self.home / f"{self.name}.lock"

    @property
    def log(self) -> Path:
        return self.home / f"{self.name}.log"

    @property
    def running(self) -> bool:
        return is_locked(self.lock)

    def start(self, command: list[str], env: Mapping[str, str]) -> bool:
        """Start it in a session of its own; False where it runs already."""
        self.home.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with self.log.open("ab") as log:
                child = subprocess.Popen(
                    command,
                    env=dict(env),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=[lock],  # the child holds the lock from now on
                )
            os.ftruncate(lock, 0)
            os.write(lock, str(child.pid).encode())
        except BlockingIOError:
            return False
        finally:
            os.close(lock)
        return True

    def wait_for(self, ready: Callable[[], bool]) -> None:
        """Wait until ``ready()``. Raises UserError with the end of the log if that fails."""
        _wait_for(ready, lambda: self.running, self.name, self.log)

    def stop(self, seconds: float) -> bool:
        """End it, by force after ``seconds``; False where it was not running."""
        if not self.running:
            return False
        pid = int(self.lock.read_text())
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while self.running:
            if time.monotonic() > deadline:
                os.killpg(pid, signal.SIGKILL)
            time.sleep(_POLL_SECONDS)
        return True


def prefect(*arguments: str) -> list[str]:
    """A ``prefect`` command of this Python."""
    return [sys.executable, "-m", "prefect", *arguments]


def server_command(host: str, number: int) -> list[str]:
    """The command of a server."""
    return prefect("server", "start", "--host", host, "--port", str(number))


def server_env(host: str, number: int) -> dict[str, str]:
    """Its environment: its own pages may ask it, pages of other sites may not."""
    near, far = base_url(host, number), base_url(host, number, seen_from_afar=True)
    return client_env(f"{near}/api") | {
        "PREFECT_SERVER_UI_API_URL": f"{far}/api",
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": f"{near},{far},http://localhost:{number}",
    }


@contextmanager
def temporary_server(home: Path, healthy: Callable[[str], bool]) -> Iterator[str]:
    """A server for the length of the block, which does not outlive this process; yields its API.

    Args:
        home: folder of its log.
        healthy: whether the API at an address answers.
    """
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        number = probe.getsockname()[1]
    home.mkdir(parents=True, exist_ok=True)
    log = home / "temporary-server.log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            guarded(server_command(HOST, number), grace=5.0),
            env=server_env(HOST, number),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://{HOST}:{number}/api"
    try:
        _wait_for(lambda: healthy(url), lambda: server.poll() is None, "temporary server", log)
        yield url
    finally:
        server.terminate()
        server.wait()


def write_profile(path: Path, url: str) -> None:
    """Tell every ``prefect`` command and flow in this folder where the server is."""
    lines = [f'active = "{_PROFILE}"', f"[profiles.{_PROFILE}]", f'PREFECT_API_URL = "{url}"', ""]
    write_text(path, "\n".join(lines))


def read_profile(path: Path) -> str | None:
    """The address that ``write_profile`` wrote, if any."""
    if not path.is_file():
        return None
    profiles = tomllib.loads(path.read_text("utf-8")).get("profiles", {})
    url = profiles.get(_PROFILE, {}).get("PREFECT_API_URL")
    return url if isinstance(url, str) else None


def _wait_for(ready: Callable[[], bool], alive: Callable[[], bool], name: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if not alive() or time.monotonic() > deadline:
            what = "ended" if not alive() else f"is not ready after {START_SECONDS:.0f} s"
            lines = log.read_text("utf-8", "replace").splitlines()[-_LOG_LINES:]
            raise UserError(
                "\n".join([f"the Prefect {name} {what}; its last words:", *lines]),
                hint=f"the whole log is {log}",
                exit_code=UNAVAILABLE,
            )
        time.sleep(_POLL_SECONDS)
