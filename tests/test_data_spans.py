"""Repeated passages: all are found, the first place stays, the cut is clean and booked."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tasks import shardwise
from tasks.data import bands, spans
from tasks.data.bands import flush, mapped
from tasks.data.dedup import dedup
from tasks.data.documents import Document, Writer, read, shards
from tasks.data.repeats import FILE, repeats_of
from tasks.data.shingles import Shingles
from tasks.data.spans import find_repeats, runs_of, winnowed
from tasks.data.split import split
from tasks.data.texts import shard_part
from tasks.errors import UserError
from tasks.files import sha256_file
from tasks.ledger import Ledger, read_ledgers
from tasks.recipe import Recipe, Split
from tasks.settings import settings
from tasks.shardwise import work_folder
from tasks.workspace import Workspace
from tests.corpus import small_recipe, story, words
from tests.places import ROOT

PARTS: tuple[Split, ...] = ("test", "validation", "train")


def passage(count: int, seed: str = "passage") -> str:
    """So many words in sentences of twenty; another seed shares no run with it."""
    draw = random.Random(seed)
    made = [f"{draw.randrange(16**4):04x}" for _ in range(count)]
    return " ".join(" ".join(made[i : i + 20]) + "." for i in range(0, count, 20))


# --- what is found ------------------------------------------------------------------------------


def quadratic(texts: list[str], n: int, train: int) -> list[tuple[int, int, int]]:
    """Every run of n words against each one before it, by the definition."""
    runs = [
        (number, start, tuple(own[start : start + n]))
        for number, own in enumerate(map(words, texts))
        for start in range(len(own) - n + 1)
    ]
    found: list[tuple[int, int, int]] = []
    for i, (number, start, run) in enumerate(runs):
        if number >= train and any(
            run == other and (number != there or start >= first + n)
            for there, first, other in runs[:i]
        ):
            if found and found[-1][0] == number and found[-1][2] >= start:
                found[-1] = (number, found[-1][1], start + n)
            else:
                found.append((number, start, start + n))
    return found


def found_in(folder: Path, texts: list[str], n: int, train: int) -> list[tuple[int, ...]]:
    """What the engine finds, with the texts in shards of a few documents."""
    with Writer(folder / "texts", shard_bytes=200) as writer:
        for text in texts:
            writer.add(Document.of(text, "s", "train", "{}"))
    paths = shards(folder / "texts")["train"]
    parts = [shard_part(path) for path in paths]
    keep = mapped(folder / "keep.npy", len(texts), bool)
    keep[:] = True
    flush(keep)
    counts = [sum(1 for _ in spans.texts(part)) for part in parts]
    with work_folder(folder / "work") as work:
        found = find_repeats(
            parts, counts, [1] * len(parts), words=n, train=train, keep=folder / "keep.npy",
            work=work, key=0,
        )  # fmt: skip
        return [tuple(row) for _, rows in found for row in rows.tolist()]


@hypothesis_settings(max_examples=25, deadline=None)
@given(
    texts=st.lists(st.lists(st.sampled_from("abcd"), max_size=40), min_size=1, max_size=6),
    n=st.integers(4, 9),
    train=st.integers(0, 2),
    small=st.booleans(),
)
def test_the_passages_are_those_of_the_quadratic_search(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[list[str]],
    n: int,
    train: int,
    small: bool,
) -> None:
    joined = [" ".join(text) for text in texts]
    with pytest.MonkeyPatch.context() as patch:
        if small:  # many files a part, many ranges of keys
            patch.setattr(spans, "RUN", 15)
            patch.setattr(bands, "RANGE", 10)
        found = found_in(tmp_path_factory.mktemp("spans"), joined, n, train)
    assert found == quadratic(joined, n, train)


@hypothesis_settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    length=st.integers(20, 60),
    before=st.integers(0, 300),
    after=st.integers(0, 300),
)
def test_two_texts_that_share_a_run_share_a_sampled_one(
    seed: int, length: int, before: int, after: int
) -> None:
    draw = random.Random(seed)
    shared = [draw.randrange(2**64) for _ in range(length)]
    sampled = []
    for count in (before, after):
        around = [[draw.randrange(2**64) for _ in range(count)] for _ in range(2)]
        hashes = np.array([*around[0], *shared, *around[1]], np.uint64)
        chosen = winnowed(Shingles(hashes, np.array([0, len(hashes)])), 20)
        assert np.diff(chosen).max(initial=0) <= 20, "no gap is longer than a run"
        sampled.append(set(hashes[chosen].tolist()))
    assert sampled[0] & sampled[1] & set(shared)


def test_two_runs_are_equal_in_both_hashes_or_in_none() -> None:
    block = [f"{passage(30)} {passage(40, 'x')}", f"{passage(20, 'y')} {passage(30)}", passage(30)]
    keys, bounds = runs_of(block, 30)
    assert bounds.tolist() == [0, 41, 62, 63]
    same = (keys[0] == keys[bounds[1] + 20]) & (keys[0] == keys[bounds[2]])
    assert same.all()
    for column in range(2):
        assert len(set(keys[:, column].tolist())) == len(keys) - 2


# --- what is cut --------------------------------------------------------------------------------


def workspace_of(root: Path, texts: dict[tuple[str, Split], list[str]]) -> Workspace:
    """A workspace as the clean stage leaves it."""
    workspace = Workspace(root)
    for source in dict.fromkeys(source for source, _ in texts):
        with Writer(workspace.clean(source)) as writer:
            for name in PARTS:
                for text in texts.get((source, name), []):
                    writer.add(Document.of(text, source, name, "{}"))
    return workspace


def recipe_of(span_words: int | None, *sources: str, decontaminate: bool = False) -> Recipe:
    return small_recipe(
        {source: {"files": {"train": ["*.txt"]}} for source in sources},
        dedup={"span_words": span_words} if span_words else {},
        held_out={"validation": 0, "test": 0, "decontaminate": decontaminate},
    )


def run(workspace: Workspace, recipe: Recipe) -> dict[str, Ledger]:
    dedup(workspace, recipe)
    split(workspace, recipe)
    return {
        source: read_ledgers(workspace.documents / source / "ledger.json")[0]
        for source in recipe.sources
    }


def texts_of(workspace: Workspace, source: str, name: Split = "train") -> list[str]:
    return [document.text for document in read(workspace.documents / source, name)]


def around(number: int, middle: str) -> str:
    """A passage in a text of its own: no word beside the passage stands beside it elsewhere."""
    return f"{story(number)} Part {number}.\n\n{middle}\n\n{number} goes on. {story(number + 1000)}"


def bare(number: int) -> str:
    """What is left when the passage is cut."""
    return f"{story(number)} Part {number}.\n\n{number} goes on. {story(number + 1000)}"


def test_a_passage_in_three_documents_of_two_sources_is_cut_from_two(tmp_path: Path) -> None:
    planted = passage(150)
    texts: dict[tuple[str, Split], list[str]] = {
        ("one", "train"): [bare(1), around(2, planted), bare(3), around(4, planted)],
        ("two", "train"): [around(5, planted), bare(6)],
    }
    workspace = workspace_of(tmp_path, texts)
    ledgers = run(workspace, recipe_of(100, "one", "two"))
    assert texts_of(workspace, "one") == [bare(1), around(2, planted), bare(3), bare(4)]
    assert texts_of(workspace, "two") == [bare(5), bare(6)]
    for source, ledger in ledgers.items():
        note = ledger.notes["repeated_spans"]
        assert (note["documents_cut"], note["words_repeated"]) == (1, 150), source
        assert note["bytes_cut"] == ledger.edited_bytes == len(planted) + 2
        assert note["shown"][0]["words"] == 150 and planted.startswith(note["shown"][0]["passage"])
        ledger.check()
    assert ledgers["one"].taken.bytes == sum(map(len, texts["one", "train"]))


def test_a_licence_at_the_end_of_fifty_documents_stays_in_the_first(tmp_path: Path) -> None:
    footer = passage(120, "licence")
    workspace = workspace_of(
        tmp_path, {("one", "train"): [f"{bare(i)} {i}.\n\n{footer}" for i in range(50)]}
    )
    ledger = run(workspace, recipe_of(100, "one"))["one"]
    assert texts_of(workspace, "one") == [
        f"{bare(0)} 0.\n\n{footer}",
        *(f"{bare(i)} {i}." for i in range(1, 50)),
    ]
    assert ledger.notes["repeated_spans"]["documents_cut"] == 49


def test_a_passage_twice_in_one_document_is_cut_once(tmp_path: Path) -> None:
    planted = passage(60)
    text = f"{bare(1)}\n\n{planted}\n\n{bare(2)}\n\n{planted}"
    workspace = workspace_of(tmp_path, {("one", "train"): [text, bare(3)]})
    run(workspace, recipe_of(60, "one"))
    assert texts_of(workspace, "one")[0] == f"{bare(1)}\n\n{planted}\n\n{bare(2)}"


def test_a_passage_one_word_short_of_n_stays(tmp_path: Path) -> None:
    texts = [around(i, passage(99)) for i in (1, 2, 3)]
    workspace = workspace_of(tmp_path, {("one", "train"): texts})
    ledger = run(workspace, recipe_of(100, "one"))["one"]
    assert texts_of(workspace, "one") == texts
    assert ledger.edited_bytes == 0 and not ledger.dropped


def test_a_document_that_is_mostly_repeated_goes_and_is_booked(tmp_path: Path) -> None:
    long = passage(500)
    texts = [around(1, long), f"{long}\n\n{story(9)}", bare(3)]
    workspace = workspace_of(tmp_path, {("one", "train"): texts})
    ledger = run(workspace, recipe_of(100, "one"))["one"]
    assert texts_of(workspace, "one") == [texts[0], texts[2]]
    assert ledger.dropped["repeated_span"].bytes == len(texts[1])
    assert ledger.examples["repeated_span"] == [texts[1][:200]]


@pytest.mark.parametrize("decontaminate", [False, True])
def test_held_out_text_never_changes_and_comes_first(tmp_path: Path, decontaminate: bool) -> None:
    planted = passage(150)
    texts: dict[tuple[str, Split], list[str]] = {
        ("one", "train"): [around(1, planted), bare(2)],
        ("two", "train"): [around(3, planted), around(4, passage(30)), bare(5)],
        ("two", "validation"): [around(6, planted), around(7, planted)],
        ("two", "test"): [around(8, planted)],
    }
    workspace = workspace_of(tmp_path, texts)
    run(workspace, recipe_of(100, "one", "two", decontaminate=decontaminate))
    for name in ("validation", "test"):
        assert texts_of(workspace, "two", name) == texts["two", name]
    assert texts_of(workspace, "one") == [bare(1), bare(2)]
    expected = bare(4) if decontaminate else around(4, passage(30))
    assert texts_of(workspace, "two") == [bare(3), expected, bare(5)]


def test_a_made_held_out_split_never_changes(tmp_path: Path) -> None:
    planted = passage(150)
    texts = [around(i, planted) for i in range(60)]
    workspace = workspace_of(tmp_path, {("one", "train"): texts})
    recipe = small_recipe(
        {"one": {"files": {"train": ["*.txt"]}}},
        dedup={"span_words": 100},
        held_out={"validation": 0.2, "test": 0.2, "decontaminate": False},
    )
    run(workspace, recipe)
    held = texts_of(workspace, "one", "validation") + texts_of(workspace, "one", "test")
    assert len(held) > 4 and set(held) <= set(texts)
    assert set(texts_of(workspace, "one")) <= {texts[0], *map(bare, range(60))}


def test_a_duplicate_that_has_gone_is_not_the_first_place(tmp_path: Path) -> None:
    """The duplicate stands before the other documents; what stays of the two is the first."""
    planted = passage(150)
    texts = [around(1, planted), around(1, planted), around(2, planted)]
    workspace = workspace_of(tmp_path, {("one", "train"): texts})
    ledger = run(workspace, recipe_of(100, "one"))["one"]
    assert texts_of(workspace, "one") == [texts[0], bare(2)]
    assert ledger.notes["repeated_spans"]["documents_cut"] == 1


def test_without_the_key_nothing_is_looked_for(tmp_path: Path) -> None:
    texts = [around(1, passage(150)), around(2, passage(150))]
    workspace = workspace_of(tmp_path, {("one", "train"): texts})
    ledger = run(workspace, recipe_of(None, "one"))["one"]
    assert not (workspace.dedup / FILE).exists()
    assert texts_of(workspace, "one") == texts
    assert "repeated_spans" not in ledger.notes


def test_a_letter_of_two_lower_case_characters_leaves_the_document_alone(tmp_path: Path) -> None:
    texts = [around(1, passage(150)), around(2, "İstanbul. " + passage(150))]
    workspace = workspace_of(tmp_path, {("one", "train"): texts})
    run(workspace, recipe_of(100, "one"))
    assert texts_of(workspace, "one") == texts


def test_a_damaged_file_of_passages_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=FILE):
        repeats_of(tmp_path, "one", "train", 0, 10)


# --- the same bytes, however it ran -------------------------------------------------------------


def fingerprints(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256_file(path) for path in files}


def many_shards(root: Path) -> Workspace:
    workspace = Workspace(root)
    with Writer(workspace.clean("one"), shard_bytes=12_000) as writer:
        for i in range(64):
            middle = passage(120, f"shared {i % 8}")
            writer.add(Document.of(around(i, middle), "one", "train", "{}"))
    return workspace


def test_killed_and_gone_on_with_more_workers_is_a_straight_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(100, "one")
    straight = many_shards(tmp_path / "straight")
    run(straight, recipe)
    broken = many_shards(tmp_path / "broken")
    kill_among_the_passages(broken)
    monkeypatch.setattr(shardwise, "INLINE_BYTES", 0)
    monkeypatch.setenv("PHASEWISE_WORKERS", "2")
    settings.cache_clear()
    capsys.readouterr()
    try:
        dedup(broken, recipe)
    finally:
        monkeypatch.undo()
        settings.cache_clear()
    assert "repeated passages:" in capsys.readouterr().out, "it went on where it was"
    split(broken, recipe)
    assert fingerprints(broken.dedup) == fingerprints(straight.dedup)
    assert fingerprints(broken.documents) == fingerprints(straight.documents)
    assert len(texts_of(straight, "one")) == 64


KILLED = """
import sys
from pathlib import Path
from tasks.data.dedup import dedup
from tasks.workspace import Workspace
from tests.test_data_spans import recipe_of
dedup(Workspace(Path(sys.argv[1])), recipe_of(100, "one"))
"""


def kill_among_the_passages(workspace: Workspace) -> None:
    """Run dedup in another process, and kill it when the second pass has some of its parts."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PHASEWISE_WORKERS": "1"}
    command = [sys.executable, "-c", KILLED, str(workspace.clean("one").parents[2])]
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    parts = workspace.work("dedup") / "spans" / "runs"
    end = time.monotonic() + 60
    while not (parts / "00001").exists():
        assert child.poll() is None and time.monotonic() < end, "it ended before it was killed"
        time.sleep(0.0005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not workspace.dedup.exists()
