"""AdamW: which parameters decay, and its state as plain named tensors.

AdamW (Loshchilov & Hutter 2019) is torch's own, fused. Its state leaves and enters as tensors by
parameter name, so that a checkpoint needs no pickle and survives a change of parameter order.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tasks.errors import BAD_DATA, UserError
from tasks.recipe import Optimizer

_MOMENTS = ("exp_avg", "exp_avg_sq")


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: matrices only, not norms, biases or embedding tables."""
    return parameter.ndim >= 2 and not name.startswith("embed_tokens.")


def build_optimizer(model: nn.Module, settings: Optimizer, lr: float) -> torch.optim.AdamW:
    """AdamW with each trainable parameter in exactly one group."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        all_decay = settings.decay == "all"
        (decayed if all_decay or decays(name, parameter) else kept).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=lr,
        betas=settings.betas,
        eps=settings.eps,
        fused=True,
    )


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The moments as ``exp_avg.<parameter>`` and ``exp_avg_sq.<parameter>``."""
    return {
        f"{moment}.{name}": optimizer.state[parameter][moment]
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for moment in _MOMENTS
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor], updates: int
) -> None:
    """Put saved moments back.

    Args:
        tensors: as ``optimizer_tensors`` gave them.
        updates: optimizer updates made so far, which set Adam's bias correction.

    Raises:
        UserError: a moment is missing or belongs to another network.
    """
    expected = {f"{m}.{name}" for name, _ in model.named_parameters() for m in _MOMENTS}
    if updates == 0:
        expected = set()
    if expected != set(tensors):
        odd = sorted(expected ^ set(tensors))[:10]
        raise UserError(
            f"the optimizer's state does not fit the network: {', '.join(odd)}", exit_code=BAD_DATA
        )
    if not tensors:
        return
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        state["step"] = torch.tensor(float(updates), device=parameter.device)
        for moment in _MOMENTS:
            saved = tensors[f"{moment}.{name}"]
            assert saved.shape == parameter.shape, (moment, name)
            state[moment] = saved.to(parameter.device, copy=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
