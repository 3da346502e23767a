"""Documents on disk: zstd parquet shards that are read back with their checksums verified.

    <folder>/train-00000.parquet, train-00001.parquet, ..., validation-00000.parquet, ...
    id: string | text: string | source: string | origin: string

A document is known by its place, (source, split, position): two exact duplicates share an ``id``,
because the id is a hash of the text alone.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.errors import BAD_DATA, NO_INPUT, UserError
from tasks.files import link_or_copy
from tasks.recipe import SPLITS, Split

MOST_BYTES = 16_000_000  # of one document's text: more than any book
SHARD_BYTES = 64_000_000  # of text; few large files, each of which fits in memory
GROUP_BYTES = 8_000_000  # of text; what a writer holds and a reader decompresses at once
SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "text", "source", "origin")])
_SHARD = re.compile(r"(train|validation|test)-(\d{5})\.parquet")


@dataclass(frozen=True, slots=True)
class Document:
    """One text.

    Attributes:
        id: first 32 hex digits of the SHA-256 of the text.
        text: Unicode without lone surrogates.
        source: name in the recipe.
        split: train, validation or test.
        origin: compact JSON of where it came from (file, row, url, title, ...).
    """

    id: str
    text: str
    source: str
    split: Split
    origin: str

    @classmethod
    def of(cls, text: str, source: str, split: Split, origin: str) -> Document:
        """A document with the id of its text."""
        return cls(content_id(text), text, source, split, origin)

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of the text."""
        return len(self.text) if self.text.isascii() else len(self.text.encode())


def content_id(text: str) -> str:
    """First 32 hex digits of the SHA-256 of the text."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def compact(value: dict[str, Any]) -> str:
    """JSON without spaces; ASCII, so that a file name that is not UTF-8 does no harm."""
    return json.dumps(value, separators=(",", ":"), default=str)


@dataclass
class _Shard:
    """The file of one split that is being written, and the rows that wait for it."""

    number: int = -1
    writer: pq.ParquetWriter | None = None
    written_bytes: int = 0
    waiting_bytes: int = 0
    rows: dict[str, list[str]] = field(default_factory=lambda: {n: [] for n in SCHEMA.names})


class Writer:
    """Write documents into shards of one folder, each split in the order it is given.

    Used inside ``tasks.files.atomic_folder``, which makes the folder whole or absent::

        with atomic_folder(path) as folder, Writer(folder) as writer:
            writer.add(document)

    Equal documents make equal bytes. Where ``shard_bytes`` is None, a split is one shard.
    """

    def __init__(self, folder: Path, shard_bytes: int | None = SHARD_BYTES) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._shard_bytes = folder, shard_bytes or sys.maxsize
        self._group_bytes = min(GROUP_BYTES, self._shard_bytes)
        self._shards: dict[Split, _Shard] = {}

    def add(self, document: Document) -> None:
        shard = self._shards.setdefault(document.split, _Shard())
        for name in SCHEMA.names:
            shard.rows[name].append(getattr(document, name))
        shard.waiting_bytes += document.bytes
        if shard.waiting_bytes >= self._group_bytes:
            self._flush(document.split, shard)

    def _flush(self, split: Split, shard: _Shard) -> None:
        if shard.writer is None:
            shard.number += 1
            shard.writer = pq.ParquetWriter(
                shard_path(self._folder, split, shard.number),
                SCHEMA,
                compression="zstd",
                use_dictionary=["source"],
                write_page_checksum=True,
            )
        shard.writer.write_table(pa.table(shard.rows, schema=SCHEMA))
        shard.written_bytes += shard.waiting_bytes
        shard.rows, shard.waiting_bytes = {name: [] for name in SCHEMA.names}, 0
        if shard.written_bytes >= self._shard_bytes:
            self._close(shard)

    def _close(self, shard: _Shard) -> None:
        if shard.writer:
            shard.writer.close()
        shard.writer, shard.written_bytes = None, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for split, shard in self._shards.items():
            if kind is None and shard.rows["id"]:
                self._flush(split, shard)
            self._close(shard)


def shards(folder: Path) -> dict[Split, list[Path]]:
    """The shard files of each split, in order.

    Raises UserError where the folder is missing, holds no shard, or a shard is gone from the row.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder} is missing", hint="run the stages before: dvc repro", exit_code=NO_INPUT
        )
    found: dict[Split, list[Path]] = {split: [] for split in SPLITS}
    for path in sorted(folder.iterdir()):
        if match := _SHARD.fullmatch(path.name):
            split: Split = match[1]  # type: ignore[assignment]
            if int(match[2]) != len(found[split]):
                raise UserError(
                    f"{shard_path(folder, split, len(found[split]))} is missing, but "
                    f"{path.name} is there",
                    hint="delete the folder and run the stage again",
                    exit_code=BAD_DATA,
                )
            found[split].append(path)
    if not any(found.values()):
        raise UserError(f"{folder} holds no documents", exit_code=BAD_DATA)
    return {split: paths for split, paths in found.items() if paths}


def read(folder: Path, split: Split | None = None) -> Iterator[Document]:
    """Yield the documents of one split, or of all (train, validation, test), in order.

    A split without documents yields none. Raises UserError for a missing folder, and for a shard
    that is truncated, damaged (page checksums) or of other columns.
    """
    for name, paths in shards(folder).items():
        if split in (None, name):
            for path in paths:
                yield from read_shard(path)


def read_shard(path: Path) -> Iterator[Document]:
    """Yield the documents of one shard file; a row group of ``GROUP_BYTES`` is held at a time.

    Raises UserError where it is truncated, damaged or of other columns.
    """
    split = split_of(path)
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            if not file.schema_arrow.equals(SCHEMA):
                raise UserError(
                    f"{path} has the columns {_columns(file.schema_arrow)}; expected "
                    f"{_columns(SCHEMA)}",
                    exit_code=BAD_DATA,
                )
            for group in range(file.num_row_groups):
                columns = file.read_row_group(group).to_pydict()
                for id_, text, source, origin in zip(*columns.values(), strict=True):
                    yield Document(id_, text, source, split, origin)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def count_rows(path: Path) -> int:
    """Documents of one shard, from its footer alone. Raises UserError where that is damaged."""
    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def split_of(path: Path) -> Split:
    """The split that a shard's name tells."""
    match = _SHARD.fullmatch(path.name)
    assert match, f"{path} is no shard"
    return match[1]  # type: ignore[return-value]


def link_shards(paths: Iterable[Path], folder: Path) -> None:
    """Put shards, in this order, into a folder as ``<split>-00000.parquet`` and so on.

    They are linked, not copied: the same bytes stand in both places until one is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers: dict[Split, int] = {}
    for path in paths:
        split = split_of(path)
        numbers[split] = number = numbers.get(split, -1) + 1
        link_or_copy(path, shard_path(folder, split, number))


def shard_path(folder: Path, split: Split, number: int) -> Path:
    return folder / f"{split}-{number:05d}.parquet"


def _damaged(path: Path, why: object) -> UserError:
    return UserError(
        f"{path} is damaged: {why}",
        hint="delete its folder and run the stage that writes it again",
        exit_code=BAD_DATA,
    )


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{column.name}: {column.type}" for column in schema)
