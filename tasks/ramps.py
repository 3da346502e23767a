"""Sizes that grow while a phase runs, as pure functions of the tokens seen.

    batch     16Ki        32Ki            64Ki (batch_tokens) ...
    tokens    0 .. R/2    R/2 .. R        R .. the end of the phase          R = ramp.tokens

A ramp doubles its value, each value for an equal share of ``ramp.tokens``. So every batch is made
of whole samples and every sample of whole rows, and growing changes neither which tokens are read
nor their order.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import Field

from tasks.recipe_data import Section
from tasks.units import Count


class Ramp(Section):
    """Growth from ``start`` to the phase's own value, by doublings."""

    start: Count = Field(description="value at the first token")
    tokens: Count = Field(description="tokens over which it grows; the full value holds after")

    def doublings(self, full: int, key: str) -> list[int]:
        """The values below ``full``, ascending. Raises ValueError, naming ``key``, if there are
        none, or ``full`` is not ``start`` doubled a whole number of times."""
        times = round(math.log2(full / self.start)) if 0 < self.start < full else 0
        if times < 1 or self.start << times != full:
            near = [full >> i for i in range(1, 20) if full % (1 << i) == 0]
            raise ValueError(
                f"{key}.start must be {full} halved a whole number of times, got {self.start}"
                + (f"; such are {', '.join(map(str, near[:6]))}" if near else "")
            )
        return [self.start << i for i in range(times)]


class Step(NamedTuple):
    """What one optimizer step reads: tokens ``first`` to ``first + tokens`` of the phase."""

    first: int
    tokens: int


@dataclass(frozen=True)
class StepPlan:
    """Which tokens of a phase each of its steps reads.

    Runs of steps of one batch size; item i of each tuple is about run i.
    """

    first_step: tuple[int, ...]
    first_token: tuple[int, ...]
    batch_tokens: tuple[int, ...]
    steps: int
    tokens: int

    @classmethod
    def of(cls, tokens: int, batch_tokens: int, ramp: Ramp | None) -> StepPlan:
        """The fewest steps that cover ``tokens``, the first of them smaller where a ramp says so.

        Raises ValueError for a ramp that does not fit (see ``Ramp.doublings``).
        """
        sizes = ramp.doublings(batch_tokens, "batch_ramp") if ramp else []
        steps, seen = 0, 0
        first_step, first_token = [], []
        for size in sizes:
            first_step.append(steps)
            first_token.append(seen)
            assert ramp is not None
            count = max(1, round(ramp.tokens / len(sizes) / size))
            steps, seen = steps + count, seen + count * size
        first_step.append(steps)
        first_token.append(seen)
        rest = max(1, math.ceil((tokens - seen) / batch_tokens))
        return cls(
            tuple(first_step),
            tuple(first_token),
            (*sizes, batch_tokens),
            steps + rest,
            seen + rest * batch_tokens,
        )

    def at(self, step: int) -> Step:
        """The tokens of step ``step`` (from 0); step ``steps`` begins where the phase ends."""
        run = bisect_right(self.first_step, step) - 1
        size = self.batch_tokens[run]
        return Step(self.first_token[run] + (step - self.first_step[run]) * size, size)


def ramped(ramp: Ramp | None, full: int, tokens_seen: int, key: str) -> int:
    """The value of a ramp after ``tokens_seen`` tokens; ``full`` where there is no ramp."""
    if ramp is None or tokens_seen >= ramp.tokens:
        return full
    values = ramp.doublings(full, key)
    return values[tokens_seen * len(values) // ramp.tokens]
