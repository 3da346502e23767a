"""WikiText's tokens back to English: ``18 @,@ 000 men 's`` to ``18,000 men's``.

The dataset was released split into words and marks for word-level models. A model of subwords
that also reads ordinary text would spend its capacity on two spellings of English, so the profile
``wikitext`` restores the text, as is usual when such models are measured on it. The marks
``@-@ @,@ @.@`` go back exactly. Where the original spacing is lost (quotes, slashes, dashes) it is
that of most English; a quote that has no partner in its line stays as it is. ``<unk>`` stays too.
For figures to set beside those of the paper use the profile ``plain``, which changes nothing here.

Merity et al. 2016, https://arxiv.org/abs/1609.07843
"""

from __future__ import annotations

import re
from collections.abc import Callable
from operator import itemgetter

import numpy as np

# What stands wherever a step has work to do (looking is cheaper than searching), what it takes, and
# what it puts there. "\b" is a backspace: the blank before goes too. So a pattern may begin with a
# mark, to which a search runs many times faster than to each of the blanks; what it looks behind
# comes after that mark for the same reason.
Replacement = str | Callable[[re.Match[str]], str]
_Table = tuple[tuple[str, str, Replacement], ...]
_QUOTES: _Table = (
    ("@", r" @([-,.])@ ", itemgetter(1)),
    ('"', r'"(?<!\S") ([^"\n]*) "(?!\S)', lambda match: f'"{match[1]}"'),
    ("'", r"'(?<!\S')(?<!s ') ([^'\n]{1,80}) '(?!\S)", lambda match: f"'{match[1]}'"),
    ("'", r"'(?<= ')(?:(?<=s ')(?= )|(?=(?:s|t|re|ve|ll|d|m)\b))", "\b'"),
)
_REST: _Table = (
    *((opening, re.escape(opening) + " ", opening) for opening in "([{"),
    *((unit, re.escape(unit) + r" (?=\d)", unit) for unit in "$£€#"),
    (":", r": (?<=\d: )(?=\d\d\b)", ":"),
    ("–", r"– (?<=\d – )(?=\d)", "\b–"),
    ("/", r"/ (?<=\w / )(?=\w)", "\b/"),
    ("°", r"° (?<= ° )(?=[CF]\b)", "°"),
)
_QUOTE_STEPS, _REST_STEPS = (
    [(sign, re.compile(take, re.MULTILINE), put) for sign, take, put in table]
    for table in (_QUOTES, _REST)
)
_IS_BLANK, _CLOSES, _IS_BEHIND = 1, 2, 4  # what a byte of UTF-8 may be: a mark, or behind marks
_KINDS = bytes(
    _IS_BLANK * (byte in b" ")
    | _CLOSES * (byte in b",.;:!?%)]}")
    | _IS_BEHIND * (byte in b" \n\t\"')]}")
    for byte in range(256)
)
_HEADING = re.compile(r"\n *(=(?: =)*) (\S.*?) (=(?: =)*) *(?=\n|\Z)")


def restore(text: str) -> str:
    """Undo WikiText's tokenisation; headings ``= = Name = =`` become ``== Name ==``.

    Args:
        text: with one space between words, none at the ends of lines (as ``characters.flatten``
            has it); of other text, headings of the first level keep theirs.
    """
    text = _without_blanks_before_marks(_stepped(text, _QUOTE_STEPS))
    text = _stepped(text, _REST_STEPS)
    if "= =" in text:
        text = _HEADING.sub(_heading, "\n" + text)[1:]  # "^" would be tried at each character
    return text


def _stepped(text: str, steps: list[tuple[str, re.Pattern[str], Replacement]]) -> str:
    for sign, pattern, replacement in steps:
        if sign in text:
            text = _replaced(text, pattern, replacement)
    return text


def _without_blanks_before_marks(text: str) -> str:
    """``men , who`` to ``men, who``: marks have white space, a quote or a bracket behind them, or
    the end. The pattern for it would be tried at each blank, so it is asked of all at once:
    `` (?=[,.;:!?%)\\]}]+(?:[\\s"')\\]}]|$))``
    """
    raw = text.encode()
    kinds = np.frombuffer(raw.translate(_KINDS) + bytes([_IS_BEHIND]), np.uint8)
    # 1 where a mark stands behind a blank, else 0: numpy counts those of booleans far faster
    blanks = np.flatnonzero((kinds[:-1] & (kinds[1:] >> 1) & _IS_BLANK).view(np.bool_))
    if not len(blanks):
        return text
    behind = kinds[blanks + 2]
    goes, at = behind & _IS_BEHIND != 0, blanks + 2
    while (further := ~goes & (behind & _CLOSES != 0)).any():  # marks behind marks
        at = at + further
        behind = kinds[at]
        goes |= further & (behind & _IS_BEHIND != 0)
    keep = np.ones(len(raw), np.bool_)
    keep[blanks[goes]] = False
    return np.frombuffer(raw, np.uint8)[keep].tobytes().decode()


def _replaced(text: str, pattern: re.Pattern[str], replacement: Replacement) -> str:
    if not isinstance(replacement, str) or not replacement.startswith("\b"):
        return pattern.sub(replacement, text)
    *before, last = pattern.split(text)
    return "".join([*(part[:-1] + replacement[1:] for part in before), last])


def _heading(match: re.Match[str]) -> str:
    left, name, right = match.groups()
    return f"\n{left.replace(' ', '')} {name} {right.replace(' ', '')}"
