"""Shingles, MinHash, clusters and cuts are right as functions, before they are a stage."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.data.cluster import MAX_COMPARED, Clusters, candidates, groups, join_similar
from tasks.data.decontaminate import COMMON, cut, held_out_runs, shared_runs
from tasks.data.dedup import exact_digest
from tasks.data.documents import Document
from tasks.data.minhash import band_keys, candidate_chance, signatures
from tasks.data.near import ShingleStore
from tasks.data.shingles import jaccard, shingles, word_hashes
from tests.corpus import nearly, story, words

TEXTS = st.lists(st.text(st.sampled_from("ab cé.,\n–İß中1_"), max_size=40), max_size=6)


@given(TEXTS)
def test_equal_words_and_no_others_have_equal_hashes(texts: list[str]) -> None:
    found = word_hashes(texts)
    expected = [word for text in texts for word in words(text)]
    assert len(expected) == len(found.hashes) == found.bounds[-1]
    assert [len(words(text)) for text in texts] == np.diff(found.bounds).tolist()
    seen: dict[str, int] = {}
    for word, value in zip(expected, found.hashes.tolist(), strict=True):
        assert seen.setdefault(word, value) == value
    assert len(set(seen.values())) == len(seen)


@given(TEXTS, st.integers(1, 6))
def test_shingles_are_the_runs_of_n_words(texts: list[str], n: int) -> None:
    """A hash for each run; a text shorter than a run has one, a text without words none."""
    found = shingles(texts, n)
    seen: dict[tuple[str, ...], int] = {}
    for i, text in enumerate(texts):
        own = words(text)
        runs = [tuple(own[k : k + n]) for k in range(max(1, len(own) - n + 1))] if own else []
        assert len(runs) == len(found.of(i))
        for run, value in zip(runs, found.of(i).tolist(), strict=True):
            assert seen.setdefault(run, value) == value
    assert len(set(seen.values())) == len(seen)


def test_hashes_are_the_same_for_ever() -> None:
    """They are part of results: a change here changes which documents a corpus keeps."""
    found = shingles(["The quick brown fox jumps over the lazy dog"], 5)
    assert [f"{value:016x}" for value in found.hashes.tolist()[:2]] == GOLDEN_SHINGLES
    keys = band_keys(signatures(found, 112), 14, 8)
    assert f"{int(keys[0, 0]):016x}" == GOLDEN_BAND


GOLDEN_SHINGLES = ["75cf31938f91a0f1", "18f618a762fcff3c"]
GOLDEN_BAND = "ae2660765a7eaef4"


def similarity(a: str, b: str, n: int = 5) -> float:
    found = shingles([a, b], n)
    return jaccard(np.unique(found.of(0)), np.unique(found.of(1)))


def test_jaccard_is_shared_over_all() -> None:
    assert similarity("a b c d e f", "a b c d e f") == 1.0
    assert similarity("a b c d e f", "x b c d e f") == pytest.approx(1 / 3)
    assert similarity("a b c d e f", "") == 0.0


def test_minhash_estimates_jaccard() -> None:
    """Of 1,024 values the agreeing share lies within 5 standard errors of the true similarity."""
    count = 1024
    for edits in range(0, 40, 3):
        text = story(edits, sentences=30).split(" ")
        other = list(text)
        for i in range(edits):
            other[(i * 37) % len(other)] = f"changed{i}"
        pair = [" ".join(text), " ".join(other)]
        true = similarity(*pair)
        signature = signatures(shingles(pair, 5), count)
        estimate = float(np.mean(signature[0] == signature[1]))
        assert abs(estimate - true) <= 5 * np.sqrt(true * (1 - true) / count) + 1e-9


def test_bands_find_near_duplicates_as_often_as_theory_says() -> None:
    assert candidate_chance(0.8, 14, 8) == pytest.approx(0.9235, abs=1e-3)
    pairs = [(story(i), nearly(nearly(nearly(story(i))))) for i in range(60)]
    keys = band_keys(signatures(shingles([t for pair in pairs for t in pair], 5), 112), 14, 8)
    found = np.mean([(keys[i] == keys[i + 1]).any() for i in range(0, 120, 2)])
    expected = np.mean([candidate_chance(similarity(*pair), 14, 8) for pair in pairs])
    assert found == pytest.approx(expected, abs=0.1)
    different = keys[::2]
    assert not len(candidates(different)), "different stories are no candidates"


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=40))
def test_clusters_are_the_connected_components_and_their_root_the_least(
    pairs: list[tuple[int, int]],
) -> None:
    clusters = Clusters(20)
    component = list(range(20))
    for a, b in pairs:
        clusters.join(a, b)
        old, new = component[b], component[a]
        component = [new if c == old else c for c in component]
    least = {c: component.index(c) for c in set(component)}
    assert clusters.roots().tolist() == [least[c] for c in component]


@given(st.lists(st.integers(0, 5), max_size=30))
def test_groups_are_the_positions_of_repeated_keys(keys: list[int]) -> None:
    array = np.array(keys, np.uint64)
    expected = [[i for i, k in enumerate(keys) if k == key] for key in sorted(set(keys))]
    assert [g.tolist() for g in groups(array)] == [e for e in expected if len(e) > 1]
    wide = np.stack([array, array], axis=1)
    assert [g.tolist() for g in groups(wide)] == [e for e in expected if len(e) > 1]


def test_one_bucket_of_strangers_costs_a_bounded_number_of_comparisons() -> None:
    n = 500
    clusters, keys = Clusters(n), np.zeros((n, 2), np.uint64)
    compared = join_similar(clusters, np.arange(n), keys, lambda a, b: False)
    assert compared <= n * MAX_COMPARED and clusters.roots().tolist() == list(range(n))


def test_a_candidate_is_joined_only_if_it_is_similar() -> None:
    clusters, keys = Clusters(6), np.zeros((6, 1), np.uint64)
    compared = join_similar(clusters, np.arange(6), keys, lambda a, b: (a + b) % 2 == 0)
    assert clusters.roots().tolist() == [0, 1, 0, 1, 0, 1]
    assert compared == 1 + 1 + 2 + 1 + 2


def test_stored_shingles_give_the_true_similarity(tmp_path: Path) -> None:
    texts = [story(1), nearly(story(1)), story(2), ""]
    store = ShingleStore(enumerate(texts), 5, tmp_path)
    for a, b in pairwise(range(4)):
        assert store.similarity(a, b) == similarity(texts[a], texts[b])
        assert store.similar(a, b, 0.8) == (similarity(texts[a], texts[b]) >= 0.8)
    assert not list(tmp_path.iterdir()), "the scratch file has no name"
    assert ShingleStore([], 5, tmp_path)._hashes.size == 0


@given(st.text(max_size=60))
def test_case_and_white_space_do_not_make_another_text(text: str) -> None:
    assert exact_digest(text) == exact_digest("  " + text.replace(" ", "\n ") + "\t")
    assert exact_digest(text + "+") != exact_digest(text + "-")


# --- decontamination ----------------------------------------------------------------------------


def documents(*texts: str, split: str = "train") -> list[Document]:
    return [Document.of(text, "s", split, "{}") for text in texts]  # type: ignore[arg-type]


def test_only_documents_that_share_a_run_are_found(tmp_path: Path) -> None:
    held = documents(story(1), "A short one.", split="validation")
    runs = held_out_runs(held, 13)
    twelve = " ".join(story(1).split()[:12])
    thirteen = " ".join(story(1).split()[:14])
    train = documents(story(2), f"{story(3)} {thirteen}", f"x {twelve} y", "a SHORT, one!")
    found = shared_runs(train, runs, 13, tmp_path)
    assert sorted(found) == [1, 3], "twelve words are no run of thirteen"


def test_a_phrase_of_many_documents_is_no_leak(tmp_path: Path) -> None:
    phrase = story(7, sentences=3)
    runs = held_out_runs(documents(f"{story(8)} {phrase}", split="test"), 13)
    train = [f"{story(100 + i)}\n\n{phrase}" for i in range(COMMON + 1)]
    assert shared_runs(documents(*train), runs, 13, tmp_path) == {}
    (tmp_path / "fewer").mkdir()
    assert len(shared_runs(documents(*train[:COMMON]), runs, 13, tmp_path / "fewer")) == COMMON


def found_and_cut(text: str, held: str, folder: Path):  # type: ignore[no-untyped-def]
    runs = held_out_runs(documents(held, split="test"), 13)
    folder.mkdir(exist_ok=True)
    shared = shared_runs(documents(text), runs, 13, folder)
    return cut(text, shared[0], runs, 13)


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
