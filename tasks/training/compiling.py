"""Whether a phase is trained through torch.compile.

It costs a minute or so at the start of each process and changes the last bits of sums, so on a CPU
only a phase of hours is compiled unless the setting says otherwise.
"""

from __future__ import annotations

import shutil

from model import ModelConfig
from tasks.planning import flops_a_token
from tasks.recipe import Phase
from tasks.settings import Settings
from tasks.training.device import Device

WORTH_FLOPS = 2e15  # of a phase on a CPU: the better part of an hour on two cores


def wanted(machine: Settings, settings: Phase, config: ModelConfig, device: Device) -> bool:
    """Whether to compile, by PHASEWISE_COMPILE and, where that is auto, by what it would bring."""
    if machine.compile != "auto":
        return machine.compile == "on"
    if settings.final_dropout is not None:
        return False  # a probability that moves would compile every step anew
    if device.torch_device.type == "cuda":
        _fall_back()
        return True
    flops = flops_a_token(config, settings.seq_len) * settings.total_tokens
    has_compiler = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
    if device.torch_device.type != "cpu" or not has_compiler or flops < WORTH_FLOPS:
        return False
    _fall_back()
    return True


def _fall_back() -> None:
    """A network that cannot be compiled then runs as it is, with a warning."""
    import torch._dynamo

    torch._dynamo.config.suppress_errors = True
