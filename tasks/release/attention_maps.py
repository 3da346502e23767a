"""Who attends to whom: the attention weights of a text, which the fused kernels never write down.

    ids (T,) -> one pass -> each layer's queries, keys, values and bias, as the kernel gets them
        -> softmax(q kᵀ / sqrt(D) + bias), in fp32 -> (T, T) a head

They are taken where they go into `scaled_dot_product_attention`: rotated, normed, with ALiBi,
window and shared heads as the network has them. The network itself knows nothing of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from model import Transformer


def attention_maps(
    network: Transformer, ids: Sequence[int], layers: Sequence[int] | None = None
) -> Tensor:
    """Attention weights (layers, H, T, T) in fp32 on the CPU: query i's weight on key j; rows sum
    to 1.

    Args:
        ids: at least one id, at most the context of the network.
        layers: those to keep, in ascending order; default: all.

    Raises ValueError where ``ids`` is empty or longer than the context.
    """
    if not ids:
        raise ValueError("there is no token to attend to")
    wanted = range(network.config.n_layers) if layers is None else layers
    training = network.training
    network.eval()
    try:
        with torch.inference_mode(), Weights(wanted) as weights:
            network.hidden(torch.tensor([list(ids)], device=network.device))
    finally:
        network.train(training)
    assert weights.calls == network.config.n_layers, "every layer attends once, in order"
    return torch.stack(weights.kept)


class Weights(TorchFunctionMode):
    """While it is on, keeps the weights of the attention calls whose number is wanted."""

    def __init__(self, wanted: Sequence[int]) -> None:
        super().__init__()
        self.wanted = set(wanted)
        self.calls = 0
        self.kept: list[Tensor] = []

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            if self.calls in self.wanted:
                q, k, _ = args
                self.kept.append(weights(q, k, kwargs["attn_mask"], kwargs["is_causal"])[0].cpu())
            self.calls += 1
        return func(*args, **kwargs)


def weights(q: Tensor, k: Tensor, bias: Tensor | None, is_causal: bool) -> Tensor:
    """softmax(q kᵀ / sqrt(D) + bias) in fp32: q (B, H, T, D), k (B, G, T, D) -> (B, H, T, T).

    Query head h reads key/value head h // (H / G), as in the kernel.
    """
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = q.float() @ k.float().transpose(-1, -2) / math.sqrt(q.shape[-1])
    if bias is not None:
        scores = scores + bias.float()
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return scores.softmax(dim=-1)
