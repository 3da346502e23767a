"""Decontamination: no training text repeats a run of n words of a held-out text.

A document that is a duplicate of a held-out one went before; what remains are passages. As in
GPT-3, what stands around a shared run is cut from the training document and the rest stays (there
200 characters on each side, here the sentences that the run touches); a document that would lose
most of itself goes. Dropping each such document whole would cost 19 % of the demo's text and 88 %
of a source of long LaTeX documents, for a few words each; cutting costs 6 % and 1 %.

A run that stands in more than ten training documents is no leak but a phrase of its trade (a
licence, ``axis : int or None, optional``), and is left alone, as in GPT-3. This holds because
duplicates are gone: ten copies of one leaked passage are one cluster.

Brown et al. 2020, https://arxiv.org/abs/2005.14165, appendix C
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tasks.data.characters import tidy
from tasks.data.documents import Document
from tasks.data.shingles import Hashes, shingles
from tasks.ledger import Ledger
from tasks.workers import batches, map_ordered

COMMON = 10  # training documents; a run in more of them is a common phrase
MOST = 0.5  # of a document's characters; one that would lose more goes whole
RUNS_SHOWN = 20  # of a source, in its ledger
_TABLE_SHIFT = np.uint64(40)
_WORD = re.compile(r"[^\W_]+")
# where a text may be cut: at blank lines, after a line too long to be one of a wrapped
# paragraph, after sentences
_UNIT_END = re.compile(r"\n\s*\n|(?<=[^\n]{100})\n|(?<=[.!?。！？])[\"')\]”’»]*\s+")
Indices = npt.NDArray[np.int64]


class HeldOutRuns(NamedTuple):
    """Every run of n words of the held-out documents, by hash."""

    hashes: Hashes  # (runs,), sorted, each once
    owners: npt.NDArray[np.int64]  # (runs,), index into ``sets`` of the first set it stands in
    sets: list[str]  # "<source>/<split>"


class Cut(NamedTuple):
    """A training document without what it shares with held-out text."""

    text: str | None  # None: it goes whole
    run: str  # the first shared run, in words
    found_in: str  # the held-out set of that run


def held_out_runs(documents: Iterable[Document], n: int) -> HeldOutRuns:
    """The runs of ``n`` words of held-out documents; a shorter document is one run as a whole."""
    sets: dict[str, int] = {}
    hashes, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for batch in batches(documents, lambda document: document.bytes):
        found = shingles([document.text for document in batch], n)
        names = [sets.setdefault(f"{d.source}/{d.split}", len(sets)) for d in batch]
        hashes.append(found.hashes)
        owners.append(np.repeat(np.array(names, np.int64), np.diff(found.bounds)))
    unique, first = np.unique(np.concatenate(hashes), return_index=True)
    return HeldOutRuns(unique, np.concatenate(owners)[first], list(sets))


def shared_runs(
    documents: Iterable[Document], runs: HeldOutRuns, n: int, scratch: Path
) -> dict[int, Indices]:
    """For each document that shares runs with held-out text: which ones.

    Args:
        documents: training documents; they are numbered from 0 as they come.
        runs: of the held-out documents.
        n: words a run.
        scratch: a folder; for a while the runs lie in a file there that all processes map.

    Returns:
        number -> ascending indices into ``runs.hashes``, of those runs alone that are not common.
    """
    if not runs.hashes.size:
        return {}
    path = scratch / ".runs.npy"
    np.save(path, runs.hashes, allow_pickle=False)
    found: dict[int, Indices] = {}
    number = 0
    grouped = batches(documents, lambda document: document.bytes)
    for batch, matches in map_ordered(partial(_find, path=path, n=n), grouped):
        found |= {number + i: match for i, match in enumerate(matches) if match.size}
        number += len(batch)
    path.unlink()
    matched = np.concatenate([np.zeros(0, np.int64), *found.values()])
    common = np.bincount(matched, minlength=len(runs.hashes)) > COMMON
    rare = {number: match[~common[match]] for number, match in found.items()}
    return {number: match for number, match in rare.items() if match.size}


def _find(documents: list[Document], path: Path, n: int) -> list[Indices]:
    runs, table = _load(path)
    found = shingles([document.text for document in documents], n)
    maybe = np.flatnonzero(table[found.hashes >> _TABLE_SHIFT])  # most are out by one look-up
    places = np.searchsorted(runs, found.hashes[maybe])
    there = places < len(runs)
    there[there] = runs[places[there]] == found.hashes[maybe[there]]
    owners = np.searchsorted(found.bounds, maybe[there], side="right") - 1
    places = places[there]
    return [np.unique(places[owners == i]) for i in range(len(documents))]


@lru_cache(maxsize=1)
def _load(path: Path) -> tuple[Hashes, npt.NDArray[np.bool_]]:
    """The runs, and a table of which leading 24 bits stand among them."""
    runs = np.load(path, mmap_mode="r", allow_pickle=False)
    table = np.zeros(2**24, bool)
    table[runs >> _TABLE_SHIFT] = True
    return runs, table


def cut(text: str, shared: Indices, runs: HeldOutRuns, n: int) -> Cut:
    """Cut the sentences that hold shared runs out of a text.

    Args:
        text: a training document.
        shared: indices into ``runs``, at least one.
        runs: of the held-out documents.
        n: words a run.
    """
    hashes = shingles([text], n).hashes
    hits = np.flatnonzero(np.isin(hashes, runs.hashes[shared])).tolist()
    owner = runs.owners[np.searchsorted(runs.hashes, hashes[hits[0]])]
    places = [match.span() for match in _WORD.finditer(text)]
    run = " ".join(text[start:end] for start, end in places[hits[0] : hits[0] + n])
    if len(hashes) != max(1, len(places) - n + 1):  # a letter whose lower case is two characters
        return Cut(None, run, runs.sets[owner])
    ends = [match.end() for match in _UNIT_END.finditer(text)] + [len(text)]
    units = [text[start:end] for start, end in pairwise([0, *ends])]
    for hit in hits:
        start, stop = places[hit][0], places[min(hit + n, len(places)) - 1][0]
        for unit in range(bisect_right(ends, start), bisect_right(ends, stop) + 1):
            units[unit] = ""
    rest = tidy("".join(units))
    enough = len(rest) >= (1 - MOST) * len(text)
    return Cut(rest if enough else None, run, runs.sets[owner])


class Decontaminator:
    """Takes training documents, in the order in which they were searched, and cuts them."""

    def __init__(self, runs: HeldOutRuns, shared: dict[int, Indices], n: int) -> None:
        self._runs, self._shared, self._n = runs, shared, n
        self._number = 0

    def __call__(self, document: Document, ledger: Ledger) -> Document | None:
        """The document, or what is left of it, or None where it goes; booked in the ledger."""
        shared = self._shared.get(self._number)
        self._number += 1
        if shared is None:
            ledger.keep(document.bytes)
            return document
        result = cut(document.text, shared, self._runs, self._n)
        if len(ledger.notes["shared_runs"]) < RUNS_SHOWN:
            ledger.notes["shared_runs"].append(
                {
                    "run": result.run,
                    "held_out": result.found_in,
                    "document": document.text[:100],
                    "lost": "the document" if result.text is None else "sentences",
                }
            )
        if result.text is None:
            ledger.drop("contaminated", document.text)
            return None
        rest = Document.of(result.text, document.source, document.split, document.origin)
        ledger.keep(document.bytes, rest.bytes)
        ledger.notes["documents_cut"] += 1
        return rest
