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

import numpy as np
import numpy.typing as npt

from tasks.errors import BAD_DATA, UserError
from tasks.tokens.mixture import Mix, MixSource
from tasks.tokens.order import permute, round_keys, unpermute
from tasks.tokens.packing import Packing, load_packing, pieces_of
from tasks.tokens.shards import Ints, TokenSplit, open_split

IGNORED = -100  # torch's mark of a target that counts for nothing


@dataclass(frozen=True)
class Piece:
    """The part of one document that a window has as targets: tokens ``start`` to ``stop`` of it.

    ``document`` is its position in the split.
    """

    document: int
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Rows:
    """Where samples are read to; see ``reader.Samples``."""

    tokens: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]


class Stream(ABC):
    """One source of a phase. ``windows`` of them make an epoch."""

    def __init__(self, split: TokenSplit, mix: Mix, source: MixSource) -> None:
        self.split, self.name, self.windows = split, source.name, source.windows
        self.samples, self.seq_len = source.samples, mix.seq_len
        self._key = (mix.seed, mix.phase, source.name)

    def place(self, nth: Ints) -> tuple[Ints, Ints, Ints]:
        """Epoch, window and address of the nth samples; ``fill`` reads by address."""
        epoch, turn = np.divmod(nth, self.windows)
        window = np.empty_like(turn)
        address = np.empty_like(turn)
        for number in np.unique(epoch).tolist():
            now = epoch == number
            window[now] = permute(turn[now], self.windows, round_keys(*self._key, number))
            address[now] = self._address(number, window[now])
        return epoch, window, address

    def drawn(self, document: int, start: int, stop: int) -> Iterator[int]:
        """Which samples of this source, by number, have tokens of a document's stretch as
        targets; in no order."""
        for epoch in range(-(-self.samples // self.windows)):
            windows = self._covering(epoch, document, start, stop)
            turn = unpermute(windows, self.windows, round_keys(*self._key, epoch))
            nth = epoch * self.windows + turn
            yield from nth[nth < self.samples].tolist()

    @abstractmethod
    def fill(self, rows: Rows, which: Ints, addresses: Ints) -> None:
        """Read the windows at some addresses into the rows ``which``."""

    @abstractmethod
    def pieces(self, address: int) -> list[Piece]:
        """The documents that the window at an address has as targets, in order."""

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

    def fill(self, rows: Rows, which: Ints, addresses: Ints) -> None:
        self.split.gather(addresses, rows.tokens, which)

    def first_token(self, address: int) -> int:
        return address % self.split.tokens

    def pieces(self, address: int) -> list[Piece]:
        ends, tokens = self.split.ends, self.split.tokens
        place, left, found = (address + 1) % tokens, self.seq_len, []
        while left:
            document = int(np.searchsorted(ends, place, side="right"))
            begin, end = int(ends[document - 1]) if document else 0, int(ends[document])
            count = min(left, end - place)
            found.append(Piece(document, place - begin, place - begin + count))
            place, left = (place + count) % tokens, left - count
        return found

    def _address(self, epoch: int, windows: Ints) -> Ints:
        return self._offset(epoch) + windows * self.seq_len

    def _offset(self, epoch: int) -> int:
        """The token an epoch begins at: 0 for the first, any for the others."""
        if epoch == 0:
            return 0
        return round_keys(*self._key, epoch, "offset")[0] % self.split.tokens

    def _covering(self, epoch: int, document: int, start: int, stop: int) -> Ints:
        tokens, begin = self.split.tokens, int(self.split.ends[document - 1]) if document else 0
        first = (begin + start - self._offset(epoch)) % tokens
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

    def fill(self, rows: Rows, which: Ints, addresses: Ints) -> None:
        full = addresses < self.packing.full_windows
        if full.any():
            self._fill_full(rows, which[full], addresses[full])
        if not full.all():
            shared = addresses[~full] - self.packing.full_windows
            self._fill_shared(rows, which[~full], shared)

    def first_token(self, address: int) -> int:
        piece = self.pieces(address)[0]
        return self._begin(piece.document) + piece.start

    def pieces(self, address: int) -> list[Piece]:
        return [Piece(*piece) for piece in pieces_of(self.packing, address)]

    def _begin(self, document: int) -> int:
        return int(self.split.ends[document - 1]) if document else 0

    def _address(self, epoch: int, windows: Ints) -> Ints:
        return windows

    def _covering(self, epoch: int, document: int, start: int, stop: int) -> Ints:
        packing, length = self.packing, self.seq_len
        tokens = int(packing.lengths[document])
        whole, rest = divmod(tokens, length)
        before = int(packing.full[document]) - whole
        windows = [*range(before + start // length, before + min(whole, -(-stop // length)))]
        if rest and stop > whole * length:
            place = int(packing.piece_of[document])
            shared = int(np.searchsorted(packing.window_ends, place, side="right"))
            windows.append(packing.full_windows + shared)
        return np.array(windows, np.int64)

    def _fill_full(self, rows: Rows, which: Ints, windows: Ints) -> None:
        document = np.searchsorted(self.packing.full, windows, side="right")
        ends, lengths = self.packing.ends[document], self.packing.lengths[document]
        nth = windows - (self.packing.full[document] - lengths // self.seq_len)
        start = ends - lengths + nth * self.seq_len
        self.split.gather(start - 1, rows.tokens, which)
        rows.targets[which] = rows.tokens[which, 1:]

    def _fill_shared(self, rows: Rows, which: Ints, windows: Ints) -> None:
        packing, read = self.packing, self.split.read
        last = packing.window_ends[windows].astype(np.int64)
        count = last - np.where(windows > 0, packing.window_ends[windows - 1], 0)
        first = np.cumsum(count) - count  # the first piece of each window, among all here
        piece = np.arange(int(count.sum())) + np.repeat(last - count - first, count)
        document = packing.documents[piece]
        end, lengths = packing.ends[document], packing.lengths[document]
        led = lengths > self.seq_len  # brings the token before it
        size = lengths % self.seq_len + led
        before = np.cumsum(size) - size
        place = 1 + before - np.repeat(before[first], count)
        row = np.repeat(which, count)
        tokens, targets, eos_id = rows.tokens, rows.targets, self.split.eos_id
        tokens[which, 0] = eos_id
        pieces = zip(*(values.tolist() for values in (row, place, size, end)), strict=True)
        for number, start, length, stop in pieces:
            tokens[number, start : start + length] = read(stop - length, stop)
        ends = place[first + count - 1] + size[first + count - 1]
        padded = ends <= self.seq_len
        for number, start in zip(which[padded].tolist(), ends[padded].tolist()):
            tokens[number, start:] = eos_id
        targets[which] = tokens[which, 1:]
        for number, start in zip(which[padded].tolist(), ends[padded].tolist()):
            targets[number, start - 1 :] = IGNORED
        targets[row[led], place[led] - 1] = IGNORED
