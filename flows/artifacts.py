"""What a person sees of a stage in Prefect's UI beside its log.

While a phase trains, a progress bar follows the history that the trainer writes, and a page shows
its curve, measures and samples so far. The report is shown where it stands. Showing is never
allowed to hold up or fail the work: it happens in a thread of its own, and its troubles end as one
warning.
"""

from __future__ import annotations

import base64
import contextvars
import json
import re
import threading
import time
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
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.logging import get_run_logger

from flows.outcome import Logger
from tasks import recipe as recipes
from tasks.report.plots import Line, chart, smooth, standalone, thin
from tasks.units import show_count, show_seconds
from tasks.workspace import Workspace

PUBLISH_SECONDS = 5.0
PAGE_SECONDS = 30.0
_TABLE_ROWS = 12


@contextmanager
def showing(address: str, root: Path) -> Iterator[Callable[[], None]]:
    """Show the progress of a stage while the block runs; the function given shows its outcome."""
    stage, _, name = address.partition("@")
    logger, workspace = get_run_logger(), Workspace(root)

    def outcome() -> None:
        if stage == "report":
            try_to_show(logger, lambda: show_report(workspace))

    if stage == "train":
        with Follower(workspace, name, logger) as follower:
            yield follower.finish
    else:
        yield outcome


class Follower:
    """A progress bar and a page that follow ``runs/<phase>/history.jsonl`` as it grows."""

    def __init__(self, workspace: Workspace, phase: str, logger: Logger) -> None:
        self._workspace, self._phase, self._logger = workspace, phase, logger
        self._history = workspace.run(phase) / "history.jsonl"
        self._before = self._stamp()
        self._offset = 0
        self._total = 0
        self._train: dict[str, Any] = {}
        self._bar: UUID | None = None
        self._page: UUID | None = None
        self._next_page = time.monotonic() + PAGE_SECONDS
        self._stopped = threading.Event()
        context = contextvars.copy_context()  # so that what is shown belongs to the task run
        self._thread = threading.Thread(target=context.run, args=(self._run,), daemon=True)

    def __enter__(self) -> Follower:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def finish(self) -> None:
        """The page of the whole phase."""
        self._end()
        history = self._workspace.metrics(self._phase) / "history.jsonl"
        try_to_show(self._logger, lambda: self._show_page(history))

    def _end(self) -> None:
        self._stopped.set()
        self._thread.join(timeout=PUBLISH_SECONDS)

    def _run(self) -> None:
        last = False
        while not last:
            last = self._stopped.wait(PUBLISH_SECONDS)
            if not try_to_show(self._logger, self._publish):
                return

    def _publish(self) -> None:
        if not self._read() or not self._total:
            return
        percent = min(100.0, 100 * self._train["tokens"] / self._total)
        description = self._describe()
        if self._bar is None:
            self._bar = create_progress_artifact(
                percent, key=_key(f"{self._phase}-progress"), description=description
            )
        else:
            update_progress_artifact(self._bar, percent, description=description)
        if time.monotonic() >= self._next_page:
            self._next_page = time.monotonic() + PAGE_SECONDS
            self._show_page(self._history)

    def _describe(self) -> str:
        done, rate = self._train["tokens"], float(self._train.get("tokens_per_second") or 0)
        left = f"{show_seconds((self._total - done) / rate)} left" if rate else "time left unknown"
        return (
            f"**{self._phase}**: {show_count(done)} of {show_count(self._total)} tokens · "
            f"loss {self._train['loss']:.3f} · {show_count(rate)} tokens/s · "
            f"{left if done < self._total else 'trained'}"
        )

    def _show_page(self, history: Path) -> None:
        lines = history.read_bytes().split(b"\n")[:-1]  # what follows the last is being written
        records = [json.loads(line) for line in lines]
        page = training_page(self._phase, records, record_link(self._workspace, records))
        if self._page is None:
            self._page = create_markdown_artifact(
                page,
                key=_key(f"{self._phase}-training"),
                description=f"Curve, measures and samples of {self._phase}",
            )
        else:
            with get_client(sync_client=True) as client:
                client.update_artifact(self._page, ArtifactUpdate(data=page))

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


def training_page(phase: str, records: list[dict[str, Any]], link: str) -> str:
    """Markdown of a training history: the curve, held-out measures, the last samples, losses.

    Args:
        phase: its name.
        records: of its history.jsonl.
        link: markdown that leads to the tracking server's record.
    """
    kinds: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "sample": []}
    for record in records:
        kinds.setdefault(record["kind"], []).append(record)
    train = kinds["train"]
    lines = [f"# {phase}", "", link, "", *loss_image(phase, train)]
    if held_out := _of_last_step(kinds["validation"]):
        lines += ["", f"## Held-out text after {show_count(held_out[0]['tokens'])} tokens", ""]
        lines += ["| set | weights | bits per byte | perplexity |", "|--|--|--:|--:|"]
        for r in held_out:
            figures = f"{r['bits_per_byte']:.4f} | {r['perplexity']:.2f}"
            lines.append(f"| {r['set']} | {r['weights']} | {figures} |")
    if samples := _of_last_step(kinds["sample"]):
        lines += ["", f"## Samples after {show_count(samples[0]['tokens'])} tokens"]
    for r in samples:
        lines += [
            "",
            f"**{r['prompt'].strip()}**",
            "",
            *(f"    {t}" for t in r["text"].splitlines()),
        ]
    lines += ["", "## Training", "", "| tokens | loss | learning rate | tokens/s |"]
    lines += ["|--:|--:|--:|--:|"]
    for r in _thinned(train):
        rate = show_count(float(r.get("tokens_per_second") or 0))
        lines.append(f"| {show_count(r['tokens'])} | {r['loss']:.4f} | {r['lr']:.2e} | {rate} |")
    return "\n".join(lines) + "\n"


def loss_image(phase: str, train: list[dict[str, Any]]) -> list[str]:
    """The loss curve as a line of markdown that needs no other file: an SVG within the page."""
    if not train:
        return []
    xs, ys = [float(r["tokens"]) for r in train], [float(r["loss"]) for r in train]
    lines = [Line(phase, *thin(xs, ys), style="faint"), Line(phase, *thin(xs, smooth(ys)))]
    svg = standalone(chart(lines, f"Training loss of {phase}", "tokens", "nats a token"))
    svg = svg.replace("<svg", '<svg width="640"', 1)
    return [f"![loss](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"]


def record_link(workspace: Workspace, records: list[dict[str, Any]]) -> str:
    """Where MLflow has the phase: a link to its run, or the command that opens the record."""
    from tasks.registry import provenance
    from tasks.registry.mlflow_store import Store

    where = provenance.shown_uri(workspace.root)
    if not where.startswith(("http://", "https://")):
        return f"`make mlflow` opens the record of this phase and the others ({where})."
    if not (key := next((r["run_key"] for r in records if "run_key" in r), None)):
        return f"MLflow: <{where}>"
    store = Store(workspace.root, quick=True)
    experiment = store.experiment(recipes.load(workspace.root / "params.yaml").name)
    if not (run := store.run(experiment, key)):
        return f"MLflow: <{where}/#/experiments/{experiment}>"
    return f"[The phase in MLflow]({where}/#/experiments/{experiment}/runs/{run.info.run_id})"


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


def try_to_show(logger: Logger, show: Callable[[], None]) -> bool:
    """Call ``show``; a failure is a warning, since the work matters more than the sight of it."""
    try:
        show()
    except Exception as error:
        logger.warning("this cannot be shown in the UI: %s: %s", type(error).__name__, error)
        return False
    return True
