"""Where a token stands: RoPE turns queries and keys, ALiBi takes distance off the scores.

RoPE (Su et al., 2021) turns each pair of dimensions by an angle that grows with the position, so a
score depends on the offset of two tokens alone. Both layouts of the pairs are one formula,

    turned = x · cos + partner(x) · sin        with sin negative for the first of each pair

and differ in who the partner is: the dimension half a head away, or the neighbour.
ALiBi (Press et al., 2022) adds -slope · distance to the scores, with one slope a head.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .config import ModelConfig, RopeLayout


class Rotation(NamedTuple):
    """cos and signed sin of the positions at hand, each (T, D), or (B, 1, T, D) by row."""

    cos: Tensor
    sin: Tensor
    layout: RopeLayout

    def turn(self, x: Tensor) -> Tensor:
        """x (B, H, T, D) turned by the angles of its positions; norms stay as they are."""
        if self.layout == "half":
            partner = x.roll(x.shape[-1] // 2, dims=-1)
        else:
            partner = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        return torch.addcmul(x * self.cos, partner, self.sin)


class Positions(nn.Module):
    """The tables of RoPE and the slopes of ALiBi: fp32, computed from the configuration, not saved.

    `reset` fills them again on a device; call it where a model was built on the meta device.
    """

    cos: Tensor
    sin: Tensor
    slopes: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        for name, table in self._tables(None).items():
            self.register_buffer(name, table, persistent=False)

    def reset(self, device: torch.device | str) -> None:
        """Compute the tables anew on `device`."""
        for name, table in self._tables(device).items():
            setattr(self, name, table)

    def rotation(
        self, start: int, length: int, positions: Tensor | None, dtype: torch.dtype
    ) -> Rotation | None:
        """Angles for `length` tokens from position `start` on, or at `positions` (B, T).

        None where the model does not rotate.
        """
        if not self.config.rotates:
            return None
        if positions is None:
            cos, sin = self.cos[start : start + length], self.sin[start : start + length]
        else:
            cos, sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)
        return Rotation(cos.to(dtype), sin.to(dtype), self.config.rope_layout)

    def _tables(self, device: torch.device | str | None) -> dict[str, Tensor]:
        tables = {}
        if self.config.rotates:
            tables["cos"], tables["sin"] = rope_tables(self.config, device)
        if self.config.biased:
            tables["slopes"] = torch.tensor(alibi_slopes(self.config.n_heads), device=device)
        return tables


def rope_tables(
    config: ModelConfig, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """cos and signed sin for every position, each (max_seq_len, D) in fp32."""
    size = config.head_size
    exponents = torch.arange(0, size, 2, dtype=torch.float32, device=device) / size
    frequencies = 1.0 / (config.rope_base**exponents)
    steps = torch.arange(config.max_seq_len, dtype=torch.float32, device=device)
    angles = torch.outer(steps / config.rope_scale, frequencies)
    cos, sin = angles.cos(), angles.sin()
    if config.rope_layout == "half":
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
    return cos.repeat_interleave(2, dim=-1), torch.stack((-sin, sin), dim=-1).flatten(-2)


def alibi_slopes(n_heads: int) -> list[float]:
    """The published slopes: 2^(-8i/n) for n heads, i from 1, where n is a power of two.

    Other head counts take the slopes of the power of two below, then every second slope of twice
    that power, as the authors do: 12 heads have 0.5 ... 0.0039 and 0.7071 ... 0.0884.
    """
    power = 2 ** math.floor(math.log2(n_heads))
    slopes = [2.0 ** (-8.0 * i / power) for i in range(1, power + 1)]
    between = [2.0 ** (-4.0 * i / power) for i in range(1, 2 * power + 1, 2)]
    return slopes + between[: n_heads - power]
