"""The process beside a trainer that feeds MLflow: training neither waits for it nor needs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

LAST_SECONDS = 30  # for the last records


class Follower:
    """``tasks.registry.tracking follow`` of a run folder, as a child of this process."""

    def __init__(self, run: Path) -> None:
        self._log = run / "tracking.log"
        follow = [sys.executable, "-m", "tasks.registry.tracking", "follow"]
        with open(self._log, "ab") as log:
            # its own session and output: it may outlive the trainer's terminal by a moment
            self._child = subprocess.Popen(
                [*follow, str(run), str(os.getpid())],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Give MLflow a moment to take the last records; it catches up later where it cannot."""
        try:
            behind = self._child.wait(timeout=LAST_SECONDS) != 0
        except subprocess.TimeoutExpired:
            behind = True
        if behind:
            print(
                f"    MLflow is behind ({self._log}); the stage `register` and "
                "`phasewise sync` bring it up to date"
            )
