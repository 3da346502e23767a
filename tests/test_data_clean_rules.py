"""Rules on documents: what each measures, where it stands, and how a recipe changes it."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tasks.data.characters import normalise, repair_mojibake
from tasks.data.profiles import PROFILES, Cleaner, Dropped
from tasks.data.quality import RULES, View, failed
from tasks.data.repetition import Runs, repeated
from tasks.data.rules import GROUPS, PUBLISHED, changed, published
from tasks.data.words import Words
from tasks.errors import UserError
from tests.corpus import small_recipe, story

PIECES = st.sampled_from(
    ["<b>", "</b>", "<", "&amp;", "&lt;", "[[", "]]", "|", "(;", " (", ")", " .", "\n", "\n\n", "\t",
     "  ", "%", "\\%", "â€", "™", "Ã", "©", "Â", "\xa0", "\xad", "e", "\u0301", "\u200b", "ﬁ", "@-@",
     '"', " '", "s '", " [ edit ]", "Share", "References", "By . ", "PUBLISHED: . ", "(CNN)", ":a:`b`",
     "Context:", "|endoftext|", "<|", ">", "= = ", " =", " – ", "5", "$ 5", ".. note::", "---", "word.",
     "a@b.org", "212-555-0187", "+44 20 7946 0958", "203.0.113.7", "4111 1111 1111 1111", "CNN", "'s "]
)  # fmt: skip
WORDS = st.lists(
    st.sampled_from(
        ["ab", "cd", "ef", "ab,", "a", "a-longer-word-than-the-others", "a-longer-word", "é"]
    ),
    max_size=60,
)


@settings(max_examples=150)
@given(st.sampled_from(sorted(PROFILES)), st.lists(PIECES, max_size=30).map("".join), st.booleans())
def test_cleaning_what_is_clean_changes_nothing(profile: str, text: str, mask: bool) -> None:
    cleaner = Cleaner(profile, min_words=0, mask_pii=mask)
    once = cleaner.clean(text)
    assume(isinstance(once, str))
    assert cleaner.clean(str(once)) == once


def test_markup_in_markup_without_end_is_dropped_and_not_looped_over() -> None:
    assert Cleaner("docs", 0).clean("<b" * 40 + ">" * 40 + " word") == Dropped("unsettled")


def test_ligatures_accents_and_double_mojibake_come_into_one_form() -> None:
    assert normalise("e\u200b\u0301ﬁnal oﬃce x² ½") == "éfinal office x² ½"
    assert Cleaner("web").clean("itÃ¢â‚¬â„¢s one line of text") == "it’s one line of text"
    assert repair_mojibake("Ã\xa0 la carte") == "à la carte"


def test_every_name_has_a_measure_and_every_profile_uses_names_that_exist() -> None:
    assert set(RULES) == set(PUBLISHED)
    for profile in PROFILES.values():
        assert set(profile.rules) <= set(PUBLISHED)


def covered(words: list[str], n: int) -> float:
    """The definition, slowly: the share of bytes in runs that stood before."""
    seen, hit = set(), set()
    for start in range(len(words) - n + 1):
        run = tuple(words[start : start + n])
        hit |= set(range(start, start + n)) if run in seen else set()
        seen.add(run)
    size = [len(word.encode()) + 1 for word in words]
    return sum(size[i] for i in hit) / max(1, sum(size))


def top(words: list[str], n: int) -> float:
    runs = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    most = max((runs.count(run) for run in runs), default=0)
    size = max((len(" ".join(r).encode()) + 1 for r in runs if runs.count(r) == most), default=0)
    return most * size / sum(len(w.encode()) + 1 for w in words) if most > 1 else 0.0


@given(WORDS, st.integers(2, 10), st.floats(0, 1))
def test_repeated_runs_are_what_their_definition_says(
    words: list[str], n: int, bound: float
) -> None:
    runs, share = Runs(Words(" ".join(words))), covered(words, n) if len(words) > n else 0.0
    assume(abs(share - bound) > 1e-9)
    assert runs.duplicates_within(n, bound) == (share <= bound)


@given(WORDS, st.integers(2, 4), st.floats(0, 1))
def test_the_top_run_is_what_its_definition_says(words: list[str], n: int, bound: float) -> None:
    share = top(words, n) if len(words) > n else 0.0
    assume(abs(share - bound) > 1e-9)
    assert Runs(Words(" ".join(words))).top_within(n, bound) == (share <= bound)


@given(WORDS)
def test_the_order_in_which_runs_are_asked_for_does_not_matter(words: list[str]) -> None:
    bounds = [(n, 0.2 - n / 100) for n in range(5, 11)]
    shared = Runs(Words(" ".join(words)))
    answers = [shared.duplicates_within(n, bound) for n, bound in bounds]
    assert answers == [
        Runs(Words(" ".join(words))).duplicates_within(n, bound) for n, bound in bounds
    ]


def test_repeated_pieces_are_the_later_ones() -> None:
    assert repeated(["a", "bb", "bb", "a", "bb"]) == (3, 5)


GOOD = story(1, 12)
BAD = {
    "min_mean_word": "a b c it is x of the y " * 9,
    "max_mean_word": "the of thisisnotawordbutaverylongstringofletters anotherofthosestringsofletters " * 20,
    "max_symbols": "#tag and more ... of the " * 12,
    "max_bullet_lines": "\n".join(f"- point {story(i, 1)}" for i in range(9)),
    "max_ellipsis_lines": "\n".join(f"{story(i, 1)}..." for i in range(9)),
    "min_alphabetic_words": "12 | 14 | 19 | of the cells\n" * 12,
    "min_stop_words": " ".join(f"gibber{i}" for i in range(60)),
    "max_duplicate_lines": "\n".join(["A line.", story(1, 4)] * 5),
    "max_duplicate_line_characters": "\n".join([story(1, 4)] * 3),
    "max_duplicate_paragraphs": "\n\n".join([story(1, 4)] * 3),
    "max_duplicate_paragraph_characters": "\n\n".join([story(1, 4)] * 3),
    **{f"max_top_{n}gram": "buy cheap red shoes " * 20 for n in (2, 3, 4)},
    **{f"max_duplicate_{n}grams": f"{GOOD} {GOOD}" for n in range(5, 11)},
    "min_sentences": GOOD.replace(".", " "),
    "max_lorem_ipsum": f"{GOOD} Lorem ipsum dolor",
    "max_curly_brackets": GOOD + " {",
    "min_punctuated_lines": "\n".join(story(i, 1)[:-1] for i in range(9)),
    "max_short_lines": "\n".join(["home", "about us", "contact", story(3, 1)] * 20),
    "min_letters": "1234 5678 " * 30 + "====" * 200,
    "stub": "A title of many words that ends as no sentence does " * 6,
    "disambiguation": f"Rye may refer to:\n{story(1, 9)}",
}  # fmt: skip


@pytest.mark.parametrize("rule", sorted(PUBLISHED))
def test_a_rule_drops_what_it_is_for_and_keeps_a_story(rule: str) -> None:
    bounds = published(rule)
    assert failed(BAD[rule], bounds) == rule
    assert failed(GOOD, bounds) is None


def test_a_measure_at_its_bound_holds() -> None:
    view = View("one two #three four\n- five six seven eight nine ten")
    assert RULES["max_symbols"](view, 1 / 11) and not RULES["max_symbols"](view, 1 / 12)
    assert RULES["max_bullet_lines"](view, 0.5) and not RULES["max_bullet_lines"](view, 0.4)


def test_shares_of_short_texts_are_not_judged() -> None:
    assert failed("no no no no no no no no", published("gopher_repetition")) is None


def test_a_recipe_changes_rules_and_groups_and_a_rule_counts_before_its_group() -> None:
    base = {"max_symbols": 0.3, "stub": 1.0}
    assert changed(base, {}) == base
    assert changed(base, {"stub": False}) == {"max_symbols": 0.3}
    assert changed(base, {"max_symbols": 0.2})["max_symbols"] == 0.2
    assert changed(base, {"max_symbols": True})["max_symbols"] == 0.3, "on is what it was"
    assert changed({}, {"fineweb": True}) == GROUPS["fineweb"]
    both = changed(base, {"max_symbols": 0.5, "gopher_quality": True})
    assert both["max_symbols"] == 0.5 and both["min_stop_words"] == 2
    assert "max_symbols" not in changed(base, {"gopher_quality": False})


def test_a_source_says_which_rules_it_changes() -> None:
    source = {"files": {"train": ["*.txt"]}, "profile": "web"}
    heads = [line for i in range(20) for line in (f"item {i}", f"part {i}", f"end {i}")]
    text = "\n".join([*heads, *story(3).split("\n\n")])
    assert Cleaner("web").clean(text) == Dropped("max_short_lines")
    recipe = small_recipe({"a": source | {"rules": {"max_short_lines": False}}})
    assert isinstance(Cleaner.of(recipe.sources["a"].cleaning).clean(text), str)


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({"max_symbol": 0.2}, "did you mean 'max_symbols'?"),
        ({"gopher": True}, "there is no rule 'gopher'"),
        ({"c4": 0.5}, "rules.c4 is true or false, got 0.5"),
        ({"stub": 2}, "rules.stub is true or false"),
        ({"max_symbols": -1}, "a bound of at least 0"),
        ({"max_symbols": "low"}, "sources.a.rules.max_symbols"),
    ],
)
def test_a_rule_that_cannot_be_is_an_error_with_the_nearest_name(
    rules: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says.replace("?", "\\?")):
        small_recipe({"a": {"files": {"train": ["*.txt"]}, "rules": rules}})


def test_good_text_of_each_kind_is_kept_by_its_profile() -> None:
    """No rule of a profile drops plain stories, whatever their length."""
    draw = random.Random(0)
    for profile in PROFILES:
        for _ in range(20):
            text = story(draw.randrange(10**6), draw.randrange(2, 40))
            assert isinstance(Cleaner(profile).clean(text), str), profile
