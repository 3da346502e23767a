"""MinHash and its bands: near duplicates without comparing every pair.

The least value of a random hash over a set of shingles is the same for two sets with a chance equal
to their Jaccard similarity s. Of bands × rows such values, ``rows`` make a band; two documents
are candidates when they agree in a whole band, which happens with chance 1 - (1 - s^rows)^bands.
Candidates are verified elsewhere, so what is kept of a document is its band keys alone: 8 bytes
a band, whatever its length.

Broder 1997, https://doi.org/10.1109/SEQUEN.1997.666900
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tasks.data.shingles import Hashes, Shingles, mixed

_SEED = np.uint64(0x6D696E68617368)
_HALF = np.uint64(32)


def signatures(shingles: Shingles, count: int) -> npt.NDArray[np.uint32]:
    """``count`` MinHash values of each document, (documents, count).

    The hashes are x -> a x + b modulo 2^32 of the shingle's upper half; a chance collision there
    only makes one candidate more. Documents without shingles have a row of all ones.
    """
    random = (mixed(np.arange(2 * count, dtype=np.uint64) + _SEED) >> _HALF).astype(np.uint32)
    factors, offsets = random[:count] | np.uint32(1), random[count:]
    sizes = np.diff(shingles.bounds)
    result = np.full((count, len(sizes)), 2**32 - 1, np.uint32)
    filled = np.flatnonzero(sizes)
    if filled.size:
        values = (shingles.hashes >> _HALF).astype(np.uint32)
        hashed = np.empty_like(values)
        for row, (factor, offset) in enumerate(zip(factors, offsets, strict=True)):
            np.multiply(values, factor, out=hashed)
            hashed += offset
            result[row, filled] = np.minimum.reduceat(hashed, shingles.bounds[filled])
    return result.T


def band_keys(signature: npt.NDArray[np.uint32], bands: int, rows: int) -> Hashes:
    """One 64-bit key for each band of each document, (documents, bands)."""
    keys = np.zeros((len(signature), bands), np.uint64)
    for row in range(rows):
        keys = mixed(keys + signature[:, row * bands : (row + 1) * bands].astype(np.uint64) + row)
    return keys


def candidate_chance(similarity: float, bands: int, rows: int) -> float:
    """The chance that two documents of that Jaccard similarity are candidates."""
    return float(1 - (1 - similarity**rows) ** bands)
