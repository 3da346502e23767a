"""The four published checkpoints whose layout is known, and how each becomes a network of ours.

    their names -> ours, one by one; a fused qkv is cut in three; buffers are known by name
    shapes      -> sizes; what shapes do not tell comes from the file's own values, then from the
                   option, then from what was published for that width

            norm       RoPE          table               feed-forward
    chaya   RMSNorm    see chaya.py  factorised, tied    dense
    rscalm  RMSNorm    interleaved   tied                dense
    mini    LayerNorm  half          tied                dense
    h64lm   RMSNorm    half          own output table    8 experts in odd layers, top-2

The names of Haipai's tensors were never published, so there is nothing to read them by.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model import ModelConfig
from tasks.errors import BAD_DATA, UserError
from tasks.exchange.published import HEAD, LAYOUTS, QKV, TABLE, Layout
from tasks.exchange.torch_file import StateDict

Tensors = dict[str, Tensor]
_SHOWN = 10
# the names under which the files' own tables give a size
_HEAD_KEYS = ("n_head", "n_heads", "num_heads", "num_attention_heads")
_CONTEXT_KEYS = ("block_size", "seq_len", "max_seq_len", "max_position_embeddings")


def recognise(state: StateDict) -> str | None:
    """The project whose names these are, by the share of them that it knows; None: nobody's."""
    shares = {kind: _share(layout, state) for kind, layout in LAYOUTS.items()}
    best = max(shares, key=lambda kind: shares[kind])
    return best if shares[best] > 0.5 else None


def convert(
    kind: str, state: StateDict, heads: int | None = None, max_seq_len: int | None = None
) -> tuple[ModelConfig, Tensors]:
    """The configuration and the tensors of a project's checkpoint.

    Args:
        heads: query heads; max_seq_len: tokens. Both only where the file does not tell.

    Raises UserError naming the tensors that are missing or left over, a size that contradicts the
    file, and what has to be given.
    """
    layout = LAYOUTS[kind]
    named, told = _renamed(layout, state)
    _require_whole(kind, layout, named, state)
    _cut_fused(named)
    sizes = _sizes(named)
    width = sizes["d_model"]
    q, k = (named[f"layers.0.self_attn.{one}_proj.weight"].shape[0] for one in "qk")
    in_file = q // told["head_size"] if "head_size" in told else _value(state, _HEAD_KEYS)
    count = _fact("--heads", heads, in_file, layout.heads.get(width), width)
    in_file = told.get("context", _value(state, _CONTEXT_KEYS))
    usual = layout.context if isinstance(layout.context, int) else layout.context.get(width)
    context = _fact("--max-seq-len", max_seq_len, in_file, usual, width)
    if count < 1 or q % count:
        raise UserError(f"{q} rows of queries are not {count} heads", where="--heads")
    size = q // count
    tied = layout.tied and (HEAD not in named or torch.equal(named[HEAD], named[TABLE]))
    if tied:
        named.pop(HEAD, None)
    try:
        config = ModelConfig(
            **sizes,
            n_heads=count,
            max_seq_len=context,
            n_kv_heads=k // size if k != q else None,
            head_dim=size if q != width else None,
            tie_embeddings=tied,
            **{**layout.fixed, **_experts(named)},
        )
    except ValueError as error:
        raise UserError(f"no such network: {error}", exit_code=BAD_DATA) from None
    return config, named


def _renamed(layout: Layout, state: StateDict) -> tuple[Tensors, dict[str, int]]:
    """Their tensors under our names, and what their buffers tell."""
    named: Tensors = {}
    told: dict[str, int] = {}
    for name, tensor in state.tensors.items():
        if (ours := _look_up(layout.names, name)) is not None:
            named[ours] = tensor
        elif buffer := _look_up(layout.buffers, name):
            told[buffer] = 2 * tensor.numel() if buffer == "head_size" else tensor.shape[-1]
    return named, told


def _require_whole(kind: str, layout: Layout, named: Tensors, state: StateDict) -> None:
    """Raise UserError unless every tensor of the file is known and none is missing."""
    known = [*layout.names, *layout.buffers]
    left = sorted(
        name for name in state.tensors if _look_up(dict.fromkeys(known, ""), name) is None
    )
    if any(name.endswith("alibi_slopes") for name in left):
        raise UserError(
            "it was trained with RoPE and an ALiBi of inverted sign, which rewards distance: no "
            "network of ours computes that",
            exit_code=BAD_DATA,
        )
    layers = {int(match[1]) for name in named if (match := re.match(r"layers\.(\d+)\.", name))}
    missing = []
    for theirs, ours in layout.names.items():
        if ours == HEAD and layout.tied:
            continue
        for layer in range(max(layers, default=0) + 1) if "{i}" in theirs else [0]:
            sparse = f"layers.{layer}.mlp.gate.weight" in named
            of_experts = ".experts." in ours or ours.endswith("mlp.gate.weight")
            if ".mlp." in ours and sparse != of_experts:
                continue
            if ours.format(i=layer, e=0) not in named:
                missing.append(theirs.format(i=layer, e=0))
    faults = {"missing": sorted(missing), "not known": left}
    if words := "; ".join(f"{what}: {_listed(names)}" for what, names in faults.items() if names):
        raise UserError(f"this is not a whole checkpoint of {kind}: {words}", exit_code=BAD_DATA)


def _cut_fused(named: Tensors) -> None:
    """q, k and v lie one below the other in one matrix."""
    for name in [name for name in named if name.endswith(QKV)]:
        stem = name.removesuffix(QKV)
        for part, rows in zip("qkv", named.pop(name).chunk(3), strict=True):
            named[f"{stem}{part}_proj.weight"] = rows


def _sizes(named: Tensors) -> dict[str, Any]:
    """Sizes of ModelConfig that shapes tell."""
    table = named[TABLE]
    gate = next(t for n, t in named.items() if n.endswith("gate_proj.weight"))
    factorised = "embed_in.weight" in named
    return {
        "vocab_size": table.shape[0],
        "d_model": named["norm.weight"].shape[0],
        "n_layers": 1 + max(int(n.split(".")[1]) for n in named if n.startswith("layers.")),
        "d_ff": gate.shape[0],
        "d_embed": table.shape[1] if factorised else None,
    }


def _experts(named: Tensors) -> dict[str, Any]:
    """Fields about experts, where a layer has any."""
    routers = sorted(int(n.split(".")[1]) for n in named if n.endswith("mlp.gate.weight"))
    if not routers:
        return {"router_temperature": 1.0}
    count = named[f"layers.{routers[0]}.mlp.gate.weight"].shape[0]
    return {"n_experts": count, "moe_layers": "all" if routers[0] == 0 else "odd"}


def _fact(
    option: str, given: int | None, told: int | None, published: int | None, width: int
) -> int:
    """A size by what the file tells, or the option, or what was published."""
    if told is not None and given is not None and told != given:
        raise UserError(f"{given} contradicts the file, which says {told}", where=option)
    found = next((v for v in (told, given, published) if v is not None), None)
    if found is None:
        raise UserError(
            f"the file does not tell, and nothing was published for a width of {width}",
            where=option,
            hint=f"give {option}",
        )
    return found


def _value(state: StateDict, keys: tuple[str, ...]) -> int | None:
    found = (state.values.get(key) for key in keys)
    return next((v for v in found if isinstance(v, int) and not isinstance(v, bool)), None)


def _look_up(table: Mapping[str, str], name: str) -> str | None:
    """The entry of ``table`` for a name, with its own numbers in the places of {i} and {e}."""
    numbers = re.findall(r"(?<=\.)\d+(?=\.)", name)
    pattern = name
    for number, place in zip(numbers, ("{i}", "{e}")):
        pattern = pattern.replace(f".{number}.", f".{place}.", 1)
    entry = table.get(pattern)
    return None if entry is None else entry.format(**dict(zip("ie", numbers)))


def _share(layout: Layout, state: StateDict) -> float:
    known = sum(_look_up(layout.names, name) is not None for name in state.tensors)
    return known / len(state.tensors)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
