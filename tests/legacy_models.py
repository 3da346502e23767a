"""The forward passes of four published models, written anew from what is known of them.

Each is a function of a state dict, under the names that the model's own files have, and of ids.
None uses anything of this project.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
Turn = Callable[[Tensor, Tensor], Tensor]


def draw(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> State:
    """Weights N(0, 0.3); those of norms about 1."""
    generator = torch.Generator().manual_seed(seed)
    state = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: t + 1 if t.ndim == 1 and "bias" not in name else t for name, t in state.items()}


def angles(length: int, size: int) -> Tensor:
    """(T, D/2)."""
    frequencies = 10000.0 ** (-torch.arange(0, size, 2).float() / size)
    return torch.arange(length).float()[:, None] * frequencies


def turn_half(x: Tensor, angle: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), dim=-1)


def turn_neighbours(x: Tensor, angle: Tensor) -> Tensor:
    a, b = x[..., ::2], x[..., 1::2]
    turned = (a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin())
    return torch.stack(turned, dim=-1).flatten(-2)


def turn_as_chaya(x: Tensor, angle: Tensor) -> Tensor:
    """Half-split tables, interleaved partners, concatenated: not a rotation."""
    table = torch.cat((angle, angle), dim=-1)
    partner = torch.cat((-x[..., 1::2], x[..., ::2]), dim=-1)
    return x * table.cos() + partner * table.sin()


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, turn: Turn) -> Tensor:
    """q (T, H·D), k and v (T, G·D) -> (T, H·D), causal."""
    length, size = q.shape[0], q.shape[1] // heads
    q, k, v = (x.view(length, -1, size).transpose(0, 1) for x in (q, k, v))
    angle = angles(length, size)
    q, k = turn(q, angle), turn(k, angle)
    k, v = (x.repeat_interleave(heads // x.shape[0], dim=0) for x in (k, v))
    scores = q @ k.transpose(1, 2) / math.sqrt(size)
    scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
    return (scores.softmax(-1) @ v).transpose(0, 1).reshape(length, -1)


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T


CHAYA = {"V": 61, "E": 10, "C": 640, "F": 24, "L": 2, "H": 8}


def chaya_state(table: int = 61, width: int = 640) -> State:
    state = {"token_embedding.weight": (table, 10), "emb_proj.weight": (width, 10),
             "out_proj.weight": (10, width), "norm_f.scale": (width,)}  # fmt: skip
    for i in range(2):
        state |= {f"layers.{i}.norm{n}.scale": (width,) for n in (1, 2)}
        state |= {f"layers.{i}.attn.qkv.weight": (3 * width, width),
                  f"layers.{i}.attn.out.weight": (width, width),
                  f"layers.{i}.ffn.w1.weight": (24, width), f"layers.{i}.ffn.w2.weight": (24, width),
                  f"layers.{i}.ffn.w3.weight": (width, 24)}  # fmt: skip
    return draw(state)


def chaya(s: State, ids: Tensor, heads: int, turn: Turn = turn_as_chaya) -> Tensor:
    x = s["token_embedding.weight"][ids] @ s["emb_proj.weight"].T
    for i in range(2):
        p = f"layers.{i}."
        q, k, v = (rms(x, s[p + "norm1.scale"], 1e-8) @ s[p + "attn.qkv.weight"].T).chunk(3, -1)
        x = x + attend(q, k, v, heads, turn) @ s[p + "attn.out.weight"].T
        x = x + swiglu(
            rms(x, s[p + "norm2.scale"], 1e-8), *(s[f"{p}ffn.w{n}.weight"] for n in (1, 2, 3))
        )
    x = rms(x, s["norm_f.scale"], 1e-8) @ s["out_proj.weight"].T
    return x @ s["token_embedding.weight"].T


def rscalm_state() -> State:
    state = {"tok_emb.weight": (61, 32), "norm.weight": (32,)}
    for i in range(3):
        state |= {f"blocks.{i}.norm{n}.weight": (32,) for n in (1, 2)}
        state |= {f"blocks.{i}.attn.qkv.weight": (96, 32), f"blocks.{i}.attn.proj.weight": (32, 32),
                  f"blocks.{i}.mlp.w1.weight": (128, 32), f"blocks.{i}.mlp.w2.weight": (128, 32),
                  f"blocks.{i}.mlp.w3.weight": (32, 128)}  # fmt: skip
    drawn = draw(state)
    return drawn | {"lm_head.weight": drawn["tok_emb.weight"]}


def rscalm(s: State, ids: Tensor, heads: int) -> Tensor:
    x = s["tok_emb.weight"][ids]
    for i in range(3):
        p = f"blocks.{i}."
        q, k, v = (rms(x, s[p + "norm1.weight"], 1e-6) @ s[p + "attn.qkv.weight"].T).chunk(3, -1)
        x = x + attend(q, k, v, heads, turn_neighbours) @ s[p + "attn.proj.weight"].T
        x = x + swiglu(
            rms(x, s[p + "norm2.weight"], 1e-6), *(s[f"{p}mlp.w{n}.weight"] for n in (1, 2, 3))
        )
    return rms(x, s["norm.weight"], 1e-6) @ s["lm_head.weight"].T


def mini_state(buffers: bool = True) -> State:
    """A width of its own, two key/value heads for four, and the buffers that the files hold."""
    state = {"token_emb.weight": (61, 48), "ln_f.weight": (48,), "ln_f.bias": (48,)}
    for i in range(2):
        for n in (1, 2):
            state |= {f"blocks.{i}.ln{n}.weight": (48,), f"blocks.{i}.ln{n}.bias": (48,)}
        state |= {f"blocks.{i}.attn.q_proj.weight": (48, 48), f"blocks.{i}.attn.k_proj.weight": (24, 48),
                  f"blocks.{i}.attn.v_proj.weight": (24, 48), f"blocks.{i}.attn.out_proj.weight": (48, 48),
                  f"blocks.{i}.mlp.w1.weight": (20, 48), f"blocks.{i}.mlp.w2.weight": (20, 48),
                  f"blocks.{i}.mlp.w3.weight": (48, 20)}  # fmt: skip
    drawn = draw(state)
    drawn["lm_head.weight"] = drawn["token_emb.weight"]
    if buffers:
        drawn["causal_mask"] = torch.ones(40, 40).tril().view(1, 1, 40, 40)
        for i in range(2):
            angle = angles(40, 12)
            drawn[f"blocks.{i}.attn.rope.inv_freq"] = 10000.0 ** (-torch.arange(0, 12, 2) / 12)
            drawn[f"blocks.{i}.attn.rope.cos_cached"] = angle.cos()
            drawn[f"blocks.{i}.attn.rope.sin_cached"] = angle.sin()
    return drawn


def mini(s: State, ids: Tensor, heads: int) -> Tensor:
    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], s[name + ".weight"], s[name + ".bias"], 1e-5)

    x = s["token_emb.weight"][ids]
    for i in range(2):
        p = f"blocks.{i}."
        y = norm(x, p + "ln1")
        q, k, v = (y @ s[f"{p}attn.{n}_proj.weight"].T for n in "qkv")
        x = x + attend(q, k, v, heads, turn_half) @ s[p + "attn.out_proj.weight"].T
        x = x + swiglu(norm(x, p + "ln2"), *(s[f"{p}mlp.w{n}.weight"] for n in (1, 2, 3)))
    return norm(x, "ln_f") @ s["lm_head.weight"].T


def h64lm_state() -> State:
    """Four layers, experts in the odd ones; two key/value heads for four."""
    state = {
        "model.embed_tokens.weight": (61, 32),
        "model.norm.weight": (32,),
        "lm_head.weight": (61, 32),
    }
    for i in range(4):
        p = f"model.layers.{i}."
        state |= {p + "input_layernorm.weight": (32,), p + "post_attention_layernorm.weight": (32,)}
        state |= {p + f"self_attn.{n}_proj.weight": (32 if n in "qo" else 16, 32) for n in "qkvo"}
        stems = [p + "mlp."] if i % 2 == 0 else [p + f"mlp.experts.{e}." for e in range(4)]
        for stem in stems:
            state |= {f"{stem}{n}_proj.weight": (20, 32) for n in ("gate", "up")}
            state |= {f"{stem}down_proj.weight": (32, 20)}
        if i % 2:
            state |= {p + "mlp.gate.weight": (4, 32)}
    drawn = draw(state)
    for i in range(4):
        drawn[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = 10000.0 ** (
            -torch.arange(0, 8, 2) / 8
        )
    return drawn


def h64lm(s: State, ids: Tensor, heads: int) -> Tensor:
    x = s["model.embed_tokens.weight"][ids]
    for i in range(4):
        p = f"model.layers.{i}."
        y = rms(x, s[p + "input_layernorm.weight"], 1e-5)
        q, k, v = (y @ s[f"{p}self_attn.{n}_proj.weight"].T for n in "qkv")
        x = x + attend(q, k, v, heads, turn_half) @ s[p + "self_attn.o_proj.weight"].T
        y = rms(x, s[p + "post_attention_layernorm.weight"], 1e-5)

        def feed(y: Tensor, stem: str) -> Tensor:
            return swiglu(y, *(s[f"{stem}{n}_proj.weight"] for n in ("gate", "up", "down")))

        if i % 2 == 0:
            x = x + feed(y, p + "mlp.")
            continue
        probability = (y @ s[p + "mlp.gate.weight"].T / 2.0).softmax(-1)
        rows = []
        for token, chances in zip(y, probability):
            weights, chosen = chances.topk(2)
            rows.append(
                sum(
                    w * feed(token, f"{p}mlp.experts.{e}.")
                    for w, e in zip(weights, chosen.tolist())
                )
            )
        x = x + torch.stack(rows)
    return rms(x, s["model.norm.weight"], 1e-5) @ s["lm_head.weight"].T
