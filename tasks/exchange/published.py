"""How the published projects named their tensors, and what their code fixed beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

QKV, HEAD, TABLE = "qkv", "lm_head.weight", "embed_tokens.weight"
_BLOCK, _ATTENTION = "layers.{i}", "layers.{i}.self_attn"


@dataclass(frozen=True)
class Layout:
    """How one project wrote its weights.

    names      their name -> ours, with {i} for a layer and {e} for an expert
    buffers    their name -> what it tells: head_size (it is half as long), context, or nothing
    tied       the output table is the embedding table, which a file may hold twice
    heads      published query heads by width; context: published tokens, by width or for all
    fixed      fields of ModelConfig that the project's code sets
    """

    names: Mapping[str, str]
    buffers: Mapping[str, str]
    heads: Mapping[int, int]
    context: Mapping[int, int] | int
    tied: bool = True
    fixed: Mapping[str, Any] = field(default_factory=dict)


def _swiglu(theirs: str, ours: str = "layers.{i}.mlp") -> dict[str, str]:
    """w3(silu(w1 x) * w2 x): the first is the gate."""
    parts = {"w1": "gate_proj", "w2": "up_proj", "w3": "down_proj"}
    return {f"{theirs}.{a}.weight": f"{ours}.{b}.weight" for a, b in parts.items()}


_ROPE_BASE = {"rope_base": 10000.0}
LAYOUTS: dict[str, Layout] = {
    "chaya": Layout(
        names={
            "token_embedding.weight": TABLE,
            "emb_proj.weight": "embed_in.weight",
            "out_proj.weight": "embed_out.weight",
            "norm_f.scale": "norm.weight",
            "layers.{i}.norm1.scale": f"{_BLOCK}.input_layernorm.weight",
            "layers.{i}.norm2.scale": f"{_BLOCK}.post_attention_layernorm.weight",
            "layers.{i}.attn.qkv.weight": f"{_ATTENTION}.{QKV}",
            "layers.{i}.attn.out.weight": f"{_ATTENTION}.o_proj.weight",
            **_swiglu("layers.{i}.ffn"),
        },
        buffers={"layers.{i}.attn.rotary.inv_freq": "head_size"},
        heads={640: 8},
        context=512,
        fixed={**_ROPE_BASE, "norm_eps": 1e-8, "attn_dropout": 0.05, "resid_dropout": 0.05},
    ),
    "rscalm": Layout(
        names={
            "tok_emb.weight": TABLE,
            HEAD: HEAD,
            "norm.weight": "norm.weight",
            "blocks.{i}.norm1.weight": f"{_BLOCK}.input_layernorm.weight",
            "blocks.{i}.norm2.weight": f"{_BLOCK}.post_attention_layernorm.weight",
            "blocks.{i}.attn.qkv.weight": f"{_ATTENTION}.{QKV}",
            "blocks.{i}.attn.proj.weight": f"{_ATTENTION}.o_proj.weight",
            **_swiglu("blocks.{i}.mlp"),
        },
        buffers={},
        heads={768: 12, 1024: 16, 1280: 20},  # the last two as they can be, not as printed
        context=1024,
        fixed={**_ROPE_BASE, "norm_eps": 1e-6, "rope_layout": "interleaved"},
    ),
    "mini": Layout(
        names={
            "token_emb.weight": TABLE,
            HEAD: HEAD,
            "ln_f.weight": "norm.weight",
            "ln_f.bias": "norm.bias",
            **{
                f"blocks.{{i}}.{a}.{part}": f"{_BLOCK}.{b}.{part}"
                for a, b in (("ln1", "input_layernorm"), ("ln2", "post_attention_layernorm"))
                for part in ("weight", "bias")
            },
            **{
                f"blocks.{{i}}.attn.{a}_proj.weight": f"{_ATTENTION}.{b}_proj.weight"
                for a, b in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "o"))
            },
            **_swiglu("blocks.{i}.mlp"),
        },
        buffers={
            "blocks.{i}.attn.rope.inv_freq": "head_size",
            "blocks.{i}.attn.rope.cos_cached": "",
            "blocks.{i}.attn.rope.sin_cached": "",
            "causal_mask": "context",
        },
        heads={128: 4, 256: 8, 512: 8, 768: 12},
        context={128: 128, 256: 256, 512: 512, 768: 1024},
        fixed={**_ROPE_BASE, "norm": "layernorm", "norm_eps": 1e-5},
    ),
    "h64lm": Layout(
        names={
            "model.embed_tokens.weight": TABLE,
            "model.norm.weight": "norm.weight",
            HEAD: HEAD,
            **{
                f"model.layers.{{i}}.{part}.weight": f"layers.{{i}}.{part}.weight"
                for part in (
                    "input_layernorm",
                    "post_attention_layernorm",
                    *(f"self_attn.{one}_proj" for one in "qkvo"),
                    *(f"mlp.{one}_proj" for one in ("gate", "up", "down")),
                    *(f"mlp.experts.{{e}}.{one}_proj" for one in ("gate", "up", "down")),
                    "mlp.gate",
                )
            },
        },
        buffers={"model.layers.{i}.self_attn.rotary_emb.inv_freq": "head_size"},
        heads={768: 12},
        context=1024,
        tied=False,
        fixed={**_ROPE_BASE, "norm_eps": 1e-5, "router_temperature": 2.0,
               "n_experts_per_token": 2},
    ),
}  # fmt: skip
