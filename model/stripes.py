"""Tables stored in the order in which the product of one row reads them, in memory pages of 2 MiB.

The product of one row is bound by reading the table. A table (N, K) becomes stripes of 16 outputs,

    stripes (N / 16, K, 16):   y[s, :] = sum over k of x[k] · stripes[s, k, :]

so memory is read from its first byte to its last, 16 sums stay in one register, and no sum runs
across the lanes of a register. In pages of 2 MiB the processor reads on ahead past every 4 KiB.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .quantized import Int8Linear

LANES = 16  # numbers of fp32 in a cache line and in the widest register
_LINE = 64  # bytes in a cache line
_CHUNK = 2**28  # bytes that are asked for at a time; those that nothing is written to cost nothing


class Table(NamedTuple):
    """A linear map without bias, for one row."""

    stripes: Tensor
    """(S, K, 16) of fp32, bf16 or int8; the last stripe is filled up with zeros."""
    scale: Tensor | None
    """(N,) fp32 that 8-bit numbers are multiplied by."""
    n_out: int

    def __call__(self, x: Tensor) -> Tensor:
        """x (K,) -> (N,), both fp32; written to be compiled."""
        # As strided, x is written to memory before; else each stripe would compute it anew.
        x = x.as_strided(x.shape, (1,))
        y = (self.stripes.float() * x.unsqueeze(1)).sum(dim=1).flatten()[: self.n_out]
        return y if self.scale is None else y * self.scale


class LargePages:
    """Memory that tensors are copied to one after the other, in pages of 2 MiB where it has such.

    On Linux a program asks for them; reading many megabytes then takes up to a third less time.
    """

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None
        self._used = 0

    def copy(self, x: Tensor) -> Tensor:
        """x, contiguous and elsewhere; the memory lives as long as the copy."""
        if not hasattr(mmap, "MADV_HUGEPAGE"):
            return x.contiguous()
        room = -(-x.nbytes // _LINE) * _LINE
        if self._memory is None or self._used + room > len(self._memory):
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            self._memory, self._used = mmap.mmap(-1, max(room, _CHUNK), flags=flags), 0
            with suppress(OSError):  # a kernel without them says so; its own pages do
                self._memory.madvise(mmap.MADV_HUGEPAGE)
        # A tensor of its own: views at other offsets would be other inputs to a compiler.
        copied = torch.frombuffer(
            self._memory, dtype=x.dtype, count=x.numel(), offset=self._used
        ).view(x.shape)
        self._used += room
        return copied.copy_(x)


def striped(pages: LargePages, *maps: nn.Module) -> Table:
    """Maps that read the same input, joined: plain ones, embeddings or `Int8Linear`."""
    narrow = [each for each in maps if isinstance(each, Int8Linear)]
    scale = torch.cat([each.scale for each in narrow]).float() if narrow else None
    weights = [each.table for each in narrow] or [w.detach() for m in maps for w in m.parameters()]
    joined = torch.cat(weights)
    n_out = len(joined)
    filled = F.pad(joined, (0, 0, 0, -n_out % LANES)).unflatten(0, (-1, LANES))
    return Table(pages.copy(filled.transpose(1, 2)), scale, n_out)
