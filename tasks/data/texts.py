"""Where the texts of a dedup come from: shards of a stage, or anybody's files, in one form.

A part names a file, or a stretch of one, and travels to a worker as JSON. Its texts come in order,
one at a time, so that a part may be of any length.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal, TypedDict, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.data.formats import json_object
from tasks.errors import BAD_DATA, UserError, nearest

Format = Literal["shard", "parquet", "jsonl", "lines", "txt"]
COMPRESSED = (".gz", ".bz2", ".zst")
PART_BYTES = 64_000_000  # of a file that is read in stretches
_ROWS = 1024  # of a parquet file that are decoded at once


class Part(TypedDict):
    """A stretch of texts.

    ``start`` and ``stop`` count bytes in a file of lines (a line belongs to the stretch that it
    begins in), row groups in a parquet file; a ``stop`` of None is the end.
    """

    format: Format
    path: str
    key: str  # column of the text
    start: int
    stop: int | None


def shard_part(path: Path) -> Part:
    """A shard that a stage wrote."""
    return Part(format="shard", path=str(path), key="text", start=0, stop=None)


def texts(part: Part) -> Iterator[tuple[str | None, str]]:
    """Yield (id, text) of each document; the id is None where the file holds none of ours.

    Raises UserError, naming file and row, for a damaged file, a missing column and values that are
    not text.
    """
    if part["format"] == "shard":
        for batch in record_batches(part, ["id", "text"]):
            yield from zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True)
    elif part["format"] == "parquet":
        for batch in record_batches(part, [part["key"]]):
            for value in batch.column(0).to_pylist():
                yield None, value or ""
    else:
        for _, text in lines(part):
            yield None, text


def lines(part: Part) -> Iterator[tuple[bytes, str]]:
    """Yield the bytes of each row, as they stand in the file, and its text.

    A row is a line that is not blank, or, in the format ``txt``, the whole file.
    """
    path = Path(part["path"])
    with open_stream(path) as handle:
        if part["format"] == "txt":
            raw = handle.read()
            yield raw, _decoded(raw, path.name)
            return
        offset = part["start"]
        if offset:
            handle.seek(offset - 1)
            offset += len(handle.readline()) - 1
        stop = part["stop"]
        while stop is None or offset < stop:
            raw = handle.readline()
            if not raw:
                return
            where = f"{path}: byte {offset:,}"
            offset += len(raw)
            if raw.strip():
                line = _decoded(raw, where)
                as_json = part["format"] == "jsonl"
                yield raw, _json_text(line, part["key"], where) if as_json else line.strip("\r\n")


def openings(path: Path, rows: list[int], characters: int) -> list[str]:
    """How the documents of a shard in some ascending rows begin; reads their row groups alone."""
    found: list[str] = []
    waiting = list(rows)
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        first = 0
        for group in range(file.num_row_groups):
            stop = first + file.metadata.row_group(group).num_rows
            own = [row - first for row in waiting if row < stop]
            if own:
                column = file.read_row_group(group, ["text"]).column(0)
                found += [column[row].as_py()[:characters] for row in own]
                waiting = waiting[len(own) :]
            first = stop
    return found


def chosen_texts(part: Part, wanted: npt.NDArray[np.bool_]) -> Iterator[str]:
    """Yield the texts of the documents that are wanted, (documents,), in order.

    Of a parquet file no others become Python's strings. Errors as of ``texts``.
    """
    if part["format"] not in ("shard", "parquet"):
        pairs = zip(texts(part), wanted.tolist(), strict=True)
        yield from (text for (_, text), is_wanted in pairs if is_wanted)
        return
    row = 0
    for batch in record_batches(part, [part["key"]]):
        here = wanted[row : row + len(batch)]
        row += len(batch)
        if here.any():
            values = batch.column(0).filter(pa.array(here)).to_pylist()
            yield from (value or "" for value in values)


def open_stream(path: Path) -> BinaryIO:
    """Open a file for reading, decompressed where its name ends in .gz, .bz2 or .zst."""
    if path.suffix in COMPRESSED:
        return cast(BinaryIO, io.BufferedReader(pa.input_stream(str(path)), 1 << 20))
    return open(path, "rb")


def record_batches(part: Part, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a parquet part, some at a time, with these columns or all."""
    path = Path(part["path"])
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            check_column(file.schema_arrow, part["key"], path)
            groups = range(part["start"], part["stop"] or file.num_row_groups)
            yield from file.iter_batches(
                _ROWS, row_groups=list(groups), columns=columns, use_threads=False
            )
    except (pa.ArrowException, OSError) as error:
        ours = part["format"] == "shard"
        raise UserError(
            f"{path} is damaged: {error}",
            hint="delete its folder and run the stage that writes it again" if ours else None,
            exit_code=BAD_DATA,
        ) from None


def check_column(schema: pa.Schema, key: str, path: Path) -> None:
    """Raise UserError unless the schema has a column of that name that holds text."""
    if key not in schema.names:
        raise _no_column(key, schema.names, str(path))
    kind = schema.field(key).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UserError(
            f"column {key!r} is not text but {kind}", where=str(path), exit_code=BAD_DATA
        )


def _no_column(key: str, there: list[str], where: str) -> UserError:
    guess = nearest(key, there)
    return UserError(
        f"no column {key!r}; the columns are: {', '.join(there)}",
        where=where,
        hint=f"name the column of the text: --text-key {guess or (there or ['...'])[0]}",
        exit_code=BAD_DATA,
    )


def _decoded(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"not UTF-8: {error}", where=where, hint="convert the file", exit_code=BAD_DATA
        ) from None


def _json_text(line: str, key: str, where: str) -> str:
    row = json_object(line, where)
    if key not in row:
        raise _no_column(key, list(row), where)
    value = row[key]
    if value is not None and not isinstance(value, str):
        raise UserError(
            f"{key!r} is not text but {type(value).__name__}", where=where, exit_code=BAD_DATA
        )
    # a lone surrogate, which JSON can write and UTF-8 cannot
    return (value or "").encode("utf-8", "replace").decode()
