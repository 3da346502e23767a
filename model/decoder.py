"""A network laid out for reading few tokens at a time, which is what decoding does.

A training step is bound by arithmetic; one token against a cache is bound by how fast the weights
come from memory and by how many operations are called. So the tables that read the same input are
joined, and on a CPU each is stored once more in the order in which its kernel reads it.

    x -> norm -> [q;k;v] in one table -> RoPE on q and k at once -> cache -> attention -> o -> + x
      -> norm -> [gate;up] in one table -> silu(gate) · up -> down -> + x

The weights are copied as they are when a `Decoder` is made: make another after a training step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import KVCache
from .compiled import CompiledStep
from .config import ModelConfig
from .experts import Experts
from .linear import Embedding, Linear
from .masks import Sight, sight
from .positions import Rotation
from .transformer import Block, Transformer

Map = Callable[[Tensor], Tensor]


class Decoder:
    """The `Transformer` at hand, for inference: the same logits but for the order of float sums.

    `rows` is how many sequences are decoded at once; more or fewer can be read, not as fast. Made
    once for many calls of `generate`, it saves the time to lay the weights out (a few tokens'
    worth) and costs the memory of a copy of them.

    `compiled`: a single token of a single row goes through `CompiledStep`, which takes seconds to
    compile at its first; prompts and several rows are read as ever. Raises ValueError where the
    network has experts or 4-bit weights or is not on a CPU, where there is no C++ compiler, and
    for more `rows` than one.
    """

    def __init__(self, model: Transformer, rows: int = 1, *, compiled: bool = False) -> None:
        self.model, self.config = model, model.config
        if compiled and rows > 1:
            raise ValueError(f"the compiled step reads one row, not {rows}: decode one at a time")
        self.step = CompiledStep(model) if compiled else None
        with torch.inference_mode():
            self.layers = [_Layer(block, model.config, rows) for block in model.layers]
            tied = model.config.tie_embeddings
            self.table = lay_out([model.embed_tokens if tied else model.lm_head], rows)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """An empty cache for `read`. On a CPU it is fp32 even where the weights are bf16.

        There attention of one query over bf16 keys takes five times as long as over fp32 ones.
        """
        dtype = self.model.dtype
        if self.device.type == "cpu" and dtype.itemsize == 2:
            dtype = torch.float32
        # To compiled code, full and not yet full are two kinds of input: this one is never full.
        capacity += self.step is not None
        return KVCache(self.config, batch_size, capacity, device=self.device, dtype=dtype)

    @torch.inference_mode()
    def read(
        self, ids: Tensor, cache: KVCache, left_padding: Tensor | None = None, last: int = 1
    ) -> Tensor:
        """ids (B, T) after those in `cache` -> logits (B, last, V) after the `last` of them, fp32.

        `left_padding` (B,) as of `Transformer.forward`. A row may stand beyond the context, where
        its logits mean nothing: the caller knows how many of a row's ids count.
        """
        model, past, length = self.model, cache.length, ids.shape[1]
        positions = None
        if left_padding is not None or past + length > self.config.max_seq_len:
            steps = torch.arange(past, past + length, device=ids.device).unsqueeze(0)
            steps = steps if left_padding is None else steps - left_padding.unsqueeze(1)
            positions = steps.clamp(0, self.config.max_seq_len - 1)
        x = model.embed_tokens(ids)
        if self.config.d_embed is not None:
            x = model.embed_in(x)
        rotation = model.positions.rotation(past, length, positions, cache.keys.dtype)
        seen = sight(
            self.config,
            past,
            length,
            slopes=model.positions.slopes if self.config.biased else None,
            left_padding=left_padding,
            document_ids=None,
            device=ids.device,
            dtype=cache.keys.dtype,
        )
        if self.step is not None and ids.shape == (1, 1) and past > 0:
            return self.step(x, rotation, seen, cache)
        with _evaluating(model):
            for layer in self.layers:
                x = layer(x, rotation, seen, cache)
        cache.advance(length)
        x = model.norm(x[:, -last:])
        if self.config.d_embed is not None:
            x = model.embed_out(x)
        return self.table(x).float()


class _Layer:
    """One block, its tables joined."""

    def __init__(self, block: nn.Module, config: ModelConfig, rows: int) -> None:
        assert isinstance(block, Block)
        self.block, attention = block, block.self_attn
        self.heads = (config.n_heads, config.kv_heads, config.kv_heads)
        self.head_size = config.head_size
        self.qkv = lay_out([attention.q_proj, attention.k_proj, attention.v_proj], rows)
        self.out = lay_out([attention.o_proj], rows)
        if isinstance(block.mlp, Experts):
            experts = block.mlp
            self.feed_forward: Map = lambda x: experts(x)[0]
        else:
            gate_up = lay_out([block.mlp.gate_proj, block.mlp.up_proj], rows)
            self.feed_forward = _swiglu(gate_up, lay_out([block.mlp.down_proj], rows))

    def __call__(self, x: Tensor, rotation: Rotation | None, seen: Sight, cache: KVCache) -> Tensor:
        """x (B, T, C) -> (B, T, C), with the keys and values of all layers' tokens in `cache`."""
        x = x + self._attend(self.block.input_layernorm(x), rotation, seen, cache)
        return x + self.feed_forward(self.block.post_attention_layernorm(x))

    def _attend(self, x: Tensor, rotation: Rotation | None, seen: Sight, cache: KVCache) -> Tensor:
        attention, (n_heads, kv_heads, _) = self.block.self_attn, self.heads
        every = self.qkv(x).to(cache.keys.dtype).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
        if attention.qk_norm:
            q, k, v = every.split(self.heads, dim=1)
            every = torch.cat((attention.q_norm(q), attention.k_norm(k), v), dim=1)
        turning, v = every.split((n_heads + kv_heads, kv_heads), dim=1)
        if rotation is not None:
            turning = rotation.turn(turning)
        q, k = turning.split((n_heads, kv_heads), dim=1)
        mixed = attention.mix(q, *cache.extend(attention.layer, k, v), seen)
        return self.out(mixed.transpose(1, 2).flatten(2).to(x.dtype))


def _swiglu(gate_up: Map, down: Map) -> Map:
    def read(x: Tensor) -> Tensor:
        gate, up = gate_up(x).chunk(2, dim=-1)
        return down(F.silu(gate) * up)

    return read


def lay_out(tables: Sequence[nn.Module], rows: int) -> Map:
    """One map x (..., K) -> (..., N1 + N2 + ...) for tables (N, K) that read the same x.

    On x86 a table is packed by oneDNN, whose kernels read it two to four times as fast as MKL's
    read a row-major one where x has few rows; of one fp32 row and a wide table, MKL's product with
    the transpose is faster still. Elsewhere tables are joined and no more. One that is not plain
    (a quantized one) keeps its own arithmetic.
    """
    plain = [table for table in tables if isinstance(table, Linear | Embedding)]
    if len(plain) < len(tables):
        return lambda x: torch.cat([table(x) for table in tables], dim=-1)
    weights = [table.weight.detach() for table in plain]
    joined = weights[0] if len(weights) == 1 else torch.cat(weights)
    if not _packs(joined):
        return lambda x: F.linear(x, joined)
    n_out, n_in = joined.shape
    if rows == 1 and joined.dtype == torch.float32 and n_out > n_in:
        across = joined.t().contiguous()
        return lambda x: x @ across
    packed = torch.ops.mkldnn._reorder_linear_weight(joined, rows)
    multiply = torch.ops.mkldnn._linear_pointwise
    return lambda x: multiply(x, packed, None, "none", [], "")


def _packs(table: Tensor) -> bool:
    """Whether oneDNN has kernels for a packed table of this kind on this machine."""
    if table.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return False
    if table.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return table.dtype == torch.float32


@contextmanager
def _evaluating(model: Transformer) -> Iterator[None]:
    """Experts drop tokens in training mode; between two reads the caller's mode is the model's."""
    if not model.training:
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()
