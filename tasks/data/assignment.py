"""Which split a document goes to: a rule a source, never a list of documents.

A document goes to a made split by the hash of the seed and its cluster (the id of the first
document of it): two runs, two machines and a corpus that has grown all agree, and nothing that is
chained to a document by near duplicates lies on the other side. So a source's plan is two shares,
and the draw of a cluster or two where a small source would otherwise hold out none.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tasks.data.decisions import Decided, Decisions
from tasks.data.documents import Document, count_rows, read_shard, shards
from tasks.errors import BAD_DATA, UserError
from tasks.recipe import HeldOut, Split
from tasks.workspace import Workspace

ENOUGH = 10  # documents; a source with fewer keeps them all for training


class Stretch(NamedTuple):
    """The documents of one cleaned shard; ``first`` is the position of its first one."""

    source: str
    split: Split
    path: str
    first: int
    rows: int


def stretches(workspace: Workspace, sources: Iterable[str]) -> list[Stretch]:
    """Every cleaned shard: sources in order, train, validation, test, then position."""
    found = []
    for source in sources:
        for split, paths in shards(workspace.clean(source).resolve()).items():
            first = 0
            for path in paths:
                found.append(Stretch(source, split, str(path), first, count_rows(path)))
                first += found[-1].rows
    return found


@dataclass(frozen=True)
class Rule:
    """How the training documents of one source are shared out.

    Attributes:
        below: made split -> the draw below which a document goes to it, tried in this order.
        named: draw -> made split, of single clusters.
    """

    below: dict[Split, float] = field(default_factory=dict)
    named: dict[float, Split] = field(default_factory=dict)

    def split_of(self, drawn: float) -> Split:
        if drawn in self.named:
            return self.named[drawn]
        return next((split for split, bound in self.below.items() if drawn < bound), "train")


def bounds(shares: HeldOut, official: Iterable[Split]) -> Rule:
    """The made splits of a source with these official ones: none is made that is there."""
    below: dict[Split, float] = {}
    low = 0.0
    for split, share in (("test", shares.test), ("validation", shares.validation)):
        made: Split = split  # type: ignore[assignment]
        if share and made not in official:
            below[made] = low = low + share
    return Rule(below)


class Tally(NamedTuple):
    """Of the documents that go to one split: how many, and the two with the least draws."""

    documents: int
    least: list[tuple[float, int]]  # (draw, position)


def tally(
    stretch: Stretch, _out: Path, decisions: str, seed: int, rule: Rule
) -> dict[Split, Tally]:
    """Count the documents of one stretch by the split that the rule gives them."""
    decided = _decided(stretch, Path(decisions))
    positions = np.flatnonzero(decided.keep).tolist()
    draws = [(draw(seed, decided.clusters[i]), stretch.first + i) for i in positions]
    found: dict[Split, list[tuple[float, int]]] = {split: [] for split in (*rule.below, "train")}
    for drawn, position in draws:
        found[rule.split_of(drawn)].append((drawn, position))
    return {split: Tally(len(here), sorted(here)[:2]) for split, here in found.items()}


def settled(rule: Rule, tallies: Sequence[dict[Split, Tally]]) -> Rule:
    """The rule of a source with at least one document in each made split.

    Where none is drawn for it, it is the one with the least draw of those that are left; a source
    of fewer than ``ENOUGH`` documents makes no split.
    """
    counts: dict[Split, int] = {}
    least: dict[Split, list[tuple[float, int]]] = {}
    for split in (*rule.below, "train"):
        counts[split] = sum(part[split][0] for part in tallies)
        least[split] = sorted((d, p) for part in tallies for d, p in part[split][1])[:2]
    if sum(counts.values()) < ENOUGH:
        return Rule()
    named: dict[float, Split] = {}
    later = list(counts)
    for split in rule.below:
        later.remove(split)
        left = [(*item, other) for other in later for item in least[other] if item[0] not in named]
        if counts[split] == 0 and left:
            drawn, _, other = min(left)
            named[drawn] = split
            counts[other] -= 1
    return Rule(rule.below, named)


def assigned(
    stretch: Stretch, decisions: Path, seed: int, rule: Rule
) -> Iterator[tuple[int, Document]]:
    """The documents of a stretch that stay, each with its number there and the split it goes to.

    Raises UserError where dedup saw other documents than these.
    """
    decided = _decided(stretch, decisions)
    number = -1
    for number, document in enumerate(read_shard(Path(stretch.path))):
        if number >= len(decided.ids) or document.id != decided.ids[number]:
            raise stale(stretch.source)
        if not decided.keep[number]:
            continue
        if stretch.split == "train" and rule.below:
            goes_to = rule.split_of(draw(seed, decided.clusters[number]))
            document = replace(document, split=goes_to)
        yield number, document
    if number + 1 != len(decided.ids):
        raise stale(stretch.source)


def _decided(stretch: Stretch, folder: Path) -> Decided:
    stamp = (folder / "decisions.parquet").stat().st_mtime_ns
    opened = _opened(folder, stamp, threading.get_ident())  # an open file is for one thread
    return opened.read(stretch[:2], stretch.first, stretch.first + stretch.rows)


@lru_cache(maxsize=8)
def _opened(folder: Path, _stamp: int, _thread: int) -> Decisions:
    """A footer has a line for each shard: read once a worker, not once a shard."""
    return Decisions(folder)


def stale(source: str) -> UserError:
    return UserError(
        f"data/clean/{source} is not what data/dedup was made from",
        hint="run: python -m tasks.data.dedup",
        exit_code=BAD_DATA,
    )


def draw(seed: int, cluster: str) -> float:
    """A number in [0, 1) for a cluster, from its name and the seed alone."""
    digest = hashlib.sha256(f"{seed}:{cluster}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48
