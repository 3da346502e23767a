"""The schema of params.yaml: one recipe, whole, typed and frozen.

A recipe holds what changes the result and nothing else. What does not (device, processes,
micro-batch, folders, servers) is in tasks/settings.py. Sizes are in tokens. A key that this
module does not name is an error; so is a value that cannot work, before anything runs.
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from model.config import ModelConfig
from tasks.files import fingerprint
from tasks.recipe_data import (
    SPLITS,
    Dedup,
    Files,
    HeldOut,
    Hub,
    Name,
    Section,
    Source,
    Split,
    Tokenizer,
    check_weights,
)
from tasks.units import Count, CountOrZero

__all__ = [
    "INIT",
    "SPLITS",
    "Dedup",
    "Evaluation",
    "Files",
    "HeldOut",
    "Hub",
    "Optimizer",
    "Phase",
    "Recipe",
    "Release",
    "Sampling",
    "Source",
    "Split",
    "Tokenizer",
    "Training",
    "load",
]
INIT = "init"


class Optimizer(Section):
    """AdamW (Loshchilov & Hutter 2019)."""

    name: Literal["adamw"] = "adamw"
    betas: tuple[float, float] = Field((0.9, 0.95), strict=False)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    decay: Literal["matrices", "all"] = Field(
        "matrices", description="matrices: not norms, biases or embeddings; all: every parameter"
    )

    @model_validator(mode="after")
    def _betas(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {list(self.betas)}")
        return self


class Training(Section):
    """Settings that phases share; a phase may override each."""

    seq_len: int = Field(1024, ge=2, description="tokens a sample")
    batch_tokens: Count = Field(65_536, description="tokens an optimizer step, all processes")
    lr: float = Field(3e-4, gt=0, description="peak learning rate")
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end of the decay")
    schedule: Literal["cosine", "linear", "constant", "wsd"] = Field(
        "cosine", description="after the warmup; wsd: constant, then a linear cooldown"
    )
    warmup_tokens: CountOrZero = Field(0, description="linear warmup from 0")
    cooldown_tokens: CountOrZero = Field(0, description="wsd: tokens of the final decay")
    optimizer: Optimizer = Optimizer()
    carry_optimizer: bool = Field(
        False, description="start from the parent phase's optimizer state, not from a fresh one"
    )
    grad_clip: float | None = Field(1.0, gt=0, description="global gradient norm; null: none")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    document_mask: bool = Field(False, description="a token attends within its document only")
    ema_decay: float | None = Field(0.999, gt=0, lt=1, description="null: no EMA")
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    validate_every: Annotated[float, Field(gt=0, le=1)] | Count = Field(
        0.25, description="share of the phase (0.25), or tokens (10M)"
    )
    validation_tokens: Count = Field(
        1_000_000, description="cap on the tokens of one held-out set while training"
    )
    checkpoint_every: Annotated[float, Field(gt=0, le=1)] | Count = Field(
        0.1, description="share of the phase, or tokens"
    )
    max_epochs: float = Field(
        100.0, gt=0, description="most passes over one source; more is an error, above 4 a warning"
    )

    @model_validator(mode="after")
    def _batch(self) -> Self:
        if self.batch_tokens % self.seq_len:
            down = max(self.seq_len, self.batch_tokens // self.seq_len * self.seq_len)
            raise ValueError(
                f"batch_tokens must be a multiple of seq_len ({self.seq_len}), got "
                f"{self.batch_tokens}; the nearest is {down}"
            )
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr ({self.min_lr}) is above lr ({self.lr})")
        return self


class Phase(Training):
    """One phase of training: what it starts from, what it reads, how far it goes."""

    starts_from: Name = Field(description="'init' or another phase")
    tokens: Count = Field(description="tokens to train on")
    mixture: dict[Name, float] = Field(description="source -> weight, by tokens; normalised")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_weights(self.mixture, "mixture")
        if self.warmup_tokens + self.cooldown_tokens >= self.tokens:
            raise ValueError(
                f"warmup_tokens + cooldown_tokens ({self.warmup_tokens + self.cooldown_tokens}) "
                f"must stay below tokens ({self.tokens})"
            )
        if self.schedule != "wsd" and self.cooldown_tokens:
            raise ValueError(f"cooldown_tokens belongs to schedule wsd, not to {self.schedule}")
        return self

    @property
    def batch_size(self) -> int:
        """Samples an optimizer step."""
        return self.batch_tokens // self.seq_len

    @property
    def steps(self) -> int:
        """Optimizer steps: the fewest that cover ``tokens``."""
        return math.ceil(self.tokens / self.batch_tokens)

    @property
    def samples(self) -> int:
        return self.steps * self.batch_size

    def interval_steps(self, every: float | int) -> int:
        """Steps of an interval given as a share of the phase (at most 1) or in tokens."""
        steps = self.steps * every if every <= 1 else every / self.batch_tokens
        return max(1, round(steps))


class Sampling(Section):
    """How samples are drawn for the report and by default after release."""

    temperature: float = Field(0.8, ge=0)
    top_k: int = Field(0, ge=0, description="0: no limit")
    top_p: float = Field(0.95, gt=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0)
    max_new_tokens: int = Field(64, ge=1)


class Evaluation(Section):
    """How a finished phase is measured, on every held-out set."""

    stride: Count | None = Field(
        None, description="tokens between windows; null: seq_len, so windows do not overlap"
    )
    max_tokens: Count | None = Field(None, description="cap on the tokens of a set; null: all")
    prompts: list[str] = Field(default=["The "], min_length=1)
    sampling: Sampling = Sampling()


class Release(Section):
    """What is registered, and under which name."""

    phase: Name = Field(description="the phase whose weights are released")
    weights: Literal["ema", "raw"] = "ema"
    alias: Name = "champion"
    license: str = Field("apache-2.0", description="of the weights")


class Recipe(Section):
    """A whole experiment: the text, the tokenizer, the network, the phases, the measures.

    Every section stands in the file, if only as ``{}``: DVC tracks them by name.
    """

    name: Name = Field(description="MLflow experiment and registered model")
    description: str = Field(description="one line, for the report and the model card")
    seed: int = Field(ge=0, le=2**63 - 1)
    sources: dict[Name, Source] = Field(min_length=1, description="in order of priority")
    dedup: Dedup
    held_out: HeldOut
    tokenizer: Tokenizer
    model: ModelConfig
    training: dict[str, Any] = Field(description="defaults of every phase")
    phases: dict[Name, Phase] = Field(min_length=1)
    evaluation: Evaluation
    release: Release

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the resolved recipe."""
        return fingerprint(self.resolved())

    def resolved(self) -> dict[str, Any]:
        """The recipe with every default filled in, as plain JSON values."""
        return self.model_dump(mode="json", exclude={"training"})

    @property
    def model_config_with_vocab(self) -> ModelConfig:
        """The network with the recipe's vocabulary size; a trained tokenizer may have less."""
        return ModelConfig.from_dict(
            self.model.to_dict() | {"vocab_size": self.tokenizer.vocab_size}
        )

    def parents(self, phase: str) -> list[str]:
        """The phases before ``phase``, nearest first, without 'init'."""
        chain: list[str] = []
        while (phase := self.phases[phase].starts_from) != INIT:
            chain.append(phase)
        return chain

    def phases_in_order(self) -> list[str]:
        """Phase names, parents before children."""
        return sorted(self.phases, key=lambda name: (len(self.parents(name)), name))


def load(path: Path = Path("params.yaml")) -> Recipe:
    """Read and validate a recipe.

    Raises UserError (exit code 2) that lists every fault with its key, and the nearest right name
    for an unknown one.
    """
    from tasks.recipe_file import read_recipe  # reading and explaining are a room of their own

    return read_recipe(path)
