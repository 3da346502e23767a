"""Any sample of a phase by its number: a pure function of the mix and the shards.

    sample i --interleaving--> source, k-th of it
             --stream--------> epoch, window, and the tokens of that window

Nothing that counts is held between calls, so any process may read any sample, in any order, and a
run that goes on needs to know the number of samples it has seen and nothing else. What is held is
speed alone: where the next samples lie is worked out some thousand at a time (rows.py).

Every step can be asked the other way round: ``when`` says which samples have read a document.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.errors import unknown_name
from tasks.tokens.mixture import Mix
from tasks.tokens.rows import Block
from tasks.tokens.streams import Piece, Stream, open_stream
from tasks.workspace import Workspace

_AHEAD = 2048  # samples whose parts are worked out at once, where they are read in order
_LEFT_OUT = 128  # samples that reading in order may pass over: a rank, those of the others


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
        self._held = Block(0, np.empty(0, np.int64), [], mix.seq_len + 1)

    def __len__(self) -> int:
        return self.mix.samples

    def samples(self, first: int, count: int, *, documents: bool = True) -> Samples:
        """Samples ``first`` to ``first + count``; ``documents=False`` leaves document_ids out.

        Raises IndexError beyond the samples of the phase.
        """
        if not 0 <= first <= first + count <= self.mix.samples:
            raise IndexError(f"samples {first} to {first + count} of {self.mix.samples}")
        tokens, targets, source = self._block(first, count).read(first, count)
        return Samples(tokens, targets, self._document_ids(tokens) if documents else None, source)

    def _document_ids(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """A number for the document of each token: how many documents ended before it."""
        ids = np.zeros(tokens.shape, np.int32)
        ids[:, 1:] = tokens[:, :-1] == self.mix.eos_id
        return np.cumsum(ids, axis=1, out=ids)

    def locate(self, index: int) -> Location:
        """Where sample ``index`` comes from."""
        stream, epoch, window, address = self._find(index)
        token = stream.first_token(address)
        before = int(np.searchsorted(stream.split.ends, token, side="right"))
        pieces = [piece.document for piece in stream.pieces(address)]
        # the first token is an input alone, and may be the end of another document
        touched = pieces if before in pieces else [before, *pieces]
        return Location(stream.name, epoch, window, token, touched)

    def pieces(self, index: int) -> list[Piece]:
        """The parts of documents that sample ``index`` has as targets, in order."""
        stream, _, _, address = self._find(index)
        return stream.pieces(address)

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

    def _find(self, index: int) -> tuple[Stream, int, int, int]:
        """The stream that a sample is from, and its epoch, window and address there."""
        if not 0 <= index < self.mix.samples:
            raise IndexError(f"sample {index} of {self.mix.samples}")
        source, nth = self._interleaving.locate(np.array([index]))
        stream = self._streams[int(source[0])]
        epoch, window, address = (int(value[0]) for value in stream.place(nth))
        return stream, epoch, window, address

    def _block(self, first: int, count: int) -> Block:
        """A block with some samples. Where they follow on the last block, it has many that come
        after them as well; reading that jumps about would pay for what it never asks for."""
        held = self._held
        if held.first <= first and first + count <= held.stop:
            return held
        follows = held.first <= first <= held.stop + _LEFT_OUT
        ahead = min(first + _AHEAD, self.mix.samples) if follows else 0
        self._held = self._work_out(first, max(first + count, ahead))
        return self._held

    def _work_out(self, first: int, stop: int) -> Block:
        source, nth = self._interleaving.locate(np.arange(first, stop))
        parts = []
        for number, stream in enumerate(self._streams):
            rows = np.flatnonzero(source == number)
            if rows.size:
                parts.append(stream.parts(rows, stream.place(nth[rows]).address))
        return Block(first, source, parts, self.mix.seq_len + 1)
