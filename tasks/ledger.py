"""The ledger: where every document, byte and token went.

Each data stage writes one ledger beside its output. A stage may drop documents only with a reason,
and ``in = out + dropped`` is asserted before the ledger is written; chained from download to the
trained token, the ledgers account for the whole corpus.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.errors import BAD_DATA, UserError
from tasks.files import read_json, write_json

EXAMPLES_PER_REASON = 3
EXAMPLE_CHARACTERS = 200


@dataclass
class Count:
    """Documents, and bytes of their UTF-8 text."""

    documents: int = 0
    bytes: int = 0

    def add(self, text_bytes: int, documents: int = 1) -> None:
        self.documents += documents
        self.bytes += text_bytes

    def __add__(self, other: Count) -> Count:
        return Count(self.documents + other.documents, self.bytes + other.bytes)


@dataclass
class Ledger:
    """One stage's account of one source. Bytes changed inside a kept document (white space,
    markup) are booked as ``edited_bytes`` = bytes in of kept documents - bytes out."""

    stage: str
    source: str
    taken: Count = field(default_factory=Count)
    kept: Count = field(default_factory=Count)
    edited_bytes: int = 0
    dropped: dict[str, Count] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def keep(self, text_bytes_in: int, text_bytes_out: int | None = None) -> None:
        """Book one document that stays; ``text_bytes_out`` where the stage changed its text."""
        out = text_bytes_in if text_bytes_out is None else text_bytes_out
        self.taken.add(text_bytes_in)
        self.kept.add(out)
        self.edited_bytes += text_bytes_in - out

    def drop(self, reason: str, text: str, text_bytes: int | None = None) -> None:
        """Book one document that goes, and keep the first few as examples; ``text_bytes`` where
        ``text`` is only the beginning of it."""
        size = len(text.encode("utf-8", errors="replace")) if text_bytes is None else text_bytes
        self.taken.add(size)
        self.dropped.setdefault(reason, Count()).add(size)
        shown = self.examples.setdefault(reason, [])
        if len(shown) < EXAMPLES_PER_REASON:
            shown.append(text[:EXAMPLE_CHARACTERS])

    def merge(self, part: Ledger) -> None:
        """Add the account of a part of the same source; its notes are left to the caller."""
        self.taken += part.taken
        self.kept += part.kept
        self.edited_bytes += part.edited_bytes
        for reason, count in part.dropped.items():
            self.dropped[reason] = self.dropped.get(reason, Count()) + count
        for reason, texts in part.examples.items():
            shown = self.examples.setdefault(reason, [])
            shown.extend(texts[: EXAMPLES_PER_REASON - len(shown)])

    def check(self) -> None:
        """Assert that documents and bytes balance."""
        gone = sum(self.dropped.values(), Count())
        assert self.taken.documents == self.kept.documents + gone.documents, (
            f"{self.stage}/{self.source}: {self.taken.documents} documents in, "
            f"{self.kept.documents} out, {gone.documents} dropped"
        )
        assert self.taken.bytes == self.kept.bytes + gone.bytes + self.edited_bytes, (
            f"{self.stage}/{self.source}: bytes do not balance"
        )

    def to_dict(self) -> dict[str, Any]:
        self.check()
        return {
            "stage": self.stage,
            "source": self.source,
            "in": vars(self.taken),
            "out": vars(self.kept),
            "edited_bytes": self.edited_bytes,
            "dropped": {k: vars(v) for k, v in sorted(self.dropped.items())},
            "examples": dict(sorted(self.examples.items())),
            "notes": self.notes,
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Ledger:
        return cls(
            stage=value["stage"],
            source=value["source"],
            taken=Count(**value["in"]),
            kept=Count(**value["out"]),
            edited_bytes=value["edited_bytes"],
            dropped={k: Count(**v) for k, v in value["dropped"].items()},
            examples=value["examples"],
            notes=value["notes"],
        )


def write_ledgers(path: Path, ledgers: Iterable[Ledger]) -> None:
    """Write the ledgers of one stage as one JSON list; each must balance."""
    write_json(path, [ledger.to_dict() for ledger in ledgers])


def read_ledgers(path: Path) -> list[Ledger]:
    """Read a stage's ledgers and check again that each balances."""
    try:
        ledgers = [Ledger.from_dict(value) for value in read_json(path)]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not a ledger: {error!r}", exit_code=BAD_DATA) from None
    for ledger in ledgers:
        ledger.check()
    return ledgers
