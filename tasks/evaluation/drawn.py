"""What a phase has learnt from: the stretches of the training shards that it drew, each token once.

    data/mix/<phase> and its parents', up to the sample that the weights have seen
        -> windows drawn -> stretches of each source, merged where they touch or overlap

A source that is passed over again gives nothing new, so the first pass alone is taken. Nothing was
recorded while training: the order is arithmetic (tasks/tokens/order.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.files import read_json
from tasks.recipe import Recipe
from tasks.tokens.arrays import Ints
from tasks.tokens.mixture import load_mix
from tasks.tokens.shards import TokenSplit
from tasks.tokens.streams import Stream, open_stream
from tasks.workspace import Workspace

_BLOCK = 65_536  # samples whose order is worked out at once


@dataclass(frozen=True, eq=False)
class Drawn:
    """The part of one source that was drawn: tokens ``starts[i]`` to ``stops[i]``, in order."""

    source: str
    split: TokenSplit
    starts: Ints
    stops: Ints

    @property
    def tokens(self) -> int:
        return int((self.stops - self.starts).sum())

    def read(self, most: int | None = None, overlap: int = 0) -> Iterator[npt.NDArray[Any]]:
        """Each stretch, whole or in parts of at most ``most`` tokens beside ``overlap`` more, which
        are the first of the next part."""
        for start, stop in zip(self.starts.tolist(), self.stops.tolist(), strict=True):
            for first in range(start, stop, most or stop - start):
                yield self.split.read(first, min(first + (most or stop) + overlap, stop))


def drawn(
    workspace: Workspace, recipe: Recipe, phase: str, most_tokens: int | None = None
) -> list[Drawn]:
    """The targets that ``phase`` and the phases before it were trained on, source by source.

    Args:
        most_tokens: stop after so many, in the order in which they were drawn: the phase's first,
            then its parent's. A part of a phase has the phase's mixture.

    Raises UserError where a mix, a shard or a checkpoint is missing or not the one that was used.
    """
    found: dict[str, list[tuple[Ints, Ints]]] = {}
    splits: dict[str, TokenSplit] = {}
    left = most_tokens
    for name in (phase, *recipe.parents(phase)):
        for stream, spans in _windows(workspace, name, left):
            splits.setdefault(stream.name, stream.split)
            found.setdefault(stream.name, []).append(spans)
            if left is not None:
                left -= int((spans[1] - spans[0]).sum())
    return [
        Drawn(name, splits[name], *merge(*map(np.concatenate, zip(*found[name], strict=True))))
        for name in recipe.sources
        if name in found
    ]


def merge(starts: Ints, stops: Ints) -> tuple[Ints, Ints]:
    """The union of stretches, as stretches in order that do not touch."""
    if not len(starts):
        return starts, stops
    order = np.argsort(starts, kind="stable")
    starts, reach = starts[order], np.maximum.accumulate(stops[order])
    first = np.concatenate([[True], starts[1:] > reach[:-1]])
    return starts[first], reach[np.concatenate([np.flatnonzero(first)[1:] - 1, [-1]])]


def _windows(
    workspace: Workspace, phase: str, most_tokens: int | None
) -> Iterator[tuple[Stream, tuple[Ints, Ints]]]:
    """A phase's streams, each with the stretches that are its windows of the first pass."""
    mix = load_mix(workspace.mix(phase))
    plans = workspace.mix(phase).parent
    streams = [
        open_stream(workspace.tokens(source.name), plans, mix, source, verify=False)
        for source in mix.sources
    ]
    passes = np.array([stream.windows for stream in streams])
    samples = int(read_json(workspace.checkpoint(phase) / "state.json")["samples"])
    left = samples if most_tokens is None else -(-most_tokens // mix.seq_len)
    interleaving = mix.interleaving
    for first in range(0, samples, _BLOCK):
        source, nth = interleaving.locate(np.arange(first, min(first + _BLOCK, samples)))
        new = np.flatnonzero(nth < passes[source])[: max(left, 0)]
        left -= len(new)
        for number, stream in enumerate(streams):
            here = new[source[new] == number]
            if here.size:
                yield stream, stream.targets(stream.place(nth[here]).address)
