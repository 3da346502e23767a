"""Join the token rows of parts into the shards of one split; what those are is told in shards.py.

    part 0, part 1, ... (each one row, its ends and bytes)  -->  train-00000.bin ..., two arrays

Files are copied in pieces, so that what is held does not grow with the corpus.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.files import sha256_file
from tasks.recipe import Split
from tasks.tokens.shard_writer import SHARD_TOKENS
from tasks.tokens.shards import array_path, shard_path

_PIECE = 4_000_000  # tokens, or items of an array, copied at once


def join_parts(
    parts: Sequence[tuple[Path, dict[str, Any]]],
    folder: Path,
    split: Split,
    dtype: np.dtype[Any],
    shard_tokens: int = SHARD_TOKENS,
) -> dict[str, Any]:
    """Write one split into ``folder`` and return its part of the manifest.

    Args:
        parts: folder and manifest entry of each part, as ``SplitWriter`` left them, in order.
        dtype: of the ids.

    The bytes are those that one ``SplitWriter`` would have written of all documents.
    """
    totals = {
        key: sum(entry[key] for _, entry in parts) for key in ("tokens", "documents", "text_bytes")
    }
    shards: list[dict[str, Any]] = []
    row = (piece for part, entry in parts for piece in _row(part, split, entry, dtype))
    rest = np.zeros(0, dtype)
    left = totals["tokens"]
    while left:
        path = shard_path(folder, split, len(shards))
        size, sha = min(left, shard_tokens), hashlib.sha256()
        missing = size
        with open(path, "wb") as handle:
            while missing:
                piece = rest if len(rest) else next(row)
                piece, rest = piece[:missing], piece[missing:]
                handle.write(piece.data)
                sha.update(piece.data)
                missing -= len(piece)
        shards.append({"file": path.name, "tokens": size, "sha256": sha.hexdigest()})
        left -= size
    sums = {}
    for name in ("ends", "bytes"):
        path = array_path(folder, split, name)
        _write_array(path, totals["documents"], _items(parts, split, name))
        sums[f"{name}_sha256"] = sha256_file(path)
    return totals | {"shards": shards} | sums


def _row(
    part: Path, split: Split, entry: dict[str, Any], dtype: np.dtype[Any]
) -> Iterator[npt.NDArray[Any]]:
    for number in range(len(entry["shards"])):
        with open(shard_path(part, split, number), "rb") as handle:
            while len(piece := np.fromfile(handle, dtype, _PIECE)):
                yield piece


def _items(
    parts: Sequence[tuple[Path, dict[str, Any]]], split: Split, name: str
) -> Iterator[npt.NDArray[np.int64]]:
    before = 0
    for part, entry in parts:
        values = np.load(array_path(part, split, name), mmap_mode="r", allow_pickle=False)
        for start in range(0, len(values), _PIECE):
            yield values[start : start + _PIECE] + (before if name == "ends" else 0)
        before += entry["tokens"]


def _write_array(path: Path, length: int, pieces: Iterator[npt.NDArray[np.int64]]) -> None:
    """As ``np.save`` of all pieces in a row, of which one is held at a time."""
    header = {"descr": "<i8", "fortran_order": False, "shape": (length,)}
    with open(path, "wb") as handle:
        np.lib.format.write_array_header_1_0(handle, header)
        for piece in pieces:
            handle.write(np.ascontiguousarray(piece, "<i8").data)
