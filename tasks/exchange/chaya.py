"""The rotary embedding that Chaya-v1 was trained with, which is not a rotation.

Its tables give dimension i and i + D/2 the same angle, as the half layout does, but its partner of
a dimension is taken as in the interleaved layout, and put where the half layout has it:

    turned[i]       = x[i] cos_i - x[2i + 1] sin_i          for i < D/2
    turned[i + D/2] = x[i + D/2] cos_i + x[2i] sin_i

So norms change, a score depends on more than the offset of two tokens, and no permutation of the
weights makes a true RoPE of it. `model/` has true ones alone. An import keeps the weights and takes
the half layout, whose logits are others: how far off is measured on the weights at hand and said.
Training goes on from there. `as_trained` gives a loaded network the original arithmetic, to compare
with; it lives as long as that object, and no export has it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from model import Transformer
from model.positions import Positions

_ROWS, _TOKENS = 2, 128


class _Turn(NamedTuple):
    """cos and sin (T, D), or (B, 1, T, D) by row, of tables in the half layout."""

    cos: Tensor
    sin: Tensor

    def turn(self, x: Tensor) -> Tensor:
        """x (B, H, T, D) -> the same shape."""
        partner = torch.cat((-x[..., 1::2], x[..., ::2]), dim=-1)
        return x * self.cos + partner * self.sin


class ChayaPositions(Positions):
    """Positions whose `rotation` is the original's."""

    def rotation(  # type: ignore[override]  # what it returns turns, and is no Rotation
        self, start: int, length: int, positions: Tensor | None, dtype: torch.dtype
    ) -> _Turn | None:
        true = super().rotation(start, length, positions, dtype)
        # the tables' sine bears the sign of a true partner: the second half is the bare sine
        return None if true is None else _Turn(true.cos, _bare_sine(true.sin))


def as_trained(network: Transformer) -> Transformer:
    """Give ``network`` the positions that Chaya-v1 was trained with; returns it."""
    assert network.config.rope_layout == "half"
    positions = ChayaPositions(network.config)
    positions.reset(network.device)
    network.positions = positions
    return network


@torch.no_grad()
def difference(network: Transformer) -> tuple[float, float]:
    """How far true RoPE takes an imported network from what it was trained as.

    Returns the mean absolute difference of logits over their standard deviation, and the share of
    positions at which the likeliest id is another, on random ids.
    """
    length = min(_TOKENS, network.config.max_seq_len)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(network.config.vocabulary, (_ROWS, length), generator=generator)
    own = network.positions
    found = network(ids)
    expected = as_trained(network)(ids)
    network.positions = own
    off = (found - expected).abs().mean() / expected.std()
    other = (found.argmax(-1) != expected.argmax(-1)).float().mean()
    return off.item(), other.item()


def _bare_sine(signed: Tensor) -> Tensor:
    half = signed[..., signed.shape[-1] // 2 :]
    return torch.cat((half, half), dim=-1)
