"""Stage ``download``: bring one source here, a document a row, and write down where it came from.

    hub | mirror folder | local files | this Python installation
        -> rows -> template, grouping or regrouping -> data/raw/<source>/

A source is a stream, written shard by shard as it comes. A stage that is broken off goes on after
its last whole shard: files and the mirror at the file and row group, the hub at the file of the
dataset that it had reached (what was read of that one is read again).

Beside the documents lie ledger.json and provenance.json: files and their SHA-256, or the revision,
the licence, and what they were read with.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from tasks import stage
from tasks.data.documents import (
    MOST_BYTES,
    SHARD_BYTES,
    Document,
    Writer,
    compact,
    link_shards,
)
from tasks.data.encoding import replace_surrogates
from tasks.data.hub import HubReader, MirrorReader
from tasks.data.installed import InstalledReader
from tasks.data.local import LocalReader
from tasks.data.rows import Place, Row, maker
from tasks.errors import BAD_DATA, UserError
from tasks.files import atomic_folder, write_json
from tasks.ledger import Ledger, write_ledgers
from tasks.progress import Progress, progress
from tasks.recipe import SPLITS, Recipe, Source, Split
from tasks.settings import settings
from tasks.shardwise import chain_parts, part_folder, work_folder
from tasks.units import show_count
from tasks.workspace import Workspace

VERSION = 1  # of the work: what was begun under another one is not gone on with


class Reader(Protocol):
    """A kind of source. A new kind is a class with these and a line in ``open_reader``."""

    resumable: ClassVar[bool]  # whether reading may begin in the middle

    @property
    def splits(self) -> list[Split]: ...

    def rows(self, split: Split, start: Place = (0, 0), mark: Any = None) -> Iterator[Row]:
        """The rows from the place ``start`` on; ``mark`` is what ``mark(start)`` gave."""
        ...

    def mark(self, place: Place) -> Any:
        """JSON: what makes it quicker to begin again at a place that was read lately."""
        ...

    def identity(self) -> Any:
        """JSON: what another source, or the same one changed, would differ in."""
        ...

    def provenance(self) -> dict[str, Any]:
        """Where the rows came from; asked for after they were read."""
        ...


def open_reader(source: Source, root: Path, where: str) -> Reader:
    """The reader of a source's kind. Raises UserError where what it names is not there."""
    if source.files:
        return LocalReader(source.files, root, where)
    if source.installed:
        return InstalledReader(source.installed)
    assert source.hub
    mirror = settings().hub
    return MirrorReader(source.hub, mirror, where) if mirror else HubReader(source.hub, where)


def download(workspace: Workspace, recipe: Recipe, source: str) -> None:
    """Bring one source to data/raw/<source>.

    A source is a dataset of the Hugging Face hub (or of a mirror folder: PHASEWISE_HUB), local
    files, or the documentation of this Python installation. The training split is read up to
    ``max_bytes`` of text; official validation and test splits are read whole.
    """
    settings_of_source = recipe.sources[source]
    where = f"{workspace.root / 'params.yaml'}: sources.{source}"
    reader = open_reader(settings_of_source, workspace.root, where)
    key = [VERSION, source, settings_of_source.model_dump(mode="json"), reader.identity()]
    with work_folder(workspace.work("download", source)) as work:
        if not reader.resumable:
            shutil.rmtree(work / "shards", ignore_errors=True)
        with progress(None, "documents", "reading") as shown:
            stream = Stream(reader, source, settings_of_source, where, shown)
            results = chain_parts(stream.shard, stream.start(), work / "shards", key)
        ledger = _ledger(source, results)
        if not ledger.kept.documents:
            gone = ", ".join(f"{count.documents:,} {why}" for why, count in ledger.dropped.items())
            raise UserError(
                f"no document in this source; rows dropped: {gone or 'none'}",
                where=where,
                hint="look at the files: are they empty, or of another format?",
                exit_code=BAD_DATA,
            )
        with atomic_folder(workspace.raw(source)) as folder:
            folders = [part_folder(work / "shards", number) for number in range(len(results))]
            link_shards((path for part in folders for path in part.glob("*.parquet")), folder)
            write_ledgers(folder / "ledger.json", [ledger])
            write_json(folder / "provenance.json", _provenance(reader, source, recipe, ledger))
    counts = ledger.notes["splits"]
    shares = ", ".join(f"{n:,} {split}" for split, n in counts.items())
    print(f"    {source}: {shares} documents, {show_count(float(ledger.kept.bytes))}B of text")
    for reason, count in ledger.dropped.items():
        print(f"    dropped {count.documents:,} rows: {reason}")


class Found(NamedTuple):
    """A document of the stream, and the place of the first row that it is made of."""

    document: Document
    place: Place
    lone_surrogates: int


class Stream:
    """The documents of one source, a shard at a time, from any shard on."""

    def __init__(
        self, reader: Reader, source: str, settings_of_source: Source, where: str, shown: Progress
    ) -> None:
        self._reader, self._source, self._shown = reader, source, shown
        self._max_bytes = settings_of_source.max_bytes
        self._make = maker(settings_of_source, where)
        self._splits = [split for split in SPLITS if split in reader.splits]
        self._at: dict[str, Any] | None = None  # the state that the two below stand at
        self._found: Iterator[Found] = iter(())
        self._ahead: Found | None = None  # the one that was found to be too much for the last shard
        self._rows: deque[Row] = deque()  # read and not booked yet: dropped, or repaired

    def start(self) -> dict[str, Any]:
        return self._state(self._splits[0])

    def _state(self, split: Split) -> dict[str, Any]:
        left = self._max_bytes if split == "train" else None
        return {"split": split, "place": [0, 0], "mark": None, "left": left}

    def shard(self, state: dict[str, Any], out: Path) -> tuple[dict[str, Any], Any]:
        """Write the next shard; returns its ledger and the state after it."""
        split, left = state["split"], state["left"]
        if self._at != state:
            self._open(split, tuple(state["place"]), state["mark"])
        ledger = Ledger("download", self._source, notes={"lone_surrogates": 0, "repaired_bytes": 0})
        ends: Place | None = None
        with Writer(out, shard_bytes=None) as writer:
            while found := self._take():
                if ledger.kept.bytes >= SHARD_BYTES or (left is not None and left <= 0):
                    ends, self._ahead = found.place, found
                    break
                size = found.document.bytes
                if size > MOST_BYTES:
                    ledger.drop("too_long", found.document.text, size)
                    continue
                writer.add(found.document)
                ledger.keep(size)
                ledger.notes["lone_surrogates"] += found.lone_surrogates
                left = None if left is None else left - size
                self._shown.advance()
        self._book(ledger, ends)
        ledger.notes["splits"] = {split: ledger.kept.documents}
        stopped = ends is not None and left is not None and left <= 0
        ledger.notes["stopped_at_max_bytes"] = stopped
        self._at = self._next(split, None if stopped else ends, left)
        return ledger.to_dict(), self._at

    def _take(self) -> Found | None:
        found, self._ahead = self._ahead or next(self._found, None), None
        return found

    def _next(self, split: Split, place: Place | None, left: int | None) -> dict[str, Any] | None:
        """The state after a shard: within the split, or of the next one, or none."""
        if place:
            mark = self._reader.mark(place)
            return {"split": split, "place": list(place), "mark": mark, "left": left}
        later = self._splits[self._splits.index(split) + 1 :]
        return self._open(later[0]) if later else None

    def _open(self, split: Split, place: Place = (0, 0), mark: Any = None) -> dict[str, Any]:
        self._rows.clear()
        self._ahead = None
        self._found = self._documents(split, place, mark)
        return self._state(split)

    def _documents(self, split: Split, place: Place, mark: Any) -> Iterator[Found]:
        for raw, row in self._make(self._readable(self._reader.rows(split, place, mark))):
            text, lone = replace_surrogates(raw)
            document = Document.of(text, self._source, split, compact(row.origin))
            yield Found(document, row.place, lone)

    def _readable(self, rows: Iterator[Row]) -> Iterator[Row]:
        """The rows without those that make no document, which wait to be booked."""
        for row in rows:
            if row.dropped or row.repaired:
                self._rows.append(row)
            if not row.dropped:
                yield row

    def _book(self, ledger: Ledger, ends: Place | None) -> None:
        """Book the rows before a place: those after it were read ahead, for the next shard."""
        while self._rows and (ends is None or self._rows[0].place < ends):
            row = self._rows.popleft()
            ledger.notes["repaired_bytes"] += row.repaired
            if row.dropped:
                text = "\n".join(value for value in row.values.values() if isinstance(value, str))
                ledger.drop(row.dropped, replace_surrogates(text)[0], row.size)


def _ledger(source: str, results: list[dict[str, Any]]) -> Ledger:
    """The ledger of a source of its shards'."""
    ledger = Ledger("download", source)
    counts: dict[str, int] = {}
    notes = {"lone_surrogates": 0, "repaired_bytes": 0, "stopped_at_max_bytes": 0}
    for result in results:
        part = Ledger.from_dict(result)
        ledger.merge(part)
        for name in notes:
            notes[name] += part.notes[name]
        for split, n in part.notes["splits"].items():
            counts[split] = counts.get(split, 0) + n
    splits = {split: n for split, n in counts.items() if n}
    stopped = bool(notes["stopped_at_max_bytes"])
    ledger.notes = {**notes, "stopped_at_max_bytes": stopped, "splits": splits}
    return ledger


def _provenance(reader: Reader, source: str, recipe: Recipe, ledger: Ledger) -> dict[str, Any]:
    libraries = ["pyarrow"] + (["datasets"] if isinstance(reader, HubReader) else [])
    return {
        "source": source,
        "license": recipe.sources[source].license,
        "documents": ledger.notes["splits"],
        "bytes": ledger.kept.bytes,
        "stopped_at_max_bytes": ledger.notes["stopped_at_max_bytes"],
        "repaired_bytes": ledger.notes["repaired_bytes"],
        "from": reader.provenance(),
        "read_with": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in libraries},
    }


if __name__ == "__main__":
    stage.main(download, "source")
