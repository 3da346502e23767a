"""Clusters across the stages: what is chained by near duplicates is never torn apart by a split."""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq
import pytest

from tasks.data.dedup import dedup
from tasks.data.documents import Document, Writer, read
from tasks.data.shingles import shingles
from tasks.data.split import split
from tasks.ledger import read_ledgers
from tasks.recipe import Recipe, Split
from tasks.workspace import Workspace
from tests.corpus import small_recipe, story

FAMILIES = 60


def chain(number: int) -> tuple[str, str, str]:
    """Two ends that are not near duplicates, and a middle that is one of both."""
    middle = story(number, sentences=14).split(" ")
    first, last = list(middle), list(middle)
    first[:12] = [f"first{number}x{i}" for i in range(12)]
    last[-12:] = [f"last{number}x{i}" for i in range(12)]
    return " ".join(first), " ".join(middle), " ".join(last)


def similarity(a: str, b: str) -> float:
    first, second = (set(shingles([text], 5).hashes.tolist()) for text in (a, b))
    return len(first & second) / len(first | second)


def clean(workspace: Workspace, source: str, documents: list[tuple[str, Split]]) -> None:
    with Writer(workspace.clean(source)) as writer:
        for text, name in documents:
            writer.add(Document.of(text, source, name, "{}"))


def recipe_of(**sections: Any) -> Recipe:
    source = {"files": {"train": ["a.jsonl"]}}
    return small_recipe({"a": source, "b": source}, **sections)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("clusters"))


def test_a_chain_has_two_ends_that_may_both_stay() -> None:
    first, middle, last = chain(0)
    assert min(similarity(first, middle), similarity(middle, last)) >= 0.8
    assert similarity(first, last) < 0.8


def test_a_made_split_leaves_a_chain_whole(workspace: Workspace) -> None:
    chains = [chain(number) for number in range(FAMILIES)]
    clean(workspace, "a", [(first, "train") for first, _, _ in chains])
    clean(workspace, "b", [(text, "train") for _, *rest in chains for text in reversed(rest)])
    shares = {"validation": 0.2, "test": 0.2, "decontaminate": False}
    dedup(workspace, recipe_of())
    split(workspace, recipe_of(held_out=shares))
    rows = pq.read_table(workspace.dedup / "decisions.parquet").to_pylist()
    assert [row["reason"] for row in rows] == [""] * FAMILIES + ["", "near"] * FAMILIES
    for number in range(FAMILIES):
        first, last, middle = rows[number], *rows[FAMILIES + 2 * number :][:2]
        assert first["cluster"] == last["cluster"] == middle["cluster"] == number
        assert {row["cluster_id"] for row in (first, last, middle)} == {first["id"]}
        assert middle["kept_id"] == first["id"] and middle["jaccard"] >= 0.8
    goes_to = {d.text: d.split for source in "ab" for d in read(workspace.documents / source)}
    assert len(goes_to) == 2 * FAMILIES and len(set(goes_to.values())) == 3
    for first, _, last in chains:
        assert goes_to[first] == goes_to[last]


def test_training_text_under_the_threshold_to_held_out_text_stays(workspace: Workspace) -> None:
    """It is booked: beside held-out text, in one cluster with it, and not a duplicate of it."""
    first, middle, last = chain(0)
    held: list[tuple[str, Split]] = [(first, "test")]
    clean(workspace, "a", [*held, (last, "train"), (middle, "train"), (story(900), "train")])
    clean(workspace, "b", [(story(901), "train")])
    dedup(workspace, recipe_of())
    rows = pq.read_table(workspace.dedup / "decisions.parquet").to_pylist()
    assert [row["keep"] for row in rows] == [True, True, False, True, True]
    ledger = read_ledgers(workspace.dedup / "ledger.json")[0]
    assert ledger.notes["leaks"] == 1 and ledger.notes["beside_held_out"] == 1
