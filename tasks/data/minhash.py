"""MinHash and its bands: near duplicates without comparing every pair.

The least value of a random hash over a set of shingles is the same for two sets with a chance equal
to their Jaccard similarity s. Of bands × rows such values, ``rows`` make a band; two documents
are candidates when they agree in a whole band, which happens with chance 1 - (1 - s^rows)^bands.
Candidates are verified elsewhere, so what is kept of a document is its band keys alone: 8 bytes
a band, whatever its length.

Broder 1997, https://doi.org/10.1109/SEQUEN.1997.666900
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tasks.data.shingles import Hashes, Shingles, mixed

RECALL = 0.995  # of pairs at the threshold itself; of those above it, more
NOISE = 0.1  # most candidates among pairs of half the threshold: each is verified for nothing
MOST_HASHES = 512
_SEED = np.uint64(0x6D696E68617368)
_HALF = np.uint64(32)
_NOTHING = np.uint32(2**32 - 1)


def signatures(shingles: Shingles, count: int) -> npt.NDArray[np.uint32]:
    """``count`` MinHash values of each document, (documents, count).

    The hashes are x -> a x modulo 2^32, a odd, of the shingle's upper half, which is mixed already;
    a chance collision there only makes one candidate more. Documents without shingles have a row of
    all ones. Fastest where the shingles are those of one block of text, which stay in the cache.
    """
    sizes = np.diff(shingles.bounds)
    result = np.full((count, len(sizes)), _NOTHING, np.uint32)
    filled = np.flatnonzero(sizes)
    if filled.size:
        starts = shingles.bounds[filled]
        least = np.empty((count, len(filled)), np.uint32)
        hashed = (shingles.hashes >> _HALF).astype(np.uint32)
        for row, step in zip(least, _steps(count), strict=True):
            hashed *= step
            np.minimum.reduceat(hashed, starts, out=row)
        result[:, filled] = least
    return result.T


@cache
def _steps(count: int) -> list[np.uint32]:
    """Each factor a divided by the one before, which turns the hashes of that into those of a."""
    random = mixed(np.arange(count, dtype=np.uint64) + _SEED)
    factors = [1, *((random >> _HALF) | np.uint64(1)).tolist()]
    return [np.uint32(a * pow(before, -1, 2**32) % 2**32) for before, a in pairwise(factors)]


def band_keys(signature: npt.NDArray[np.uint32], bands: int, rows: int) -> Hashes:
    """One 64-bit key for each band of each document, (documents, bands)."""
    values = signature.T.reshape(rows, bands, -1)
    keys = np.zeros(values.shape[1:], np.uint64)
    for row, of_row in enumerate(values):
        keys += of_row
        keys = mixed(keys + np.uint64(row))
    return keys.T


def candidate_chance(similarity: float, bands: int, rows: int) -> float:
    """The chance that two documents of that Jaccard similarity are candidates."""
    return float(1 - (1 - similarity**rows) ** bands)


def bands_for(threshold: float) -> tuple[int, int]:
    """Bands and rows that find ``RECALL`` of the pairs at a Jaccard threshold.

    The fewest hashes that leave all but ``NOISE`` of the pairs of half that similarity alone, or,
    where ``MOST_HASHES`` do not suffice for that, those that leave most of them alone.
    """
    best = (1, 1)
    for rows in range(1, 65):
        share = threshold**rows
        bands = 1 if share >= RECALL else math.ceil(math.log1p(-RECALL) / math.log1p(-share))
        if rows > 1 and bands * rows > MOST_HASHES:
            break
        best = (bands, rows)
        if candidate_chance(threshold / 2, bands, rows) <= NOISE:
            break
    return best
