"""Which documents share a window: best-fit-decreasing (Ding et al. 2024, "Fewer Truncations Improve
Language Modeling").

The longest piece goes first, each into the window with the least room that still takes it. Pieces
are sorted by counting and equal ones are placed together, so a million take about a second.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.tokens.arrays import Ints
from tasks.tokens.packing import Packing


def best_fit(ends: Ints, seq_len: int) -> Packing:
    """Pack documents of one split into windows of ``seq_len`` tokens, best fit first.

    Args:
        ends: where each document ends, EOS included; each has a token at least.
    """
    lengths = np.diff(ends, prepend=0)
    rest = lengths % seq_len
    pieces = np.flatnonzero(rest)
    # a rest takes a place more, for the token before it
    sizes = rest[pieces] + (lengths[pieces] > seq_len)
    order = np.argsort(-sizes, kind="stable")
    window = np.empty(len(pieces), np.int64)
    window[order] = _best_fit_decreasing(np.bincount(sizes, minlength=seq_len + 1), seq_len)
    # documents of a window in the order of the split, so that size and place are unrelated
    by_window = np.lexsort((pieces, window))
    counts = np.bincount(window) if len(window) else np.empty(0, np.int64)
    return Packing(
        ends,
        seq_len,
        pieces[by_window].astype(np.uint32),
        np.cumsum(counts).astype(np.uint32),
    )


def _best_fit_decreasing(sizes: Ints, room: int) -> Ints:
    """The window of each piece, the pieces in descending order of size.

    Args:
        sizes: number of pieces of each size, 0 to ``room``.
        room: of an empty window.

    Best fit gives a window that took a piece the next of the same size too, as long as it fits:
    nothing has less room that suffices. So equal pieces fill windows of equal room together.
    """
    windows = np.empty(int(sizes.sum()), np.int64)
    by_room = _Rooms(room)
    placed = 0
    for size in np.flatnonzero(sizes)[::-1].tolist():
        left = int(sizes[size])
        while left:
            space, some = by_room.take(size, left)
            fit = space // size
            now = min(left, fit * len(some))
            windows[placed : placed + now] = np.repeat(some, fit)[:now]
            filled, partly = divmod(now, fit)
            by_room.put(space - fit * size, some[:filled])
            if partly:
                by_room.put(space - partly * size, some[filled:])
            placed, left = placed + now, left - now
    return windows


class _Rooms:
    """Windows by the room they have left; bit r of ``_some`` says whether one has room r."""

    def __init__(self, room: int) -> None:
        self._room, self._opened, self._some = room, 0, 0
        self._windows: list[list[npt.NDArray[Any]]] = [[] for _ in range(room + 1)]

    def take(self, size: int, pieces: int) -> tuple[int, npt.NDArray[Any]]:
        """Windows of the least room that holds ``size``, no more than ``pieces`` of it need."""
        fitting = self._some >> size
        if not fitting:
            count = -(-pieces // (self._room // size))
            self._opened += count
            return self._room, np.arange(self._opened - count, self._opened)
        space = size + (fitting & -fitting).bit_length() - 1
        there = self._windows[space].pop()
        need = -(-pieces // (space // size))
        if len(there) > need:
            self._windows[space].append(there[need:])
            there = there[:need]
        elif not self._windows[space]:
            self._some ^= 1 << space
        return space, there

    def put(self, space: int, windows: npt.NDArray[Any]) -> None:
        if space and len(windows):
            self._windows[space].append(windows)
            self._some |= 1 << space
