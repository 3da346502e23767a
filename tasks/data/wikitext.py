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

# a lookbehind stands after what it looks behind: the search then runs to a literal, and fast
_STEPS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.MULTILINE), replacement)
    for pattern, replacement in (
        (r" @([-,.])@ ", r"\1"),
        (r'"(?<!\S") ([^"\n]*?) "(?!\S)', r'"\1"'),
        (r"'(?<!\S')(?<!s ') ([^'\n]{1,80}?) '(?!\S)", r"'\1'"),
        (r"s '(?= )", "s'"),
        (r" '(?=(?:s|t|re|ve|ll|d|m)\b)", "'"),
        (r" ([,.;:!?%)\]}]+)(?=[\s\"')\]}]|$)", r"\1"),
        (r"([(\[{]) ", r"\1"),
        (r"([$£€#]) (?=\d)", r"\1"),
        (r": (?<=\d: )(?=\d\d\b)", ":"),
        (r" – (?<=\d – )(?=\d)", "–"),
        (r" / (?<=\w / )(?=\w)", "/"),
        (r" ° (?=[CF]\b)", " °"),
    )
)
_HEADING = re.compile(r"^ *(=(?: =)*) (\S.*?) (=(?: =)*) *$", re.MULTILINE)


def restore(text: str) -> str:
    """Undo WikiText's tokenisation; headings ``= = Name = =`` become ``== Name ==``."""
    for pattern, replacement in _STEPS:
        text = pattern.sub(replacement, text)
    return _HEADING.sub(_heading, text)


def _heading(match: re.Match[str]) -> str:
    left, name, right = match.groups()
    return f"{left.replace(' ', '')} {name} {right.replace(' ', '')}"
