"""The four data stages on the planted corpus: all that was planted is found, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.data.assignment import ENOUGH, Rule, Tally, bounds, draw, settled
from tasks.data.clean import clean
from tasks.data.decisions import Decisions
from tasks.data.dedup import dedup
from tasks.data.documents import Document, Writer, content_id, read
from tasks.data.download import download
from tasks.data.split import split
from tasks.errors import BAD_DATA, NO_INPUT, UserError
from tasks.files import read_json, sha256_file
from tasks.ledger import read_ledgers
from tasks.recipe import HeldOut, Recipe, Split
from tasks.workspace import Workspace
from tests.corpus import small_recipe, words, write_corpus
from tests.places import ROOT


def run_all(root: Path, recipe: Recipe) -> Workspace:
    workspace = Workspace(root)
    for source in recipe.sources:
        download(workspace, recipe, source)
        clean(workspace, recipe, source)
    dedup(workspace, recipe)
    split(workspace, recipe)
    return workspace


class Made:
    """A corpus, what was planted in it, and the workspace after the data stages."""

    def __init__(self, root: Path, **sections: Any) -> None:
        self.planted = write_corpus(root / "corpus")
        self.recipe = small_recipe(self.planted["sources"], **sections)
        self.workspace = run_all(root, self.recipe)

    def texts(self, source: str) -> Iterator[str]:
        return (document.text for document in read(self.workspace.documents / source))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("planted"))


def opening(text: str) -> str:
    return " ".join(text.split())[:60]


def test_each_planted_duplicate_and_leak_is_removed_and_nothing_else(made: Made) -> None:
    decisions = pq.read_table(made.workspace.dedup / "decisions.parquet").to_pylist()
    texts = {
        source: {s: [d.text for d in read(made.workspace.clean(source), s)] for s in splits}
        for source, splits in made.planted["documents"].items()
    }
    removed: Counter[tuple[str, str]] = Counter()
    for row in decisions:
        if not row["keep"]:
            assert row["split"] == "train", "held-out text stays"
            removed[row["source"], opening(texts[row["source"]]["train"][row["position"]])] += 1
    planted = Counter(
        (source, opening(text))
        for kind in ("exact", "near", "leaks")
        for source, found in made.planted[kind].items()
        for text in found
    )
    assert removed == planted


def test_the_first_in_order_of_priority_stays(made: Made) -> None:
    table = pq.read_table(made.workspace.dedup / "decisions.parquet").to_pylist()
    for row in (row for row in table if not row["keep"]):
        kept = table[row["cluster"]]
        assert kept["keep"] and kept["id"] == row["kept_id"]
        order = [("test", "validation", "train").index(r["split"]) for r in (kept, row)]
        names = [list(made.recipe.sources).index(r["source"]) for r in (kept, row)]
        assert (order[0], names[0], kept["position"]) < (order[1], names[1], row["position"])
        assert (row["jaccard"] == 1.0) == (row["reason"] == "exact") and row["jaccard"] >= 0.8


def test_decisions_are_shown_beside_what_stays(made: Made) -> None:
    lines = (made.workspace.dedup / "removed.jsonl").read_text().splitlines()
    shown = [json.loads(line) for line in lines]
    kinds = [made.planted[kind] for kind in ("exact", "near", "leaks")]
    assert len(shown) == sum(len(texts) for kind in kinds for texts in kind.values())
    leak = next(line for line in shown if line["kept"]["split"] == "validation")
    assert leak["text"][:20] == leak["kept"]["text"][:20]


@pytest.mark.parametrize("source", ["letters", "notes"])
def test_stubs_go_with_their_reason_and_no_other_document_does(made: Made, source: str) -> None:
    ledger = read_ledgers(made.workspace.clean(source) / "ledger.json")[0]
    reasons = {reason: count.documents for reason, count in ledger.dropped.items()}
    stubs = made.planted["stubs"][source]
    expected = Counter("too_short" if text.strip() else "empty" for text in stubs)
    assert reasons == dict(expected)
    assert ledger.examples["too_short"] == [text for text in stubs if text.strip()]


def test_a_planted_passage_is_cut_from_training_text_or_takes_it_along(made: Made) -> None:
    passage = words(made.planted["passage"])
    runs = {tuple(passage[i : i + 13]) for i in range(len(passage) - 12)}
    for document in read(made.workspace.documents / "letters", "train"):
        own = words(document.text)
        assert not runs & {tuple(own[i : i + 13]) for i in range(len(own) - 12)}
        assert document.id == content_id(document.text)
    ledger = read_ledgers(made.workspace.documents / "letters/ledger.json")[0]
    assert ledger.dropped["contaminated"].documents == 1
    assert (
        ledger.examples["contaminated"][0][:30] == made.planted["contaminated"]["letters"][0][:30]
    )
    assert ledger.notes["documents_cut"] == 1
    assert [run["lost"] for run in ledger.notes["shared_runs"]] == ["the document", "sentences"]
    assert all(words(run["run"]) == passage[:13] for run in ledger.notes["shared_runs"])
    assert all(run["held_out"] == "letters/validation" for run in ledger.notes["shared_runs"])
    rest = made.planted["cut"]["letters"][0].removesuffix(made.planted["passage"]).strip()
    assert rest in set(made.texts("letters"))


def test_official_splits_hold_and_missing_ones_are_made(made: Made) -> None:
    letters = read_ledgers(made.workspace.documents / "letters/ledger.json")[0].notes["splits"]
    written = made.planted["documents"]["letters"]
    assert (letters["validation"], letters["test"]) == (written["validation"], written["test"])
    notes = read_ledgers(made.workspace.documents / "notes/ledger.json")[0].notes["splits"]
    assert notes["validation"] >= 1 and notes["test"] >= 1
    ids = [d.id for d in read(made.workspace.documents / "notes")]
    assert len(set(ids)) == len(ids) == sum(notes.values())


def test_every_document_is_accounted_for_from_stage_to_stage(made: Made) -> None:
    """in = out + dropped holds within each ledger; out of one stage is in of the next."""
    dedups = {
        ledger.source: ledger for ledger in read_ledgers(made.workspace.dedup / "ledger.json")
    }
    for source, written in made.planted["documents"].items():
        ledgers = [
            *read_ledgers(made.workspace.raw(source) / "ledger.json"),
            *read_ledgers(made.workspace.clean(source) / "ledger.json"),
            dedups[source],
            *read_ledgers(made.workspace.documents / source / "ledger.json"),
        ]
        assert ledgers[0].taken.documents == sum(written.values())
        for before, after in pairwise(ledgers):
            assert before.kept == after.taken
        left = list(read(made.workspace.documents / source))
        assert ledgers[-1].kept.documents == len(left)
        assert ledgers[-1].kept.bytes == sum(len(d.text.encode()) for d in left)


def everything(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): sha256_file(p) for p in root.rglob("*") if p.is_file()}


def test_two_runs_give_identical_bytes_and_leave_no_scraps(made: Made, tmp_path: Path) -> None:
    Made(tmp_path)
    first, second = everything(made.workspace.root / "data"), everything(tmp_path / "data")
    assert first == second
    assert not [name for name in first if ".tmp" in name or name.startswith(".")]


def test_switches_of_the_recipe_switch_things_off(tmp_path: Path) -> None:
    made = Made(
        tmp_path,
        dedup={"exact": False, "near": False},
        held_out={"validation": 0.0, "test": 0.0, "decontaminate": False},
    )
    assert not (made.workspace.dedup / "removed.jsonl").read_text()
    letters = read_ledgers(made.workspace.documents / "letters/ledger.json")[0]
    assert letters.taken == letters.kept
    notes = read_ledgers(made.workspace.documents / "notes/ledger.json")[0].notes["splits"]
    assert notes["validation"] == notes["test"] == 0


def test_a_recipe_without_any_held_out_text_splits_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "some words of training text"}) + "\n")
    recipe = small_recipe(
        {"x": {"files": {"train": ["a.jsonl"]}}}, held_out={"validation": 0.0, "test": 0.0}
    )
    assert recipe.held_out.decontaminate
    workspace = run_all(tmp_path, recipe)
    assert [d.split for d in read(workspace.documents / "x")] == ["train"]


# --- the split as a function --------------------------------------------------------------------


def shared_out(n: int, shares: HeldOut, *official: Split) -> dict[int, str]:
    """The split of each of n documents, whose ids are their numbers, tallied in three stretches."""
    rule = bounds(shares, {"train", *official})
    draws = [draw(1, f"id{i}") for i in range(n)]
    tallies = []
    for first, last in pairwise([0, n // 3, n // 2, n]):
        found: dict[Split, Tally] = {}
        for name in (*rule.below, "train"):
            own = [(draws[i], i) for i in range(first, last) if rule.split_of(draws[i]) == name]
            found[name] = Tally(len(own), sorted(own)[:2])
        tallies.append(found)
    final = settled(rule, tallies)
    return {i: final.split_of(draws[i]) for i in range(n)}


def test_shares_are_met_by_chance_and_official_splits_get_nothing_added() -> None:
    shares = HeldOut(validation=0.2, test=0.1)
    made = Counter(shared_out(2000, shares).values())
    assert made["validation"] == pytest.approx(400, abs=60)
    assert made["test"] == pytest.approx(200, abs=45)
    assert set(shared_out(2000, shares, "validation").values()) == {"train", "test"}
    assert set(shared_out(2000, shares, "validation", "test").values()) == {"train"}


def test_a_small_source_holds_out_one_document_and_a_tiny_one_none() -> None:
    shares = HeldOut(validation=0.001, test=0.001)
    least = sorted(range(ENOUGH), key=lambda i: draw(1, f"id{i}"))
    few = shared_out(ENOUGH, shares)
    assert [i for i in few if few[i] == "test"] == least[:1]
    assert [i for i in few if few[i] == "validation"] == least[1:2]
    assert set(shared_out(ENOUGH - 1, shares).values()) == {"train"}


def test_a_split_that_nothing_is_left_for_is_not_made() -> None:
    rule = Rule({"test": 0.9, "validation": 0.95})
    all_test = {"test": Tally(12, [(0.1, 3), (0.2, 4)]), "validation": Tally(0, []), "train": Tally(0, [])}  # fmt: skip
    assert settled(rule, [all_test]).named == {}


def test_a_document_keeps_its_split_when_the_corpus_grows() -> None:
    shares = HeldOut(validation=0.1, test=0.1)
    few, many = shared_out(200, shares), shared_out(500, shares)
    assert few == {i: many[i] for i in range(200)}
    assert draw(1, "id0") != draw(2, "id0")


# --- what is wrong is said ----------------------------------------------------------------------


def test_nothing_left_is_an_error_with_the_counts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "too short"}\n{"text": " "}\n')
    recipe = small_recipe({"x": {"files": {"train": ["a.jsonl"]}, "min_words": 50}})
    download(Workspace(tmp_path), recipe, "x")
    with pytest.raises(UserError) as error:
        clean(Workspace(tmp_path), recipe, "x")
    assert error.value.exit_code == BAD_DATA
    assert "2 documents in, 0 out" in str(error.value) and "1 empty, 1 too_short" in str(
        error.value
    )
    assert not Workspace(tmp_path).clean("x").exists()


def test_training_text_that_is_all_held_out_text_is_an_error(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "the very same words again"}\n')
    recipe = small_recipe({"x": {"files": {"train": ["train.jsonl"], "test": ["test.jsonl"]}}})
    with pytest.raises(UserError, match="no training document is left"):
        run_all(tmp_path, recipe)


def test_a_stage_without_the_one_before_says_what_is_missing(tmp_path: Path) -> None:
    recipe = small_recipe({"x": {"files": {"train": ["a.jsonl"]}}})
    workspace = Workspace(tmp_path)
    for stage in (lambda: clean(workspace, recipe, "x"), lambda: dedup(workspace, recipe)):
        with pytest.raises(UserError, match="is missing") as error:
            stage()
        assert error.value.exit_code == NO_INPUT
    with pytest.raises(UserError, match="decisions.parquet is missing"):
        split(workspace, recipe)


def test_decisions_about_other_documents_are_refused(tmp_path: Path) -> None:
    made = Made(tmp_path)
    clean(made.workspace, small_recipe(made.planted["sources"] | {
        "notes": made.planted["sources"]["notes"] | {"min_words": 160}}), "notes")  # fmt: skip
    with pytest.raises(UserError, match=r"is not what .* was made from"):
        split(made.workspace, made.recipe)
    (made.workspace.dedup / "decisions.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match="is damaged"):
        Decisions(made.workspace.dedup)


# --- documents on disk --------------------------------------------------------------------------


def some_documents(n: int) -> list[Document]:
    return [Document.of(f"text {i} é", "s", "train", "{}") for i in range(n)]


def test_documents_come_back_in_order_from_many_shards(tmp_path: Path) -> None:
    documents = some_documents(50)
    with Writer(tmp_path / "s", shard_bytes=100) as writer:
        for document in documents:
            writer.add(document)
    assert len(list((tmp_path / "s").iterdir())) > 3
    assert list(read(tmp_path / "s")) == documents
    assert list(read(tmp_path / "s", "test")) == []


def write_shards(folder: Path) -> Path:
    with Writer(folder, shard_bytes=200) as writer:
        for document in some_documents(50):
            writer.add(document)
    return folder / "train-00001.parquet"


def test_a_flipped_bit_never_changes_a_document_unnoticed(tmp_path: Path) -> None:
    """Page checksums guard the columns; a bit that changes nothing that is read may flip."""
    documents, path = some_documents(50), write_shards(tmp_path)
    whole = path.read_bytes()
    noticed = 0
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        try:
            assert list(read(tmp_path)) == documents
        except UserError as error:
            assert "train-00001.parquet" in str(error) and error.exit_code == BAD_DATA
            noticed += 1
    assert noticed > len(range(0, len(whole), 7)) / 2


def test_a_cut_shard_and_a_lost_one_are_named(tmp_path: Path) -> None:
    path = write_shards(tmp_path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"train-00001.parquet is damaged"):
        list(read(tmp_path))
    path.unlink()
    with pytest.raises(UserError, match=r"train-00001.parquet is missing"):
        list(read(tmp_path))


def test_a_file_of_other_columns_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "train-00000.parquet")
    with pytest.raises(
        UserError, match=r"has the columns text: string; expected id: string, text:"
    ):
        list(read(tmp_path))


@pytest.mark.parametrize("stage", ["download", "clean", "dedup", "split"])
def test_a_stage_explains_itself_without_heavy_libraries(stage: str) -> None:
    code = (
        "import runpy, sys; sys.argv[1:] = ['--help']\n"
        f"try: runpy.run_module('tasks.data.{stage}', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules, 'datasets' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert "--root" in done.stdout and done.stdout.splitlines()[-1] == "0 False False"


def test_provenance_names_source_licence_and_files(made: Made) -> None:
    provenance = read_json(made.workspace.raw("notes") / "provenance.json")
    assert provenance["license"] == "Apache-2.0" and provenance["source"] == "notes"
    assert provenance["from"]["files"][0]["file"] == "corpus/notes.jsonl"
    assert str(made.workspace.root) not in json.dumps(provenance), "no path of this machine"


def test_bands_that_miss_what_the_threshold_asks_for_are_warned_of(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    dedup(
        made.workspace,
        small_recipe(made.planted["sources"], dedup={"threshold": 0.5, "bands": 14, "rows": 8}),
    )
    assert "find only 5 % of the pairs at dedup.threshold 0.5" in capsys.readouterr().out
    dedup(made.workspace, made.recipe)
    assert "warning" not in capsys.readouterr().out
