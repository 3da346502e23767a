"""Which class of transformers computes what a network computes, and the way there and back.

    checkpoint (config, tensors)
        -> plain     an equal network of ours without the choices that no such class has:
                     a factorised table is multiplied out, neighbouring RoPE pairs move half a head
                     apart, the router's temperature goes into its weights
        -> renamed   the same tensors under transformers' names, and its config.json

    Llama       RMSNorm, SwiGLU, RoPE (linear scaling too), heads shared or not, table tied or not
    Mistral     the same with a sliding window, or where the heads do not divide the width
    Qwen3       the same with RMSNorm on each head's queries and keys
    Qwen2-MoE   the same as Llama with experts in all layers or some
    StableLM    the same as Llama with LayerNorm in place of RMSNorm

The logits stay equal but for the rounding of products. This file needs `model` alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from model import ModelConfig, Transformer, load_model
from model.load import CONFIG_FILE, CONFIG_KEY, WEIGHTS_FILE, check_weights, read_config

Tensors = dict[str, Tensor]

LLAMA, MISTRAL = "LlamaForCausalLM", "MistralForCausalLM"
QWEN3, QWEN2_MOE = "Qwen3ForCausalLM", "Qwen2MoeForCausalLM"
STABLELM = "StableLmForCausalLM"
MODEL_TYPES = {
    LLAMA: "llama", MISTRAL: "mistral", QWEN3: "qwen3", QWEN2_MOE: "qwen2_moe",
    STABLELM: "stablelm",
}  # fmt: skip
_PREFIX = "model."
_HEAD = "lm_head.weight"
# Qwen2-MoE always has a shared expert. One of zeros is as good as none; this is its width.
IDLE_WIDTH = 32


def obstacles(config: ModelConfig) -> list[str]:
    """What no class of transformers has, in words for the model card; empty: there is a class."""
    found = []
    if config.norm == "layernorm":
        if config.qk_norm:
            found.append("QK norm with LayerNorm")
        if config.sliding_window is not None:
            found.append("a sliding window with LayerNorm")
        if config.n_experts is not None:
            found.append("experts with LayerNorm")
        elif config.head_size * config.n_heads != config.d_model:
            found.append("a head width of its own with LayerNorm")
    if config.positions != "rope":
        names = {"alibi": "ALiBi", "rope+alibi": "RoPE and ALiBi together", "none": "no positions"}
        found.append(names[config.positions])
    if config.n_experts is not None:
        if config.qk_norm:
            found.append("QK norm with these experts")
        if config.sliding_window is not None:
            found.append("a sliding window with experts")
        if config.head_size * config.n_heads != config.d_model:
            found.append("a head width of its own with experts")
    return found


def native_class(config: ModelConfig) -> str | None:
    """The class of transformers that computes what ``config`` does, or None."""
    if obstacles(config):
        return None
    if config.n_experts is not None:
        return QWEN2_MOE
    if config.norm == "layernorm":
        return STABLELM
    if config.qk_norm:
        return QWEN3
    if config.sliding_window is not None or config.d_model % config.n_heads:
        return MISTRAL
    return LLAMA


def plain(config: ModelConfig, tensors: Mapping[str, Tensor]) -> tuple[ModelConfig, Tensors]:
    """An equal network that is neither factorised nor interleaved and has no router temperature."""
    tensors = dict(tensors)
    if config.d_embed is not None:
        config, tensors = _multiplied_out(config, tensors)
    if config.rotates and config.rope_layout == "interleaved":
        for name, tensor in tensors.items():
            if name.endswith(("q_proj.weight", "k_proj.weight", "q_norm.weight", "k_norm.weight")):
                tensors[name] = _pairs_apart(tensor, config.head_size)
    if config.router_temperature != 1.0:
        for name, tensor in tensors.items():
            if name.endswith("mlp.gate.weight"):
                tensors[name] = tensor / config.router_temperature
    return replace(config, rope_layout="half", router_temperature=1.0), tensors


def _multiplied_out(config: ModelConfig, tensors: Tensors) -> tuple[ModelConfig, Tensors]:
    """Tables (V, E) times the projections (C, E) in and (E, C) out, as two tables (V, C)."""
    table = tensors.pop("embed_tokens.weight").double()
    output = table if config.tie_embeddings else tensors.pop(_HEAD).double()
    inward, outward = tensors.pop("embed_in.weight"), tensors.pop("embed_out.weight")
    tensors["embed_tokens.weight"] = (table @ inward.double().T).to(inward.dtype)
    tensors[_HEAD] = (output @ outward.double()).to(outward.dtype)
    return replace(config, d_embed=None, tie_embeddings=False), tensors


def _pairs_apart(rows: Tensor, head_size: int) -> Tensor:
    """Rows (heads·D, ...) in which each head's rows 2i and 2i + 1 come to i and i + D/2."""
    return rows.unflatten(0, (-1, head_size // 2, 2)).transpose(1, 2).flatten(0, 2)


def to_transformers(config: ModelConfig, tensors: Mapping[str, Tensor]) -> Tensors:
    """The tensors of a plain network under transformers' names; a tied head is not among them."""
    named = {name if name == _HEAD else _PREFIX + name: t for name, t in tensors.items()}
    for layer in filter(config.is_moe, range(config.n_layers)):
        mlp = f"{_PREFIX}layers.{layer}.mlp."
        # Its output is multiplied by sigmoid(gate · x), so by 1/2, which a factor of 2 undoes.
        named[f"{mlp}shared_expert_gate.weight"] = torch.zeros(1, config.d_model)
        shared = f"{mlp}shared_expert."
        if config.shared_expert:
            named[f"{shared}down_proj.weight"] = 2 * named[f"{shared}down_proj.weight"]
        else:
            named[f"{shared}gate_proj.weight"] = torch.zeros(IDLE_WIDTH, config.d_model)
            named[f"{shared}up_proj.weight"] = torch.zeros(IDLE_WIDTH, config.d_model)
            named[f"{shared}down_proj.weight"] = torch.zeros(config.d_model, IDLE_WIDTH)
    return named


def from_transformers(config: ModelConfig, tensors: Mapping[str, Tensor]) -> Tensors:
    """The tensors that ``to_transformers`` was given."""
    own = {}
    for name, tensor in tensors.items():
        name = name.removeprefix(_PREFIX)
        if ".mlp.shared_expert_gate." in name:
            continue
        if ".mlp.shared_expert." in name:
            if not config.shared_expert:
                continue
            if name.endswith("down_proj.weight"):
                tensor = tensor / 2
        own[name] = tensor
    return own


def load_export(
    folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Transformer:
    """The network in an exported folder, without transformers; errors as of `model.load_model`."""
    folder = Path(folder)
    config = read_config(folder)
    if json.loads((folder / CONFIG_FILE).read_text("utf-8")).get("architectures") != [QWEN2_MOE]:
        return load_model(folder, device, dtype)
    tensors = from_transformers(config, load_file(folder / WEIGHTS_FILE))
    with torch.device("meta"):
        network = Transformer(config)
    check_weights(network, tensors, folder / WEIGHTS_FILE)
    network.load_state_dict(tensors, assign=True)
    network.positions.reset("cpu")
    return network.to(device=device, dtype=dtype).eval()


def transformers_config(config: ModelConfig) -> dict[str, Any]:
    """config.json of a plain network, with the keys of both transformers 4 and 5."""
    kind = native_class(config)
    assert kind is not None and config.d_embed is None
    values: dict[str, Any] = {
        "architectures": [kind],
        "model_type": MODEL_TYPES[kind],
        "vocab_size": config.vocabulary,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "initializer_range": min(config.init_std, 1.0),
        "tie_word_embeddings": config.tie_embeddings,
        "attention_dropout": config.attn_dropout,
        "use_cache": True,
        **_rope(config),
    }
    if kind in (LLAMA, QWEN3):
        values["attention_bias"] = False
    if kind == LLAMA:
        values["mlp_bias"] = False
    if kind == STABLELM:
        values |= {"layer_norm_eps": config.norm_eps, "use_qkv_bias": False, "qk_layernorm": False}
        values |= {"use_parallel_residual": False, "partial_rotary_factor": 1.0}
        values["rope_parameters"]["partial_rotary_factor"] = 1.0
    if kind == MISTRAL:
        values["sliding_window"] = config.sliding_window
    if kind == QWEN3:
        windowed = config.sliding_window is not None
        values["use_sliding_window"] = windowed
        values["sliding_window"] = config.sliding_window
        values["max_window_layers"] = 0 if windowed else config.n_layers
    if kind == QWEN2_MOE:
        values |= _experts(config)
    return values | {CONFIG_KEY: config.to_dict()}


def _rope(config: ModelConfig) -> dict[str, Any]:
    """RoPE's base and scale: `rope_parameters` for transformers 5, the other keys for 4."""
    if config.rope_scale == 1.0:
        scaling = None
        kind: dict[str, Any] = {"rope_type": "default"}
    else:
        kind = {"rope_type": "linear", "factor": config.rope_scale}
        scaling = {"type": "linear", **kind}
    return {
        "rope_theta": config.rope_base,
        "rope_scaling": scaling,
        "rope_parameters": {**kind, "rope_theta": config.rope_base},
    }


def _experts(config: ModelConfig) -> dict[str, Any]:
    return {
        "num_experts": config.n_experts,
        "num_experts_per_tok": config.n_experts_per_token,
        "moe_intermediate_size": config.d_ff,
        "shared_expert_intermediate_size": config.d_ff if config.shared_expert else IDLE_WIDTH,
        "norm_topk_prob": config.moe_renormalize,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [i for i in range(config.n_layers) if not config.is_moe(i)],
        "router_aux_loss_coef": config.balance_loss,
        "qkv_bias": False,
        "use_sliding_window": False,
    }
