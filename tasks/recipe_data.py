"""The part of a recipe that concerns text: where it comes from and how it becomes tokens."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from tasks.data.rules import check_changes
from tasks.units import Count

# Source and phase names become folder names, stage names and words of a shell command.
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
Share = Annotated[float, Field(ge=0, lt=1)]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Hub(Section):
    """A dataset of the Hugging Face hub, or of a mirror folder that stands in for it."""

    id: str = Field(pattern=r"^[\w-][\w.-]*/[\w-][\w.-]*$", description="owner/name")
    config: str = Field("default", pattern=r"^[\w-][\w.-]*$", description="configuration name")
    revision: str = Field(description="commit of the dataset repository, pinned")
    splits: dict[Split, str] = Field(
        default={"train": "train"}, description="our split -> the dataset's; official ones hold"
    )


class Files(Section):
    """Local files, by glob relative to the folder of params.yaml."""

    train: list[str] = Field(default=[], description="globs of training text")
    validation: list[str] = Field(default=[], description="globs of an official validation split")
    test: list[str] = Field(default=[], description="globs of an official test split")
    format: Literal["auto", "txt", "paragraphs", "lines", "jsonl", "csv", "parquet"] = Field(
        "auto",
        description="txt: a file is a document; paragraphs: what stands between blank lines is; "
        "lines: a line is; auto: by file ending",
    )
    encoding_errors: Literal["strict", "replace", "skip"] = Field(
        "strict", description="bytes that are not UTF-8: stop, replace, or drop the document"
    )

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not (self.train or self.validation or self.test):
            raise ValueError("name at least one glob under train, validation or test")
        return self


class Source(Section):
    """Where one kind of text comes from and how its rows become documents."""

    hub: Hub | None = None
    files: Files | None = None
    installed: Literal["stdlib", "packages"] | None = Field(
        None, description="the documentation of this Python installation"
    )
    text: str = Field("{text}", description="template that makes a document of a row's columns")
    group_by: list[str] = Field(
        default=[], description="columns; consecutive rows that agree in them are one document"
    )
    each: str | None = Field(
        None, description="with group_by: template of one row, joined below the document's text"
    )
    regroup: Literal["wikitext"] | None = Field(
        None, description="wikitext: rows are lines; join them into articles at the headings"
    )
    profile: Literal[
        "plain", "encyclopedia", "wikitext", "news", "web", "latex", "dialogue", "stories", "docs"
    ] = Field("plain", description="cleaning rules; see tasks/data/profiles.py")
    min_words: int = Field(1, ge=0, description="shorter documents are dropped")
    rules: dict[str, bool | float] = Field(
        default={},
        description="changes of the profile's rules: a bound, true (as published) or false, by "
        "name of a rule or group; see tasks/data/rules.py",
    )
    languages: list[Annotated[str, StringConstraints(pattern=r"^[a-z]{2,3}$")]] = Field(
        default=[], description="ISO 639 codes; documents in others are dropped; [] takes any"
    )
    mask_pii: bool = Field(
        False, description="replace mail and IP addresses, phone, card and account numbers"
    )
    max_bytes: Count | None = Field(None, description="stop reading the training split here")
    license: str = Field("unknown", description="SPDX id or name, carried to the model card")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = [k for k in ("hub", "files", "installed") if getattr(self, k) is not None]
        if len(kinds) != 1:
            raise ValueError(
                f"exactly one of hub, files, installed is needed, got {', '.join(kinds) or 'none'}"
            )
        if (self.each is None) != (not self.group_by):
            raise ValueError("group_by and each go together: one is given without the other")
        check_changes(self.rules)
        return self

    @property
    def cleaning(self) -> dict[str, Any]:
        """What decides how a document is cleaned, as JSON."""
        return self.model_dump(
            include={"profile", "min_words", "rules", "languages", "mask_pii"}, mode="json"
        )

    @property
    def trains(self) -> bool:
        """Whether the source has training text (one without is held out as a whole)."""
        if self.hub:
            return "train" in self.hub.splits
        return bool(self.files.train) if self.files else True


class Dedup(Section):
    """Removal of duplicates, within and across sources; held-out text stays, first."""

    exact: bool = Field(True, description="SHA-256 of the normalised text")
    near: bool = Field(True, description="MinHash LSH, candidates verified by true Jaccard")
    threshold: float = Field(0.8, gt=0, le=1, description="Jaccard similarity of word n-grams")
    ngram: int = Field(5, ge=1, le=32, description="words a shingle")
    bands: int | None = Field(
        None, ge=1, le=256, description="LSH bands; default: what finds 99.5 % at the threshold"
    )
    rows: int | None = Field(None, ge=1, le=64, description="hashes a band; goes with bands")
    span_words: int | None = Field(
        None,
        ge=20,
        description="cut passages of so many words that an earlier document has; default: none",
    )

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.bands is None) != (self.rows is None):
            raise ValueError("bands and rows go together: one is given without the other")
        return self


class HeldOut(Section):
    """The split, by document after dedup, where a source has no official one."""

    validation: Share = Field(0.01, description="share of documents")
    test: Share = Field(0.01, description="share of documents")
    decontaminate: bool = Field(True, description="drop training documents that overlap")
    ngram: int = Field(13, ge=1, description="words of a run that counts as overlap")

    @model_validator(mode="after")
    def _leaves_text(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation + test must stay below 1, got {self.validation + self.test}"
            )
        return self


_LEAST_IDS = {
    "byte_bpe": (257, "256 bytes and EOS"),
    "byte": (257, "256 bytes and EOS"),
    "sentencepiece_bpe": (261, "256 bytes, 4 special tokens and a space"),
    "character": (3, "a character, [UNK] and EOS"),
}


class Tokenizer(Section):
    """One tokenizer for all phases."""

    kind: Literal[
        "byte_bpe", "whitespace_bpe", "sentencepiece_bpe", "character", "byte", "pretrained"
    ] = Field("byte_bpe", description="see tasks/tokens: train, sentencepiece, symbols, pretrained")
    vocab_size: Count = Field(description="ids; for a pretrained one it must be its own size")
    lowercase: bool = False
    pretrained: Hub | str | None = Field(
        None, description="hub id with revision, or a local tokenizer.json or folder"
    )
    mixture: dict[Name, float] | None = Field(
        None, description="source -> weight of the training sample; default: by bytes"
    )
    sample_bytes: Count = Field(100_000_000, description="cap on the training sample")
    min_frequency: int = Field(
        2, ge=1, description="byte_bpe, whitespace_bpe: merges seen less often are not made"
    )
    max_word: int = Field(256, ge=16, description="longer words are cut in the training sample")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.kind == "pretrained") != (self.pretrained is not None):
            raise ValueError(
                "pretrained names the tokenizer of kind 'pretrained', and only of that"
            )
        low, parts = _LEAST_IDS.get(self.kind, (1, ""))
        if self.vocab_size < low or (self.kind == "byte" and self.vocab_size > low):
            rule = "" if self.kind == "byte" else "at least "
            raise ValueError(f"vocab_size must be {rule}{low} ({parts}), got {self.vocab_size}")
        if self.kind == "sentencepiece_bpe" and self.lowercase:
            raise ValueError("sentencepiece_bpe takes text as it is: remove lowercase")
        if self.mixture is not None:
            check_weights(self.mixture, "mixture")
        return self


def check_weights(weights: dict[str, float], key: str) -> None:
    """Raise ValueError unless the weights are >= 0 and at least one is not 0."""
    for name, weight in weights.items():
        if weight < 0:
            raise ValueError(f"{key}.{name} is negative ({weight}); weights are shares of tokens")
    if sum(weights.values()) == 0:
        raise ValueError(f"{key}: the weights sum to 0, so there is nothing to draw from")
