"""Real text: every kind of source a recipe uses, and a real leak, from the mirror of the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.data.clean import clean
from tasks.data.dedup import dedup
from tasks.data.documents import read
from tasks.data.download import download
from tasks.data.parquet import parquet_rows
from tasks.data.rows import Row, Template, articles
from tasks.data.shingles import shingles
from tasks.data.split import split
from tasks.ledger import read_ledgers
from tasks.workspace import Workspace
from tests.corpus import small_recipe

ALL = {"train": "train", "validation": "validation", "test": "test"}


def hub(id_: str, config: str = "default", **splits: str) -> dict[str, Any]:
    return {
        "id": id_,
        "config": config,
        "revision": "0" * 40,
        "splits": splits or {"train": "train"},
    }


WIKITEXT = {
    "hub": hub("Salesforce/wikitext", "wikitext-103-raw-v1", **ALL),
    "regroup": "wikitext",
    "profile": "wikitext",
}
SOURCES: dict[str, tuple[dict[str, Any], int, str]] = {
    # name: source, documents it holds at least, words that stand in the cleaned text
    "wikitext": (WIKITEXT | {"max_bytes": 1_000_000}, 140, "= Homarus gammarus ="),
    "wikipedia": (
        {
            "hub": hub("wikimedia/wikipedia", "20231101.en"),
            "text": "{title}\n\n{text}",
            "profile": "encyclopedia",
            "min_words": 20,
            "max_bytes": 1_000_000,
        },
        100,
        "Harrow International School Shanghai is a British international boarding",
    ),
    "cnn": (
        {
            "hub": hub("abisee/cnn_dailymail", "3.0.0", **ALL),
            "text": "{article}",
            "profile": "news",
            "max_bytes": 300_000,
        },
        250,
        "In September 2002, then-former Israeli Prime Minister",
    ),
    "stories": (
        {"hub": hub("roneneldan/TinyStories", train="train", validation="validation"),
         "profile": "stories", "max_bytes": 300_000},
        200,
        "Max and Mom were at the park together one day.",
    ),
    "openwebtext": (
        {"hub": hub("Skylion007/openwebtext", "plain_text"), "profile": "web", "max_bytes": 300_000},
        50,
        "No law bans “Mein Kampf” in Germany",
    ),
    "fineweb": (
        {"hub": hub("HuggingFaceFW/fineweb-edu", "sample-10BT"), "profile": "web",
         "max_bytes": 300_000},
        25,
        "Latest Amelia Earhart search falls short",
    ),
    "arxiv": (
        {"hub": hub("togethercomputer/RedPajama-Data-1T", "arxiv"), "profile": "latex",
         "max_bytes": 1_000_000},
        5,
        "\\section{Introduction}",
    ),
    "dolly": (
        {
            "hub": hub("databricks/databricks-dolly-15k"),
            "text": "Instruction: {instruction}\nContext: {context}\nResponse: {response}",
            "profile": "dialogue",
            "max_bytes": 300_000,
        },
        500,
        "Instruction: When did Virgin Australia start operating?\nResponse: Virgin Australia",
    ),
    "squad": (
        {
            "hub": hub("rajpurkar/squad", "plain_text", train="train", validation="validation"),
            "text": "{context}",
            "group_by": ["context"],
            "each": "Question: {question}\nAnswer: {answers[text][0]}",
            "profile": "dialogue",
        },
        246,
        "\n\nQuestion: How many points did the Panthers defense surrender?\nAnswer: 308\n\nQuestion:",
    ),
}  # fmt: skip


@pytest.fixture
def workspace(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("PHASEWISE_HUB", str(mirror))
    return Workspace(tmp_path)


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_each_kind_of_source_comes_out_as_clean_documents(workspace: Workspace, name: str) -> None:
    source, at_least, words = SOURCES[name]
    recipe = small_recipe({name: source})
    download(workspace, recipe, name)
    clean(workspace, recipe, name)
    cleaned = list(read(workspace.clean(name)))
    ledger = read_ledgers(workspace.clean(name) / "ledger.json")[0]
    assert ledger.taken.documents >= at_least
    assert any(words in document.text for document in cleaned)
    dropped = ledger.taken.documents - ledger.kept.documents
    limit = 0.75 if name == "wikipedia" else 0.05  # of Wikipedia's pages most are redirects
    assert dropped <= limit * ledger.taken.documents, "a filter destroys this source"
    assert ledger.edited_bytes <= 0.05 * ledger.taken.bytes


def test_wikitext_has_sixty_articles_in_each_held_out_split(workspace: Workspace) -> None:
    recipe = small_recipe({"wikitext": WIKITEXT | {"max_bytes": 100_000}})
    download(workspace, recipe, "wikitext")
    clean(workspace, recipe, "wikitext")
    for name, first in (("validation", "Homarus gammarus"), ("test", "Robert Boulter")):
        articles = list(read(workspace.clean("wikitext"), name))  # type: ignore[arg-type]
        assert len(articles) == 60
        assert json.loads(articles[0].origin)["title"] == first
        assert not any(" @-@ " in article.text or " , " in article.text for article in articles)


@pytest.fixture
def leaking(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """WikiText with some of its training articles: one in fifty, and every one whose title is also
    a held-out article's."""
    ours, theirs = tmp_path / "mirror", mirror
    folder = Path("Salesforce/wikitext/wikitext-103-raw-v1")
    (ours / folder).mkdir(parents=True)
    held_out: set[str | None] = set()
    paths = sorted((theirs / folder).glob("*.parquet"))
    for path in sorted(paths, key=lambda path: path.name.startswith("train")):  # held-out first
        rows = [Row(values, {}) for _, values in parquet_rows(path)]
        made = [
            (text, row.origin.get("title")) for text, row in articles(rows, Template("{text}", ""))
        ]
        if path.name.startswith("train"):
            made = [(text, t) for i, (text, t) in enumerate(made) if i % 50 == 0 or t in held_out]
        else:
            held_out |= {title for _, title in made}
        lines = [line for text, _ in made for line in ["", *text.split("\n")]]
        pq.write_table(pa.table({"text": lines}), ours / folder / path.name)
    monkeypatch.setenv("PHASEWISE_HUB", str(ours))
    return Workspace(tmp_path)


def test_a_real_leak_from_wikitexts_held_out_articles_is_found_and_removed(
    leaking: Workspace,
) -> None:
    """The mirror's training split holds articles of the validation and test splits, extracted at
    another time by another program, so they are near duplicates and shared passages."""
    recipe = small_recipe({"wikitext": WIKITEXT})
    download(leaking, recipe, "wikitext")
    clean(leaking, recipe, "wikitext")
    dedup(leaking, recipe)
    split(leaking, recipe)
    table = pq.read_table(leaking.dedup / "decisions.parquet").to_pylist()
    leaks = [(row, table[row["cluster"]]) for row in table if not row["keep"]]
    assert leaks and all(row["split"] == "train" for row, _ in leaks)
    assert {kept["split"] for _, kept in leaks} <= {"validation", "test"}
    documents = list(read(leaking.documents / "wikitext"))
    runs = {
        held: np.unique(
            shingles([d.text for d in documents if (d.split != "train") == held], 13).hashes
        )
        for held in (True, False)
    }
    assert not np.intersect1d(runs[True], runs[False]).size
    ledger = read_ledgers(leaking.documents / "wikitext/ledger.json")[0]
    assert ledger.notes["splits"]["validation"] == ledger.notes["splits"]["test"] == 60
    assert ledger.notes["documents_cut"] or "contaminated" in ledger.dropped
