"""Who sees whom: causal order, sliding window, documents, padding and ALiBi in one bias.

The bias is added to the attention scores: -inf where a key is hidden, -slope · distance with ALiBi,
0 elsewhere. It is built once a forward pass and shared by all layers, and not at all where the
plain causal order says it all, because the fused kernels are fastest without one. On CUDA documents
are told apart by blocks instead (`flex.py`); this file is where one or the other is chosen.

A token always sees itself. So no row is empty, and padding cannot turn into NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .config import ModelConfig
from .flex import Blocks, visible_blocks


class Sight(NamedTuple):
    """What attention needs to know of a pass of Tq queries over Tk keys."""

    bias: Tensor | None
    """(1 or B, 1 or H, Tq, Tk) to add to the scores, or None."""
    is_causal: bool
    """Without a bias: whether query i sees keys 0..i alone (it sees all of them otherwise)."""
    blocks: Blocks | None = None
    """In place of both: the blocks of scores that FlexAttention computes."""


def sight(
    config: ModelConfig,
    past: int,
    length: int,
    *,
    slopes: Tensor | None,
    left_padding: Tensor | None,
    document_ids: Tensor | None,
    device: torch.device,
    dtype: torch.dtype,
    dropout: bool = False,
) -> Sight:
    """What `length` queries see of the `past` keys before them and of one another.

    slopes (H,), left_padding (B,) pads at the front of each row, document_ids (B, T); the last two
    may be None. `dtype` is the dtype of the queries; `dropout` says whether attention weights will
    be dropped, which FlexAttention cannot.
    """
    if document_ids is not None and left_padding is None and takes_blocks(device) and not dropout:
        return Sight(None, False, visible_blocks(document_ids, config.sliding_window, slopes))
    total = past + length
    window = config.sliding_window
    windowed = window is not None and window < total
    if slopes is None and left_padding is None and document_ids is None and not windowed:
        if past == 0:
            return Sight(None, is_causal=length > 1)
        if length == 1:
            return Sight(None, is_causal=False)

    queries = torch.arange(past, total, device=device).unsqueeze(1)
    keys = torch.arange(total, device=device)
    distance = queries - keys
    visible = (distance >= 0).unsqueeze(0)
    if window is not None:
        visible = visible & (distance < window)
    if left_padding is not None:
        visible = visible & (keys >= left_padding[:, None, None])
    if document_ids is not None:
        visible = visible & (document_ids.unsqueeze(2) == document_ids.unsqueeze(1))
    visible = (visible | (distance == 0)).unsqueeze(1)
    score = torch.zeros((), dtype=dtype, device=device)
    if slopes is not None:
        # bf16 holds a large distance coarsely, yet relative to itself: where the rounding of
        # -slope · distance is not small, the weight exp(-slope · distance) is.
        score = alibi_bias(slopes, distance).to(dtype)
    return Sight(score.masked_fill(~visible, float("-inf")), is_causal=False)


def takes_blocks(device: torch.device) -> bool:
    """Whether documents are told apart by blocks: FlexAttention trains on CUDA alone."""
    return device.type == "cuda"


def alibi_bias(slopes: Tensor, distance: Tensor) -> Tensor:
    """-slope · distance: slopes (H,), distance (Tq, Tk) -> (H, Tq, Tk); at most 0 for the past."""
    return -slopes[:, None, None] * distance
