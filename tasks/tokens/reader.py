"""Any sample of a phase by its number: a pure function of the mix and the shards.

    sample i --interleaving--> source, k-th of it
             --divide--------> epoch k // windows, place k % windows
             --permute-------> window w   (keyed by seed, phase, source and epoch: a later phase
                                           draws a source in another order, from its whole)
             --offset--------> token offset + w * seq_len, round the end to the beginning

Nothing is held between calls, so any process may read any sample, in any order, and a run that
goes on needs to know the number of samples it has seen and nothing else.

A split is read as a ring. The first epoch cuts windows from token 0; each later epoch starts at
another token (drawn from its key), so that texts are cut at other places each time and the few
tokens that no window covers are others each time. A window that runs over the end goes on at the
beginning: the last document there ends in EOS like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.errors import BAD_DATA, UserError
from tasks.tokens.mixture import Mix, MixSource
from tasks.tokens.order import permute, round_keys
from tasks.tokens.shards import Ints, TokenSplit, open_split
from tasks.workspace import Workspace


@dataclass(frozen=True, eq=False)
class Samples:
    """Consecutive samples of a phase.

    Attributes:
        tokens: int64 (count, seq_len + 1); inputs are [:, :-1], targets [:, 1:].
        document_ids: int32 (count, seq_len + 1): equal where two tokens of a row are of one
            document, rising along the row; EOS belongs to the document it ends. None where not
            asked for.
        source: int64 (count,): which of ``mix.sources`` each sample is from.
    """

    tokens: npt.NDArray[np.int64]
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
        self._length = mix.seq_len + 1
        self._interleaving = mix.interleaving
        self._streams = [_Stream(workspace, mix, source, verify) for source in mix.sources]

    def __len__(self) -> int:
        return self.mix.samples

    def samples(self, first: int, count: int, *, documents: bool = True) -> Samples:
        """Samples ``first`` to ``first + count``; ``documents=False`` leaves document_ids out.

        Raises IndexError beyond the samples of the phase.
        """
        if not 0 <= first <= first + count <= self.mix.samples:
            raise IndexError(f"samples {first} to {first + count} of {self.mix.samples}")
        source, nth = self._interleaving.locate(np.arange(first, first + count))
        tokens = np.empty((count, self._length), np.int64)
        ids = np.empty((count, self._length), np.int32) if documents else None
        for number, stream in enumerate(self._streams):
            rows = np.flatnonzero(source == number)
            if rows.size:
                _, _, starts = stream.place(nth[rows])
                tokens[rows] = stream.read(starts, self._length)
                if ids is not None:
                    ids[rows] = stream.document_ids(starts, self._length)
        return Samples(tokens, ids, source)

    def locate(self, index: int) -> Location:
        """Where sample ``index`` comes from."""
        if not 0 <= index < self.mix.samples:
            raise IndexError(f"sample {index} of {self.mix.samples}")
        source, nth = self._interleaving.locate(np.array([index]))
        stream = self._streams[int(source[0])]
        epoch, window, start = (int(value[0]) for value in stream.place(nth))
        touched = np.unique(stream.document_ids(np.array([start]), self._length))
        return Location(
            source=stream.name,
            epoch=epoch,
            window=window,
            token=start % stream.split.tokens,
            documents=(touched % stream.split.documents).tolist(),
        )


class _Stream:
    """The training split of one source as a ring of windows."""

    def __init__(self, workspace: Workspace, mix: Mix, source: MixSource, verify: bool) -> None:
        folder = workspace.tokens(source.name)
        self.split: TokenSplit = open_split(folder, "train", verify=verify, tokenizer=mix.tokenizer)
        if self.split.sha256 != source.fingerprint:
            raise UserError(
                f"{folder} has changed since the mix of {mix.phase} was made "
                f"({self.split.sha256[:12]}, then {source.fingerprint[:12]})",
                hint=f"make the mix again: dvc repro mix@{mix.phase}",
                exit_code=BAD_DATA,
            )
        self.name, self._windows, self._seq_len = source.name, source.windows, mix.seq_len
        self._key = (mix.seed, mix.phase, source.name)

    def place(self, nth: Ints) -> tuple[Ints, Ints, Ints]:
        """Epoch, window and first token of the nth samples; a start >= tokens is past the end."""
        epoch, turn = np.divmod(nth, self._windows)
        window = np.empty_like(turn)
        offset = np.empty_like(turn)
        for number in np.unique(epoch).tolist():
            now = epoch == number
            window[now] = permute(turn[now], self._windows, round_keys(*self._key, number))
            offset[now] = self._offset(number)
        return epoch, window, offset + window * self._seq_len

    def _offset(self, epoch: int) -> int:
        """The token an epoch begins at: 0 for the first, any for the others."""
        if epoch == 0:
            return 0
        return round_keys(*self._key, epoch, "offset")[0] % self.split.tokens

    def read(self, starts: Ints, length: int) -> npt.NDArray[Any]:
        """The tokens of each window, round the end to the beginning: (len(starts), length)."""
        starts = starts % self.split.tokens
        beyond = starts + length > self.split.tokens
        out = self.split.windows(np.where(beyond, 0, starts), length)
        for row in np.flatnonzero(beyond).tolist():
            left = self.split.tokens - int(starts[row])
            out[row, :left] = self.split.read(self.split.tokens - left, self.split.tokens)
            out[row, left:] = self.split.read(0, length - left)
        return out

    def document_ids(self, starts: Ints, length: int) -> npt.NDArray[np.int32]:
        """Document of each token, (len(starts), length); past the end they count on upwards.

        Bisection finds the documents of a window's first and last token; each document between
        them then fills its stretch, so no token is looked at.
        """
        ends, tokens, documents = self.split.ends, self.split.tokens, self.split.documents

        def document_at(position: Ints) -> Ints:
            rounds, rest = np.divmod(position, tokens)
            return np.searchsorted(ends, rest, side="right") + rounds * documents

        first = document_at(starts)
        stretches = document_at(starts + length - 1) - first + 1
        row = np.repeat(np.arange(len(starts)), stretches)
        nth = np.arange(len(row)) - np.repeat(np.cumsum(stretches) - stretches, stretches)
        ids = first[row] + nth
        rounds, document = np.divmod(ids, documents)
        stop = np.minimum(ends[document] + rounds * tokens - starts[row], length)
        start = np.where(nth == 0, 0, np.roll(stop, 1))
        return np.repeat(ids.astype(np.int32), stop - start).reshape(len(starts), length)
