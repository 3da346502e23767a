"""Weights of 8 or 4 bits: smaller and faster on a CPU, and how much worse they predict.

Quantized are all tables of the blocks (attention, feed-forward, experts), the projections of a
factorised embedding, the embedding and the output table. The embedding is 8-bit at most, because
its rows are looked up one by one; with int8 a tied table is held once, with int4 the output has a
4-bit table of its own. Norms and the experts' routers stay bf16, and so does what flows between.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

from tasks.errors import USAGE, UserError
from tasks.release.opening import Quantization

if TYPE_CHECKING:
    from torch import nn

    from model import Transformer
    from tasks.evaluation.scoring import Score
    from tasks.tokens.text import TextTokenizer

KINDS = ("fp32", "bf16", *get_args(Quantization))


@dataclass(frozen=True)
class Quantized:
    """What one kind of weights costs and what it loses; figures over the same texts."""

    kind: str
    """fp32, bf16, int8 or int4."""
    weight_bytes: int
    """Bytes of all weights in memory."""
    bits_per_byte: float
    perplexity: float
    tokens: int
    """Tokens scored, the end of each text among them."""


def quantize(network: Transformer, kind: str) -> Transformer:
    """A copy of ``network`` in evaluation mode, on the CPU, with quantized tables; bf16 between.

    Raises UserError for another kind, for a table whose width the 4-bit kernel cannot read, or
    where this build of torch has no such kernels.
    """
    from torch import nn

    from model.quantized import GROUP, Int4Linear, Int8Embedding, Int8Linear

    if kind not in get_args(Quantization):
        raise UserError(f"no kind of quantized weights is called {kind!r}", hint="int8 or int4")
    _require_kernels()
    copy = _copy(network)
    if kind == "int4":
        for name, table in copy.named_modules():
            if isinstance(table, nn.Linear | nn.Embedding) and table.weight.shape[1] % GROUP:
                raise UserError(
                    f"{name} is {table.weight.shape[1]} wide; int4 shares a scale among {GROUP} "
                    "weights, and that does not divide it",
                    hint="take int8, which fits any width",
                )
    make = Int8Linear if kind == "int8" else Int4Linear
    for name, module in list(copy.named_modules()):
        if isinstance(module, nn.Linear) and not name.endswith("mlp.gate"):
            parent, _, leaf = name.rpartition(".")
            setattr(copy.get_submodule(parent), leaf, make(module.weight))
    rows = Int8Linear(copy.embed_tokens.weight)
    if copy.config.tie_embeddings:
        copy.lm_head = rows if kind == "int8" else make(copy.embed_tokens.weight)  # type: ignore[assignment]
        copy.config = replace(copy.config, tie_embeddings=False)
    copy.embed_tokens = Int8Embedding(rows)  # type: ignore[assignment]
    return copy.bfloat16().eval()


def weight_bytes(network: nn.Module) -> int:
    """Bytes of the weights, each counted once."""
    tensors = network.state_dict(keep_vars=True).values()
    return sum({t.data_ptr(): t.nbytes for t in tensors}.values())


def score_texts(network: Transformer, tokenizer: TextTokenizer, texts: Sequence[str]) -> Score:
    """How well ``network`` predicts ``texts``, windows of its context one after another.

    Raises UserError where there is no text, or one whose ids are not the network's.
    """
    import numpy as np

    from tasks.evaluation.scoring import Protocol, score

    ids = [[*line, tokenizer.eos_id] for line in tokenizer.encode_batch(texts)]
    text_bytes = sum(len(text.encode()) for text in texts)
    if not text_bytes:
        raise UserError("there is no text to compare on", hint="give texts that are not empty")
    if tokenizer.vocab_size > network.config.vocabulary:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the network "
            f"{network.config.vocabulary}: they do not belong together"
        )
    tokens = np.concatenate([np.asarray(line, dtype=np.int64) for line in ids])
    seq_len = network.config.max_seq_len
    rows = max(1, 4096 // seq_len)
    protocol = Protocol(seq_len, seq_len)
    return score(network, tokens, text_bytes, protocol, eos_id=tokenizer.eos_id, batch_size=rows)


def compare(
    network: Transformer,
    tokenizer: TextTokenizer,
    texts: Sequence[str],
    kinds: Sequence[str] = KINDS,
) -> list[Quantized]:
    """One row a kind, in the order of ``kinds``: bytes of the weights, and what texts cost in bits.

    Raises UserError as `quantize` and `score_texts` do, and for a figure that is not finite.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise UserError(
            f"no kind of weights is called {unknown[0]!r}", hint=f"there are: {', '.join(KINDS)}"
        )
    return [_row(_of_kind(network, kind), kind, tokenizer, texts) for kind in kinds]


def _row(
    network: Transformer, kind: str, tokenizer: TextTokenizer, texts: Sequence[str]
) -> Quantized:
    result = score_texts(network, tokenizer, texts)
    if not math.isfinite(result.bits_per_byte) or not math.isfinite(result.perplexity):
        raise UserError(f"the {kind} network's loss is {result.loss}: its weights are broken")
    return Quantized(
        kind, weight_bytes(network), result.bits_per_byte, result.perplexity, result.tokens
    )


def _of_kind(network: Transformer, kind: str) -> Transformer:
    if kind in get_args(Quantization):
        return quantize(network, kind)
    import torch

    return _copy(network).to(torch.bfloat16 if kind == "bf16" else torch.float32).eval()


def _copy(network: Transformer) -> Transformer:
    """A network of the same weights on the CPU, its own to change."""
    import copy

    return copy.deepcopy(network).cpu()


def _require_kernels() -> None:
    import torch

    wanted = ("_weight_int8pack_mm", "_weight_int4pack_mm_for_cpu")
    if missing := [name for name in wanted if not hasattr(torch.ops.aten, name)]:
        raise UserError(
            f"torch {torch.__version__} has no {missing[0]}",
            hint="install torch 2.10 or newer",
            exit_code=USAGE,
        )
