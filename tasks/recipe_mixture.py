"""The part of a recipe that says what a phase draws from its sources, and how that changes.

    mixture: {web: 0.8, books: 0.2}        the same shares from the first token to the last

    mixture:                               a table as papers have it: a row a source,
      web:   [0.9, 0.5, 0.2]               a column a point of the phase;
      books: [0.1, 0.5, 0.8]
    mixture_at: [0, 0.5, 0.9]              where the columns stand, as shares of the phase or in
    curriculum: linear                     tokens; `steps` holds a column until the next one

Weights are by tokens, and the weights of each column are normalised. What is made of them, in this
order: ``mixture_temperature`` multiplies each weight by a power of the source's size, ``replay``
adds the shares of earlier phases, ``on_exhausted: reweight`` takes from small sources what they
cannot give.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, PlainValidator, model_validator

from tasks.recipe_data import Name, Section, check_weights
from tasks.units import Count

if TYPE_CHECKING:
    from tasks.recipe import Phase

Curriculum = Literal["steps", "linear"]
Packing = Literal["concatenate", "best_fit"]


def parse_weights(value: Any) -> float | list[float]:
    """A weight, or one for each point of ``mixture_at``. Raises ValueError for anything else."""
    several = value if isinstance(value, list | tuple) else [value]
    for weight in several:
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise ValueError(f"expected a weight, or a list of weights, got {value!r}")
        if weight != weight or weight in (float("inf"), float("-inf")):
            raise ValueError(f"a weight must be finite, got {value!r}")
    return [float(w) for w in several] if isinstance(value, list | tuple) else float(value)


Weights = Annotated[float | list[float], PlainValidator(parse_weights)]
Place = Annotated[float, Field(ge=0, le=1)] | Count


class Drawing(Section):
    """How phases draw text; shared by them, and any may differ."""

    packing: Packing = Field(
        "concatenate",
        description="best_fit: whole documents a window, cut only where longer than seq_len",
    )
    curriculum: Curriculum = Field(
        "steps", description="between the points of mixture_at: constant, or in a straight line"
    )
    mixture_temperature: float | None = Field(
        None, gt=0,
        description="T: each weight times the source's tokens^(1/T); null: the weights alone",
    )  # fmt: skip
    max_epochs: float = Field(
        100.0, gt=0, description="most passes over one source; above 4 a warning"
    )
    on_exhausted: Literal["error", "reweight"] = Field(
        "error",
        description="a source beyond max_epochs: refuse, or cap it and let the others fill in",
    )


class Mixture(Section):
    """What one phase draws."""

    mixture: dict[Name, Weights] = Field(
        min_length=1, description="source -> weight, or its weights at the points of mixture_at"
    )
    mixture_at: list[Place] | None = Field(
        None, description="points of the phase, as shares of it (0.5) or in tokens (10M)"
    )
    replay: dict[Name, float] = Field(
        default={}, description="earlier phase -> share of the tokens, drawn by its mixture"
    )

    @model_validator(mode="after")
    def _draws(self) -> Self:
        self._check_lengths()
        for place, weights in zip(self.mixture_at or [0], self.mixture_points):
            check_weights(weights, f"mixture at {place:g}" if self.mixture_at else "mixture")
        for phase, share in self.replay.items():
            if not 0 < share < 1:
                raise ValueError(f"replay.{phase} is a share between 0 and 1, got {share:g}")
        if sum(self.replay.values()) >= 1:
            raise ValueError("replay: the shares leave nothing for the phase's own mixture")
        return self

    def _check_lengths(self) -> None:
        places = self.mixture_at
        if places is not None and (not places or places[0] != 0):
            raise ValueError(f"mixture_at begins at 0, the start of the phase, got {places}")
        for name, value in self.mixture.items():
            if isinstance(value, float):
                continue
            if places is None:
                raise ValueError(
                    f"mixture.{name} has {len(value)} weights; mixture_at must say where in the "
                    "phase they hold, as [0, 0.5]"
                )
            if len(value) != len(places):
                raise ValueError(
                    f"mixture.{name} has {len(value)} weights, mixture_at {len(places)} points"
                )

    @property
    def mixture_points(self) -> list[dict[str, float]]:
        """The weights at each point; a source with one weight has it at all of them."""
        return [
            {n: v if isinstance(v, float) else v[point] for n, v in self.mixture.items()}
            for point in range(len(self.mixture_at or [0]))
        ]


def mixture_starts(phase: Phase) -> list[int]:
    """The sample at which each point of a phase's mixture stands, the nearest whole one.

    Raises ValueError where two stand at the same, or one where nothing is left to draw.
    """
    places = phase.mixture_at or [0]
    half = Fraction(1, 2)
    starts = [
        int(Fraction(str(at)) * phase.samples + half)
        if at <= 1
        else int(Fraction(int(at), phase.seq_len) + half)
        for at in places
    ]
    for before, after, at in zip(starts, starts[1:], places[1:]):
        if after <= before:
            raise ValueError(
                f"mixture_at must rise from point to point, by a sample of {phase.seq_len} tokens "
                f"at least, got {places} (at {at:g})"
            )
    if starts[-1] > phase.samples - (phase.curriculum == "steps"):
        raise ValueError(f"mixture_at reaches the end of the phase or beyond it, got {places}")
    return starts


def mixture_shares(phase: Phase) -> dict[str, float]:
    """Each source's share of a phase's tokens by the mixture as it is written: before temperature,
    replay and caps, which need the sources' sizes (the mix has what is drawn in the end)."""
    linear = phase.curriculum == "linear"
    mean = mean_shares(phase.mixture_points, mixture_starts(phase), phase.samples, linear)
    return {name: float(share) for name, share in mean.items()}


def mean_shares(
    weights: Iterable[Mapping[str, float | Fraction]],
    starts: Sequence[int],
    samples: int,
    linear: bool,
) -> dict[str, Fraction]:
    """Each source's share of all samples: the mean over the phase of its share at each moment."""
    shares = []
    for row in weights:
        exact = {n: w if isinstance(w, Fraction) else Fraction(str(w)) for n, w in row.items()}
        total = sum(exact.values())
        shares.append({name: weight / total for name, weight in exact.items()})
    mean = dict.fromkeys(shares[0], Fraction(0))
    for number, start in enumerate(starts):
        last = number + 1 == len(starts)
        stop = samples if last else starts[number + 1]
        until = shares[number] if last or not linear else shares[number + 1]
        for name in mean:
            mean[name] += (shares[number][name] + until[name]) * Fraction(stop - start, 2 * samples)
    return mean
