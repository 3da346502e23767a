"""A mixture of experts: a router sends each token through its top-k of N feed-forwards.

    x (B, T, C) -> router probabilities (B, T, N) -> k choices a token, sorted by expert
        -> each expert reads its own tokens -> weighted sum -> (B, T, C)

Whatever couples tokens, the balance loss and the capacity, is taken within one sequence, as GShard
(Lepikhin et al., 2020) does within its groups and DeepSeek-V3 does for its balance loss. So neither
the size of a micro-batch nor the number of processes changes what is learnt. Within a sequence the
earlier token goes first, and only training drops tokens: nothing depends on a later token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .config import ModelConfig
from .feedforward import SwiGLU
from .linear import Linear


class Routing(NamedTuple):
    """What the router of one layer did with a batch."""

    balance: Tensor
    """(B,) Switch balance loss of each sequence: 1 at uniform load, N where one expert has all."""
    z: Tensor
    """(B,) mean squared log-sum-exp of each sequence's router logits."""
    load: Tensor
    """(N,) share of all choices that fell on each expert; sums to 1."""
    dropped: Tensor
    """() share of all choices that found their expert full."""


class Experts(nn.Module):
    """The sparse feed-forward of one block."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.n_experts is not None
        self.config = config
        self.n_experts = config.n_experts
        self.gate = Linear(config.d_model, config.n_experts)
        self.experts = nn.ModuleList(SwiGLU(config) for _ in range(config.n_experts))
        self.shared_expert = SwiGLU(config) if config.shared_expert else None
        # rows of the tables must be whole multiples of 16 bytes for the grouped product
        self.can_group = config.d_model % 8 == 0 and config.d_ff % 8 == 0

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        """x (B, T, C) -> (B, T, C), and what the router did."""
        weights, chosen, kept, routing = self._route(x)
        y = self._dispatch(x.flatten(0, 1), weights, torch.where(kept, chosen, self.n_experts))
        y = y.view_as(x)
        if self.shared_expert is not None:
            y = y + self.shared_expert(x)
        return y, routing

    def _route(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Routing]:
        """x (B, T, C) -> weights, chosen experts and whether they had room, each (B, T, k)."""
        config = self.config
        # A rounded logit can change the choice, so the router alone runs in fp32.
        with torch.autocast(x.device.type, enabled=False):
            logits = x.float() @ self.gate.weight.float().T / config.router_temperature
        probabilities = logits.softmax(dim=-1)
        weights, chosen = probabilities.topk(config.n_experts_per_token, dim=-1)
        if config.moe_renormalize:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        taken = nn.functional.one_hot(chosen, self.n_experts).flatten(1, 2)
        kept = self._within_capacity(chosen, taken)
        share = taken.float().mean(dim=1)
        routing = Routing(
            balance=balance_loss(share, probabilities.mean(dim=1)),
            z=logits.logsumexp(dim=-1).square().mean(dim=1),
            load=share.detach().mean(dim=0),
            dropped=1.0 - kept.float().mean(),
        )
        return weights, chosen, kept, routing

    def _within_capacity(self, chosen: Tensor, taken: Tensor) -> Tensor:
        """Whether each choice found room: chosen (B, T, k), taken (B, T·k, N) -> bool (B, T, k).

        An expert has room for `moe_capacity_factor` times its even share of a sequence's choices.
        """
        factor = self.config.moe_capacity_factor
        if factor is None or not self.training:
            return torch.ones_like(chosen, dtype=torch.bool)
        capacity = math.ceil(factor * taken.shape[1] / self.n_experts)
        rank = taken.cumsum(dim=1).gather(2, chosen.flatten(1).unsqueeze(2))
        return (rank <= capacity).view_as(chosen)

    def _dispatch(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """x (n, C), weights and chosen (B, T, k) with N for 'none' -> (n, C).

        Choices are sorted by expert, each expert reads one run of them, and the results go back
        to their places by the inverse permutation, which adds nothing up in an unknown order.
        """
        k = chosen.shape[-1]
        ranked, order = chosen.flatten().sort(stable=True)
        every = torch.arange(self.n_experts, device=x.device)
        ends = torch.searchsorted(ranked, every, right=True, out_int32=True)
        rows = x[order // k]
        # The loop asks the device where the runs end: a wait on a GPU, a break in a compiled graph.
        group = self.can_group and (x.is_cuda or torch.compiler.is_compiling())
        if group and (dtype := _matmul_dtype(x)) is torch.bfloat16:
            outputs = self._grouped(rows.to(dtype), ends)
        else:
            outputs = self._one_by_one(rows, ends.tolist())
        back = outputs[order.argsort()].unflatten(0, (-1, k))
        return (back * weights.flatten(0, 1).unsqueeze(-1).to(back.dtype)).sum(dim=1)

    def _one_by_one(self, rows: Tensor, ends: list[int]) -> Tensor:
        """Rows (m, C) sorted by expert, and where each run ends -> (m, C), zero after the last."""
        *runs, homeless = rows.tensor_split(ends)
        # An expert without tokens runs too: its gradient is then zero on every rank, not absent.
        outputs = [expert(run) for expert, run in zip(self.experts, runs, strict=True)]
        return torch.cat([*outputs, torch.zeros_like(homeless, dtype=outputs[0].dtype)])

    def _grouped(self, rows: Tensor, ends: Tensor) -> Tensor:
        """The same as one matrix product for all experts, the ends (N,) left on the device."""
        # The product neither reads nor writes what stands after the last run, forward or backward,
        # so that is whatever was there before: it is put to zero at every door.
        has_home = (torch.arange(len(rows), device=rows.device) < ends[-1]).unsqueeze(1)

        def product(rows: Tensor, name: str) -> Tensor:
            tables = torch.stack([getattr(expert, name).weight for expert in self.experts])
            result = nn.functional.grouped_mm(rows, tables.to(rows.dtype).mT, offs=ends)
            return torch.where(has_home, result, 0.0)

        rows = torch.where(has_home, rows, 0.0)
        hidden = nn.functional.silu(product(rows, "gate_proj")) * product(rows, "up_proj")
        return product(torch.where(has_home, hidden, 0.0), "down_proj")


def _matmul_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a linear map of x runs: autocast's where that is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def balance_loss(share: Tensor, probability: Tensor) -> Tensor:
    """N · Σ share · probability over the experts (Fedus et al., 2021, equation 4).

    share (..., N) of the choices that fell on each expert and its mean router probability (..., N),
    each summing to 1 -> (...). It is 1 where both are uniform, and grows as they lean together.
    """
    return share.shape[-1] * (share * probability).sum(dim=-1)


def summarize(
    routings: Sequence[Routing], targets: Tensor, config: ModelConfig
) -> dict[str, Tensor]:
    """The layers' routing as terms that add up over micro-batches just as the token losses do.

    targets (B,) counts the valid targets of each sequence; M layers have experts. Empty where none
    has, else
        loss           () what to add to the sum of token losses, with both coefficients applied
        balance_loss   () and router_z_loss (): the same sums without coefficients, detached
        expert_load    (M, N) share of the choices that fell on each expert
        dropped        (M,) share of the choices that found their expert full
    Losses are means over the layers and sums over sequences, each as often as it has targets:
    divided by all targets of a step they are means over its tokens.
    """
    if not routings:
        return {}
    balance = torch.stack([routing.balance for routing in routings]).mean(dim=0) @ targets.float()
    z = torch.stack([routing.z for routing in routings]).mean(dim=0) @ targets.float()
    return {
        "loss": config.balance_loss * balance + config.router_z_loss * z,
        "balance_loss": balance.detach(),
        "router_z_loss": z.detach(),
        "expert_load": torch.stack([routing.load for routing in routings]),
        "dropped": torch.stack([routing.dropped for routing in routings]),
    }
