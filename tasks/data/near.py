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
from tasks.data.shingles import Hashes, jaccard, shingles
from tasks.data.texts import Part, chosen_texts
from tasks.shardwise import map_parts, part_folder

Similarities = npt.NDArray[np.float64]
HERE_BYTES = 64_000_000  # of sets: pairs of fewer are compared at once, without a file
PART_BYTES = 64_000_000  # of sets compared in one part
OPEN = 128  # parts whose sets are mapped at a time: each holds two files open
_READ_BYTES = 1 << 17


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
    bounds, block, held = [0], [], 0
    with open(out / "sets.bin", "wb") as handle:

        def write(block: list[str]) -> None:
            found = shingles(block, n)
            for i in range(len(block)):
                own = np.sort(found.of(i))
                once = np.ones(len(own), bool)
                np.not_equal(own[1:], own[:-1], out=once[1:])
                own = own[once]
                handle.write(own.tobytes())
                bounds.append(bounds[-1] + len(own))

        for text in chosen_texts(part, candidate) if candidate.any() else ():
            block.append(text)
            held += len(text)
            if held >= _READ_BYTES:
                write(block)
                block, held = [], 0
        write(block)
    np.save(out / "bounds.npy", np.array(bounds, np.int64), allow_pickle=False)
    return len(bounds) - 1


class Sets:
    """The shingle sets of the candidates, by their place among the candidates."""

    def __init__(self, folder: Path, edges: tuple[int, ...]) -> None:
        """``edges[i]`` is the first candidate of part i; there is one more edge than parts."""
        self.folder, self.edges = folder, edges
        self._edges = np.array(edges, np.int64)
        self._part = lru_cache(maxsize=OPEN)(lambda n: _map_sets(part_folder(folder, n)))

    def places(self, candidates: Indices) -> tuple[Indices, Indices, Indices]:
        """Part, start and stop of each candidate's set."""
        part = np.searchsorted(self._edges, candidates, side="right") - 1
        start, stop = np.zeros_like(candidates), np.zeros_like(candidates)
        for number in np.unique(part).tolist():
            own = part == number
            bounds, _ = self._part(number)
            within = candidates[own] - self._edges[number]
            start[own], stop[own] = bounds[within], bounds[within + 1]
        return part, start, stop

    def similarities(self, pairs: Indices, threshold: float) -> Similarities:
        """Jaccard similarity of each pair of candidates, (pairs,).

        0 stands for pairs whose sizes alone show that they cannot reach the threshold.
        """
        first, second = self.places(pairs[:, 0]), self.places(pairs[:, 1])
        sizes = first[2] - first[1], second[2] - second[1]
        possible = np.minimum(*sizes) >= threshold * np.maximum(*sizes)
        result = np.zeros(len(pairs))
        rows = np.stack([*first, *second], axis=1)
        for i in np.flatnonzero(possible).tolist():
            part, start, stop, other, other_start, other_stop = rows[i].tolist()
            a, b = self._part(part)[1], self._part(other)[1]
            result[i] = jaccard(a[start:stop], b[other_start:other_stop])
        return result


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
        _, start, stop = self._sets.places(pairs.ravel())
        weights = 8 * (stop - start).reshape(-1, 2).sum(axis=1)
        if weights.sum() <= HERE_BYTES:
            return self._sets.similarities(pairs, self.threshold)
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
    own = np.array(load(Path(pairs))[stretch[0] : stretch[1]])
    found = Sets(Path(sets), tuple(edges)).similarities(own, threshold)
    np.save(out / "similarities.npy", found, allow_pickle=False)
    return len(own)
