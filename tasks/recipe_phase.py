"""The part of a recipe that concerns training: one phase, its schedules and its optimizer."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from tasks.ramps import Ramp, StepPlan, ramped
from tasks.recipe_data import Section
from tasks.recipe_mixture import Drawing, Mixture, mixture_starts
from tasks.units import Count, CountOrZero

INIT = "init"
IMPORTED = "imported/"  # before the name of a checkpoint that `phasewise import` made
Start = Annotated[str, StringConstraints(pattern=r"^(imported/)?[a-z0-9][a-z0-9_-]{0,62}$")]


class Optimizer(Section):
    """AdamW (Loshchilov & Hutter 2019); or Muon (Jordan et al. 2024) for the blocks' matrices, with
    AdamW for the rest. Muon's updates are scaled to AdamW's size, so that both take one ``lr``."""

    name: Literal["adamw", "muon"] = "adamw"
    momentum: float = Field(0.95, ge=0, lt=1, description="of Muon (Nesterov's)")
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


class Training(Drawing):
    """Settings that phases share; a phase may override each."""

    seq_len: int = Field(1024, ge=2, description="tokens a sample")
    seq_len_ramp: Ramp | None = Field(
        None, description="samples are read in shorter rows at first: {start: 256, tokens: 10M}"
    )
    batch_tokens: Count = Field(65_536, description="tokens an optimizer step, all processes")
    batch_ramp: Ramp | None = Field(
        None, description="smaller steps at first: {start: 16Ki, tokens: 10M}"
    )
    lr: float = Field(3e-4, gt=0, description="peak learning rate")
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end of the decay")
    schedule: Literal["cosine", "linear", "constant", "wsd"] = Field(
        "cosine", description="after the warmup; wsd: constant, then a linear cooldown"
    )
    warmup: Literal["linear", "cosine"] = Field("linear", description="shape of the warmup")
    warmup_tokens: CountOrZero = Field(0, description="warmup from 0")
    cooldown_tokens: CountOrZero = Field(0, description="wsd: tokens of the final decay")
    optimizer: Optimizer = Optimizer()
    carry_optimizer: bool = Field(
        False, description="start from the parent phase's optimizer state, not from a fresh one"
    )
    grad_clip: float | None = Field(1.0, gt=0, description="global gradient norm; null: none")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    final_dropout: float | None = Field(
        None, ge=0, lt=1,
        description="the model's dropouts move to it over the phase, in a straight line",
    )  # fmt: skip
    recompute: bool = Field(
        False, description="activation checkpointing: less memory for a third more time"
    )
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
    max_skipped: int = Field(
        10, ge=0,
        description="steps in a row that may be skipped (not finite, or a spike) before it stops",
    )  # fmt: skip
    spike_factor: float | None = Field(
        None, gt=1,
        description="a loss so many times the median of the last 64 is a spike; null: none is",
    )  # fmt: skip
    on_spike: Literal["report", "skip"] = Field(
        "report", description="skip: the step that spikes leaves the weights alone"
    )
    select: Literal["last", "best"] = Field(
        "last", description="the checkpoint that the phase ends with"
    )
    select_on: str | None = Field(
        None, description="held-out set that ranks checkpoints, as wikitext/validation"
    )
    patience: int | None = Field(
        None, ge=1, description="validations without a better one after which the phase ends"
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
        if self.seq_len_ramp:
            self.seq_len_ramp.doublings(self.seq_len, "seq_len_ramp")
        if self.batch_ramp:
            first = self.batch_ramp.doublings(self.batch_tokens, "batch_ramp")[0]
            if first % self.seq_len:
                raise ValueError(
                    f"batch_ramp.start must be a multiple of seq_len ({self.seq_len}), got {first}"
                )
        if (self.select == "best" or self.patience) and self.select_on is None:
            raise ValueError(
                "select: best and patience need select_on, a held-out set such as "
                "wikitext/validation"
            )
        return self


class Phase(Training, Mixture):
    """One phase of training: what it starts from, what it reads, how far it goes."""

    starts_from: Start = Field(description="'init', another phase, or imported/<name>")
    tokens: Count = Field(description="tokens to train on")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.warmup_tokens + self.cooldown_tokens >= self.tokens:
            raise ValueError(
                f"warmup_tokens + cooldown_tokens ({self.warmup_tokens + self.cooldown_tokens}) "
                f"must stay below tokens ({self.tokens})"
            )
        if self.schedule != "wsd" and self.cooldown_tokens:
            raise ValueError(f"cooldown_tokens belongs to schedule wsd, not to {self.schedule}")
        mixture_starts(self)  # raises where a point lies beyond the phase
        return self

    @cached_property
    def plan(self) -> StepPlan:
        """Which tokens each optimizer step reads."""
        return StepPlan.of(self.tokens, self.batch_tokens, self.batch_ramp)

    @property
    def parent(self) -> str | None:
        """The phase that it goes on from; None where it starts from 'init' or an import."""
        elsewhere = self.starts_from == INIT or self.starts_from.startswith(IMPORTED)
        return None if elsewhere else self.starts_from

    @property
    def batch_size(self) -> int:
        """Samples of an optimizer step, once a batch ramp has ended."""
        return self.batch_tokens // self.seq_len

    @property
    def steps(self) -> int:
        """Optimizer steps: the fewest that cover ``tokens``."""
        return self.plan.steps

    @property
    def total_tokens(self) -> int:
        """Tokens of all steps: ``tokens``, rounded up to whole steps."""
        return self.plan.tokens

    @property
    def samples(self) -> int:
        return self.plan.tokens // self.seq_len

    def samples_at(self, step: int) -> range:
        """The samples that optimizer step ``step`` reads, all processes."""
        now = self.plan.at(step)
        return range(now.first // self.seq_len, (now.first + now.tokens) // self.seq_len)

    def rows(self, tokens_seen: int) -> int:
        """Rows that each sample is read in, after so many tokens: 1 but for a seq_len ramp."""
        length = ramped(self.seq_len_ramp, self.seq_len, tokens_seen, "seq_len_ramp")
        return self.seq_len // length

    def is_due(self, every: float | int, step: int) -> bool:
        """Whether an interval, given as a share of the phase (at most 1) or in tokens, ends with
        the step that brings the count to ``step``."""
        interval = max(1, round(self.total_tokens * every if every <= 1 else every))
        before, after = self.plan.at(step - 1).first, self.plan.at(step).first
        return after // interval > before // interval
