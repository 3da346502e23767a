"""Rows become documents by templates, groups and WikiText's headings, and by nothing else."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.rows import Row, Template, maker
from tasks.errors import UserError
from tasks.recipe import Files, Source

FILES = Files(train=["x.jsonl"])


def rows(*values: dict) -> list[Row]:
    return [Row(value, {"file": "x.jsonl", "line": i + 1}) for i, value in enumerate(values)]


def texts(source: Source, *values: dict) -> list[str]:
    return [text for text, _ in maker(source, "params.yaml: sources.x")(rows(*values))]


def test_a_template_reaches_into_lists_and_mappings() -> None:
    template = Template("Q: {question}\nA: {answers[text][0]}", "here")
    row = rows({"question": "Who?", "answers": {"text": ["Ada"]}})[0]
    assert template.render(row) == "Q: Who?\nA: Ada"


@pytest.mark.parametrize(
    "template",
    [
        "{text.__class__}",
        "{text.__init__.__globals__}",
        "{text!r}",
        "{text:>1000000000}",
        "{text[a].b}",
        "{}",
        "no column",
        "{unclosed",
    ],
)
def test_a_template_may_do_nothing_but_look_up(template: str) -> None:
    with pytest.raises(UserError) as error:
        Template(template, "params.yaml: sources.x.text")
    assert "params.yaml: sources.x.text" in str(error.value)


@given(st.text(max_size=40), st.text(alphabet="{}[].!:_abc0", max_size=20))
def test_a_template_renders_its_row_or_says_why_not(value: str, template: str) -> None:
    """Text of a row is never itself read as a template."""
    assert Template("{text}", "here").render(rows({"text": value})[0]) == value
    with contextlib.suppress(UserError):
        Template(template, "here").render(rows({"a": value, "b": {"c": value}})[0])


def test_a_missing_column_lists_those_that_are_there() -> None:
    with pytest.raises(UserError) as error:
        texts(Source(files=FILES), {"txet": "a", "id": "1"})
    message = str(error.value)
    assert "no column 'text'" in message and "txet, id" in message and "x.jsonl:1" in message
    assert "did you mean {txet}?" in message


@pytest.mark.parametrize("value", [5, True, ["a"], {"a": "b"}])
def test_a_value_that_is_not_text_is_named_with_its_row(value: object) -> None:
    with pytest.raises(UserError, match="x.jsonl:2: text is not text"):
        texts(Source(files=FILES), {"text": "fine"}, {"text": value})


def test_a_null_is_empty_text_and_a_number_is_text_amid_text() -> None:
    assert texts(Source(files=FILES, text="{a}: {n}"), {"a": None, "n": 5}) == [": 5"]


def test_consecutive_rows_that_agree_are_one_document() -> None:
    source = Source(files=FILES, text="{context}", group_by=["context"], each="Q: {q}")
    made = texts(
        source,
        {"context": "One.", "q": "a"},
        {"context": "One.", "q": "b"},
        {"context": "Two.", "q": "c"},
        {"context": "One.", "q": "d"},
    )
    assert made == ["One.\n\nQ: a\n\nQ: b", "Two.\n\nQ: c", "One.\n\nQ: d"]


def wikitext(*lines: str) -> list[tuple[str, dict]]:
    make = maker(Source(files=FILES, regroup="wikitext"), "here")
    return [(text, row.origin) for text, row in make(rows(*({"text": line} for line in lines)))]


def test_wikitext_rows_join_into_articles_at_headings_between_blank_rows() -> None:
    made = wikitext(
        "", " = One = \n", "", " Text . \n", " = = Part = = \n", "", " More . \n",
        "", " = Two ( song ) = \n", "", " = not a heading = \n", " End . \n",
    )  # fmt: skip
    assert [origin.get("title") for _, origin in made] == ["One", "Two ( song )"]
    assert [origin["line"] for _, origin in made] == [2, 9]
    assert "= not a heading =" in made[1][0] and "= = Part = =" in made[0][0]


@given(st.lists(st.sampled_from(["", " = A = \n", " = = B = = \n", " text \n", " = 1 = x = \n"])))
def test_regrouping_loses_no_line(lines: list[str]) -> None:
    joined = "\n".join(text for text, _ in wikitext(*lines))
    kept = [line.strip() for line in joined.split("\n") if line.strip()]
    assert kept == [line.strip() for line in lines if line.strip()]
