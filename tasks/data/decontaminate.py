"""Decontamination: no training text repeats a run of n words of a held-out text.

A document that is a duplicate of a held-out one went before; what remains are passages. As in
GPT-3, what stands around a shared run is cut from the training document and the rest stays (there
200 characters on each side, here the sentences that the run touches); a document that would lose
most of itself goes. Dropping each such document whole would cost 19 % of the demo's text and 88 %
of a source of long LaTeX documents, for a few words each; cutting costs 6 % and 1 %.

A run that stands in more than ten training documents is no leak but a phrase of its trade (a
licence, ``axis : int or None, optional``), and is left alone, as in GPT-3. This holds because
duplicates are gone: ten copies of one leaked passage are one cluster. Which runs are shared is
found in held_out.py.

Brown et al. 2020, https://arxiv.org/abs/2005.14165, appendix C
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from tasks.data.characters import tidy
from tasks.data.documents import Document
from tasks.data.held_out import HeldOutRuns, Indices
from tasks.data.shingles import shingles
from tasks.ledger import Ledger

MOST = 0.5  # of a document's characters; one that would lose more goes whole
RUNS_SHOWN = 20  # of a source, in its ledger
_WORD = re.compile(r"[^\W_]+")
# where a text may be cut: at blank lines, after a line too long to be one of a wrapped
# paragraph, after sentences
_UNIT_END = re.compile(r"\n\s*\n|(?<=[^\n]{100})\n|(?<=[.!?。！？])[\"')\]”’»]*\s+")


class Cut(NamedTuple):
    """A training document without what it shares with held-out text."""

    text: str | None  # None: it goes whole
    run: str  # the first shared run, in words
    found_in: str  # the held-out set of that run


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
    places = word_places(text)
    run = " ".join(text[start:end] for start, end in places[hits[0] : hits[0] + n])
    if len(hashes) != max(1, len(places) - n + 1):  # a letter whose lower case is two characters
        return Cut(None, run, runs.sets[owner])
    ranges = [(hit, min(hit + n, len(places))) for hit in hits]
    return Cut(without_words(text, places, ranges), run, runs.sets[owner])


def word_places(text: str) -> list[tuple[int, int]]:
    """Where the words of a text begin and end."""
    return [match.span() for match in _WORD.finditer(text)]


def without_words(
    text: str, places: list[tuple[int, int]], ranges: Iterable[tuple[int, int]]
) -> str | None:
    """The text without the sentences that ranges of its words touch.

    Args:
        places: the text's ``word_places``.
        ranges: number of the first word, and of the one behind the last.

    Returns None where it would lose more than ``MOST``.
    """
    ends = [match.end() for match in _UNIT_END.finditer(text)] + [len(text)]
    units = [text[start:end] for start, end in pairwise([0, *ends])]
    for first, behind in ranges:
        start, stop = places[first][0], places[behind - 1][0]
        for unit in range(bisect_right(ends, start), bisect_right(ends, stop) + 1):
            units[unit] = ""
    rest = tidy("".join(units))
    return rest if len(rest) >= (1 - MOST) * len(text) else None


def without(
    document: Document, shared: Indices, runs: HeldOutRuns, n: int, ledger: Ledger
) -> Document | None:
    """What is left of a training document that shares runs, or None where it goes; booked."""
    result = cut(document.text, shared, runs, n)
    ledger.notes["shared_runs"].append(
        {
            "run": result.run,
            "held_out": result.found_in,
            "document": document.text[:100],
            "lost": "the document" if result.text is None else "sentences",
        }
    )
    del ledger.notes["shared_runs"][RUNS_SHOWN:]
    if result.text is None:
        ledger.drop("contaminated", document.text)
        return None
    rest = Document.of(result.text, document.source, document.split, document.origin)
    ledger.keep(document.bytes, rest.bytes)
    ledger.notes["documents_cut"] += 1
    return rest
