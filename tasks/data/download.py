"""Stage ``download``: bring one source here, a document a row, and write down where it came from.

    hub | mirror folder | local files | this Python installation
        -> rows -> template, grouping or regrouping -> data/raw/<source>/

Beside the documents lie ledger.json and provenance.json: files and their SHA-256, or the revision,
the licence, and what they were read with.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from tasks import stage
from tasks.data.documents import Document, Writer, compact
from tasks.data.encoding import replace_surrogates
from tasks.data.hub import HubReader, MirrorReader
from tasks.data.installed import InstalledReader
from tasks.data.local import LocalReader
from tasks.data.rows import Row, maker
from tasks.errors import BAD_DATA, UserError
from tasks.files import atomic_folder, write_json
from tasks.ledger import Ledger, write_ledgers
from tasks.progress import progress
from tasks.recipe import SPLITS, Recipe, Source, Split
from tasks.settings import settings
from tasks.units import show_count
from tasks.workspace import Workspace


class Reader(Protocol):
    """A kind of source. A new kind is a class with these and a line in ``open_reader``."""

    @property
    def splits(self) -> list[Split]: ...

    def rows(self, split: Split) -> Iterator[Row]: ...

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
    ledger = Ledger("download", source)
    counts: dict[str, int] = {}
    with atomic_folder(workspace.raw(source)) as folder:
        with Writer(folder) as writer, progress(None, "documents", "reading") as shown:
            for document in _documents(reader, source, settings_of_source, where, ledger):
                writer.add(document)
                ledger.keep(document.bytes)
                counts[document.split] = counts.get(document.split, 0) + 1
                shown.advance()
        if not counts:
            raise UserError(
                f"no document in this source; rows dropped: {ledger.taken.documents}",
                where=where,
                exit_code=BAD_DATA,
            )
        ledger.notes["splits"] = counts
        write_ledgers(folder / "ledger.json", [ledger])
        write_json(folder / "provenance.json", _provenance(reader, source, recipe, ledger))
    shares = ", ".join(f"{n:,} {split}" for split, n in counts.items())
    print(f"    {source}: {shares} documents, {show_count(float(ledger.kept.bytes))}B of text")


def _documents(
    reader: Reader, source: str, settings_of_source: Source, where: str, ledger: Ledger
) -> Iterator[Document]:
    make = maker(settings_of_source, where)
    ledger.notes["lone_surrogates"] = 0
    for split in (split for split in SPLITS if split in reader.splits):
        left = settings_of_source.max_bytes if split == "train" else None
        for raw, row in make(_readable(reader.rows(split), ledger)):
            text, lone = replace_surrogates(raw)
            ledger.notes["lone_surrogates"] += lone
            document = Document.of(text, source, split, compact(row.origin))
            yield document
            if left is not None:
                left -= document.bytes
                if left <= 0:
                    ledger.notes["stopped_at_max_bytes"] = True
                    break


def _readable(rows: Iterator[Row], ledger: Ledger) -> Iterator[Row]:
    """The rows without those whose encoding is bad and that the recipe says to skip."""
    for row in rows:
        if row.bad_encoding:
            text = "\n".join(value for value in row.values.values() if isinstance(value, str))
            ledger.drop("encoding", replace_surrogates(text)[0])
        else:
            yield row


def _provenance(reader: Reader, source: str, recipe: Recipe, ledger: Ledger) -> dict[str, Any]:
    libraries = ["pyarrow"] + (["datasets"] if isinstance(reader, HubReader) else [])
    return {
        "source": source,
        "license": recipe.sources[source].license,
        "documents": ledger.notes["splits"],
        "bytes": ledger.kept.bytes,
        "stopped_at_max_bytes": ledger.notes.get("stopped_at_max_bytes", False),
        "from": reader.provenance(),
        "read_with": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in libraries},
    }


if __name__ == "__main__":
    stage.main(download, "source")
