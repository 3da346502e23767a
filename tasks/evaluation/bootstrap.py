"""How sure a figure is: what it would be on other documents of the same kind.

    bits per byte = sum of nats / (ln 2 · sum of bytes)          a ratio of two sums

    draw as many documents as there are, with replacement -> the ratio of that draw
    do so 1,000 times                                     -> its spread: the standard error

Documents are drawn, not tokens, because the tokens of a document are not independent. Two models
are compared on the same draws (the paired test): what makes a document hard for both cancels.

Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapters 6, 13 and 15;
Koehn 2004, https://aclanthology.org/W04-3250
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
SEED = 20040725
_AT_ONCE = 2**20  # documents drawn in one piece: 8 MB of indices

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """First model less second, in bits per byte: below 0 the first is better."""

    difference: float
    se: float
    """Standard error."""
    low: float
    """Lower end of the interval, the percentiles of the resamples."""
    high: float
    p: float
    """Two-sided: how often chance alone would bring a difference this far from none."""


def standard_error(nats: Floats, sizes: NDArray[np.int64]) -> float | None:
    """Standard error of the bits per byte of documents; None for a single one, which tells nothing.

    nats (D,): of each document; sizes (D,): its bytes.
    """
    if len(nats) < 2:
        return None
    [sums, whole] = _resampled(np.stack([nats, sizes.astype(np.float64)]), SEED)
    return float(np.std(sums / whole / math.log(2)))


def paired(
    first: Floats, second: Floats, sizes: NDArray[np.int64], level: float = 0.05
) -> Difference:
    """Whether two models differ on the same documents.

    Args:
        first, second: nats (D,) of each document under each model.
        sizes: bytes (D,) of each document.
        level: the interval holds 1 - level of the resamples.
    """
    return paired_mean([(first, second, sizes)], level)


def paired_mean(
    sets: Sequence[tuple[Floats, Floats, NDArray[np.int64]]], level: float = 0.05
) -> Difference:
    """Whether two models differ on the mean over some sets, each weighing alike.

    ``sets``: first, second and sizes of each, as in `paired`. Documents are drawn within their set.
    Raises ValueError where there is no set.
    """
    if not sets:
        raise ValueError("there is no set to compare on")
    found, drawn = 0.0, np.zeros(RESAMPLES)
    for number, (first, second, sizes) in enumerate(sets):
        gaps = (first - second) / math.log(2)
        found += float(gaps.sum() / sizes.sum()) / len(sets)
        [sums, whole] = _resampled(np.stack([gaps, sizes.astype(np.float64)]), SEED + number)
        drawn += sums / whole / len(sets)
    low, high = np.quantile(drawn, [level / 2, 1 - level / 2]).tolist()
    documents = sum(len(first) for first, _, _ in sets)
    return Difference(found, float(np.std(drawn)), low, high, _p_value(found, drawn, documents))


def _p_value(found: float, drawn: Floats, documents: int) -> float:
    """Twice the share of resamples on the other side of 0; 1 where nothing differs.

    It cannot be below 2 / (resamples + 1), nor below 2 / 2^D: if the signs of D differences were
    drawn by coins, all would come out alike that often, which resampling few documents cannot see.
    """
    other_side = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    share = 2 * (1 + int(other_side)) / (1 + len(drawn))
    return min(1.0, max(share, 2.0 ** (1 - min(documents, 60)))) if found else 1.0


def _resampled(columns: Floats, seed: int) -> Floats:
    """Sums (K, R) of columns (K, D) over each of R draws of D documents; the seed fixes them."""
    random, documents = np.random.default_rng(seed), columns.shape[1]
    rows = max(1, _AT_ONCE // documents)
    parts = []
    for start in range(0, RESAMPLES, rows):
        size = (min(rows, RESAMPLES - start), documents)
        parts.append(columns[:, random.integers(0, documents, size)].sum(axis=2))
    return np.concatenate(parts, axis=1)
