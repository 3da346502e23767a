"""From tokens back to text: the documents of a split by their position in its shards, and by words.

    data/documents/<source>/train-*.parquet      row 0, row 1, (row 2 encodes to nothing), row 3 ...
    data/tokens/<source>/train                   document 0, document 1,           document 2 ...

Text is searched for as text: the ids of a phrase depend on what stands before it. Where it stands
in a document's ids is found afterwards.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.data.documents import Document, shards
from tasks.errors import BAD_DATA, UserError
from tasks.recipe import Split
from tasks.tokens.arrays import Ints
from tasks.tokens.shards import TokenSplit, open_split
from tasks.tokens.text import load_tokenizer
from tasks.workspace import Workspace


@dataclass(frozen=True)
class Match:
    """A place where a text stands: characters ``start`` to ``stop`` of a document.

    ``document`` is its position in the shards, ``text`` what it is.
    """

    document: int
    text: Document
    start: int
    stop: int


class Lookup:
    """One split of one source: its ids and its text side by side.

    Raises UserError where shards, documents or tokenizer are missing, damaged, or do not belong
    together.
    """

    def __init__(self, workspace: Workspace, source: str, split: Split) -> None:
        self.tokenizer = load_tokenizer(workspace.tokenizer)
        self.tokens: TokenSplit = open_split(
            workspace.tokens(source), split, verify=False, tokenizer=self.tokenizer.fingerprint
        )
        self.source, self.split = source, split
        self._folder = workspace.documents / source
        self._read: tuple[int, pa.Table] | None = None

    def __len__(self) -> int:
        return self.tokens.documents

    def document(self, position: int) -> Document:
        """The text of the document at a position of the shards."""
        row = int(self._rows[position])
        group = bisect_right(self._firsts, row) - 1
        found = self._document(group, row - self._firsts[group])
        if found.bytes != int(self.tokens.document_bytes[position]):
            raise self._apart(f"document {position} has {found.bytes:,} bytes of text")
        return found

    def ids(self, position: int) -> list[int]:
        """The ids of a document, its EOS included."""
        return self.tokens.read(*self.tokens.span(position)).tolist()

    def search(self, text: str, ignore_case: bool = False) -> Iterator[Match]:
        """Every place where a text stands, in the order of the split; places do not overlap."""
        pattern = re.compile(re.escape(text), re.IGNORECASE if ignore_case else 0)
        for group, (path, number) in enumerate(self._groups):
            for row in _rows_with(self._table(path, number, ["text"])["text"], text, ignore_case):
                position = self._position(self._firsts[group] + row)
                if position is None:  # it encodes to nothing
                    continue
                found = self._document(group, row)
                for place in pattern.finditer(found.text):
                    yield Match(position, found, *place.span())

    def stretch(self, match: Match) -> tuple[int, int]:
        """The tokens of a match's document, first and last (exclusive), that hold the match.

        Exact where ids decode to the text as it was; else up to two tokens more on each side.
        """
        ids, words, text = self.ids(match.document)[:-1], self.tokenizer, match.text.text
        if words.decode(ids) == text:
            counts = range(len(ids) + 1)

            def begun(count: int) -> int:  # characters of which the first tokens hold a part
                return len(words.decode(ids[:count]))

            def ended(count: int) -> int:  # characters that the first tokens hold whole
                part = words.decode(ids[:count])
                return len(part) - (part != text[: len(part)])

            start = bisect_right(counts, match.start, key=begun) - 1
            return start, bisect_left(counts, match.stop, key=ended)
        before, until = (len(words.encode(text[:n])) for n in (match.start, match.stop))
        return max(0, min(before, len(ids) - 1) - 2), min(len(ids), until + 2)

    @cached_property
    def _groups(self) -> list[tuple[Path, int]]:
        """Row groups of the split's parquet files: what is read at once."""
        paths = shards(self._folder).get(self.split, [])
        counts = [(path, self._open(path).num_row_groups) for path in paths]
        return [(path, number) for path, count in counts for number in range(count)]

    @cached_property
    def _sizes(self) -> list[int]:
        return [self._open(p).metadata.row_group(n).num_rows for p, n in self._groups]

    @cached_property
    def _firsts(self) -> list[int]:
        """The row at which each group begins."""
        return list(itertools.accumulate(self._sizes, initial=0))[:-1]

    @cached_property
    def _rows(self) -> Ints:
        """The row of each document of the shards: all rows but those that encoded to nothing."""
        rows = sum(self._sizes)
        missing = rows - len(self)
        if missing < 0:
            raise self._apart(f"{rows:,} documents of text, {len(self):,} of tokens")
        kept = np.ones(rows, bool)
        for row in range(rows):
            if not missing:
                break
            group = bisect_right(self._firsts, row) - 1
            if not self.tokenizer.encode(self._document(group, row - self._firsts[group]).text):
                kept[row], missing = False, missing - 1
        if missing:
            raise self._apart(f"{rows:,} documents of text, {len(self):,} of tokens")
        return np.flatnonzero(kept)

    def _position(self, row: int) -> int | None:
        position = int(np.searchsorted(self._rows, row))
        there = position < len(self._rows) and self._rows[position] == row
        return position if there else None

    def _document(self, group: int, row: int) -> Document:
        if self._read is None or self._read[0] != group:
            self._read = group, self._table(*self._groups[group])
        values = {name: self._read[1][name][row].as_py() for name in self._read[1].column_names}
        return Document(split=self.split, **values)

    def _open(self, path: Path) -> Any:
        try:
            return pq.ParquetFile(path, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(path, error) from None

    def _table(self, path: Path, number: int, columns: list[str] | None = None) -> Any:
        try:
            return self._open(path).read_row_group(number, columns)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(path, error) from None

    def _damaged(self, path: Path, error: Exception) -> UserError:
        return UserError(
            f"{path} is damaged: {error}", hint="make it again: dvc repro", exit_code=BAD_DATA
        )

    def _apart(self, why: str) -> UserError:
        return UserError(
            f"{self._folder} and {self.tokens.folder} do not belong together: {why}",
            hint=f"encode the source again: dvc repro encode@{self.source}",
            exit_code=BAD_DATA,
        )


def _rows_with(column: Any, text: str, ignore_case: bool) -> Iterator[int]:
    """The rows of a text column that may hold a text; all that do are among them."""
    if ignore_case:
        found = pc.match_substring(column, text, ignore_case=True)
        yield from pc.indices_nonzero(found).to_pylist()
        return
    wanted, first = text.encode(), 0
    for chunk in column.chunks:  # its bytes lie in one row: ten times faster than row by row
        _, ends, content = chunk.buffers()
        offsets = np.frombuffer(ends, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
        raw = content.to_pybytes() if content else b""
        place = raw.find(wanted, int(offsets[0]))
        while 0 <= place < offsets[-1]:
            row = int(np.searchsorted(offsets, place, side="right")) - 1
            yield first + row
            place = raw.find(wanted, int(offsets[row + 1]))
        first += len(chunk)
