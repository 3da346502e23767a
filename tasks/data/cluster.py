"""Disjoint sets over an array of parents: union-find, many joins at a time.

The root of a set is its least member. Documents are numbered in order of priority, so the root of a
cluster of duplicates is the document of it that comes first. The array may be a file mapped into
memory.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def find(parent: Indices, members: Indices) -> Indices:
    """The root of each of the members; shortens their paths. ``parent[i] <= i`` holds."""
    roots = parent[members]
    while True:
        above = parent[roots]
        if np.array_equal(above, roots):
            break
        roots = above
    parent[members] = roots
    return roots


def join(parent: Indices, a: Indices, b: Indices) -> None:
    """Join the set of ``a[i]`` with the set of ``b[i]``, for every i.

    Each round hooks every root under the least root that it is joined with, until all agree.
    """
    while a.size:
        first, second = find(parent, a), find(parent, b)
        apart = first != second
        a, b, first, second = a[apart], b[apart], first[apart], second[apart]
        np.minimum.at(parent, np.maximum(first, second), np.minimum(first, second))
