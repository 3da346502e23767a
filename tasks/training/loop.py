"""The training loop.

    for each step: samples (by number) -> loss sum over micro-batches -> clip -> optimizer -> EMA

The order of the data, the learning rate and the dropout masks of a step are functions of its
number, so a run that was stopped anywhere and goes on is the run that never stopped. The loss of a
step is the sum over its tokens, on all ranks, divided by their number: micro-batches and processes
do not change it.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from tasks.errors import NON_FINITE, UserError
from tasks.tokens.reader import Reader
from tasks.training.batch import Batch, read_batch
from tasks.training.routing import RoutingLog
from tasks.training.schedule import dropout_at, lr_at
from tasks.training.state import TrainState


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step saw and did.

    Attributes:
        loss: nats a token, before the update.
        grad_norm: of the whole gradient, before clipping.
        skipped: why the weights were left alone, or None.
        spike: whether the loss jumped.
        seconds, data_seconds: of the step, and of reading its samples.
        routing: as ``RoutingLog.figures`` gives it.
    """

    loss: float
    lr: float
    grad_norm: float
    skipped: str | None
    spike: bool
    seconds: float
    data_seconds: float
    routing: dict[str, Any] = field(default_factory=dict)


def train(
    state: TrainState,
    reader: Reader,
    micro_batch: int,
    seed: int,
    after_step: Callable[[TrainState, StepReport], bool],
) -> None:
    """Train from ``state.step`` to the phase's last step.

    Args:
        micro_batch: most samples of one forward pass.
        seed: of the recipe; dropout draws from it, the phase, the step and the rank.
        after_step: called after every step; training ends early where it returns False.

    Raises:
        UserError: (exit code 3) more steps in a row than ``max_skipped`` could not be used.
    """
    settings = state.settings
    while state.step < settings.steps:
        started = time.perf_counter()
        batch = read_batch(reader, settings, state.step, state.world)
        data_seconds = time.perf_counter() - started
        lr = lr_at(settings, state.step)
        state.optimizer.set_lr(lr)
        state.model.set_dropout(**dropout_at(settings, state.model.config, state.step))
        torch.manual_seed(step_seed(seed, state.phase, state.step, state.world.rank))
        loss, routing = accumulate(state, batch, micro_batch * settings.rows(state.tokens))
        spike = state.spikes.found(loss)
        grad_norm, skipped = update(state, loss, spike)
        state.step += 1
        seconds = time.perf_counter() - started
        report = StepReport(loss, lr, grad_norm, skipped, spike, seconds, data_seconds, routing)
        if not after_step(state, report):
            return


def accumulate(state: TrainState, batch: Batch, micro_batch: int) -> tuple[float, dict[str, Any]]:
    """Add up the gradient of one step's loss; returns the loss in nats a token, and the routing.

    Args:
        batch: this rank's rows of the step.
        micro_batch: most rows of one forward pass.
    """
    world, device = state.world, state.device
    state.model.train()
    state.optimizer.zero_grad()
    parts = list(batch.split(micro_batch))
    valid = int(world.sum(batch.valid.to(device.torch_device))[0].item())
    total, routing = torch.zeros((), device=device.torch_device), RoutingLog()
    for number, part in enumerate(parts, 1):
        here = part.to(device.torch_device)
        with state.gradients_meet(last=number == len(parts)), device.autocast():
            loss_sum, aux = state.objective(here.inputs, here.targets, here.documents)
            # gradients of ranks are averaged, and a step's loss is a sum over them
            loss = (loss_sum + aux.get("loss", 0.0)) * (world.size / valid)
            state.scaler.scale(loss).backward()
        total += loss_sum.detach()
        routing.add(aux)
    return world.sum(total)[0].item() / valid, routing.figures(valid // world.size)


def update(state: TrainState, loss: float, spike: bool) -> tuple[float, str | None]:
    """Clip, step and average; returns the gradient norm and why the step was skipped, if it was.

    A step is skipped, with the weights as they were, where its loss or gradient is not finite, and
    where it is a spike and the recipe says skip. In fp16 the scaler then lowers its scale too.
    """
    norm = state.clip_gradients()
    skipped = None
    if not (math.isfinite(loss) and math.isfinite(norm)):
        skipped = "overflow" if state.overflowed(loss) else "not finite"
    elif spike and state.settings.on_spike == "skip":
        skipped = "spike"
    if skipped in (None, "overflow"):
        state.optimizer.step(state.scaler)  # on an overflow the scaler leaves the weights alone
    if skipped is None:
        state.updates += 1
        state.skipped_in_row = 0
        state.spikes.add(loss)
        if state.ema:
            state.ema.update(state.model)
        return norm, None
    state.skipped += 1
    state.skipped_in_row += skipped != "overflow"
    if state.skipped_in_row > state.settings.max_skipped:
        raise _stuck(state, loss, norm)
    return (norm if math.isfinite(norm) else 0.0), skipped


def _stuck(state: TrainState, loss: float, norm: float) -> UserError:
    samples = state.settings.samples_at(state.step)
    return UserError(
        f"step {state.step} of {state.phase}: loss {loss}, gradient norm {norm}, samples "
        f"{samples[0]} to {samples[-1]}; {state.skipped_in_row} steps in a row could not be used",
        hint="lower lr or grad_clip, or use precision fp32; the last checkpoint is from before. "
        f"Look at the samples: phasewise data trace {state.phase} {samples[0]}",
        exit_code=NON_FINITE,
    )


def step_seed(seed: int, phase: str, step: int, rank: int = 0) -> int:
    """The random seed of one step on one rank: 63 bits of SHA-256."""
    name = f"{seed}/{phase}/{step}" + (f"/{rank}" if rank else "")
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
