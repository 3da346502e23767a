"""Settings of the flows on this machine: the server's address, and how much runs at once.

Each is an environment variable (``PHASEWISE_PREFECT_PORT=4300``) or a line of a git-ignored
``.env`` file. None of them changes a result.
"""

from __future__ import annotations

import os
from pathlib import Path
from platform import node

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from tasks.errors import UserError
from tasks.settings import settings as work_settings

MOST_AT_ONCE = 4  # unless asked for: a data stage takes memory for each core as well


class FlowSettings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="PHASEWISE_", env_file=".env", extra="ignore", frozen=True
    )

    prefect_host: str = Field(
        "127.0.0.1", min_length=1, description="address on which the Prefect server listens"
    )
    prefect_port: int = Field(4200, ge=1, le=65535, description="port of the Prefect server")
    stages_at_once: int | None = Field(
        None, ge=1, description="stages of a flow side by side; default: cores, at most 4"
    )
    accelerator_lock: Path | None = Field(
        None, description="lock of what trains; runs with one lock wait for each other"
    )

    @property
    def at_once(self) -> int:
        return self.stages_at_once or min(work_settings().cores, MOST_AT_ONCE)

    @property
    def accelerator(self) -> Path:
        """This machine's lock, whatever the folder and the server of a run: in the user's cache."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return self.accelerator_lock or cache / "phasewise" / f"accelerator-{node()}.lock"


def settings() -> FlowSettings:
    """The settings in force now. Raises UserError for a value that cannot be."""
    try:
        return FlowSettings()
    except ValidationError as error:
        first = error.errors()[0]
        name = f"PHASEWISE_{str(first['loc'][0]).upper()}"
        raise UserError(f"{first['msg']}, got {first['input']!r}", where=name) from None
