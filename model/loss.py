"""Cross-entropy of a large vocabulary without its logits.

    hidden (N, C), table (V, C), targets (N,) -> sum of token losses, fp32

The rows go through in chunks: logits of a chunk, their log-softmax in fp32, and at once the
gradients by hidden and by table, so that no logits are kept for the backward pass or computed
twice. Only one chunk of logits lives at a time; the whole of them, for 8,192 tokens and 50,000 ids,
would be 1.6 GB. Targets of -100 count for nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .norm import compute_dtype

IGNORED = -100

_CHUNK_LOGITS = 2**25
"""Logits of one chunk: 128 MiB of fp32."""


def linear_cross_entropy(
    hidden: Tensor,
    table: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    chunk_rows: int | None = None,
) -> Tensor:
    """Sum over the targets of -log softmax(hidden · tableᵀ)[target], a scalar in fp32.

    hidden (N, C), table (V, C), targets (N,) with -100 where there is none. `label_smoothing` s
    mixes the target with the uniform distribution, (1 - s) · onehot + s / V. Products run in
    autocast's dtype where it is on; sums are fp32.
    """
    rows = chunk_rows or max(1, _CHUNK_LOGITS // table.shape[0])
    if torch.is_grad_enabled():
        return _LinearCrossEntropy.apply(hidden, table, targets, label_smoothing, rows)
    if label_smoothing:
        raise ValueError("label smoothing is for training; measured losses are plain")
    return token_losses(hidden, table, targets, rows)[0].sum()


@torch.no_grad()
def token_losses(
    hidden: Tensor, table: Tensor, targets: Tensor, chunk_rows: int | None = None
) -> tuple[Tensor, Tensor]:
    """The loss of each target in nats, fp32 (N,), and whether it was the likeliest id, bool (N,).

    hidden (N, C), table (V, C), targets (N,); where the target is -100 the loss is 0 and the
    answer is false.
    """
    rows = chunk_rows or max(1, _CHUNK_LOGITS // table.shape[0])
    dtype = compute_dtype(hidden)
    hidden, table = hidden.to(dtype), table.to(dtype)
    chunks = _LogitChunks(hidden, table, rows)
    losses, hits = [], []
    for h, target in zip(hidden.split(rows), targets.split(rows), strict=True):
        log_p = chunks.log_softmax(h)
        valid = target != IGNORED
        picked = log_p.gather(1, target.clamp_min(0).unsqueeze(1)).squeeze(1)
        losses.append(torch.where(valid, -picked, 0.0))
        hits.append(log_p.argmax(dim=-1) == target)
    return torch.cat(losses), torch.cat(hits)


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
    chunks = _LogitChunks(hidden, table, rows)
    off = smoothing / table.shape[0]
    for h, target, grad in zip(
        hidden.split(rows), targets.split(rows), grad_hidden.split(rows), strict=True
    ):
        valid = (target != IGNORED).unsqueeze(1)
        column = target.clamp_min(0).unsqueeze(1)
        log_p = chunks.log_softmax(h)
        row_loss = (smoothing - 1.0) * log_p.gather(1, column)
        if smoothing:
            row_loss = row_loss - off * log_p.sum(dim=-1, keepdim=True)
        loss += torch.where(valid, row_loss, 0.0).sum()
        slope = log_p.exp_()  # d loss / d logits = softmax - smoothed one-hot
        if smoothing:
            slope -= off
        slope.scatter_add_(1, column, torch.full_like(row_loss, smoothing - 1.0))
        narrow = chunks.narrowed(slope)
        grad.copy_((narrow @ table) * valid)
        grad_table += narrow.T @ (h * valid)
    return loss, grad_hidden, grad_table


class _LogitChunks:
    """Buffers for one chunk of logits, used again by every chunk.

    Fresh memory of this size costs a CPU more to map than the arithmetic that it is for.
    """

    def __init__(self, hidden: Tensor, table: Tensor, rows: int) -> None:
        shape = (min(rows, hidden.shape[0]), table.shape[0])
        self.table = table
        self.logits = hidden.new_empty(shape)
        exact = hidden.dtype == torch.float32
        self.wide = self.logits if exact else torch.empty(shape, device=hidden.device)
        self.log_p = torch.empty(shape, device=hidden.device)

    def log_softmax(self, hidden: Tensor) -> Tensor:
        """hidden (n, C) -> log-probabilities (n, V) in fp32, good until the next call."""
        n = hidden.shape[0]
        torch.mm(hidden, self.table.T, out=self.logits[:n])
        if self.wide is not self.logits:
            self.wide[:n].copy_(self.logits[:n])
        return torch.log_softmax(self.wide[:n], dim=-1, out=self.log_p[:n])

    def narrowed(self, rows: Tensor) -> Tensor:
        """rows (n, V) in the dtype of matrix products, good until the next call."""
        return rows if self.wide is self.logits else self.logits[: rows.shape[0]].copy_(rows)
