"""Quantities as people write them: ``678M`` tokens, ``64Ki`` tokens, ``2GB``."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

_SCALES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
_SCALES |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*(Ki|Mi|Gi|[KMBGT]?)B?", re.ASCII)
MAX_COUNT = 2**63 - 1


def parse_count(value: Any) -> int:
    """``"678M"`` -> 678_000_000; ``"64Ki"`` -> 65_536; integers as they are.

    Raises ValueError for anything else, and for a quantity that is not a whole number.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        number: float | int = value
    elif isinstance(value, float) and value.is_integer():
        number = int(value)  # YAML reads 2e6 as a float
    elif isinstance(value, str) and (match := _QUANTITY.fullmatch(value.strip())):
        digits, scale = match.groups()
        whole, _, part = digits.partition(".")
        number, rest = divmod(int(whole + part) * _SCALES[scale], 10 ** len(part))
        if rest:
            raise ValueError(f"{value!r} is not a whole number")
    else:
        raise ValueError(f"expected a count such as 2000000, '2M' or '64Ki', got {value!r}")
    if not 0 <= number <= MAX_COUNT:
        raise ValueError(f"must lie between 0 and 2^63 - 1, got {value!r}")
    return int(number)


Count = Annotated[int, BeforeValidator(parse_count), Field(gt=0)]
CountOrZero = Annotated[int, BeforeValidator(parse_count), Field(ge=0)]


def show_count(number: float) -> str:
    """``678_000_000`` -> ``"678M"``, with three significant digits."""
    for scale, suffix in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if abs(number) >= scale * 0.9995:
            return f"{number / scale:.3g}{suffix}"
    return f"{number:.3g}" if isinstance(number, float) else str(number)


def show_bytes(number: float) -> str:
    """``1_250_000_000`` -> ``"1.25 GB"``, with three significant digits."""
    for scale, unit in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if number >= scale * 0.9995:
            return f"{number / scale:.3g} {unit}"
    return f"{number:.0f} B"


def show_seconds(seconds: float) -> str:
    """``5025`` -> ``"1h 23m"``; the two leading units."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {seconds}s" if minutes else f"{seconds}s"
