"""The engine of dedup: which of any texts are duplicates, and which one stays. Of any size.

    parts --fingerprints--> runs --digests--> exact duplicates
                                 --bands--> candidates --shingle sets, true Jaccard-->
                                            those that go, those that stay, clusters --> Verdicts

The order of the parts is the priority: of two duplicates the first stays. An exact duplicate has
the same SHA-256 of its normalised text. A near duplicate goes only if its Jaccard similarity with a
document that stays reaches the threshold; no two documents that stay, of those that share a band,
reach it (but for families of boilerplate: see ``MAX_COMPARED`` of greedy.py).

Nothing is held that grows with the corpus: what is known of the documents lies in files that are
mapped into memory. Every step is done in parts by workers, and a part that was finished is not done
again after a crash. The outcome depends neither on their number nor on that of the parts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.data.bands import (
    band_buckets,
    first_of_equals,
    load,
    mapped,
    slices,
    write_runs,
)
from tasks.data.cluster import Indices, find
from tasks.data.fingerprints import Run, Sketch, all_runs, fingerprint_part
from tasks.data.greedy import Outcome, bridge, gather, keep_first
from tasks.data.minhash import bands_for, candidate_chance
from tasks.data.near import Verifier, write_candidates, write_sets
from tasks.data.texts import Part
from tasks.recipe import Dedup
from tasks.shardwise import identity, map_parts

VERSION = 2  # of the fingerprints: unfinished work of another version is not gone on with
STAYS, EXACT, NEAR = 0, 1, 2
REASONS = ("", "exact", "near")


@dataclass(frozen=True)
class Verdicts:
    """What becomes of the documents; item i is about document i, mapped into memory.

    Attributes:
        kept: the document that stays; i itself where that stays.
        cluster: the first document of its cluster, the unit that a split leaves whole.
        reason: index into ``REASONS``.
        jaccard: similarity with ``kept``; NaN for a document that stays.
        sizes: UTF-8 bytes.
        counts: documents of each part.
        notes: figures for the ledger.
    """

    kept: Indices
    cluster: Indices
    reason: npt.NDArray[np.uint8]
    jaccard: npt.NDArray[np.float64]
    sizes: npt.NDArray[np.int64]
    counts: list[int]
    notes: dict[str, Any]
    _ids: npt.NDArray[np.uint8]

    def ids(self, documents: Indices) -> list[str]:
        """32 hex digits of the SHA-256 of the text of each."""
        raw = self._ids[documents].tobytes().hex()
        return [raw[i : i + 32] for i in range(0, len(raw), 32)]

    def parts(self) -> Iterator[tuple[int, int]]:
        """First document, and the one behind the last, of each part."""
        first = 0
        for count in self.counts:
            yield first, first + count
            first += count


def sketch_of(settings: Dedup) -> Sketch:
    """What is made of each document; bands and rows, where left open, follow from the threshold."""
    if not settings.near:
        return Sketch(settings.exact, settings.ngram, 0, 0)
    bands, rows = settings.bands, settings.rows
    if bands is None or rows is None:
        bands, rows = bands_for(settings.threshold)
    return Sketch(settings.exact, settings.ngram, bands, rows)


def find_duplicates(
    parts: Sequence[Part], sizes: Sequence[int], settings: Dedup, work: Path
) -> Verdicts:
    """Find the duplicates among all texts of the parts.

    Args:
        parts: in order of priority.
        sizes: bytes of each, for progress.
        settings: of the recipe.
        work: a ``work_folder``; what is unfinished there is gone on with.
    """
    sketch = sketch_of(settings)
    files = identity(sorted({Path(part["path"]) for part in parts}))
    key: Any = [VERSION, files, list(sketch)]
    print_part = partial(fingerprint_part, sketch=sketch)
    counts = map_parts(print_part, parts, work / "prints", key, title="fingerprints", sizes=sizes)
    runs = all_runs(work / "prints", counts)
    write_runs(work / "runs.json", runs)
    key = [key, settings.exact, json.loads((work / "runs.json").read_text())]
    verdicts = _blank(runs, [sum(of_part) for of_part in counts], work)
    first = first_of_equals(runs, work, key) if settings.exact else None
    if settings.near:
        key = [key, settings.threshold]
        candidates, outcome, figures = _near(
            parts, sizes, verdicts.counts, runs, first, settings, sketch, work, key
        )
        verdicts.notes.update(figures)
        _book_near(verdicts, candidates, outcome)
    if first:
        _book_exact(verdicts, load(first))
    return verdicts


def _near(
    parts: Sequence[Part],
    sizes: Sequence[int],
    counts: Sequence[int],
    runs: Sequence[Run],
    first: Path | None,
    settings: Dedup,
    sketch: Sketch,
    work: Path,
    key: Any,
) -> tuple[Indices, Outcome, dict[str, Any]]:
    folders = band_buckets(runs, sketch.bands, first, work, key)
    candidates = write_candidates(folders, sum(counts), work)
    sets = write_sets(parts, counts, sizes, settings.ngram, work, key)
    count = len(candidates)
    outcome = Outcome(
        kept=_count_up(mapped(work / "near_kept.npy", count, np.int64)),
        jaccard=mapped(work / "near_jaccard.npy", count, np.float64),
        parent=_count_up(mapped(work / "near_parent.npy", count, np.int64)),
    )
    chunks = gather(folders, candidates, work)
    compare = Verifier(sets, settings.threshold, work, key)
    blocked = mapped(work / "blocked.npy", count, bool)
    rounds = keep_first(chunks, outcome, blocked, compare, settings.threshold)
    bridge(chunks, outcome, compare, settings.threshold)
    chance = candidate_chance(settings.threshold, sketch.bands, sketch.rows)
    figures = {
        "bands": sketch.bands,
        "rows": sketch.rows,
        "chance_at_threshold": round(chance, 4),
        "candidates": count,
        "pairs_compared": compare.compared,
        "rounds": rounds,
    }
    return candidates, outcome, figures


def _blank(runs: Sequence[Run], counts: list[int], work: Path) -> Verdicts:
    """Every document stays; ids and sizes of all runs in one row."""
    total = sum(counts)
    ids = mapped(work / "ids.npy", 16 * total, np.uint8).reshape(-1, 16)
    sizes = mapped(work / "sizes.npy", total, np.int64)
    for run in runs:
        own = slice(run.first, run.first + run.documents)
        ids[own], sizes[own] = run.array("ids"), run.array("sizes")
    jaccard = mapped(work / "jaccard.npy", total, np.float64)
    for piece in slices(total):
        jaccard[piece] = np.nan
    return Verdicts(
        kept=_count_up(mapped(work / "kept.npy", total, np.int64)),
        cluster=_count_up(mapped(work / "cluster.npy", total, np.int64)),
        reason=mapped(work / "reason.npy", total, np.uint8),
        jaccard=jaccard,
        sizes=sizes,
        counts=counts,
        notes={},
        _ids=ids,
    )


def _count_up(array: Indices) -> Indices:
    for piece in slices(len(array)):
        array[piece] = np.arange(piece.start, piece.stop)
    return array


def _book_near(verdicts: Verdicts, candidates: Indices, outcome: Outcome) -> None:
    for piece in slices(len(candidates)):
        documents = candidates[piece]
        kept = outcome.kept[piece]
        gone = kept != np.arange(piece.start, piece.stop)
        verdicts.kept[documents] = candidates[kept]
        roots = find(outcome.parent, np.arange(piece.start, piece.stop))
        verdicts.cluster[documents] = candidates[roots]
        verdicts.reason[documents[gone]] = NEAR
        verdicts.jaccard[documents[gone]] = outcome.jaccard[piece][gone]


def _book_exact(verdicts: Verdicts, first: Indices) -> None:
    """An exact duplicate shares the fate of the first of its equals; that is booked already."""
    for piece in slices(len(first)):
        documents = np.arange(piece.start, piece.stop)
        same = first[piece] != documents
        documents, equal = documents[same], first[piece][same]
        stays = verdicts.reason[equal] == STAYS
        verdicts.kept[documents] = verdicts.kept[equal]
        verdicts.cluster[documents] = verdicts.cluster[equal]
        verdicts.reason[documents] = np.where(stays, EXACT, verdicts.reason[equal])
        verdicts.jaccard[documents] = np.where(stays, 1.0, verdicts.jaccard[equal])
