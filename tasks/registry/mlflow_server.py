"""The way to MLflow: where it is, how long it is waited for, and its failures in words.

    mlflow_server.py  the connection     mlflow_runs.py  experiments and runs
                                         mlflow_store.py  models: with the others, the `Store`

MLflow is touched in these three, and in the code that it runs itself (registered_model.py).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.errors import UNAVAILABLE, UserError
from tasks.registry.local_store import move_along
from tasks.registry.provenance import (
    local_database,
    shown_uri,
    tracking_uri,
    without_credentials,
)
from tasks.telemetry import quiet_telemetry
from tasks.workspace import home

if TYPE_CHECKING:
    from mlflow import MlflowClient


class TrackingError(UserError):
    """MLflow did not answer, or refused."""


class Server:
    """MLflow as one working folder has it: a server, or the database beside params.yaml.

    Args:
        root: the folder of params.yaml.
        quick: give up on a server after seconds; for one that is written to while training.

    Raises TrackingError (exit code 69) where MLflow does not answer.
    """

    def __init__(self, root: Path, *, quick: bool = False) -> None:
        self.root = home(root)
        self.uri = tracking_uri(root)
        quiet_telemetry()
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0" if quick else "3")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5" if quick else "60")
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # the password with it
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        with self.reaching():
            from mlflow import MlflowClient

            if database := local_database(root):
                move_along(database)
            self.client: MlflowClient = MlflowClient(self.uri, registry_uri=self.uri)

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """Turn MLflow's ways of failing into one TrackingError, with no password in its words."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
            first_line = str(error).strip().split("\n", 1)[0]
            raise TrackingError(
                without_credentials(first_line),
                where=f"MLflow at {shown_uri(self.root)}",
                hint="is the server up, and MLFLOW_TRACKING_URI its address? for a 403, start it "
                "with --allowed-hosts",
                exit_code=UNAVAILABLE,
            ) from None

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Parts of MLflow look models up at the process's address, whoever asks: make it ours."""
        before = os.environ.get("MLFLOW_TRACKING_URI")
        os.environ["MLFLOW_TRACKING_URI"] = self.uri
        try:
            yield
        finally:
            del os.environ["MLFLOW_TRACKING_URI"]
            if before is not None:
                os.environ["MLFLOW_TRACKING_URI"] = before
