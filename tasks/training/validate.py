"""Held-out loss while training: every set, raw and EMA weights, same windows each time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.evaluation.scoring import Protocol, score
from tasks.recipe import Recipe
from tasks.tokens.shards import open_split, splits
from tasks.workspace import Workspace

if TYPE_CHECKING:
    from tasks.training.state import TrainState


@dataclass(frozen=True)
class HeldOutSet:
    """The first whole documents of a held-out split, as one stream of tokens."""

    name: str
    tokens: np.ndarray  # (N,), each document followed by EOS
    document_bytes: np.ndarray  # (D,), of each document's text

    @property
    def text_bytes(self) -> int:
        return int(self.document_bytes.sum())


def held_out_sets(
    workspace: Workspace, recipe: Recipe, most_tokens: int | None, kinds: tuple[str, ...]
) -> list[HeldOutSet]:
    """Every held-out split of every source, cut at the last document that fits ``most_tokens``.

    The first document is taken even where it alone is longer.
    """
    found = []
    for source in recipe.sources:
        folder = workspace.tokens(source)
        for split in splits(folder):
            if split not in kinds:
                continue
            shard = open_split(folder, split)
            if not shard.documents:
                continue
            fit = shard.documents
            if most_tokens is not None:
                fit = max(1, int(np.searchsorted(shard.ends, most_tokens, side="right")))
            tokens = shard.read(0, int(shard.ends[fit - 1]))
            found.append(HeldOutSet(f"{source}/{split}", tokens, shard.document_bytes[:fit]))
    return found


def validate(
    state: TrainState, sets: list[HeldOutSet], eos_id: int, micro_batch: int
) -> list[dict[str, Any]]:
    """Score every set with the raw weights and the EMA; returns fields of history records."""
    records = []
    for weights in ("raw", "ema"):
        if weights == "raw":
            records += _score_all(state, sets, eos_id, micro_batch, weights)
        elif state.ema:
            with state.ema.swapped(state.model):
                records += _score_all(state, sets, eos_id, micro_batch, weights)
    return records


def _score_all(
    state: TrainState, sets: list[HeldOutSet], eos_id: int, micro_batch: int, weights: str
) -> list[dict[str, Any]]:
    seq_len, records = state.settings.seq_len, []
    protocol = Protocol(seq_len, seq_len, state.settings.document_mask)
    for held_out in sets:
        result = score(
            state.model,
            held_out.tokens,
            held_out.text_bytes,
            protocol,
            eos_id=eos_id,
            batch_size=micro_batch,
            autocast=state.device.autocast,
        )
        records.append(
            {
                "set": held_out.name,
                "weights": weights,
                "loss": result.loss,
                "bits_per_byte": result.bits_per_byte,
                "perplexity": result.perplexity,
                "accuracy": result.accuracy,
            }
        )
    return records
