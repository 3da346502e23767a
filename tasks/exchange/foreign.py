"""A folder that transformers wrote, as a network of ours: the inverse of tasks/release/native.py.

    config.json -> the fields of ModelConfig, or what it has that we have not, by name
    *.safetensors -> our names, fp32

Llama, Mistral, Qwen3, Qwen2-MoE and StableLM, without biases in their matrices.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model import ModelConfig
from model.load import CONFIG_FILE, CONFIG_KEY, WEIGHTS_FILE
from tasks.errors import BAD_DATA, NO_INPUT, UserError, unknown_name
from tasks.files import read_json
from tasks.release import native

Tensors = dict[str, Tensor]
INDEX_FILE = "model.safetensors.index.json"
KINDS = {kind: name for name, kind in native.MODEL_TYPES.items()}
# what must be as it is here, where a config.json names it: nothing of ours computes the rest
_PLAIN: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "qkv_bias": (False,),
    "use_qkv_bias": (False,),
    "qk_layernorm": (False,),
    "use_parallel_residual": (False,),
    "partial_rotary_factor": (1, None),
    "pretraining_tp": (1, None),
    "quantization_config": (None,),
}


def open_folder(folder: Path) -> tuple[ModelConfig, Tensors]:
    """The configuration and the fp32 tensors of the network in a transformers folder.

    Raises UserError naming the setting that no network of ours has, or the file that is missing.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}", exit_code=NO_INPUT)
    values = read_json(folder / CONFIG_FILE)
    if CONFIG_KEY in values:  # one of our own exports
        return _own(folder)
    tensors = {name: t.float() for name, t in _tensors(folder).items() if "rotary_emb" not in name}
    config = config_of(values, str(folder / CONFIG_FILE))
    if config.n_experts is not None:
        config = _shared_expert(config, values, tensors, str(folder))
    if config.tie_embeddings:
        tensors.pop("lm_head.weight", None)
    return config, native.from_transformers(config, tensors)


def config_of(values: dict[str, Any], where: str) -> ModelConfig:
    """ModelConfig of a config.json; a shared expert is the weights' to tell."""
    kind = values.get("model_type")
    if kind not in KINDS:
        raise unknown_name("model_type that can be imported", str(kind), KINDS, where=where)
    for key, allowed in _PLAIN.items():
        if key in values and values[key] not in allowed:
            raise _unlike(where, key, values[key], f"only {allowed[0]} is computed here")
    layers, heads = values["num_hidden_layers"], values["num_attention_heads"]
    own_width = values.get("head_dim") not in (None, values["hidden_size"] // heads)
    kv_heads = values.get("num_key_value_heads")
    layernorm = kind == "stablelm"
    eps = values["layer_norm_eps" if layernorm else "rms_norm_eps"]
    try:
        return ModelConfig(
            d_model=values["hidden_size"],
            n_layers=layers,
            n_heads=heads,
            d_ff=values["moe_intermediate_size" if kind == "qwen2_moe" else "intermediate_size"],
            max_seq_len=values["max_position_embeddings"],
            vocab_size=values["vocab_size"],
            n_kv_heads=None if kv_heads == heads else kv_heads,
            head_dim=values["head_dim"] if own_width else None,
            tie_embeddings=values.get("tie_word_embeddings", False),
            norm="layernorm" if layernorm else "rmsnorm",
            norm_eps=eps,
            qk_norm=kind == "qwen3",
            sliding_window=_window(kind, values, where),
            attn_dropout=values.get("attention_dropout", 0.0),
            init_std=values.get("initializer_range", 0.02),
            **_rope(values, where),
            **(_experts(values, where) if kind == "qwen2_moe" else {}),
        )
    except KeyError as error:
        raise UserError(f"{error} is missing", where=where, exit_code=BAD_DATA) from None
    except (ValueError, TypeError) as error:
        raise UserError(str(error), where=where, exit_code=BAD_DATA) from None


def _rope(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Base and scale, as transformers 5 writes them or as 4 did."""
    rope = values.get("rope_parameters") or {}
    scaling = values.get("rope_scaling") or rope
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "linear"):
        raise _unlike(where, "rope_type", kind, "linear scaling or none is computed here")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise _unlike(where, "partial_rotary_factor", rope["partial_rotary_factor"], "only 1 is")
    base = rope.get("rope_theta", values.get("rope_theta", 10000.0))
    return {"rope_base": base, "rope_scale": scaling["factor"] if kind == "linear" else 1.0}


def _window(kind: str, values: dict[str, Any], where: str) -> int | None:
    """The sliding window of every layer; None where it would never act."""
    window = values.get("sliding_window")
    used = values.get("use_sliding_window", kind == "mistral")
    if window is None or not used or window >= values["max_position_embeddings"]:
        return None
    if values.get("max_window_layers", 0):
        raise _unlike(where, "max_window_layers", values["max_window_layers"],
                      "a window is for all layers here, or for none")  # fmt: skip
    return int(window)


def _experts(values: dict[str, Any], where: str) -> dict[str, Any]:
    layers = range(values["num_hidden_layers"])
    step, dense = values.get("decoder_sparse_step", 1), values.get("mlp_only_layers") or []
    sparse = [i for i in layers if i not in dense and (i + 1) % step == 0]
    shapes = {"all": list(layers), "odd": [i for i in layers if i % 2]}
    found = next((name for name, wanted in shapes.items() if sparse == wanted), None)
    if found is None:
        raise _unlike(where, "mlp_only_layers", dense, "experts are in all layers here, or in odd")
    if len(sparse) < len(layers) and values["intermediate_size"] != values["moe_intermediate_size"]:
        raise _unlike(where, "intermediate_size", values["intermediate_size"],
                      "dense layers are as wide as an expert here")  # fmt: skip
    return {
        "n_experts": values["num_experts"],
        "n_experts_per_token": values["num_experts_per_tok"],
        "moe_renormalize": values.get("norm_topk_prob", False),
        "moe_layers": found,
    }


def _shared_expert(
    config: ModelConfig, values: dict[str, Any], tensors: Tensors, where: str
) -> ModelConfig:
    """Whether the expert that each token goes through does anything, and by a gate of its own."""
    shared = {n: t for n, t in tensors.items() if ".shared_expert.down_proj." in n}
    if all(not t.any() for t in shared.values()):
        return config
    gates = [t for n, t in tensors.items() if n.endswith("shared_expert_gate.weight")]
    if any(t.any() for t in gates):
        raise _unlike(where, "shared_expert_gate", "not zero", "a shared expert has no gate here")
    width = values["shared_expert_intermediate_size"]
    if width != config.d_ff:
        raise _unlike(where, "shared_expert_intermediate_size", width, f"it has {config.d_ff} here")
    return ModelConfig.from_dict(config.to_dict() | {"shared_expert": True})


def _own(folder: Path) -> tuple[ModelConfig, Tensors]:
    try:
        network = native.load_export(folder, dtype=torch.float32)
    except (ValueError, OSError) as error:
        raise UserError(str(error), exit_code=BAD_DATA) from None
    return network.config, dict(network.state_dict())


def _tensors(folder: Path) -> Tensors:
    """All tensors of the folder, from one file or from the shards that its index names."""
    index = folder / INDEX_FILE
    names = [WEIGHTS_FILE]
    if index.exists():
        names = sorted(set(read_json(index)["weight_map"].values()))
    found: Tensors = {}
    for name in names:
        path = folder / Path(name).name
        if not path.is_file():
            raise UserError(
                f"{path} is missing",
                hint="only safetensors are read; transformers' save_pretrained writes them",
                exit_code=NO_INPUT,
            )
        try:
            found |= load_file(path)
        except (SafetensorError, json.JSONDecodeError) as error:
            raise UserError(f"{path} is not whole: {error}", exit_code=BAD_DATA) from None
    return found


def _unlike(where: str, key: str, value: Any, why: str) -> UserError:
    return UserError(f"{key} is {value!r}: {why}", where=where, exit_code=BAD_DATA)
