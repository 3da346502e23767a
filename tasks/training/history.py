"""The record of a phase: one JSON object a line, appended as training goes.

This file is the truth; MLflow, the curves and the report are made from it. A resumed run first cuts
off what was logged after its checkpoint, so that no step stands twice.
"""

from __future__ import annotations

import csv
import io
import json
import os
import time
from pathlib import Path
from typing import Any

from tasks.errors import BAD_DATA, UserError
from tasks.files import write_text


class History:
    """Appends records to ``path``. ``lines`` counts them."""

    def __init__(self, path: Path, keep_lines: int = 0) -> None:
        """Open the record and keep its first ``keep_lines`` lines."""
        kept = b""
        if keep_lines:
            lines = path.read_bytes().splitlines(keepends=True)
            if len(lines) < keep_lines:
                raise UserError(
                    f"{path} has {len(lines)} lines, the checkpoint saw {keep_lines}: it was cut",
                    hint="put the file back, or start this phase again with PHASEWISE_RESTART=1",
                    exit_code=BAD_DATA,
                )
            kept = b"".join(lines[:keep_lines])
        self.lines = keep_lines
        # truncated in place, not replaced: a follower may have the file open
        self._file = open(path, "r+b" if path.exists() else "w+b")
        self._file.truncate(len(kept))
        self._file.seek(len(kept))

    def write(self, kind: str, **fields: Any) -> None:
        record = {"kind": kind, **fields, "time": round(time.time(), 3)}
        self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
        self._file.flush()
        self.lines += 1

    def sync(self) -> None:
        """Make what was written durable."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self.sync()
        self._file.close()


class NoHistory(History):
    """The record of a process that leaves writing to another."""

    def __init__(self) -> None:
        self.lines = 0

    def write(self, kind: str, **fields: Any) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


def read_history(path: Path) -> list[dict[str, Any]]:
    """All whole records of a history; a last line that a crash cut is left out."""
    lines = path.read_bytes().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def write_curves(records: list[dict[str, Any]], folder: Path, tokens_before: int) -> None:
    """Write ``curves.csv`` and ``validation.csv``, for plots against tokens.

    Args:
        tokens_before: tokens of the phases before this one, added in the column total_tokens.
    """
    train = [r for r in records if r["kind"] == "train"]
    validation = [r for r in records if r["kind"] == "validation"]
    columns = ["step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second"]
    write_text(folder / "curves.csv", _csv(train, columns, tokens_before))
    columns = [
        "step",
        "tokens",
        "set",
        "weights",
        "bits_per_byte",
        "loss",
        "perplexity",
        "accuracy",
    ]
    write_text(folder / "validation.csv", _csv(validation, columns, tokens_before))


def _csv(records: list[dict[str, Any]], columns: list[str], tokens_before: int) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, ["total_tokens", *columns], extrasaction="ignore")
    writer.writeheader()
    for record in records:
        writer.writerow({"total_tokens": tokens_before + record["tokens"], **record})
    return out.getvalue()
