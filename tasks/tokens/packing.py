"""Documents packed whole into windows: best-fit-decreasing (Ding et al. 2024, "Fewer Truncations
Improve Language Modeling").

    a document longer than a window     |== full ==|== full ==|= rest =|
    windows of full pieces, one each    [==========] [==========]
    the others hold rests and documents [= rest =|- document -|- document -|.padding.]

Every token is a target once an epoch, and a document is cut only where it is longer than a window.
The longest piece goes first, each into the window with the least room that still takes it. Pieces
are sorted by counting and equal ones are placed together, so a million take about a second.

A rest does not begin its document, so it brings along the token before it: an input without a
target, without which its first target would be predicted from the end of another text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.errors import BAD_DATA, UserError
from tasks.tokens.shards import Ints

Packed = npt.NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class Packing:
    """Which documents stand in which window of one epoch.

    Windows of full pieces come first, document by document; then those that are shared.

    Attributes:
        ends: where each document ends in its split, EOS included.
        seq_len: tokens of a window.
        documents: position in the split of each piece, window by window.
        window_ends: where the pieces of each shared window end in ``documents``.
    """

    ends: Ints
    seq_len: int
    documents: Packed
    window_ends: Packed

    @cached_property
    def lengths(self) -> Ints:
        """Tokens of each document, EOS included."""
        return np.diff(self.ends, prepend=0)

    @cached_property
    def full(self) -> Ints:
        """Cumulative full windows, by document."""
        return np.cumsum(self.lengths // self.seq_len)

    @property
    def full_windows(self) -> int:
        return int(self.full[-1]) if len(self.full) else 0

    @property
    def windows(self) -> int:
        """Windows of an epoch."""
        return self.full_windows + len(self.window_ends)

    @cached_property
    def targets(self) -> Ints:
        """Tokens that are targets in each shared window; a full one has ``seq_len``."""
        rest = self.lengths[self.documents] % self.seq_len
        if not len(rest):
            return rest
        return np.add.reduceat(rest, np.concatenate([[0], self.window_ends[:-1]]).astype(np.int64))

    @cached_property
    def piece_of(self) -> Ints:
        """Where in ``documents`` each document's piece stands; -1 where it has none."""
        found = np.full(len(self.ends), -1, np.int64)
        found[self.documents] = np.arange(len(self.documents))
        return found

    @cached_property
    def sha256(self) -> str:
        """Of the plan itself; the split it is for has a fingerprint of its own."""
        sha = hashlib.sha256(self.documents.tobytes())
        sha.update(self.window_ends.tobytes())
        return sha.hexdigest()

    def padding(self, windows: Ints) -> int:
        """Positions without a target in some windows."""
        shared = windows[windows >= self.full_windows] - self.full_windows
        return int(shared.size * self.seq_len - self.targets[shared].sum())

    @property
    def cut_documents(self) -> int:
        """Documents in more than one piece."""
        return int(np.count_nonzero(self.lengths > self.seq_len))

    def save(self, folder: Path, source: str) -> None:
        for name in ("documents", "window_ends"):
            np.save(plan_path(folder, source, name), getattr(self, name), allow_pickle=False)


def plan_path(folder: Path, source: str, name: str) -> Path:
    """``name``: documents or window_ends."""
    return folder / f"{source}.{name}.npy"


def load_packing(folder: Path, source: str, ends: Ints, seq_len: int, sha256: str) -> Packing:
    """The packing of a source as ``save`` wrote it.

    Raises UserError where a file is missing, or is not the one the mix was written with.
    """
    arrays = []
    for name in ("documents", "window_ends"):
        path = plan_path(folder, source, name)
        try:
            arrays.append(np.asarray(np.load(path, mmap_mode="r", allow_pickle=False)))
        except (OSError, ValueError) as error:
            raise _damaged(path, str(error)) from None
    if any(array.dtype != np.uint32 or array.ndim != 1 for array in arrays):
        raise _damaged(folder, f"the plan of {source} is not made of uint32")
    packing = Packing(ends, seq_len, *arrays)
    if packing.sha256 != sha256:
        raise _damaged(folder, f"the plan of {source} is another")
    return packing


def _damaged(path: Path, why: str) -> UserError:
    phase = path.name if path.is_dir() else path.parent.name
    return UserError(
        f"{path} is not a packing as written: {why}",
        hint=f"make it again: dvc repro --force mix@{phase}",
        exit_code=BAD_DATA,
    )


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


def concatenated_cuts(ends: Ints, seq_len: int) -> int:
    """Documents that concatenation cuts in an epoch that begins at token 0.

    A document is whole where one window has all its tokens as targets.
    """
    starts = np.concatenate([[0], ends[:-1]])
    windows = (int(ends[-1]) - 1) // seq_len
    first = np.maximum(starts - 1, 0) // seq_len
    last = np.maximum(ends - 2, 0) // seq_len
    return int(np.count_nonzero((first != last) | (last >= windows)))


def pieces_of(packing: Packing, window: int) -> Iterator[tuple[int, int, int]]:
    """Document, and first and last token (exclusive) within it, of each piece of a window."""
    length = packing.seq_len
    if window < packing.full_windows:
        document = int(np.searchsorted(packing.full, window, side="right"))
        before = int(packing.full[document - 1]) if document else 0
        start = (window - before) * length
        yield document, start, start + length
        return
    shared = window - packing.full_windows
    first = int(packing.window_ends[shared - 1]) if shared else 0
    for document in packing.documents[first : int(packing.window_ends[shared])].tolist():
        tokens = int(packing.lengths[document])
        yield document, tokens - tokens % length, tokens
