"""Each rule of sampling on logits small enough to be worked out by hand."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model import SamplingOptions
from model.sampling import (
    ban_ngrams,
    cut_unlikely,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize,
    pick,
    probabilities,
    repetition_penalty,
)

OFF = float("-inf")
rows = st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=12)


def kept(logits: torch.Tensor) -> list[int]:
    return (logits[0] > OFF).nonzero().flatten().tolist()


def log_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities]).log()


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]


def test_the_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    logits = torch.tensor([2.0, -2.0, 2.0, -2.0, 0.0])
    punished = repetition_penalty(logits, [0, 1, 4, 0], 4.0)
    assert punished.tolist() == [0.5, -8.0, 2.0, -2.0, 0.0]


@given(rows, st.floats(1.01, 5))
def test_the_repetition_penalty_never_makes_an_id_likelier(values, penalty):
    logits = torch.tensor(values)
    assert (repetition_penalty(logits, range(len(values)), penalty) <= logits).all()


def test_frequency_counts_every_generated_id_and_presence_counts_it_once():
    logits = torch.zeros(4)
    options = SamplingOptions(frequency_penalty=0.5, presence_penalty=2.0)
    punished = penalize(logits, prompt=[3], generated=[0, 1, 0], options=options)
    assert punished.tolist() == [-3.0, -2.5, 0.0, 0.0]


def test_the_repetition_penalty_looks_at_the_prompt_too():
    punished = penalize(torch.ones(4), [3], [0], SamplingOptions(repetition_penalty=2.0))
    assert punished.tolist() == [0.5, 1.0, 1.0, 0.5]


def test_no_run_of_ids_comes_twice():
    logits = torch.zeros(6)
    assert ban_ngrams(logits, [1, 2, 3, 1, 2], 3).tolist() == [0, 0, 0, OFF, 0, 0]
    assert ban_ngrams(logits, [1, 2, 3, 1], 2).tolist() == [0, 0, OFF, 0, 0, 0]
    assert ban_ngrams(logits, [4, 5], 1).tolist() == [0, 0, 0, 0, OFF, OFF]
    assert torch.equal(ban_ngrams(logits, [1, 2], 3), logits)
    assert torch.equal(ban_ngrams(logits, [1], 3), logits)
    # The bridge from the prompt counts: what comes next may not end a run seen across it.
    options = SamplingOptions(no_repeat_ngram_size=2)
    assert penalize(logits, [1, 2], [1], options).tolist() == [0, 0, OFF, 0, 0, 0]


def test_a_ban_that_leaves_no_id_is_not_imposed():
    logits = torch.zeros(2)
    assert torch.equal(ban_ngrams(logits, [0, 1], 1), logits)


@given(rows, st.integers(1, 15))
def test_top_k_keeps_exactly_k_of_the_likeliest(values, k):
    logits = torch.tensor([values])
    left = kept(keep_top_k(logits, k))
    assert len(left) == min(k, len(values))
    threshold = sorted(values, reverse=True)[len(left) - 1]
    assert all(values[i] >= threshold for i in left)


def test_top_p_keeps_the_fewest_that_hold_the_probability():
    logits = log_of(0.1, 0.5, 0.15, 0.25)
    assert kept(keep_top_p(logits, 0.49)) == [1]
    assert kept(keep_top_p(logits, 0.6)) == [1, 3]
    assert kept(keep_top_p(logits, 0.8)) == [1, 2, 3]
    assert kept(keep_top_p(logits, 0.95)) == [0, 1, 2, 3]


@given(rows, st.floats(1e-9, 1, exclude_max=True))
def test_top_p_keeps_at_least_one_and_enough(values, p):
    logits = torch.tensor([values])
    left = kept(keep_top_p(logits, p))
    assert values.index(max(values)) in left or len(set(values)) < len(values)
    assert logits.softmax(dim=-1)[0, left].sum() >= p - 1e-5


def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest():
    logits = log_of(0.5, 0.26, 0.2, 0.04)
    assert kept(keep_min_p(logits, 0.5)) == [0, 1]
    assert kept(keep_min_p(logits, 0.1)) == [0, 1, 2]
    assert kept(keep_min_p(logits, 1.0)) == [0]


@given(rows, st.floats(1e-3, 10), st.integers(0, 5), st.floats(0.01, 1), st.floats(0, 1))
def test_whatever_is_cut_the_likeliest_id_is_left_and_nothing_is_nan(values, t, k, p, floor):
    options = SamplingOptions(temperature=t, top_k=k, top_p=p, min_p=floor)
    cut = cut_unlikely(torch.tensor([values]), options, t)
    assert not cut.isnan().any()
    assert max(values) in [values[i] for i in kept(cut)]
    token = pick(torch.tensor([values]), options, generators(1)).item()
    assert token in kept(cut)


def test_temperature_zero_takes_the_likeliest_and_touches_no_generator():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    options = SamplingOptions(temperature=0, top_k=2)
    assert pick(torch.tensor([[0.0, 3.0, 1.0]]), options, [generator]).tolist() == [1]
    assert torch.equal(generator.get_state(), before)


def test_draws_come_as_often_as_the_temperature_says():
    logits = log_of(0.6, 0.3, 0.1)
    for temperature in (0.5, 1.0, 2.0):
        weights = [p ** (1 / temperature) for p in (0.6, 0.3, 0.1)]
        generator = generators(1)
        options = SamplingOptions(temperature=temperature)
        counts = Counter(pick(logits, options, generator).item() for _ in range(2000))
        for token, weight in enumerate(weights):
            share = weight / sum(weights)
            spread = math.sqrt(share * (1 - share) / 2000)
            assert counts[token] / 2000 == pytest.approx(share, abs=4 * spread)


def test_the_temperature_moves_from_the_first_new_id_to_the_last():
    options = SamplingOptions(max_new_tokens=5, temperature=1.5, final_temperature=0.5)
    path = [options.temperature_at(step) for step in range(5)]
    assert path[0] == 1.5 and path[4] == 0.5
    assert path[2] == pytest.approx(0.5 + 1.0 * 0.5**1.5)
    assert path == sorted(path, reverse=True)
    still = SamplingOptions(max_new_tokens=5, temperature=0.7)
    assert [still.temperature_at(step) for step in range(5)] == [0.7] * 5
    one = SamplingOptions(max_new_tokens=1, temperature=0.7, final_temperature=2.0)
    assert one.temperature_at(0) == 0.7


def test_each_row_is_drawn_at_the_temperature_of_its_own_step():
    logits = log_of(0.6, 0.3, 0.1).expand(3, 3)
    options = SamplingOptions(max_new_tokens=3, temperature=2.0, final_temperature=0.0)
    assert not options.greedy
    found = probabilities(logits, options, [0, 1, 2])
    for row, step in zip(found, (0, 1), strict=False):
        expected = (logits[0] / options.temperature_at(step)).softmax(dim=0)
        torch.testing.assert_close(row, expected)
    assert found[2].tolist() == [1.0, 0.0, 0.0]


@given(rows, st.integers(0, 1000))
def test_an_id_of_probability_zero_is_never_drawn(values, seed):
    chances = torch.tensor([values]).clamp_min(0.0)
    chances[0, seed % len(values)] = 1.0
    token = draw(chances, generators(1, seed)).item()
    assert chances[0, token] > 0


def test_each_row_draws_from_its_own_generator():
    logits = torch.zeros(3, 50)
    together = pick(logits, SamplingOptions(), generators(3, seed=5))
    alone = [pick(logits[:1], SamplingOptions(), [g]).item() for g in generators(3, seed=5)]
    assert together.tolist() == alone
    assert len(set(alone)) > 1


def test_broken_logits_are_refused():
    logits = torch.tensor([[0.0, float("nan")], [0.0, OFF]])
    for temperature in (0.0, 1.0):
        options = SamplingOptions(temperature=temperature)
        assert pick(logits, options, generators(2)).tolist() == [-1, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, "temperature must be a finite number of at least 0"),
        ({"temperature": float("nan")}, "temperature must be a finite number"),
        ({"temperature": 1e-9}, "too small to divide by; use 0 for greedy"),
        ({"final_temperature": -1.0}, "final_temperature must be a finite number of at least 0"),
        ({"final_temperature": 1e-9}, "final_temperature 1e-09 is too small to divide by"),
        ({"temperature_power": 0.0}, "temperature_power must be a finite number above 0"),
        ({"draft_tokens": 0}, "draft_tokens must lie in 1"),
        ({"top_p": 0.0}, "top_p must be a finite number above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p must be a finite number above 0 and at most 1"),
        ({"top_k": -1}, "top_k must lie in 0"),
        ({"top_k": 2.5}, "top_k must be a whole number"),
        ({"min_p": 1.5}, "min_p must be"),
        ({"repetition_penalty": 0}, "repetition_penalty must be a finite number above 0"),
        ({"frequency_penalty": float("inf")}, "frequency_penalty must be"),
        ({"no_repeat_ngram_size": -2}, "no_repeat_ngram_size must lie in"),
        ({"max_new_tokens": 0}, "max_new_tokens must lie in 1"),
        ({"seed": 2**63}, "seed must lie in"),
        ({"eos_ids": (-1,)}, "an id of eos_ids must lie in"),
        ({"stop": "end"}, "stop must be a list of texts"),
        ({"stop": ("",)}, "stop must be a list of texts that are not empty"),
    ],
)
def test_options_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SamplingOptions(**values)
