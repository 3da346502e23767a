"""A line from a terminal, with history and completion, or from a pipe."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence


def prepare(words: Sequence[str]) -> None:
    """Give a terminal's lines history (arrow keys) and the Tab key these words."""
    if not sys.stdin.isatty():
        return
    with contextlib.suppress(ImportError):  # not every system has it; input() works without
        import readline

        def complete(text: str, number: int) -> str | None:
            found = [word for word in words if word.startswith(text)] if text else []
            return found[number] if number < len(found) else None

        readline.set_completer(complete)
        readline.set_completer_delims(" ")
        readline.parse_and_bind("tab: complete")


def read_line() -> str | None:
    """The next line, None at the end of the input.

    One that ends in a backslash goes on, after a line end, in the next.
    """
    lines: list[str] = []
    while True:
        try:
            line = _ask("... " if lines else "> ")
        except EOFError:
            if sys.stdin.isatty():
                print(file=sys.stderr)
            return "\n".join(lines) if lines else None
        if not line.endswith("\\"):
            return "\n".join([*lines, line])
        lines.append(line[:-1])


def _ask(prompt: str) -> str:
    if not sys.stdin.isatty():
        return input("")
    if sys.stdout.isatty():
        return input(prompt)
    print(prompt, end="", file=sys.stderr, flush=True)  # stdout is for the texts alone
    return input("")
