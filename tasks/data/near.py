"""True Jaccard similarity of candidates: their shingle sets on disk, and pairs compared by workers.

Only documents that share a band with another are read a second time. Their sets lie in files that
every worker maps into memory, so what is held does not depend on how many or how long they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.data.bands import flush, load, mapped, slices
from tasks.data.cluster import Indices
from tasks.data.shingles import Hashes, blocks, jaccard, shingles
from tasks.data.texts import Part, chosen_texts
from tasks.shardwise import map_parts, part_folder

Similarities = npt.NDArray[np.float64]
HERE_BYTES = 64_000_000  # of sets: pairs of fewer are compared at once, without a file
PART_BYTES = 64_000_000  # of sets compared in one part
OPEN = 128  # parts whose sets are mapped at a time: each holds two files open


def write_candidates(buckets: Sequence[Path], documents: int, work: Path) -> Indices:
    """The documents that stand in a bucket, ascending, in candidates.npy, mapped into memory."""
    chosen = mapped(work / "chosen.npy", documents, bool)
    for folder in buckets:
        members = load(folder / "members.npy")
        for piece in slices(len(members)):
            chosen[members[piece]] = True
    count = sum(int(np.count_nonzero(chosen[piece])) for piece in slices(documents))
    candidates: Indices = mapped(work / "candidates.npy", count, np.int64)
    end = 0
    for piece in slices(documents):
        found = np.flatnonzero(chosen[piece]) + piece.start
        candidates[end : end + len(found)] = found
        end += len(found)
    flush(candidates)
    return candidates


def write_sets(
    parts: Sequence[Part], counts: Sequence[int], sizes: Sequence[int], n: int, work: Path, key: Any
) -> Sets:
    """Write the shingle set of every candidate.

    Args:
        parts: of the corpus.
        counts: documents of each part.
        sizes: bytes of each part.
        n: words a shingle.
        work: holds candidates.npy; the sets go there.
        key: of the fingerprints.
    """
    firsts = np.cumsum([0, *counts]).tolist()
    numbered = [[part, *edges] for part, edges in zip(parts, pairwise(firsts), strict=True)]
    make = partial(sets_part, n=n, candidates=str(work / "candidates.npy"))
    map_parts(make, numbered, work / "sets", key, title="sets of candidates", sizes=sizes)
    edges = np.searchsorted(load(work / "candidates.npy"), firsts).tolist()
    return Sets(work / "sets", tuple(edges))


def sets_part(numbered: Sequence[Any], out: Path, n: int, candidates: str) -> int:
    """Write the sets of a part's candidates, end to end: sets.bin, and bounds.npy."""
    part, first, stop = numbered
    candidate = np.zeros(stop - first, bool)
    chosen = load(Path(candidates))
    candidate[chosen[slice(*np.searchsorted(chosen, [first, stop]))] - first] = True
    ends = [np.zeros(1, np.int64)]
    with open(out / "sets.bin", "wb") as handle:
        for block in blocks(chosen_texts(part, candidate)) if candidate.any() else ():
            found = shingles(block, n).sets()
            handle.write(found.hashes.data)
            ends.append(ends[-1][-1] + found.bounds[1:])
    bounds = np.concatenate(ends)
    np.save(out / "bounds.npy", bounds, allow_pickle=False)
    return len(bounds) - 1


class Sets:
    """The shingle sets of the candidates, by their place among the candidates."""

    def __init__(self, folder: Path, edges: tuple[int, ...]) -> None:
        """``edges[i]`` is the first candidate of part i; there is one more edge than parts."""
        self.folder, self.edges = folder, edges
        self._edges = np.array(edges, np.int64)
        self._part = lru_cache(maxsize=OPEN)(lambda n: _map_sets(part_folder(folder, n)))

    def places(self, candidates: Indices) -> Indices:
        """Part, start and stop of each candidate's set, (..., 3)."""
        part = np.searchsorted(self._edges, candidates, side="right") - 1
        start, stop = np.zeros_like(candidates), np.zeros_like(candidates)
        for number in np.unique(part).tolist():
            own = part == number
            bounds, _ = self._part(number)
            within = candidates[own] - self._edges[number]
            start[own], stop[own] = bounds[within], bounds[within + 1]
        return np.stack([part, start, stop], axis=-1)

    def similarities(self, places: Indices, threshold: float) -> Similarities:
        """Jaccard similarity of the pairs of sets at these places, (pairs, 2, 3); (pairs,).

        0 stands for pairs whose sizes alone show that they cannot reach the threshold.
        """
        sizes = places[..., 2] - places[..., 1]
        possible = np.flatnonzero(sizes.min(axis=1) >= threshold * sizes.max(axis=1))
        result = np.zeros(len(places))
        for i, (a, b) in zip(possible.tolist(), places[possible].tolist(), strict=True):
            result[i] = jaccard(self._set(*a), self._set(*b))
        return result

    def _set(self, part: int, start: int, stop: int) -> Hashes:
        return self._part(part)[1][start:stop]


def _map_sets(folder: Path) -> tuple[Indices, Hashes]:
    """Bounds and sets of one part."""
    path = folder / "sets.bin"
    there = path.stat().st_size > 0
    hashes = np.asarray(np.memmap(path, np.uint64, "r")) if there else np.zeros(0, np.uint64)
    return np.asarray(load(folder / "bounds.npy")), hashes


class Verifier:
    """Compares pairs, here or by workers; counts them."""

    def __init__(self, sets: Sets, threshold: float, work: Path, key: Any) -> None:
        self.compared = 0
        self.threshold = threshold
        self._sets, self._work, self._key = sets, work, key
        self._calls = 0

    def __call__(self, pairs: Indices) -> Similarities:
        """Similarity of each pair of candidates, as ``Sets.similarities`` gives it."""
        self.compared += len(pairs)
        if not len(pairs):
            return np.zeros(0)
        places = self._sets.places(pairs)
        weights = 8 * (places[..., 2] - places[..., 1]).sum(axis=1)
        if weights.sum() <= HERE_BYTES:
            return self._sets.similarities(places, self.threshold)
        self._calls += 1
        path = self._work / f"pairs-{self._calls:05d}.npy"
        np.save(path, pairs, allow_pickle=False)
        ends = np.cumsum(weights)
        cuts = np.searchsorted(ends, np.arange(0, ends[-1], PART_BYTES)[1:], side="right")
        edges = sorted({0, *cuts.tolist(), len(pairs)})
        stretches = [list(edge) for edge in pairwise(edges)]
        folder = self._work / f"compared-{self._calls:05d}"
        compare = partial(
            compare_part,
            pairs=str(path),
            sets=str(self._sets.folder),
            edges=self._sets.edges,
            threshold=self.threshold,
        )
        map_parts(compare, stretches, folder, self._key, title="comparing")
        made = [part_folder(folder, number) for number in range(len(stretches))]
        return np.concatenate([load(part / "similarities.npy") for part in made])


def compare_part(
    stretch: Sequence[int], out: Path, pairs: str, sets: str, edges: Sequence[int], threshold: float
) -> int:
    """Compare a stretch of the pairs in a file: similarities.npy."""
    opened = Sets(Path(sets), tuple(edges))
    places = opened.places(np.array(load(Path(pairs))[stretch[0] : stretch[1]]))
    found = opened.similarities(places, threshold)
    np.save(out / "similarities.npy", found, allow_pickle=False)
    return len(found)
