"""Documents packed whole into windows: which stands where, as data/mix/<phase>/ holds it.

    a document longer than a window     |== full ==|== full ==|= rest =|
    windows of full pieces, one each    [==========] [==========]
    the others hold rests and documents [= rest =|- document -|- document -|.padding.]

    <source>.documents.npy              uint32: the documents in the shared windows, one by one
    <source>.window_ends.npy            uint32: where the documents of each window end in that

Every token is a target once an epoch, and a document is cut only where it is longer than a window.
What shares a window is decided in best_fit.py; the rest is arithmetic on the lengths.

A rest does not begin its document, so it brings along the token before it: an input without a
target, without which its first target would be predicted from the end of another text.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tasks.errors import BAD_DATA, UserError
from tasks.tokens.arrays import Ints, expand

Positions: TypeAlias = npt.NDArray[np.uint32]


class Pieces(NamedTuple):
    """The pieces of some windows, one beside the other.

    Attributes:
        window: which of the windows asked for each is in.
        document: position in the split.
        start, stop: its tokens in the document; all of them are targets.
        column: where it begins in a row of seq_len + 1: behind the input before the first target,
            and behind the token before it, where it does not begin its document.
    """

    window: Ints
    document: Ints
    start: Ints
    stop: Ints
    column: Ints


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
    documents: Positions
    window_ends: Positions

    @cached_property
    def lengths(self) -> Ints:
        """Tokens of each document, EOS included."""
        return np.diff(self.ends, prepend=0)

    @cached_property
    def full_ends(self) -> Ints:
        """Where the full windows of each document end."""
        return np.cumsum(self.lengths // self.seq_len)

    @property
    def full_windows(self) -> int:
        return int(self.full_ends[-1]) if len(self.full_ends) else 0

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
        return np.add.reduceat(rest, self._bounds[:-1])

    @cached_property
    def _bounds(self) -> Ints:
        """Where the pieces of each shared window begin in ``documents``, and where the last end."""
        return np.concatenate([[0], self.window_ends]).astype(np.int64)

    @cached_property
    def _piece_of(self) -> Ints:
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

    def pieces(self, windows: Ints) -> Pieces:
        """What stands in some windows: the full ones first, else in their order."""
        full = windows < self.full_windows
        first = self._full_pieces(windows, np.flatnonzero(full))
        then = self._shared_pieces(windows, np.flatnonzero(~full))
        return Pieces(*(np.concatenate(both) for both in zip(first, then)))

    def _full_pieces(self, windows: Ints, which: Ints) -> Pieces:
        """Of those ``which`` are full."""
        length = self.seq_len
        document = np.searchsorted(self.full_ends, windows[which], side="right")
        before = self.full_ends[document] - self.lengths[document] // length
        start = (windows[which] - before) * length
        return Pieces(which, document, start, start + length, np.ones_like(which))

    def _shared_pieces(self, windows: Ints, which: Ints) -> Pieces:
        """Of those ``which`` are shared."""
        shared = windows[which] - self.full_windows
        first = self._bounds[shared]
        window, nth = expand(self._bounds[shared + 1] - first)
        document = self.documents[first[window] + nth].astype(np.int64)
        stop = self.lengths[document]
        start = stop - stop % self.seq_len
        led = start > 0
        room = stop - start + led
        before = np.cumsum(room) - room
        before -= before[np.arange(len(nth)) - nth]  # in its own window
        column = 1 + before + led
        return Pieces(which[window], document, start, stop, column)

    def covering(self, document: int, start: int, stop: int) -> Ints:
        """The windows with any of the tokens ``start`` to ``stop`` of a document as targets."""
        whole, rest = divmod(int(self.lengths[document]), self.seq_len)
        before = int(self.full_ends[document]) - whole
        last = min(whole, -(-stop // self.seq_len))
        windows = [*range(before + start // self.seq_len, before + last)]
        if rest and stop > whole * self.seq_len:
            place = self._piece_of[document]
            shared = int(np.searchsorted(self.window_ends, place, side="right"))
            windows.append(self.full_windows + shared)
        return np.array(windows, np.int64)

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


def concatenated_cuts(ends: Ints, seq_len: int) -> int:
    """Documents that concatenation cuts in an epoch that begins at token 0.

    A document is whole where one window has all its tokens as targets.
    """
    starts = np.concatenate([[0], ends[:-1]])
    windows = (int(ends[-1]) - 1) // seq_len
    first = np.maximum(starts - 1, 0) // seq_len
    last = np.maximum(ends - 2, 0) // seq_len
    return int(np.count_nonzero((first != last) | (last >= windows)))
