"""data/dedup/decisions.parquet: for every cleaned document, whether it stays and because of which.

source, split, position   the document's place (position within source and split)
id                        hash of its text
cluster, cluster_id       row, in this table, and id of the first document of its cluster: documents
                          of one cluster that stay are never torn apart by a made split
keep, reason              reason: "exact", "near", or "" for one that stays
kept_id, jaccard          id of the document that stays, and how similar the two are

Rows stand in order of priority (test, validation, train; then the recipe's order of sources; then
position). A row group holds rows of one source and split alone, so that the rows of any stretch of
documents are found by the file's footer and read without the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
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
        ("cluster_id", pa.string()),
        ("keep", pa.bool_()),
        ("reason", pa.string()),
        ("kept_id", pa.string()),
        ("jaccard", pa.float64()),
    ]
)
GROUP_ROWS = 65_536
Place = tuple[str, Split]


@dataclass(frozen=True)
class Decided:
    """The decisions on a stretch of one source and split; item i is about its i-th document."""

    ids: list[str]
    clusters: list[str]  # the id that names the cluster
    keep: npt.NDArray[np.bool_]


def write_decisions(path: Path, tables: pa.Table | Iterable[pa.Table]) -> None:
    """Write tables of ``SCHEMA``'s columns, one after the other, in the order of the rows.

    The bytes depend on the tables' borders, so these depend on the documents alone.
    """
    with pq.ParquetWriter(
        path,
        SCHEMA,
        compression="zstd",
        use_dictionary=["source", "split", "reason"],
        write_page_checksum=True,
    ) as writer:
        for table in [tables] if isinstance(tables, pa.Table) else tables:
            for part in _by_place(table.select(SCHEMA.names).cast(SCHEMA)):
                writer.write_table(part, row_group_size=GROUP_ROWS)


def _by_place(table: pa.Table) -> Iterator[pa.Table]:
    places = [pc.rank(table[name], tiebreaker="dense").to_numpy() for name in ("source", "split")]
    changes = np.flatnonzero(np.any([np.diff(place) != 0 for place in places], axis=0)) + 1
    edges = [0, *changes.tolist(), table.num_rows]
    for start, stop in pairwise(edges):
        if stop > start:
            yield table.slice(start, stop - start)


class Decisions:
    """The decisions of a finished dedup, open for reading.

    Attributes:
        counts: documents of each source and split, in the order of the file.
    """

    def __init__(self, folder: Path) -> None:
        """Raises UserError where the file is missing or damaged."""
        self._path = folder / "decisions.parquet"
        if not self._path.exists():
            raise UserError(
                f"{self._path} is missing",
                hint="run: python -m tasks.data.dedup",
                exit_code=NO_INPUT,
            )
        self._groups: dict[Place, list[tuple[int, int]]] = {}  # (row group, its first position)
        self.counts: dict[Place, int] = {}
        try:
            self._file = pq.ParquetFile(self._path, page_checksum_verification=True)
            if not self._file.schema_arrow.equals(SCHEMA):
                raise self._damaged("its columns are not those of this version")
            metadata = self._file.metadata
            for number in range(metadata.num_row_groups):
                group = metadata.row_group(number)
                source, split, first = (self._only(group.column(column)) for column in range(3))
                place = (source, split)
                if first != self.counts.setdefault(place, 0):
                    raise self._damaged(f"{source}/{split} is out of order")
                self._groups.setdefault(place, []).append((number, first))
                self.counts[place] += group.num_rows
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(str(error)) from None

    def read(self, place: Place, start: int = 0, stop: int | None = None) -> Decided:
        """The decisions on documents ``start`` to ``stop`` of a source and split.

        Raises UserError where the file is damaged.
        """
        count = self.counts.get(place, 0)
        stop = count if stop is None else min(stop, count)
        groups = self._groups.get(place, [])
        firsts = [first for _, first in groups] + [count]
        wanted = [
            n for (n, first), after in zip(groups, firsts[1:]) if first < stop and after > start
        ]
        if not wanted or start >= stop:
            return Decided([], [], np.zeros(0, bool))
        try:
            table = self._file.read_row_groups(wanted, ["id", "cluster_id", "keep"])
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(str(error)) from None
        rows = table.slice(start - dict(groups)[wanted[0]], stop - start)
        return Decided(
            rows["id"].to_pylist(), rows["cluster_id"].to_pylist(), rows["keep"].to_numpy()
        )

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Decisions:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _only(self, column: Any) -> Any:
        """The least value of a column of a row group; of source and split it is the only one."""
        statistics = column.statistics
        if statistics is None or not statistics.has_min_max:
            raise self._damaged("a row group has no statistics")
        return statistics.min

    def _damaged(self, why: str) -> UserError:
        return UserError(
            f"{self._path} is damaged: {why}",
            hint="run: python -m tasks.data.dedup",
            exit_code=BAD_DATA,
        )
