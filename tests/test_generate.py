"""Generation: the same ids as decoding by hand, alone or in a batch, streamed or at once."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import ModelConfig, SamplingOptions, Transformer
from model.generate import generate, stream
from tests.test_model_strategies import (
    CONTEXT,
    VOCABULARY,
    lively_model,
    one_thread,  # noqa: F401
    small_configs,
)

few = settings(max_examples=20, deadline=None)
prompts = st.lists(
    st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9), min_size=1, max_size=4
)
GREEDY = SamplingOptions(max_new_tokens=6, temperature=0)


def model_of(**values) -> Transformer:
    sizes = {"d_model": 8, "n_layers": 2, "n_heads": 2, "d_ff": 16, "max_seq_len": CONTEXT}
    return lively_model(ModelConfig(**sizes | {"vocab_size": VOCABULARY} | values))


def by_hand(model: Transformer, prompt: list[int], count: int) -> list[int]:
    """Greedy decoding with no cache and no batch."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
    return ids[len(prompt) :]


def letters(ids: list[int]) -> str:
    return "".join(chr(ord("a") + i) for i in ids)


@few
@given(small_configs(), prompts)
def test_greedy_ids_in_a_batch_are_those_of_each_prompt_alone_and_uncached(config, batch):
    model = lively_model(config)
    for prompt, completion in zip(batch, generate(model, batch, GREEDY), strict=True):
        assert completion.ids == by_hand(model, prompt, 6)
        assert (completion.prompt, completion.dropped) == (prompt, 0)
        assert completion.finish == "length"


@few
@given(prompts, st.integers(0, 100))
def test_a_row_draws_the_same_in_any_company(batch, seed):
    model = model_of()
    options = SamplingOptions(max_new_tokens=5, temperature=0.9, top_p=0.95, seed=seed)
    together = generate(model, batch, options)
    for row, prompt in enumerate(batch):
        alone = dataclasses.replace(options, seed=seed + row)
        assert generate(model, [prompt], alone) == [together[row]]


def test_a_seed_repeats_and_another_seed_differs():
    model = model_of()
    options = SamplingOptions(max_new_tokens=12, temperature=2.0, seed=1)
    first, again = generate(model, [[1]], options), generate(model, [[1]], options)
    other = generate(model, [[1]], dataclasses.replace(options, seed=2))
    assert first == again != other


def test_drawing_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    generate(model_of(), [[1]], SamplingOptions(max_new_tokens=3, temperature=1.0))
    assert torch.equal(torch.get_rng_state(), state)


def test_streaming_yields_the_ids_of_generate_and_returns_the_completion():
    model = model_of()
    options = SamplingOptions(max_new_tokens=8, temperature=1.0, seed=3)
    (expected,) = generate(model, [[4, 2]], options)
    going, seen = stream(model, [4, 2], options), []
    while True:
        try:
            seen.append(next(going))
        except StopIteration as end:
            assert end.value == expected
            break
    assert seen == expected.ids


def test_between_two_ids_the_caller_has_its_own_modes():
    model = model_of(resid_dropout=0.5).train()
    for _ in stream(model, [1], GREEDY):
        assert model.training and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert model.training
    assert generate(model, [[1]], GREEDY) == generate(model.eval(), [[1]], GREEDY)


def test_an_end_id_ends_its_row_alone_and_is_not_part_of_it():
    model = model_of()
    batch = [[1, 2], [3], [5, 6, 7]]
    free = [c.ids for c in generate(model, batch, GREEDY)]
    eos = free[0][2]
    ended = generate(model, batch, dataclasses.replace(GREEDY, eos_ids=(eos,)))
    for ids, completion in zip(free, ended, strict=True):
        assert completion.ids == (ids[: ids.index(eos)] if eos in ids else ids)
        assert completion.finish == ("eos" if eos in ids else "length")
    assert (
        list(stream(model, batch[0], dataclasses.replace(GREEDY, eos_ids=(eos,)))) == ended[0].ids
    )


def test_a_stop_text_ends_where_it_comes_even_across_ids():
    model = model_of()
    free = generate(model, [[1, 2]], GREEDY)[0].ids
    text = letters(free[1:3])
    options = dataclasses.replace(GREEDY, stop=("?", text))
    (stopped,) = generate(model, [[1, 2]], options, decode=letters)
    end = letters(free).index(text) + len(text)
    assert stopped.finish == "stop" and stopped.ids == free[:end]
    with pytest.raises(ValueError, match="only be found with `decode`"):
        generate(model, [[1]], options)


def test_decoding_ends_when_the_context_is_full():
    model = model_of()
    prompt = list(range(10))
    (completion,) = generate(model, [prompt], SamplingOptions(max_new_tokens=50, temperature=0))
    assert completion.finish == "context" and completion.prompt == prompt
    # The last id follows a context that is full to the brim.
    assert completion.ids == by_hand(model, prompt, CONTEXT - 10 + 1)


def test_a_short_prompt_goes_on_after_a_long_one_has_filled_its_context():
    model = model_of(positions="rope+alibi")
    batch = [list(range(CONTEXT)), [1]]
    long, short = generate(model, batch, SamplingOptions(max_new_tokens=50, temperature=0))
    assert (len(long.ids), long.finish) == (1, "context")
    assert (len(short.ids), short.finish) == (CONTEXT, "context")
    assert short.ids == by_hand(model, [1], CONTEXT)


@pytest.mark.parametrize(("new", "kept"), [(3, CONTEXT - 3), (100, CONTEXT // 2)])
def test_a_prompt_longer_than_the_context_is_cut_from_the_left_and_says_so(new, kept):
    model = model_of()
    prompt = [i % VOCABULARY for i in range(CONTEXT + 5)]
    (completion,) = generate(model, [prompt], SamplingOptions(max_new_tokens=new, temperature=0))
    assert completion.prompt == prompt[-kept:]
    assert completion.dropped == len(prompt) - kept
    assert completion.ids == by_hand(model, prompt[-kept:], min(new, CONTEXT - kept + 1))


def test_penalties_reach_the_choice():
    model = model_of()
    options = SamplingOptions(max_new_tokens=10, temperature=0)
    runs = generate(model, [[1, 1]], dataclasses.replace(options, no_repeat_ngram_size=1))[0].ids
    assert len({1, *runs}) == 11
    plain = generate(model, [[1, 1]], options)[0].ids
    assert len(set(plain)) < 10


def test_prompts_that_cannot_be_read_are_refused_before_the_first_id():
    model = model_of()
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        generate(model, [[1], []])
    with pytest.raises(ValueError, match="prompt 0 holds the id 23, outside the vocabulary of 23"):
        stream(model, [VOCABULARY])
    assert generate(model, []) == []
