"""A range test for the learning rate (Smith 2017, "Cyclical learning rates").

From a phase's first weights and samples, each step takes a rate a little higher than the last.
The loss falls, fastest near rates that work, and then breaks away. Nothing is written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tasks.errors import UserError
from tasks.recipe import Recipe
from tasks.settings import settings as machine_settings
from tasks.workspace import Workspace

SMOOTHING = 0.9  # of the losses, as an exponential average without bias
BROKEN = 1.5  # times the least smoothed loss: no use in going on


@dataclass(frozen=True)
class RangeTest:
    """Attributes:
    lrs, losses: of each step; losses in nats a token, smoothed.
    steepest: the rate at which the loss fell fastest.
    suggested: the rate of the least loss, divided by ten, or the steepest where that is more.
    """

    lrs: list[float]
    losses: list[float]
    steepest: float
    suggested: float


def find_lr(
    workspace: Workspace, recipe: Recipe, phase: str, low: float, high: float, steps: int
) -> RangeTest:
    """Run the test on a phase whose parent and mix are there.

    Args:
        low, high: the first and the last rate; they grow by a constant factor.
        steps: at most; fewer where the loss breaks away.

    Raises:
        UserError: the phase has fewer samples than the test, or the loss broke at once.
    """
    import torch

    from tasks.tokens.mixture import load_mix
    from tasks.tokens.reader import Reader
    from tasks.training import checkpoint, loop
    from tasks.training.batch import read_batch
    from tasks.training.device import micro_batch_size, open_device
    from tasks.training.starting import starting_config
    from tasks.training.state import TrainState

    machine, settings = machine_settings(), recipe.phases[phase]
    steps = min(steps, settings.steps)
    device = open_device(machine, settings.precision)
    reader = Reader(workspace, load_mix(workspace.mix(phase)), verify=False)
    parent = checkpoint.require(workspace.checkpoint(settings.starts_from))
    config = starting_config(workspace, recipe, phase)
    state = TrainState.start(phase, settings, device, parent, config)
    rows = micro_batch_size(machine, settings)
    lrs: list[float] = []
    losses: list[float] = []
    average = 0.0
    for step in range(steps):
        lr = low * (high / low) ** (step / max(1, steps - 1))
        state.optimizer.set_lr(lr)
        torch.manual_seed(loop.step_seed(recipe.seed, phase, step))
        batch = read_batch(reader, settings, step, state.world)
        loss, _ = loop.accumulate(state, batch, rows * settings.rows(state.tokens))
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        smoothed = average / (1 - SMOOTHING ** (step + 1))
        if not math.isfinite(loss) or (losses and smoothed > BROKEN * min(losses)):
            break
        lrs.append(lr)
        losses.append(smoothed)
        state.clip_gradients()
        state.optimizer.step(state.scaler)
        state.step += 1
    return judge(lrs, losses)


def judge(lrs: list[float], losses: list[float]) -> RangeTest:
    """The rates that a curve of smoothed losses speaks for. Raises UserError for under 10 steps."""
    if len(lrs) < 10:
        raise UserError(
            f"the loss broke away after {len(lrs)} steps", hint="start lower: --min-lr 1e-7"
        )
    falls = [losses[i - 1] - losses[i + 1] for i in range(1, len(losses) - 1)]
    steepest = lrs[1 + max(range(len(falls)), key=lambda i: falls[i])]
    least = lrs[min(range(len(losses)), key=lambda i: losses[i])]
    return RangeTest(lrs, losses, steepest, max(steepest, least / 10))
