"""How the network is laid out over the ranks, and its tensors brought together again.

    one     a process of its own
    ddp     every rank has the whole network; gradients are averaged as they appear
            (DistributedDataParallel: Li et al. 2020)
    fsdp    every rank has a part of each tensor, gathered block by block while it is needed
            (FSDP2, ``fully_shard``: Zhao et al. 2023; ZeRO-3: Rajbhandari et al. 2020)

Everything else in training sees plain names and whole tensors: a checkpoint does not show how many
ranks wrote it.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model import Transformer
from tasks.training.world import World

Layout = Literal["one", "ddp", "fsdp"]
_METHODS = ("loss", "score", "hidden", "logits")  # what is called beside ``forward``


class Objective(nn.Module):
    """What training asks of the network, as one forward pass, which wrappers can see."""

    def __init__(self, model: Transformer, label_smoothing: float) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing

    def forward(
        self, inputs: Tensor, targets: Tensor, documents: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of the token losses in nats, (), and the experts' terms; arguments (B, T)."""
        total, _, aux = self.model.loss(inputs, targets, documents, self.label_smoothing)
        return total, aux


def lay_out(objective: Objective, world: World, layout: Layout, compiled: bool) -> nn.Module:
    """The objective as the ranks run it; ``objective.model`` stays the network, by its names."""
    if layout == "fsdp":
        _shard(objective.model, compiled)
        return objective
    if compiled:
        objective.compile()
    if layout == "one":
        return objective
    devices = [world.local_rank] if next(objective.parameters()).is_cuda else None
    return DistributedDataParallel(objective, device_ids=devices, gradient_as_bucket_view=True)


def _shard(model: Transformer, compiled: bool) -> None:
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for block in model.layers:
        if compiled:
            block.compile()
        fully_shard(block)
    fully_shard(model, reshard_after_forward=True)  # so that between steps all is in parts
    for name in _METHODS:
        register_fsdp_forward_method(model, name)


def gradients_meet(objective: nn.Module, last: bool) -> AbstractContextManager[None]:
    """For one micro-batch: whether the ranks' gradients are averaged after it, or later."""
    if isinstance(objective, DistributedDataParallel) and not last:
        return objective.no_sync()
    return nullcontext()


def is_shared(tensor: Tensor) -> bool:
    """Whether ranks hold parts of a tensor. Importing DTensor to ask would take a second."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """A tensor without its layout; every rank must ask for it."""
    return tensor.full_tensor() if is_shared(tensor) else tensor  # type: ignore[attr-defined]


def laid_out_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A copy of a whole tensor, on the device and in the layout of another."""
    tensor = tensor.to(like.device, copy=True)
    if not is_shared(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements)  # type: ignore[attr-defined]


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, sharing its storage."""
    return tensor.to_local() if is_shared(tensor) else tensor  # type: ignore[attr-defined]


def gradient_norm(model: nn.Module, clip: float) -> float:
    """Clip the whole gradient to the norm ``clip``; returns its norm before."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    return float(whole(norm).item())
