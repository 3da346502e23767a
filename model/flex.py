"""Documents on CUDA: FlexAttention leaves out the blocks of scores that no query sees.

    document_ids (B, T) -> which 128 x 128 blocks hold a visible score -> one kernel over these

(Dong et al., 2024.) A bias of (B, 1, T, T) would say the same, but it lies in memory as a whole,
and hidden scores are computed like visible ones. The kernel comes from torch.compile; a model that
is compiled whole takes it in as a part of itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention


class Blocks(NamedTuple):
    """The visible blocks of a pass over whole sequences, shared by all layers."""

    mask: BlockMask
    slopes: Tensor | None
    """(H,) of ALiBi."""


def visible_blocks(document_ids: Tensor, window: int | None, slopes: Tensor | None) -> Blocks:
    """Causal order within each document, and within a window where there is one.

    document_ids (B, T) whole numbers, slopes (H,) or None.
    """
    batch, length = document_ids.shape

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (query >= key) & (document_ids[row, query] == document_ids[row, key])
        return seen if window is None else seen & (query - key < window)

    mask = create_block_mask(visible, batch, None, length, length, device=document_ids.device)
    return Blocks(mask, slopes)


def attend(q: Tensor, k: Tensor, v: Tensor, blocks: Blocks) -> Tensor:
    """softmax(q kᵀ / sqrt(D) - ALiBi) v over the visible: q (B, H, T, D), k and v (B, G, T, D)."""
    slopes = blocks.slopes

    def score(value: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        assert slopes is not None
        return value - slopes[head] * (query - key)

    kernel: Callable[..., Tensor] = flex_attention
    if q.is_cuda and not torch.compiler.is_compiling():
        kernel = _compiled()
    return kernel(
        q,
        k,
        v,
        score_mod=None if slopes is None else score,
        block_mask=blocks.mask,
        enable_gqa=k.shape[1] != q.shape[1],
    )


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    """The kernel for a model that runs uncompiled; anew for each length, as training has few."""
    return torch.compile(flex_attention, dynamic=False)
