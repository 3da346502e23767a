"""A map of attention in a terminal: a row for each token, a sign for each one that it looks at.

The darker, the more, in multiples of what each would get if all got the same: so a long text shows
as much as a short one.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

BLOCKS, PLAIN = " ░▒▓█", " .:*#"
FROM = (0.5, 1.5, 3.0, 6.0)  # the multiple from which each sign after the first stands


def shaded(weights: Tensor, names: Sequence[str], most: int, signs: str = BLOCKS) -> list[str]:
    """Lines of the last ``most`` rows of weights (T, T), each named.

    The keys stand in the order of the rows. Where there are earlier ones, the first sign, before a
    bar, is for the mean of them.
    """
    first = max(0, len(names) - most)
    width = max(map(len, names[first:]), default=0)
    lines = []
    for query in range(first, len(names)):
        multiples = weights[query] * (query + 1)
        early = _sign(multiples[:first].mean().item(), signs) + "|" if first else ""
        cells = "".join(_sign(one, signs) for one in multiples[first : query + 1].tolist())
        lines.append(f"{names[query]:>{width}} {early}{cells}")
    return lines


def _sign(multiple: float, signs: str) -> str:
    return signs[sum(multiple >= least for least in FROM)]
