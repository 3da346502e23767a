"""The training loop.

    for each step: samples (by index) -> loss sum over micro-batches -> clip -> AdamW -> EMA

The order of the data, the learning rate and the dropout masks of a step are functions of its
number, so a run that was stopped anywhere and goes on is the run that never stopped. The loss of a
step is the sum over its tokens divided by their number, whatever the micro-batch.
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
from tasks.training.optimizer import set_lr
from tasks.training.routing import RoutingLog
from tasks.training.schedule import lr_at
from tasks.training.state import TrainState


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step saw. ``loss`` in nats a token, before the update; ``routing`` as
    ``RoutingLog.figures`` gives it."""

    loss: float
    lr: float
    grad_norm: float
    seconds: float
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
        micro_batch: samples of one forward pass.
        seed: of the recipe; dropout draws from it, the phase and the step.
        after_step: called after every step; training ends early where it returns False.

    Raises:
        UserError: (exit code 3) the loss or the gradient is not finite; nothing was updated.
    """
    settings = state.settings
    while state.step < settings.steps:
        started = time.perf_counter()
        lr = lr_at(settings, state.tokens)
        set_lr(state.optimizer, lr)
        torch.manual_seed(step_seed(seed, state.phase, state.step))
        loss, routing = accumulate(state, reader, micro_batch)
        grad_norm = update(state, loss)
        state.step += 1
        report = StepReport(loss, lr, grad_norm, time.perf_counter() - started, routing)
        if not after_step(state, report):
            return


def accumulate(state: TrainState, reader: Reader, micro_batch: int) -> tuple[float, dict[str, Any]]:
    """Add up the gradient of one step's loss; returns the loss in nats a token, and the routing."""
    settings, device = state.settings, state.device
    state.model.train()
    state.optimizer.zero_grad(set_to_none=True)
    first = state.step * settings.batch_size
    total, routing = torch.zeros((), device=device.torch_device), RoutingLog()
    for offset in range(0, settings.batch_size, micro_batch):
        samples = reader.samples(first + offset, micro_batch, documents=settings.document_mask)
        tokens = torch.from_numpy(samples.tokens).to(device.torch_device)
        documents = None
        if samples.document_ids is not None:
            documents = torch.from_numpy(samples.document_ids[:, :-1]).to(device.torch_device)
        with device.autocast():
            loss_sum, _, aux = state.model.loss(
                tokens[:, :-1], tokens[:, 1:], documents, settings.label_smoothing
            )
        loss = (loss_sum + aux.get("loss", 0.0)) / settings.batch_tokens
        state.scaler.scale(loss).backward()
        total += loss_sum.detach()
        routing.add(aux)
    return total.item() / settings.batch_tokens, routing.figures(settings.batch_tokens)


def update(state: TrainState, loss: float) -> float:
    """Clip, step and average; returns the gradient norm before clipping.

    In fp16 the scaler skips a step whose gradient overflowed, and lowers its scale; in every other
    case a loss or gradient that is not finite stops training before the weights are touched.
    """
    state.scaler.unscale_(state.optimizer)
    clip = state.settings.grad_clip or math.inf
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), clip).item()
    overflow = state.scaler.is_enabled() and math.isfinite(loss) and not math.isfinite(norm)
    if not (math.isfinite(loss) and math.isfinite(norm)) and not overflow:
        first = state.step * state.settings.batch_size
        raise UserError(
            f"step {state.step} of {state.phase}: loss {loss}, gradient norm {norm}; "
            f"samples {first} to {first + state.settings.batch_size - 1}",
            hint="lower lr or grad_clip, or use precision fp32; the last checkpoint is untouched",
            exit_code=NON_FINITE,
        )
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if overflow:
        state.skipped += 1
        return 0.0
    state.updates += 1
    if state.ema:
        state.ema.update(state.model)
    return norm


def step_seed(seed: int, phase: str, step: int) -> int:
    """The random seed of one step: 63 bits of SHA-256."""
    digest = hashlib.sha256(f"{seed}/{phase}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
