"""What the doctor finds: one line each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's: ``state`` is ok, warn or bad; ``hint`` says what to do."""

    state: str
    what: str
    detail: str
    hint: str = ""
