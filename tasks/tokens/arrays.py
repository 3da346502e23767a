"""The integers that this room counts with, and the one piece of index arithmetic it shares."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = npt.NDArray[np.int64]


def expand(counts: Ints) -> tuple[Ints, Ints]:
    """Groups of some sizes laid end to end: of each member its group, and its number in it.

    ``[2, 0, 3]`` -> groups ``[0, 0, 2, 2, 2]``, numbers ``[0, 1, 0, 1, 2]``.
    """
    group = np.repeat(np.arange(len(counts)), counts)
    return group, np.arange(len(group)) - (np.cumsum(counts) - counts)[group]
