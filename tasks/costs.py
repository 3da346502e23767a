"""What a network costs: parameters by part, FLOPs a token, bytes by part. Arithmetic alone.

One estimate serves `phasewise plan`, `phasewise profile` and the measurement beside it. The bytes
are those that the code of `model/` holds, term by term:

    weights, gradients, moments, EMA      fp32, as long as training runs
    weight copies                         autocast's, in half precision, until the backward pass
    layers                                what each block keeps for the backward pass
    loss                                  one chunk of logits and the gradient of the output table

Not in it is what the matrix library keeps for itself. That is little, but for experts in half
precision on a CPU: it grows with every new number of tokens that an expert was given.

C is d_model, F d_ff, H and G query and key/value heads of width D, V rows of a table of width E.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model.config import ModelConfig
from model.counts import count_parameters

FLOPS_FORMULA = (
    "training = 6 x (weights of the matrices a token passes: output table, no idle experts) "
    "+ 12 x n_layers x n_heads x head_dim x (keys a query sees on average); forward = a third"
)
WIDE = 4  # bytes of fp32


@dataclass(frozen=True)
class Step:
    """What goes through the network at once: ``batch`` sequences of ``seq_len`` tokens.

    ``accumulates``: more than one such pass makes a step, so gradients are there from the first.
    ``documents``: a token sees its own document alone, by a bias (on a CPU).
    """

    batch: int
    seq_len: int
    precision: str = "bf16"
    recompute: bool = False
    ema: bool = False
    accumulates: bool = False
    documents: bool = False

    @property
    def tokens(self) -> int:
        return self.batch * self.seq_len

    @property
    def width(self) -> int:
        """Bytes of a value in matrix products."""
        return WIDE if self.precision == "fp32" else 2


def parts(config: ModelConfig) -> dict[str, int]:
    """Parameters by part, those that a recipe's reader would ask for; they sum to the total."""
    counts = dict(count_parameters(config)["parts"])
    return {
        "embedding": counts["embedding"] + counts["embedding_projections"],
        "attention": counts["attention"],
        "feed-forward": counts["feed_forward"] + counts["shared_experts"],
        "experts": counts["experts"] + counts["router"],
        "norms": counts["norms"],
        "head": counts["output"],
    }


def keys_seen(seq_len: int, window: int | None) -> float:
    """Keys that a query sees, itself among them, on average over a sequence (causal order)."""
    wide = min(window or seq_len, seq_len)
    return (wide * (wide + 1) / 2 + (seq_len - wide) * wide) / seq_len


def flops_a_token(config: ModelConfig, seq_len: int) -> int:
    """Training FLOPs of one token, forward and backward (``FLOPS_FORMULA``).

    After Kaplan et al. (2020) and Chowdhery et al. (2022), appendix B. A multiplication and an
    addition count as two.
    """
    attention = 12 * config.n_layers * config.n_heads * config.head_size
    seen = keys_seen(seq_len, config.sliding_window)
    return 6 * matrix_weights(config) + round(attention * seen)


def palm_flops_a_token(config: ModelConfig, seq_len: int) -> int:
    """6N + 12·L·H·Q·T, which counts keys that causal order hides too; MFU is mostly quoted so."""
    attention = 12 * config.n_layers * config.n_heads * config.head_size
    return 6 * matrix_weights(config) + attention * min(seq_len, config.sliding_window or seq_len)


def matrix_weights(config: ModelConfig) -> int:
    """Weights of the matrices that one token is multiplied with.

    The embedding is looked up and norms are no matrices; a tied table counts once, as the output.
    """
    counts = count_parameters(config)
    tables = counts["parts"]["embedding"] + counts["parts"]["output"]
    head = config.vocabulary * config.embed_size
    return counts["active"] - tables - counts["parts"]["norms"] + head


def training_bytes(config: ModelConfig, step: Step) -> dict[str, int]:
    """Peak bytes of training, by part; ``total`` is their sum at the moment when it is largest.

    That moment is the loss, where every layer's activations wait for the backward pass, or, with
    small batches, its end, where every gradient is there. What is not there at that moment is 0.
    """
    parameters = count_parameters(config)["total"]
    state = {"weights": WIDE * parameters, "moments": 2 * WIDE * parameters}
    state["ema"] = WIDE * parameters if step.ema else 0
    gradients = WIDE * parameters
    table = WIDE * config.vocabulary * config.embed_size
    moments = [
        {  # in the loss
            "gradients": gradients if step.accumulates else 0,
            "weight_copies": weight_copies(config, step),
            "layers": layers_bytes(config, step),
            "loss": loss_bytes(config, step),
        },
        # The embedding's gradient is the last, and is added to what is there of a tied table's.
        {"gradients": gradients + table},
    ]
    if step.recompute:
        block = max(block_bytes(config, step, n) for n in range(config.n_layers))
        late = {**moments[0], "layers": moments[0]["layers"] + block, "loss": table}
        moments.append(late)
    largest = max(moments, key=lambda moment: sum(moment.values()))
    found = state | {"gradients": 0, "weight_copies": 0, "layers": 0, "loss": 0} | largest
    return {**found, "total": sum(found.values())}


def weight_copies(config: ModelConfig, step: Step) -> int:
    """Autocast's copies of the linear maps (not of the output table: see ``loss_bytes``)."""
    if step.precision == "fp32":
        return 0
    counts = count_parameters(config)["parts"]
    linear = sum(n for name, n in counts.items() if name not in ("embedding", "output", "norms"))
    return step.width * linear


def layers_bytes(config: ModelConfig, step: Step) -> int:
    """What all blocks and the last norm keep for the backward pass, masks included."""
    kept = [
        step.tokens * WIDE * config.d_model if step.recompute else block_bytes(config, step, layer)
        for layer in range(config.n_layers)
    ]
    return sum(kept) + _norm_bytes(config, step) + _mask_bytes(config, step)


def block_bytes(config: ModelConfig, step: Step, layer: int) -> int:
    """What one block keeps: two norms, attention, and the feed-forward or the experts."""
    width, heads, shared = step.width, config.n_heads, config.kv_heads
    if _mask_bytes(config, step):
        shared = heads  # beside a mask, shared heads are written out
    attention = width * config.head_size * 2 * (heads + shared) + WIDE * heads
    if config.qk_norm:
        attention += (WIDE + width) * config.head_size * (config.n_heads + config.kv_heads)
    feed_forward = 4 * width * config.d_ff
    if config.is_moe(layer):
        assert config.n_experts is not None
        k = config.n_experts_per_token
        routed = k * (feed_forward + 2 * width * config.d_model + 3 * 8)
        router = WIDE * (config.d_model + 3 * config.n_experts) + 8 * k * config.n_experts
        feed_forward = routed + router + (feed_forward if config.shared_expert else 0)
    if config.resid_dropout:
        feed_forward += 2 * width * config.d_model  # which values of each branch fell out
    if config.attn_dropout:
        # Fused kernels have no dropout on a CPU: the scores are written out, in fp32.
        attention += 3 * WIDE * heads * step.seq_len
    return 2 * _norm_bytes(config, step) + step.tokens * (attention + feed_forward)


def loss_bytes(config: ModelConfig, step: Step) -> int:
    """One chunk of logits, the output table in the products' dtype, and its gradient."""
    from model.loss import chunk_rows

    rows = chunk_rows(step.tokens, config.vocabulary)
    table = config.vocabulary * config.embed_size
    logits = step.width * rows * config.vocabulary
    hidden = 2 * step.width * step.tokens * config.embed_size
    one_chunk = rows >= step.tokens
    if step.precision == "fp32":
        return logits + hidden + WIDE * table * (1 if one_chunk else 2)
    return logits + hidden + (2 * step.width + WIDE) * table


def cache_bytes(config: ModelConfig, batch: int, context: int, precision: str = "bf16") -> int:
    """Keys and values of ``context`` tokens in ``batch`` rows, of the shared heads alone."""
    width = Step(batch, context, precision).width
    return 2 * config.n_layers * batch * config.kv_heads * context * config.head_size * width


def profile(config: ModelConfig, step: Step, context: int) -> dict[str, Any]:
    """Everything above as JSON values; ``context`` tokens a row for the cache of decoding."""
    counts = count_parameters(config)
    memory: Mapping[str, int] = training_bytes(config, step)
    return {
        "parameters": {
            "total": counts["total"],
            "active": counts["active"],
            "non_embedding": counts["non_embedding"],
            "parts": parts(config),
        },
        "flops_a_token": {
            "forward": flops_a_token(config, step.seq_len) // 3,
            "training": flops_a_token(config, step.seq_len),
            "palm": palm_flops_a_token(config, step.seq_len),
        },
        "flops_formula": FLOPS_FORMULA,
        "memory": dict(memory),
        "block_bytes": [block_bytes(config, step, layer) for layer in range(config.n_layers)],
        "kv_cache": cache_bytes(config, step.batch, context, step.precision),
    }


def _norm_bytes(config: ModelConfig, step: Step) -> int:
    """A norm keeps its input and its normalised value in fp32, what follows keeps its result."""
    return step.tokens * config.d_model * (2 * WIDE + step.width)


def _mask_bytes(config: ModelConfig, step: Step) -> int:
    """The bias of one pass, shared by all layers; none where causal order says it all."""
    windowed = config.sliding_window is not None and config.sliding_window < step.seq_len
    if not (windowed or config.biased or step.documents):
        return 0
    rows = step.batch if step.documents else 1
    heads = config.n_heads if config.biased else 1
    return step.width * rows * heads * step.seq_len**2
