"""The decoder: embedding, blocks, last norm, and the same table (or another) on the way out.

    ids (B, T) -> embed_tokens (B, T, E) -> [embed_in] -> (B, T, C)
        -> n_layers x { x + attention(norm x);  x + feed-forward(norm x) }
        -> norm -> [embed_out] -> · tableᵀ -> logits (B, T, V)

Weights bear the names of Llama's in transformers, so that an export renames and computes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import Attention
from .cache import KVCache
from .config import ModelConfig
from .experts import Experts, Routing, summarize
from .feedforward import SwiGLU
from .init import draw_weights
from .linear import Embedding, Linear
from .loss import IGNORED, linear_cross_entropy, token_losses
from .masks import Sight, sight
from .norm import compute_dtype, make_norm
from .positions import Positions, Rotation


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = make_norm(config)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = make_norm(config)
        self.mlp: Experts | SwiGLU = Experts(config) if config.is_moe(layer) else SwiGLU(config)
        self.dropout = nn.Dropout(config.resid_dropout)

    def forward(
        self, x: Tensor, rotation: Rotation | None, seen: Sight, cache: KVCache | None
    ) -> tuple[Tensor, Routing | None]:
        """x (B, T, C) -> (B, T, C), and the routing where the block has experts."""
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), rotation, seen, cache))
        normed = self.post_attention_layernorm(x)
        if not isinstance(self.mlp, Experts):
            return x + self.dropout(self.mlp(normed)), None
        branch, routing = self.mlp(normed)
        return x + self.dropout(branch), routing


class Transformer(nn.Module):
    """The language model that `config` describes.

    The first weights come from `generator`, or from torch's global seed. `recompute` trades time
    for memory in training: blocks keep their input alone and run again in the backward pass.
    """

    def __init__(self, config: ModelConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self.embed_tokens = Embedding(config.vocabulary, config.embed_size)
        self.embed_dropout = nn.Dropout(config.embed_dropout)
        if config.d_embed is not None:
            self.embed_in = Linear(config.d_embed, config.d_model)
            self.embed_out = Linear(config.d_model, config.d_embed)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = make_norm(config)
        if not config.tie_embeddings:
            self.lm_head = Linear(config.embed_size, config.vocabulary)
        self.positions = Positions(config)
        draw_weights(self, config, generator)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._plain.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are, those aside that are quantized."""
        return self._plain.dtype

    @property
    def _plain(self) -> Tensor:
        """A weight that is one of floats whatever becomes of the tables."""
        weight = self.norm.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def output_table(self) -> Tensor:
        """(V, E): the rows that the last hidden state is compared with."""
        return self.embed_tokens.weight if self.config.tie_embeddings else self.lm_head.weight

    def forward(
        self,
        input_ids: Tensor,
        *,
        cache: KVCache | None = None,
        document_ids: Tensor | None = None,
        positions: Tensor | None = None,
        left_padding: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V) of the id after each of `input_ids` (B, T).

        cache         keys and values of the tokens before these; it takes these in too
        document_ids  (B, T) whole numbers: a token sees its own document only (not with a cache)
        positions     (B, T) positions for RoPE, where they are not counted from the row's start
        left_padding  (B,) pads at the front of each row, which no token sees; the same numbers at
                      every call with one cache. What comes out at pads means nothing.

        Raises ValueError where the sequence is longer than `max_seq_len`.
        """
        hidden = self.hidden(
            input_ids,
            cache=cache,
            document_ids=document_ids,
            positions=positions,
            left_padding=left_padding,
        )
        return self.logits(hidden)

    def hidden(self, input_ids: Tensor, **context: Any) -> Tensor:
        """The residual stream after the last norm, (B, T, C); keywords as of `forward`."""
        return self._run(input_ids, **context)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., C) -> logits (..., V) in the compute dtype."""
        return F.linear(self._outward(hidden), self.output_table)

    def loss(
        self,
        input_ids: Tensor,
        targets: Tensor,
        document_ids: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum of the token losses in nats, fp32 (); number of targets (); terms of the experts.

        input_ids and targets (B, T): a target is the id that comes after its input, -100 for none.
        Sums and counts add up over micro-batches and ranks: a step's loss is the sum of (loss sum
        + aux["loss"], where the model has experts) over all of them, divided by the sum of counts.
        `experts.summarize` tells what else the terms hold.
        """
        hidden, routings = self._run(input_ids, document_ids=document_ids)
        rows = self._outward(hidden).flatten(0, 1)
        total = linear_cross_entropy(rows, self.output_table, targets.flatten(), label_smoothing)
        valid = (targets != IGNORED).sum(dim=1)
        return total, valid.sum(), summarize(routings, valid, self.config)

    @torch.no_grad()
    def score(
        self, input_ids: Tensor, targets: Tensor, document_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Each target's loss in nats, fp32 (B, T), and whether it was the likeliest id, (B, T).

        As `loss` without adding up: 0 and false where the target is -100.
        """
        hidden, _ = self._run(input_ids, document_ids=document_ids)
        rows = self._outward(hidden).flatten(0, 1)
        losses, hits = token_losses(rows, self.output_table, targets.flatten())
        return losses.view_as(targets), hits.view_as(targets)

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """An empty cache on the model's device, in the dtype that keys come out in."""
        weight = self._plain
        dtype = compute_dtype(weight)
        return KVCache(self.config, batch_size, capacity, device=weight.device, dtype=dtype)

    def set_dropout(self, *, embed: float, attn: float, resid: float) -> None:
        """Set the three dropout probabilities, which a schedule may move during training."""
        self.embed_dropout.p = embed
        for block in self._blocks():
            block.self_attn.dropout = attn
            block.dropout.p = resid

    def _run(
        self,
        input_ids: Tensor,
        *,
        cache: KVCache | None = None,
        document_ids: Tensor | None = None,
        positions: Tensor | None = None,
        left_padding: Tensor | None = None,
    ) -> tuple[Tensor, list[Routing]]:
        """(B, T) -> the normed residual stream (B, T, C) and each router's doings."""
        past, length = (0 if cache is None else cache.length), input_ids.shape[1]
        if cache is not None and document_ids is not None:
            raise ValueError("document_ids are for whole sequences, not for decoding with a cache")
        if left_padding is not None and positions is None:
            steps = torch.arange(past, past + length, device=input_ids.device)
            positions = (steps - left_padding.unsqueeze(1)).clamp_min(0)
        if positions is None and past + length > self.config.max_seq_len:
            raise ValueError(
                f"a sequence of {past + length} tokens is longer than the model's context "
                f"(max_seq_len {self.config.max_seq_len})"
            )
        x = self.embed_tokens(input_ids)
        if self.config.d_embed is not None:
            x = self.embed_in(x)
        x = self.embed_dropout(x)
        dtype = compute_dtype(x)
        rotation = self.positions.rotation(past, length, positions, dtype)
        seen = sight(
            self.config,
            past,
            length,
            slopes=self.positions.slopes if self.config.biased else None,
            left_padding=left_padding,
            document_ids=document_ids,
            device=x.device,
            dtype=dtype,
            dropout=self.training and self._drops_attention,
        )
        routings = []
        for block in self.layers:
            x, routing = self._block(block, x, rotation, seen, cache)
            if routing is not None:
                routings.append(routing)
        if cache is not None:
            cache.advance(length)
        return self.norm(x), routings

    @property
    def _drops_attention(self) -> bool:
        return any(block.self_attn.dropout > 0 for block in self._blocks())

    def _blocks(self) -> Iterator[Block]:
        """The blocks, by their type."""
        for block in self.layers:
            assert isinstance(block, Block)
            yield block

    def _block(self, block: nn.Module, *inputs: Any) -> tuple[Tensor, Routing | None]:
        if self.recompute and self.training and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def _outward(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., E), the width of the output table."""
        return self.embed_out(hidden) if self.config.d_embed is not None else hidden
