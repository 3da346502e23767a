"""Rows of any parquet file, from any row on, a few megabytes at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.errors import BAD_DATA, UserError

_BATCH_BYTES = 8_000_000  # of values held at once
_BUFFER_BYTES = 1 << 20  # read at once of a column; else a whole row group's is
_BATCH_ROWS = 1024


def parquet_length(path: Path) -> int:
    """Rows of a file, from its footer. Raises UserError for one that is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None


def parquet_rows(path: Path, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and plain values of the rows of a file from row ``start`` on.

    Row groups before it are not read. Raises UserError for a file that is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES) as file:
            first = 0
            for number in range(file.num_row_groups):
                group = file.metadata.row_group(number)
                if first + group.num_rows > start:
                    size = max(1, group.total_byte_size // max(1, group.num_rows))
                    rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // size))
                    row = first
                    for batch in file.iter_batches(rows, row_groups=[number]):
                        skip = min(batch.num_rows, max(0, start - row))
                        yield from enumerate(batch.slice(skip).to_pylist(), row + skip)
                        row += batch.num_rows
                first += group.num_rows
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"not a readable parquet file: {error}",
        where=str(path),
        hint="bring the file here again, or leave it out of the source",
        exit_code=BAD_DATA,
    )
