"""Stage ``dedup``: which documents are duplicates, within and across sources, and which one stays.

    data/clean/*/ --SHA-256 of the normalised text--> exact duplicates
                  --MinHash bands, then true Jaccard similarity--> near duplicates
                  --> data/dedup/: decisions.parquet, removed.jsonl, ledger.json
    those that stay --repeated passages, where dedup.span_words asks--> repeated.parquet

Of duplicates the first document stays, in this order: official test splits, official validation
splits, training splits; then the order of the sources in the recipe; then position. So a training
document that duplicates held-out text goes: that is how leaks are removed.

A document goes only if it is similar to one that stays, and ``jaccard`` says how much. Documents
that stay may lie in one cluster all the same, where a removed one is similar to each of them: a
split is made by clusters, so such documents are never torn apart, while a training document of
a cluster that holds official held-out text stays in training, for it is under the threshold to all
of that text that stays.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tasks import stage
from tasks.data.bands import flush, mapped, slices
from tasks.data.clean import summary
from tasks.data.cluster import Indices
from tasks.data.decisions import GROUP_ROWS, write_decisions
from tasks.data.documents import shards
from tasks.data.duplicates import EXACT, NEAR, REASONS, STAYS, Verdicts, find_duplicates
from tasks.data.repeats import FILE, write_repeats
from tasks.data.spans import find_repeats
from tasks.data.texts import openings, shard_part
from tasks.files import atomic_folder, write_text
from tasks.ledger import EXAMPLE_CHARACTERS, EXAMPLES_PER_REASON, Count, Ledger, write_ledgers
from tasks.recipe import Dedup, Recipe, Split
from tasks.shardwise import identity, work_folder
from tasks.workspace import Workspace

PRIORITY: tuple[Split, ...] = ("test", "validation", "train")
REMOVED_SHOWN = 200  # removed documents a place and reason in removed.jsonl, for people to look at
LOW_CHANCE = 0.8  # below it, the bands miss too many of the pairs that the threshold asks for


@dataclass(frozen=True)
class Place:
    """The documents of one split of one source: numbers ``first`` to ``stop`` of the corpus."""

    source: str
    split: Split
    first: int
    stop: int

    def of(self, number: int) -> dict[str, Any]:
        """Where a document of this place stands."""
        return {"source": self.source, "split": self.split, "position": number - self.first}


def dedup(workspace: Workspace, recipe: Recipe) -> None:
    """Find exact and near duplicates over all sources and decide which documents stay.

    Writes data/dedup/: decisions.parquet (one row a document), removed.jsonl (removed documents
    beside the ones that stay, to look at), ledger.json and, with ``dedup.span_words``,
    repeated.parquet (passages for the split stage to cut).
    """
    files = list(_files(workspace, recipe))
    paths = [path for _, _, path in files]
    with work_folder(workspace.work("dedup")) as work:
        verdicts = find_duplicates(
            [shard_part(path) for path in paths],
            [path.stat().st_size for path in paths],
            recipe.dedup,
            work,
        )
        places = list(_places(files, verdicts))
        shown = [number for place in places for number in _shown(place, verdicts)]
        wanted = sorted({n for number in shown for n in (number, int(verdicts.kept[number]))})
        texts = _openings(wanted, paths, verdicts)
        ledgers = [_ledger(source, places, verdicts, shown, texts) for source in recipe.sources]
        with atomic_folder(workspace.dedup) as folder:
            write_decisions(folder / "decisions.parquet", _tables(places, verdicts))
            _write_removed(folder / "removed.jsonl", places, verdicts, shown, texts)
            write_ledgers(folder / "ledger.json", ledgers)
            if recipe.dedup.span_words:
                _write_repeats(folder / FILE, files, places, verdicts, recipe.dedup, work)
    for ledger in ledgers:
        print(f"    {ledger.source}: {summary(ledger)} ({ledger.notes['leaks']:,} leaks)")
    chance = verdicts.notes.get("chance_at_threshold", 1.0)
    if chance < LOW_CHANCE:
        print(
            f"    warning: {recipe.dedup.bands} bands of {recipe.dedup.rows} rows find only "
            f"{100 * chance:.0f} % of the pairs at dedup.threshold {recipe.dedup.threshold}; "
            "leave both out, and they follow from the threshold"
        )


def _files(workspace: Workspace, recipe: Recipe) -> Iterator[tuple[str, Split, Path]]:
    """Every shard of cleaned documents, in order of priority."""
    there = {source: shards(workspace.clean(source).resolve()) for source in recipe.sources}
    for split in PRIORITY:
        for source in recipe.sources:
            for path in there[source].get(split, []):
                yield source, split, path


def _places(files: list[tuple[str, Split, Path]], verdicts: Verdicts) -> Iterator[Place]:
    numbered = zip(files, verdicts.parts(), strict=True)
    for (source, split), group in groupby(numbered, lambda item: item[0][:2]):
        bounds = [bounds for _, bounds in group]
        yield Place(source, split, bounds[0][0], bounds[-1][1])


def _tables(places: list[Place], verdicts: Verdicts) -> Iterator[pa.Table]:
    """The decisions, some rows of one place at a time."""
    for place in places:
        for start in range(place.first, place.stop, GROUP_ROWS):
            numbers = np.arange(start, min(place.stop, start + GROUP_ROWS))
            kept, cluster = verdicts.kept[numbers], verdicts.cluster[numbers]
            reason = verdicts.reason[numbers]
            yield pa.table(
                {
                    "source": [place.source] * len(numbers),
                    "split": [place.split] * len(numbers),
                    "position": numbers - place.first,
                    "id": verdicts.ids(numbers),
                    "cluster": cluster,
                    "cluster_id": verdicts.ids(cluster),
                    "keep": reason == STAYS,
                    "reason": np.array(REASONS)[reason],
                    "kept_id": verdicts.ids(kept),
                    "jaccard": pa.array(verdicts.jaccard[numbers], from_pandas=True),
                }
            )


def _write_repeats(
    path: Path,
    files: list[tuple[str, Split, Path]],
    places: list[Place],
    verdicts: Verdicts,
    settings: Dedup,
    work: Path,
) -> None:
    """Find the passages that documents which stay repeat, and write those of training text."""
    assert settings.span_words
    keep = mapped(work / "keep.npy", len(verdicts.reason), bool)
    for piece in slices(len(keep)):
        keep[piece] = verdicts.reason[piece] == STAYS
    flush(keep)
    found = find_repeats(
        [shard_part(file) for _, _, file in files],
        verdicts.counts,
        [file.stat().st_size for _, _, file in files],
        words=settings.span_words,
        train=min((p.first for p in places if p.split == "train"), default=len(keep)),
        keep=work / "keep.npy",
        work=work / "spans",
        key=[identity(file for _, _, file in files), settings.model_dump()],
    )
    first = {(place.source, place.split): place.first for place in places}
    write_repeats(
        path,
        (
            ((source, split, first[source, split]), rows)
            for number, rows in found
            for source, split, _ in [files[number]]
        ),
    )


def _shown(place: Place, verdicts: Verdicts) -> Iterator[int]:
    """The first removed documents of a place, for each reason, in order."""
    found: list[Indices] = []
    for reason in (EXACT, NEAR):
        left = REMOVED_SHOWN
        for start in range(place.first, place.stop, GROUP_ROWS):
            own = verdicts.reason[start : min(place.stop, start + GROUP_ROWS)]
            found.append(np.flatnonzero(own == reason)[:left] + start)
            left -= len(found[-1])
    yield from np.sort(np.concatenate(found)).tolist() if found else []


def _openings(wanted: list[int], paths: list[Path], verdicts: Verdicts) -> dict[int, str]:
    """The first characters of some documents."""
    texts: dict[int, str] = {}
    for path, (first, stop) in zip(paths, verdicts.parts(), strict=True):
        own = [number for number in wanted if first <= number < stop]
        if own:
            rows = [number - first for number in own]
            texts |= zip(own, openings(path, rows, EXAMPLE_CHARACTERS), strict=True)
    return texts


def _ledger(
    source: str, places: list[Place], verdicts: Verdicts, shown: list[int], texts: dict[int, str]
) -> Ledger:
    """Book all documents of a source."""
    ledger = Ledger("dedup", source, notes={"leaks": 0, "beside_held_out": 0, **verdicts.notes})
    training = min((p.first for p in places if p.split == "train"), default=len(verdicts.kept))
    for place in (place for place in places if place.source == source):
        for start in range(place.first, place.stop, GROUP_ROWS):
            own = slice(start, min(place.stop, start + GROUP_ROWS))
            reason, sizes = verdicts.reason[own], verdicts.sizes[own]
            ledger.taken.add(int(sizes.sum()), len(sizes))
            for number, name in enumerate(REASONS):
                booked = sizes[reason == number]
                count = ledger.dropped.setdefault(name, Count()) if name else ledger.kept
                count.add(int(booked.sum()), len(booked))
            if place.split == "train":
                leaks = (reason != STAYS) & (verdicts.kept[own] < training)
                beside = (reason == STAYS) & (verdicts.cluster[own] < training)
                ledger.notes["leaks"] += int(leaks.sum())
                ledger.notes["beside_held_out"] += int(beside.sum())
        for number in shown:
            if place.first <= number < place.stop:
                examples = ledger.examples.setdefault(REASONS[verdicts.reason[number]], [])
                if len(examples) < EXAMPLES_PER_REASON:
                    examples.append(texts[number])
    ledger.dropped = {name: count for name, count in ledger.dropped.items() if count.documents}
    return ledger


def _write_removed(
    path: Path,
    places: list[Place],
    verdicts: Verdicts,
    shown: list[int],
    texts: dict[int, str],
) -> None:
    def place_of(number: int) -> dict[str, Any]:
        return next(p.of(number) for p in places if p.first <= number < p.stop)

    lines = []
    for number in shown:
        kept = int(verdicts.kept[number])
        line = {
            **place_of(number),
            "reason": REASONS[verdicts.reason[number]],
            "jaccard": float(verdicts.jaccard[number]),
            "text": texts[number],
            "kept": {**place_of(kept), "text": texts[kept]},
        }
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


if __name__ == "__main__":
    stage.main(dedup)
