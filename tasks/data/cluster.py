"""Clusters of duplicates: union-find, and the walk from band keys to verified near duplicates.

Documents are numbered in order of priority, so the root of a cluster, its least number, is the
document that stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
# most different documents of one bucket that a further one is compared with: bounds the work on
# families of boilerplate that share a band and little else
MAX_COMPARED = 64


class Clusters:
    """Disjoint sets of the numbers 0 to n - 1; the root of a set is its least member."""

    def __init__(self, n: int) -> None:
        self._parent = list(range(n))

    def root(self, member: int) -> int:
        parent = self._parent
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member

    def join(self, a: int, b: int) -> None:
        a, b = self.root(a), self.root(b)
        self._parent[max(a, b)] = min(a, b)

    def roots(self) -> Indices:
        """The root of every member."""
        return np.array([self.root(member) for member in range(len(self._parent))], np.int64)


def groups(keys: npt.NDArray[np.uint64]) -> Iterator[Indices]:
    """The positions, ascending, of each key that stands more than once.

    Args:
        keys: (n,), or (n, columns) where a key is a whole row.
    """
    columns = np.atleast_2d(keys.T)
    order = np.lexsort(columns[::-1])  # stable, so positions ascend within a key
    ordered = columns[:, order]
    fresh = np.any(ordered[:, 1:] != ordered[:, :-1], axis=0)
    edges = np.concatenate(([0], np.flatnonzero(fresh) + 1, [len(keys)]))
    for i in np.flatnonzero(np.diff(edges) > 1):
        yield order[edges[i] : edges[i + 1]]


def candidates(band_keys: npt.NDArray[np.uint64]) -> Indices:
    """The documents that share a band with another one, ascending; band_keys (documents, bands)."""
    found = np.zeros(len(band_keys), bool)
    for band in band_keys.T:
        for members in groups(band):
            found[members] = True
    return np.flatnonzero(found)


def join_similar(
    clusters: Clusters,
    documents: Indices,
    band_keys: npt.NDArray[np.uint64],
    similar: Callable[[int, int], bool],
) -> int:
    """Join the documents that share a band and are ``similar``; returns the pairs compared.

    Within a bucket each document is compared with one of each cluster seen in it so far, first the
    ones of highest priority, until one is similar.

    Args:
        clusters: joined in place.
        documents: their numbers, ascending, (n,).
        band_keys: (n, bands).
        similar: whether the documents of two numbers are near duplicates.
    """
    refused: set[tuple[int, int]] = set()
    compared = 0
    for band in band_keys.T:
        for members in groups(band):
            different: list[int] = []
            for document in documents[members].tolist():
                for other in different[:MAX_COMPARED]:
                    if clusters.root(other) == clusters.root(document):
                        break
                    if (other, document) in refused:
                        continue
                    compared += 1
                    if similar(other, document):
                        clusters.join(other, document)
                        break
                    refused.add((other, document))
                else:
                    different.append(document)
    return compared
