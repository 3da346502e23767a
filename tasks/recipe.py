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
