"""SwiGLU (Shazeer, 2020): down(silu(gate x) · up x).

Training keeps gate x and up x for the backward pass. What stands between them and the last map is
as wide, twice, and is made again there by two passes over them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .config import ModelConfig
from .linear import Linear
from .norm import compute_dtype


class SwiGLU(nn.Module):
    """The dense feed-forward, and each expert of a sparse one."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.d_model, config.d_ff)
        self.up_proj = Linear(config.d_model, config.d_ff)
        self.down_proj = Linear(config.d_ff, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C) -> (..., C)."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        # A compiler decides itself what to keep, and fuses what is made again with what reads it.
        if not gate.requires_grad or torch.compiler.is_compiling():
            return self.down_proj(F.silu(gate) * up)
        return _GatedDown.apply(gate, up, self.down_proj.weight.to(compute_dtype(gate)))


class _GatedDown(torch.autograd.Function):
    """(silu(gate) · up) · tableᵀ: gate and up (..., F), table (C, F) -> (..., C)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up, table)
        return F.linear(F.silu(gate).mul_(up), table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gate, up, table = ctx.saved_tensors
        opened = F.silu(gate)
        by_table = slope.flatten(0, -2).T @ (opened * up).flatten(0, -2)
        by_product = slope @ table
        by_up = opened.mul_(by_product)
        by_gate = torch.ops.aten.silu_backward(by_product.mul_(up), gate)
        return by_gate, by_up, by_table
