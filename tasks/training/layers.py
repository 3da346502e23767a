"""The gradient's norm by layer: where a network learns, and where it is about to break."""

from __future__ import annotations

import math

from tasks.training.parallel import whole
from tasks.training.state import TrainState


def layer_norms(state: TrainState, grad_norm: float) -> dict[str, float]:
    """Norm of the last step's gradient, before clipping, of each block and of what is around them.

    Every rank must ask.

    Args:
        grad_norm: of the whole gradient, before clipping.

    Returns:
        ``layers.0``, ``layers.1``, ... and the names of the other parts, as ``embed_tokens``.
    """
    clip = state.settings.grad_clip
    scale = max(1.0, grad_norm / clip) if clip and math.isfinite(grad_norm) else 1.0
    squares: dict[str, float] = {}
    for name, parameter in state.model.named_parameters():
        if parameter.grad is None:
            continue
        parts = name.split(".")
        layer = ".".join(parts[:2]) if parts[0] == "layers" else parts[0]
        square = whole(parameter.grad.float().square().sum())
        squares[layer] = squares.get(layer, 0.0) + square.item()
    return {layer: round(math.sqrt(square) * scale, 6) for layer, square in squares.items()}
