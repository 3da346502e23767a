"""What holds for every configuration: causal order, documents, caches, padding, positions."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from model import KVCache, ModelConfig, Transformer
from model.feedforward import SwiGLU
from model.masks import alibi_bias
from model.positions import Rotation, alibi_slopes, rope_tables
from tests.test_model_strategies import (
    CONTEXT,
    VOCABULARY,
    lively_model,
    one_thread,  # noqa: F401
    random_ids,
    small_configs,
)

few = settings(max_examples=40, deadline=None)
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def small(**values) -> ModelConfig:
    sizes = {"d_model": 8, "n_layers": 2, "n_heads": 2, "d_ff": 16}
    return ModelConfig(**sizes | {"vocab_size": VOCABULARY, "max_seq_len": CONTEXT} | values)


# Who sees whom.


@few
@given(small_configs(), st.integers(1, CONTEXT - 1), st.booleans())
def test_a_future_token_never_changes_an_earlier_logit(config, moment, training):
    model = lively_model(config).train(training)
    ids = random_ids(2, CONTEXT)
    other = ids.clone()
    other[:, moment:] = (ids[:, moment:] + 1) % VOCABULARY
    with torch.no_grad():
        before, after = model(ids), model(other)
    torch.testing.assert_close(before[:, :moment], after[:, :moment], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before[:, moment:], after[:, moment:])


@few
@given(small_configs(), st.integers(1, CONTEXT - 1))
@torch.no_grad()
def test_nothing_leaks_across_documents(config, border):
    model = lively_model(config)
    ids = random_ids(2, CONTEXT)
    documents = (torch.arange(CONTEXT) >= border).long().expand(2, -1)
    together = model(ids, document_ids=documents)
    torch.testing.assert_close(together[:, :border], model(ids[:, :border]), **CLOSE)
    # Positions go on counting across the border, so the second document is run at its own.
    positions = torch.arange(border, CONTEXT).expand(2, -1)
    alone = model(ids[:, border:], positions=positions)
    torch.testing.assert_close(together[:, border:], alone, **CLOSE)


@few
@given(small_configs(), st.integers(1, CONTEXT), st.integers(1, 3))
@torch.no_grad()
def test_reading_in_pieces_with_a_cache_gives_the_logits_of_reading_at_once(config, prompt, piece):
    model = lively_model(config)
    ids = random_ids(2, CONTEXT)
    cache = model.new_cache(2, CONTEXT)
    pieces = [model(ids[:, :prompt], cache=cache)]
    for start in range(prompt, CONTEXT, piece):
        pieces.append(model(ids[:, start : start + piece], cache=cache))
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids), **CLOSE)
    assert cache.length == CONTEXT


@few
@given(small_configs(), st.lists(st.integers(0, 8), min_size=1, max_size=3))
@torch.no_grad()
def test_a_row_padded_on_the_left_gives_what_it_gives_alone(config, pads):
    model = lively_model(config)
    ids, padding = random_ids(len(pads), CONTEXT), torch.tensor(pads)
    cache = model.new_cache(len(pads), CONTEXT)
    whole = model(ids, left_padding=padding)
    parts = [model(ids[:, :10], cache=cache, left_padding=padding)]
    parts += [model(ids[:, i : i + 1], cache=cache, left_padding=padding) for i in range(10, 16)]
    for row, pad in enumerate(pads):
        alone = model(ids[row : row + 1, pad:])[0]
        torch.testing.assert_close(whole[row, pad:], alone, **CLOSE)
        torch.testing.assert_close(torch.cat(parts, dim=1)[row, pad:], alone, **CLOSE)


@torch.no_grad()
def test_a_window_hides_what_lies_before_it():
    model = lively_model(small(n_layers=1, sliding_window=3))
    ids = random_ids(1, CONTEXT)
    other = ids.clone()
    other[:, 4] = (ids[:, 4] + 1) % VOCABULARY
    changed = (model(ids) != model(other)).any(dim=-1)[0]
    assert changed.nonzero().flatten().tolist() == [4, 5, 6]


def test_the_plain_causal_case_needs_no_mask_and_the_others_get_one():
    from model.masks import sight

    def bias(config, past=0, length=8, **given):
        context = {"slopes": None, "left_padding": None, "document_ids": None} | given
        return sight(
            config, past, length, device=torch.device("cpu"), dtype=torch.float32, **context
        )

    assert bias(small())[:2] == (None, True)
    assert bias(small(), past=5, length=1)[:2] == (None, False)
    assert bias(small(sliding_window=8))[:2] == (None, True)
    assert bias(small(sliding_window=7)).bias is not None
    assert bias(small(), past=5, length=2).bias is not None
    assert bias(small(), document_ids=torch.zeros(1, 8)).bias is not None
    # A pad sees itself: a row without any key is NaN in some kernels, and NaN spreads.
    padded = bias(small(), left_padding=torch.tensor([5])).bias
    assert (padded > float("-inf")).any(dim=-1).all()


def test_the_cache_holds_the_shared_heads_alone_and_refuses_to_overflow():
    config = small(n_heads=4, n_kv_heads=1, head_dim=4)
    model = lively_model(config)
    cache = model.new_cache(3, 5)
    assert cache.nbytes == 2 * config.n_layers * 3 * 1 * 5 * 4 * 4
    model(random_ids(3, 4), cache=cache)
    with pytest.raises(ValueError, match="room for 5 tokens, not for 6"):
        model(random_ids(3, 2), cache=cache)


def test_a_sequence_beyond_the_context_and_documents_with_a_cache_are_refused():
    model = lively_model(small())
    with pytest.raises(ValueError, match=r"17 tokens .* \(max_seq_len 16\)"):
        model(random_ids(1, 17))
    with pytest.raises(ValueError, match="not for decoding with a cache"):
        cache = KVCache(model.config, 1, 8)
        model(random_ids(1, 4), cache=cache, document_ids=torch.zeros(1, 4))


# Positions.


def turned(layout: str, scale: float, x: torch.Tensor, position: int) -> torch.Tensor:
    config = small(head_dim=x.shape[-1], rope_layout=layout, rope_scale=scale, max_seq_len=600)
    cos, sin = rope_tables(config)
    at = slice(position, position + 1)
    return Rotation(cos[at], sin[at], layout).turn(x.view(1, 1, 1, -1)).flatten()


@few
@given(
    st.sampled_from(["half", "interleaved"]),
    st.sampled_from([1.0, 2.0]),
    st.sampled_from([2, 6, 80]),
    st.integers(0, 400),
    st.integers(0, 400),
    st.integers(0, 100),
)
def test_rope_keeps_norms_and_scores_depend_on_the_offset_alone(layout, scale, size, a, b, offset):
    generator = torch.Generator().manual_seed(size)
    q, k = torch.randn(2, size, generator=generator)
    for position in (a, b):
        norm = turned(layout, scale, q, position).norm()
        torch.testing.assert_close(norm, q.norm(), rtol=1e-5, atol=1e-5)
    scores = [
        turned(layout, scale, q, start + offset) @ turned(layout, scale, k, start)
        for start in (a, b)
    ]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-3, atol=1e-3)


def test_the_two_rope_layouts_are_one_rotation_of_dimensions_in_another_order():
    x = torch.randn(8, generator=torch.Generator().manual_seed(0))
    order = torch.arange(8).view(2, 4).T.flatten()  # 0 4 1 5 2 6 3 7
    half, pairs = turned("half", 1.0, x, 7), turned("interleaved", 1.0, x[order], 7)
    torch.testing.assert_close(half[order], pairs)
    assert not torch.allclose(half, x)


def test_scaling_by_two_turns_position_ten_as_far_as_position_five():
    x = torch.randn(8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(turned("half", 2.0, x, 10), turned("half", 1.0, x, 5))


def test_alibi_has_the_published_slopes_for_any_number_of_heads():
    assert alibi_slopes(8) == [2.0**-i for i in range(1, 9)]
    between = [2 ** -(i / 2) for i in (1, 3, 5, 7)]
    assert alibi_slopes(12) == pytest.approx([2.0**-i for i in range(1, 9)] + between)
    assert alibi_slopes(12)[8] == pytest.approx(0.7071, abs=1e-4)
    assert alibi_slopes(12)[11] == pytest.approx(0.0884, abs=1e-4)


@given(st.integers(1, 64))
def test_alibi_is_never_positive_and_falls_with_distance(n_heads):
    slopes = alibi_slopes(n_heads)
    assert len(set(slopes)) == n_heads
    bias = alibi_bias(torch.tensor(slopes), torch.arange(40).unsqueeze(1))[..., 0]
    assert (bias <= 0).all()
    assert (bias.diff(dim=1) < 0).all()


@torch.no_grad()
def test_alibi_moves_attention_towards_what_is_near():
    """With alike keys, the farther one has the smaller weight, by exactly the slope."""
    model = lively_model(small(n_layers=1, n_heads=1, positions="alibi"))
    attention = model.layers[0].self_attn
    attention.q_proj.weight.zero_()
    attention.v_proj.weight.copy_(torch.eye(8))
    attention.o_proj.weight.copy_(torch.eye(8))
    from model.masks import sight

    seen = sight(
        model.config, 0, 3, slopes=model.positions.slopes, left_padding=None, document_ids=None,
        device=torch.device("cpu"), dtype=torch.float32,
    )  # fmt: skip
    weights = attention(torch.eye(8)[:3].unsqueeze(0), None, seen, None)[0, 2, :3]
    slope = alibi_slopes(1)[0]
    expected = torch.tensor([math.exp(-2 * slope), math.exp(-slope), 1.0])
    torch.testing.assert_close(weights, expected / expected.sum())


# First weights, dropout, memory.


def test_the_first_weights_follow_from_the_seed_alone():
    config = small(init="scaled")
    one = Transformer(config, generator=torch.Generator().manual_seed(7))
    torch.manual_seed(7)
    two = Transformer(config)
    other = Transformer(config, generator=torch.Generator().manual_seed(8))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name])
    assert not torch.equal(one.embed_tokens.weight, other.embed_tokens.weight)


def test_each_init_has_its_own_spread():
    sizes = {"d_model": 256, "d_ff": 512, "n_layers": 8, "vocab_size": 500}

    def spread(init):
        model = Transformer(small(init=init, **sizes), generator=torch.Generator().manual_seed(0))
        block = model.layers[3]
        tables = model.embed_tokens, block.self_attn.q_proj, block.self_attn.o_proj
        return [table.weight.std().item() for table in (*tables, block.mlp.down_proj)]

    assert spread("normal") == pytest.approx([0.02] * 4, rel=0.05)
    assert spread("scaled") == pytest.approx([0.02, 0.02, 0.005, 0.005], rel=0.05)
    uniform = [1 / math.sqrt(3 * width) for width in (256, 256, 512)]
    assert spread("torch") == pytest.approx([1.0, *uniform], rel=0.05)


def test_dropout_acts_in_training_alone_and_can_be_set():
    ids = random_ids(2, CONTEXT)
    model = lively_model(small(embed_dropout=0.1, attn_dropout=0.1, resid_dropout=0.1))
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))
    for place in ("embed", "attn", "resid"):
        model.set_dropout(**{"embed": 0.0, "attn": 0.0, "resid": 0.0} | {place: 0.5})
        assert not torch.equal(model(ids), model(ids)), place
    model.set_dropout(embed=0.0, attn=0.0, resid=0.0)
    assert torch.equal(model(ids), model(ids))


@settings(max_examples=10, deadline=None)
@given(small_configs())
def test_recomputing_blocks_changes_no_gradient(config):
    gradients = []
    for recompute in (False, True):
        model = lively_model(config).train()
        model.recompute = recompute
        ids = random_ids(2, CONTEXT)
        model.loss(ids, ids.roll(-1, dims=1))[0].backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_under_autocast_the_model_computes_in_bf16_and_agrees():
    model = lively_model(small(positions="rope+alibi", n_kv_heads=1, qk_norm=True))
    ids = random_ids(2, CONTEXT)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        logits = model(ids)
        cached = model(ids, cache=model.new_cache(2, CONTEXT))
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits, cached)
    exact = model(ids)
    assert (logits - exact).abs().max() < 0.05 * exact.abs().max()


def test_the_feed_forward_has_the_gradients_of_its_formula():
    maps = SwiGLU(small(d_model=8, d_ff=5)).double()
    tables = [nn.init.normal_(table) for table in maps.parameters()]
    x = torch.randn(2, 3, 8, dtype=torch.double, requires_grad=True)
    gate, up, down = tables
    formula = (F.silu(x @ gate.T) * (x @ up.T)) @ down.T
    expected = torch.autograd.grad(formula.square().sum(), [x, *tables])
    found = torch.autograd.grad(maps(x).square().sum(), [x, *tables])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_feed_forward_keeps_two_wide_tensors_for_the_way_back(dtype):
    maps = SwiGLU(small(d_model=8, d_ff=48))
    kept = set()

    def keep(tensor):
        if tensor.shape[-1] == 48 and tensor.shape[0] == 2:
            kept.add(tensor.data_ptr())
        return tensor

    autocast = torch.autocast("cpu", dtype, enabled=dtype is not torch.float32)
    with autocast, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = maps(torch.randn(2, 3, 8))
    assert y.dtype == dtype and len(kept) == 2
    y.sum().backward()
    assert all(weight.grad.dtype == torch.float32 for weight in maps.parameters())
