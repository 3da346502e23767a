"""What a model thinks comes next: the likeliest tokens, and how likely the drawn ones were.

ids -> one pass -> logits (V,) -> softmax: the model's own probabilities, at temperature 1
                           \\-> penalties, temperature, cuts: those that a token is drawn with
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.cache import KVCache
from model.decoder import Decoder
from model.sampling import SamplingOptions, penalize, probabilities
from tasks.release.token_names import token_name

if TYPE_CHECKING:
    from tasks.tokens.text import TextTokenizer


@dataclass(frozen=True)
class Candidate:
    """A token that can come next."""

    id: int
    name: str
    """Its text after what stands there, spaces and line ends made visible."""
    probability: float
    """By the model alone."""


@dataclass(frozen=True)
class Drawn:
    """A token that came, and the likeliest that could have."""

    token: Candidate
    likeliest: tuple[Candidate, ...]


class WatchedDecoder(Decoder):
    """A decoder that keeps the logits (B, last, V) of its last read."""

    seen: Tensor | None = None

    def read(
        self, ids: Tensor, cache: KVCache, left_padding: Tensor | None = None, last: int = 1
    ) -> Tensor:
        """As `Decoder.read`."""
        self.seen = super().read(ids, cache, left_padding, last)
        return self.seen


@torch.inference_mode()
def likeliest(
    tokenizer: TextTokenizer, before: Sequence[int], logits: Tensor, k: int
) -> list[Candidate]:
    """The k likeliest tokens after ``before``, by the logits (V,) there; all where k is more."""
    values, ids = logits.softmax(dim=-1).topk(min(k, logits.shape[-1]))
    return [
        Candidate(id_, token_name(tokenizer, before, id_), value)
        for id_, value in zip(ids.tolist(), values.tolist(), strict=True)
    ]


@torch.inference_mode()
def drawn(
    tokenizer: TextTokenizer, before: Sequence[int], logits: Tensor, id_: int, k: int
) -> Drawn:
    """The token ``id_`` that came after ``before``, beside the k likeliest there."""
    probability = logits.softmax(dim=-1)[id_].item()
    token = Candidate(id_, token_name(tokenizer, before, id_), probability)
    return Drawn(token, tuple(likeliest(tokenizer, before, logits, k)))


@torch.inference_mode()
def chances(before: Sequence[int], logits: Tensor, options: SamplingOptions) -> Tensor:
    """The probabilities (V,) that the first new token after ``before`` is drawn with."""
    penalized = penalize(logits, before, [], options) if options.penalizes else logits
    return probabilities(penalized.unsqueeze(0), options, [0])[0]
