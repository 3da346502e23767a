"""The schema of params.yaml: one recipe, whole, typed and frozen.

A recipe holds what changes the result and nothing else. What does not (device, processes,
micro-batch, folders, servers) is in tasks/settings.py. Sizes are in tokens. A key that this
module does not name is an error; so is a value that cannot work, before anything runs.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

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
)
from tasks.recipe_phase import IMPORTED, INIT, Optimizer, Phase, Training
from tasks.units import Count

__all__ = [
    "IMPORTED",
    "INIT",
    "SPLITS",
    "Dedup",
    "Evaluation",
    "Files",
    "Gate",
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


class Sampling(Section):
    """How samples are drawn for the report and by default after release.

    The fields of model.sampling.SamplingOptions by the same names, but for the seed, which is the
    recipe's.
    """

    max_new_tokens: int = Field(64, ge=1)
    temperature: float = Field(0.8, ge=0, le=100, description="0: always the likeliest token")
    final_temperature: float | None = Field(
        None, ge=0, le=100, description="of the last of max_new_tokens; null: it does not move"
    )
    temperature_power: float = Field(
        1.5, gt=0, le=100, description="of the way there: 1 is straight, above 1 fast at first"
    )
    top_k: int = Field(0, ge=0, description="0: no limit")
    top_p: float = Field(0.95, gt=0, le=1)
    min_p: float = Field(0.0, ge=0, le=1, description="share of the likeliest; 0: no limit")
    repetition_penalty: float = Field(1.0, gt=0, le=100)
    frequency_penalty: float = Field(0.0, ge=-100, le=100)
    presence_penalty: float = Field(0.0, ge=-100, le=100)
    no_repeat_ngram_size: int = Field(0, ge=0, description="0: off")
    stop: list[str] = Field(default=[], description="texts that end a continuation")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name in ("temperature", "final_temperature"):
            if 0 < (getattr(self, name) or 0) < 1e-3:
                raise ValueError(f"{name} is too small to divide by; use 0 for greedy")
        if not all(self.stop):
            raise ValueError("a text of stop is empty; leave it out")
        return self

    def keywords(self) -> dict[str, Any]:
        """The settings that say something, as keywords of SamplingOptions."""
        values = self.model_dump(exclude_none=True)
        if self.final_temperature is None:
            del values["temperature_power"]
        if not self.stop:
            del values["stop"]
        return values


class Benchmarks(Section):
    """Tasks of lm-evaluation-harness that the released model is put to; none: it is not."""

    tasks: list[str] = Field(default=[], description="names of the harness, or of tasks_from")
    tasks_from: str | None = Field(
        None, description="folder of JSON lines; null: the harness's own tasks, from the hub"
    )
    limit: int | None = Field(None, ge=1, description="examples of a task; null: all")


class Evaluation(Section):
    """How a finished phase is measured, on every held-out set."""

    stride: Count | None = Field(
        None, description="tokens between windows; null: seq_len, so windows do not overlap"
    )
    max_tokens: Count | None = Field(None, description="cap on the tokens of a set; null: all")
    documents: Literal["stream", "alone"] = Field(
        "stream",
        description="stream: one after another, as in training; alone: each by itself after an "
        "EOS, its own EOS not counted, as lm-evaluation-harness does",
    )
    baseline_tokens: Count = Field(
        20_000_000, description="training tokens that unigrams and 5-grams are counted from"
    )
    prompts: list[str] = Field(default=["The "], min_length=1)
    sampling: Sampling = Sampling()
    samples: int = Field(64, ge=1, description="continuations that text is measured on")
    sample_tokens: int = Field(128, ge=4, description="of each, at most")
    memorised_span: int = Field(50, ge=2, description="tokens that count as copied in one piece")
    benchmarks: Benchmarks = Benchmarks()


class Gate(Section):
    """What a model must do to take the alias from the one that has it."""

    sets: list[str] | None = Field(
        None,
        min_length=1,
        description="<source>/<split>; null: each source's test set, or validation without one",
    )
    level: float = Field(0.05, gt=0, lt=1, description="a difference with p below it is no noise")
    max_regression: float = Field(
        0.01, ge=0, description="bits per byte that may be lost on one set while most is won"
    )
    max_memorised: float = Field(
        0.2,
        ge=0,
        le=1,
        description="share of the model's samples that is training text, verbatim, above that of "
        "held-out text",
    )


class Release(Section):
    """What is registered, and under which name."""

    phase: Name = Field(description="the phase whose weights are released")
    weights: Literal["ema", "raw"] = "ema"
    alias: Name = "champion"
    license: str = Field("apache-2.0", description="of the weights")
    gate: Gate | None = Field(Gate(), description="null: every release takes the alias")


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
        """The phases before ``phase``, nearest first, without 'init' or an import."""
        chain: list[str] = []
        while parent := self.phases[phase].parent:
            chain.append(phase := parent)
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
