"""Sources in turn where the shares change along the phase: the same exactness, for every n.

    share of a source            what it is due after n samples is the area F(n) below its line
    1 |\\
      | \\________               steps: constant from point to point
    0 +----------- samples      linear: straight from point to point, constant after the last

The chairman assignment of order.py holds for shares that change with every sample (Tijdeman 1980
proves it for any non-negative shares that sum to 1 at each): after n samples no source of K is
more than 1 - 1/(2K - 2) samples from F(n). Turn j of a source may be given at place n once
F(n) >= j + 1/(2K - 2), and must be before F(n) > j + 1 - 1/(2K - 2); whoever must be first is
first, which meets every deadline because Tijdeman proved that it can be done.

Such a pattern has no period. So the turns are worked out in blocks: the counts before each block
are in the mix, a block needs nothing else, and any sample is found by working out its block.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np

from tasks.tokens.arrays import Ints
from tasks.tokens.order import earliest_deadline_first

BLOCK = 65_536  # samples worked out at once, in some 50 ms
_KEPT = 32  # blocks held, 1 MB each: 2 million samples in any order, none worked out twice
_EXACT = 2**62  # beyond it, numerators would not fit 64 bits


@dataclass(frozen=True)
class Segment:
    """Samples ``start`` to ``stop`` of a phase, in which shares go straight.

    Attributes:
        first, last: the share of each source at ``start`` and at ``stop``.
        before: what each source is due after ``start`` samples.
    """

    start: int
    stop: int
    first: tuple[Fraction, ...]
    last: tuple[Fraction, ...]
    before: tuple[Fraction, ...]

    def due(self, source: int, sample: int) -> Fraction:
        """What a source is due after ``sample`` samples of the phase, within this segment."""
        n, length = sample - self.start, self.stop - self.start
        slope = self.last[source] - self.first[source]
        return self.before[source] + n * self.first[source] + slope * n * n / (2 * length)


class Curriculum:
    """Which source each sample of a phase is from, by shares that change along it.

    Args:
        starts: sample at which each point stands; the first is 0.
        shares: of each source at each point, adding up to 1; every source has some.
        linear: whether shares go straight from point to point.
        samples: of the phase.
        before: samples of each source before each block, as the attribute of a curriculum that
            has worked them out; None: not known yet.
    """

    def __init__(
        self,
        starts: Sequence[int],
        shares: Sequence[Sequence[Fraction]],
        linear: bool,
        samples: int,
        before: Sequence[Sequence[int]] | None = None,
    ) -> None:
        assert starts[0] == 0 and all(sum(row) == 1 for row in shares)
        self.samples, self.sources = samples, len(shares[0])
        self.period = samples
        self._denominator = math.lcm(*(s.denominator for row in shares for s in row))
        self.segments = list(_segments(starts, [tuple(row) for row in shares], linear, samples))
        self._blocks = [block for segment in self.segments for block in self._cut(segment)]
        self._firsts = [first for _, first, _ in self._blocks]
        self._table = lru_cache(_KEPT)(self._table_of)
        self.before = [list(row) for row in before] if before is not None else self._work_out()
        assert len(self.before) == len(self._blocks)

    def due(self, sample: int) -> list[Fraction]:
        """What each source is due after ``sample`` samples: the integral of its share."""
        return [self._due(source, sample) for source in range(self.sources)]

    def _due(self, source: int, sample: int) -> Fraction:
        number = bisect_right(self.segments, sample - 1, key=lambda segment: segment.start) - 1
        return self.segments[max(0, number)].due(source, sample)

    def locate(self, samples: Ints) -> tuple[Ints, Ints]:
        """For sample numbers: the source of each, and how many of that source came before it."""
        number = np.searchsorted(self._firsts, samples, side="right") - 1
        source, nth = np.empty_like(samples), np.empty_like(samples)
        for block in np.unique(number).tolist():
            here = number == block
            table, before = self._table(block)
            place = samples[here] - self._firsts[block]
            source[here], nth[here] = table[place], before[place]
        return source, nth

    def index(self, source: int, nth: int) -> int:
        """The sample that is the nth (from 0) of a source; nth must be below what is drawn."""
        block = bisect_right(self.before, nth, key=lambda row: row[source]) - 1
        table, _ = self._table(block)
        place = np.flatnonzero(table == source)[nth - self.before[block][source]]
        return self._firsts[block] + int(place)

    def drawn(self, samples: int) -> list[int]:
        """How many of the first ``samples`` samples come from each source."""
        if samples == 0:
            return [0] * self.sources
        block = bisect_right(self._firsts, samples - 1) - 1
        table, _ = self._table(block)
        here = np.bincount(table[: samples - self._firsts[block]], minlength=self.sources)
        return [before + more for before, more in zip(self.before[block], here.tolist())]

    def _cut(self, segment: Segment) -> Iterator[tuple[Segment, int, int]]:
        """Blocks of a segment, of a size whose numerators fit 64 bits."""
        length = segment.stop - segment.start
        scale = 2 * length * self._denominator * max(1, 2 * self.sources - 2)
        size = max(1, min(BLOCK, _EXACT // scale - 2))
        for first in range(segment.start, segment.stop, size):
            yield segment, first, min(first + size, segment.stop)

    def _work_out(self) -> list[list[int]]:
        """The counts before each block: all turns of the phase, once, at about 1 us a sample."""
        counts, found = [0] * self.sources, []
        for number in range(len(self._blocks)):
            found.append(list(counts))
            table = self._assign(number, counts)
            counts = [n + m for n, m in zip(counts, np.bincount(table, minlength=self.sources))]
        return [[int(count) for count in row] for row in found]

    def _table_of(self, block: int) -> tuple[Ints, Ints]:
        """The source of each sample of a block, and how many of it came before in the phase."""
        table = self._assign(block, self.before[block])
        before = np.empty(len(table), np.int64)
        for source, count in enumerate(self.before[block]):
            here = table == source
            before[here] = np.arange(count, count + np.count_nonzero(here))
        return table, before

    def _assign(self, block: int, counts: Sequence[int]) -> Ints:
        """The source of each sample of a block, ``counts`` being given before it."""
        segment, first, stop = self._blocks[block]
        places, sources = stop - first, self.sources
        if sources == 1:
            return np.zeros(places, np.int64)
        grid = 2 * sources - 2
        scale = 2 * (segment.stop - segment.start) * self._denominator
        opens, turns = [], []
        for source, count in enumerate(counts):
            ahead = grid * self._ahead(segment, source, first, places, count, scale)
            most = max(0, (int(ahead[-1]) // scale - 1) // grid + 1)
            turn = np.arange(most, dtype=np.int64) * grid
            early = np.maximum(1, np.searchsorted(ahead, (turn + 1) * scale, side="left"))
            late = np.searchsorted(ahead, (turn + grid - 1) * scale, side="right")
            assert not most or late[0] >= 1
            for nth in np.flatnonzero(late > places).tolist():
                late[nth] = self._deadline(source, count + nth, stop) - first
            opens.append(early)
            turns.append(late * sources + source)
        return earliest_deadline_first(
            np.concatenate(opens), np.concatenate(turns), sources, places
        )

    def _ahead(
        self, segment: Segment, source: int, first: int, places: int, count: int, scale: int
    ) -> Ints:
        """F - count in units of 1/scale, after 0 to ``places`` more samples; exact."""
        n = first - segment.start
        parts = self._denominator
        slope = int((segment.last[source] - segment.first[source]) * parts)
        speed = 2 * (segment.stop - segment.start) * int(segment.first[source] * parts)
        base = (segment.due(source, first) - count) * scale
        assert base.denominator == 1
        t = np.arange(places + 1, dtype=np.int64)
        return int(base) + (speed + 2 * n * slope) * t + slope * t * t

    def _deadline(self, source: int, turn: int, after: int) -> int:
        """The sample, beyond ``after``, by which a turn must have been given; exact."""
        latest = turn + 1 - Fraction(1, 2 * self.sources - 2)
        span = range(after, self.samples + 1)
        return after + bisect_right(span, latest, key=lambda n: self._due(source, n))


def _segments(
    starts: Sequence[int], shares: Sequence[tuple[Fraction, ...]], linear: bool, samples: int
) -> Iterator[Segment]:
    before = (Fraction(0),) * len(shares[0])
    for number, start in enumerate(starts):
        last = number + 1 == len(starts)
        stop = samples if last else starts[number + 1]
        if stop == start:  # a last point at the very end of the phase
            return
        until = shares[number] if last or not linear else shares[number + 1]
        segment = Segment(start, stop, shares[number], until, before)
        yield segment
        before = tuple(segment.due(source, stop) for source in range(len(before)))
