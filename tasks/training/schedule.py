"""The learning rate as a pure function of the tokens seen.

lr   /----\\              cosine: half a cosine down to min_lr (Loshchilov & Hutter 2017)
    /      \\.            linear: a straight line down to min_lr
   /         `--         constant: stays at lr
  /                      wsd: stays, then a linear cooldown (Hu et al. 2024)
 warmup   decay
"""

from __future__ import annotations

import math

from tasks.recipe import Phase


def lr_at(phase: Phase, tokens_seen: int) -> float:
    """Learning rate of the step that begins after ``tokens_seen`` tokens of the phase.

    The first step of a warmup has one step's share of ``lr``, not 0; the last step of a decay is
    one step above ``min_lr``, so that no step is spent on a rate of 0.
    """
    if tokens_seen + phase.batch_tokens < phase.warmup_tokens:
        return phase.lr * (tokens_seen + phase.batch_tokens) / phase.warmup_tokens
    total = phase.steps * phase.batch_tokens
    if phase.schedule == "constant":
        return phase.lr
    start = phase.warmup_tokens
    if phase.schedule == "wsd":
        start = max(start, total - phase.cooldown_tokens)
    progress = min(1.0, max(0.0, (tokens_seen - start) / max(1, total - start)))
    cosine = phase.schedule == "cosine"
    share = 0.5 * (1 + math.cos(math.pi * progress)) if cosine else 1 - progress
    return phase.min_lr + (phase.lr - phase.min_lr) * share
