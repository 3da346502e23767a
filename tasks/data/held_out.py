"""Every run of n words of the held-out text, sorted on disk, and which of them a text repeats.

    held-out shards --held_out_part--> sorted hashes a shard --join_runs--> one index, mapped
    training shards --shared_part--> (document, run) pairs --count_shared--> which runs are common

Only one bucket of the index is in memory while it is made (runs are hashes, so buckets are equal),
and it is mapped, not read, where it is used: neither grows with the corpus.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tasks.data.documents import Document
from tasks.data.shingles import Hashes, shingles
from tasks.files import read_json, write_json
from tasks.recipe import SPLITS, Split
from tasks.workers import batches

COMMON = 10  # training documents; a run in more of them is a common phrase
_BUCKET_RUNS = 4_000_000  # about what joining holds in memory, 16 bytes each
_FEWEST_BITS, _MOST_BITS = 24, 30  # of a hash that the table looks at: it has 2 to 128 MiB
_ROOM = 16  # places in the table for each run: one in 16 that is not there passes it
_CHUNK = 1_000_000
Indices = npt.NDArray[np.int64]
Numbered = tuple[int, Document]  # a document, and its number within the shard it is read from


class HeldOutRuns(NamedTuple):
    """Every run of n words of the held-out documents, by hash."""

    hashes: Hashes  # (runs,), sorted, each once
    owners: npt.NDArray[np.uint16]  # (runs,), index into ``sets`` of the first set it stands in
    sets: list[str]  # "<source>/<split>"
    table: npt.NDArray[np.uint8]  # (2^bits / 8,), a bit each: which leading bits stand among them
    shift: np.uint64  # 64 - bits


def held_out_part(documents: Iterable[Numbered], out: Path, n: int) -> list[Split]:
    """Write ``<split>.npy``, the sorted runs of ``n`` words of the held-out documents of a shard.

    A document of fewer words is one run as a whole. Returns the splits that there are.
    """
    found: dict[Split, list[Hashes]] = {}
    held = (document for _, document in documents if document.split != "train")
    for batch in batches(held, lambda document: document.bytes):
        for split in SPLITS:
            texts = [document.text for document in batch if document.split == split]
            if texts:
                found.setdefault(split, []).append(np.unique(shingles(texts, n).hashes))
    for split, hashes in found.items():
        np.save(out / f"{split}.npy", np.unique(np.concatenate(hashes)), allow_pickle=False)
    return sorted(found, key=SPLITS.index)


def join_runs(files: Sequence[tuple[str, Path]], folder: Path) -> None:
    """Join the sorted runs of shards into the index ``folder``.

    Args:
        files: name of the held-out set and file, in the order in which a set owns a run that
            stands in several.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sets = list(dict.fromkeys(name for name, _ in files))
    assert len(sets) < 2**16, "owners are 16 bits"
    arrays = [np.load(path, mmap_mode="r", allow_pickle=False) for _, path in files]
    total = sum(len(array) for array in arrays)
    buckets = 1 if total <= _BUCKET_RUNS else 256
    edges = np.array([bucket * (2**64 // buckets) for bucket in range(1, buckets)], np.uint64)
    bounds = [[0, *np.searchsorted(array, edges).tolist(), len(array)] for array in arrays]
    with open(folder / "hashes.bin", "wb") as hashes, open(folder / "owners.bin", "wb") as owners:
        for bucket in range(buckets):
            parts, names = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint16)]
            for (name, _), array, bound in zip(files, arrays, bounds, strict=True):
                part = np.asarray(array[bound[bucket] : bound[bucket + 1]])
                parts.append(part)
                names.append(np.full(len(part), sets.index(name), np.uint16))
            unique, first = np.unique(np.concatenate(parts), return_index=True)
            hashes.write(unique.tobytes())
            owners.write(np.concatenate(names)[first].tobytes())
    write_json(folder / "sets.json", sets)


def open_runs(folder: Path) -> HeldOutRuns:
    """The index, mapped into memory; with no runs where there is no held-out text."""
    return _open_runs(folder, (folder / "sets.json").stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _open_runs(folder: Path, _stamp: int) -> HeldOutRuns:
    hashes = _mapped(folder / "hashes.bin", np.uint64)
    owners = _mapped(folder / "owners.bin", np.uint16)
    bits = min(max((_ROOM * len(hashes)).bit_length(), _FEWEST_BITS), _MOST_BITS)
    table, shift = np.zeros(2**bits // 8, np.uint8), np.uint64(64 - bits)
    for start in range(0, len(hashes), _CHUNK):
        places = (hashes[start : start + _CHUNK] >> shift).astype(np.int64)
        first = int(places[0]) // 8
        flags = np.zeros((int(places[-1]) // 8 - first + 1) * 8, np.bool_)
        flags[places - first * 8] = True
        packed = np.packbits(flags, bitorder="little")
        table[first : first + len(packed)] |= packed
    return HeldOutRuns(hashes, owners, read_json(folder / "sets.json"), table, shift)


def _mapped(path: Path, dtype: type[np.generic]) -> npt.NDArray[Any]:
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)


def shared_part(documents: Iterable[Numbered], out: Path, runs: HeldOutRuns, n: int) -> int:
    """Write ``pairs.npy``, int64 (2, pairs): training documents of a shard by number, ascending,
    and the runs that they share with held-out text. Returns the number of pairs."""
    found = [np.zeros((2, 0), np.int64)]
    train = (item for item in documents if item[1].split == "train")
    for batch in batches(train, lambda item: item[1].bytes):
        owners, places = find([document.text for _, document in batch], runs, n)
        found.append(np.stack([np.array([number for number, _ in batch])[owners], places]))
    pairs = np.concatenate(found, axis=1)
    np.save(out / "pairs.npy", pairs, allow_pickle=False)
    return pairs.shape[1]


def find(texts: list[str], runs: HeldOutRuns, n: int) -> tuple[Indices, Indices]:
    """Texts, by index, and held-out runs that they have: two arrays of each pair once, sorted."""
    found = shingles(texts, n)
    maybe = _passing(found.hashes, runs)  # most go by one look-up
    places = np.searchsorted(runs.hashes, found.hashes[maybe])
    there = places < len(runs.hashes)
    there[there] = runs.hashes[places[there]] == found.hashes[maybe[there]]
    owners = np.searchsorted(found.bounds, maybe[there], side="right") - 1
    pairs = np.unique(np.stack([owners, places[there]]), axis=1)
    return pairs[0], pairs[1]


def _passing(hashes: Hashes, runs: HeldOutRuns) -> Indices:
    """Which of some hashes may stand among the runs."""
    places = hashes >> runs.shift
    flags = runs.table.take(places >> np.uint64(3))
    flags >>= (places & np.uint64(7)).astype(np.uint8)
    flags &= 1
    return np.flatnonzero(flags.view(np.bool_))


def count_shared(pairs: Iterable[Path], folder: Path) -> None:
    """Count, for each run of the index ``folder``, the training documents that share it."""
    total = (folder / "hashes.bin").stat().st_size // 8
    with open(folder / "counts.bin", "wb") as handle:  # a byte a run: COMMON + 1 at most
        handle.truncate(total)
    if total:
        counts = np.memmap(folder / "counts.bin", np.uint8, "r+")
        for path in pairs:
            places = np.load(path, mmap_mode="r", allow_pickle=False)[1]
            shared, documents = np.unique(places, return_counts=True)
            counts[shared] = np.minimum(counts[shared] + documents, COMMON + 1)
        counts.flush()


def rare_pairs(path: Path, folder: Path) -> dict[int, Indices]:
    """The documents of one ``pairs.npy`` that share runs which are not common, and these runs."""
    documents, places = np.load(path, allow_pickle=False)
    rare = _mapped(folder / "counts.bin", np.uint8)[places] <= COMMON
    documents, places = documents[rare], places[rare]
    edges = [0, *(np.flatnonzero(np.diff(documents)) + 1).tolist(), len(documents)]
    return {
        int(documents[start]): places[start:stop]
        for start, stop in itertools.pairwise(edges)
        if stop > start
    }
