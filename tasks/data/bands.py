"""Documents that agree: the runs of all parts joined on digests, and on each band, piece by piece.

    every run, sorted by key --the slice of one range of keys--> sorted together
                             --> groups of documents of one key

A range is as wide as memory allows, so any corpus is joined in bounded memory; ranges are
independent, so workers take one each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.data.cluster import Indices
from tasks.data.fingerprints import Run
from tasks.data.shingles import Hashes
from tasks.files import write_text
from tasks.shardwise import map_parts, part_folder

RANGE = 4_000_000  # keys joined at once, 16 to 24 bytes each and as much again to sort them
COPIED = 1 << 20  # entries of a mapped array that are worked on at once


def mapped(path: Path, shape: int, kind: npt.DTypeLike) -> npt.NDArray[Any]:
    """A new array of one dimension in a file, zero, mapped into memory."""
    if shape == 0:
        np.save(path, np.zeros(0, kind), allow_pickle=False)
        return np.zeros(0, kind)
    return np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=(shape,))


def load(path: Path) -> npt.NDArray[Any]:
    """An array in a file, mapped into memory."""
    return np.load(path, mmap_mode="r", allow_pickle=False)


def flush(array: npt.NDArray[Any]) -> None:
    """Bring a new array to the disk, where workers of other machines look for it."""
    if isinstance(array, np.memmap):
        array.flush()


def slices(total: int) -> list[slice]:
    """``range(total)`` in stretches of at most ``COPIED``."""
    return [slice(start, min(total, start + COPIED)) for start in range(0, total, COPIED)]


def write_runs(path: Path, runs: Sequence[Run]) -> None:
    """The runs, for workers to read."""
    rows = [[str(run.folder), run.number, run.first, run.documents] for run in runs]
    write_text(path, json.dumps(rows))


def _read_runs(path: Path) -> list[Run]:
    rows = json.loads(path.read_text())
    return [Run(Path(folder), *numbers) for folder, *numbers in rows]


def first_of_equals(runs: Sequence[Run], work: Path, key: Any) -> Indices:
    """For each document the first one with the same digest; mapped into memory."""
    total = sum(run.documents for run in runs)
    first: Indices = mapped(work / "first.npy", total, np.int64)
    for piece in slices(total):
        first[piece] = np.arange(piece.start, piece.stop)
    ranges = key_ranges(total)
    find = partial(equals_part, runs=str(work / "runs.json"))
    _in_ranges(find, ranges, work / "exact", key, "exact duplicates", total)
    for number in range(len(ranges)):
        members = load(part_folder(work / "exact", number) / "members.npy")
        for piece in slices(len(members)):
            first[members[piece, 0]] = members[piece, 1]
    flush(first)
    return first


def equals_part(bounds: Sequence[int], out: Path, runs: str) -> int:
    """Documents of equal digests in a range of them: members.npy, (document, the first of them)."""
    digests, documents = _slice(_read_runs(Path(runs)), "digests", bounds)
    order = np.lexsort((documents, digests[:, 1], digests[:, 0]))
    digests, documents = digests[order], documents[order]
    fresh = np.ones(len(documents), bool)
    fresh[1:] = (digests[1:] != digests[:-1]).any(axis=1)
    firsts = documents[fresh][np.cumsum(fresh) - 1]
    members = np.stack([documents, firsts], axis=1)[~fresh]
    np.save(out / "members.npy", members, allow_pickle=False)
    return len(members)


def band_buckets(runs: Sequence[Run], bands: int, work: Path, key: Any) -> list[Path]:
    """Documents that share a band, of those that are the first of their equals (first.npy).

    Returns folders that hold members.npy, the documents of bucket after bucket, ascending in each,
    and sizes.npy, of the buckets.
    """
    total = sum(run.documents for run in runs)
    together = max(1, RANGE // max(1, total))  # bands of a small corpus
    ranges = [
        [band, min(bands, band + together), *bounds]
        for band in range(0, bands, together)
        for bounds in key_ranges(total)
    ]
    find = partial(buckets_part, runs=str(work / "runs.json"), first=str(work / "first.npy"))
    _in_ranges(find, ranges, work / "bands", key, "bands", total * bands)
    return [part_folder(work / "bands", number) for number in range(len(ranges))]


def buckets_part(where: Sequence[int], out: Path, runs: str, first: str) -> int:
    """The buckets of some bands whose keys lie in a range.

    ``where``: first band, the one behind the last, first key, last key.
    """
    low_band, high_band, *bounds = where
    found = [
        _buckets(_read_runs(Path(runs)), load(Path(first)), band, bounds)
        for band in range(low_band, high_band)
    ]
    members, sizes = map(np.concatenate, zip(*found, strict=True))
    np.save(out / "members.npy", members, allow_pickle=False)
    np.save(out / "sizes.npy", sizes, allow_pickle=False)
    return len(sizes)


def _buckets(
    runs: Sequence[Run], first: Indices, band: int, bounds: Sequence[int]
) -> tuple[Indices, Indices]:
    keys, documents = _slice(runs, "keys", bounds, band)
    stays = first[documents] == documents
    keys, documents = keys[stays], documents[stays]
    order = np.argsort(keys, kind="stable")  # runs are in order, so documents ascend in a bucket
    keys, documents = keys[order], documents[order]
    edges = np.flatnonzero(keys[1:] != keys[:-1]) + 1
    sizes = np.diff(np.concatenate(([0], edges, [len(keys)])))
    shared = sizes > 1
    return documents[np.repeat(shared, sizes)], sizes[shared]


def key_ranges(total: int) -> list[list[int]]:
    """Ranges of 64-bit keys, first and last inclusive, that hold about ``RANGE`` keys each."""
    count = max(1, -(-total // RANGE))
    edges = [2**64 * i // count for i in range(count + 1)]
    return [[low, high - 1] for low, high in pairwise(edges)]


def _in_ranges(
    function: Callable[[Any, Path], int],
    ranges: Sequence[Any],
    folder: Path,
    key: Any,
    title: str,
    keys: int,
) -> None:
    """Each range in a folder of its own; so few keys that they fit in one are joined right here."""
    if keys <= RANGE:
        for number, where in enumerate(ranges):
            out = part_folder(folder, number)
            out.mkdir(parents=True, exist_ok=True)
            function(where, out)
        return
    sizes = [12 * keys // len(ranges) + 1] * len(ranges)
    map_parts(function, ranges, folder, key, title=title, sizes=sizes)


def _slice(
    runs: Sequence[Run], name: str, bounds: Sequence[int], band: int | None = None
) -> tuple[Hashes, Indices]:
    """All keys within the bounds, run after run, and the documents they belong to."""
    low, high = (np.uint64(bound) for bound in bounds)
    keys: list[Hashes] = [np.zeros((0, 2) if band is None else 0, np.uint64)]
    documents: list[Indices] = [np.zeros(0, np.int64)]
    pick: Callable[[Any], Any] = (lambda a: a) if band is None else (lambda a: a[band])
    for run in runs:
        own = pick(run.array(name))
        column = own if own.ndim == 1 else own[:, 0]
        start, stop = np.searchsorted(column, low), np.searchsorted(column, high, side="right")
        rows = pick(run.array("digest_rows" if band is None else "key_rows"))
        keys.append(np.array(own[start:stop]))
        documents.append(rows[start:stop].astype(np.int64) + run.first)
    return np.concatenate(keys), np.concatenate(documents)
