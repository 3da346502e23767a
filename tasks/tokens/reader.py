"""Any sample of a phase by its number: a pure function of the mix and the shards.

    sample i --interleaving--> source, k-th of it
             --stream--------> epoch, window, and the tokens of that window

Nothing that counts is held between calls, so any process may read any sample, in any order, and a
run that goes on needs to know the number of samples it has seen and nothing else. What is held is
speed alone: the order is worked out a few thousand samples at a time.

Every step can be asked the other way round: ``when`` says which samples have read a document.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.errors import unknown_name
from tasks.tokens.mixture import Mix
from tasks.tokens.shards import Ints
from tasks.tokens.streams import IGNORED, Piece, Rows, Stream, open_stream
from tasks.workspace import Workspace

__all__ = ["IGNORED", "Location", "Piece", "Reader", "Samples"]

_AHEAD = 4096  # samples whose order is worked out at once
_KEPT = 4  # such blocks that are held


@dataclass(frozen=True, eq=False)
class Samples:
    """Consecutive samples of a phase.

    Attributes:
        tokens: int64 (count, seq_len + 1); inputs are [:, :-1].
        targets: int64 (count, seq_len): tokens[:, 1:], or -100 where there is none (padding, and
            the token that a cut document brings along).
        document_ids: int32 (count, seq_len + 1): equal where two tokens of a row are of one
            document, counting up from 0 along the row; EOS belongs to the document it ends. None
            where not asked for.
        source: int64 (count,): which of ``mix.sources`` each sample is from.
    """

    tokens: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    document_ids: npt.NDArray[np.int32] | None
    source: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Location:
    """Where a sample comes from.

    Attributes:
        source: name in the recipe.
        epoch: passes over the source before this one.
        window: number of the window within its epoch.
        token: place of its first token in the split.
        documents: positions in the split of the documents it touches, in order.
    """

    source: str
    epoch: int
    window: int
    token: int
    documents: list[int]


class Reader:
    """Read the samples of a phase from memory-mapped shards.

    Args:
        workspace: where the shards lie.
        mix: from ``load_mix``.
        verify: read every byte of the shards once and compare it with its SHA-256 (about a
            second for 500 million tokens); sizes and fingerprints are compared in any case.

    Raises UserError where shards are missing, damaged, or not those the mix was made for.
    """

    def __init__(self, workspace: Workspace, mix: Mix, *, verify: bool = True) -> None:
        self.mix = mix
        self._interleaving = mix.interleaving
        plans = workspace.mix(mix.phase).parent
        self._streams = [
            open_stream(workspace.tokens(source.name), plans, mix, source, verify)
            for source in mix.sources
        ]
        self._packed = any(source.packing for source in mix.sources)
        self._blocks: OrderedDict[int, tuple[Ints, Ints]] = OrderedDict()

    def __len__(self) -> int:
        return self.mix.samples

    def samples(self, first: int, count: int, *, documents: bool = True) -> Samples:
        """Samples ``first`` to ``first + count``; ``documents=False`` leaves document_ids out.

        Raises IndexError beyond the samples of the phase.
        """
        if not 0 <= first <= first + count <= self.mix.samples:
            raise IndexError(f"samples {first} to {first + count} of {self.mix.samples}")
        source, address = self._order(first, count)
        length = self.mix.seq_len + 1
        tokens = np.empty((count, length), np.int64)
        targets = np.empty((count, length - 1), np.int64) if self._packed else tokens[:, 1:]
        rows = Rows(tokens, targets)
        for number, stream in enumerate(self._streams):
            which = np.flatnonzero(source == number)
            if which.size:
                stream.fill(rows, which, address[which])
        return Samples(tokens, targets, self._document_ids(tokens) if documents else None, source)

    def _document_ids(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """A number for the document of each token: how many documents ended before it."""
        ids = np.zeros(tokens.shape, np.int32)
        ended = (tokens[:, :-1] == self.mix.eos_id).view(np.int8)
        np.cumsum(ended, axis=1, dtype=np.int32, out=ids[:, 1:])
        return ids

    def locate(self, index: int) -> Location:
        """Where sample ``index`` comes from."""
        stream, nth = self._find(index)
        epoch, window, address = (int(value[0]) for value in stream.place(np.array([nth])))
        token = stream.first_token(address)
        before = int(np.searchsorted(stream.split.ends, token, side="right"))
        pieces = [piece.document for piece in stream.pieces(address)]
        # the first token is an input alone, and may be the end of another document
        touched = pieces if self._packed or before in pieces else [before, *pieces]
        return Location(stream.name, epoch, window, token, touched)

    def pieces(self, index: int) -> list[Piece]:
        """The parts of documents that sample ``index`` has as targets, in order."""
        stream, nth = self._find(index)
        return stream.pieces(int(stream.place(np.array([nth]))[2][0]))

    def when(self, source: str, document: int, start: int, stop: int) -> list[int]:
        """The samples of the phase, in order, that have any of the tokens ``start`` to ``stop``
        of a document as targets.

        Args:
            source: a source of the mix.
            document: its position in the training split.
        """
        names = [stream.name for stream in self._streams]
        if source not in names:
            raise unknown_name("source", source, names, where=f"the mix of {self.mix.phase}")
        number = names.index(source)
        drawn = self._streams[number].drawn(document, start, stop)
        return sorted(self._interleaving.index(number, nth) for nth in drawn)

    def _find(self, index: int) -> tuple[Stream, int]:
        if not 0 <= index < self.mix.samples:
            raise IndexError(f"sample {index} of {self.mix.samples}")
        source, nth = self._interleaving.locate(np.array([index]))
        return self._streams[int(source[0])], int(nth[0])

    def _order(self, first: int, count: int) -> tuple[Ints, Ints]:
        """Source and address of consecutive samples."""
        blocks = range(first // _AHEAD, max(first, first + count - 1) // _AHEAD + 1)
        parts = [self._block(block) for block in blocks]
        skip = first - blocks[0] * _AHEAD
        if len(parts) == 1:
            source, address = parts[0]
        else:
            source, address = (np.concatenate(part) for part in zip(*parts, strict=True))
        return source[skip : skip + count], address[skip : skip + count]

    def _block(self, block: int) -> tuple[Ints, Ints]:
        if block not in self._blocks:
            first = block * _AHEAD
            samples = np.arange(first, min(first + _AHEAD, self.mix.samples))
            source, nth = self._interleaving.locate(samples)
            address = np.empty_like(nth)
            for number, stream in enumerate(self._streams):
                here = source == number
                if here.any():
                    address[here] = stream.place(nth[here])[2]
            self._blocks[block] = source, address
            while len(self._blocks) > _KEPT:
                self._blocks.popitem(last=False)
        return self._blocks[block]
