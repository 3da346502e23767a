"""What the routers of a mixture of experts did in one step, for the record."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class RoutingLog:
    """Adds up what `Transformer.loss` tells of the routers over the micro-batches of a step."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._passes = 0

    def add(self, aux: dict[str, Tensor]) -> None:
        """Take the terms of one micro-batch; without experts there are none."""
        for name, value in aux.items():
            if name != "loss":
                before = self._sums.get(name)
                self._sums[name] = value if before is None else before + value
        self._passes += 1

    def figures(self, batch_tokens: int) -> dict[str, Any]:
        """The step's figures by the names that the history gives them; empty without experts.

        balance_loss      Switch balance loss, mean over tokens and layers; 1 at uniform load
        router_z_loss     mean squared log-sum-exp of the router's logits
        expert_load       share of the choices that fell on each expert, a list a layer
        expert_load_max   the largest of them, times the experts: 1 where the load is even
        expert_dropped    share of the choices that found their expert full, mean over layers
        """
        if not self._sums:
            return {}
        load = self._sums["expert_load"] / self._passes  # (layers, experts)
        return {
            "balance_loss": self._sums["balance_loss"].item() / batch_tokens,
            "router_z_loss": self._sums["router_z_loss"].item() / batch_tokens,
            "expert_load": [[round(share, 5) for share in layer] for layer in load.tolist()],
            "expert_load_max": load.max().item() * load.shape[1],
            "expert_dropped": (self._sums["dropped"] / self._passes).mean().item(),
        }
