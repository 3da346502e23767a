"""The order of the data: bijections, exact shares, and golden values that pin both down."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import UserError
from tasks.tokens.order import (
    MAX_PERIOD,
    Interleaving,
    chairman_assignment,
    exact_shares,
    permute,
    round_keys,
    unpermute,
)

counts_of_sources = st.lists(st.integers(1, 60), min_size=1, max_size=20)


def worst_deviation(counts: list[int]) -> Fraction:
    """The farthest any source ever is from its due, by counting."""
    period, table = sum(counts), chairman_assignment(tuple(counts))
    place = np.arange(1, period + 1)
    worst = 0
    for source, count in enumerate(counts):
        off = np.cumsum(table == source) * period - place * count
        worst = max(worst, int(np.abs(off).max()))
        assert off[-1] == 0
    return Fraction(worst, period)


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**63 - 1), st.integers(0, 50))
def test_a_permutation_is_a_bijection_for_every_size(n: int, seed: int, epoch: int) -> None:
    sent = permute(np.arange(n), n, round_keys(seed, "source", epoch))
    assert np.array_equal(np.sort(sent), np.arange(n))


@settings(deadline=None)
@given(st.integers(2**20, 2**61), st.integers(0, 1000))
def test_a_permutation_of_a_huge_range_stays_in_it_and_never_collides(n: int, seed: int) -> None:
    index = np.concatenate([np.arange(500), np.arange(n - 500, n)])
    sent = permute(index, n, round_keys(seed))
    assert len(np.unique(sent)) == len(index)
    assert sent.min() >= 0 and sent.max() < n


@settings(deadline=None)
@given(st.integers(1, 2**61), st.integers(0, 2**63 - 1), st.data())
def test_a_permutation_undone_is_where_it_began(n: int, seed: int, data: st.DataObject) -> None:
    keys = round_keys(seed, "source", 3)
    index = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=20)), np.int64)
    assert np.array_equal(unpermute(permute(index, n, keys), n, keys), index)
    assert np.array_equal(permute(unpermute(index, n, keys), n, keys), index)


def test_a_permutation_of_a_part_is_the_part_of_the_permutation() -> None:
    keys = round_keys(1, "a", 0)
    whole = permute(np.arange(1000), 1000, keys)
    assert np.array_equal(permute(np.array([999, 3, 500]), 1000, keys), whole[[999, 3, 500]])


def test_each_seed_source_and_epoch_has_an_order_of_its_own() -> None:
    names = [(1, "a", 0), (2, "a", 0), (1, "b", 0), (1, "a", 1), (1, "a1", 0)]
    orders = {tuple(permute(np.arange(100), 100, round_keys(*name)).tolist()) for name in names}
    assert len(orders) == len(names)


def test_a_permutation_leaves_no_trace_of_the_order_before() -> None:
    n = 20_000
    sent = permute(np.arange(n), n, round_keys(7, "a", 0))
    assert abs(np.corrcoef(np.arange(n), sent)[0, 1]) < 0.03
    assert abs(np.corrcoef(sent[:-1], sent[1:])[0, 1]) < 0.03
    tenths = np.bincount(sent[: n // 10] * 10 // n, minlength=10)
    assert ((tenths > 130) & (tenths < 270)).all(), "a tenth of the order draws from every tenth"


def test_all_orders_of_a_few_windows_come_about() -> None:
    orders = {tuple(permute(np.arange(4), 4, round_keys(seed)).tolist()) for seed in range(500)}
    assert len(orders) == 24


def test_the_order_of_the_data_never_changes() -> None:
    # a new value here means that every finished run was trained in another order
    sent = permute(np.arange(10), 10, round_keys(42, "phase1", "wikipedia", 0))
    assert sent.tolist() == [8, 2, 9, 4, 1, 6, 5, 7, 0, 3]
    assert chairman_assignment((3, 2)).tolist() == [0, 1, 0, 1, 0]
    assert chairman_assignment((5, 3, 1, 1)).tolist() == [0, 1, 0, 1, 0, 2, 0, 3, 0, 1]


@settings(deadline=None)
@given(counts_of_sources)
def test_no_source_is_ever_a_whole_sample_from_its_due(counts: list[int]) -> None:
    bound = 1 - Fraction(1, 2 * len(counts) - 2) if len(counts) > 1 else 0
    assert worst_deviation(counts) <= bound


@pytest.mark.parametrize("sources", [2, 20])
def test_shares_of_six_digits_are_spread_as_evenly(sources: int) -> None:
    rng = np.random.default_rng(sources)
    counts = rng.multinomial(MAX_PERIOD - sources, rng.dirichlet(np.ones(sources))) + 1
    assert worst_deviation(counts.tolist()) <= 1 - Fraction(1, 2 * sources - 2)


@settings(deadline=None)
@given(counts_of_sources, st.integers(0, 5000), st.integers(0, 40))
def test_a_sample_knows_its_source_and_how_many_of_it_came_before(
    counts: list[int], first: int, more: int
) -> None:
    interleaving = Interleaving([Fraction(count, sum(counts)) for count in counts])
    every, _ = interleaving.locate(np.arange(first + more))
    source, nth = interleaving.locate(np.arange(first, first + more))
    for sample in range(more):
        assert source[sample] == every[first + sample]
        assert nth[sample] == np.count_nonzero(every[: first + sample] == source[sample])
        assert interleaving.index(int(source[sample]), int(nth[sample])) == first + sample
    assert interleaving.drawn(first + more) == np.bincount(every, minlength=len(counts)).tolist()


def test_shares_are_the_decimals_of_the_recipe_normalised() -> None:
    swift = {"web": 35.0, "tiny": 25.0, "edu": 19.0, "arxiv": 10.0, "wiki": 9.0, "qa": 1.0}
    shares = exact_shares(swift)
    assert shares["web"] == Fraction(35, 99) and sum(shares.values()) == 1
    assert exact_shares({"a": 0.1, "b": 0.2}) == {"a": Fraction(1, 3), "b": Fraction(2, 3)}
    assert exact_shares({"a": 1.0, "b": 0.0}) == {"a": 1}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=20))
def test_shares_add_up_to_one_or_are_refused(weights: list[int]) -> None:
    named = {f"s{number}": weight / 1e6 for number, weight in enumerate(weights)}
    try:
        shares = exact_shares(named)
    except UserError:
        assert sum(weights) > MAX_PERIOD
    else:
        assert sum(shares.values()) == 1
        assert Interleaving(list(shares.values())).period <= MAX_PERIOD


def test_weights_of_seven_digits_are_refused_with_what_to_write() -> None:
    with pytest.raises(UserError) as error:
        exact_shares({"a": 0.1234567, "b": 0.8765433}, "params.yaml: phases.p.mixture")
    assert "10,000,000 samples" in str(error.value)
    assert "at most six digits" in str(error.value)
    assert "phases.p.mixture" in str(error.value)
