"""The default store, mlflow.db beside params.yaml, goes along when its folder is moved.

MLflow writes the place of every artifact into its database as a whole path. Opened in another
place than it was made in, the database is told of it, so that a folder can be moved, or copied,
with its record: each copy then has its own artifacts.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

ARTIFACTS = "mlartifacts"
_PLACES = {  # table -> column with a file:// address
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}
_WAIT_SECONDS = 5.0


def artifacts(root: Path) -> str:
    """The address of the default store's artifacts."""
    return (root.resolve() / ARTIFACTS).as_uri()


def move_along(database: Path) -> int:
    """Point the addresses of artifacts to the folder beside ``database``; returns how many.

    Nothing is changed where there is no such folder. Raises sqlite3.Error where the file is not a
    database or somebody else holds it.
    """
    here = artifacts(database.parent)
    if not database.exists() or not (database.parent / ARTIFACTS).is_dir():
        return 0
    changed = 0
    with closing(sqlite3.connect(database, timeout=_WAIT_SECONDS)) as connection, connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        if not tables.issuperset(_PLACES):
            return 0  # MLflow has not made it yet
        found = connection.execute(
            "SELECT artifact_location FROM experiments WHERE artifact_location LIKE ? "
            "AND artifact_location <> ?",
            (f"file://%/{ARTIFACTS}", here),
        )
        for there in {place for (place,) in found}:
            for table, column in _PLACES.items():
                done = connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (here, len(there) + 1, there, len(there) + 1, f"{there}/"),
                )
                changed += done.rowcount
    return changed
