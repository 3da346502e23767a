"""Held-out runs are found in training text, and what holds them is cut, before that is a stage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.data.decontaminate import Cut, cut
from tasks.data.documents import Document
from tasks.data.held_out import (
    COMMON,
    HeldOutRuns,
    Indices,
    count_shared,
    held_out_part,
    join_runs,
    open_runs,
    rare_pairs,
    shared_part,
)
from tasks.data.shingles import shingles
from tests.corpus import story, words


def held_out_runs(folder: Path, *texts: str, split: str = "test") -> HeldOutRuns:
    """The index of some held-out documents of source s, made in two parts."""
    files = []
    half = len(texts) // 2
    for number, part in enumerate((texts[:half], texts[half:])):
        (folder / f"held{number}").mkdir()
        names = held_out_part(
            enumerate(documents(*part, split=split)), folder / f"held{number}", 13
        )
        files += [(f"s/{name}", folder / f"held{number}" / f"{name}.npy") for name in names]
    join_runs(files, folder / "runs")
    return open_runs(folder / "runs")


def shared_runs(folder: Path, runs: HeldOutRuns, *texts: str) -> dict[int, Indices]:
    """Training documents, read in two parts, and their runs that are not common."""
    found: dict[int, Indices] = {}
    half = len(texts) // 2
    numbered = list(enumerate(documents(*texts)))
    for number, part in enumerate((numbered[:half], numbered[half:])):
        (folder / f"train{number}").mkdir()
        shared_part(part, folder / f"train{number}", runs, 13)
    paths = [folder / f"train{number}/pairs.npy" for number in range(2)]
    count_shared(paths, folder / "runs")
    for path in paths:
        found |= rare_pairs(path, folder / "runs")
    return found


def documents(*texts: str, split: str = "train") -> list[Document]:
    return [Document.of(text, "s", split, "{}") for text in texts]  # type: ignore[arg-type]


def test_only_documents_that_share_a_run_are_found(tmp_path: Path) -> None:
    runs = held_out_runs(tmp_path, story(1), "A short one.", split="validation")
    twelve = " ".join(story(1).split()[:12])
    thirteen = " ".join(story(1).split()[:14])
    train = (story(2), f"{story(3)} {thirteen}", f"x {twelve} y", "a SHORT, one!")
    found = shared_runs(tmp_path, runs, *train)
    assert sorted(found) == [1, 3], "twelve words are no run of thirteen"


def test_a_phrase_of_many_documents_is_no_leak(tmp_path: Path) -> None:
    phrase = story(7, sentences=3)
    runs = held_out_runs(tmp_path, f"{story(8)} {phrase}")
    train = [f"{story(100 + i)}\n\n{phrase}" for i in range(COMMON + 1)]
    assert shared_runs(tmp_path, runs, *train) == {}
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    runs = held_out_runs(fewer, f"{story(8)} {phrase}")
    assert len(shared_runs(fewer, runs, *train[:COMMON])) == COMMON


def test_with_no_held_out_text_nothing_is_shared(tmp_path: Path) -> None:
    assert shared_runs(tmp_path, held_out_runs(tmp_path), story(1)) == {}


def found_and_cut(text: str, held: str, folder: Path) -> Cut:
    runs = held_out_runs(folder, held)
    return cut(text, shared_runs(folder, runs, text)[0], runs, 13)


def test_a_cut_takes_the_shared_sentences_and_leaves_the_others(tmp_path: Path) -> None:
    held, own = story(1), story(2, sentences=8)
    sentence = held.split(". ")[1] + "."
    assert len(words(sentence)) >= 13
    result = found_and_cut(own.replace("\n\n", f"\n\n{sentence} ", 1), held, tmp_path)
    assert result.text == own
    assert result.found_in == "s/test"
    assert words(result.run) == words(sentence)[:13]


def test_a_document_that_is_mostly_held_out_text_goes(tmp_path: Path) -> None:
    held = story(1)
    assert found_and_cut(held + " " + story(2, sentences=3), held, tmp_path).text is None


@settings(max_examples=30, deadline=None)
@given(
    start=st.integers(0, 120), length=st.integers(13, 60), at=st.integers(0, 11), seed=st.integers()
)
def test_no_shared_run_is_left_after_a_cut(
    tmp_path_factory: pytest.TempPathFactory, start: int, length: int, at: int, seed: int
) -> None:
    held = story(1)
    passage = " ".join(held.split(" ")[start : start + length])
    sentences = story(seed, sentences=12).split(". ")
    sentences.insert(at, passage)
    text = ". ".join(sentences)
    if len(words(passage)) < 13:
        return
    result = found_and_cut(text, held, tmp_path_factory.mktemp("cut"))
    if result.text is not None:
        left = shingles([result.text], 13).hashes
        assert not np.isin(left, shingles([held], 13).hashes).any()
