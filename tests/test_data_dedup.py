"""Shingles, MinHash and digests are right as functions, before they are a stage."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.duplicates import sketch_of
from tasks.data.fingerprints import exact_digests
from tasks.data.minhash import (
    MOST_HASHES,
    RECALL,
    band_keys,
    candidate_chance,
    signatures,
)
from tasks.data.shingles import Shingles, jaccard, shingles, word_hashes
from tasks.recipe import Dedup
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


@given(TEXTS, st.integers(1, 3))
def test_sets_are_the_hashes_of_each_text_in_order_and_once(texts: list[str], n: int) -> None:
    found = shingles(texts, n)
    sets = found.sets()
    assert [sets.of(i).tolist() for i in range(len(texts))] == [
        np.unique(found.of(i)).tolist() for i in range(len(texts))
    ]


@given(st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=6))
def test_minhash_values_are_products_with_the_factor_of_their_column(hashes: list[int]) -> None:
    """a x modulo 2^32, of a text with one shingle: so the value of x times y is that of y times x."""
    bounds = np.arange(len(hashes) + 1)
    values = signatures(Shingles(np.array(hashes, np.uint64), bounds), 24).astype(np.uint64)
    upper = np.array(hashes, np.uint64) >> np.uint64(32)
    crossed = (values[:, None] * upper[None, :, None]) & np.uint64(2**32 - 1)
    assert (crossed == crossed.swapaxes(0, 1)).all()
    together = signatures(Shingles(np.array(hashes, np.uint64), bounds[[0, -1]]), 24)
    assert (together[0] == values.min(axis=0)).all()


def test_hashes_are_the_same_for_ever() -> None:
    """They are part of results: a change here changes which documents a corpus keeps."""
    found = shingles(["The quick brown fox jumps over the lazy dog"], 5)
    assert [f"{value:016x}" for value in found.hashes.tolist()[:2]] == GOLDEN_SHINGLES
    keys = band_keys(signatures(found, 112), 14, 8)
    assert f"{int(keys[0, 0]):016x}" == GOLDEN_BAND


GOLDEN_SHINGLES = ["e2f598adc6582bf9", "aaf8846d51f30ded"]
GOLDEN_BAND = "7edd636aead43ba5"


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
    shared = [len(np.unique(band)) < len(band) for band in different.T]
    assert not any(shared), "different stories are no candidates"


@pytest.mark.parametrize("letter", ["a", "é", "中"])
def test_words_of_any_length_are_told_apart(letter: str) -> None:
    made = [letter * n for n in (*range(1, 40), 63, 64, 65, 200, 5000)]
    made += [letter * n + "b" for n in (7, 8, 15, 16, 63, 64, 199)]
    alone = [int(word_hashes([word]).hashes[0]) for word in made]
    assert len(set(alone)) == len(made)
    assert word_hashes([f"-{' '.join(made)}."]).hashes.tolist() == alone
    assert word_hashes(made).hashes.tolist() == alone


@pytest.mark.parametrize("capital", ["É", "İ", "Σ", "ẞ", "Ж", "K"])
def test_lower_case_is_that_of_unicode(capital: str) -> None:
    text = f"some {capital}{capital} word–{capital} here"
    same = word_hashes([text, text.lower()])
    assert same.of(0).tolist() == same.of(1).tolist() and len(same.of(0)) == len(words(text))


@given(st.text(max_size=60))
def test_case_and_white_space_do_not_make_another_text(text: str) -> None:
    other = "  " + text.replace(" ", "\n ") + "\t"
    found = exact_digests([text, other, text + "+", text + "-"]).tolist()
    assert found[0] == found[1] and found[2] != found[3]


@given(
    st.lists(
        st.text(st.sampled_from("aB \n\t\u00a0\u00e9\u00c9\u0130 "), max_size=12),
        min_size=1,
        max_size=5,
    )
)
def test_digests_are_those_of_words_in_lower_case_with_single_spaces(texts: list[str]) -> None:
    found = exact_digests(texts)
    for text, digest in zip(texts, found, strict=True):
        normal = " ".join(text.lower().split()).encode()
        assert digest.tobytes() == hashlib.sha256(normal).digest()[:16]


def test_what_the_recipe_leaves_open_finds_the_pairs_at_its_threshold() -> None:
    for threshold in np.linspace(0.3, 1.0, 29).tolist():
        *_, number, rows = sketch_of(Dedup(threshold=threshold))
        assert candidate_chance(threshold, number, rows) >= RECALL
        assert number * rows <= MOST_HASHES
    assert sketch_of(Dedup(bands=14, rows=8))[-2:] == (14, 8)
    with pytest.raises(ValueError, match="bands and rows go together"):
        Dedup(bands=14)
