"""The data of one phase in numbers, as data/mix/<phase>/mix.json holds it.

The mix names the shards by their fingerprints and has the few integers from which order.py and
reader.py work out every sample. It is small, so a phase is changed with nothing encoded anew.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from tasks.errors import BAD_DATA, NO_INPUT, UserError
from tasks.files import fingerprint, read_json
from tasks.recipe import Split
from tasks.tokens.curriculum import Curriculum
from tasks.tokens.order import Interleaving

VERSION = 1


@dataclass(frozen=True)
class MixSource:
    """What a phase draws from one source.

    Attributes:
        name: in the recipe.
        weight: share of the phase's samples, exact, as ``"7/20"``.
        tokens: tokens drawn by the phase: samples * seq_len, a packing's padding included.
        samples: samples drawn by the phase.
        available: tokens of its training split.
        windows: samples of one epoch.
        epochs: samples / windows.
        fingerprint: of the training split.
        packing: SHA-256 of its plan, where documents are packed.
    """

    name: str
    weight: str
    tokens: int
    samples: int
    available: int
    windows: int
    epochs: float
    fingerprint: str
    packing: str | None = None


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
class Course:
    """How the shares of a phase change along it: the arguments of a ``Curriculum``.

    Attributes:
        linear: whether they go straight from point to point.
        starts: sample at which each point stands.
        shares: at each point, the share of each source, as ``"7/20"``.
        before: how many samples of each source come before each block.
    """

    linear: bool
    starts: list[int]
    shares: list[list[str]]
    before: list[list[int]]


@dataclass(frozen=True)
class Mix:
    """The data of one phase.

    Attributes:
        phase, seed: what the order is drawn from.
        seq_len: tokens a sample; a sample read holds one more.
        samples: samples of the phase.
        period: samples after which the pattern of sources repeats; all, along a course.
        tokenizer, vocab_size, eos_id: what the shards were encoded with.
        sources: in the order of the recipe's mixture, those of weight 0 left out.
        held_out: the sets that exist.
        ledger: where the tokens of each source went.
        fingerprint: of all that decides the samples (held-out sets and ledger do not).
        course: how the shares change along the phase; None: they do not.
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
    course: Course | None = None

    @property
    def tokens(self) -> int:
        """Tokens trained on: the targets of all samples."""
        return self.samples * self.seq_len

    @property
    def interleaving(self) -> Interleaving | Curriculum:
        """Which source each sample is from."""
        if self.course is None:
            return Interleaving([Fraction(source.weight) for source in self.sources])
        shares = [[Fraction(share) for share in row] for row in self.course.shares]
        course = self.course
        return Curriculum(course.starts, shares, course.linear, self.samples, course.before)

    def to_json(self) -> dict[str, Any]:
        """As ``load_mix`` reads it; what the phase makes no use of is left out."""
        value = _present(asdict(self))
        return value | {"sources": [_present(source) for source in value["sources"]]}


def decisive(value: dict[str, Any]) -> dict[str, Any]:
    """The part of a mix's JSON that decides its samples, and that its fingerprint is of."""
    apart = ("held_out", "ledger", "fingerprint")
    return {key: item for key, item in value.items() if key not in apart}


def load_mix(path: Path) -> Mix:
    """Read data/mix/<phase>/mix.json. Raises UserError where it is missing or was changed."""
    if not path.exists():
        raise UserError(
            f"{path} is missing", hint=f"make it: dvc repro mix@{path.parent.name}",
            exit_code=NO_INPUT,
        )  # fmt: skip
    value = read_json(path)
    try:
        parts = {
            "sources": tuple(MixSource(**source) for source in value["sources"]),
            "held_out": tuple(HeldOutSet(**held_out) for held_out in value["held_out"]),
            "course": Course(**value["course"]) if "course" in value else None,
        }
        made = Mix(**value | parts)
        whole = made.version == VERSION and fingerprint(decisive(value)) == made.fingerprint
    except (KeyError, TypeError) as error:
        raise _foreign(path, repr(error)) from None
    if not whole:
        raise _foreign(path, "it was changed by hand, or made by another version")
    return made


def _present(value: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if item is not None}


def _foreign(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} is not a mix as written: {why}",
        hint=f"make it again: dvc repro --force mix@{path.parent.name}",
        exit_code=BAD_DATA,
    )
