"""One token of one row through the network, as two compiled functions, for decoding on a CPU.

Between the products of a block plain torch calls some forty small operators, and its products are
made for many rows. torch.compile writes one C++ function for a block and one for the way out:

    x (C,), a block's tables, its cache, bias (H, T) -> x (C,)       called once a block
    x (C,), norm, [embed_out], table (V, E)          -> logits (V,)

Weights are arguments, so all blocks share one function and compiling takes seconds. They are copied
to `stripes.py`'s order, which is read at almost the pace of memory. T is a size that the code does
not know, so a cache that grows compiles nothing anew. What flows is fp32, whatever the tables are:
fp32, bf16 or 8-bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import KVCache
from .config import ModelConfig
from .feedforward import SwiGLU
from .linear import Linear
from .masks import Sight
from .positions import Rotation
from .quantized import Int8Linear
from .stripes import LargePages, Table, striped
from .transformer import Block, Transformer

Run = Callable[..., Tensor]
Norm = tuple[Tensor, ...]
"""weight of an RMSNorm, weight and bias of a LayerNorm; fp32."""


class CompiledStep:
    """What `Decoder.read` does with one token of one row, compiled at the first call.

    Raises ValueError where the network or this machine has what cannot be compiled so.
    """

    def __init__(self, model: Transformer) -> None:
        _check(model)
        self.config = model.config
        with torch.inference_mode():
            self.blocks, self.out = _lay_out(model)
        self.read_block: Run = torch.compile(read_block, fullgraph=True)
        self.read_out: Run = torch.compile(read_out, fullgraph=True)

    def __call__(self, x: Tensor, rotation: Rotation | None, seen: Sight, cache: KVCache) -> Tensor:
        """x (1, 1, C) after one token or more in `cache` -> logits (1, 1, V), fp32."""
        end = cache.end(1)
        place = torch.tensor([end - 1])
        # Copies: code for tensors made here is other code than for views of the model's tables.
        turns = None if rotation is None else tuple(t.clone().flatten() for t in rotation[:2])
        bias = _open_size(_bias(seen, self.config.n_heads, end), 1)
        x = x.flatten().float()
        for layer, weights in enumerate(self.blocks):
            keys, values = cache.keys[layer, 0], cache.values[layer, 0]
            if layer == 0:  # the call that compiles, where anything is to be
                keys, values = _open_size(keys, 1), _open_size(values, 1)
            x = self.read_block(x, weights, keys, values, place, bias, turns, self.config)
        cache.advance(1)
        return self.read_out(x, self.out, self.config.norm_eps).view(1, 1, -1)


class BlockWeights(NamedTuple):
    """The weights of one block; tables that read the same input are joined."""

    before_attention: Norm
    qkv: Table
    heads: tuple[Norm, Norm] | None
    out: Table
    before_feed_forward: Norm
    gate_up: Table
    down: Table


class OutWeights(NamedTuple):
    """The weights after the last block."""

    norm: Norm
    inner: Table | None
    table: Table


def read_block(
    x: Tensor,
    weights: BlockWeights,
    keys: Tensor,
    values: Tensor,
    place: Tensor,
    bias: Tensor,
    turns: tuple[Tensor, ...] | None,
    config: ModelConfig,
) -> Tensor:
    """x (C,) -> (C,); the new key and value are written at `place` (1,) of (G, capacity, D).

    bias (H, T) is added to the scores of the T keys that are filled then; turns: cos and sin (D,).
    """
    n_heads, kv_heads, size = config.n_heads, config.kv_heads, config.head_size
    every = weights.qkv(normed(x, weights.before_attention, config.norm_eps))
    q, k, v = every.unflatten(0, (-1, size)).split((n_heads, kv_heads, kv_heads))
    if weights.heads is not None:
        q = normed(q, weights.heads[0], config.norm_eps)
        k = normed(k, weights.heads[1], config.norm_eps)
    if turns is not None:
        cos, sin = turns
        rotation = Rotation(cos, sin, config.rope_layout)
        q, k = rotation.turn(q), rotation.turn(k)
    keys.index_copy_(1, place, k.unsqueeze(1))
    values.index_copy_(1, place, v.unsqueeze(1))
    x = x + weights.out(attended(q, keys, values, bias))
    gate, up = weights.gate_up(normed(x, weights.before_feed_forward, config.norm_eps)).chunk(2)
    return x + weights.down(F.silu(gate) * up)


def read_out(x: Tensor, weights: OutWeights, eps: float) -> Tensor:
    """x (C,) -> logits (V,)."""
    x = normed(x, weights.norm, eps)
    return weights.table(x if weights.inner is None else weights.inner(x))


def normed(x: Tensor, norm: Norm, eps: float) -> Tensor:
    """x (..., K) through an RMSNorm or a LayerNorm -> (..., K)."""
    weight, *bias = norm
    if bias:
        return F.layer_norm(x, weight.shape, weight, bias[0], eps)
    return F.rms_norm(x, weight.shape, weight, eps)


def attended(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """q (H, D), keys and values (G, capacity, D), bias (H, T) -> (H·D,)."""
    kv_heads, filled = keys.shape[0], bias.shape[1]
    q = q.unflatten(0, (kv_heads, -1)).unsqueeze(2)
    scores = (q * keys[:, None, :filled]).sum(dim=3) * q.shape[-1] ** -0.5
    weights = (scores + bias.unflatten(0, (kv_heads, -1))).softmax(dim=2)
    return (weights.unsqueeze(3) * values[:, None, :filled]).sum(dim=2).flatten()


def _open_size(x: Tensor, dim: int) -> Tensor:
    """x, with a size that the compiled code must not depend on."""
    torch._dynamo.mark_dynamic(x, dim)
    return x


def _bias(seen: Sight, n_heads: int, length: int) -> Tensor:
    """What one query adds to its scores, (H, T), fp32; zeros where it sees all."""
    if seen.bias is None:
        return torch.zeros(n_heads, length)
    return seen.bias.expand(1, n_heads, 1, length).reshape(n_heads, length).contiguous()


def _lay_out(model: Transformer) -> tuple[list[BlockWeights], OutWeights]:
    """The network's weights as the compiled functions take them, all tables in one memory."""
    pages, config = LargePages(), model.config
    blocks = [_weights(block, pages) for block in model.layers]
    inner = striped(pages, model.embed_out) if config.d_embed is not None else None
    last = model.embed_tokens if config.tie_embeddings else model.lm_head
    return blocks, OutWeights(_norm(model.norm), inner, striped(pages, last))


def _weights(block: nn.Module, pages: LargePages) -> BlockWeights:
    assert isinstance(block, Block) and isinstance(block.mlp, SwiGLU)
    attention, mlp = block.self_attn, block.mlp
    heads = (_norm(attention.q_norm), _norm(attention.k_norm)) if attention.qk_norm else None
    return BlockWeights(
        _norm(block.input_layernorm),
        striped(pages, attention.q_proj, attention.k_proj, attention.v_proj),
        heads,
        striped(pages, attention.o_proj),
        _norm(block.post_attention_layernorm),
        striped(pages, mlp.gate_proj, mlp.up_proj),
        striped(pages, mlp.down_proj),
    )


def _norm(norm: nn.Module) -> Norm:
    return tuple(parameter.detach().float() for _, parameter in norm.named_parameters())


def _check(model: Transformer) -> None:
    """Raises ValueError, saying why, where there is no compiled step for the network."""
    if model.config.n_experts is not None:
        raise ValueError("a network with experts is not compiled: each token takes its own way")
    if model.device.type != "cpu":
        raise ValueError(f"the compiled step is for the CPU, and the weights are on {model.device}")
    block = model.layers[0]
    assert isinstance(block, Block)
    if not isinstance(block.self_attn.q_proj, Linear | Int8Linear):
        raise ValueError("4-bit weights are not compiled: their own kernel reads them")
    from torch._inductor import exc
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError) as error:
        raise ValueError(f"compiling needs a C++ compiler such as g++: {error}") from None
