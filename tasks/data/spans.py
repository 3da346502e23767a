"""Repeated passages: which runs of N words of a document stand in one before it.

    texts --a sample of the shorter runs--> joined: those that stand in two places
          --every run of N words around these--> joined: all but the first place of each
          --> data/dedup/repeated.parquet --the split stage--> cut at the borders of sentences

Removal of exact substrings as in Lee et al. 2022, https://arxiv.org/abs/2107.06499, without a
suffix array. Of every run of N words the sample holds one of its runs of N/2 words, the one with
the least hash (winnowing: Schleimer, Wilkerson and Aiken 2003,
https://doi.org/10.1145/872757.872770). Equal runs choose alike, so a run whose choices all stand
alone stands alone, and only what surrounds the others is looked at in full. Of random text the
sample is about four words in N.

The first place in the order of the parts stays; within a document, the first that the later one
does not overlap. Held-out text is never cut. Runs are equal where 128 bits are: a polynomial over
their words, and the sum of the hashes of their pairs of words, made apart from it.

A part is read some documents at a time and what is made of it leaves for the disk every ``RUN``
rows; what is joined is one range of keys. So memory does not grow with the corpus, but for the
places of one single run, which are joined together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.data.bands import key_ranges, load
from tasks.data.shingles import Hashes, Shingles, shingles
from tasks.data.texts import Part, texts
from tasks.files import write_text
from tasks.shardwise import map_parts, part_folder
from tasks.workers import batches

VERSION = 1  # of the work: what was begun under another one is not gone on with
RUN = 2_000_000  # rows that a worker holds before it sorts and writes them
Indices = npt.NDArray[np.int64]
Stretch = tuple[Part, int, int]  # a part, and the documents of the corpus that it holds


class _Sorted:
    """Rows that a worker writes, sorted by key, ``RUN`` at a time.

    keys-00000.npy (rows, columns) uint64; places-00000.npy (rows, 2) int64: document, first word.
    """

    def __init__(self, out: Path) -> None:
        self.files = 0
        self._out, self._held = out, 0
        self._rows: list[tuple[Hashes, Indices]] = []

    def add(self, keys: Hashes, places: Indices) -> None:
        self._rows.append((keys, places))
        self._held += len(keys)
        if self._held >= RUN:
            self.flush()

    def flush(self) -> None:
        if self._held:
            keys, places = map(np.concatenate, zip(*self._rows, strict=True))
            order = np.argsort(keys[:, 0], kind="stable")
            for name, rows in (("keys", keys[order]), ("places", places[order])):
                np.save(self._out / f"{name}-{self.files:05d}.npy", rows, allow_pickle=False)
            self.files += 1
        self._rows, self._held = [], 0


def find_repeats(
    parts: Sequence[Part],
    counts: Sequence[int],
    sizes: Sequence[int],
    *,
    words: int,
    train: int,
    keep: Path,
    work: Path,
    key: Any,
) -> Iterator[tuple[int, Indices]]:
    """Find the passages of ``words`` words or more that stand in an earlier document.

    Args:
        parts: all texts, in order of priority.
        counts: documents of each part.
        sizes: bytes of each part, for progress.
        words: N.
        train: number of the first document that may be cut; those before it are held out.
        keep: .npy, a bool a document: false for those that have gone already.
        work: a ``work_folder``; what is unfinished there is gone on with.
        key: what the outcome depends on beside these arguments.

    Yields, part after part, its number and (passages, 3): document of the corpus, first word and
    the word behind the last. Passages of a document neither overlap nor touch.
    """
    key = [VERSION, words, key]
    edges = np.cumsum([0, *counts]).tolist()
    there: list[Stretch] = list(zip(parts, edges, edges[1:], strict=False))
    sample = partial(sample_part, words=words, keep=str(keep))
    files = map_parts(sample, there, work / "sample", key, title="passages", sizes=sizes)
    shared = _join(shared_part, work, "sample", files, key)
    gather = partial(runs_part, words=words, shared=shared)
    files = map_parts(gather, there, work / "runs", key, title="repeated passages", sizes=sizes)
    found = _join(partial(repeats_part, words=words, train=train), work, "runs", files, key)
    for number, (_, first, stop) in enumerate(there):
        if stop > train:
            yield number, passages(_of_documents(found, first, stop), words)


def sample_part(stretch: Stretch, out: Path, words: int, keep: str) -> int:
    """Write the sampled runs of a part's documents that stay; returns how many files it took."""
    rows = _Sorted(out)
    kept = load(Path(keep))
    for batch in _batches(stretch, lambda number: bool(kept[number])):
        found = shingles([text for _, text in batch], _shorter(words))
        chosen = winnowed(found, words - _shorter(words) + 1)
        rows.add(found.hashes[chosen, None], _places(chosen, found.bounds, batch))
    rows.flush()
    return rows.files


def winnowed(found: Shingles, window: int) -> Indices:
    """The place of the least hash (the first of equals) in every ``window`` hashes of a document.

    A document of fewer hashes has none. Places are indices into ``found.hashes``, each once.
    """
    hashes = found.hashes
    if len(hashes) < window:
        return np.zeros(0, np.int64)
    least, width = np.arange(len(hashes)), 1
    while width < window:
        step = min(width, window - width)  # the last two halves overlap
        left, right = least[:-step], least[step:]
        least = np.where(hashes[right] < hashes[left], right, left)
        width += step
    whole = np.zeros(len(least), bool)  # no document ends within the window
    for start, stop in pairwise(found.bounds.tolist()):
        whole[start : max(start, stop - window + 1)] = True
    return np.unique(least[whole])


def shared_part(bounds: Sequence[int], out: Path, runs: str) -> None:
    """Of the sampled runs in a range of keys, the places of those that have two or more."""
    keys, places = _slice(runs, bounds)
    order = np.argsort(keys[:, 0], kind="stable")
    fresh = _fresh(keys[order])
    alone = fresh & np.append(fresh[1:], True)
    _save_places(out, places[order][~alone])


def runs_part(stretch: Stretch, out: Path, words: int, shared: Sequence[str]) -> int:
    """Write every run of ``words`` words that holds a shared one; returns the number of files."""
    rows = _Sorted(out)
    anchors = _of_documents(shared, *stretch[1:])
    documents, edges = np.unique(anchors[:, 0], return_index=True)
    of = dict(zip(documents.tolist(), np.split(anchors[:, 1], edges[1:]), strict=False))
    for batch in _batches(stretch, of.__contains__):
        keys, bounds = runs_of([text for _, text in batch], words)
        near = [
            _around(of[number], stop - start, words)
            for (number, _), (start, stop) in zip(batch, pairwise(bounds.tolist()), strict=True)
        ]
        chosen = np.flatnonzero(np.concatenate(near))
        rows.add(keys[chosen], _places(chosen, bounds, batch))
    rows.flush()
    return rows.files


def runs_of(block: list[str], words: int) -> tuple[Hashes, Indices]:
    """Every run of ``words`` words within each text, of which none has fewer: 128 bits each.

    Returns:
        (runs, 2), text after text, and the bounds of the texts.
    """
    found, pairs = shingles(block, words), shingles(block, 2)
    sums = np.zeros(len(pairs.hashes) + 1, np.uint64)
    np.cumsum(pairs.hashes, out=sums[1:])
    moved = np.repeat(pairs.bounds[:-1] - found.bounds[:-1], np.diff(found.bounds))
    at = np.arange(len(found.hashes)) + moved
    return np.stack([found.hashes, sums[at + words - 1] - sums[at]], axis=1), found.bounds


def repeats_part(bounds: Sequence[int], out: Path, runs: str, words: int, train: int) -> None:
    """Of the runs in a range of keys, the places of all that repeat the first and may be cut."""
    keys, places = _slice(runs, bounds)
    order = np.lexsort((places[:, 1], places[:, 0], keys[:, 1], keys[:, 0]))
    places = places[order]
    fresh = _fresh(keys[order])
    first = places[fresh][np.cumsum(fresh) - 1]
    repeats = places[:, 0] != first[:, 0]
    repeats |= places[:, 1] >= first[:, 1] + words
    _save_places(out, places[repeats & (places[:, 0] >= train)])


def passages(places: Indices, words: int) -> Indices:
    """Join runs of ``words`` words that overlap or touch: (document, first word, stop) each."""
    fresh = np.ones(len(places), bool)
    fresh[1:] = (places[1:, 0] != places[:-1, 0]) | (places[1:, 1] > places[:-1, 1] + words)
    last = np.append(fresh[1:], True)[: len(places)]
    return np.column_stack([places[fresh], places[last, 1] + words])


def _shorter(words: int) -> int:
    """Words of the runs that are sampled."""
    return words // 2


def _batches(stretch: Stretch, wanted: Callable[[int], bool]) -> Iterator[list[tuple[int, str]]]:
    """The wanted documents of a part, by number, about a megabyte at a time."""
    part, first, _ = stretch
    there = ((first + n, text) for n, (_, text) in enumerate(texts(part)) if wanted(first + n))
    yield from batches(there, lambda item: len(item[1]))


def _around(anchors: Indices, runs: int, words: int) -> npt.NDArray[np.bool_]:
    """Which of a document's runs of ``words`` words hold one of the shorter runs ``anchors``."""
    edges = np.zeros(runs + 1, np.int64)
    np.add.at(edges, np.maximum(anchors + _shorter(words) - words, 0), 1)
    np.add.at(edges, np.minimum(anchors + 1, runs), -1)
    return np.cumsum(edges)[:-1] > 0


def _places(chosen: Indices, bounds: Indices, batch: list[tuple[int, str]]) -> Indices:
    """Document and first word of some runs of a batch: (chosen, 2)."""
    owners = np.searchsorted(bounds, chosen, side="right") - 1
    numbers = np.array([number for number, _ in batch])
    return np.stack([numbers[owners], chosen - bounds[owners]], axis=1)


def _join(
    function: Callable[..., None],
    work: Path,
    name: str,
    files: Sequence[int],
    key: Any,
) -> list[str]:
    """Give all rows of the parts ``name`` to the function, a range of keys at a time.

    Returns the files of places that it wrote.
    """
    runs = [
        str(part_folder(work / name, part) / f"keys-{number:05d}.npy")
        for part, count in enumerate(files)
        for number in range(count)
    ]
    write_text(work / f"{name}.json", json.dumps(runs))
    ranges = key_ranges(total := sum(len(load(Path(path))) for path in runs))
    folder = work / f"{name}_joined"
    join = partial(function, runs=str(work / f"{name}.json"))
    sizes = [24 * total // len(ranges) + 1] * len(ranges)
    map_parts(join, ranges, folder, [key, runs], title=f"joining {name}", sizes=sizes)
    return [str(part_folder(folder, number) / "places.npy") for number in range(len(ranges))]


def _slice(runs: str, bounds: Sequence[int]) -> tuple[Hashes, Indices]:
    """Keys and places of all rows whose first key lies within the bounds."""
    low, high = (np.uint64(bound) for bound in bounds)
    found: list[tuple[Hashes, Indices]] = []
    for path in map(Path, json.loads(Path(runs).read_text())):
        keys, places = load(path), load(path.with_name(path.name.replace("keys", "places")))
        start = np.searchsorted(keys[:, 0], low)
        stop = np.searchsorted(keys[:, 0], high, side="right")
        found.append((np.array(keys[start:stop]), np.array(places[start:stop])))
    if not found:
        return np.zeros((0, 2), np.uint64), np.zeros((0, 2), np.int64)
    keys, places = map(np.concatenate, zip(*found, strict=True))
    return keys, places


def _fresh(keys: Hashes) -> npt.NDArray[np.bool_]:
    """Which sorted keys are not those before them."""
    fresh = np.ones(len(keys), bool)
    fresh[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    return fresh


def _save_places(out: Path, places: Indices) -> None:
    order = np.lexsort((places[:, 1], places[:, 0]))
    np.save(out / "places.npy", places[order], allow_pickle=False)


def _of_documents(files: Sequence[str], first: int, stop: int) -> Indices:
    """The places in documents ``first`` to ``stop``, in order: (places, 2)."""
    found = [np.zeros((0, 2), np.int64)]
    for path in files:
        places = load(Path(path))
        low, high = np.searchsorted(places[:, 0], [first, stop])
        found.append(np.array(places[low:high]))
    joined = np.concatenate(found)
    return joined[np.lexsort((joined[:, 1], joined[:, 0]))]
