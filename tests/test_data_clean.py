"""Cleaning takes the noise that each kind of text has, and leaves the rest alone."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.characters import flatten, normalise, repair_mojibake, tidy
from tasks.data.profiles import PROFILES, Dropped, clean_text
from tasks.data.wikitext import restore
from tasks.recipe import Source

LATEX = r"""\documentclass{article}
\usepackage{amsmath} % packages
\begin{document}
% a comment
\section{Limits}
Let $f(x) = \{x : x > 0\}$ be 50\% of it.   % half
\begin{align*}
    a &= b
\end{align*}
\bibliography{refs}
\end{document}
"""


@given(st.text(max_size=200))
def test_normalising_and_tidying_settle_after_one_pass(text: str) -> None:
    once = tidy(normalise(text))
    assert tidy(normalise(once)) == once
    assert unicodedata.is_normalized("NFC", normalise(text))
    assert not any(c in once for c in "\r\0\x0b\x0c\x7f\x85\xa0\u200b\u2028\ufeff")


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=200))
def test_plain_text_is_left_alone(text: str) -> None:
    assert normalise(text) == text
    assert repair_mojibake(text) == text


def test_characters_come_into_one_form() -> None:
    assert normalise("a\r\nb\rc\u2028d\x0ce") == "a\nb\nc\nd\ne"
    assert normalise("it\x92s\xa05\u2009km\u200b\xad\ufeff\x00") == "it’s 5 km"
    assert normalise("e\u0301") == "é"
    assert normalise("می\u200cخواهم") == "می\u200cخواهم", "joiners are spelling"


def test_mojibake_is_turned_back_and_true_letters_stay() -> None:
    assert (
        repair_mojibake("donâ€™t say â€œHi,â€ he said â€“ CafÃ©")
        == "don’t say “Hi,” he said – Café"
    )
    assert repair_mojibake("CAFÉ® São Ângela Â") == "CAFÉ® São Ângela Â"


def test_white_space_is_tidied_and_indentation_kept() -> None:
    assert tidy("\n\n  a  \n\n\n\n\tb \n") == "  a\n\n\tb"
    assert flatten("  a \t b\n   c") == "a b\nc"


@given(st.sampled_from(sorted(PROFILES)), st.text(max_size=300), st.integers(0, 5))
def test_every_profile_takes_any_text(profile: str, text: str, min_words: int) -> None:
    result = clean_text(text, profile, min_words)
    if isinstance(result, Dropped):
        assert result.reason
    else:
        assert result.strip() and len(result.split()) >= min_words


def test_the_recipe_names_exactly_these_profiles() -> None:
    from typing import get_args

    assert set(get_args(Source.model_fields["profile"].annotation)) == set(PROFILES)


@pytest.mark.parametrize("text", ["", " \n\t\n ", "\0\ufeff"])
def test_a_text_of_nothing_is_dropped_as_empty(text: str) -> None:
    assert clean_text(text, "plain", 0) == Dropped("empty")


def test_min_words_counts_words() -> None:
    assert clean_text("one two three", "plain", 3) == "one two three"
    assert clean_text("one two three", "plain", 4) == Dropped("too_short")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Virginia State Route 626 (Wise County)", "stub"),
        ("Mercury\n\nMercury may refer to:", "stub"),
        ("Bryn\n\nBryn is a Welsh name of places.\nBryn may also refer to:", "disambiguation"),
        ("History.\nPlot.\nReferences.", "stub"),
    ],
)
def test_pages_without_an_article_go_with_their_reason(text: str, reason: str) -> None:
    assert clean_text(text, "encyclopedia", 1) == Dropped(reason)


def test_an_extract_of_an_article_loses_what_the_extraction_left() -> None:
    text = (
        "Ada (; born 1815) was a writer () of R&amp;D.&lt;br&gt;\nCareer.\nShe wrote [[note|notes]]."
        "\nSee also.\nExternal links.\n[[Category:Writers]]"
    )
    assert clean_text(text, "encyclopedia", 1) == (
        "Ada (born 1815) was a writer of R&D.\nCareer.\nShe wrote notes."
    )


def test_references_with_prose_below_them_stay() -> None:
    text = "Ada wrote the first program.\nNotes.\nShe published her work under initials alone."
    assert clean_text(text, "encyclopedia", 1) == text


def test_wikitext_gets_its_spelling_back() -> None:
    tokens = (
        ' = M @-@ 82 = \n\n The " broad - band " men \'s 18 @,@ 000 m ( 1 @.@ 5 mi ) run , at 3 : 42 ;'
        " they didn 't stop . \n = = Later years = = \n In 2003 – 04 it cost $ 5 at 9 km / h . \n"
    )
    assert restore(tokens).split("\n")[0] == "= M-82 ="
    assert clean_text(tokens, "wikitext", 1) == (
        "= M-82 =\n\nThe \"broad - band\" men's 18,000 m (1.5 mi) run, at 3:42; they didn't stop."
        "\n== Later years ==\nIn 2003–04 it cost $5 at 9 km/h."
    )


def test_news_loses_agency_marks_and_notices_but_no_line() -> None:
    text = (
        'London (CNN)The minister left. A jet landed in Aden . "No," he said (AP). Check it out: . '
        "The end. All rights reserved. CNN's Ann Lee in Seoul contributed to this report."
    )
    assert clean_text(text, "news", 1) == (
        'The minister left. A jet landed in Aden. "No," he said (AP). Check it out: The end.'
    )
    mail = "By . Ann Lee . PUBLISHED: . 06:00 EST, 21 May 2012 . | . UPDATED: . 07:10 EST, 21 May 2012 . A dog."
    assert clean_text(mail, "news", 1) == "A dog."


def test_latex_keeps_its_formulas_and_loses_its_frame() -> None:
    assert clean_text(LATEX, "latex", 1) == (
        "\\section{Limits}\nLet $f(x) = \\{x : x > 0\\}$ be 50\\% of it.\n"
        "\\begin{align*}\n    a &= b\n\\end{align*}"
    )


def test_web_furniture_goes_and_bad_pages_are_dropped() -> None:
    page = "Title\nAdvertisement\nA first line of text.\nShare this: Facebook\nHistory [ edit ]\n***\nEnd."
    assert clean_text(page, "web", 1) == "Title\nA first line of text.\nHistory\nEnd."
    same = "The very same line of a page's text.\n" * 9
    assert clean_text(same, "web", 1) == Dropped("max_duplicate_5grams")
    assert clean_text("1 2 3 4 5 6 7 8 nine\n" * 9, "web", 1) == Dropped("min_alphabetic_words")


def test_dialogue_loses_labels_without_text_alone() -> None:
    text = "Instruction: Why?\nContext: \nResponse: Because.\nNote:\nit is so."
    assert clean_text(text, "dialogue", 1) == (
        "Instruction: Why?\nResponse: Because.\nNote:\nit is so."
    )


def test_docs_lose_markup_and_keep_examples() -> None:
    text = (
        "Return :class:`~a.b.C` or :meth:`x.y`, and nothing else at all.\n\nNotes\n-----\n.. versionadded:: 3.2\n"
        ".. image:: https://x/badge.svg\n   :target: https://x\n\n>>> f(1)\n    2\n...\n```py\nx\n```"
    )
    assert clean_text(text, "docs", 1) == (
        "Return C or x.y, and nothing else at all.\n\nNotes\n\n>>> f(1)\n    2\n...\n```py\nx\n```"
    )
    assert clean_text("1234567890 == 9876543210", "docs", 1) == Dropped("min_letters")
