"""A phasewise network behind the interface of transformers, which adds nothing to its arithmetic.

`generate` reads each token once: keys and values lie in transformers' own DynamicCache, which the
network sees as a cache of its own kind.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from model.cache import KVCache
from model.config import ModelConfig
from model.transformer import Transformer

from .configuration_phasewise import PhasewiseConfig


class TransformersCache(KVCache):
    """A cache of transformers as the network's: the layers of one call add to it in turn."""

    def __init__(self, cache: DynamicCache) -> None:
        if not isinstance(cache, DynamicCache):
            raise ValueError(f"the cache must be a DynamicCache, got {type(cache).__name__}")
        self.cache, self.length = cache, cache.get_seq_length()

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add k and v (B, G, T, D) of new tokens; returns all of the layer's."""
        return self.cache.update(k, v, layer)


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
        past_key_values: DynamicCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """input_ids (B, T) -> logits (B, T, V), and the mean loss where there are ``labels``.

        ``past_key_values`` holds the P tokens before these and takes these in too; ``use_cache``
        starts one. A row may be padded on either side, with a cache on the left alone;
        ``attention_mask`` (B, P + T) is 0 at pads. ``labels`` (B, T) are the ids themselves, with
        -100 where there is none. ``logits_to_keep``: of the last tokens alone; 0: of all.
        """
        self._fill_positions()
        padding = None
        if attention_mask is not None:
            padding = (attention_mask.cumsum(dim=-1) == 0).sum(dim=-1)
            padding = padding if padding.any() else None
        if past_key_values is None and use_cache:
            past_key_values = DynamicCache()
        cache = None if past_key_values is None else TransformersCache(past_key_values)
        hidden = self.model.hidden(input_ids, cache=cache, left_padding=padding)
        logits = self.model.logits(hidden[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            ahead = logits[:, :-1].float().flatten(0, 1)
            loss = F.cross_entropy(ahead, labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: DynamicCache | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """What `forward` is given at each step: the ids that the cache does not hold yet."""
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        return {
            "input_ids": input_ids[:, past:],
            "past_key_values": past_key_values,
            "attention_mask": attention_mask,
            "logits_to_keep": 1,
        }

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
