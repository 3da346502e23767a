"""How many parameters a configuration has, by part, without building it and without torch."""

from __future__ import annotations

from typing import TypedDict

from .config import ModelConfig


class ParameterCounts(TypedDict):
    """Numbers of scalars. `parts` sums to `total`."""

    total: int
    active: int
    """What one token goes through: all but the experts that it is not sent to."""
    non_embedding: int
    """All but the embedding table and, where it is not tied, the output table."""
    parts: dict[str, int]


def count_parameters(config: ModelConfig) -> ParameterCounts:
    """Exact counts for `config`; ValueError while `vocab_size` is None.

    A vocabulary of V, tables of width E, blocks of width C with H query and G key/value heads of
    width D, and feed-forwards of inner width F have, per block, C·D·(2H + 2G) attention weights,
    3·C·F a feed-forward (N of them and an N·C router where there are experts) and two norms.
    """
    moe_layers = sum(config.is_moe(layer) for layer in range(config.n_layers))
    dense_layers = config.n_layers - moe_layers
    table = config.vocabulary * config.embed_size
    feed_forward = 3 * config.d_model * config.d_ff
    experts = config.n_experts or 0
    parts = {
        "embedding": table,
        "embedding_projections": 0
        if config.d_embed is None
        else 2 * config.d_model * config.embed_size,
        "attention": config.n_layers * _attention(config),
        "feed_forward": dense_layers * feed_forward,
        "router": moe_layers * experts * config.d_model,
        "experts": moe_layers * experts * feed_forward,
        "shared_experts": moe_layers * feed_forward if config.shared_expert else 0,
        "norms": _norms(config),
        "output": 0 if config.tie_embeddings else table,
    }
    idle = moe_layers * max(experts - config.n_experts_per_token, 0) * feed_forward
    total = sum(parts.values())
    return {
        "total": total,
        "active": total - idle,
        "non_embedding": total - parts["embedding"] - parts["output"],
        "parts": parts,
    }


def _attention(config: ModelConfig) -> int:
    """Weights of the query, key, value and output projections of one block."""
    return 2 * config.d_model * config.head_size * (config.n_heads + config.kv_heads)


def _norms(config: ModelConfig) -> int:
    """Weights (and biases) of two norms a block and the last one, and of the QK norms."""
    per_norm = config.d_model * (2 if config.norm == "layernorm" else 1)
    per_head = 2 * config.head_size if config.qk_norm else 0
    return (2 * config.n_layers + 1) * per_norm + config.n_layers * per_head
