"""Near duplicates of a corpus: candidates by MinHash bands, verified by true Jaccard similarity.

The shingles of candidates, which are few, are written to a scratch file and mapped into memory, so
what is held is bounded by the number of documents and not by their length.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from tasks.data.cluster import Clusters, Indices, candidates, join_similar
from tasks.data.shingles import Hashes, jaccard, shingles
from tasks.workers import batches, map_ordered

Numbered = tuple[int, str]  # a document's number and its text


class ShingleStore:
    """The shingle set of some documents, each a sorted array, in a file without a name."""

    def __init__(self, texts: Iterable[Numbered], n: int, scratch: Path) -> None:
        """Read and hash the texts; ``scratch`` is a folder on a disk with room."""
        self._places: dict[int, tuple[int, int]] = {}
        end = 0
        with tempfile.TemporaryFile(dir=scratch) as handle:
            grouped = batches(texts, lambda item: len(item[1]))
            for batch, sets in map_ordered(partial(_shingle_sets, n=n), grouped):
                for (number, _), hashes in zip(batch, sets, strict=True):
                    handle.write(hashes.tobytes())
                    self._places[number] = (end, end + len(hashes))
                    end += len(hashes)
            handle.flush()
            self._hashes = np.memmap(handle, np.uint64, "r") if end else np.zeros(0, np.uint64)

    def __getitem__(self, number: int) -> Hashes:
        start, stop = self._places[number]
        return np.asarray(self._hashes[start:stop])

    def similarity(self, a: int, b: int) -> float:
        """True Jaccard similarity of two documents."""
        return jaccard(self[a], self[b])

    def similar(self, a: int, b: int, threshold: float) -> bool:
        """Whether the similarity reaches the threshold; sizes alone often show that it cannot."""
        first, second = self._places[a], self._places[b]
        small, large = sorted((first[1] - first[0], second[1] - second[0]))
        return small >= threshold * large and self.similarity(a, b) >= threshold


def _shingle_sets(batch: list[Numbered], n: int) -> list[Hashes]:
    found = shingles([text for _, text in batch], n)
    return [np.unique(found.of(i)) for i in range(len(batch))]


def join_near(
    clusters: Clusters,
    band_keys: Hashes,
    texts: Iterator[Numbered],
    *,
    ngram: int,
    threshold: float,
    scratch: Path,
) -> tuple[ShingleStore, dict[str, int]]:
    """Join near duplicates among the documents that are the root of their cluster so far.

    Args:
        clusters: of all documents, joined in place.
        band_keys: (documents, bands).
        texts: every document with its number, in order; read here once.
        ngram: words a shingle.
        threshold: least Jaccard similarity.
        scratch: folder for the scratch file.

    Returns:
        The shingles of the candidates, and counts for the ledger.
    """
    roots: Indices = np.flatnonzero(clusters.roots() == np.arange(len(band_keys)))
    chosen = roots[candidates(band_keys[roots])]
    wanted = set(chosen.tolist())
    store = ShingleStore((item for item in texts if item[0] in wanted), ngram, scratch)
    compared = join_similar(
        clusters, chosen, band_keys[chosen], lambda a, b: store.similar(a, b, threshold)
    )
    return store, {"candidates": len(chosen), "pairs_compared": compared}
