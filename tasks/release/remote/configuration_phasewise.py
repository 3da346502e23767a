"""The configuration of a phasewise network, as transformers reads it."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class PhasewiseConfig(PretrainedConfig):
    """``phasewise`` holds every choice of the network, by the names of ``config.ModelConfig``."""

    model_type = "phasewise"

    def __init__(self, phasewise: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.phasewise = phasewise or {}
        super().__init__(**kwargs)
