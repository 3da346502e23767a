"""The decoder laid out for speed gives the logits of the network that it was made from."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import ModelConfig, SamplingOptions, Transformer
from model.decoder import Decoder
from model.generate import generate
from tests.test_model_strategies import (
    CONTEXT,
    lively_model,
    one_thread,  # noqa: F401
    random_ids,
    small_configs,
)


@settings(max_examples=40, deadline=None)
@given(
    small_configs(),
    st.integers(1, 3),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.booleans(),
)
def test_reading_in_pieces_gives_the_logits_of_one_uncached_pass(config, rows, pieces, padded):
    model = lively_model(config)
    length = sum(pieces)
    ids = random_ids(rows, length)
    padding = torch.arange(rows) % pieces[0] if padded else None
    with torch.no_grad():
        expected = model(ids, left_padding=padding)
    decoder = Decoder(model, rows)
    cache = decoder.new_cache(rows, length)
    start = 0
    for piece in pieces:
        found = decoder.read(ids[:, start : start + piece], cache, padding, last=piece)
        wanted = expected[:, start : start + piece]
        for row in range(rows):
            first = 0 if padding is None else max(0, int(padding[row]) - start)
            torch.testing.assert_close(
                found[row, first:], wanted[row, first:], rtol=2e-4, atol=2e-4
            )
        start += piece


@settings(max_examples=20, deadline=None)
@given(small_configs(), st.integers(1, 3), st.integers(0, 20))
def test_going_back_to_different_lengths_forgets_what_came_after(config, rows, seed):
    model = lively_model(config)
    decoder = Decoder(model, rows)
    cache = decoder.new_cache(rows, CONTEXT)
    generator = torch.Generator().manual_seed(seed)
    ids = random_ids(rows, 9, seed=seed)
    padding = torch.randint(0, 3, (rows,), generator=generator)
    decoder.read(ids, cache, padding)
    counts = torch.randint(1, 7, (rows,), generator=generator)
    left = cache.settle(padding, counts)
    assert left.min() == 0 and cache.length == counts.max()
    after = random_ids(rows, 1, seed=seed + 1)
    found = decoder.read(after, cache, left)[:, 0]
    for row in range(rows):
        start = int(padding[row])
        alone = torch.cat((ids[row, start : start + int(counts[row])], after[row]))
        with torch.no_grad():
            wanted = model(alone.unsqueeze(0))[0, -1]
        torch.testing.assert_close(found[row], wanted, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("rows", [1, 3])
def test_bf16_weights_decode_close_to_the_fp32_network_of_the_same_values(rows):
    sizes = {"d_model": 64, "n_layers": 2, "n_heads": 4, "d_ff": 96, "max_seq_len": CONTEXT}
    exact = Transformer(ModelConfig(**sizes | {"vocab_size": 23})).eval().bfloat16()
    decoder, ids = Decoder(exact, rows), random_ids(rows, 8)
    found = decoder.read(ids, decoder.new_cache(rows, 8))[:, 0]
    with torch.no_grad():
        expected = exact.float()(ids)[:, -1]
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)


def test_a_decoder_made_once_serves_many_calls_and_holds_the_weights_as_they_were():
    model = lively_model(ModelConfig(8, 2, 2, 16, CONTEXT, vocab_size=23))
    options = SamplingOptions(max_new_tokens=6, temperature=0)
    decoder = Decoder(model, 2)
    batch = [[1, 2, 3], [4]]
    before = generate(model, batch, options)
    assert generate(decoder, batch, options) == before == generate(decoder, batch, options)
    with torch.no_grad():
        for layer in model.layers:
            layer.self_attn.v_proj.weight.neg_()
    assert generate(model, batch, options) != before
