"""Tables of 8-bit or 4-bit numbers, read as they are by torch's own CPU kernels.

Weights alone are rounded; what flows through the network stays bf16, the dtype of the kernels.

    int8   w ≈ q · scale            one scale a row, q in -127 ... 127
    int4   w ≈ (q - 8) · scale + z  one scale and offset for `GROUP` weights of a row, q in 0 ... 15
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUP = 32  # weights of a row that share scale and offset (int4)
_FEW = 16  # rows of x up to which the 8-bit kernel is faster than widening the table first
_BLOCK = 16  # the 4-bit kernel reads so many rows of a table at a time


class Int8Linear(nn.Module):
    """x (..., K) -> (..., N) by a table (N, K) of 8-bit numbers."""

    table: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        weight = weight.detach().float()
        scale = (weight.abs().amax(dim=1) / 127).clamp_min(1e-30).bfloat16()
        rounded = (weight / scale.float().unsqueeze(1)).round().clamp(-127, 127)
        self.register_buffer("table", rounded.to(torch.int8))
        self.register_buffer("scale", scale)

    @property
    def weight(self) -> Tensor:
        """The table (N, K) as the numbers that it stands for, bf16."""
        return self.table.to(self.scale.dtype) * self.scale.unsqueeze(1)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2).to(self.scale.dtype).contiguous()
        if flat.device.type == "cpu" and len(flat) <= _FEW:
            y = torch._weight_int8pack_mm(flat, self.table, self.scale)
        else:
            y = F.linear(flat, self.table.to(flat.dtype)) * self.scale
        return y.unflatten(0, x.shape[:-1])


class Int8Embedding(nn.Module):
    """The rows (N, K) of an `Int8Linear` by number: a tied table is held once."""

    def __init__(self, rows: Int8Linear) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, ids: Tensor) -> Tensor:
        """ids (...) -> (..., K), bf16."""
        scale = self.rows.scale[ids].unsqueeze(-1)
        return self.rows.table[ids].to(scale.dtype) * scale


class Int4Linear(nn.Module):
    """x (..., K) -> (..., N) by a table (N, K) of 4-bit numbers, on a CPU; `GROUP` divides K."""

    packed: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.n_out, self.n_in = weight.shape
        blank = -self.n_out % _BLOCK
        groups = F.pad(weight.detach().float(), (0, 0, 0, blank)).unflatten(1, (-1, GROUP))
        low, high = groups.aminmax(dim=-1)
        scale = ((high - low) / 15).clamp_min(1e-6)
        # The kernel's numbers are bf16: rounded with those, not with what they are rounded from.
        scales = torch.stack((scale, low + 8 * scale), dim=-1).bfloat16()
        scale, middle = scales.float().unsqueeze(-2).unbind(-1)
        levels = ((groups - middle) / scale + 8).round().clamp(0, 15).to(torch.int32).flatten(1)
        self.register_buffer(
            "packed", torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels, 1)
        )
        self.register_buffer("scales", scales.transpose(0, 1).contiguous())

    @property
    def weight(self) -> Tensor:
        """The table (N, K) as the numbers that it stands for, bf16."""
        return self(torch.eye(self.n_in, dtype=torch.bfloat16)).t()

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2).bfloat16().contiguous()
        multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
        y = multiply(flat, self.packed, GROUP, self.scales)[:, : self.n_out]
        return y.unflatten(0, x.shape[:-1])
