"""Stage ``dedup``: which documents are duplicates, within and across sources, and which one stays.

    data/clean/*/ --SHA-256 of the normalised text--> exact duplicates
                  --MinHash bands, then true Jaccard similarity--> near duplicates
                  --> clusters --> data/dedup/: decisions.parquet, removed.jsonl, ledger.json

Texts are read, never held: between readings a document is a 16-byte digest and 8 bytes a band. Of
each cluster the first document stays, in this order: official test splits, official validation
splits, training splits; then the order of the sources in the recipe; then position. So a training
document that duplicates held-out text goes: that is how leaks are removed.

Duplicates are joined in chains: a removed document can be less similar to the one that stays than
the threshold, which its ``jaccard`` shows.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks import stage
from tasks.data.clean import summary
from tasks.data.cluster import Clusters, groups
from tasks.data.decisions import write_decisions
from tasks.data.documents import Document, read
from tasks.data.minhash import band_keys, candidate_chance, signatures
from tasks.data.near import join_near
from tasks.data.shingles import Hashes, shingles
from tasks.files import atomic_folder, write_text
from tasks.ledger import Ledger, write_ledgers
from tasks.progress import progress
from tasks.recipe import Dedup, Recipe, Split
from tasks.workers import batches, map_ordered
from tasks.workspace import Workspace

PRIORITY: tuple[Split, ...] = ("test", "validation", "train")
REMOVED_SHOWN = 200  # removed documents a source and reason in removed.jsonl, for people to look at
SHOWN_CHARACTERS = 200
LOW_CHANCE = 0.8  # below it, the bands miss too many of the pairs that the threshold asks for


@dataclass(frozen=True)
class Corpus:
    """Every cleaned document, numbered from 0 in order of priority."""

    workspace: Workspace
    sources: list[str]

    def documents(self) -> Iterator[Document]:
        for split in PRIORITY:
            for source in self.sources:
                yield from read(self.workspace.clean(source), split)

    def texts(self) -> Iterator[tuple[int, str]]:
        return ((number, document.text) for number, document in enumerate(self.documents()))


@dataclass
class Fingerprints:
    """What is kept of the documents between readings; row i is document i."""

    digests: npt.NDArray[np.uint64]  # (documents, 2): 128 bits of SHA-256 of the normalised text
    bands: Hashes  # (documents, bands)
    ids: list[str]
    places: list[tuple[str, Split, int]]  # source, split, position


@dataclass
class Outcome:
    """What becomes of the documents; item i is about document i."""

    roots: npt.NDArray[np.int64]  # the document of its cluster that stays
    reasons: list[str]  # "exact", "near", or "" for one that stays
    jaccards: list[float | None]  # similarity with the one that stays
    notes: dict[str, Any]  # for the ledger


def dedup(workspace: Workspace, recipe: Recipe) -> None:
    """Find exact and near duplicates over all sources and decide which documents stay.

    Writes data/dedup/: decisions.parquet (one row a document), removed.jsonl (removed documents
    beside the ones that stay, to look at) and ledger.json.
    """
    corpus = Corpus(workspace, list(recipe.sources))
    prints = _fingerprints(corpus, recipe.dedup)
    outcome = _decide(corpus, prints, recipe.dedup)
    with atomic_folder(workspace.dedup) as folder:
        _write_table(folder / "decisions.parquet", prints, outcome)
        ledgers = _report(folder / "removed.jsonl", corpus, prints, outcome)
        write_ledgers(folder / "ledger.json", ledgers)
    for ledger in ledgers:
        print(f"    {ledger.source}: {summary(ledger)} ({ledger.notes['leaks']:,} leaks)")
    chance = outcome.notes.get("chance_at_threshold", 1.0)
    if chance < LOW_CHANCE:
        print(
            f"    warning: {recipe.dedup.bands} bands of {recipe.dedup.rows} rows find only "
            f"{100 * chance:.0f} % of the pairs at dedup.threshold {recipe.dedup.threshold}; "
            "give it more bands or fewer rows"
        )


def _decide(corpus: Corpus, prints: Fingerprints, settings: Dedup) -> Outcome:
    clusters = Clusters(len(prints.ids))
    if settings.exact:
        for members in groups(prints.digests):
            for member in members[1:].tolist():
                clusters.join(int(members[0]), member)
    exact = clusters.roots().tolist()
    similarity: dict[int, float] = {}
    notes: dict[str, Any] = {}
    if settings.near:
        store, counts = join_near(
            clusters,
            prints.bands,
            corpus.texts(),
            ngram=settings.ngram,
            threshold=settings.threshold,
            scratch=corpus.workspace.dedup.parent,
        )
        pairs = zip(exact, clusters.roots().tolist(), strict=True)
        similarity = {
            first: store.similarity(first, root) for first, root in pairs if first != root
        }
        chance = candidate_chance(settings.threshold, settings.bands, settings.rows)
        notes = {**counts, "chance_at_threshold": round(chance, 4)}
    roots = clusters.roots()
    reasons: list[str] = []
    jaccards: list[float | None] = []
    for number, (first, root) in enumerate(zip(exact, roots.tolist(), strict=True)):
        reasons.append("" if root == number else "exact" if root == first else "near")
        jaccards.append(None if root == number else similarity.get(first, 1.0))
    return Outcome(roots, reasons, jaccards, notes)


def _fingerprints(corpus: Corpus, settings: Dedup) -> Fingerprints:
    digests, bands = [np.zeros((0, 2), np.uint64)], [np.zeros((0, settings.bands), np.uint64)]
    ids: list[str] = []
    places: list[tuple[str, Split, int]] = []
    positions: Counter[tuple[str, Split]] = Counter()
    grouped = batches(corpus.documents(), lambda document: document.bytes)
    with progress(None, "documents", "fingerprints") as shown:
        for batch, (digest, keys) in map_ordered(partial(fingerprint, settings=settings), grouped):
            digests.append(digest)
            bands.append(keys)
            for document in batch:
                place = (document.source, document.split)
                ids.append(document.id)
                places.append((*place, positions[place]))
                positions[place] += 1
            shown.advance(len(batch))
    return Fingerprints(np.concatenate(digests), np.concatenate(bands), ids, places)


def fingerprint(
    documents: list[Document], settings: Dedup
) -> tuple[npt.NDArray[np.uint64], Hashes]:
    """Digests (documents, 2) and band keys (documents, bands) of a batch."""
    digests = b"".join(exact_digest(document.text) for document in documents)
    found = shingles([document.text for document in documents], settings.ngram)
    signature = signatures(found, settings.bands * settings.rows)
    keys = band_keys(signature, settings.bands, settings.rows)
    wordless = np.flatnonzero(np.diff(found.bounds) == 0)  # nothing to compare: each is alone
    keys[wordless] = np.frombuffer(digests, np.uint64).reshape(-1, 2)[wordless, :1]
    return np.frombuffer(digests, np.uint64).reshape(-1, 2), keys


def exact_digest(text: str) -> bytes:
    """First 16 bytes of the SHA-256 of the text in lower case with single spaces for white space.

    Punctuation counts: ``x + y`` and ``x - y`` are two texts. Texts that differ in nothing else
    have the same words, so the near step, whose shingles are of words, takes the longer ones.
    """
    return hashlib.sha256(" ".join(text.lower().split()).encode()).digest()[:16]


def _write_table(path: Path, prints: Fingerprints, outcome: Outcome) -> None:
    sources, splits, positions = zip(*prints.places, strict=True)
    table = pa.table(
        {
            "source": sources,
            "split": splits,
            "position": positions,
            "id": prints.ids,
            "cluster": outcome.roots,
            "keep": [not reason for reason in outcome.reasons],
            "reason": outcome.reasons,
            "kept_id": [prints.ids[root] for root in outcome.roots],
            "jaccard": pa.array(outcome.jaccards, pa.float64()),
        }
    )
    write_decisions(path, table)


def _report(path: Path, corpus: Corpus, prints: Fingerprints, outcome: Outcome) -> list[Ledger]:
    """Read once more: book every document, and write removed ones beside those that stay."""
    ledgers = {
        source: Ledger("dedup", source, notes={"leaks": 0, **outcome.notes})
        for source in corpus.sources
    }
    shown = _shown(prints, outcome)
    wanted = {number for removed in shown for number in (removed, int(outcome.roots[removed]))}
    openings: dict[int, str] = {}
    for number, document in enumerate(corpus.documents()):
        ledger, reason = ledgers[document.source], outcome.reasons[number]
        if number in wanted:
            openings[number] = document.text[:SHOWN_CHARACTERS]
        if not reason:
            ledger.keep(document.bytes)
            continue
        ledger.drop(reason, document.text)
        held_out = prints.places[outcome.roots[number]][1] != "train"
        ledger.notes["leaks"] += int(held_out and document.split == "train")
    lines = []
    for removed in shown:
        root = int(outcome.roots[removed])
        line = {
            **_place(prints, removed),
            "reason": outcome.reasons[removed],
            "jaccard": outcome.jaccards[removed],
            "text": openings[removed],
            "kept": {**_place(prints, root), "text": openings[root]},
        }
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))
    return list(ledgers.values())


def _shown(prints: Fingerprints, outcome: Outcome) -> list[int]:
    """The first removed documents of each source, split and reason."""
    counted: Counter[tuple[str, str, str]] = Counter()
    chosen = []
    for number, reason in enumerate(outcome.reasons):
        if reason:
            source, split, _ = prints.places[number]
            counted[source, split, reason] += 1
            if counted[source, split, reason] <= REMOVED_SHOWN:
                chosen.append(number)
    return chosen


def _place(prints: Fingerprints, number: int) -> dict[str, Any]:
    return dict(zip(("source", "split", "position"), prints.places[number], strict=True))


if __name__ == "__main__":
    stage.main(dedup)
