"""The data of one phase in numbers, as data/mix/<phase>.json holds it.

The mix names the shards by their fingerprints and has the few integers from which order.py and
reader.py work out every sample. It is small, so a phase is changed with nothing encoded anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from tasks.errors import BAD_DATA, NO_INPUT, UserError
from tasks.files import fingerprint, read_json
from tasks.recipe import Split
from tasks.tokens.order import Interleaving

VERSION = 1


@dataclass(frozen=True)
class MixSource:
    """What a phase draws from one source.

    Attributes:
        name: in the recipe.
        weight: share of the samples, exact, as ``"7/20"``.
        tokens: tokens drawn by the phase: samples * seq_len.
        samples: samples drawn by the phase.
        available: tokens of its training split.
        windows: samples of one epoch.
        epochs: samples / windows.
        fingerprint: of the training split.
    """

    name: str
    weight: str
    tokens: int
    samples: int
    available: int
    windows: int
    epochs: float
    fingerprint: str


@dataclass(frozen=True)
class HeldOutSet:
    """A validation or test split that every phase is measured on."""

    source: str
    split: Split
    tokens: int
    documents: int
    text_bytes: int
    fingerprint: str


@dataclass(frozen=True)
class Mix:
    """The data of one phase.

    Attributes:
        phase, seed: what the order is drawn from.
        seq_len: tokens a sample; a sample read holds one more.
        samples: samples of the phase.
        period: samples after which the pattern of sources repeats.
        tokenizer, vocab_size, eos_id: what the shards were encoded with.
        sources: in the order of the recipe's mixture, those of weight 0 left out.
        held_out: the sets that exist.
        ledger: where the tokens of each source went.
        fingerprint: of all that decides the samples (held-out sets and ledger do not).
    """

    version: int
    phase: str
    seed: int
    seq_len: int
    samples: int
    period: int
    tokenizer: str
    vocab_size: int
    eos_id: int
    sources: tuple[MixSource, ...]
    held_out: tuple[HeldOutSet, ...]
    ledger: dict[str, Any]
    fingerprint: str

    @property
    def tokens(self) -> int:
        """Tokens trained on: the targets of all samples."""
        return self.samples * self.seq_len

    @property
    def interleaving(self) -> Interleaving:
        return Interleaving([Fraction(source.weight) for source in self.sources])


def load_mix(path: Path) -> Mix:
    """Read data/mix/<phase>.json. Raises UserError where it is missing or was changed."""
    if not path.exists():
        raise UserError(
            f"{path} is missing", hint=f"make it: dvc repro mix@{path.stem}", exit_code=NO_INPUT
        )
    value = read_json(path)
    try:
        made = Mix(
            **value
            | {
                "sources": tuple(MixSource(**source) for source in value["sources"]),
                "held_out": tuple(HeldOutSet(**held_out) for held_out in value["held_out"]),
            }
        )
        apart = ("held_out", "ledger", "fingerprint")
        decisive = {key: item for key, item in value.items() if key not in apart}
        whole = made.version == VERSION and fingerprint(decisive) == made.fingerprint
    except (KeyError, TypeError) as error:
        raise _foreign(path, repr(error)) from None
    if not whole:
        raise _foreign(path, "it was changed by hand, or made by another version")
    return made


def _foreign(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} is not a mix as written: {why}",
        hint=f"make it again: dvc repro --force mix@{path.stem}",
        exit_code=BAD_DATA,
    )
