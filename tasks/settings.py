"""Settings of this machine: what changes how a result is reached, never the result.

Each is an environment variable (``PHASEWISE_DEVICE=cuda``) or a line of a git-ignored ``.env``
file. DVC does not see them, so changing one never makes a stage run again.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from tasks.errors import UserError
from tasks.units import Count
from tasks.workspace import home


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="PHASEWISE_", extra="ignore", frozen=True)

    hub: Path | None = Field(
        None, description="folder that stands in for the hub: <id>/<config>/<split>-*.parquet"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: int | None = Field(None, ge=1, description="torch threads; default: all cores")
    workers: int | None = Field(None, ge=1, description="processes of a data stage; default: cores")
    dask: str | None = Field(
        None, description="scheduler whose workers do a data stage, e.g. tcp://10.0.0.5:8786"
    )
    launch: Literal["auto"] | int = Field(
        "auto", description="training processes on this machine; auto: one a GPU"
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp", description="how several processes share the network; fsdp: for what fits no one GPU"
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="torch.compile for training; auto: on GPUs, and for hours on a CPU"
    )
    micro_batch_tokens: Count = Field(16_384, description="most tokens of one forward pass")
    keep_checkpoints: int = Field(2, ge=1, description="running checkpoints kept a phase")
    log_every_seconds: float = Field(2.0, gt=0, description="between progress lines")
    stop_at_step: int | None = Field(
        None, ge=1, description="checkpoint and leave after this step of a phase, to go on later"
    )
    max_seconds: float | None = Field(
        None, gt=0, description="checkpoint and leave before so many seconds of a phase are over"
    )
    hang_seconds: float = Field(
        3600, gt=0, description="a training step that takes longer is taken for hung, and ended"
    )
    adopt: bool = Field(
        False, description="go on with a run of other settings, on the record, not set it aside"
    )
    restart: bool = Field(False, description="set a broken or foreign running folder aside")
    track: bool = Field(True, description="feed MLflow while training")

    @property
    def cores(self) -> int:
        return self.workers or len(os.sched_getaffinity(0))


@cache
def settings() -> Settings:
    """This machine's settings. Raises UserError for a value that cannot be."""
    try:
        return Settings(_env_file=home(Path()) / ".env")
    except ValidationError as error:
        first = error.errors()[0]
        name = f"PHASEWISE_{str(first['loc'][0]).upper()}"
        raise UserError(f"{first['msg']}, got {first['input']!r}", where=name) from None
