"""Cross-entropy of a large vocabulary without its logits.

    hidden (N, C), table (V, C), targets (N,) -> sum of token losses, fp32

The rows go through in chunks: logits of a chunk, their log-softmax in fp32, and at once the
gradients by hidden and by table, so that no logits are kept for the backward pass or computed
twice. Only one chunk of logits lives at a time, and turns into its own gradient where it
stands; the whole of them, for 8,192 tokens and 50,000 ids, would be 1.6 GB in fp32. Targets of -100
count for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .norm import compute_dtype

IGNORED = -100

_CHUNK_LOGITS = 2**25
"""Logits of one chunk, at most: rows enough for matrix products to run at full speed."""

_TABLE_ROWS = 2**13
"""On a CPU, rows of the table whose gradient is made at a time: 6 MiB at 384 wide, in bf16."""

_SLICE_LOGITS = 2**18
"""On a CPU, logits that are widened to fp32 at a time: 1 MiB stays in its cache."""


def linear_cross_entropy(
    hidden: Tensor,
    table: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    rows_a_chunk: int | None = None,
) -> Tensor:
    """Sum over the targets of -log softmax(hidden · tableᵀ)[target], a scalar in fp32.

    hidden (N, C), table (V, C), targets (N,) with -100 where there is none. `label_smoothing` s
    mixes the target with the uniform distribution, (1 - s) · onehot + s / V. Products run in
    autocast's dtype where it is on; sums are fp32.
    """
    rows = rows_a_chunk or chunk_rows(len(hidden), len(table))
    if torch.is_grad_enabled():
        return _LinearCrossEntropy.apply(hidden, table, targets, label_smoothing, rows)
    if label_smoothing:
        raise ValueError("label smoothing is for training; measured losses are plain")
    return token_losses(hidden, table, targets, rows)[0].sum()


@torch.no_grad()
def token_losses(
    hidden: Tensor, table: Tensor, targets: Tensor, rows_a_chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """The loss of each target in nats, fp32 (N,), and whether it was the likeliest id, bool (N,).

    hidden (N, C), table (V, C), targets (N,); where the target is -100 the loss is 0 and the
    answer is false.
    """
    rows = rows_a_chunk or chunk_rows(len(hidden), len(table))
    dtype = compute_dtype(hidden)
    hidden, table = hidden.to(dtype), table.to(dtype)
    buffer = _logit_buffer(hidden, table, rows)
    losses, hits = [], []
    for h, target in zip(hidden.split(rows), targets.split(rows), strict=True):
        logits = torch.mm(h, table.T, out=buffer[: h.shape[0]])
        for part, column in _slices(logits, target):
            log_p = part.float().log_softmax(dim=-1)
            picked = log_p.gather(1, column.clamp_min(0).unsqueeze(1)).squeeze(1)
            losses.append(torch.where(column != IGNORED, -picked, 0.0))
            hits.append(log_p.argmax(dim=-1) == column)
    return torch.cat(losses), torch.cat(hits)


def chunk_rows(rows: int, vocabulary: int) -> int:
    """Rows of one chunk out of `rows`: all chunks are about as large, for a short one is slow."""
    most = max(1, _CHUNK_LOGITS // vocabulary)
    return math.ceil(rows / max(1, math.ceil(rows / most)))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, table: Tensor, targets: Tensor, smoothing: float, rows: int
    ) -> Tensor:
        dtype = compute_dtype(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            loss, grad_hidden, grad_table = _loss_and_gradients(
                hidden.to(dtype), table.to(dtype), targets, smoothing, rows
            )
        ctx.save_for_backward(grad_hidden, grad_table)
        ctx.dtypes = hidden.dtype, table.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_table = ctx.saved_tensors
        hidden_dtype, table_dtype = ctx.dtypes
        # In place, so a second pass through this graph is refused by torch and not scaled twice.
        by_hidden = grad_hidden.mul_(grad_loss).to(hidden_dtype)
        by_table = grad_table.mul_(grad_loss).to(table_dtype)
        return by_hidden, by_table, None, None, None


def _loss_and_gradients(
    hidden: Tensor, table: Tensor, targets: Tensor, smoothing: float, rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss (), its gradient by hidden (N, C) in the dtype at hand and by table (V, C) in fp32.

    Rows without a target are silenced where they are narrow (in hidden and its gradient), so that
    no pass over the V-wide rows is spent on them.
    """
    loss = torch.zeros((), device=hidden.device)
    grad_hidden = torch.empty_like(hidden)
    grad_table = torch.zeros(table.shape, device=table.device)
    buffer = _logit_buffer(hidden, table, rows)
    for h, target, grad in zip(
        hidden.split(rows), targets.split(rows), grad_hidden.split(rows), strict=True
    ):
        valid = (target != IGNORED).unsqueeze(1)
        logits = torch.mm(h, table.T, out=buffer[: h.shape[0]])
        for part, column in _slices(logits, target):
            loss += _to_slopes(part, column, smoothing)
        grad.copy_((logits @ table) * valid)
        h = h * valid
        step = _a_time(table, _TABLE_ROWS)
        for columns, part in zip(logits.split(step, dim=1), grad_table.split(step), strict=True):
            part += columns.T @ h
    return loss, grad_hidden, grad_table


def _to_slopes(logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """Turn logits (n, V) into d loss / d logits = softmax - smoothed one-hot, in place.

    Returns the loss of the rows that have a target, fp32 (); the slopes of the others mean nothing.
    """
    column = target.clamp_min(0).unsqueeze(1)
    wide = logits.float()
    p, picked = _softmax(wide, column)
    loss = (smoothing - 1.0) * picked
    off = smoothing / logits.shape[1]
    if smoothing:  # log p and the logits differ by one number a row
        mean = wide.mean(dim=-1, keepdim=True) - wide.gather(1, column) + picked
        loss = loss - smoothing * mean
    logits.copy_(p - off if smoothing else p)
    # The target's own is placed last, so that a compiler needs no wide slopes to scatter it into.
    logits.scatter_(1, column, (picked.exp() + (smoothing - 1.0 - off)).to(logits.dtype))
    return loss.squeeze(1).where(target != IGNORED, 0.0).sum()


def _softmax(logits: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """p = softmax of fp32 logits (n, V), and log p at one column (n, 1) of each row."""
    if torch.compiler.is_compiling():
        log_p = logits.log_softmax(dim=-1)
        return log_p.exp(), log_p.gather(1, column)
    p = logits.softmax(dim=-1)
    # Uncompiled, exp over whole rows is a slow pass; the likeliest one's log gives all others.
    log_z = logits.amax(dim=-1, keepdim=True) - p.amax(dim=-1, keepdim=True).log()
    return p, logits.gather(1, column) - log_z


def _logit_buffer(hidden: Tensor, table: Tensor, rows: int) -> Tensor:
    """Room for one chunk, used again by every chunk.

    Fresh memory of this size costs a CPU more to map than the arithmetic that it is for.
    """
    return hidden.new_empty(min(rows, hidden.shape[0]), table.shape[0])


def _slices(logits: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows of a chunk, a cache's worth at a time on a CPU."""
    rows = _a_time(logits, max(1, _SLICE_LOGITS // logits.shape[1]))
    return zip(logits.split(rows), target.split(rows), strict=True)


def _a_time(rows: Tensor, few: int) -> int:
    """How many of the rows to take at a time: few on a CPU, else all.

    A compiler fuses the passes over them itself, so it gets them whole too.
    """
    return few if rows.is_cpu and not torch.compiler.is_compiling() else max(1, len(rows))
