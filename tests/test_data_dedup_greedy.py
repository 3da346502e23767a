"""Which near duplicates stay, on graphs of any shape: the rounds, the clusters, their cost."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.data.cluster import find, join
from tasks.data.greedy import MAX_COMPARED, Buckets, Chunks, Outcome, bridge, keep_first

THRESHOLD = 0.8

GRAPHS = st.integers(1, 14).flatmap(
    lambda n: st.tuples(
        st.just(n),
        st.lists(st.sets(st.integers(0, n - 1), min_size=2, max_size=6), max_size=8)
        if n > 1
        else st.just([]),
        st.sets(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=40),
    )
)


@settings(max_examples=60, deadline=None)
@given(GRAPHS)
def test_the_rounds_decide_as_one_by_one_would(
    tmp_path_factory: pytest.TempPathFactory,
    graph: tuple[int, list[set[int]], set[tuple[int, int]]],
) -> None:
    n, buckets, drawn = graph
    edges = {(min(pair), max(pair)) for pair in drawn}
    seen = {pair for bucket in buckets for pair in itertools.combinations(sorted(bucket), 2)}
    similar = edges & seen
    outcome = Outcome(np.arange(n), np.zeros(n), np.arange(n))
    chunks = Chunks(tmp_path_factory.mktemp("chunks"), "buckets", 0)
    for number, bucket in enumerate(buckets):
        members = np.array(sorted(bucket))
        chunks.save(number, Buckets(members, np.array([len(members)]), np.zeros(1, np.int64)))
        chunks.numbers.append(number)

    def compare(pairs: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return np.array(
            [0.9 if (a, b) in edges or (b, a) in edges else 0.1 for a, b in pairs.tolist()]
        )

    keep_first(chunks, outcome, np.zeros(n, bool), compare, THRESHOLD)
    stays = [number for number in range(n) if in_order(number, similar)]
    assert [number for number in range(n) if outcome.kept[number] == number] == stays
    for number in set(range(n)) - set(stays):
        kept = int(outcome.kept[number])
        assert kept in stays and (kept, number) in similar and outcome.jaccard[number] == 0.9
    bridge(chunks, outcome, compare, THRESHOLD)
    joined = {(a, b) for a, b in similar if a in stays or b in stays}
    assert find(outcome.parent, np.arange(n)).tolist() == components(n, joined)


def in_order(number: int, similar: set[tuple[int, int]]) -> bool:
    """Whether a document stays when they are taken one by one, by the definition."""
    kept: list[int] = []
    for n in range(number + 1):
        if not any((k, n) in similar for k in kept):
            kept.append(n)
    return kept[-1] == number


def components(n: int, pairs: set[tuple[int, int]]) -> list[int]:
    least = list(range(n))
    for _ in range(n):
        for a, b in pairs:
            least[a] = least[b] = min(least[a], least[b])
    return least


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=40))
def test_joined_sets_are_the_connected_components_and_their_root_the_least(
    pairs: list[tuple[int, int]],
) -> None:
    parent = np.arange(20)
    array = np.array(pairs, np.int64).reshape(-1, 2)
    join(parent, array[: len(array) // 2, 0], array[: len(array) // 2, 1])
    join(parent, array[len(array) // 2 :, 0], array[len(array) // 2 :, 1])
    assert find(parent, np.arange(20)).tolist() == components(20, set(pairs))


def test_one_bucket_of_strangers_costs_a_bounded_number_of_comparisons(tmp_path: Path) -> None:
    n = 500
    chunks = Chunks(tmp_path, "buckets", 1)
    chunks.save(0, Buckets(np.arange(n), np.array([n]), np.zeros(1, np.int64)))
    outcome = Outcome(np.arange(n), np.zeros(n), np.arange(n))
    compared = 0

    def compare(pairs: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        nonlocal compared
        compared += len(pairs)
        return np.zeros(len(pairs))

    keep_first(chunks, outcome, np.zeros(n, bool), compare, 0.8)
    assert 0 < compared <= n * MAX_COMPARED and (outcome.kept == np.arange(n)).all()


def test_a_pair_that_shares_two_bands_is_compared_once_for_its_cluster(tmp_path: Path) -> None:
    """2 went because of 0; whether it is like 1 as well is asked by both buckets."""
    chunks = Chunks(tmp_path, "buckets", 1)
    members, sizes = np.array([0, 1, 2, 1, 2]), np.array([3, 2])
    chunks.save(0, Buckets(members, sizes, np.zeros(2, np.int64)))
    outcome = Outcome(np.array([0, 1, 0]), np.zeros(3), np.array([0, 1, 0]))
    asked: list[list[int]] = []

    def compare(pairs: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        asked.extend(pairs.tolist())
        return np.zeros(len(pairs))

    bridge(chunks, outcome, compare, 0.8)
    assert asked == [[1, 2]]
