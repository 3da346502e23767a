"""What a phase is about to do, said before it does it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.files import read_json
from tasks.units import show_count

if TYPE_CHECKING:
    from tasks.training.trainer import Trainer


def preflight(trainer: Trainer) -> None:
    """Print the network, the device, the steps, and what differs from the run that goes on."""
    settings, state, world = trainer.settings, trainer.state, trainer.world
    parameters = sum(p.numel() for p in state.model.parameters())
    how = ", compiled" if trainer.compiled else ""
    if world.size > 1:
        how += f", {world.size} processes ({trainer.machine.parallel})"
    print(f"    {parameters:,} parameters on {trainer.device.describe()}{how}")
    batch = f"{settings.batch_tokens:,}"
    if settings.batch_ramp:
        batch = f"{settings.batch_ramp.start:,} to {batch}"
    rows = trainer.micro_batch
    print(
        f"    {show_count(settings.tokens)} tokens in {settings.steps:,} steps of {batch} "
        f"(at most {rows} x {settings.seq_len} at a time), from {settings.starts_from}"
    )
    if trainer.peak_flops:
        print(f"    MFU of {trainer.peak_flops / 1e12:,.0f} TFLOP/s, at "
              f"{trainer.flops_a_token / 1e6:,.1f} MFLOP a token")  # fmt: skip
    if trainer.resumed_from:
        print(f"    going on from step {state.step:,} ({trainer.resumed_from.name})")
        _warn_of_other_bits(trainer)


def _warn_of_other_bits(trainer: Trainer) -> None:
    import torch

    assert trainer.resumed_from
    before = read_json(trainer.resumed_from / "state.json")
    now = {
        "threads": torch.get_num_threads(),
        "processes": trainer.world.size,
        "compiled": trainer.compiled,
        "torch": torch.__version__,
    }
    changed = [f"{k} {before[k]} -> {v}" for k, v in now.items() if before[k] != v]
    if changed:
        print(f"    warning: sums may differ in their last bits ({', '.join(changed)})")
