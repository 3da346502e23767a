"""Which spans of tokens stand word for word in the training text: one pass over it, by hashes.

    span of n tokens -> 64 bits -> is it among the wanted ones? -> compared token by token

A window's hash is a polynomial in its tokens, so that of n tokens comes from those of n/2: all
windows of a text take log2(n) additions an array (Karp & Rabin 1987, with doubling). A table of
bits answers for nearly all windows that they are not wanted. Memory does not grow with the training
text: it is read a few million tokens at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.evaluation.drawn import Drawn

Tokens = npt.NDArray[np.integer[Any]]
Hashes = npt.NDArray[np.uint64]

_CHUNK = 2**21  # tokens that are hashed at once: about 100 MB
_BITS = 22
_FACTOR = 0x9E3779B97F4A7C15  # odd, so that no power of it loses a token; 2^64 / golden ratio
_BORDER = -1  # stands between two stretches; no id


def spans_of(texts: Iterable[Tokens], span: int) -> npt.NDArray[np.int64]:
    """Every run of ``span`` tokens of each text, (N, span), text by text."""
    rows = [
        np.lib.stride_tricks.sliding_window_view(np.asarray(text, np.int64), span)
        for text in texts
        if len(text) >= span
    ]
    return np.concatenate([np.empty((0, span), np.int64), *rows])


def found_in_training(spans: npt.NDArray[np.int64], training: list[Drawn]) -> npt.NDArray[np.bool_]:
    """Whether each span (N, n) stands in the text that was drawn, (N,)."""
    if not len(spans):
        return np.zeros(0, bool)
    wanted, place = np.unique(spans, axis=0, return_inverse=True)
    search = _Search(wanted)
    for chunk in _chunks(training, spans.shape[1]):
        search.look(chunk)
    return search.found[place.ravel()]


class _Search:
    """Different spans (N, n), each with whether it was found yet."""

    def __init__(self, spans: npt.NDArray[np.int64]) -> None:
        hashes = _mixed(spans.ravel()).reshape(spans.shape)
        hashes = (hashes * _powers(spans.shape[1])).sum(axis=1, dtype=np.uint64)
        order = np.argsort(hashes)
        self.spans, self.hashes, self._order = spans[order], hashes[order], order
        self._found = np.zeros(len(spans), bool)
        self._maybe = np.zeros(2**_BITS, bool)
        self._maybe[self.hashes >> np.uint64(64 - _BITS)] = True

    @property
    def found(self) -> npt.NDArray[np.bool_]:
        """In the order of the spans given."""
        result = np.empty_like(self._found)
        result[self._order] = self._found
        return result

    def look(self, chunk: npt.NDArray[np.int64]) -> None:
        """Look for all spans in a stretch of tokens."""
        length = self.spans.shape[1]
        if len(chunk) < length:
            return
        hashes = window_hashes(chunk, length)
        here = np.flatnonzero(self._maybe[hashes >> np.uint64(64 - _BITS)])
        rank = np.searchsorted(self.hashes, hashes[here])
        rank = np.minimum(rank, len(self.hashes) - 1)
        same = self.hashes[rank] == hashes[here]
        rank, first = np.unique(rank[same], return_index=True)
        windows = chunk[here[same][first][:, None] + np.arange(length)]
        self._found[rank] |= (windows == self.spans[rank]).all(axis=1)


def window_hashes(tokens: npt.NDArray[np.int64], length: int) -> Hashes:
    """The hash of each run of ``length`` tokens (N,) -> (N - length + 1,)."""
    power, done = _mixed(tokens), 1  # of runs of `done` tokens: 1, 2, 4, ...
    total, have = power[:0], 0  # of runs of `have` tokens: the low bits of the length
    left = length
    while left:
        if left & 1:
            total = power if not have else _joined(total, power, have)
            have += done
        left >>= 1
        if left:
            power, done = _joined(power, power, done), 2 * done
    return total[: len(tokens) - length + 1]


def _joined(first: Hashes, second: Hashes, length: int) -> Hashes:
    """Hashes of runs of ``length`` tokens, each with the run after it, modulo 2^64."""
    after = second[length:]
    count = min(len(first), len(after))
    return first[:count] + after[:count] * np.uint64(pow(_FACTOR, length, 2**64))


def _powers(length: int) -> Hashes:
    return np.array([pow(_FACTOR, n, 2**64) for n in range(length)], np.uint64)


def _mixed(tokens: npt.NDArray[np.int64]) -> Hashes:
    """64 bits of each token, by the finaliser of SplitMix64 (Steele, Lea & Flood 2014)."""
    x = tokens.astype(np.uint64) + np.uint64(_FACTOR)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _chunks(training: list[Drawn], span: int) -> Iterator[npt.NDArray[np.int64]]:
    """The text drawn, some millions of tokens at a time, with a border after each stretch."""
    border = np.array([_BORDER], np.int64)
    held: list[npt.NDArray[np.int64]] = []
    size = 0
    for part in training:
        for run in part.read(_CHUNK, overlap=span - 1):
            held += [run.astype(np.int64), border]
            size += len(run) + 1
            if size >= _CHUNK:
                yield np.concatenate(held)
                held, size = [], 0
    if held:
        yield np.concatenate(held)
