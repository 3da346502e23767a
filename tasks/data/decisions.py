"""data/dedup/decisions.parquet: for every cleaned document, whether it stays and because of which.

source, split, position   the document's place (position within source and split)
id                        hash of its text
cluster                   row, in this table, of the document that stays
keep, reason              reason: "exact", "near", or "" for one that stays
kept_id, jaccard          id of the document that stays, and how similar the two are
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.errors import BAD_DATA, NO_INPUT, UserError
from tasks.recipe import Split

SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("split", pa.string()),
        ("position", pa.int64()),
        ("id", pa.string()),
        ("cluster", pa.int64()),
        ("keep", pa.bool_()),
        ("reason", pa.string()),
        ("kept_id", pa.string()),
        ("jaccard", pa.float64()),
    ]
)
Place = tuple[str, Split]


@dataclass
class Column:
    """The decisions on one split of one source; item i is about the document at position i."""

    ids: list[str]
    keep: list[bool]


def write_decisions(path: Path, table: pa.Table) -> None:
    pq.write_table(table.cast(SCHEMA), path, compression="zstd", write_page_checksum=True)


def read_decisions(folder: Path) -> dict[Place, Column]:
    """The decisions by source and split. Raises UserError where the file is missing or damaged."""
    path = folder / "decisions.parquet"
    if not path.exists():
        raise UserError(
            f"{path} is missing", hint="run: python -m tasks.data.dedup", exit_code=NO_INPUT
        )
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            rows = file.read(["source", "split", "position", "id", "keep"]).to_pydict()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UserError(
            f"{path} is damaged: {error}",
            hint="run: python -m tasks.data.dedup",
            exit_code=BAD_DATA,
        ) from None
    found: dict[Place, Column] = {}
    for source, split, position, id_, keep in zip(*rows.values(), strict=True):
        column = found.setdefault((source, split), Column([], []))
        assert position == len(column.ids), f"{path}: {source}/{split} is out of order"
        column.ids.append(id_)
        column.keep.append(keep)
    return found
