"""The picture of the text's way keeps what the ledgers keep: nothing appears, nothing is lost."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from tasks.ledger import Ledger
from tasks.report.account import Account, Draw, SourceAccount, as_facts
from tasks.report.flow import MOST_REASONS, flow_of
from tasks.report.sankey import NARROW, WIDE, picture

STAGES = ("download", "clean", "dedup", "split", "encode")
names = st.sampled_from(
    ["web", "books", "a-source-with-a-very-long-name-indeed", "code", "x & <y>"]
)
reasons = st.dictionaries(
    st.sampled_from([f"reason_{n}" for n in range(9)]), st.integers(1, 400), max_size=9
)


@st.composite
def accounts(draw: st.DrawFn) -> dict[str, Any]:
    """A ledger that balances, of any sources, with any drops."""
    sources = []
    for name in draw(st.lists(names, min_size=1, max_size=5, unique=True)):
        left, books = draw(st.integers(1, 10**7)), []
        for stage in STAGES:
            book = Ledger(stage, name)
            rest = left
            for reason, share in draw(reasons).items() if stage != "encode" else ():
                if gone := rest * share // 2000:
                    book.drop(reason, "text", gone)
                    rest -= gone
            edited = rest // draw(st.integers(3, 900)) if stage == "clean" else 0
            book.keep(rest, rest - edited)
            books.append(book)
            left = rest - edited
        held = left // 50
        splits = {
            "train": {"tokens": left // 4, "documents": 9, "text_bytes": left - 2 * held},
            "validation": {"tokens": held // 4, "documents": 1, "text_bytes": held},
            "test": {"tokens": held // 4, "documents": 1, "text_bytes": held},
        }
        drawn = {p: Draw(draw(st.integers(0, 10**6)), 1.5) for p in ("phase1", "phase2")}
        sources.append(SourceAccount(name, books, splits, drawn))
    return as_facts(Account(sources))


@given(accounts())
def test_what_comes_in_goes_on_or_leaves_with_a_reason(ledger: dict[str, Any]) -> None:
    flow = flow_of(ledger)
    for node in flow.nodes:
        for source in flow.sources:
            gone = sum(exit_.parts.get(source, 0) for exit_ in node.exits)
            assert node.taken[source] == node.kept[source] + gone, (node.title, source)
        assert len(node.exits) <= MOST_REASONS + 1 + 3, "reasons, edits, held-out text"
    for before, after in zip(flow.nodes, flow.nodes[1:], strict=False):
        assert before.kept == after.taken
    for phase in flow.phases:
        drawn = {name: s["drawn"][phase.label]["tokens"] for name, s in ledger["sources"].items()}
        assert phase.parts == {name: tokens for name, tokens in drawn.items() if tokens}


@given(accounts())
def test_both_pictures_are_whole_and_stay_in_their_frame(ledger: dict[str, Any]) -> None:
    found = ElementTree.fromstring(f"<div>{picture(ledger)}</div>")
    assert [svg.get("class") for svg in found] == ["flow across", "flow down"]
    for svg, width in zip(found, (WIDE, NARROW), strict=True):
        left, top, right, bottom = map(float, (svg.get("viewBox") or "").split())
        assert (left, top, right) == (0, 0, width)
        texts = "".join(text.text or "" for text in svg.iter("text"))
        for word in ("download", "training text", "phase1", "phase2"):
            assert word in texts
        for path in svg.iter("path"):
            numbers = [float(n) for n in re.findall(r"-?[\d.]+", path.get("d") or "")]
            assert numbers and min(numbers) >= -0.5 and max(numbers) <= max(right, bottom) + 1
        for text in svg.iter("text"):
            assert 0 <= float(text.get("y") or -1) <= bottom
            assert 0 <= float(text.get("x") or -1) <= right


def test_small_reasons_are_told_together() -> None:
    book = Ledger("clean", "web")
    book.keep(1000)
    for number in range(9):
        book.drop(f"reason_{number}", "text", 10 * (number + 1))
    node = flow_of(as_facts(Account([SourceAccount("web", [book], {}, {})]))).nodes[0]
    assert [exit_.label for exit_ in node.exits] == [
        "reason 8", "reason 7", "reason 6", "reason 5", "5 other reasons",
    ]  # fmt: skip
    assert node.exits[-1].size == 10 + 20 + 30 + 40 + 50


def test_where_no_text_came_in_there_is_no_picture() -> None:
    empty = Account([SourceAccount("web", [Ledger("download", "web")], {}, {})])
    assert picture(as_facts(empty)) == ""
