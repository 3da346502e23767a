"""What a person sees of a stage in Prefect's UI beside its log.

While a phase trains, a progress bar follows the history that the trainer writes; when it is done, a
page shows its losses and samples. The report is shown where it stands. Showing is never allowed to
hold up or fail the work: it happens in a thread of its own, and its troubles end as one warning.
"""

from __future__ import annotations

import contextvars
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.logging import get_run_logger

from tasks.units import show_count, show_seconds
from tasks.workspace import Workspace

PUBLISH_SECONDS = 5.0
_TABLE_ROWS = 12


@contextmanager
def showing(address: str, root: Path) -> Iterator[Callable[[], None]]:
    """Show the progress of a stage while the block runs; the function given shows its outcome."""
    stage, _, name = address.partition("@")
    logger, workspace = get_run_logger(), Workspace(root)

    def outcome() -> None:
        if stage == "train":
            _try(logger, lambda: show_training(workspace, name))
        elif stage == "report":
            _try(logger, lambda: show_report(workspace))

    if stage != "train":
        yield outcome
        return
    with Follower(workspace.run(name) / "history.jsonl", name, logger):
        yield outcome


class Follower:
    """A progress bar that follows ``runs/<phase>/history.jsonl`` as it grows."""

    def __init__(self, history: Path, phase: str, logger: Any) -> None:
        self._history, self._phase, self._logger = history, phase, logger
        self._before = self._stamp()
        self._offset = 0
        self._total = 0
        self._train: dict[str, Any] = {}
        self._artifact: UUID | None = None
        self._stopped = threading.Event()
        context = contextvars.copy_context()  # so that the bar belongs to the task run
        self._thread = threading.Thread(target=context.run, args=(self._run,), daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(timeout=PUBLISH_SECONDS)

    def _run(self) -> None:
        last = False
        while not last:
            last = self._stopped.wait(PUBLISH_SECONDS)
            if not _try(self._logger, self._publish):
                return

    def _publish(self) -> None:
        if not self._read() or not self._total:
            return
        done = self._train["tokens"]
        percent = min(100.0, 100 * done / self._total)
        rate = self._train.get("tokens_per_second") or 0
        left = f" · {show_seconds((self._total - done) / rate)} left" if rate else ""
        description = (
            f"**{self._phase}**: {show_count(done)} of {show_count(self._total)} tokens · "
            f"loss {self._train['loss']:.3f} · {show_count(float(rate))} tokens/s{left}"
        )
        if self._artifact is None:
            self._artifact = create_progress_artifact(
                percent, key=_key(f"{self._phase}-progress"), description=description
            )
        else:
            update_progress_artifact(self._artifact, percent, description=description)

    def _stamp(self) -> tuple[int, int] | None:
        if not self._history.is_file():
            return None
        stat = self._history.stat()
        return stat.st_mtime_ns, stat.st_size

    def _read(self) -> bool:
        """Take in new lines; True where there is a new training record."""
        if self._stamp() == self._before:  # an earlier run's
            return False
        if self._history.stat().st_size < self._offset:  # training started afresh
            self._offset = 0
        with self._history.open("rb") as handle:
            handle.seek(self._offset)
            whole, _, _ = handle.read().rpartition(b"\n")
        self._offset += len(whole) + bool(whole)
        new = False
        for record in map(json.loads, filter(None, whole.split(b"\n"))):
            if record["kind"] == "run":
                self._total = record["total_tokens"]
            elif record["kind"] == "train":
                self._train, new = record, True
        return new


def show_training(workspace: Workspace, phase: str) -> None:
    """A page with the losses and the last samples of a finished phase."""
    history = workspace.metrics(phase) / "history.jsonl"
    if history.is_file():
        records = [json.loads(line) for line in history.read_text("utf-8").splitlines()]
        create_markdown_artifact(
            training_page(phase, records),
            key=_key(f"{phase}-training"),
            description=f"Losses and samples of {phase}",
        )


def training_page(phase: str, records: list[dict[str, Any]]) -> str:
    """Markdown of a training history: losses, held-out measures, samples of the last step."""
    kinds: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "sample": []}
    for record in records:
        kinds.setdefault(record["kind"], []).append(record)
    lines = [f"# {phase}", "", "| tokens | loss | learning rate | tokens/s |", "|--:|--:|--:|--:|"]
    for r in _thinned(kinds["train"]):
        rate = show_count(float(r.get("tokens_per_second") or 0))
        lines.append(f"| {show_count(r['tokens'])} | {r['loss']:.4f} | {r['lr']:.2e} | {rate} |")
    if held_out := _of_last_step(kinds["validation"]):
        lines += ["", "## Held-out text", ""]
        lines += ["| set | weights | bits per byte | perplexity |", "|--|--|--:|--:|"]
        for r in held_out:
            figures = f"{r['bits_per_byte']:.4f} | {r['perplexity']:.2f}"
            lines.append(f"| {r['set']} | {r['weights']} | {figures} |")
    for r in _of_last_step(kinds["sample"]):
        lines += ["", f"**{r['prompt']}**", "", *(f"    {t}" for t in r["text"].splitlines())]
    return "\n".join(lines) + "\n"


def show_report(workspace: Workspace) -> None:
    """The report as a page, and a link to its file."""
    page, link = workspace.report / "report.md", workspace.report / "report.html"
    if page.is_file():
        create_markdown_artifact(page.read_text("utf-8"), key="report", description="The report")
    if link.is_file():
        create_link_artifact(
            link.resolve().as_uri(),
            link_text=str(link),
            key="report-file",
            description="The report with its figures. Browsers open files from the address bar "
            "only: copy the link",
        )


def _thinned(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most ``_TABLE_ROWS`` records, evenly spaced, the last among them."""
    if len(records) <= _TABLE_ROWS:
        return records
    step = (len(records) - 1) / (_TABLE_ROWS - 1)
    return [records[round(i * step)] for i in range(_TABLE_ROWS)]


def _of_last_step(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [r for r in records if r["step"] == records[-1]["step"]]


def _key(name: str) -> str:
    return re.sub("[^a-z0-9-]", "-", name.lower())


def _try(logger: logging.Logger, show: Callable[[], None]) -> bool:
    """Call ``show``; a failure is a warning, since the work matters more than the sight of it."""
    try:
        show()
    except Exception as error:
        logger.warning("this cannot be shown in the UI: %s: %s", type(error).__name__, error)
        return False
    return True
