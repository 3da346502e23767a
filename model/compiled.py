"""One token of one row through the network, as two compiled functions, for decoding on a CPU.

Between the products of a block plain torch calls some forty small operators, and its products are
made for many rows. torch.compile writes one C++ function for a block and one for the way out:

    x (C,), a block's tables, its cache, bias (H, T) -> x (C,)       called once a block
    x (C,), norm, [embed_out], table (V, E)          -> logits (V,)

Weights are arguments, so all blocks share one function and compiling takes seconds. The product of
one row is bound by reading the table: as a sum along the table's rows it streams through them in
the order in which they are stored. T is a size that the code does not know, so a cache that grows
compiles nothing anew. What flows is fp32, whatever the tables are.
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
from .linear import Embedding, Linear
from .masks import Sight
from .positions import Rotation
from .transformer import Block, Transformer

Run = Callable[..., Tensor]
Norm = tuple[Tensor, ...]
"""weight of an RMSNorm, weight and bias of a LayerNorm."""


class CompiledStep:
    """What `Decoder.read` does with one token of one row, compiled at the first call.

    Raises ValueError where the network or this machine has what cannot be compiled so.
    """

    def __init__(self, model: Transformer) -> None:
        _check(model)
        self.config = model.config
        self.blocks = [_tables(block) for block in model.layers]
        self.norm = _norm(model.norm)
        self.inner = model.embed_out.weight.detach() if self.config.d_embed is not None else None
        self.table = model.output_table.detach()
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
        for layer, tables in enumerate(self.blocks):
            keys, values = cache.keys[layer, 0], cache.values[layer, 0]
            if layer == 0:  # the call that compiles, where anything is to be
                keys, values = _open_size(keys, 1), _open_size(values, 1)
            x = self.read_block(x, tables, keys, values, place, bias, turns, self.config)
        cache.advance(1)
        logits = self.read_out(x, self.norm, self.inner, self.table, self.config.norm_eps)
        return logits.view(1, 1, -1)


class Tables(NamedTuple):
    """The weights of one block; those that read the same input are joined."""

    before_attention: Norm
    qkv: Tensor
    heads: tuple[Norm, Norm] | None
    out: Tensor
    before_feed_forward: Norm
    gate_up: Tensor
    down: Tensor


def read_block(
    x: Tensor,
    tables: Tables,
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
    every = product(normed(x, tables.before_attention, config.norm_eps), tables.qkv)
    q, k, v = every.unflatten(0, (-1, size)).split((n_heads, kv_heads, kv_heads))
    if tables.heads is not None:
        q = normed(q, tables.heads[0], config.norm_eps)
        k = normed(k, tables.heads[1], config.norm_eps)
    if turns is not None:
        cos, sin = turns
        rotation = Rotation(cos, sin, config.rope_layout)
        q, k = rotation.turn(q), rotation.turn(k)
    keys.index_copy_(1, place, k.unsqueeze(1))
    values.index_copy_(1, place, v.unsqueeze(1))
    x = x + product(attended(q, keys, values, bias), tables.out)
    inner = product(normed(x, tables.before_feed_forward, config.norm_eps), tables.gate_up)
    gate, up = inner.chunk(2)
    return x + product(F.silu(gate) * up, tables.down)


def read_out(x: Tensor, norm: Norm, inner: Tensor | None, table: Tensor, eps: float) -> Tensor:
    """x (C,) -> logits (V,)."""
    x = normed(x, norm, eps)
    return product(x if inner is None else product(x, inner), table)


def product(x: Tensor, table: Tensor) -> Tensor:
    """x (K,) times the transpose of table (N, K) -> (N,), fp32."""
    return (table.float() * x).sum(dim=1)


def normed(x: Tensor, norm: Norm, eps: float) -> Tensor:
    """x (..., K) through an RMSNorm or a LayerNorm -> (..., K)."""
    weight, *bias = (each.float() for each in norm)
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


def _tables(block: nn.Module) -> Tables:
    assert isinstance(block, Block) and isinstance(block.mlp, SwiGLU)
    attention, mlp = block.self_attn, block.mlp
    heads = (_norm(attention.q_norm), _norm(attention.k_norm)) if attention.qk_norm else None
    return Tables(
        _norm(block.input_layernorm),
        _joined(attention.q_proj, attention.k_proj, attention.v_proj),
        heads,
        _joined(attention.o_proj),
        _norm(block.post_attention_layernorm),
        _joined(mlp.gate_proj, mlp.up_proj),
        _joined(mlp.down_proj),
    )


def _joined(*tables: nn.Module) -> Tensor:
    weights = [weight.detach() for table in tables for weight in table.parameters()]
    return weights[0] if len(weights) == 1 else torch.cat(weights)


def _norm(norm: nn.Module) -> Norm:
    return tuple(parameter.detach() for _, parameter in norm.named_parameters())


def _check(model: Transformer) -> None:
    """Raises ValueError, saying why, where there is no compiled step for the network."""
    if model.config.n_experts is not None:
        raise ValueError("a network with experts is not compiled: each token takes its own way")
    if model.device.type != "cpu":
        raise ValueError(f"the compiled step is for the CPU, and the weights are on {model.device}")
    block = model.layers[0]
    assert isinstance(block, Block)
    if not isinstance(block.self_attn.q_proj, Linear) or not isinstance(
        model.embed_tokens, Embedding
    ):
        raise ValueError("quantized weights are not compiled: their own kernels read them")
    from torch._inductor import exc
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError) as error:
        raise ValueError(f"compiling needs a C++ compiler such as g++: {error}") from None
