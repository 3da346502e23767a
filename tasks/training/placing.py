"""A finished phase: its checkpoint and its record, where DVC takes them."""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path
from typing import Any

from tasks.files import atomic_folder, link_or_copy, read_json, write_json
from tasks.training import checkpoint
from tasks.training.history import read_history, write_curves
from tasks.workspace import Workspace

RUNNING_ONLY = ("local.json", checkpoint.MANIFEST)


def place(
    workspace: Workspace, phase: str, final: Path, tokens_before: int, memory_bytes: int
) -> dict[str, Any]:
    """Copy the running checkpoint ``final`` and the record of the phase; returns the summary."""
    run = workspace.run(phase)
    summary = summarize(run, final, memory_bytes)
    with atomic_folder(workspace.checkpoint(phase)) as folder:
        for path in sorted(final.iterdir()):
            if path.name not in RUNNING_ONLY:
                link_or_copy(path, folder / path.name)
        checkpoint.seal(folder)
    with atomic_folder(workspace.metrics(phase)) as folder:
        shutil.copy(run / "history.jsonl", folder)
        records = read_history(folder / "history.jsonl")
        write_curves(records, folder, tokens_before)
        write_json(folder / "summary.json", summary)
    return summary


def summarize(run: Path, final: Path, memory_bytes: int) -> dict[str, Any]:
    """The phase in a few figures.

    ``loss`` is the mean of the last fiftieth of the steps; ``overhead`` the share of the time that
    did not train: waiting for data, validation, samples and checkpoints.
    """
    records = read_history(run / "history.jsonl")
    steps = [r for r in records if r["kind"] == "train"]
    losses = [r["loss"] for r in steps if r["loss"] is not None]
    state = read_json(final / "state.json")
    seconds = sum(r["seconds"] for r in steps)
    other = sum(r["data_seconds"] for r in steps)
    pauses = sum(r["seconds"] for r in records if r["kind"] == "pause")
    return {
        "steps": state["step"],
        "tokens": state["tokens"],
        "loss": statistics.fmean(losses[-max(1, len(losses) // 50) :]),
        "tokens_per_second": statistics.median(r["tokens_per_second"] for r in steps),
        "seconds": round(seconds + pauses, 1),
        "overhead": round((other + pauses) / max(1e-9, seconds + pauses), 4),
        "memory_bytes": memory_bytes,
        "skipped_steps": state["skipped"],
        "resumed": sum(r.get("event") == "resumed" for r in records),
    }
