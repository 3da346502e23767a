"""A phasewise network behind the interface of transformers, which adds nothing to its arithmetic.

Decoding reads the whole sequence at each step: transformers' caches are not used. The network's own
`generate` has one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from model.config import ModelConfig
from model.transformer import Transformer

from .configuration_phasewise import PhasewiseConfig


class PhasewiseForCausalLM(PreTrainedModel, GenerationMixin):
    """The network, with logits over the vocabulary."""

    config_class = PhasewiseConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"

    def __init__(self, config: PhasewiseConfig) -> None:
        super().__init__(config)
        self.model = Transformer(ModelConfig.from_dict(config.phasewise))
        self._positions_filled = self.model.device.type != "meta"
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> CausalLMOutput:
        """input_ids (B, T) -> logits (B, T, V), and the mean loss where there are ``labels``.

        A row may be padded on either side; ``attention_mask`` (B, T) is 0 at pads. ``labels``
        (B, T) are the ids themselves, with -100 where there is none.
        """
        self._fill_positions()
        padding = None
        if attention_mask is not None:
            padding = (attention_mask.cumsum(dim=-1) == 0).sum(dim=-1)
            padding = padding if padding.any() else None
        logits = self.model(input_ids, left_padding=padding)
        loss = None
        if labels is not None:
            ahead = logits[:, :-1].float().flatten(0, 1)
            loss = F.cross_entropy(ahead, labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> dict[str, Any]:
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def _init_weights(self, module: nn.Module) -> None:
        """The network has drawn its weights itself."""

    def _fill_positions(self) -> None:
        """Compute the tables of the positions, once the weights are where they will stay.

        They are not stored, and transformers builds a network without memory behind it: what it
        puts in their place holds anything.
        """
        if self._positions_filled:
            return
        with torch.inference_mode(False):
            self.model.positions.reset(self.model.device)
        self._positions_filled = True
