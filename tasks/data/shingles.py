"""Texts as sets of numbers: a hash of every run of n words, computed over one byte buffer.

    texts -> lower case -> bytes -> words (letters and digits) -> 64-bit word hashes
          -> 64-bit hashes of every n words in a row (shingles), document by document

No Python object is made for a word: in Python it is the making of shingles that costs, not their
hashing. Hashes are polynomials modulo 2^64, whose value over any stretch of a buffer is a
difference of two prefix sums, and are the same on every machine.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Bounds = npt.NDArray[np.int64]

_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_BASE_INVERSE = pow(_BASE, -1, 2**64)
_WORD_BASE = np.uint64(0xD1B54A32D192ED03)
# ASCII letters and digits, and all bytes of other characters: those that are no letters were
# replaced before
_IS_WORD = np.array([chr(b).isalnum() or b >= 0x80 for b in range(256)])
_NOT_WORD = re.compile(r"[^\x00-\x7f\w]+")


def mixed(hashes: Hashes) -> Hashes:
    """Spread every bit of a 64-bit hash over all others.

    The finaliser of SplitMix64: Steele, Lea and Flood 2014, https://doi.org/10.1145/2660193.2660195
    """
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


_BYTE_VALUES = mixed(np.arange(1, 257, dtype=np.uint64) * np.uint64(_BASE))


class Shingles(NamedTuple):
    """Hashes of documents, end to end; ``hashes[bounds[i]:bounds[i + 1]]`` are document i's."""

    hashes: Hashes
    bounds: Bounds

    def of(self, document: int) -> Hashes:
        return self.hashes[self.bounds[document] : self.bounds[document + 1]]


def word_hashes(texts: list[str]) -> Shingles:
    """The hash of every word of every text, in order; a text may have none."""
    lowered = [text.lower() for text in texts]
    plain = [t if t.isascii() else _NOT_WORD.sub(" ", t) for t in lowered]
    encoded = [text.encode() for text in plain]
    buffer = np.frombuffer(b" ".join([*encoded, b""]), np.uint8)
    text_starts = np.cumsum([0] + [len(text) + 1 for text in encoded])
    is_word = np.concatenate(([False], _IS_WORD[buffer], [False]))
    edges = np.flatnonzero(is_word[1:] != is_word[:-1])
    starts, ends = edges[::2], edges[1::2]
    sums = np.zeros(len(buffer) + 1, np.uint64)
    np.cumsum(_BYTE_VALUES[buffer] * _powers(_BASE, len(buffer)), out=sums[1:])
    hashes = (sums[ends] - sums[starts]) * _powers(_BASE_INVERSE, len(buffer) + 1)[starts]
    return Shingles(mixed(hashes), np.searchsorted(starts, text_starts))


def _powers(base: int, count: int) -> Hashes:
    powers = np.full(count, base, np.uint64)
    powers[:1] = 1
    return np.cumprod(powers)


def shingles(texts: list[str], n: int) -> Shingles:
    """The hash of every run of ``n`` words within each text.

    A text of fewer words has one shingle, of them all; a text without words has none.
    """
    hashes, bounds = word_hashes(texts)
    counts = np.diff(bounds)
    padded = np.maximum(counts, n) * (counts > 0)  # a short text is filled up with the word 0
    starts = np.concatenate(([0], np.cumsum(padded)))
    filled = np.zeros(starts[-1], np.uint64)
    filled[np.arange(len(hashes)) + np.repeat(starts[:-1] - bounds[:-1], counts)] = hashes
    runs = np.maximum(padded - n + 1, 0)
    new_bounds = np.concatenate(([0], np.cumsum(runs)))
    first = np.arange(new_bounds[-1]) + np.repeat(starts[:-1] - new_bounds[:-1], runs)
    rolled = np.zeros(max(0, len(filled) - n + 1), np.uint64)
    for k in range(n):
        rolled *= _WORD_BASE
        rolled += filled[k : k + len(rolled)]
    return Shingles(mixed(rolled[first]), new_bounds)


def jaccard(a: Hashes, b: Hashes) -> float:
    """Similarity of two sets, each a sorted array without repeats: shared / all, in [0, 1]."""
    if not len(a) or not len(b):
        return 0.0
    shared = np.intersect1d(a, b, assume_unique=True).size
    return shared / (len(a) + len(b) - shared)
