"""Norms before each branch: mean squares taken in fp32, result in the dtype of what follows.

Under autocast the residual stream is fp32 and the linear maps run in bf16 or fp16. The norm hands
over that dtype, so its result is cast once and not again by each linear map that reads it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that matrix products of `x` run in: autocast's where it is on, else its own."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight over the last dimension (Zhang and Sennrich, 2019)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C) -> (..., C) in the compute dtype."""
        # The kernel sums in fp32 whatever the dtype is, and is fused where both dtypes are one.
        y = F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)
        return y.to(compute_dtype(x))


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) · weight + bias, by vector (Ba et al., 2016)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C) -> (..., C) in the compute dtype."""
        y = F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        return y.to(compute_dtype(x))


def make_norm(config: ModelConfig) -> nn.Module:
    """The norm over the residual stream that `config` names."""
    kind = RMSNorm if config.norm == "rmsnorm" else LayerNorm
    return kind(config.d_model, config.norm_eps)
