"""Texts as sets of numbers: a hash of every run of n words, computed over one byte buffer.

    texts -> UTF-8 -> lower case, 0 where no letter or digit stands -> words, 8 bytes at a time
          -> 64-bit word hashes -> 64-bit hashes of every n words in a row (shingles)

No Python object is made for a word: in Python it is the making of shingles that costs, not their
hashing. A word of up to 8 bytes is one 64-bit number, read where it stands; texts are worked on in
blocks that stay in a core's cache. Hashes are the same on every machine.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Bounds = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

BLOCK_BYTES = 1 << 19  # of text; its hashes, 8 bytes a word, fit a cache of 1 MiB
_WORD_BASE = 0xD1B54A32D192ED03  # odd
_LONGEST = 64  # bytes of a word that are read 8 at a time
# ASCII: letters in lower case, digits, 0 for all others; bytes of other characters as they are
_PLAIN = bytes(ord(chr(b).lower()) if chr(b).isalnum() else 0 for b in range(128))
_PLAIN += bytes(range(128, 256))
_MASKS = np.array([2 ** (8 * n) - 1 for n in range(9)], np.uint64)
_KNOWN, _IS_WORD, _CHANGES = 1, 2, 4
_WORD = re.compile(r"\w")
# by code point, filled as characters are met: whether it is a letter or digit, and whether the
# lower case of it is another character
_kinds = np.zeros(0x110000, np.uint8)
# glibc gives the memory of an array back to the system, to be fetched anew page by page, unless it
# once saw a larger one freed: this one, freed at once, spares shingles up to half their time
np.empty(1 << 24, np.uint8)


def mixed(hashes: Hashes) -> Hashes:
    """Spread every bit of a 64-bit hash over all others.

    The finaliser of SplitMix64: Steele, Lea and Flood 2014, https://doi.org/10.1145/2660193.2660195
    """
    hashes = hashes ^ (hashes >> np.uint64(30))
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(27)
    hashes *= np.uint64(0x94D049BB133111EB)
    hashes ^= hashes >> np.uint64(31)
    return hashes


class Shingles(NamedTuple):
    """Hashes of documents, end to end; ``hashes[bounds[i]:bounds[i + 1]]`` are document i's."""

    hashes: Hashes
    bounds: Bounds

    def of(self, document: int) -> Hashes:
        return self.hashes[self.bounds[document] : self.bounds[document + 1]]

    def sets(self) -> Shingles:
        """The hashes of each document in ascending order, without repeats."""
        hashes = self.hashes.copy()
        for start, stop in pairwise(self.bounds.tolist()):
            hashes[start:stop].sort()
        fresh = np.ones(len(hashes), bool)
        np.not_equal(hashes[1:], hashes[:-1], out=fresh[1:])
        fresh[self.bounds[self.bounds < len(hashes)]] = True
        ends = np.concatenate(([0], np.cumsum(fresh)))
        return Shingles(hashes[fresh], ends[self.bounds])


def shingles(texts: list[str], n: int) -> Shingles:
    """The hash of every run of ``n`` words within each text.

    A text of fewer words has one shingle, of them all; a text without words has none.
    """
    return _joined([_runs(_word_hashes(block), n) for block in blocks(texts)])


def word_hashes(texts: list[str]) -> Shingles:
    """The hash of every word of every text, in order; a text may have none."""
    return _joined([_word_hashes(block) for block in blocks(texts)])


def jaccard(a: Hashes, b: Hashes) -> float:
    """Similarity of two sets, each a sorted array without repeats: shared / all, in [0, 1]."""
    if not len(a) or not len(b):
        return 0.0
    both = np.concatenate((a, b))
    both.sort(kind="stable")  # which merges what is sorted already
    shared = int(np.count_nonzero(both[1:] == both[:-1]))
    return shared / (len(a) + len(b) - shared)


def blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts in lists of about ``BLOCK_BYTES``."""
    block: list[str] = []
    held = 0
    for text in texts:
        block.append(text)
        held += len(text)
        if held >= BLOCK_BYTES:
            yield block
            block, held = [], 0
    if block:
        yield block


def _joined(made: list[Shingles]) -> Shingles:
    if len(made) == 1:
        return made[0]
    ends = np.cumsum([0, *(len(block.hashes) for block in made)])
    bounds = [block.bounds[:-1] + start for block, start in zip(made, ends, strict=False)]
    none = np.zeros(0, np.uint64)
    return Shingles(
        np.concatenate([none, *(block.hashes for block in made)]),
        np.concatenate([*bounds, ends[-1:]]),
    )


def _word_hashes(texts: list[str]) -> Shingles:
    buffer, text_starts = _plain(texts)
    is_word = buffer != 0
    edges = np.flatnonzero(is_word[1:] != is_word[:-1])
    edges += 1
    starts, lengths = edges[::2].copy(), edges[1::2] - edges[::2]
    hashes = _eight_bytes(buffer, starts, lengths)
    longer, offset = np.flatnonzero(lengths > 8), 8
    while longer.size and offset < _LONGEST:
        places, left = starts.take(longer) + offset, lengths.take(longer) - offset
        hashes[longer] = mixed(hashes.take(longer)) + _eight_bytes(buffer, places, left)
        longer, offset = longer[left > 8], offset + 8
    for i in longer:
        word = buffer[starts[i] : starts[i] + lengths[i]].tobytes()
        hashes[i] = int.from_bytes(hashlib.blake2b(word, digest_size=8).digest(), "little")
    return Shingles(mixed(hashes), np.searchsorted(starts, text_starts))


def _plain(texts: list[str]) -> tuple[Bytes, Bounds]:
    """One buffer of all texts with a 0 before, between and behind them, and where each begins."""
    encoded = list(map(str.encode, texts))
    buffer, starts = _buffer(encoded)
    if not all(map(str.isascii, texts)):
        places, kinds = _other_characters(buffer)
        if (kinds & _CHANGES).any():
            changed = np.searchsorted(starts, places[(kinds & _CHANGES) > 0], side="right") - 1
            for i in np.unique(changed).tolist():
                encoded[i] = texts[i].lower().encode()
            buffer, starts = _buffer(encoded)
            places, kinds = _other_characters(buffer)
        gone = places[(kinds & _IS_WORD) == 0]
        widths = 2 + (buffer[gone] >= 0xE0).astype(np.int64) + (buffer[gone] >= 0xF0)
        for k in range(4):
            buffer[gone[widths > k] + k] = 0
    return buffer, starts


def _buffer(encoded: list[bytes]) -> tuple[Bytes, Bounds]:
    joined = bytearray(b"\0".join([b"", *encoded, bytes(24)])).translate(_PLAIN)
    sizes = np.array([1, *map(len, encoded)], np.int64)
    sizes[1:] += 1
    # whole 8-byte numbers, and one more than a word that ends the texts needs
    return np.frombuffer(joined, np.uint8, len(joined) // 8 * 8), np.cumsum(sizes)


def _other_characters(buffer: Bytes) -> tuple[Bounds, Bytes]:
    """Where the characters beyond ASCII begin, and their kinds."""
    places = np.flatnonzero(buffer >= 0xC0)
    lead = buffer[places].astype(np.int32)
    following = [buffer[places + k].astype(np.int32) & 0x3F for k in (1, 2, 3)]
    two = (lead & 0x1F) << 6 | following[0]
    three = (lead & 0x0F) << 12 | following[0] << 6 | following[1]
    four = (lead & 0x07) << 18 | following[0] << 12 | following[1] << 6 | following[2]
    points = np.where(lead < 0xE0, two, np.where(lead < 0xF0, three, four))
    kinds = _kinds[points]
    if not kinds.all():
        for point in np.unique(points[kinds == 0]).tolist():
            character = chr(point)
            word = _IS_WORD if _WORD.match(character) else 0
            changes = _CHANGES if character.lower() != character else 0
            _kinds[point] = _KNOWN | word | changes
        kinds = _kinds[points]
    return places, kinds


def _eight_bytes(buffer: Bytes, starts: Bounds, lengths: Bounds) -> Hashes:
    """The up to 8 bytes that stand at each start, as one little-endian number."""
    numbers = buffer.view("<u8")
    shifts = starts.view(np.uint64) & np.uint64(7)
    shifts <<= np.uint64(3)
    places = starts >> 3
    found: Hashes = numbers.take(places)
    found >>= shifts
    places += 1
    rest = numbers.take(places)
    shifts ^= np.uint64(63)  # 63 - shift: two steps, for no shift by 64 is defined
    rest <<= np.uint64(1)
    rest <<= shifts
    found |= rest
    found &= _MASKS.take(lengths, mode="clip")
    return found


def _runs(words: Shingles, n: int) -> Shingles:
    """Polynomials of every n words in a row, mixed."""
    counts = np.diff(words.bounds)
    hashes, bounds = words if not ((counts > 0) & (counts < n)).any() else _filled(words, n)
    rolled = _polynomials(hashes, n)
    inner = bounds[1:-1]
    inner = inner[(inner > 0) & (inner < len(hashes))]
    within = np.ones(len(rolled), bool)  # no text ends within the run
    for k in range(1, n):
        within[inner - k] = False
    runs = np.maximum(np.diff(bounds) - n + 1, 0)
    return Shingles(mixed(rolled[within]), np.concatenate(([0], np.cumsum(runs))))


def _filled(words: Shingles, n: int) -> Shingles:
    """The same words, with short texts filled up to ``n`` with the word 0."""
    counts = np.diff(words.bounds)
    padded = np.where(counts > 0, np.maximum(counts, n), 0)
    bounds = np.concatenate(([0], np.cumsum(padded)))
    hashes = np.zeros(bounds[-1], np.uint64)
    moved = np.repeat(bounds[:-1] - words.bounds[:-1], counts)
    hashes[np.arange(len(words.hashes)) + moved] = words.hashes
    return Shingles(hashes, bounds)


def _polynomials(hashes: Hashes, n: int) -> Hashes:
    """sum of h[i + k] base^(n - 1 - k) for every i, modulo 2^64, by doubling the length."""
    total, width = hashes, 1
    for bit in bin(n)[3:]:
        power = np.uint64(pow(_WORD_BASE, width, 2**64))
        total, width = total[: max(0, len(total) - width)] * power + total[width:], 2 * width
        if bit == "1":
            total = total[: max(0, len(total) - 1)] * np.uint64(_WORD_BASE)
            total += hashes[width : width + len(total)]
            width += 1
    return total
