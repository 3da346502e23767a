"""The few figures of a phase that one compares runs by: what `dvc metrics` and `dvc exp show` list.

    evaluation/<phase>.json, every set, weights and figure -> evaluation/<phase>.bits_per_byte.json

The file names the phase and the unit, its keys the set and the weights, so that DVC's columns read
``evaluation/phase2.bits_per_byte.json:books/test.ema``.
"""

from __future__ import annotations

from collections.abc import Mapping

Headline = dict[str, dict[str, float]]  # set -> weights -> bits per byte


def headline(figures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Headline:
    """Bits per byte of each test set (validation, where there is no test set at all).

    Of the EMA weights, or of the raw ones where a phase keeps no average.
    """
    tests = {name: by_weights for name, by_weights in figures.items() if name.endswith("/test")}
    found: Headline = {}
    for name, by_weights in (tests or figures).items():
        weights = "ema" if "ema" in by_weights else "raw"
        found[name] = {weights: by_weights[weights]["bits_per_byte"]}
    return found
