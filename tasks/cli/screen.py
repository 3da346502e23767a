"""Where continuations appear: one after the other, or two side by side as they come.

A terminal has colours (NO_COLOR: none) and, where it is wide enough, columns; what is not a
terminal gets the text alone.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from tasks.cli.pieces import Piece
from tasks.cli.samples import visible

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

WIDE = 80  # columns of a terminal from which two texts stand side by side
_REFRESH_SECONDS = 0.08
# the probability below which a token has the colour, from the rarest on
LEVELS = ((0.01, "red"), (0.1, "yellow"), (0.5, "cyan"))


class Screen:
    """Shows the pieces of one text, or of two with their names."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)

    @property
    def coloured(self) -> bool:
        """Whether stdout takes colours."""
        return _is_screen(sys.stdout) and not os.environ.get("NO_COLOR")

    def show(self, echo: str, texts: Sequence[Iterator[Piece]]) -> None:
        """Print ``echo`` and the pieces of each text as they come, and a line end."""
        if len(texts) > 1 and _is_screen(sys.stdout):
            console = _console()
            if console.width >= WIDE:
                self._side_by_side(console, echo, texts)
                return
        for name, text in zip(self.names, texts, strict=True):
            if len(texts) > 1:
                self.head(name)
            try:
                write(visible(echo))
                for piece in text:
                    write(self._painted(piece))
            finally:
                write("\n")

    def head(self, text: str) -> None:
        """A line that says whose text follows."""
        print(f"--- {text}", flush=True)

    def print(self, table: RenderableType) -> None:
        """Print what rich lays out; on what is not a terminal, without control codes."""
        _console().print(table)

    def _painted(self, piece: Piece) -> str:
        text = visible(piece.text)
        if not piece.drawn or not self.coloured:
            return text
        from rich.style import Style

        return Style.parse(_style(piece)).render(text)

    def _side_by_side(
        self, console: Console, echo: str, streams: Sequence[Iterator[Piece]]
    ) -> None:
        from rich.live import Live
        from rich.text import Text

        texts = [Text(visible(echo)) for _ in streams]
        # no thread draws: Ctrl-C then finds one place to stop
        live = Live(console=console, auto_refresh=False, transient=True)
        try:
            with live:
                shown = 0.0
                for number, piece in in_turn(streams):
                    texts[number].append(visible(piece.text), _style(piece))
                    if time.monotonic() - shown > _REFRESH_SECONDS:
                        live.update(self._columns(texts, console, tail=True), refresh=True)
                        shown = time.monotonic()
        finally:
            console.print(self._columns(texts, console))

    def _columns(
        self, texts: Sequence[Text], console: Console, tail: bool = False
    ) -> RenderableType:
        """The texts under their names; ``tail``: only the lines that the terminal has room for."""
        from rich.table import Table
        from rich.text import Text

        # Room for the "^C" that a terminal writes: a line more would be one that is not taken back.
        width = console.width - 3
        table = Table(width=width, box=None, padding=(0, 2, 0, 0))
        for name in self.names:
            table.add_column(Text(f"--- {name}"), ratio=1, overflow="fold")
        if tail:
            width = width // len(texts) - 2
            room = max(1, console.height - 3)
            texts = [
                Text("\n").join(text.wrap(console, width, overflow="fold")[-room:])
                for text in texts
            ]
        table.add_row(*texts)
        return table


def in_turn(streams: Sequence[Iterator[Piece]]) -> Iterator[tuple[int, Piece]]:
    """A piece of each stream, again and again, until all have ended."""
    left = dict(enumerate(streams))
    while left:
        for number, stream in list(left.items()):
            piece = next(stream, None)
            if piece is None:
                del left[number]
            else:
                yield number, piece


def write(text: str) -> None:
    """Print text as it is, now."""
    print(text, end="", flush=True)


def _style(piece: Piece) -> str:
    rarest = min((one.token.probability for one in piece.drawn), default=1.0)
    return next((colour for below, colour in LEVELS if rarest < below), "none")


def _is_screen(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)
