"""The optimizers of a phase as one, and their state as plain named tensors.

    adamw   all parameters                       (Loshchilov & Hutter 2019; torch's, fused)
    muon    matrices of the blocks, orthogonalised momentum  (Jordan et al. 2024; torch's)
            + AdamW for tables, norms, routers and projections of a factorised table

State leaves and enters as tensors by parameter name, so a checkpoint needs no pickle and survives a
change of parameter order or of the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tasks.errors import BAD_DATA, UserError
from tasks.recipe import Optimizer as Settings
from tasks.training.parallel import laid_out_like, whole

_ADAMW, _MUON = ("exp_avg", "exp_avg_sq"), ("momentum_buffer",)


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: matrices only, not norms, biases or embedding tables."""
    return parameter.ndim >= 2 and not name.startswith("embed_tokens.")


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon takes a parameter: a matrix within a block, routers apart."""
    return parameter.ndim == 2 and name.startswith("layers.") and not name.endswith("gate.weight")


class Optimizers:
    """Every trainable parameter in exactly one group of one optimizer."""

    def __init__(self, model: nn.Module, settings: Settings, lr: float) -> None:
        self.model = model
        self._moments: dict[str, tuple[str, ...]] = {}
        self._owner: dict[str, torch.optim.Optimizer] = {}
        named = dict(model.named_parameters())
        hidden = {n for n, p in named.items() if settings.name == "muon" and is_hidden_matrix(n, p)}
        self.parts: list[torch.optim.Optimizer] = []
        if rest := [name for name in named if name not in hidden]:
            adamw = torch.optim.AdamW(
                _groups(named, rest, settings), lr=lr, betas=settings.betas, eps=settings.eps,
                fused=True,
            )  # fmt: skip
            self._add(adamw, rest, _ADAMW)
        if hidden:
            ours = [name for name in named if name in hidden]
            muon = torch.optim.Muon(
                _groups(named, ours, settings), lr=lr, momentum=settings.momentum, nesterov=True,
                adjust_lr_fn="match_rms_adamw",
            )  # fmt: skip
            self._add(muon, ours, _MUON)

    def _add(self, part: torch.optim.Optimizer, names: list[str], moments: tuple[str, ...]) -> None:
        self.parts.append(part)
        self._owner |= dict.fromkeys(names, part)
        self._moments |= dict.fromkeys(names, moments)

    @property
    def param_groups(self) -> list[dict[str, object]]:
        """The groups of all parts."""
        return [group for part in self.parts for group in part.param_groups]

    def set_lr(self, lr: float) -> None:
        for group in self.param_groups:
            group["lr"] = lr

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def unscale(self, scaler: torch.amp.GradScaler) -> None:
        for part in self.parts:
            scaler.unscale_(part)

    def step(self, scaler: torch.amp.GradScaler) -> None:
        """Update the weights; in fp16 not where a gradient overflowed."""
        for part in self.parts:
            scaler.step(part)
        scaler.update()

    def tensors(self) -> dict[str, Tensor]:
        """The moments, as ``exp_avg.<parameter>`` and so on; every rank must ask."""
        return {
            f"{moment}.{name}": whole(self._owner[name].state[parameter][moment])
            for name, parameter in self.model.named_parameters()
            if self._owner[name].state.get(parameter)
            for moment in self._moments[name]
        }

    def load(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Put saved moments back.

        Args:
            tensors: as ``tensors()`` gave them.
            updates: optimizer updates made so far, which set Adam's bias correction.

        Raises:
            UserError: a moment is missing, or belongs to another network or optimizer.
        """
        expected = set(self._names()) if updates else set()
        if expected != set(tensors):
            odd = sorted(expected ^ set(tensors))[:10]
            raise UserError(
                f"the optimizer's state does not fit the network: {', '.join(odd)}",
                exit_code=BAD_DATA,
            )
        if not tensors:
            return
        for name, parameter in self.model.named_parameters():
            state = self._owner[name].state[parameter]
            if self._moments[name] == _ADAMW:
                state["step"] = torch.tensor(float(updates), device=parameter.device)
            for moment in self._moments[name]:
                saved = tensors[f"{moment}.{name}"]
                assert saved.shape == parameter.shape, (moment, name)
                state[moment] = laid_out_like(saved, parameter.detach())

    def _names(self) -> Iterator[str]:
        for name, moments in self._moments.items():
            yield from (f"{moment}.{name}" for moment in moments)


def _groups(
    named: dict[str, nn.Parameter], names: list[str], settings: Settings
) -> list[dict[str, object]]:
    """Parameters that decay, and those that do not; an empty group is left out."""
    by_decay: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name in names:
        by_decay[settings.decay == "all" or decays(name, named[name])].append(named[name])
    return [
        {"params": parameters, "weight_decay": settings.weight_decay if decayed else 0.0}
        for decayed, parameters in by_decay.items()
        if parameters
    ]
