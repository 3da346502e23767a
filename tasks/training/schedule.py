"""Learning rate and dropout as pure functions of the step, by the tokens before it.

lr   /----\\              cosine: half a cosine down to min_lr (Loshchilov & Hutter 2017)
    /      \\.            linear: a straight line down to min_lr
   /         `--         constant: stays at lr
  /                      wsd: stays, then a linear cooldown (Hu et al. 2024)
 warmup   decay
"""

from __future__ import annotations

import math

from model.config import ModelConfig
from tasks.recipe import Phase


def lr_at(phase: Phase, step: int) -> float:
    """Learning rate of step ``step``, from 0.

    The first step of a warmup has one step's share of ``lr``, not 0; the last step of a decay is
    one step above ``min_lr``, so that no step is spent on a rate of 0.
    """
    seen, tokens = phase.plan.at(step)
    if seen + tokens < phase.warmup_tokens:
        share = (seen + tokens) / phase.warmup_tokens
        return phase.lr * (_half_cosine(share) if phase.warmup == "cosine" else share)
    if phase.schedule == "constant":
        return phase.lr
    start, total = phase.warmup_tokens, phase.total_tokens
    if phase.schedule == "wsd":
        start = max(start, total - phase.cooldown_tokens)
    progress = min(1.0, max(0.0, (seen - start) / max(1, total - start)))
    share = _half_cosine(1 - progress) if phase.schedule == "cosine" else 1 - progress
    return phase.min_lr + (phase.lr - phase.min_lr) * share


def _half_cosine(share: float) -> float:
    """From 0 to 1, flat at both ends."""
    return 0.5 * (1 - math.cos(math.pi * share))


def dropout_at(phase: Phase, config: ModelConfig, step: int) -> dict[str, float]:
    """The probabilities of ``Transformer.set_dropout`` at a step: straight to ``final_dropout``."""
    start = {
        "embed": config.embed_dropout,
        "attn": config.attn_dropout,
        "resid": config.resid_dropout,
    }
    final = phase.final_dropout
    if final is None:
        return start
    share = step / max(1, phase.steps - 1)
    return {name: p + (final - p) * share for name, p in start.items()}
