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
from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from tasks.errors import UNAVAILABLE, UserError
from tasks.files import is_locked, write_text
from tasks.process import guarded

HOST = "127.0.0.1"
START_SECONDS = 90.0
_PROFILE = "phasewise"
_POLL_SECONDS = 0.2
_LOG_LINES = 15


class ServiceSettings(BaseSettings):
    """Settings of this machine, from the environment or a git-ignored .env file."""

    model_config = SettingsConfigDict(env_prefix="PHASEWISE_", env_file=".env", extra="ignore")

    prefect_port: int = Field(4200, ge=1, le=65535, description="port of the Prefect server")


def port() -> int:
    """The server's port: PHASEWISE_PREFECT_PORT, or 4200."""
    try:
        return ServiceSettings().prefect_port
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{first['msg']}, got {first['input']!r}", where="PHASEWISE_PREFECT_PORT"
        ) from None


def check_free(number: int) -> None:
    """Raise UserError where another program listens on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, number))
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


def server_command(number: int) -> list[str]:
    """The command of a server on a port of this machine alone."""
    return prefect("server", "start", "--host", HOST, "--port", str(number))


def server_env(number: int) -> dict[str, str]:
    """Its environment: its own pages may ask it, pages of other sites may not."""
    base = f"http://{HOST}:{number}"
    return os.environ | {
        "PREFECT_API_URL": f"{base}/api",
        "PREFECT_SERVER_UI_API_URL": f"{base}/api",
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": f"{base},http://localhost:{number}",
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
            guarded(server_command(number), grace=5.0),
            env=server_env(number),
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
