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
from tasks.data.fingerprints import ROW_BITS, Run
from tasks.data.shingles import Hashes
from tasks.shardwise import map_parts, part_folder

RANGE = 4_000_000  # keys joined at once, 16 to 24 bytes each and as much again to sort them
COPIED = 1 << 20  # entries of a mapped array that are worked on at once
_NO_KEYS, _NO_DOCUMENTS = np.zeros(0, np.uint64), np.zeros(0, np.int64)


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
    """The runs, for workers to read; written anew each time, so no crash needs to be survived."""
    rows = [[str(run.folder), run.number, run.first, run.documents] for run in runs]
    path.write_text(json.dumps(rows))


def _read_runs(path: Path) -> list[Run]:
    rows = json.loads(path.read_text())
    return [Run(Path(folder), *numbers) for folder, *numbers in rows]


def first_of_equals(runs: Sequence[Run], work: Path, key: Any) -> Path:
    """A file that holds for each document the first one with the same digest."""
    total = sum(run.documents for run in runs)
    path = work / "first.npy"
    first: Indices = mapped(path, total, np.int64)
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
    return path


def equals_part(bounds: Sequence[int], out: Path, runs: str) -> int:
    """Documents of equal digests in a range of them: members.npy, (document, the first of them)."""
    found, rows = [_NO_KEYS.reshape(0, 2)], [_NO_DOCUMENTS]
    for run in _read_runs(Path(runs)):
        own = run.array("digests")
        within = _within(own[:, 0], bounds)
        found.append(np.array(own[within]))
        rows.append(run.array("digest_rows")[within].astype(np.int64) + run.first)
    digests, documents = np.concatenate(found), np.concatenate(rows)
    order = np.lexsort((documents, digests[:, 1], digests[:, 0]))
    digests, documents = digests[order], documents[order]
    fresh = np.ones(len(documents), bool)
    fresh[1:] = (digests[1:] != digests[:-1]).any(axis=1)
    firsts = documents[fresh][np.cumsum(fresh) - 1]
    members = np.stack([documents, firsts], axis=1)[~fresh]
    np.save(out / "members.npy", members, allow_pickle=False)
    return len(members)


def band_buckets(
    runs: Sequence[Run], bands: int, first: Path | None, work: Path, key: Any
) -> list[Path]:
    """Documents that share a band, of those that are the first of their equals.

    ``first`` is the file of ``first_of_equals``; None: every document is taken.

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
    of_firsts = str(first) if first else None
    find = partial(buckets_part, runs=str(work / "runs.json"), first=of_firsts)
    _in_ranges(find, ranges, work / "bands", key, "bands", total * bands)
    return [part_folder(work / "bands", number) for number in range(len(ranges))]


def buckets_part(where: Sequence[int], out: Path, runs: str, first: str | None) -> int:
    """The buckets of some bands whose keys lie in a range.

    ``where``: first band, the one behind the last, first key, last key.
    """
    low_band, high_band, *bounds = where
    firsts = load(Path(first)) if first else None
    columns = [([_NO_KEYS], [_NO_DOCUMENTS]) for _ in range(low_band, high_band)]
    for run in _read_runs(Path(runs)):
        entries = np.asarray(run.array("keys"))
        for band, (keys, documents) in enumerate(columns, start=low_band):
            own = entries[band, _within(entries[band], bounds)]
            keys.append(own >> np.uint64(ROW_BITS))
            documents.append((own & np.uint64(2**ROW_BITS - 1)).astype(np.int64) + run.first)
    found = [_buckets(np.concatenate(k), np.concatenate(d), firsts) for k, d in columns]
    members, sizes = map(np.concatenate, zip(*found, strict=True))
    np.save(out / "members.npy", members, allow_pickle=False)
    np.save(out / "sizes.npy", sizes, allow_pickle=False)
    return len(sizes)


def _buckets(keys: Hashes, documents: Indices, firsts: Indices | None) -> tuple[Indices, Indices]:
    if firsts is not None:
        stays = firsts[documents] == documents
        keys, documents = keys[stays], documents[stays]
    order = np.argsort(keys, kind="stable")  # runs are in order, so documents ascend in a bucket
    keys, documents = keys[order], documents[order]
    edges = np.flatnonzero(keys[1:] != keys[:-1]) + 1
    sizes = np.diff(np.concatenate(([0], edges, [len(keys)])))
    shared = sizes > 1
    return documents[np.repeat(shared, sizes)], sizes[shared]


def key_ranges(total: int) -> list[list[int]]:
    """Ranges of 64-bit keys, first and last inclusive, that hold about ``RANGE`` keys each.

    Keys that differ in their last 32 bits alone are in one range.
    """
    count = max(1, -(-total // RANGE))
    edges = [2**32 * i // count << 32 for i in range(count + 1)]
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


def _within(keys: Hashes, bounds: Sequence[int]) -> slice:
    """Where the sorted keys lie within the bounds."""
    low, high = (np.uint64(bound) for bound in bounds)
    return slice(np.searchsorted(keys, low), np.searchsorted(keys, high, side="right"))
