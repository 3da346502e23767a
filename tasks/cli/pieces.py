"""Pieces of a text on their way to the screen, and the text at which they end.

A piece is what one token, or the few that make one character, added to the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.release.likely import Drawn


@dataclass(frozen=True)
class Piece:
    """A bit of text; ``drawn`` are its tokens, where somebody asked how likely they were."""

    text: str
    drawn: tuple[Drawn, ...] = ()


def until(pieces: Iterator[Piece], stop: str | None) -> Iterator[Piece]:
    """The pieces before the text ``stop``, and none of what begins it.

    What could be its beginning is held back until it is clear that it is not.
    """
    if not stop:
        yield from pieces
        return
    held: list[Piece] = []
    for piece in pieces:
        held.append(piece)
        text = "".join(one.text for one in held)
        end = text.find(stop)
        if end >= 0:
            yield from _first(held, end)
            return
        sure = len(text) - _begun(text, stop)
        while held and len(held[0].text) <= sure:
            sure -= len(held[0].text)
            yield held.pop(0)
    yield from held


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of a text may be the first ones of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def _first(pieces: list[Piece], characters: int) -> Iterator[Piece]:
    """The pieces of the first so many characters; the last of them is cut to fit."""
    for piece in pieces:
        if characters <= 0:
            return
        yield (
            piece if len(piece.text) <= characters else replace(piece, text=piece.text[:characters])
        )
        characters -= len(piece.text)
