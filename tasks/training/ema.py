"""An exponential moving average of the weights, in fp32, with a warm start.

The decay of update t is min(decay, (1 + t) / (10 + t)) (as in TensorFlow's
ExponentialMovingAverage): without it, an average at 0.9995 is still 61 % random start after 1,000
updates.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from tasks.errors import BAD_DATA, UserError
from tasks.training.parallel import laid_out_like, local, whole


class EMA:
    """The average of a model's parameters. ``updates`` counts the updates made.

    Training never reads the average: ``swapped`` lends it to the model for an evaluation and puts
    the model's own weights back, bit for bit. Where ranks share the weights, each averages its own
    part.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.average: dict[str, Tensor] = {
            name: parameter.detach().float().clone() for name, parameter in model.named_parameters()
        }

    def decay_at(self, update: int) -> float:
        return min(self.decay, (1 + update) / (10 + update))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's weights."""
        weight = 1 - self.decay_at(self.updates)
        names, parameters = zip(*model.named_parameters(), strict=True)
        # by name: tensors read from a file come in another order than the model's
        averages = [local(self.average[name]) for name in names]
        torch._foreach_lerp_(averages, [local(p.detach()).float() for p in parameters], weight)
        self.updates += 1

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """The whole average by parameter name; every rank must ask."""
        return {name: whole(self.average[name]) for name, _ in model.named_parameters()}

    def load(self, tensors: dict[str, Tensor], updates: int, source: Path) -> None:
        """Put a saved average back. Raises UserError where it is of another network."""
        if tensors.keys() != self.average.keys():
            raise UserError(f"{source}: the EMA is of another network", exit_code=BAD_DATA)
        # copied: tensors of a file lie unaligned, which changes the last bits of sums
        self.average = {name: laid_out_like(t, self.average[name]) for name, t in tensors.items()}
        self.updates = updates

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """Let ``model`` hold the average while the block runs."""
        own = {name: p.detach().clone() for name, p in model.named_parameters()}
        _copy(self.average, model)
        try:
            yield
        finally:
            _copy(own, model)


@torch.no_grad()
def _copy(tensors: dict[str, Tensor], model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(tensors[name])
