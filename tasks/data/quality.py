"""Whether a cleaned text is within a bound: the measures behind the names of rules.py.

    text -> View (words, lines, runs of words: each made once, when asked for) -> failed(...)

A share of words or lines is of all that are not blank. ``failed`` stops at the first rule that
does not hold, so a profile names its cheap rules first. Cutting a text into words costs more than
all else together, so a rule cuts only where what was counted in its bytes does not settle it.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping
from functools import cached_property

from tasks.data.markup import has_sentence
from tasks.data.repetition import Runs, repeated
from tasks.data.words import Words

_STOP_WORDS = frozenset(["the", "be", "to", "of", "and", "that", "have", "with"])
_BULLETS = ("•", "‣", "◦", "●", "▪", "-", "*", "–", "·")
_ENDS = (".", "!", "?", "…", ";", ":", '"', "'", "”", "’", "»", ")", "]", "。", "！", "？", "।")
_FULL_STOPS = re.compile(r"[.!?…][\"')\]”’»]*(?=\s|$)|[。！？।]")
_FILLER = ("orem ipsum", "orem Ipsum", "OREM IPSUM")
_SHORT_LINE = 30  # characters
_MAY_REFER = re.compile(r"\b(?:may|can)(?: also)? refer to\b[^.\n]*:\s*$", re.MULTILINE)
_LIST_HEAD, _LIST_LENGTH = 500, 2000  # characters
_FIRST_WORDS = 32
_LETTERS = (string.ascii_letters + string.whitespace).encode()
_LETTERS_LOOK = 2000  # characters that stand for the whole
_FEWEST = 50  # words, Gopher's own least: shares of fewer say nothing


class View:
    """A cleaned text in pieces, each made when a rule first asks for it.

    Args:
        text: its white space is blanks, tabs and line feeds (as ``characters.normalise`` has it).
    """

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def words(self) -> Words:
        """Their places and numbers; a rule that must see them all splits the text."""
        return Words(self.text)

    @cached_property
    def mean_word(self) -> float:
        """Characters."""
        return (len(self.text) - self.words.blanks) / max(1, len(self.words))

    def has_words(self, n: int) -> bool:
        return len(self.text.split(maxsplit=n)) >= n

    @cached_property
    def lines(self) -> list[str]:
        """Without those that are blank."""
        return [line for line in map(str.strip, self.text.split("\n")) if line]

    @cached_property
    def paragraphs(self) -> list[str]:
        return [part for part in map(str.strip, self.text.split("\n\n")) if part]

    @cached_property
    def runs(self) -> Runs:
        return Runs(self.words)

    @cached_property
    def repeated_lines(self) -> tuple[int, int]:
        return repeated(self.lines)

    @cached_property
    def repeated_paragraphs(self) -> tuple[int, int]:
        return repeated(self.paragraphs)


Holds = Callable[[View, float], bool]  # whether a text is within a bound


def _symbols(view: View, bound: float) -> bool:
    text = view.text
    return text.count("#") + text.count("…") + text.count("...") <= bound * len(view.words)


def _stop_words(view: View, bound: float) -> bool:
    """Occurrences, in lower case; a text's beginning settles nearly all."""
    first = view.text.split(maxsplit=_FIRST_WORDS)[:_FIRST_WORDS]
    return _hold_stop_words(first, bound) or _hold_stop_words(view.text.split(), bound)


def _hold_stop_words(words: list[str], least: float) -> bool:
    found = 0
    for word in words:
        if found >= least:
            return True
        found += word.lower() in _STOP_WORDS
    return found >= least


def _alphabetic(view: View, bound: float) -> bool:
    """Words that hold a letter."""
    least = bound * len(view.words)
    if view.words.lettered >= least:
        return True
    odd = (word for word in view.text.split() if not word.isalpha())
    return len(view.words) - sum(not any(map(str.isalpha, word)) for word in odd) >= least


def _bullets(view: View, bound: float) -> bool:
    return sum(line.startswith(_BULLETS) for line in view.lines) <= bound * len(view.lines)


def _ellipses(view: View, bound: float) -> bool:
    return sum(line.endswith(("...", "…")) for line in view.lines) <= bound * len(view.lines)


def _punctuated(view: View, bound: float) -> bool:
    return sum(line.endswith(_ENDS) for line in view.lines) >= bound * len(view.lines)


def _short(view: View, bound: float) -> bool:
    return sum(len(line) < _SHORT_LINE for line in view.lines) <= bound * len(view.lines)


def _sentences(view: View, bound: float) -> bool:
    found = 0
    for _ in _FULL_STOPS.finditer(view.text):
        found += 1
        if found >= bound:
            return True
    return found >= bound


def _letters(view: View, bound: float) -> bool:
    """Letters and spaces among the first characters; tables and numbers have few."""
    looked_at = view.text.strip()[:_LETTERS_LOOK]
    rest = looked_at.encode().translate(None, _LETTERS).decode()  # few are left to look at
    letters = sum(map(str.isalpha, rest)) + sum(map(str.isspace, rest))
    return len(looked_at) - len(rest) + letters >= bound * len(looked_at)


def _top(n: int) -> Holds:
    return lambda view, bound: view.runs.top_within(n, bound)


def _duplicates(n: int) -> Holds:
    return lambda view, bound: view.runs.duplicates_within(n, bound)


def _no_disambiguation(view: View, bound: float) -> bool:
    """A page that says what a name "may refer to:" is a list of links."""
    return len(view.text) >= _LIST_LENGTH or not _MAY_REFER.search(view.text[:_LIST_HEAD])


RULES: dict[str, Holds] = {
    "stub": lambda view, bound: has_sentence(view.text),
    "disambiguation": _no_disambiguation,
    "min_mean_word": lambda view, bound: view.mean_word >= bound,
    "max_mean_word": lambda view, bound: view.mean_word <= bound,
    "max_symbols": _symbols,
    "max_bullet_lines": _bullets,
    "max_ellipsis_lines": _ellipses,
    "min_alphabetic_words": _alphabetic,
    "min_stop_words": _stop_words,
    "max_duplicate_lines": lambda v, b: v.repeated_lines[0] <= b * len(v.lines),
    "max_duplicate_line_characters": lambda v, b: v.repeated_lines[1] <= b * len(v.text),
    "max_duplicate_paragraphs": lambda v, b: v.repeated_paragraphs[0] <= b * len(v.paragraphs),
    "max_duplicate_paragraph_characters": lambda v, b: v.repeated_paragraphs[1] <= b * len(v.text),
    **{f"max_top_{n}gram": _top(n) for n in (2, 3, 4)},
    **{f"max_duplicate_{n}grams": _duplicates(n) for n in range(5, 11)},
    "min_sentences": _sentences,
    "max_lorem_ipsum": lambda view, bound: sum(map(view.text.count, _FILLER)) <= bound,
    "max_curly_brackets": lambda view, bound: view.text.count("{") <= bound,
    "min_punctuated_lines": _punctuated,
    "max_short_lines": _short,
    "min_letters": _letters,
}


_ANY_LENGTH = frozenset(("stub", "disambiguation", "max_lorem_ipsum", "min_letters"))


def failed(text: str, bounds: Mapping[str, float]) -> str | None:
    """The first rule that the text does not keep, or None. Rules on shares and means are for
    texts of at least 50 words."""
    view = View(text)
    for name, bound in bounds.items():
        # asked only now: few texts break a rule, and fewer are that short
        if not RULES[name](view, bound) and (name in _ANY_LENGTH or view.has_words(_FEWEST)):
            return name
    return None
