"""The doctor's look at what is versioned: the pipeline, the cache, the remote, sources, registry.

DVC is asked by its command, whose words on a lost file or a remote that is away are few: here they
are what is lost, and the command that brings it back.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from tasks.cli.finding import Finding
from tasks.cli.project import load_recipe
from tasks.errors import UserError
from tasks.files import read_json
from tasks.workspace import Workspace

PORTS = {"ssh": 22, "s3": 443, "http": 80, "https": 443}
AWAY_SECONDS = 3.0
MOST = 3  # named in one line


def pipeline(root: Path) -> Iterator[Finding]:
    """Is everything up to date, here, and in DVC's cache?"""
    if not (root / ".dvc").is_dir():
        yield Finding("bad", "dvc", "no .dvc folder here", "dvc init")
        return
    done = _dvc(root, "status", "--json")
    if done.returncode:
        yield Finding("warn", "dvc", _said(done.stderr), "dvc status")
        return
    status = json.loads(done.stdout)
    if not status:
        yield Finding("ok", "dvc", "everything is up to date")
        return
    yield Finding("ok", "dvc", f"there is work to do: {_some(list(status))}", "dvc repro")
    lost = {stage: found for stage in status if (found := _outs(status[stage], "not in cache"))}
    if lost:
        yield Finding(
            "warn",
            "cache",
            f"DVC's cache has lost files of {_some([p for paths in lost.values() for p in paths])}",
            f"they are still here, put them back: dvc commit --force {' '.join(lost)}",
        )
    if gone := [path for changes in status.values() for path in _outs(changes, "deleted")]:
        yield Finding(
            "warn",
            "files",
            f"not here: {_some(gone)}",
            "dvc checkout brings what the cache has, dvc pull what the remote has; "
            "dvc repro makes the rest again",
        )


def _outs(changes: list[object], state: str) -> list[str]:
    """The outputs in a state, of one stage of `dvc status --json`."""
    return [
        path
        for change in changes
        if isinstance(change, dict)
        for path, found in change.get("changed outs", {}).items()
        if found == state
    ]


def remote(root: Path) -> Iterator[Finding]:
    """Is DVC's default remote there? Nothing is sent: a folder is looked at, a port knocked at."""
    from tasks.registry.provenance import without_credentials

    lines = _dvc(root, "config", "--list").stdout.splitlines()
    config = dict(line.split("=", 1) for line in lines if "=" in line)
    if not (name := config.get("core.remote")):
        yield Finding("ok", "remote", "none: what is made is on this machine alone")
        return
    url = config.get(f"remote.{name}.url", "")
    error = _away(root, url, config.get(f"remote.{name}.endpointurl", ""), config, name)
    shown = f"{name}, {without_credentials(url)}"
    if error is None:
        yield Finding("ok", "remote", shown)
    else:
        yield Finding(
            "warn",
            "remote",
            f"{shown}: {error}",
            "until it is back, use `dvc pull && dvc repro`, which stops; `dvc repro --pull` would "
            "train again what it cannot fetch",
        )


def _away(root: Path, url: str, endpoint: str, config: dict[str, str], name: str) -> str | None:
    """Why the remote does not answer, or None."""
    address = urlsplit(endpoint or url)
    if not address.scheme or len(address.scheme) == 1:  # a path, also C:\...
        folder = (root / ".dvc" / url).resolve()
        return None if folder.is_dir() else "no such folder"
    if address.scheme not in PORTS:
        return None
    host = "s3.amazonaws.com" if address.scheme == "s3" else address.hostname or ""
    port = int(config.get(f"remote.{name}.port", 0)) or address.port or PORTS[address.scheme]
    try:
        socket.create_connection((host, port), timeout=AWAY_SECONDS).close()
    except OSError as error:
        return f"{host}:{port} does not answer ({error.strerror or error})"
    return None


def locks(root: Path) -> Iterator[Finding]:
    """Who runs DVC now, and whose lock is left?"""
    rwlock = root / ".dvc/tmp/rwlock"
    held = read_json(rwlock) if rwlock.exists() and rwlock.stat().st_size else {}
    owners = {entry["pid"] for part in held.values() for entry in _entries(part)}
    for pid in sorted(owners):
        if Path(f"/proc/{pid}").exists():
            yield Finding("ok", "locks", f"DVC runs as process {pid}")
        else:
            yield Finding(
                "warn",
                "locks",
                f"DVC's lock names process {pid}, which is gone",
                "nothing to do: the next dvc repro drops it",
            )


def _entries(part: object) -> Iterator[dict[str, int]]:
    """DVC's rwlock: path -> one writer, or a list of readers."""
    assert isinstance(part, dict)
    for value in part.values():
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, dict) and "pid" in entry:
                yield entry


def sources(root: Path) -> Iterator[Finding]:
    """Are the files that sources were read from as they were?"""
    from tasks.data.changed import changed_files

    try:
        recipe = load_recipe(root / "params.yaml")
    except UserError:
        return  # the doctor says so elsewhere
    for name in recipe.sources:
        if found := changed_files(Workspace(root), recipe, name):
            yield Finding(
                "warn",
                "sources",
                f"{name} is not what was downloaded: {_some(found)}",
                f"read it again: dvc repro --force --single-item download@{name}; then dvc repro",
            )


def registry(root: Path) -> Iterator[Finding]:
    """Is what reports/registration.json names in the registry of this machine?"""
    from tasks.registry.mlflow_server import TrackingError
    from tasks.registry.mlflow_store import EXPORT, Store
    from tasks.registry.provenance import local_database, shown_uri

    record = Workspace(root).registration
    if not record.exists():
        return
    found, database = read_json(record), local_database(root)
    try:
        tags = (
            []
            if database and not database.exists()
            else Store(root, quick=True).versions(found["name"]).values()
        )
    except TrackingError:
        return  # the doctor says so elsewhere
    if found["export"] not in {version.get(EXPORT) for version in tags}:
        yield Finding(
            "warn",
            "registry",
            f"{found['name']} version {found['version']} was registered elsewhere: "
            f"{shown_uri(root)} here does not have it",
            "dvc repro --force --single-item register",
        )


def _dvc(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=root,
        env=os.environ | {"DVC_NO_ANALYTICS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def _said(stderr: str) -> str:
    """The first error of DVC's, without its word for it."""
    lines = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if "ERROR" in line]
    return lines[0] if lines else (stderr.strip() or "it said nothing")


def _some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return ", ".join(names[:MOST]) + more
