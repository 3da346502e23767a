"""Which near duplicates stay: in order of priority, each that is similar to none that stays.

A document whose number is the least in every bucket that it stands in stays: nothing of higher
priority is like it. It is compared with all others of its buckets, and those that are similar go.
Then it is struck from its buckets, and the next round begins. The outcome is that of going through
the documents one by one; a round decides many at once, and its comparisons are independent.

Pairs that were found similar make clusters. A removed document may also be similar to further ones
that stay; these join its cluster (``bridge``), so that a cluster is what must not be torn apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tasks.data.bands import load
from tasks.data.cluster import Indices, find, join
from tasks.data.shingles import Hashes, mixed

CHUNK = 4_000_000  # entries of buckets in memory at once
# documents of one bucket that stay and that the others of it are compared with: bounds the work on
# families of boilerplate that share a band and little else
MAX_COMPARED = 64
_SEEN = 1 << 20  # buckets that are remembered, so that the same one of another band is left out

Compare = Callable[[Indices], npt.NDArray[np.float64]]


class Buckets(NamedTuple):
    """Candidates that share a band, bucket after bucket, ascending in each.

    Attributes:
        members: (entries,).
        sizes: entries of each bucket, at least 2.
        passed: documents of each bucket that stay and were compared with the others.
    """

    members: Indices
    sizes: Indices
    passed: Indices

    @property
    def starts(self) -> Indices:
        return np.cumsum(self.sizes) - self.sizes

    def leads(self) -> npt.NDArray[np.bool_]:
        """Whether an entry is the first of its bucket."""
        first = np.zeros(len(self.members), bool)
        first[self.starts] = True
        return first

    def only(self, entries: npt.NDArray[np.bool_], least: int = 2) -> Buckets:
        """These entries alone, of buckets where at least ``least`` are left."""
        if not len(self.sizes):
            return self
        sizes = np.add.reduceat(entries.astype(np.int64), self.starts)
        enough = sizes >= least
        entries = entries & np.repeat(enough, self.sizes)
        return Buckets(self.members[entries], sizes[enough], self.passed[enough])


class Chunks:
    """Buckets in files of bounded size: ``<name>-00000.npz`` and so on."""

    def __init__(self, folder: Path, name: str, count: int) -> None:
        self._folder, self._name = folder, name
        self._held: tuple[int, Buckets] | None = None  # the one saved last, not on disk yet
        self.numbers = list(range(count))

    def load(self, number: int) -> Buckets:
        if self._held and self._held[0] == number:
            return self._held[1]
        with np.load(self._path(number), allow_pickle=False) as arrays:
            return Buckets(**arrays)

    def save(self, number: int, buckets: Buckets) -> None:
        if self._held and self._held[0] != number:
            np.savez(self._path(self._held[0]), **self._held[1]._asdict())
        self._held = number, buckets

    def copy(self, name: str) -> Chunks:
        """The same buckets in files of another name."""
        copied = Chunks(self._folder, name, len(self.numbers))
        for number, buckets in enumerate(self):
            copied.save(number, buckets)
        return copied

    def __iter__(self) -> Iterator[Buckets]:
        return map(self.load, self.numbers)

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._name}-{number:05d}.npz"


def gather(folders: Sequence[Path], candidates: Indices, work: Path) -> Chunks:
    """The buckets of all bands, each once, by the places of their members among the candidates."""
    seen = np.zeros(_SEEN, np.uint64)
    chunks = Chunks(work, "buckets", 0)
    held: list[Buckets] = []

    def save() -> None:
        whole = Buckets(*map(np.concatenate, zip(*held, strict=True)))
        chunks.save(len(chunks.numbers), whole)
        chunks.numbers.append(len(chunks.numbers))
        held.clear()

    for folder in folders:
        for members, sizes in _pieces(load(folder / "members.npy"), load(folder / "sizes.npy")):
            places = np.searchsorted(candidates, members)
            fresh = _unseen(Buckets(places, sizes, np.zeros_like(sizes)), seen)
            held.append(fresh)
            if sum(len(buckets.members) for buckets in held) >= CHUNK:
                save()
    if any(len(buckets.members) for buckets in held):
        save()
    return chunks


def _pieces(members: Indices, sizes: Indices) -> Iterator[tuple[Indices, Indices]]:
    ends = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        begin = int(ends[start] - sizes[start])
        stop = max(start + 1, int(np.searchsorted(ends, begin + CHUNK, side="right")))
        yield np.array(members[begin : ends[stop - 1]]), np.array(sizes[start:stop])
        start = stop


def _unseen(buckets: Buckets, seen: Hashes) -> Buckets:
    """Without buckets of the same members as one before, as far as ``seen`` remembers."""
    if not len(buckets.sizes):
        return buckets
    hashes = np.add.reduceat(mixed(buckets.members.astype(np.uint64)), buckets.starts)
    hashes = mixed(hashes + buckets.sizes.astype(np.uint64)) | np.uint64(1)
    slots = hashes & np.uint64(_SEEN - 1)
    _, first = np.unique(hashes, return_index=True)
    new = np.zeros(len(hashes), bool)
    new[first] = True
    new &= seen[slots] != hashes
    seen[slots[new]] = hashes[new]
    return buckets.only(np.repeat(new, buckets.sizes))


class Outcome(NamedTuple):
    """What becomes of the candidates; each (candidates,) and mutable.

    Attributes:
        kept: the candidate that stays because of which this one goes; itself, if it stays.
        jaccard: their similarity.
        parent: union-find over the candidates.
    """

    kept: Indices
    jaccard: npt.NDArray[np.float64]
    parent: Indices


def keep_first(
    chunks: Chunks,
    outcome: Outcome,
    blocked: npt.NDArray[np.bool_],
    compare: Compare,
    threshold: float,
) -> int:
    """Decide which candidates stay; returns the rounds it took.

    Args:
        chunks: of all buckets; they are left as they are.
        outcome: every candidate stays, in a cluster of its own; changed in place.
        blocked: (candidates,), all False.
        compare: Jaccard similarities of pairs of candidates, (pairs, 2).
        threshold: least similarity of near duplicates.
    """
    left = chunks.copy("left")
    rounds = 0
    while left.numbers:
        rounds += 1
        for buckets in left:
            blocked[buckets.members[~buckets.leads()]] = True
        for buckets in left:
            pairs = _pairs_of_leaders(buckets, blocked, len(outcome.kept))
            _remove(outcome, pairs, compare(pairs), threshold)
        for number in left.numbers:
            left.save(number, _after_round(left.load(number), blocked, outcome))
        left.numbers = [number for number in left.numbers if len(left.load(number).members)]
        for buckets in left:
            blocked[buckets.members] = False
    return rounds


def bridge(chunks: Chunks, outcome: Outcome, compare: Compare, threshold: float) -> None:
    """Join the clusters of documents that stay and are similar to one removed document."""
    for buckets in chunks:
        roots = find(outcome.parent, buckets.members)
        low, high = (of.reduceat(roots, buckets.starts) for of in (np.minimum, np.maximum))
        torn = buckets.only(np.repeat(low != high, buckets.sizes))
        compared = np.zeros((0, 2), np.int64)  # before, in another bucket
        for rank in range(1, MAX_COMPARED + 1):
            stays = outcome.kept[torn.members] == torn.members
            ranks = np.cumsum(stays) - np.repeat(
                (np.cumsum(stays) - stays)[torn.starts], torn.sizes
            )
            ranked = stays & (ranks == rank)
            more = np.zeros(len(torn.sizes), bool)
            more[np.repeat(np.arange(len(torn.sizes)), torn.sizes)[ranked]] = True
            within = np.repeat(more, torn.sizes)
            leaders = np.repeat(torn.members[ranked], torn.sizes[more])
            others, gone = torn.members[within], ~stays[within]
            torn = torn.only(within)
            if not len(torn.members):
                break
            apart = find(outcome.parent, leaders) != find(outcome.parent, others)
            pairs = _unique_pairs(
                leaders[gone & apart], others[gone & apart], len(outcome.kept), compared
            )
            similar = compare(pairs) >= threshold
            join(outcome.parent, pairs[similar, 0], pairs[similar, 1])
            compared = np.concatenate((compared, pairs))[-CHUNK:]


def _pairs_of_leaders(buckets: Buckets, blocked: npt.NDArray[np.bool_], candidates: int) -> Indices:
    """Each first of a bucket that is decided to stay, with every other of the bucket."""
    leaders = buckets.members[buckets.starts]
    others = np.repeat(~blocked[leaders], buckets.sizes) & ~buckets.leads()
    return _unique_pairs(
        np.repeat(leaders, buckets.sizes)[others], buckets.members[others], candidates
    )


def _unique_pairs(
    a: Indices, b: Indices, candidates: int, besides: Indices | None = None
) -> Indices:
    """(pairs, 2), each once, in order, but for those in ``besides``."""
    pairs = np.unique(a * candidates + b)
    if besides is not None:
        known = besides[:, 0] * candidates + besides[:, 1]
        pairs = np.setdiff1d(pairs, known, assume_unique=True)
    return np.stack(np.divmod(pairs, max(1, candidates)), axis=1)


def _remove(
    outcome: Outcome, pairs: Indices, jaccard: npt.NDArray[np.float64], threshold: float
) -> None:
    """Remove the second of each similar pair, because of the least first one."""
    similar = jaccard >= threshold
    stays, goes, jaccard = pairs[similar, 0], pairs[similar, 1], jaccard[similar]
    join(outcome.parent, stays, goes)
    goes, first = np.unique(goes, return_index=True)  # pairs are in order
    stays, jaccard = stays[first], jaccard[first]
    before = outcome.kept[goes]  # by another chunk, in this round
    better = (before == goes) | (stays < before)
    outcome.kept[goes[better]] = stays[better]
    outcome.jaccard[goes[better]] = jaccard[better]


def _after_round(buckets: Buckets, blocked: npt.NDArray[np.bool_], outcome: Outcome) -> Buckets:
    """Without the removed, and without the first ones that are decided."""
    decided = ~blocked[buckets.members[buckets.starts]]
    passed = buckets.passed + decided
    live = outcome.kept[buckets.members] == buckets.members
    live &= ~(buckets.leads() & np.repeat(decided, buckets.sizes))
    live &= np.repeat(passed < MAX_COMPARED, buckets.sizes)
    return buckets._replace(passed=passed).only(live)
