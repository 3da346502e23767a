"""How much of a text says again what it said before: lines, paragraphs, and runs of words.

    UTF-8 bytes -> where words begin and end -> a hash each -> a hash for each run of n words
                -> sort -> runs that stand twice -> the bytes that they cover

A share is of the text's bytes in words, a word counting one for the space behind it. Only second
and later occurrences are repeated, and a byte counts once however many repeated runs cover it.
Bounds on word length settle nearly every text before anything exact is counted. A hash holds all
of a word, mixed to 64 bits: that two different runs of a text share one is not to be met.

Rae et al. 2021, https://arxiv.org/abs/2112.11446, table A1
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

_FACTORS = [np.uint64(f) for f in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)]
_MASKS = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)  # the first n bytes of eight
_LONG = 16  # bytes with the space behind; longer words are few
_MARKS = 16  # bits of a hash: a table of 64 KiB tells most hashes that occur once from the rest


def repeated(pieces: Sequence[str]) -> tuple[int, int]:
    """How many of the pieces stood before, and how many characters they have."""
    if len(set(pieces)) == len(pieces):
        return 0, 0
    count = characters = 0
    seen: set[str] = set()
    for piece in pieces:
        if piece in seen:
            count += 1
            characters += len(piece)
        seen.add(piece)
    return count, characters


class Runs:
    """The runs of n words of one text, each kind counted when it is first asked for.

    Args:
        text: words stand between spaces, tabs and line feeds (as ``characters.normalise`` has it).
    """

    def __init__(self, text: str) -> None:
        self._bytes = text.encode() + bytes(8)  # so that eight bytes may be read at any
        blank = np.ones(len(self._bytes) - 6, np.bool_)
        np.less_equal(np.frombuffer(self._bytes, np.uint8)[:-8], 32, out=blank[1:-1])
        edges = np.flatnonzero(blank[1:] != blank[:-1])
        self._starts, self._ends = edges[::2], edges[1::2]
        self._hashes: dict[int, NDArray[np.uint64]] = {}
        self._shares: dict[int, float] = {}

    @cached_property
    def _lengths(self) -> NDArray[np.int64]:
        return self._ends - self._starts + 1

    @cached_property
    def _size(self) -> int:
        return int(self._lengths.sum())

    @cached_property
    def _in_long_words(self) -> int:
        """Bytes in words of more than ``_LONG``, which any bound below takes as repeated."""
        return int(self._lengths[self._lengths > _LONG].sum())

    def _of(self, n: int) -> NDArray[np.uint64]:
        """A hash for each run of n words, built on those of shorter runs."""
        if n not in self._hashes and n == 1:
            self._hashes[1] = self._words()
        if n not in self._hashes:
            shorter, single = self._of(n - 1), self._of(1)
            self._hashes[n] = shorter[: len(single) - n + 1] * _FACTORS[0] + single[n - 1 :]
        return self._hashes[n]

    def _words(self) -> NDArray[np.uint64]:
        """From a word's first and last eight bytes, and a check sum of those with more than 16."""
        eight = np.ndarray((len(self._bytes) - 7,), "<u8", self._bytes, strides=(1,))
        sizes = self._ends - self._starts
        mask = _MASKS[np.minimum(sizes, 8)]
        first = eight[self._starts] & mask
        last = eight[np.maximum(self._ends - 8, self._starts)] & mask
        hashes = (first * _FACTORS[0] + last) * _FACTORS[1] + sizes.astype(np.uint64) * _FACTORS[2]
        for place in np.flatnonzero(sizes > 16).tolist():
            word = self._bytes[self._starts[place] : self._ends[place]]
            hashes[place] ^= np.uint64(zlib.crc32(word) << 32)
        return hashes ^ (hashes >> np.uint64(29))

    def top_within(self, n: int, bound: float) -> bool:
        """Whether the most frequent run of n words (n >= 2), if it stands there twice, makes up at
        most ``bound`` of the bytes."""
        if len(self._starts) <= n:
            return True
        most = bound * self._size
        # so often must a run stand there, and with it its first two words
        least = max(2, int((most - n * self._in_long_words) / (n * _LONG)))
        pairs = self._sorted_pairs
        if least > len(pairs) or not (pairs[least - 1 :] == pairs[: len(pairs) - least + 1]).any():
            return True
        values, counts = np.unique(self._of(n), return_counts=True)
        count = int(counts.max())
        if count < 2:
            return True
        starts = np.flatnonzero(np.isin(self._of(n), values[counts == count]))
        ends = np.concatenate(([0], np.cumsum(self._lengths)))
        return bool(count * (ends[starts + n] - ends[starts]).max() <= most)

    @cached_property
    def _sorted_pairs(self) -> NDArray[np.uint64]:
        return np.sort(self._of(2))

    def duplicates_within(self, n: int, bound: float) -> bool:
        """Whether repeated runs of n words cover at most ``bound`` of the bytes."""
        if len(self._starts) <= n:
            return True
        # what repeated shorter runs do not cover, longer ones cannot
        if any(share <= bound for shorter, share in self._shares.items() if shorter < n):
            return True
        hashes = self._of(n)
        ordered = np.sort(hashes)
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        self._shares[n] = n * (len(twice) * _LONG + self._in_long_words) / self._size
        if self._shares[n] > bound:
            self._shares[n] = self._covered(hashes, twice, n) / self._size
        return self._shares[n] <= bound

    def _covered(self, hashes: NDArray[np.uint64], twice: NDArray[np.uint64], n: int) -> int:
        """Bytes in runs that stood before; ``twice`` are the hashes that occur again."""
        marked = np.zeros(1 << _MARKS, np.bool_)
        marked[twice >> np.uint64(64 - _MARKS)] = True
        places = np.flatnonzero(marked[hashes >> np.uint64(64 - _MARKS)])  # nearly only repeats
        order = places[np.argsort(hashes[places], kind="stable")]
        again = order[1:][hashes[order[1:]] == hashes[order[:-1]]]
        steps = np.zeros(len(self._starts) + 1, np.int64)
        steps[again] += 1
        steps[again + n] -= 1
        return int(self._lengths[np.cumsum(steps[:-1]) > 0].sum())
