"""`ModelConfig`: every choice that makes one network another, as one frozen table.

The five published models that this project reproduces differ in nothing but these values. The file
needs the standard library alone, so that a recipe is checked without loading torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from .checks import choice, flag, known_keys, nearest_divisors, number, whole

Norm = Literal["rmsnorm", "layernorm"]
PositionScheme = Literal["rope", "alibi", "rope+alibi", "none"]
RopeLayout = Literal["half", "interleaved"]
Init = Literal["normal", "scaled", "torch"]
MoeLayers = Literal["all", "odd"]


@dataclass(frozen=True)
class ModelConfig:
    """The shape and the habits of one decoder.

    Size
        d_model         width of the residual stream
        n_layers        number of blocks, each attention and feed-forward
        n_heads         query heads of a block
        d_ff            inner width of the SwiGLU feed-forward, and of each expert
        max_seq_len     context in tokens: the longest sequence the model sees
        vocab_size      rows of the embedding table; None until the tokenizer is known
        n_kv_heads      key/value heads (grouped-query attention); None = n_heads, 1 = multi-query
        head_dim        width of one head; None = d_model / n_heads
        d_embed         width of a factorised embedding table, with one projection in (d_embed to
                        d_model) and another out (d_model to d_embed); None = not factorised
        tie_embeddings  the output table is the embedding table

    Norm
        norm            rmsnorm (weight) or layernorm (weight and bias), before each branch
        norm_eps        added to the mean square (variance) under the root
        qk_norm         RMSNorm on each head's queries and keys, before RoPE

    Positions and what is seen
        positions       rope, alibi, both at once, or none
        rope_base       base of the rotation wavelengths
        rope_scale      positions are divided by it (linear position interpolation)
        rope_layout     half: dimension i turns with i + head_dim/2; interleaved: 2i with 2i + 1
        sliding_window  tokens that a query sees, itself among them; None = all before it

    Regularisation and first weights
        embed_dropout   probability, on the embedding
        attn_dropout    probability, on the attention weights
        resid_dropout   probability, on what each branch adds to the residual stream
        init            normal: N(0, init_std); scaled: the same, with what writes to the residual
                        stream divided by sqrt(2 n_layers) as in GPT-2; torch: PyTorch's defaults
        init_std        standard deviation of normal and scaled

    Experts (a mixture of experts in place of the feed-forward; n_experts = None: none)
        n_experts             experts of a layer
        n_experts_per_token   experts that each token goes through (top-k)
        moe_layers            all layers, or the odd ones (1, 3, 5, ...; the first layer is 0)
        moe_capacity_factor   in training, an expert takes at most this multiple of its even share
                              of a sequence's tokens; None = no limit
        moe_renormalize       the weights of the chosen experts are divided by their sum
        router_temperature    router logits are divided by it
        balance_loss          coefficient of the Switch load-balancing loss
        router_z_loss         coefficient of the router z-loss (mean squared log-sum-exp)
        shared_expert         one more expert that every token goes through

    Raises ValueError, naming the field and the nearest allowed value, when no such network exists.
    """

    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    max_seq_len: int
    vocab_size: int | None = None
    n_kv_heads: int | None = None
    head_dim: int | None = None
    d_embed: int | None = None
    tie_embeddings: bool = True

    norm: Norm = "rmsnorm"
    norm_eps: float = 1e-6
    qk_norm: bool = False

    positions: PositionScheme = "rope"
    rope_base: float = 10000.0
    rope_scale: float = 1.0
    rope_layout: RopeLayout = "half"
    sliding_window: int | None = None

    embed_dropout: float = 0.0
    attn_dropout: float = 0.0
    resid_dropout: float = 0.0
    init: Init = "normal"
    init_std: float = 0.02

    n_experts: int | None = None
    n_experts_per_token: int = 2
    moe_layers: MoeLayers = "all"
    moe_capacity_factor: float | None = None
    moe_renormalize: bool = False
    router_temperature: float = 1.0
    balance_loss: float = 0.01
    router_z_loss: float = 1e-3
    shared_expert: bool = False

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    def __post_init__(self) -> None:
        self._check_values()
        self._check_heads()
        self._check_context()
        self._check_experts()

    # What None stands for.

    @property
    def kv_heads(self) -> int:
        """Key/value heads of a block."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.d_model // self.n_heads if self.head_dim is None else self.head_dim

    @property
    def embed_size(self) -> int:
        """Width of the embedding table."""
        return self.d_model if self.d_embed is None else self.d_embed

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding table; ValueError while the tokenizer has not set them."""
        if self.vocab_size is None:
            raise ValueError("vocab_size is not set: take it from the tokenizer first")
        return self.vocab_size

    @property
    def rotates(self) -> bool:
        """Whether queries and keys are rotated (RoPE)."""
        return self.positions in ("rope", "rope+alibi")

    @property
    def biased(self) -> bool:
        """Whether distance is taken off the attention scores (ALiBi)."""
        return self.positions in ("alibi", "rope+alibi")

    def is_moe(self, layer: int) -> bool:
        """Whether block `layer` (from 0) has experts."""
        return self.n_experts is not None and (self.moe_layers == "all" or layer % 2 == 1)

    # To and from plain data.

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, ready for JSON; `from_dict` gives an equal configuration back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The configuration in `values`; ValueError on an unknown, a missing or a bad one."""
        fields = dataclasses.fields(cls)
        known_keys("the model", values, [field.name for field in fields])
        required = [f.name for f in fields if f.default is dataclasses.MISSING]
        missing = [name for name in required if name not in values]
        if missing:
            raise ValueError(f"the model lacks {', '.join(missing)}")
        return cls(**values)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """As a field of a pydantic model: strict about every value, but built from a mapping."""
        schema = handler(source)
        schema["strict"] = False  # a strict dataclass schema would take ready instances alone
        return schema

    # The checks behind __post_init__.

    def _check_values(self) -> None:
        for name, allowed in _CHOICES.items():
            choice(name, getattr(self, name), allowed)
        for name in _FLAGS:
            flag(name, getattr(self, name))
        for name, (low, high) in _WHOLES.items():
            whole(name, getattr(self, name), low, high)
        for name, (low, high) in _OPTIONAL_WHOLES.items():
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), low, high)
        for name, bounds in _NUMBERS.items():
            # 1 and 1.0 are one setting, so they are stored (and hashed) as one.
            object.__setattr__(self, name, number(name, getattr(self, name), **bounds))

    def _check_heads(self) -> None:
        if self.head_dim is None and self.d_model % self.n_heads:
            near = nearest_divisors(self.d_model, self.n_heads)
            raise ValueError(
                f"n_heads {self.n_heads} does not divide d_model {self.d_model}; "
                f"the nearest that do are {near} (or set head_dim)"
            )
        if self.n_heads % self.kv_heads:
            near = nearest_divisors(self.n_heads, self.kv_heads)
            raise ValueError(
                f"n_kv_heads {self.kv_heads} does not divide n_heads {self.n_heads}; "
                f"the nearest that do are {near}"
            )
        if self.rotates and self.head_size % 2:
            raise ValueError(
                f"RoPE turns pairs of dimensions, so the head width must be even, got "
                f"{self.head_size}; set head_dim {self.head_size - 1 or 2} or {self.head_size + 1}"
            )

    def _check_context(self) -> None:
        if self.sliding_window is not None and self.sliding_window >= self.max_seq_len:
            raise ValueError(
                f"sliding_window {self.sliding_window} would never act on a context of "
                f"max_seq_len {self.max_seq_len}; set it to {self.max_seq_len - 1} or less, or None"
            )

    def _check_experts(self) -> None:
        if self.moe_capacity_factor is not None:
            factor = number("moe_capacity_factor", self.moe_capacity_factor, 0.0, open_low=True)
            object.__setattr__(self, "moe_capacity_factor", factor)
        if self.n_experts is None:
            for name in ("shared_expert", "moe_renormalize", "moe_capacity_factor"):
                if getattr(self, name):
                    raise ValueError(f"{name} is set but n_experts is not: there are no experts")
            return
        if self.n_experts_per_token > self.n_experts:
            raise ValueError(
                f"n_experts_per_token {self.n_experts_per_token} is more than n_experts "
                f"{self.n_experts}; at most {self.n_experts}"
            )
        if self.moe_renormalize and self.n_experts_per_token == 1:
            raise ValueError(
                "moe_renormalize with n_experts_per_token 1 gives every token the weight 1, so the "
                "router cannot learn; set moe_renormalize false or n_experts_per_token 2"
            )
        if not any(self.is_moe(layer) for layer in range(self.n_layers)):
            raise ValueError(
                f"moe_layers {self.moe_layers} leaves no layer with experts among n_layers "
                f"{self.n_layers}; set moe_layers all or n_layers 2"
            )


_SIZE = (1, 2**20)
_WHOLES = {
    "d_model": _SIZE,
    "n_layers": (1, 4096),
    "n_heads": _SIZE,
    "d_ff": (1, 2**24),
    "max_seq_len": (1, 2**24),
    "n_experts_per_token": (1, 4096),
}
_OPTIONAL_WHOLES = {
    "vocab_size": (2, 2**24),
    "n_kv_heads": _SIZE,
    "head_dim": _SIZE,
    "d_embed": _SIZE,
    "sliding_window": (1, 2**24),
    "n_experts": (2, 4096),
}
_POSITIVE: dict[str, Any] = {"low": 0.0, "open_low": True}
_PROBABILITY: dict[str, Any] = {"low": 0.0, "high": 1.0, "open_high": True}
_NUMBERS: dict[str, dict[str, Any]] = {
    "norm_eps": {"low": 0.0, "high": 1.0, "open_low": True},
    "rope_base": {"low": 1.0, "open_low": True},
    "rope_scale": _POSITIVE,
    "embed_dropout": _PROBABILITY,
    "attn_dropout": _PROBABILITY,
    "resid_dropout": _PROBABILITY,
    "init_std": _POSITIVE,
    "router_temperature": _POSITIVE,
    "balance_loss": {"low": 0.0},
    "router_z_loss": {"low": 0.0},
}
_FLAGS = ("tie_embeddings", "qk_norm", "moe_renormalize", "shared_expert")
_CHOICES = {
    "norm": get_args(Norm),
    "positions": get_args(PositionScheme),
    "rope_layout": get_args(RopeLayout),
    "init": get_args(Init),
    "moe_layers": get_args(MoeLayers),
}
