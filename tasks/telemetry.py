"""Nothing that runs here calls home."""

from __future__ import annotations

import os


def quiet_telemetry() -> None:
    """Switch the telemetry of every library off, here and in child processes.

    MLflow accepts "true" alone; DVC and Prefect have switches of their own.
    """
    os.environ.update(
        DO_NOT_TRACK="true",
        DVC_NO_ANALYTICS="1",
        MLFLOW_DISABLE_TELEMETRY="true",
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
        HF_HUB_DISABLE_TELEMETRY="1",
        MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false",
    )
