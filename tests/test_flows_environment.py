"""What a set of installed versions may break without `pip check` knowing."""

from __future__ import annotations

import importlib
import subprocess
import sys

from tests import flows_toy
from tests.places import ROOT


def test_prefects_server_can_be_imported() -> None:
    """It cannot with FastAPI from 0.155 on, though both packages' metadata allow it."""
    assert importlib.import_module("prefect.server.api.server").create_app


def test_the_settings_in_prefect_toml_are_in_force() -> None:
    code = (
        "from prefect.settings import get_current_settings as settings; s = settings()\n"
        "print(s.home, s.profiles_path, s.server.analytics_enabled, s.server.api.host,\n"
        "      s.results.default_serializer, s.results.persist_by_default,\n"
        "      s.flows.heartbeat_frequency, s.server.services.late_runs.enabled)"
    )
    environment = flows_toy.environment() | {"PREFECT_SERVER_ANALYTICS_ENABLED": ""}
    del environment["PREFECT_SERVER_ANALYTICS_ENABLED"]
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, env=environment, text=True, capture_output=True, check=True,
    ).stdout  # fmt: skip
    assert said.split() == [
        ".prefect", ".prefect/profiles.toml", "False", "127.0.0.1", "json", "False", "30", "False",
    ]  # fmt: skip


def test_the_work_knows_neither_prefect_nor_dvc() -> None:
    imports = ("import prefect", "from prefect", "import dvc", "from dvc")
    for path in [*(ROOT / "tasks").rglob("*.py"), *(ROOT / "model").rglob("*.py")]:
        lines = [line.strip() for line in path.read_text().splitlines()]
        assert not [line for line in lines if line.startswith(imports)], path
