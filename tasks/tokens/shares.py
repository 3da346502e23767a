"""From a recipe's mixture to the exact shares that a phase draws, by points of the phase.

    weights as written  -> times tokens^(1/T)  -> normalised      mixture_temperature
                        -> (1 - r) own + r of an earlier phase    replay
                        -> capped at max_epochs, others fill in   on_exhausted: reweight
                        -> rounded to 1/100,000, if needed

Weights of a paper's table stay the fractions that they are. What sizes and roots make of them is
rounded, so that the pattern of sources has a short period.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Protocol

from tasks.errors import UserError
from tasks.recipe import Phase, Recipe
from tasks.recipe_mixture import mean_shares, mixture_starts
from tasks.tokens.order import MAX_PERIOD, exact_shares
from tasks.units import show_count

ROUND_TO = 100_000

Row = dict[str, Fraction]


class Stock(Protocol):
    """What the sources hold."""

    def tokens(self, source: str) -> int:
        """Tokens of its training split."""

    def windows(self, source: str, settings: Phase) -> int:
        """Samples of one epoch, as a phase cuts or packs them."""


@dataclass(frozen=True)
class Shares:
    """What a phase draws.

    Attributes:
        starts: sample at which each point stands.
        rows: the shares at each point, of the same sources in the same order, adding up to 1.
        linear: whether shares go straight from point to point.
        samples: of the phase.
        capped: sources held to ``max_epochs``, with the share of the phase they would have had.
        rounded: whether the shares are rounded to 1/100,000.
    """

    starts: list[int]
    rows: list[Row]
    linear: bool
    samples: int
    capped: dict[str, Fraction] = field(default_factory=dict)
    rounded: bool = False

    @property
    def mean(self) -> Row:
        """Each source's share of all samples of the phase."""
        return mean_shares(self.rows, self.starts, self.samples, self.linear)

    @property
    def constant(self) -> bool:
        return len(self.rows) == 1


def phase_shares(recipe: Recipe, phase: str, stock: Stock) -> Shares:
    """The shares of a phase.

    Raises UserError for weights with too many digits, for a share too small to be drawn, and where
    all sources together cannot fill the phase within ``max_epochs``.
    """
    settings, key = recipe.phases[phase], f"params.yaml: phases.{phase}"
    rows = [_written(row, settings, stock, f"{key}.mixture") for row in settings.mixture_points]
    if settings.replay:
        rows = [_with_replay(row, recipe, settings, stock) for row in rows]
    linear = settings.curriculum == "linear"
    made = Shares(mixture_starts(settings), _aligned(rows), linear, settings.samples)
    if settings.on_exhausted == "reweight":
        made = _within_caps(made, settings, stock, key)
    return _drawable(made, settings, stock, key)


def _written(row: dict[str, float], settings: Phase, stock: Stock, where: str) -> Row:
    """The shares of one point, as written or by temperature."""
    if settings.mixture_temperature is None:
        return exact_shares(row, where)
    sizes: Row = {}
    with localcontext() as context:  # decimals give the same digits on every machine
        context.prec = 30
        power = 1 / Decimal(str(settings.mixture_temperature))
        for name, weight in row.items():
            if weight:
                size = Decimal(stock.tokens(name)) ** power
                sizes[name] = Fraction(str(weight)) * Fraction(size)
    total = sum(sizes.values())
    return {name: size / total for name, size in sizes.items()}


def _with_replay(row: Row, recipe: Recipe, settings: Phase, stock: Stock) -> Row:
    """Own shares and those of the replayed phases, each for its part of the tokens.

    A source in both is one stream: no window of it comes again before all have come.
    """
    parts = {earlier: Fraction(str(share)) for earlier, share in settings.replay.items()}
    mixed = {name: share * (1 - sum(parts.values())) for name, share in row.items()}
    for earlier, part in parts.items():
        for name, share in phase_shares(recipe, earlier, stock).mean.items():
            mixed[name] = mixed.get(name, Fraction(0)) + part * share
    return mixed


def _aligned(rows: Sequence[Row]) -> list[Row]:
    """All rows with all sources that have a share somewhere, in one order."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name, Fraction(0)) for name in names} for row in rows]


def _within_caps(made: Shares, settings: Phase, stock: Stock, key: str) -> Shares:
    """Sources beyond ``max_epochs`` scaled down to it, at every point alike; the others take what
    is left in proportion to their shares there."""
    caps = _caps(made, settings, stock)
    if sum(caps.values()) < made.samples:
        raise _too_little(made, settings, caps, key)
    wanted, rows = made.mean, made.rows
    scaled: Row = {}
    while True:
        mean = mean_shares(rows, made.starts, made.samples, made.linear)
        over = [n for n in mean if n not in scaled and mean[n] * made.samples > caps[n]]
        if not over:
            break
        scaled |= {n: Fraction(caps[n], made.samples) / wanted[n] for n in over}
        rows = [_filled(row, scaled) for row in made.rows]
        if not all(rows):
            raise _too_little(made, settings, caps, key)
    capped = {name: wanted[name] for name in scaled}
    return Shares(made.starts, rows, made.linear, made.samples, capped)


def _filled(row: Row, scaled: Row) -> Row:
    """One point with some sources scaled and the others filling in; empty where they cannot."""
    held = {name: row[name] * factor for name, factor in scaled.items()}
    left, free = 1 - sum(held.values()), sum(s for n, s in row.items() if n not in held)
    if left < 0 or (left and not free):
        return {}
    return {n: held[n] if n in held else share * left / free for n, share in row.items()}


def _drawable(made: Shares, settings: Phase, stock: Stock, key: str) -> Shares:
    """The same with a period of at most a million samples; nothing is rounded that need not be."""
    rows = made.rows
    if _period(rows) <= MAX_PERIOD:
        return made
    held, caps = set(made.capped), _caps(made, settings, stock)
    while True:
        rounded = [_rounded(row, held) for row in rows]
        result = Shares(made.starts, rounded, made.linear, made.samples, made.capped, True)
        mean = result.mean
        if small := [name for name, share in mean.items() if not share]:
            raise UserError(
                f"{small[0]} would have less than 1/{ROUND_TO:,} of the phase",
                where=f"{key}.mixture",
                hint=f"leave {small[0]} out, or give it a larger weight",
            )
        capping = settings.on_exhausted == "reweight"
        over = {n for n in mean if capping and n not in held and mean[n] * made.samples > caps[n]}
        if not over:
            return result
        held |= over


def _rounded(row: Row, held: Iterable[str]) -> Row:
    """A row in steps of 1/ROUND_TO: what is held goes down, the rest by largest remainder."""
    units = {name: int(share * ROUND_TO) for name, share in row.items()}
    free = [name for name in row if name not in held and row[name]] or [n for n in row if row[n]]
    free.sort(key=lambda name: units[name] - row[name] * ROUND_TO)  # largest remainder first
    for nth in range(ROUND_TO - sum(units.values())):
        units[free[nth % len(free)]] += 1
    return {name: Fraction(count, ROUND_TO) for name, count in units.items()}


def _period(rows: Iterable[Row]) -> int:
    return math.lcm(*(share.denominator for row in rows for share in row.values()))


def _caps(made: Shares, settings: Phase, stock: Stock) -> dict[str, int]:
    """The most samples that each source may give."""
    most = Fraction(str(settings.max_epochs))
    return {name: int(most * stock.windows(name, settings)) for name in made.rows[0]}


def _too_little(made: Shares, settings: Phase, caps: dict[str, int], key: str) -> UserError:
    there = ", ".join(f"{n} {show_count(c * settings.seq_len)}" for n, c in caps.items())
    return UserError(
        f"the sources cannot fill {show_count(settings.tokens)} tokens with at most "
        f"{settings.max_epochs:g} passes over each (they give {there}), or not in the order of "
        "the curriculum",
        where=key,
        hint="lower tokens, raise max_epochs, or add text",
    )
