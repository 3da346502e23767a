"""Nothing that runs here calls home, and nothing that is loaded here is code in disguise."""

from __future__ import annotations

import os

SWITCHES = {
    "DO_NOT_TRACK": "true",  # "true" alone is what MLflow understands
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "false",  # datasets and evaluate tell the hub what was opened
}
NO_PICKLE = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
}


def quiet_telemetry() -> None:
    """Switch every library's telemetry and unpickling off, here and in child processes.

    Comes before the libraries are imported: some look at their switch only then.
    """
    os.environ.update(SWITCHES | NO_PICKLE)
    # makes torch.load run code in files where a library does not ask for weights alone
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
