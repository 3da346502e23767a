"""Checkpoints written beside training: the loop pays for a copy in memory, not for the disk.

    step -> copy of the state -> one thread: write, hash, sync, rename -> prune

One checkpoint is written at a time; the next one waits for it. A write that fails (a full disk)
leaves the older checkpoints as they are: training goes on, aloud, and only a phase's last one must
succeed.
"""

from __future__ import annotations

import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from tasks.training import checkpoint


class Saver:
    """Writes the running checkpoints of a phase."""

    def __init__(self, run: Path, keep: int) -> None:
        self.run, self.keep = run, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(
        self,
        step: int,
        tensors: dict[str, dict[str, Tensor]],
        records: dict[str, Any],
        best: int | None,
    ) -> None:
        """Begin to write the checkpoint of ``step``; the tensors must not change any more.

        Args:
            best: step of the best checkpoint so far, which pruning spares.
        """
        self.wait()

        def write() -> None:
            checkpoint.save(checkpoint.step_folder(self.run, step), tensors, records)
            checkpoint.prune(self.run, self.keep, best)

        self._writing = self._thread.submit(write)

    def wait(self, must: bool = False) -> None:
        """Wait for the checkpoint being written, if one is; its failure is told, or raised.

        Args:
            must: raise the OSError of a write that failed.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
        except OSError as error:
            if must:
                raise
            print(f"\n    warning: a checkpoint could not be written ({error}); training goes on, "
                  "the one before it stands", file=sys.stderr)  # fmt: skip

    def close(self) -> None:
        """Take no more, and wait until what was begun is written or has failed."""
        self._thread.shutdown()
