"""Names and bounds of the rules on documents; what each measures stands in quality.py.

A name says which way its bound goes (``max_symbols``, ``min_stop_words``) and is the reason in the
ledger. No rule suits every text: which stands in which profile, and at what bound, was chosen by
looking at what each drops of real text (docs/cleaning.md). A recipe changes them for a source:

    rules: {max_symbols: 0.2, max_duplicate_5grams: false, fineweb: true}

- ``gopher_quality``, ``gopher_repetition``: Rae et al. 2021, https://arxiv.org/abs/2112.11446,
  section A.1.1 and table A1
- ``c4``: Raffel et al. 2020, https://arxiv.org/abs/1910.10683, its rules on pages; the one on
  lines, that each ends as a sentence does, would empty most sources
- ``fineweb``: Penedo et al. 2024, https://arxiv.org/abs/2406.17557, section 3.6
"""

from __future__ import annotations

from collections.abc import Mapping

from tasks.errors import nearest

GROUPS: dict[str, dict[str, float]] = {
    "gopher_quality": {
        "min_mean_word": 3,
        "max_mean_word": 10,
        "max_symbols": 0.1,
        "max_bullet_lines": 0.9,
        "max_ellipsis_lines": 0.3,
        "min_alphabetic_words": 0.8,
        "min_stop_words": 2,
    },
    "gopher_repetition": {
        "max_duplicate_lines": 0.3,
        "max_duplicate_paragraphs": 0.3,
        "max_duplicate_line_characters": 0.2,
        "max_duplicate_paragraph_characters": 0.2,
        "max_top_2gram": 0.2,
        "max_top_3gram": 0.18,
        "max_top_4gram": 0.16,
        "max_duplicate_5grams": 0.15,
        "max_duplicate_6grams": 0.14,
        "max_duplicate_7grams": 0.13,
        "max_duplicate_8grams": 0.12,
        "max_duplicate_9grams": 0.11,
        "max_duplicate_10grams": 0.1,
    },
    "c4": {"min_sentences": 3, "max_lorem_ipsum": 0, "max_curly_brackets": 0},
    "fineweb": {
        "min_punctuated_lines": 0.12,
        "max_duplicate_line_characters": 0.1,
        "max_short_lines": 0.67,
    },
}
_OURS: dict[str, float] = {"stub": 1, "disambiguation": 1, "min_letters": 0.5}
# where two papers bound the same thing, the looser bound
PUBLISHED: dict[str, float] = GROUPS["fineweb"] | _OURS | GROUPS["c4"]
PUBLISHED |= GROUPS["gopher_repetition"] | GROUPS["gopher_quality"]

_FLAGS = frozenset(("stub", "disambiguation"))  # a text is one or is not
Changes = Mapping[str, bool | float]  # rule or group -> a bound, or whether it is on


def published(*names: str) -> dict[str, float]:
    """These rules, and those of these groups, at the bounds of their authors."""
    found: dict[str, float] = {}
    for name in names:
        found |= GROUPS.get(name) or {name: PUBLISHED[name]}
    return found


def changed(bounds: Mapping[str, float], changes: Changes) -> dict[str, float]:
    """``bounds`` with a recipe's changes; groups first, so that a rule's own word counts.

    ``true`` is the published bound (or the one there already is), ``false`` takes the rule out.
    """
    found = dict(bounds)
    for name, to in sorted(changes.items(), key=lambda change: change[0] not in GROUPS):
        for rule, bound in published(name).items():
            if to is False:
                found.pop(rule, None)
            elif to is True:
                found[rule] = bound if name in GROUPS else found.get(rule, bound)
            else:
                found[rule] = to
    return found


def check_changes(changes: Changes) -> None:
    """Raise ValueError for a name that is neither rule nor group, or a bound that cannot be."""
    for name, to in changes.items():
        if name not in PUBLISHED and name not in GROUPS:
            guess = nearest(name, [*GROUPS, *PUBLISHED])
            mean = f"did you mean {guess!r}?" if guess else f"there are: {', '.join(PUBLISHED)}"
            raise ValueError(f"rules: there is no rule {name!r}; {mean}")
        if isinstance(to, bool):
            continue
        if name in GROUPS or name in _FLAGS:
            raise ValueError(f"rules.{name} is true or false, got {to}")
        if to < 0:
            raise ValueError(f"rules.{name} is a bound of at least 0 (or true, false), got {to}")
