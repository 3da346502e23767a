"""Keys and values of the tokens that were read, so that decoding reads each token once.

One buffer for all layers is allocated ahead, at the width of the key/value heads alone: sharing
heads makes the cache smaller by the same factor. Keys are stored after RoPE has turned them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .config import ModelConfig


class KVCache:
    """Room for `capacity` tokens in each of `batch_size` rows; `length` of them are filled.

    keys and values are (L, B, G, capacity, D): layers, rows, key/value heads, tokens, head width.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        capacity: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = (config.n_layers, batch_size, config.kv_heads, capacity, config.head_size)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0

    @property
    def capacity(self) -> int:
        """Tokens of a row that there is room for."""
        return self.keys.shape[3]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.keys.nbytes + self.values.nbytes

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v (B, G, T, D) of new tokens; all of the layer's, (B, G, length + T, D).

        The tokens count as read after `advance`, once every layer has written its own.
        """
        end = self.end(k.shape[2])
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def end(self, length: int) -> int:
        """Where `length` more tokens end. Raises ValueError where there is no room for them."""
        end = self.length + length
        if end > self.capacity:
            raise ValueError(f"the cache has room for {self.capacity} tokens, not for {end}")
        return end

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows (numbers or a mask) alone, when the others have finished."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]

    def advance(self, length: int) -> None:
        """Count `length` more tokens as read."""
        self.length += length

    def settle(self, left_padding: Tensor, counts: Tensor) -> Tensor:
        """Go back to the first `counts` (B,) tokens of each row after its `left_padding` (B,).

        Rows go back by different numbers of tokens, so each is moved to end where the longest
        does. Returns the padding (B,) that is left: 0 for the longest.
        """
        self.length = int(counts.max())
        padding = self.length - counts
        moved = left_padding - padding
        if moved.any():
            places = torch.arange(self.length, device=counts.device) + moved.unsqueeze(1)
            places = places.clamp(0, self.capacity - 1)[None, :, None, :, None]
            for buffer in (self.keys, self.values):
                shape = (*buffer.shape[:3], self.length, buffer.shape[4])
                buffer[:, :, :, : self.length] = buffer.gather(3, places.expand(shape))
        return padding
