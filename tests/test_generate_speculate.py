"""Speculative decoding: whatever the draft proposes, what comes out is the model's own."""

import dataclasses
from collections import Counter
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import ModelConfig, SamplingOptions
from model.generate import generate, stream
from model.sampling import penalize, probabilities
from model.speculate import judge
from tests.test_generate import GREEDY, letters, model_of, prompts
from tests.test_model_strategies import (
    CONTEXT,
    lively_model,
    one_thread,  # noqa: F401
    small_configs,
)

few = settings(max_examples=15, deadline=None)
CHOICES = SamplingOptions(
    max_new_tokens=3,
    temperature=1.3,
    final_temperature=0.7,
    top_k=4,
    min_p=0.02,
    repetition_penalty=1.2,
    frequency_penalty=0.3,
    presence_penalty=0.2,
)


def tiny(seed: int, **values):
    sizes = {"d_model": 8, "n_layers": 1, "n_heads": 2, "d_ff": 8, "max_seq_len": CONTEXT}
    return lively_model(ModelConfig(**sizes | {"vocab_size": 5} | values), seed=seed)


def exact(model, prompt: list[int], options: SamplingOptions) -> dict[tuple[int, ...], float]:
    """The probability of every continuation, by enumeration, with no cache and no draft."""
    found = {}
    for ids in product(range(5), repeat=options.max_new_tokens):
        chance = 1.0
        for step, token in enumerate(ids):
            past = list(ids[:step])
            with torch.no_grad():
                line = model(torch.tensor([prompt + past]))[0, -1]
            line = penalize(line, prompt, past, options)
            chance *= probabilities(line[None], options, [step])[0, token].item()
            if not chance:
                break
        found[ids] = chance
    return found


@few
@given(small_configs(), prompts, st.integers(1, 5), st.booleans())
def test_greedy_ids_with_a_draft_are_the_very_ids_without(config, batch, size, agrees):
    model = lively_model(config)
    draft = model if agrees else model_of(d_model=12, n_layers=1)
    options = dataclasses.replace(GREEDY, draft_tokens=size)
    alone = generate(model, batch, options)
    for one, two in zip(alone, generate(model, batch, options, draft=draft), strict=True):
        assert (one.ids, one.finish) == (two.ids, two.finish)
        assert two.accepted <= two.proposed and one.proposed == 0
        if agrees:
            assert two.accepted == two.proposed > 0


@pytest.mark.parametrize("options", [CHOICES, SamplingOptions(max_new_tokens=3, top_p=0.8)])
def test_drawn_ids_with_a_draft_come_as_often_as_the_model_alone_says(options):
    model, draft, prompt, count = tiny(0), tiny(1), [1, 2], 3000
    expected = exact(model, prompt, options)
    assert sum(expected.values()) == pytest.approx(1.0, abs=1e-4)
    options = dataclasses.replace(options, seed=0, draft_tokens=2)
    done = generate(model, [prompt] * count, options, draft=draft)
    assert 0 < sum(c.accepted for c in done) < sum(c.proposed for c in done)
    seen = Counter(tuple(c.ids) for c in done)
    assert all(expected[ids] > 0 for ids in seen), "an id that is cut was drawn"
    # Chi-square, with what is expected fewer than five times taken together.
    common = {ids: p * count for ids, p in expected.items() if p * count >= 5}
    cells = [(seen[ids], mean) for ids, mean in common.items()]
    rest = count - sum(mean for _, mean in cells)
    if rest > 1:
        cells.append((count - sum(n for n, _ in cells), rest))
    statistic = sum((n - mean) ** 2 / mean for n, mean in cells)
    freedom = len(cells) - 1
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


def test_an_unlikely_proposal_is_refused_and_another_drawn_from_what_is_left():
    @dataclasses.dataclass
    class Row:
        prompt: list[int]
        ids: list[int]
        budget: int
        generator: torch.Generator

    p, q = torch.tensor([0.1, 0.6, 0.3]), torch.tensor([0.7, 0.2, 0.1])
    logits, options = p.log().expand(2, 3), SamplingOptions()
    row = Row([0], [], 9, torch.Generator().manual_seed(0))
    kept = [judge(logits, [0], q[None], row, options) for _ in range(2000)]
    refused = [ids[0] for ids in kept if len(ids) == 1]
    assert len(refused) / 2000 == pytest.approx(1 - 0.1 / 0.7, abs=0.04)
    assert Counter(refused)[0] == 0
    assert Counter(refused)[1] / len(refused) == pytest.approx(0.4 / 0.6, abs=0.05)


@few
@given(prompts, st.integers(0, 50))
def test_a_row_with_a_draft_draws_the_same_in_any_company(batch, seed):
    model, draft = model_of(), model_of(n_layers=1)
    options = SamplingOptions(max_new_tokens=9, temperature=0.9, top_p=0.95, seed=seed)
    together = generate(model, batch, options, draft=draft)
    for row, prompt in enumerate(batch):
        alone = dataclasses.replace(options, seed=seed + row)
        assert generate(model, [prompt], alone, draft=draft) == [together[row]]


def test_ends_are_found_inside_what_was_accepted():
    model, batch = model_of(), [[1, 2], [3], [5, 6, 7]]
    free = generate(model, batch, GREEDY)[0].ids
    eos = dataclasses.replace(GREEDY, eos_ids=(free[2],))
    assert ids_of(generate(model, batch, eos, draft=model)) == ids_of(generate(model, batch, eos))
    stop = dataclasses.replace(GREEDY, stop=(letters(free[1:3]),))
    (one,) = generate(model, batch[:1], stop, letters)
    (two,) = generate(model, batch[:1], stop, letters, draft=model)
    assert (one.ids, one.finish) == (two.ids, two.finish) and two.finish == "stop"


def ids_of(completions) -> list[tuple]:
    return [(c.ids, c.finish) for c in completions]


@pytest.mark.parametrize("context", [CONTEXT, 6])
def test_the_contexts_of_both_end_where_they_end(context):
    model, draft = model_of(), model_of(n_layers=1, max_seq_len=context)
    batch = [list(range(CONTEXT)), [1], list(range(10))]
    options = SamplingOptions(max_new_tokens=50, temperature=0, draft_tokens=5)
    done = generate(model, batch, options, draft=draft)
    assert ids_of(done) == ids_of(generate(model, batch, options))
    assert [c.finish for c in done] == ["context"] * 3


def test_streaming_with_a_draft_yields_the_ids_of_generate():
    model, draft = model_of(), model_of(n_layers=1)
    options = SamplingOptions(max_new_tokens=8, seed=3, no_repeat_ngram_size=2)
    (expected,) = generate(model, [[4, 2]], options, draft=draft)
    assert list(stream(model, [4, 2], options, draft=draft)) == expected.ids
    eos = dataclasses.replace(options, eos_ids=(expected.ids[3],))
    cut = expected.ids[: expected.ids.index(expected.ids[3])]
    assert list(stream(model, [4, 2], eos, draft=draft)) == cut


def test_a_draft_of_another_vocabulary_is_refused():
    message = "the draft has a vocabulary of 5 ids, the model one of 23"
    with pytest.raises(ValueError, match=message):
        generate(model_of(), [[1]], draft=tiny(0))
    with pytest.raises(ValueError, match=message):
        stream(model_of(), [1], draft=tiny(0))
