"""The compiled step gives the logits of an uncached pass, compiles once, and refuses by name."""

import dataclasses
from collections.abc import Iterator

import pytest
import torch
import torch._inductor.config

from model import ModelConfig, SamplingOptions, Transformer, stripes
from model.decoder import Decoder
from model.generate import generate
from model.quantized import Int8Linear
from tasks.release.quantize import quantize
from tests.test_generate import GREEDY, model_of
from tests.test_model_strategies import CONTEXT, lively_model, one_thread, random_ids  # noqa: F401

KINDS = [
    {"n_kv_heads": 2, "n_heads": 4, "qk_norm": True, "d_embed": 4},
    {
        "norm": "layernorm",
        "positions": "rope+alibi",
        "rope_layout": "interleaved",
        "sliding_window": 3,
        "tie_embeddings": False,
    },
]


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Each network is compiled for itself."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def network_of(**values) -> Transformer:
    sizes = {"d_model": 8, "n_layers": 2, "n_heads": 2, "d_ff": 16, "max_seq_len": CONTEXT}
    return lively_model(ModelConfig(**sizes | {"vocab_size": 23} | values))


@pytest.mark.parametrize("values", KINDS, ids=str)
def test_token_by_token_it_gives_the_logits_of_one_uncached_pass_and_compiles_once(values):
    model, ids = network_of(**values), random_ids(1, 12)
    with torch.no_grad():
        expected = model(ids)
    decoder = Decoder(model, compiled=True)
    cache = decoder.new_cache(1, 12)
    decoder.read(ids[:, :2], cache)
    graphs = torch._dynamo.utils.counters["stats"]
    start, seen = graphs["unique_graphs"], []
    for place in range(2, 12):
        found = decoder.read(ids[:, place : place + 1], cache)[:, 0]
        torch.testing.assert_close(found, expected[:, place], rtol=2e-4, atol=2e-4)
        seen.append(graphs["unique_graphs"] - start)
    assert set(seen) == {2}
    # Another capacity compiles nothing either, and pads at the front of the row stay hidden.
    padding = torch.tensor([2])
    with torch.no_grad():
        padded = model(ids, left_padding=padding)
    cache = decoder.new_cache(1, 14)
    decoder.read(ids[:, :5], cache, padding)
    for place in range(5, 12):
        found = decoder.read(ids[:, place : place + 1], cache, padding)[:, 0]
        torch.testing.assert_close(found, padded[:, place], rtol=2e-4, atol=2e-4)
    assert graphs["unique_graphs"] - start == 2


def test_a_cache_without_room_is_refused_and_not_written_past():
    decoder = Decoder(network_of(), compiled=True)
    cache = decoder.new_cache(1, 3)
    decoder.read(random_ids(1, cache.capacity), cache)
    with pytest.raises(ValueError, match="room for 4 tokens, not for 5"):
        decoder.read(random_ids(1, 1), cache)


def test_generation_gives_the_same_ids_drawn_or_with_a_draft_and_one_row_at_a_time():
    model, draft = model_of(), model_of(n_layers=1)
    drawn = SamplingOptions(max_new_tokens=8, temperature=0.9, seed=1)
    decoder, proposer = Decoder(model, compiled=True), Decoder(draft, compiled=True)
    for prompt in ([3], [1, 2, 4, 8], list(range(14))):
        for options in (GREEDY, drawn):
            assert generate(decoder, [prompt], options) == generate(model, [prompt], options)
        with_draft = dataclasses.replace(drawn, draft_tokens=2)
        plain = generate(model, [prompt], with_draft, draft=draft)
        assert generate(decoder, [prompt], with_draft, draft=proposer) == plain
    # Several rows are read by the plain step, until one of them is left.
    batch = [[1, 2, 3], list(range(12))]
    assert generate(decoder, batch, GREEDY) == generate(model, batch, GREEDY)


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_weights_are_read_as_they_are(dtype):
    model = network_of(d_model=64, n_heads=4)
    model = quantize(model, "int8") if dtype == "int8" else model.bfloat16()
    ids, decoder = random_ids(1, 8), Decoder(model, compiled=True)
    cache = decoder.new_cache(1, 8)
    decoder.read(ids[:, :4], cache)
    with torch.no_grad():
        expected = (model if dtype == "int8" else model.float())(ids).float()
    for place in range(4, 8):
        found = decoder.read(ids[:, place : place + 1], cache)[:, 0]
        near = torch.nn.functional.cosine_similarity(found, expected[:, place])
        assert near > 0.999


@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8"])
def test_stripes_give_the_product_of_the_joined_tables_wherever_they_are_kept(kind, monkeypatch):
    monkeypatch.setattr(stripes, "_CHUNK", 4096)
    pages, x = stripes.LargePages(), torch.randn(24)
    plain = [torch.nn.Linear(24, n_out, bias=False) for n_out in (5, 32, 50)]
    maps = [Int8Linear(m.weight) if kind == "int8" else m for m in plain]
    maps = [m.bfloat16() for m in maps] if kind == "bf16" else maps
    tables = [stripes.striped(pages, *maps[start:]) for start in range(3)]
    weights = torch.cat([m.weight.detach().float() for m in maps])
    for table, start in zip(tables, (0, 5, 37), strict=True):
        assert table.stripes.data_ptr() % 64 == 0
        torch.testing.assert_close(table(x), weights[start:] @ x, rtol=1e-2, atol=1e-2)


def test_what_cannot_be_compiled_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="one row, not 3"):
        Decoder(network_of(), 3, compiled=True)
    with pytest.raises(ValueError, match="experts is not compiled"):
        Decoder(network_of(n_experts=2), compiled=True)
    with pytest.raises(ValueError, match="for the CPU, and the weights are on meta"):
        Decoder(network_of().to("meta"), compiled=True)
    with pytest.raises(ValueError, match="4-bit weights are not compiled"):
        Decoder(quantize(network_of(d_model=32, d_ff=32), "int4"), compiled=True)
    without = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    with without, pytest.raises(ValueError, match="needs a C"):
        Decoder(network_of(), compiled=True)
