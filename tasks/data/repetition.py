"""How much of a text says again what it said before: lines, paragraphs, and runs of words.

    text -> UTF-8 bytes -> Words: where they begin and end -> a hash each
         -> a hash for each run of n words -> sort -> runs that stand twice -> the bytes they cover

A share is of the text's bytes in words, a word counting one for the space behind it. Only second
and later occurrences are repeated, and a byte counts once however many repeated runs cover it.
Two bounds settle nearly every text before anything exact is counted: runs whose words begin alike
are more than those that are alike, and none of their words but a few is long. A hash then holds all
of a word, mixed to 64 bits: that two different runs of a text share one is not to be met.

Rae et al. 2021, https://arxiv.org/abs/2112.11446, table A1
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tasks.data.words import Words

_FACTORS = [np.uint64(f) for f in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)]
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


Hashes = NDArray[np.uint64]  # one for each run of n words, by where it begins


class Chain:
    """Hashes of the runs of n words, each n built on the one before when it is first asked for.

    Args:
        words: a hash for each word.
    """

    def __init__(self, words: Hashes) -> None:
        self._made = [words]

    def of(self, n: int) -> Hashes:
        single = self._made[0]
        while len(self._made) < n:
            longer = self._made[-1][:-1] * _FACTORS[0]
            longer += single[len(self._made) :]
            self._made.append(longer)
        return self._made[n - 1]


class Runs:
    """The runs of n words of one text, each kind counted when it is first asked for."""

    def __init__(self, words: Words) -> None:
        self._words = words
        self._shares: dict[int, float] = {}  # of the bytes, at most; for each n that was asked for

    @cached_property
    def _lengths(self) -> NDArray[np.int64]:
        return self._words.sizes + 1

    @cached_property
    def _size(self) -> int:
        return int(self._lengths.sum())

    @cached_property
    def _in_long_words(self) -> int:
        """Bytes in words of more than ``_LONG``, which any bound below takes as repeated."""
        return int(self._lengths[self._lengths > _LONG].sum())

    @cached_property
    def _rough(self) -> Chain:
        """Equal for equal runs, and for some that are not."""
        return Chain(self._words.first_eight * _FACTORS[1])

    @cached_property
    def _exact(self) -> Chain:
        """From a word's first and last eight bytes, and a check sum of those with more than 16."""
        first, last, sizes = self._words.first_eight, self._words.last_eight, self._words.sizes
        hashes = (first * _FACTORS[0] + last) * _FACTORS[1] + sizes.astype(np.uint64) * _FACTORS[2]
        for place in np.flatnonzero(sizes > 16).tolist():
            hashes[place] ^= np.uint64(zlib.crc32(self._words.word(place)) << 32)
        return Chain(hashes ^ (hashes >> np.uint64(29)))

    def top_within(self, n: int, bound: float) -> bool:
        """Whether the most frequent run of n words (n >= 2), if it stands there twice, makes up at
        most ``bound`` of the bytes."""
        if len(self._words) <= n:
            return True
        most = bound * self._size
        # so often must a run stand there, and with it its first two words
        least = max(2, int((most - n * self._in_long_words) / (n * _LONG)))
        pairs = self._sorted_pairs
        if least > len(pairs) or not (pairs[least - 1 :] == pairs[: len(pairs) - least + 1]).any():
            return True
        hashes = self._exact.of(n)
        values, counts = np.unique(hashes, return_counts=True)
        count = int(counts.max())
        if count < 2:
            return True
        starts = np.flatnonzero(np.isin(hashes, values[counts == count]))
        ends = np.concatenate(([0], np.cumsum(self._lengths)))
        return bool(count * (ends[starts + n] - ends[starts]).max() <= most)

    @cached_property
    def _sorted_pairs(self) -> Hashes:
        return np.sort(self._exact.of(2))

    def duplicates_within(self, n: int, bound: float) -> bool:
        """Whether repeated runs of n words cover at most ``bound`` of the bytes."""
        if len(self._words) <= n:
            return True
        # what repeated shorter runs do not cover, longer ones cannot
        if any(share <= bound for shorter, share in self._shares.items() if shorter < n):
            return True
        self._shares[n] = self._covered_at_most(n) / self._size
        if self._shares[n] > bound:
            self._shares[n] = self._covered(n) / self._size
        return self._shares[n] <= bound

    def _covered_at_most(self, n: int) -> int:
        """As ``_covered``, or more: half of the bits sort in less than half of the time."""
        halves = np.sort((self._rough.of(n) >> np.uint64(32)).astype(np.uint32))
        again = int(np.count_nonzero(halves[1:] == halves[:-1]))
        return n * again * _LONG + self._in_long_words if again else 0

    def _covered(self, n: int) -> int:
        """Bytes in runs that stood before."""
        hashes = self._exact.of(n)
        ordered = np.sort(hashes)
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        marked = np.zeros(1 << _MARKS, np.bool_)
        marked[twice >> np.uint64(64 - _MARKS)] = True
        places = np.flatnonzero(marked[hashes >> np.uint64(64 - _MARKS)])  # nearly only repeats
        order = places[np.argsort(hashes[places], kind="stable")]
        again = order[1:][hashes[order[1:]] == hashes[order[:-1]]]
        steps = np.zeros(len(self._words) + 1, np.int64)
        steps[again] += 1
        steps[again + n] -= 1
        return int(self._lengths[np.cumsum(steps[:-1]) > 0].sum())
