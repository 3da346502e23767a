"""Quantized weights: smaller, close to the network they come from, and decoded by the same code."""

import pytest
import torch

from model import ModelConfig, SamplingOptions
from model.decoder import Decoder
from model.generate import generate
from model.quantized import GROUP, Int4Linear, Int8Linear
from tasks.errors import UserError
from tasks.release.quantize import compare, quantize, score_texts, weight_bytes
from tests.corpus import story
from tests.release_workspace import write_tokenizer
from tests.test_model_strategies import lively_model, one_thread  # noqa: F401

SIZES = {"d_model": 64, "n_layers": 2, "n_heads": 4, "d_ff": 96, "max_seq_len": 64}


def network_of(**values):
    return lively_model(ModelConfig(**SIZES | {"vocab_size": 300} | values))


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize(("make", "worst"), [(Int8Linear, 0.012), (Int4Linear, 0.12)])
def test_a_table_gives_the_product_with_the_numbers_it_stands_for(make, worst, rows):
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(n, 64, generator=generator) for n in (45, rows))
    table = make(weight)
    assert (table.weight.float() - weight).norm() / weight.norm() < worst
    found, expected = table(x.unsqueeze(0)), x.bfloat16().float() @ table.weight.float().T
    assert found.shape == (1, rows, 45)
    torch.testing.assert_close(found[0].float(), expected, rtol=0.02, atol=0.1)


def test_each_weight_is_rounded_to_the_nearest_level_of_its_row_or_group():
    weight = torch.randn(32, 2 * GROUP, generator=torch.Generator().manual_seed(1))
    off = (Int8Linear(weight).weight.float() - weight).abs()
    assert (off <= weight.abs().amax(dim=1, keepdim=True) * (0.5 / 127 + 2**-8)).all()
    groups = weight.unflatten(1, (-1, GROUP))
    span = groups.amax(dim=2) - groups.amin(dim=2)
    off = (Int4Linear(weight).weight.float() - weight).abs().unflatten(1, (-1, GROUP)).amax(dim=2)
    assert (off <= span * 0.5 / 15 + 0.03).all()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"tie_embeddings": False, "n_kv_heads": 2, "positions": "alibi", "norm": "layernorm"},
        {"d_embed": 32, "qk_norm": True},
        {"n_experts": 4, "shared_expert": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_quantized_network_is_close_to_its_source_which_stays_as_it_was(kind, values):
    source = network_of(**values)
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    network, ids = quantize(source, kind), torch.arange(24).view(2, 12)
    with torch.no_grad():
        wanted, found = source(ids), network(ids).float()
    assert all(torch.equal(t, before[name]) for name, t in source.state_dict().items())
    likeness = torch.nn.functional.cosine_similarity(wanted, found, dim=-1).mean()
    assert likeness > (0.99 if kind == "int8" else 0.8)
    if kind == "int8" or source.config.d_embed is None:
        assert weight_bytes(network) < 0.45 * weight_bytes(source)
    decoder = Decoder(network, 2)
    read = decoder.read(ids, decoder.new_cache(2, 12))[:, 0]
    near = torch.nn.functional.cosine_similarity(read, found[:, -1], dim=-1)
    assert (near > 0.97).all()
    options = SamplingOptions(max_new_tokens=5, temperature=0)
    assert len(generate(network, [[1, 2], [3]], options)[1].ids) == 5


def test_a_tied_table_of_8_bits_is_held_once():
    network = quantize(network_of(), "int8")
    assert network.embed_tokens.rows is network.lm_head
    assert network.embed_tokens.rows.table.data_ptr() == network.lm_head.table.data_ptr()


def test_what_quantizing_costs_is_told_kind_by_kind(tmp_path):
    from tasks.tokens.text import load_tokenizer

    write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    network = network_of(vocab_size=tokenizer.vocab_size)
    texts = [story(number, sentences=3) for number in range(3)]
    rows = compare(network, tokenizer, texts)
    assert [row.kind for row in rows] == ["fp32", "bf16", "int8", "int4"]
    plain, half, int8, int4 = rows
    assert plain.weight_bytes == 2 * half.weight_bytes > 3 * int8.weight_bytes
    assert int8.weight_bytes > int4.weight_bytes
    assert half.bits_per_byte == pytest.approx(plain.bits_per_byte, rel=0.02)
    assert int8.bits_per_byte == pytest.approx(plain.bits_per_byte, rel=0.05)
    assert int4.bits_per_byte != int8.bits_per_byte
    assert plain.bits_per_byte == score_texts(network, tokenizer, texts).bits_per_byte
    with pytest.raises(UserError, match="no text"):
        compare(network, tokenizer, [])
    with pytest.raises(UserError, match="do not belong together"):
        compare(network_of(vocab_size=5), tokenizer, texts)
    with pytest.raises(UserError, match="there are: fp32, bf16, int8, int4"):
        compare(network, tokenizer, texts, kinds=["int3"])


def test_a_width_that_int4_cannot_group_is_refused_by_name():
    with pytest.raises(UserError, match=r"embed_tokens is 40 wide; .* 32 .*\n.*int8"):
        quantize(network_of(d_model=40), "int4")
    quantize(network_of(d_model=40), "int8")
    with pytest.raises(UserError, match="'int2'"):
        quantize(network_of(), "int2")
