"""A network under llama.cpp's names: which of its architectures computes it, and from what tensors.

    llama      RMSNorm, SwiGLU, RoPE (linear scaling too), heads shared or not, table tied or not;
               experts in every layer whose weights are renormalised (Mixtral's)
    qwen3      the same with RMSNorm on each head's queries and keys
    qwen3moe   qwen3 with experts in every layer whose weights are renormalised
    qwen2moe   experts in every layer whose weights are not; a shared expert or none
    stablelm   llama with LayerNorm in place of RMSNorm
    refact     llama with ALiBi in place of RoPE

Each of these was read in llama.cpp's own sources: none of them has a sliding window, and a layer
without experts among layers with them is not one of their shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from model import ModelConfig
from tasks.errors import UserError
from tasks.release import native

Tensors = dict[str, Tensor]

LLAMA, QWEN2_MOE, QWEN3, QWEN3_MOE = "llama", "qwen2moe", "qwen3", "qwen3moe"
REFACT, STABLELM = "refact", "stablelm"
# These do not look for the output table among the embeddings: a tied one is written twice.
_UNTIED = (QWEN2_MOE, STABLELM)
# llama.cpp computes sigmoid(y) as silu(y) / y, which is not a number at 0, where transformers has
# 1/2. Weights this small give 1/2 to the last bit in both.
_HALF_OPEN = 1e-20
_EXPERT = re.compile(r"(?P<layer>.*\.mlp\.experts)\.\d+\.(?P<part>\w+)\.weight")


def architecture(config: ModelConfig) -> str:
    """The architecture of llama.cpp that computes what ``config`` does.

    Raises UserError that says why there is none, and what opens the network instead.
    """
    missing = _missing(config)
    if missing:
        elsewhere = (
            "transformers and vLLM open the exported folder as it is"
            if native.native_class(config)
            else "transformers opens the exported folder with trust_remote_code=True"
        )
        raise UserError(
            f"llama.cpp has no architecture for this network: {'; '.join(missing)}",
            hint=f"{elsewhere}, and so does phasewise generate",
        )
    if config.positions == "alibi":
        return REFACT
    if config.norm == "layernorm":
        return STABLELM
    if config.n_experts is None:
        return QWEN3 if config.qk_norm else LLAMA
    if config.qk_norm:
        return QWEN3_MOE
    return LLAMA if config.moe_renormalize else QWEN2_MOE


def _missing(config: ModelConfig) -> list[str]:
    """What no architecture has, in words; empty: there is one."""
    found = []
    plain = config.n_experts is None and not config.qk_norm
    filled = config.head_size * config.n_heads == config.d_model
    if config.positions in ("rope+alibi", "none"):
        found.append("it has RoPE and ALiBi at once" if config.rotates else "it has no positions")
    if config.sliding_window is not None:
        found.append("it would not see its sliding window")
    if config.positions == "alibi" and (config.norm != "rmsnorm" or not plain):
        found.append("ALiBi needs RMSNorm and layers without experts or QK norm")
    elif config.norm == "layernorm" and not (plain and filled):
        found.append("LayerNorm needs layers without experts or QK norm, heads that fill the width")
    if config.n_experts is None or config.norm == "layernorm" or not config.rotates:
        return found
    if not all(config.is_moe(layer) for layer in range(config.n_layers)):
        found.append("every layer must have experts, or none")
    if config.qk_norm and not config.moe_renormalize:
        found.append("QK norm needs experts whose weights are renormalised")
    if config.shared_expert and (config.qk_norm or config.moe_renormalize):
        found.append("a shared expert needs weights that are not renormalised, and no QK norm")
    if not (config.moe_renormalize or filled):
        found.append("experts whose weights are not renormalised need heads that fill the width")
    return found


def keys(config: ModelConfig) -> dict[str, int | float | str]:
    """What a GGUF says of the network's shape, under the names that come after `<arch>.`."""
    values: dict[str, int | float | str] = {
        "context_length": config.max_seq_len,
        "embedding_length": config.d_model,
        "block_count": config.n_layers,
        "feed_forward_length": config.d_ff,
        "vocab_size": config.vocabulary,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_size,
        "attention.value_length": config.head_size,
    }
    norm = "layer_norm_epsilon" if config.norm == "layernorm" else "layer_norm_rms_epsilon"
    values[f"attention.{norm}"] = config.norm_eps
    if config.rotates:
        values |= {"rope.dimension_count": config.head_size, "rope.freq_base": config.rope_base}
    if config.rotates and config.rope_scale != 1.0:
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": config.rope_scale}
    if config.n_experts is not None:
        values |= {
            "expert_count": config.n_experts,
            "expert_used_count": config.n_experts_per_token,
            "expert_feed_forward_length": config.d_ff,
        }
        if not config.moe_renormalize:
            width = config.d_ff if config.shared_expert else native.IDLE_WIDTH
            values["expert_shared_feed_forward_length"] = width
    return values


def tensors(config: ModelConfig, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a plain network (see `native.plain`) under GGUF's names, fp32, one by one."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    kind = architecture(config)
    number = next(key for key, name in MODEL_ARCH_NAMES.items() if name == kind)
    names = get_tensor_name_map(MODEL_ARCH(number), config.n_layers)
    for name, tensor in _arranged(kind, config, weights).items():
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        yield found, tensor.float()


def _arranged(kind: str, config: ModelConfig, weights: Mapping[str, Tensor]) -> Tensors:
    """The same tensors under transformers' names, as the architecture wants them laid out."""
    if kind == QWEN2_MOE:
        named = native.to_transformers(config, weights)
    else:
        own = {"lm_head.weight": ""}
        named = {own.get(name, "model.") + name: tensor for name, tensor in weights.items()}
    if kind in _UNTIED and config.tie_embeddings:
        named["lm_head.weight"] = named["model.embed_tokens.weight"]
    arranged: Tensors = {}
    experts: dict[str, list[Tensor]] = {}
    for name, tensor in named.items():
        if match := _EXPERT.fullmatch(name):
            experts.setdefault(f"{match['layer']}.{match['part']}.weight", []).append(tensor)
        elif name.endswith("shared_expert_gate.weight"):
            arranged[name] = torch.full((config.d_model,), _HALF_OPEN)
        elif kind == LLAMA and name.endswith(("q_proj.weight", "k_proj.weight")):
            arranged[name] = _pairs_together(tensor, config.head_size)
        else:
            arranged[name] = tensor
    return arranged | {name: torch.stack(parts) for name, parts in experts.items()}


def _pairs_together(rows: Tensor, head_size: int) -> Tensor:
    """Rows (heads·D, ...) in which each head's rows i and i + D/2 come to 2i and 2i + 1.

    llama.cpp turns neighbours in its architecture `llama`, as Meta's own code does.
    """
    return rows.unflatten(0, (-1, 2, head_size // 2)).transpose(1, 2).flatten(0, 2)


def plain(network: Any) -> tuple[ModelConfig, Tensors]:
    """The network's configuration and fp32 weights, without what llama.cpp has no word for.

    Raises UserError where no architecture fits.
    """
    architecture(network.config)
    return native.plain(network.config, dict(network.float().state_dict()))
