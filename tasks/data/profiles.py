"""Cleaning profiles: what is noise differs by source, so each kind of source has rules of its own.

    text -> characters -> white space -> markup of its kind, PII (by option) -> lines that are none
                 ^----------- again, until nothing changes -----------v
         -> language (by option) -> rules -> text, or the reason to drop it

Filters that suit one source destroy another: C4's rule that a line ends in a full stop drops every
CNN article, its rule on braces all LaTeX, Gopher's on repeated runs four LaTeX papers of five. So
a profile holds the rules that were seen to drop bad text of that kind and next to no good text
(docs/cleaning.md has the figures); duplicates are the next stage's work. A "word" is what stands
between white space.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

from tasks.data import language, markup, pii, quality
from tasks.data.characters import close_up, compose, flatten, normalise, tidy
from tasks.data.rules import Changes, changed, published
from tasks.data.wikitext import restore

_ROUNDS = 16  # what still changes after them is markup in markup, deeper than anybody writes


@dataclass(frozen=True, slots=True)
class Dropped:
    """The document goes, for this reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Profile:
    """How one kind of text is edited, and the rules that a document must keep.

    Attributes:
        edits: take markup away, one after the other; they may have to run again on what they made.
        rules: names (rules.py) and bounds, in the order they are tried.
        prose: whether spaces at the start of a line and in a row mean nothing.
        skip_line: lines that go whole; asked last, and once, for without them nothing new arises.
    """

    edits: tuple[Callable[[str], str], ...]
    rules: Mapping[str, float] = field(default_factory=dict)
    prose: bool = True
    skip_line: Callable[[str], bool] | None = None


_LINES = published("max_duplicate_lines", "max_duplicate_line_characters")
_NGRAMS = [f"max_duplicate_{n}grams" for n in range(5, 11)]
PROFILES: dict[str, Profile] = {
    "plain": Profile((), prose=False),
    "encyclopedia": Profile((markup.encyclopedia,), published("stub", "disambiguation") | _LINES),
    "wikitext": Profile((restore, markup.encyclopedia), published("stub", "gopher_quality")),
    "news": Profile((markup.news,), published("gopher_quality")),
    "web": Profile(
        (markup.web,),
        {"min_alphabetic_words": 0.5}
        | published("max_lorem_ipsum", "max_short_lines", *_NGRAMS)
        | _LINES,
        skip_line=markup.is_furniture,
    ),
    "latex": Profile((markup.latex,), prose=False),
    "dialogue": Profile((markup.dialogue,), _LINES),
    "stories": Profile((markup.stories,), published("gopher_quality") | _LINES),
    "docs": Profile((markup.docs,), published("min_letters"), prose=False),
}


@dataclass(frozen=True)
class Cleaner:
    """What a recipe says about the cleaning of one source.

    Attributes:
        profile: a key of ``PROFILES``.
        min_words: documents with fewer words go (``too_short``).
        rules: changes of the profile's rules; see rules.py.
        languages: ISO 639 codes; a document in another language goes (``language``). None: any.
        mask_pii: see pii.py.
        counts: what was masked in text that stays (``<EMAIL>``: times), and which languages went
            (``de``: documents).
    """

    profile: str = "plain"
    min_words: int = 1
    rules: Changes = field(default_factory=dict)
    languages: tuple[str, ...] = ()
    mask_pii: bool = False
    counts: dict[str, Counter[str]] = field(
        default_factory=lambda: {"masked": Counter(), "languages_dropped": Counter()}
    )

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Cleaner:
        """From the JSON of ``Source.cleaning``."""
        return cls(**{**settings, "languages": tuple(settings["languages"])})

    def clean(self, text: str) -> str | Dropped:
        """Clean one document.

        Returns:
            The text with the least white space that keeps its lines, never empty; or why it goes.
            Cleaning what is returned changes nothing more.
        """
        if 0 < len(text) < 2 * self.min_words - 1 and not text.isspace():
            return Dropped("too_short")  # editing makes no words
        masked: Counter[str] = Counter()
        settled = self._settled(text, masked)
        if settled is None:
            return Dropped("unsettled")
        if not settled.strip():
            return Dropped("empty")
        if len(settled.split(maxsplit=self.min_words)) < self.min_words:
            return Dropped("too_short")
        if self.languages and (found := language.detect(settled)) not in self.languages:
            self.counts["languages_dropped"][found] += 1
            return Dropped("language")
        rule = quality.failed(settled, self._bounds)
        if rule:
            return Dropped(rule)
        self.counts["masked"].update(masked)
        return settled

    def shown(self, text: str) -> str:
        """The text as an account of what was dropped may show it."""
        return pii.mask(text) if self.mask_pii else text

    @cached_property
    def _bounds(self) -> dict[str, float]:
        return changed(PROFILES[self.profile].rules, self.rules)

    def _settled(self, text: str, masked: Counter[str]) -> str | None:
        """The text that editing once more would not change; None where there is no end to it."""
        profile = PROFILES[self.profile]
        text = self._shaped(normalise(text))
        left_alone: dict[Callable[[str], str], str] = {}
        for _ in range(_ROUNDS):
            edited = text
            for edit in profile.edits:
                if left_alone.get(edit) == edited:
                    continue  # and it would do so again
                before, edited = edited, edit(edited)
                if edited == before:
                    left_alone[edit] = before
            if self.mask_pii:
                edited = pii.mask(edited, masked)
            if edited == text:
                break
            text = self._shaped(compose(edited))
        else:
            return None
        if profile.skip_line is None:
            return text
        lines = text.split("\n")
        kept = [line for line in lines if not line or not profile.skip_line(line)]
        return text if len(kept) == len(lines) else tidy("\n".join(kept))

    def _shaped(self, text: str) -> str:
        return close_up(flatten(text)) if PROFILES[self.profile].prose else tidy(text)


@cache
def _plain_cleaner(profile: str, min_words: int) -> Cleaner:
    return Cleaner(profile, min_words)


def clean_text(text: str, profile: str, min_words: int) -> str | Dropped:
    """Clean one document by its profile as it is; see ``Cleaner``."""
    return _plain_cleaner(profile, min_words).clean(text)
