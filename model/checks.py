"""Checks of values that people write: what is wrong, what came, what is allowed.

Every function returns the value in the type that the caller stores, or raises ValueError with a
sentence that can be shown as it is. Only the standard library is used.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable


def whole(name: str, value: object, low: int, high: int = 2**31 - 1) -> int:
    """`value` as an int in [low, high]; a bool or a float such as 2.5 is not a whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must lie in {low} to {high}, got {value}")
    return value


def number(
    name: str,
    value: object,
    low: float,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """`value` as a finite float in [low, high]; `open_low` and `open_high` leave out the end."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number, got {value!r}")
    below = value <= low if open_low else value < low
    above = value >= high if open_high else value > high
    if not math.isfinite(value) or below or above:
        interval = _interval(low, high, open_low, open_high)
        raise ValueError(f"{name} must be a finite number {interval}, got {value}")
    return float(value)


def flag(name: str, value: object) -> bool:
    """`value` as a bool; 0, 1 and "yes" are not taken for one."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")
    return value


def choice(name: str, value: object, allowed: Collection[str]) -> str:
    """`value` if it is one of `allowed`; the message names the nearest one."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(
            f"{name} must be one of {', '.join(allowed)}, got {value!r}{hint(value, allowed)}"
        )
    return value


def known_keys(what: str, given: Iterable[str], allowed: Collection[str]) -> None:
    """Refuse keys that `what` does not have, each with the nearest one that it has."""
    unknown = [key for key in given if key not in allowed]
    if unknown:
        listed = "; ".join(f"{key!r}{hint(key, allowed)}" for key in unknown)
        raise ValueError(f"{what} has no such key: {listed}")


def hint(given: object, allowed: Iterable[str]) -> str:
    """', did you mean ...?' for the nearest of `allowed`, or '' when none is near."""
    near = difflib.get_close_matches(str(given), list(allowed), n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def nearest_divisors(total: int, wanted: int) -> str:
    """The divisors of `total` on both sides of `wanted`, as words: '16 or 32'."""
    divisors = [n for n in range(1, total + 1) if total % n == 0]
    below = max((n for n in divisors if n < wanted), default=None)
    above = min((n for n in divisors if n > wanted), default=None)
    return " or ".join(str(n) for n in (below, above) if n is not None)


def _interval(low: float, high: float, open_low: bool, open_high: bool) -> str:
    left = f"above {low:g}" if open_low else f"of at least {low:g}"
    if math.isinf(high):
        return left
    return f"{left} and {'below' if open_high else 'at most'} {high:g}"
