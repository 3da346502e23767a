"""Tokens as a person can read them: their text in its place, spaces and line ends made visible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.tokens.text import TextTokenizer

LONGEST = 14
_BEFORE = 8  # ids that are read before one: its text may depend on them
_VISIBLE = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}


def token_names(tokenizer: TextTokenizer, ids: Sequence[int]) -> list[str]:
    """Each id's name after those before it."""
    return [token_name(tokenizer, ids[:place], id_) for place, id_ in enumerate(ids)]


def token_name(tokenizer: TextTokenizer, before: Sequence[int], id_: int) -> str:
    """The text of an id after those in ``before``, at most ``LONGEST`` signs of it.

    An id without a text of its own (a special one, or part of a character) goes by the
    vocabulary's name for it, or by its number.
    """
    text = tokenizer.continuation(before[-_BEFORE:], [id_])
    if not text or "\ufffd" in text:
        text = tokenizer.token(id_) or f"#{id_}"
    name = "".join(_VISIBLE.get(sign, sign) for sign in text)
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
