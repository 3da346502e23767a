"""Causal self-attention whose query heads share key/value heads.

As many key/value heads as query heads is multi-head attention, one is multi-query (Shazeer, 2019),
between them grouped-query (Ainslie et al., 2023).

    x (B, T, C) -> q (B, H, T, D), k and v (B, G, T, D) -> [QK norm] -> [RoPE] -> [cache]
        -> softmax(q kᵀ / sqrt(D) + bias) v -> (B, T, H·D) -> (B, T, C)
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .cache import KVCache
from .config import ModelConfig
from .flex import attend
from .linear import Linear
from .masks import Sight
from .norm import RMSNorm
from .positions import Rotation


class Attention(nn.Module):
    """One block's attention; `layer` is its place in the cache."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_size = config.head_size
        self.group = config.n_heads // config.kv_heads
        self.dropout = config.attn_dropout
        width, kv_width = config.n_heads * self.head_size, config.kv_heads * self.head_size
        self.q_proj = Linear(config.d_model, width)
        self.k_proj = Linear(config.d_model, kv_width)
        self.v_proj = Linear(config.d_model, kv_width)
        self.o_proj = Linear(width, config.d_model)
        if config.qk_norm:
            self.q_norm = RMSNorm(self.head_size, config.norm_eps)
            self.k_norm = RMSNorm(self.head_size, config.norm_eps)
        self.qk_norm = config.qk_norm

    def forward(
        self, x: Tensor, rotation: Rotation | None, sight: Sight, cache: KVCache | None
    ) -> Tensor:
        """x (B, T, C) -> (B, T, C). New keys and values are written to `cache` where one is."""
        q, k, v = (
            self._heads(self.q_proj(x)),
            self._heads(self.k_proj(x)),
            self._heads(self.v_proj(x)),
        )
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotation.turn(q), rotation.turn(k)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        mixed = self.mix(q, k, v, sight)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, heads·D) -> (B, heads, T, D)."""
        return x.unflatten(-1, (-1, self.head_size)).transpose(1, 2)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, sight: Sight) -> Tensor:
        """q (B, H, Tq, D), k and v (B, G, Tk, D) -> (B, H, Tq, D)."""
        if sight.blocks is not None:
            return attend(q, k, v, sight.blocks)
        if self.group > 1 and sight.bias is not None:
            # On CUDA the kernels that take a bias do not share heads; unaided, torch would fall
            # back to one that writes out all scores.
            k, v = k.repeat_interleave(self.group, dim=1), v.repeat_interleave(self.group, dim=1)
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=sight.bias,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=sight.is_causal,
            enable_gqa=self.group > 1 and sight.bias is None,
        )
