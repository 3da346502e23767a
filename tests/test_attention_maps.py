"""The attention weights that are drawn are those that the network attends with."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import ModelConfig, Transformer
from tasks.release.attention_maps import attention_maps
from tests.test_model_strategies import VOCABULARY, lively_model, one_thread, small_configs

__all__ = ["one_thread"]


def inputs_and_outputs(model: Transformer, ids: list[int]) -> tuple[list, list]:
    """What goes into each layer's attention, (T, C), and what comes out of it, (T, C)."""
    into, out = [], []

    def note(_: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        into.append(inputs[0][0])
        out.append(output[0])

    hooks = [block.self_attn.register_forward_hook(note) for block in model.layers]
    with torch.no_grad():
        model.hidden(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return into, out


def naive_weight(model: Transformer, layer: int, x: torch.Tensor, head: int, i: int) -> list[float]:
    """Query i's weights on keys 0..T-1, a number at a time, from the layer's input x (T, C)."""
    config, attention = model.config, model.layers[layer].self_attn
    size = config.head_size
    shared = head // (config.n_heads // config.kv_heads)

    def vector(projection: torch.nn.Module, norm: str, which: int, place: int) -> list[float]:
        row = projection(x[place])[which * size : (which + 1) * size]
        if config.qk_norm:
            row = getattr(attention, norm)(row)
        return turned(config, row.tolist(), place)

    q = vector(attention.q_proj, "q_norm", head, i)
    scores = []
    for j in range(i + 1):
        if config.sliding_window is not None and i - j >= config.sliding_window:
            scores.append(-math.inf)
            continue
        k = vector(attention.k_proj, "k_norm", shared, j)
        score = sum(a * b for a, b in zip(q, k, strict=True)) / math.sqrt(size)
        if config.biased:
            score -= model.positions.slopes[head].item() * (i - j)
        scores.append(score)
    top = max(scores)
    powers = [math.exp(score - top) for score in scores]
    return [power / sum(powers) for power in powers] + [0.0] * (len(x) - i - 1)


def turned(config: ModelConfig, vector: list[float], place: int) -> list[float]:
    """RoPE by its definition: pairs of numbers turned by an angle."""
    if not config.rotates:
        return vector
    size, result = len(vector), list(vector)
    for pair in range(size // 2):
        angle = place / config.rope_scale * config.rope_base ** (-2 * pair / size)
        a, b = (
            (pair, pair + size // 2) if config.rope_layout == "half" else (2 * pair, 2 * pair + 1)
        )
        x, y = vector[a], vector[b]
        result[a] = x * math.cos(angle) - y * math.sin(angle)
        result[b] = x * math.sin(angle) + y * math.cos(angle)
    return result


ids_of = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9)


@settings(max_examples=25, deadline=None)
@given(config=small_configs(), ids=ids_of)
def test_weights_equal_the_definition(config: ModelConfig, ids: list[int]) -> None:
    model = lively_model(config)
    maps = attention_maps(model, ids)
    into, _ = inputs_and_outputs(model, ids)
    layer, head = config.n_layers - 1, config.n_heads - 1
    with torch.no_grad():
        expected = [naive_weight(model, layer, into[layer], head, i) for i in range(len(ids))]
    torch.testing.assert_close(maps[layer, head], torch.tensor(expected), atol=1e-4, rtol=1e-3)


@settings(max_examples=40, deadline=None)
@given(config=small_configs(), ids=ids_of)
def test_weights_times_values_are_what_each_layer_gives(
    config: ModelConfig, ids: list[int]
) -> None:
    model = lively_model(config)
    maps = attention_maps(model, ids)
    assert maps.shape == (config.n_layers, config.n_heads, len(ids), len(ids))
    torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))
    assert not maps.triu(1).any()
    into, out = inputs_and_outputs(model, ids)
    for layer, block in enumerate(model.layers):
        attention = block.self_attn
        with torch.no_grad():
            v = attention.v_proj(into[layer]).unflatten(-1, (-1, config.head_size))
            v = v.transpose(0, 1).repeat_interleave(config.n_heads // config.kv_heads, dim=0)
            mixed = (maps[layer] @ v).transpose(0, 1).flatten(1)
            torch.testing.assert_close(attention.o_proj(mixed), out[layer], atol=1e-4, rtol=1e-3)


def test_some_layers_alone_are_those_of_all() -> None:
    config = ModelConfig(
        d_model=8, n_layers=3, n_heads=2, d_ff=8, max_seq_len=16, vocab_size=VOCABULARY
    )
    model = lively_model(config).train()
    ids = [1, 2, 3, 4]
    assert torch.equal(attention_maps(model, ids, [0, 2]), attention_maps(model, ids)[[0, 2]])
    assert model.training, "the mode is left as it was"


def test_attention_in_bf16_is_given_in_fp32() -> None:
    config = ModelConfig(
        d_model=8, n_layers=1, n_heads=2, d_ff=8, max_seq_len=16, vocab_size=VOCABULARY
    )
    maps = attention_maps(lively_model(config).bfloat16(), [1, 2, 3])
    assert maps.dtype is torch.float32
    torch.testing.assert_close(maps.sum(-1), torch.ones(1, 2, 3))


def test_no_token_and_too_many_are_refused() -> None:
    config = ModelConfig(
        d_model=8, n_layers=1, n_heads=2, d_ff=8, max_seq_len=4, vocab_size=VOCABULARY
    )
    with pytest.raises(ValueError, match="no token"):
        attention_maps(lively_model(config), [])
    with pytest.raises(ValueError, match="longer than the model's context"):
        attention_maps(lively_model(config), [1] * 5)
