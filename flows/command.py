"""The command line of a flow, with or without a Prefect server.

    python -m flows.pretrain phase2 --force

A server that ``make up`` started is used, so that the run is seen in its UI. Where none is up, a
temporary one serves the run, with the same database in .prefect/, so that the UI knows it later.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_PROFILES_PATH,
    temporary_settings,
)

from flows import dag
from flows.automation import watch_silence
from flows.dag import Dag
from flows.outcome import exit_code
from flows.services import client_settings, read_profile, temporary_server
from tasks.errors import UNAVAILABLE, UserError

_DRAIN_SECONDS = 10


def main(
    flow: Flow[..., Any], check: Callable[[Dag, dict[str, Any]], object] | None = None
) -> None:
    """Read the flow's parameters from the command line, run it, leave with its exit code.

    ``check`` may refuse parameters (by a UserError) before any server is looked for.
    """
    arguments = vars(_parser(flow.fn).parse_args())
    try:
        pipeline = dag.load()
        if check:
            check(pipeline, arguments)
        with server():
            sys.exit(exit_code(flow(**arguments, return_state=True)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except httpx.TransportError as error:  # finished stages are whole, and are not run again
        print(
            f"error: the Prefect server is gone ({type(error).__name__}): how the run ended could "
            "not be recorded\nhint: run the same command again, once the server is up or with "
            "PREFECT_API_URL unset: what is done stays",
            file=sys.stderr,
        )
        sys.exit(UNAVAILABLE)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)


def plain_main(work: Callable[[], object], about: str | None) -> None:
    """The command line of a function without options: --help tells ``about``, errors are words."""
    argparse.ArgumentParser(
        prog=f"python -m flows.{work.__name__}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    try:
        work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


@contextmanager
def server() -> Iterator[None]:
    """Settings for the server that is up, or for a temporary one where none is.

    Raises UserError where PREFECT_API_URL names a server that does not answer: who names one wants
    that one.
    """
    url = PREFECT_API_URL.value()
    if url and healthy(url):
        ours = read_profile(PREFECT_PROFILES_PATH.value()) == url
        with temporary_settings(client_settings(url) if ours else {}):
            yield
        return
    if os.environ.get("PREFECT_API_URL"):
        raise UserError(
            f"no Prefect server answers at {url}",
            where="PREFECT_API_URL",
            hint="start it, or unset the variable to run with a temporary server",
            exit_code=UNAVAILABLE,
        )
    print("no Prefect server is up (`make up`): starting a temporary one", file=sys.stderr)
    with (
        temporary_server(Path(PREFECT_HOME.value()), healthy) as url,
        temporary_settings(client_settings(url)),
    ):
        watch_silence()
        try:
            yield
        finally:  # what is on its way arrives before the server goes
            APILogWorker.drain_all(_DRAIN_SECONDS)
            EventsWorker.drain_all(_DRAIN_SECONDS)


def healthy(url: str) -> bool:
    """Whether a Prefect API answers at the address."""
    with (
        temporary_settings({PREFECT_API_URL: url}),
        get_client(sync_client=True) as client,
    ):
        return client.api_healthcheck() is None


def _parser(function: Callable[..., Any]) -> argparse.ArgumentParser:
    """Options from the function's signature; their help from its docstring."""
    text = inspect.getdoc(function) or ""
    about, _, described = text.partition("\nArgs:\n")
    helps = dict(line.strip().split(": ", 1) for line in described.splitlines() if ": " in line)
    parser = argparse.ArgumentParser(
        prog=f"python -m flows.{function.__name__}",
        description=about.strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    types = typing.get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        option, default = f"--{name.replace('_', '-')}", parameter.default
        if default is inspect.Parameter.empty:
            parser.add_argument(name, help=helps[name])
        elif types[name] is bool:
            action = argparse.BooleanOptionalAction
            parser.add_argument(option, default=default, action=action, help=helps[name])
        else:
            kind = next(t for t in typing.get_args(types[name]) if t is not type(None))
            many: dict[str, Any] = (
                {"action": "append", "metavar": "KEY=VALUE"} if kind == list[str] else {}
            )
            kind = str if many else kind
            parser.add_argument(option, default=default, type=kind, help=helps[name], **many)
    return parser
