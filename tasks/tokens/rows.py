"""Rows of tokens put together from parts of the shards, a batch by one ``np.concatenate``.

    row 0  [=== a window of concatenated documents ===]        one part
    row 1  [:- document -|:= rest =|- document -|EOS EOS]      packed: a part a piece, and padding

":" is the token before a piece, read with it as an input alone. A part is a view, of a memory map
or of padding. Where the parts of many samples lie is worked out at once, and nothing is copied
until a batch is read; so a small batch costs little more than its copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.tokens.arrays import Ints

IGNORED = -100  # torch's mark of a target that counts for nothing


@dataclass(frozen=True, eq=False)
class Parts:
    """What some rows are made of, in any order.

    A place is row * length + column, with rows of ``length`` laid end to end.

    Attributes:
        at: place of each part's first token.
        views: the tokens of each part.
        ignored: places of tokens that are inputs alone, and no targets.
    """

    at: Ints
    views: list[npt.NDArray[Any]]
    ignored: Ints


def gaps(at: Ints, sizes: Ints, rows: Ints, length: int) -> tuple[Ints, Ints]:
    """Where some rows are still empty: place and size of each gap, in order.

    Args:
        at, sizes: place and size of each part that is there; none goes on in the next row.
        rows: their numbers.
        length: of a row.
    """
    # room begins with a row and behind each part, and ends before each part and with the row; in
    # order, the nth beginning belongs to the nth end
    begins = np.sort(np.concatenate([rows * length, at + sizes]), kind="stable")
    ends = np.sort(np.concatenate([at, (rows + 1) * length]), kind="stable")
    empty = ends > begins
    return begins[empty], (ends - begins)[empty]


class Block:
    """Consecutive samples, ready to be copied.

    Args:
        first: number of the first.
        source: of each; see ``reader.Samples``.
        parts: of all of them; row 0 is sample ``first``.
        length: of a row.

    Attributes:
        first, stop: the numbers of its samples, ``stop`` excluded.
    """

    def __init__(self, first: int, source: Ints, parts: Sequence[Parts], length: int) -> None:
        self.first, self.stop = first, first + len(source)
        self._source, self._length = source, length
        none = np.empty(0, np.int64)
        at = np.concatenate([none, *(part.at for part in parts)])
        order = np.argsort(at, kind="stable")
        views = [view for part in parts for view in part.views]
        self._views = [views[n] for n in order.tolist()]
        self._ignored = np.concatenate([none, *(part.ignored for part in parts)])
        self._ignored.sort(kind="stable")
        begins = np.arange(len(source) + 1) * length
        self._first_view = np.searchsorted(at[order], begins).tolist()
        self._first_ignored = np.searchsorted(self._ignored, begins).tolist()

    def read(self, first: int, count: int) -> tuple[Ints, Ints, Ints]:
        """Samples by number: tokens (count, length), targets (count, length - 1), source (count,);
        targets that are ``IGNORED`` nowhere are a view of the tokens."""
        row, stop = first - self.first, first - self.first + count
        tokens = targets = np.empty((count, self._length), np.int64)
        if count:
            views = self._views[self._first_view[row] : self._first_view[stop]]
            np.concatenate(views, out=tokens.reshape(-1))
        ignored = self._ignored[self._first_ignored[row] : self._first_ignored[stop]]
        if len(ignored):
            targets = tokens.copy()
            targets.reshape(-1)[ignored - row * self._length] = IGNORED
        return tokens, targets[:, 1:], self._source[row:stop].copy()
