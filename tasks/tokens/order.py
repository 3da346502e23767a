"""The order of the data as arithmetic: no state, no file, nothing to save or to restore.

Two questions make up the order, and each has a pure answer in O(1):

    which source does sample i of a phase come from?   Interleaving   (exact shares, evenly spread)
    which window of the source is the k-th one drawn?  permute        (every window once an epoch)

So a data loader's whole state is one integer, the number of samples seen. Both can be asked the
other way round (``index``, ``unpermute``): when in the phase was this window drawn?
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.errors import UserError
from tasks.tokens.arrays import Ints

MAX_PERIOD = 1_000_000
ROUNDS = 8


# Permutation ------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def round_keys(*name: int | str) -> tuple[int, ...]:
    """The keys of a permutation, 64 bits a round, from what it is for, e.g. (seed, source, epoch).

    SHAKE-256 of the parts, so that keys of different names are unrelated.
    """
    digest = hashlib.shake_256(json.dumps(name).encode()).digest(8 * ROUNDS)
    return tuple(int.from_bytes(digest[i : i + 8], "little") for i in range(0, len(digest), 8))


def permute(index: Ints, n: int, keys: Sequence[int]) -> Ints:
    """Where a keyed permutation of ``range(n)`` sends each ``index``; a bijection for every n.

    A Feistel network over the pairs (left, right), left < a, right < b, a * b >= n: each round
    adds a hash of one half to the other, modulo its size, which can be undone whatever the hash.
    Pairs that stand for a number >= n walk on along their cycle until they are back in range
    (Black & Rogaway 2002, "Ciphers with Arbitrary Finite Domains"); a * b - n < a, so few do.

    Args:
        index: integers in [0, n), any shape.
        n: size of the domain, 1 <= n < 2^62.
        keys: from ``round_keys``.
    """
    return _walk(index, n, keys, _feistel)


def unpermute(index: Ints, n: int, keys: Sequence[int]) -> Ints:
    """The inverse of ``permute``: which number it sends to each ``index``."""
    return _walk(index, n, keys, _unfeistel)


def _walk(index: Ints, n: int, keys: Sequence[int], rounds: Callable[..., Any]) -> Ints:
    """``rounds`` on each index, and again on what it sends out of range."""
    assert 1 <= n < 2**62
    x = np.asarray(index).astype(np.uint64)
    assert not x.size or int(x.max()) < n
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    x = rounds(x, a, b, keys)
    while (outside := x >= n).any():
        x[outside] = rounds(x[outside], a, b, keys)
    return x.astype(np.int64)


def _feistel(
    x: npt.NDArray[np.uint64], a: int, b: int, keys: Sequence[int]
) -> npt.NDArray[np.uint64]:
    sizes = np.uint64(a), np.uint64(b)
    left, right = np.divmod(x, sizes[1])
    for number, key in enumerate(keys):
        if number % 2:
            right = _wrapped(right + _hash(left, key) % sizes[1], sizes[1])
        else:
            left = _wrapped(left + _hash(right, key) % sizes[0], sizes[0])
    return left * sizes[1] + right


def _unfeistel(
    x: npt.NDArray[np.uint64], a: int, b: int, keys: Sequence[int]
) -> npt.NDArray[np.uint64]:
    """The rounds of ``_feistel`` from the last to the first, each subtracted."""
    sizes = np.uint64(a), np.uint64(b)
    left, right = np.divmod(x, sizes[1])
    for number, key in reversed(list(enumerate(keys))):
        if number % 2:
            right = _wrapped(right + sizes[1] - _hash(left, key) % sizes[1], sizes[1])
        else:
            left = _wrapped(left + sizes[0] - _hash(right, key) % sizes[0], sizes[0])
    return left * sizes[1] + right


def _wrapped(x: npt.NDArray[np.uint64], size: np.uint64) -> npt.NDArray[np.uint64]:
    """``x % size`` for x < 2 * size without division: x - size is huge where it is below 0."""
    return np.minimum(x, x - size)


def _hash(x: npt.NDArray[np.uint64], key: int) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014) over x + key, modulo 2^64."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(key)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


# Interleaving -----------------------------------------------------------------------------------


def exact_shares(weights: dict[str, float], where: str | None = None) -> dict[str, Fraction]:
    """Weights as fractions of their sum, read as the decimals that the recipe shows.

    ``{"a": 35, "b": 25, "c": 39}`` -> 35/99, 25/99, 39/99. Sources of weight 0 are left out.
    Raises UserError, naming the key ``where``, if the common denominator is above a million.
    """
    decimals = {name: Fraction(str(weight)) for name, weight in weights.items() if weight}
    total = sum(decimals.values())
    shares = {name: weight / total for name, weight in decimals.items()}
    if (period := _common_denominator(shares.values())) > MAX_PERIOD:
        raise UserError(
            f"the weights repeat only after {period:,} samples; the most is {MAX_PERIOD:,}",
            where=where,
            hint="write weights with at most six digits, adding up to 1 or to 100",
        )
    return shares


def _common_denominator(shares: Iterable[Fraction]) -> int:
    return math.lcm(*(share.denominator for share in shares))


class Interleaving:
    """Sources in turn, so that after n samples each has had n * its share, to within one sample,
    for every n.

    The pattern has the length of the shares' common denominator and repeats. It is the
    assignment of Tijdeman (1980, "The chairman assignment problem"), in which no source is ever
    more than 1 - 1/(2K - 2) samples from its due, K sources; no rule does better for all shares.

    Args:
        shares: positive fractions that add up to 1, by source.
    """

    def __init__(self, shares: Sequence[Fraction]) -> None:
        assert sum(shares) == 1 and min(shares) > 0
        self.period = _common_denominator(shares)
        self.counts = [int(share * self.period) for share in shares]

    @cached_property
    def table(self) -> Ints:
        """The source of each sample of one period."""
        return chairman_assignment(tuple(self.counts))

    @cached_property
    def _before(self) -> Ints:
        """For each sample of one period: how many of its own source came before it."""
        before = np.empty(self.period, np.int64)
        for source, count in enumerate(self.counts):
            before[self.table == source] = np.arange(count)
        return before

    @cached_property
    def _places(self) -> Ints:
        """The places of one period, source by source."""
        return np.argsort(self.table, kind="stable")

    def locate(self, samples: Ints) -> tuple[Ints, Ints]:
        """For sample numbers: the source of each, and how many of that source came before it."""
        periods, rest = np.divmod(samples, self.period)
        source = self.table[rest]
        return source, periods * np.asarray(self.counts)[source] + self._before[rest]

    def index(self, source: int, nth: int) -> int:
        """The sample that is the nth (from 0) of a source."""
        periods, rest = divmod(nth, self.counts[source])
        return periods * self.period + int(self._places[sum(self.counts[:source]) + rest])

    def drawn(self, samples: int) -> list[int]:
        """How many of the first ``samples`` samples come from each source."""
        periods, rest = divmod(samples, self.period)
        partial = np.bincount(self.table[:rest], minlength=len(self.counts)).tolist()
        return [periods * count + more for count, more in zip(self.counts, partial)]


@lru_cache(maxsize=8)
def chairman_assignment(counts: tuple[int, ...]) -> Ints:
    """A period of ``sum(counts)`` turns in which source i has ``counts[i]``, spread evenly.

    The j-th turn of a source must fall between a first and a last place, or the source would be
    too early or too late. Giving each place to the source whose last place is nearest (earliest
    deadline first) meets all of them whenever that is possible, which Tijdeman proved it is.
    """
    period, sources = sum(counts), len(counts)
    if sources == 1:
        return np.zeros(period, np.int64)
    grid = 2 * sources - 2
    firsts, lasts = [], []
    for count in counts:
        turn = np.arange(count, dtype=np.int64)
        firsts.append(-((turn * grid + 1) * period // -(grid * count)))
        lasts.append(((turn + 1) * grid - 1) * period // (grid * count) + 1)
    # a deadline and a source in one integer: compared by deadline, then by place in the recipe
    turns = np.concatenate([last * sources + source for source, last in enumerate(lasts)])
    return earliest_deadline_first(np.concatenate(firsts), turns, sources, period)


def earliest_deadline_first(opens: Ints, turns: Ints, sources: int, places: int) -> Ints:
    """Who gets each of the places 1 to ``places``: of the turns open by then, the most urgent.

    Args:
        opens: first place that each turn may take.
        turns: last place it may take * sources + source.

    Where any order meets all deadlines, this one does.
    """
    by_first = np.argsort(opens, kind="stable")
    first, waiting = opens[by_first].tolist(), turns[by_first].tolist()
    ready: list[int] = []
    taken: list[int] = []
    arrived = 0
    for place in range(1, places + 1):
        while arrived < len(first) and first[arrived] <= place:
            heapq.heappush(ready, waiting[arrived])
            arrived += 1
        taken.append(heapq.heappop(ready))
    deadline, source_of = np.divmod(np.asarray(taken, np.int64), sources)
    assert (deadline >= np.arange(1, places + 1)).all()
    return source_of
