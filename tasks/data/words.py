"""Where the words of a text stand in its bytes: their number, their length, how they begin.

    text -> UTF-8 -> which bytes are white space -> where words begin and end

To cut a text into words makes an object of each, and costs more than all else that cleaning does.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

_MASKS = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)  # the first n bytes of eight
_LOWER, _A, _Z = (np.uint8(code) for code in (0x20, ord("a"), ord("z")))


class Words:
    """The words of one text, in order.

    Args:
        text: words stand between spaces, tabs and line feeds (as ``characters.normalise`` has it).

    Attributes:
        starts, ends: of each word, in bytes.
        blanks: how many bytes, and so characters, are white space.
    """

    def __init__(self, text: str) -> None:
        self._bytes = text.encode() + bytes(8)  # so that eight bytes may be read at any
        blank = np.ones(len(self._bytes) - 6, np.bool_)
        np.less_equal(np.frombuffer(self._bytes, np.uint8)[:-8], 32, out=blank[1:-1])
        self.blanks = int(np.count_nonzero(blank)) - 2
        edges = np.flatnonzero(blank[1:] != blank[:-1])
        self.starts, self.ends = edges[::2], edges[1::2]

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        return self.ends - self.starts

    def __len__(self) -> int:
        return len(self.starts)

    def word(self, place: int) -> bytes:
        return self._bytes[self.starts[place] : self.ends[place]]

    @cached_property
    def lettered(self) -> int:
        """How many begin with a letter of ASCII."""
        first = np.frombuffer(self._bytes, np.uint8).take(self.starts)
        # letters in either case; what lies before "a" becomes a large number, for it has no sign
        return int(np.count_nonzero((first | _LOWER) - _A <= _Z - _A))

    @cached_property
    def first_eight(self) -> NDArray[np.uint64]:
        """The bytes that each begins with."""
        return self._eight.take(self.starts) & _MASKS.take(self.sizes, mode="clip")

    @cached_property
    def last_eight(self) -> NDArray[np.uint64]:
        """The bytes that each ends with; all of a shorter one."""
        places = np.maximum(self.ends - 8, self.starts)
        return self._eight.take(places) & _MASKS.take(self.sizes, mode="clip")

    @property
    def _eight(self) -> NDArray[np.uint64]:
        """The eight bytes from each place on."""
        return np.ndarray((len(self._bytes) - 7,), "<u8", self._bytes, strides=(1,))
