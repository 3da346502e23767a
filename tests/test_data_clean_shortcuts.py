"""Cleaning takes shortcuts; each comes out where the plain way does."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import reduce

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.data import characters, markup, quality, wikitext
from tasks.data.characters import close_up, compose, flatten, normalise, repair_mojibake, tidy
from tasks.data.profiles import PROFILES, Cleaner
from tasks.data.quality import RULES, View, failed
from tasks.data.rules import PUBLISHED
from tests.test_data_clean_rules import PIECES

ODD = st.sampled_from(
    ["\r", "\r\n", "\x0c", "\x92", "\x85", "\xa0", "\xad", "\u3000", "\u2028", "\u200b", "\ufeff", "ﬁ",
     "e\u0301", "\u0301", "\u0327", "\u0323", "\u030a", "a", "é", "’", "—", "Å", "Å", "Ω", "ſ", "ǆ",
     "가", "\u1100", "\u1161", "中", "м", "🙂", "\0", "\x1c", " ", "\n"]
)  # fmt: skip
TEXTS = st.lists(PIECES | ODD | st.text(max_size=4), max_size=40).map("".join)
CLEAN = TEXTS.map(lambda text: close_up(flatten(normalise(text))))
MARKS = st.sampled_from(
    [" ", "\n", '"', "'", "s", "t", "a", "B", "5", "42", ":", "–", "/", "°", "C", "@-@", "@,@", ",",
     ".", ")", "]", "(", "[", "$", "£", "=", "= =", "x", "<unk>"]
)  # fmt: skip
TOKENS = st.lists(MARKS, max_size=40).flatmap(
    lambda marks: st.sampled_from(["", " "]).map(lambda between: between.join(marks))
)
LINES = st.lists(
    st.sampled_from(
        ["\n", "\n\n", "  ", "\t", "===", "---", "~~~~", "% note", "50\\% x", "|", "!", "|-", "| style=a",
         "[[File:a]]", "[[a|b]]", "__TOC__", ".. image:: a", ".. |a| image:: b", ":target: x", "![x](y)",
         "[![x", ".. _a: http://b", ".. note::", ".. code-block:: py", "word", "a::", "( ;", "()", "(a"]
    ),
    max_size=25,
).map("".join)  # fmt: skip


@settings(max_examples=150)
@given(TEXTS)
def test_characters_are_normalised_as_if_each_were_looked_up(text: str) -> None:
    plain = "".join(characters._REPLACED.get(c, c) for c in text.replace("\r\n", "\n"))
    assert normalise(text) == unicodedata.normalize("NFC", plain)


def test_everyday_characters_are_in_nfc_whatever_stands_beside_them() -> None:
    for one in characters._EVERYDAY:
        assert not unicodedata.combining(one)
        for beside in "ae’é":
            assert unicodedata.is_normalized("NFC", one + beside + one)


@given(TEXTS)
def test_white_space_is_shaped_as_by_patterns(text: str) -> None:
    ends = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    assert tidy(text) == re.sub(r"\n{3,}", "\n\n", ends).strip("\n")
    single = re.sub("  +", " ", text.replace("\t", " "))
    assert flatten(text) == re.sub("^ | $", "", single, flags=re.MULTILINE)
    assert tidy(flatten(text)) == close_up(flatten(text))


@given(st.lists(st.sampled_from([*"ÃÂâ€™œ“”Ë†é©a .\u2122"]), max_size=20).map("".join))
def test_mojibake_is_found_as_by_its_two_cases(text: str) -> None:
    tail = characters._TAIL
    plain = re.compile(f"[\u00c2-\u00df]{tail}|[\u00e0-\u00ef]{tail}{{2}}")
    repaired = characters._LOST_QUOTE.sub("”", plain.sub(characters._as_utf8, text))
    signed = any(sign in text for sign in ("â€", "Ã", "Â"))
    assert repair_mojibake(text) == (normalise(repaired) if signed else text)


PLAIN_STEPS = [  # every step searches the whole text, in this order
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
]


@settings(max_examples=200)
@given(TOKENS.map(lambda text: close_up(flatten(text))))
def test_wikitext_is_restored_as_by_a_search_for_each_step(text: str) -> None:
    plain = text
    for pattern, replacement in PLAIN_STEPS:
        plain = re.sub(pattern, replacement, plain, flags=re.MULTILINE)
    heading = re.compile(r"^ *(=(?: =)*) (\S.*?) (=(?: =)*) *$", re.MULTILINE)
    plain = heading.sub(lambda m: f"{m[1].replace(' ', '')} {m[2]} {m[3].replace(' ', '')}", plain)
    assert wikitext.restore(text) == plain


@pytest.mark.parametrize("name", ["_WIKI_LINE", "_BADGE", "_DIRECTIVE", "_COMMENT_LINE", "_RULE"])
@settings(max_examples=60)
@given(text=LINES)
def test_a_line_is_found_behind_its_line_feed_as_at_its_start(name: str, text: str) -> None:
    pattern: re.Pattern[str] = getattr(markup, name)
    at_start = "^" + pattern.pattern.removeprefix(r"\n").replace(r"(?=\n|\Z)", "$")
    gone = name in (
        "_COMMENT_LINE",
        "_RULE",
    )  # with its line feed; of the others a blank line stays
    plain = re.sub(at_start + (r"\n?" if gone else ""), "", text, flags=re.MULTILINE)
    found = pattern.sub("" if gone else "\n", "\n" + text)[1:]
    assert tidy(found) == tidy(plain)


@given(LINES | TEXTS)
def test_what_a_guard_leaves_out_could_not_have_matched(text: str) -> None:
    for sign, pattern, _ in wikitext._QUOTE_STEPS + wikitext._REST_STEPS:
        assert sign in text or not pattern.search(text)
    if not markup._HOLLOW.search(text):
        assert not markup._EMPTY_BRACKETS.search(text) and not markup._BRACKET_START.search(text)
    assert markup._OPEN_LABEL.search(text) or not markup._EMPTY_LABEL.search(text)


@settings(max_examples=200)
@given(st.sampled_from(sorted(PROFILES)), st.lists(PIECES | MARKS, max_size=30).map("".join))
def test_editing_settles_as_if_every_edit_ran_in_every_round(profile: str, text: str) -> None:
    kind = PROFILES[profile]
    shaped = (lambda t: tidy(flatten(t))) if kind.prose else tidy
    plain = shaped(normalise(text))
    for _ in range(16):
        edited = reduce(lambda made, edit: edit(made), kind.edits, plain)
        if edited == plain:
            break
        plain = shaped(compose(edited))
    else:
        assert Cleaner(profile)._settled(text, Counter()) is None
        return
    if kind.skip_line:
        plain = tidy("\n".join(line for line in plain.split("\n") if not kind.skip_line(line)))
    assert Cleaner(profile)._settled(text, Counter()) == plain


@settings(max_examples=150)
@given(CLEAN, st.floats(0, 12))
def test_rules_on_words_hold_as_on_the_words_themselves(text: str, bound: float) -> None:
    words, view = text.split(), View(text)
    mean = sum(map(len, words)) / max(1, len(words))
    lettered = sum(any(map(str.isalpha, word)) for word in words)
    stop_words = sum(word.lower() in quality._STOP_WORDS for word in words)
    symbols = sum(map(text.count, ("#", "…", "...")))
    letters = sum(c.isalpha() or c.isspace() for c in text.strip()[:2000])
    assert len(view.words) == len(words)
    for name, holds in {
        "min_mean_word": mean >= bound,
        "max_mean_word": mean <= bound,
        "min_alphabetic_words": lettered >= bound / 12 * len(words),
        "min_stop_words": stop_words >= bound,
        "max_symbols": symbols <= bound / 12 * len(words),
        "min_letters": letters >= bound / 12 * len(text.strip()[:2000]),
    }.items():
        share = name not in ("min_mean_word", "max_mean_word", "min_stop_words")
        assert RULES[name](View(text), bound / 12 if share else bound) == holds, name


@given(st.lists(st.sampled_from(["the", "no", "a1", "1", "…", "of\n", "x.\n\n"]), max_size=80))
def test_the_first_rule_that_is_broken_is_named_and_shares_of_short_texts_are_not_judged(
    words: list[str],
) -> None:
    text = " ".join(words)
    judged = {"stub", "disambiguation", "max_lorem_ipsum", "min_letters"}
    judged |= set(PUBLISHED) if len(words) >= 50 else set()
    broken = [n for n, b in PUBLISHED.items() if n in judged and not RULES[n](View(text), b)]
    assert failed(text, PUBLISHED) == (broken[0] if broken else None)
