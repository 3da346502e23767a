"""The network: a decoder that is a list of choices (`ModelConfig`) and plain torch.

    ids (B, T) -> embed_tokens -> n_layers x [norm -> attention, norm -> feed-forward] -> norm
        -> logits (B, T, V) | sum of token losses | sampled continuations

Nothing here knows how a model is trained, stored or served. All imports are relative, so the same
files work under another package name inside an exported model. `ModelConfig` and
`count_parameters` need no torch; what does is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .config import ModelConfig
from .counts import count_parameters

if TYPE_CHECKING:
    from .cache import KVCache
    from .load import load_model
    from .sampling import SamplingOptions
    from .transformer import Transformer

_HOMES = {
    "KVCache": "cache",
    "SamplingOptions": "sampling",
    "Transformer": "transformer",
    "load_model": "load",
}

__all__ = [
    "KVCache",
    "ModelConfig",
    "SamplingOptions",
    "Transformer",
    "count_parameters",
    "load_model",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
