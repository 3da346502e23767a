"""The training split of one source as a phase reads it: windows by number, epoch after epoch.

    k-th sample of the source --divide--> epoch k // windows, turn k % windows
                              --permute-> window w   (keyed by seed, phase, source and epoch: a
                                          later phase draws in another order, from the whole)

Ring: concatenated documents. The first epoch cuts windows from token 0; each later epoch starts at
another token (drawn from its key), so that texts are cut at other places each time and the few
tokens that no window covers are others each time. A window that runs over the end goes on at the
beginning: the last document there ends in EOS like any other.

Packed: windows of whole documents, as packing.py planned them; the same ones each epoch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tasks.errors import BAD_DATA, UserError
from tasks.tokens.arrays import Ints, expand
from tasks.tokens.mixture import Mix, MixSource
from tasks.tokens.order import permute, round_keys, unpermute
from tasks.tokens.packing import Packing, Pieces, load_packing
from tasks.tokens.rows import Parts, gaps
from tasks.tokens.shards import TokenSplit, open_split


@dataclass(frozen=True)
class Piece:
    """The part of one document that a window has as targets: tokens ``start`` to ``stop`` of it.

    ``document`` is its position in the split.
    """

    document: int
    start: int
    stop: int


class Places(NamedTuple):
    """Where some windows are; ``parts`` and ``targets`` read them by address."""

    epoch: Ints
    window: Ints
    address: Ints


class Stream(ABC):
    """One source of a phase. ``windows`` of them make an epoch."""

    def __init__(self, split: TokenSplit, mix: Mix, source: MixSource) -> None:
        self.split, self.name, self.windows = split, source.name, source.windows
        self.samples, self.seq_len = source.samples, mix.seq_len
        self._key = (mix.seed, mix.phase, source.name)

    def place(self, nth: Ints) -> Places:
        """Where the nth samples of this source are."""
        epoch, turn = np.divmod(nth, self.windows)
        window = np.empty_like(turn)
        address = np.empty_like(turn)
        for number in np.unique(epoch).tolist():
            now = epoch == number
            window[now] = permute(turn[now], self.windows, round_keys(*self._key, number))
            address[now] = self._address(number, window[now])
        return Places(epoch, window, address)

    def drawn(self, document: int, start: int, stop: int) -> Iterator[int]:
        """Which samples of this source, by number, have tokens of a document's stretch as
        targets; in no order."""
        for epoch in range(-(-self.samples // self.windows)):
            windows = self._covering(epoch, document, start, stop)
            turn = unpermute(windows, self.windows, round_keys(*self._key, epoch))
            nth = epoch * self.windows + turn
            yield from nth[nth < self.samples].tolist()

    def pieces(self, address: int) -> list[Piece]:
        """The documents that the window at an address has as targets, in order."""
        found = []
        for start, stop in zip(*(ints.tolist() for ints in self.targets(np.array([address])))):
            while start < stop:
                place = start % self.split.tokens
                document = int(np.searchsorted(self.split.ends, place, side="right"))
                begin, end = self.split.span(document)
                count = min(stop - start, end - place)
                found.append(Piece(document, place - begin, place - begin + count))
                start += count
        return found

    @abstractmethod
    def parts(self, rows: Ints, addresses: Ints) -> Parts:
        """What the windows at some addresses are made of, each in the row of a number."""

    @abstractmethod
    def targets(self, addresses: Ints) -> tuple[Ints, Ints]:
        """The stretches of the split that some windows have as targets: their first tokens and
        their last (exclusive), which may lie beyond the end, round the ring."""

    @abstractmethod
    def first_token(self, address: int) -> int:
        """Place in the split of the first token that the window reads."""

    @abstractmethod
    def _address(self, epoch: int, windows: Ints) -> Ints: ...

    @abstractmethod
    def _covering(self, epoch: int, document: int, start: int, stop: int) -> Ints:
        """The windows of an epoch with tokens of a document's stretch as targets."""


def open_stream(folder: Path, plans: Path, mix: Mix, source: MixSource, verify: bool) -> Stream:
    """Open a source of a phase.

    Args:
        folder: of its shards.
        plans: folder of the mix, with the packings.
        verify: whether to read and compare every byte of the shards.

    Raises UserError where shards or packing are missing, damaged, or not those of the mix.
    """
    split = open_split(folder, "train", verify=verify, tokenizer=mix.tokenizer)
    if split.sha256 != source.fingerprint:
        raise UserError(
            f"{folder} has changed since the mix of {mix.phase} was made "
            f"({split.sha256[:12]}, then {source.fingerprint[:12]})",
            hint=f"make the mix again: dvc repro mix@{mix.phase}",
            exit_code=BAD_DATA,
        )
    if source.packing is None:
        return Ring(split, mix, source)
    ends = np.asarray(split.ends)
    return Packed(
        split, mix, source, load_packing(plans, source.name, ends, mix.seq_len, source.packing)
    )


class Ring(Stream):
    """Concatenated documents; an address is the first token, beyond the end round the ring."""

    def parts(self, rows: Ints, addresses: Ints) -> Parts:
        length = self.seq_len + 1
        window, column, tokens = self.split.views(addresses, addresses + length)
        return Parts(rows[window] * length + column, tokens, np.empty(0, np.int64))

    def targets(self, addresses: Ints) -> tuple[Ints, Ints]:
        return addresses + 1, addresses + 1 + self.seq_len

    def first_token(self, address: int) -> int:
        return address % self.split.tokens

    def _address(self, epoch: int, windows: Ints) -> Ints:
        return self._offset(epoch) + windows * self.seq_len

    def _offset(self, epoch: int) -> int:
        """The token an epoch begins at: 0 for the first, any for the others."""
        if epoch == 0:
            return 0
        return round_keys(*self._key, epoch, "offset")[0] % self.split.tokens

    def _covering(self, epoch: int, document: int, start: int, stop: int) -> Ints:
        tokens = self.split.tokens
        first = (self.split.span(document)[0] + start - self._offset(epoch)) % tokens
        # a stretch that the epoch's own beginning divides lies at both ends of it
        parts = [(first, min(first + stop - start, tokens)), (0, first + stop - start - tokens)]
        found = [
            # the first token of an epoch is the target of no window
            np.arange((max(a, 1) - 1) // self.seq_len, (b - 2) // self.seq_len + 1)
            for a, b in parts
            if b > max(a, 1)
        ]
        windows = np.unique(np.concatenate([*found, np.empty(0, np.int64)]))
        return windows[windows < self.windows].astype(np.int64)


class Packed(Stream):
    """Windows of whole documents; an address is the number of the window.

    A row's token 0 is the input before its first target: the token before it in its document, or
    the EOS that stands before a document. Its padding is EOS, and no target.
    """

    def __init__(self, split: TokenSplit, mix: Mix, source: MixSource, packing: Packing) -> None:
        super().__init__(split, mix, source)
        self.packing = packing
        self._padding = np.full(mix.seq_len, split.eos_id)

    def parts(self, rows: Ints, addresses: Ints) -> Parts:
        length, pieces = self.seq_len + 1, self.packing.pieces(addresses)
        # the token before is read too where a piece goes on within its document, and where it is
        # the first of its row: that of a whole document is an EOS, in the split as in the row
        led = pieces.start > 0
        early = led | (pieces.column == 1)
        start, stop = self._places(pieces)
        start -= early
        at = rows[pieces.window] * length + pieces.column - early
        which, offset, tokens = self.split.views(start, stop)
        free, room = gaps(at, stop - start, rows, length)
        gap, nth = expand(room)
        return Parts(
            np.concatenate([at[which] + offset, free]),
            tokens + [self._padding[:size] for size in room.tolist()],
            np.concatenate([at[led], free[gap] + nth]),
        )

    def targets(self, addresses: Ints) -> tuple[Ints, Ints]:
        return self._places(self.packing.pieces(addresses))

    def first_token(self, address: int) -> int:
        return int(self.targets(np.array([address]))[0][0])

    def _places(self, pieces: Pieces) -> tuple[Ints, Ints]:
        """Place in the split of the first token of each piece, and of its last (exclusive)."""
        begin = self.packing.ends[pieces.document] - self.packing.lengths[pieces.document]
        return begin + pieces.start, begin + pieces.stop

    def _address(self, epoch: int, windows: Ints) -> Ints:
        return windows

    def _covering(self, epoch: int, document: int, start: int, stop: int) -> Ints:
        return self.packing.covering(document, start, stop)
