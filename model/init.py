"""The weights before the first step, drawn in the order of the names from one generator.

normal  N(0, init_std) for every table (as in GPT-2 and Llama)
scaled  the same, with the maps that write to the residual stream divided by sqrt(2 n_layers), so
        that the sum of 2 n_layers branches starts at the size of one (Radford et al., 2019)
torch   PyTorch's defaults: N(0, 1) for embeddings, U(±1/sqrt(d_in)) for linear maps
"""

from __future__ import annotations

import math

import torch
from torch import nn

from .config import ModelConfig
from .linear import Embedding, Linear

_WRITES_TO_RESIDUAL = ("o_proj", "down_proj")


@torch.no_grad()
def draw_weights(
    model: nn.Module, config: ModelConfig, generator: torch.Generator | None = None
) -> None:
    """Fill every table of `model` in place; the norms keep their ones and zeros.

    Without a generator the global one is used (`torch.manual_seed`).
    """
    for name, module in model.named_modules():
        if not isinstance(module, Linear | Embedding):
            continue
        weight = module.weight
        if config.init != "torch":
            weight.normal_(0.0, _std(config, name), generator=generator)
        elif isinstance(module, Embedding):
            weight.normal_(0.0, 1.0, generator=generator)
        else:
            bound = 1.0 / math.sqrt(module.in_features)
            weight.uniform_(-bound, bound, generator=generator)


def _std(config: ModelConfig, name: str) -> float:
    if config.init == "scaled" and name.endswith(_WRITES_TO_RESIDUAL):
        return config.init_std / math.sqrt(2 * config.n_layers)
    return config.init_std
