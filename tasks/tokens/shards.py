"""Token shards: flat arrays of ids on disk, written once, read by memory map, checked on opening.

    data/tokens/<source>/
        train-00000.bin, train-00001.bin ...   uint16 (uint32 above 65,535 ids), little-endian;
                                               every document is followed by the EOS id
        train.ends.npy                         int64: where each document ends, EOS included
        train.bytes.npy                        int64: UTF-8 bytes of each document's text
        manifest.json                          counts, sizes, SHA-256 of every file, tokenizer

A split is one long row of tokens; that it lies in several files shows nowhere outside.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.errors import BAD_DATA, NO_INPUT, UserError, unknown_name
from tasks.files import fingerprint, read_json, sha256_file
from tasks.recipe import SPLITS, Split
from tasks.tokens.arrays import Ints, expand

VERSION = 1
_CHECK_TOKENS = 8_000_000  # hashed at once: what checking holds in memory


def dtype_for(vocab_size: int) -> np.dtype[Any]:
    """The smallest of uint16 and uint32 for ids below ``vocab_size``."""
    return np.dtype("<u4" if vocab_size > 65_535 else "<u2")


def shard_path(folder: Path, split: Split, number: int) -> Path:
    return folder / f"{split}-{number:05d}.bin"


def array_path(folder: Path, split: Split, name: str) -> Path:
    """``name``: ends or bytes."""
    return folder / f"{split}.{name}.npy"


@dataclass(frozen=True, eq=False)
class TokenSplit:
    """One split of one source, open for reading.

    Attributes:
        folder, split: where it lies.
        tokens, documents, text_bytes: counts; EOS ids are tokens, but have no bytes.
        vocab_size, eos_id, tokenizer: of the tokenizer (its fingerprint).
        sha256: fingerprint of all its content.
    """

    folder: Path
    split: Split
    tokens: int
    documents: int
    text_bytes: int
    vocab_size: int
    eos_id: int
    tokenizer: str
    sha256: str
    _shards: Sequence[npt.NDArray[Any]] = field(repr=False)
    _starts: list[int] = field(repr=False)

    @property
    def shards(self) -> int:
        """Files that it lies in."""
        return len(self._shards)

    @cached_property
    def ends(self) -> Ints:
        """Where each document ends, EOS included."""
        return self._load("ends")

    @cached_property
    def document_bytes(self) -> Ints:
        """UTF-8 bytes of each document's text."""
        return self._load("bytes")

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Tokens ``start`` to ``stop``: a view of the file, or a copy where two files meet."""
        if not 0 <= start <= stop <= self.tokens:
            raise IndexError(f"tokens {start} to {stop} of {self.tokens} in {self.folder}")
        place = bisect_right(self._starts, start) - 1
        part = self._shards[place][start - self._starts[place] : stop - self._starts[place]]
        if len(part) == stop - start:
            return part
        rest = self.read(start + len(part), stop)
        return np.concatenate([part, rest])

    def views(self, starts: Ints, stops: Ints) -> tuple[Ints, Ints, list[npt.NDArray[Any]]]:
        """Some stretches of tokens as views of the files, more than one where files meet within.

        The split is a ring: past its end it goes on at its beginning.

        Args:
            starts, stops: first token of each stretch and last (exclusive); none is longer than
                the split.

        Returns for each view the number of its stretch, how far into that it begins, and itself.
        """
        starts, sizes = starts % self.tokens, stops - starts
        stops, bounds = starts + sizes, self._bounds
        first = np.searchsorted(bounds, starts, side="right") - 1
        which, nth = expand(np.searchsorted(bounds, stops, side="left") - first)
        shard = first[which] + nth
        begin = np.maximum(starts[which], bounds[shard])
        end = np.minimum(stops[which], bounds[shard + 1])
        places = (shard, begin - bounds[shard], end - bounds[shard])
        twice = [*self._shards, *self._shards]
        views = [twice[n][a:b] for n, a, b in zip(*(place.tolist() for place in places))]
        return which, begin - starts[which], views

    @cached_property
    def _bounds(self) -> Ints:
        """Where each file begins, twice round the ring, and where the second round ends: a stretch
        that begins in the first is one range of it."""
        return np.array([*self._starts, *(self.tokens + n for n in self._starts), 2 * self.tokens])

    def span(self, document: int) -> tuple[int, int]:
        """Place of a document's first token, and of its last (exclusive), EOS included."""
        return int(self.ends[document - 1]) if document else 0, int(self.ends[document])

    def _load(self, name: str) -> Ints:
        return _load_array(array_path(self.folder, self.split, name), self.documents)


def splits(folder: Path) -> list[Split]:
    """The splits that a folder of shards holds. Raises UserError where it holds no manifest."""
    there = _manifest(folder)["splits"]
    return [split for split in SPLITS if split in there]


def open_split(
    folder: Path, split: Split, *, verify: bool = True, tokenizer: str | None = None
) -> TokenSplit:
    """Open one split for reading.

    File sizes and counts are always checked. ``verify`` also reads every byte, once an opening, at
    about 1 GB/s (one second for 500 million uint16 tokens): it compares the SHA-256 of each file,
    looks for ids that the vocabulary does not have, and for EOS at the end of each document and
    nowhere else.

    Args:
        folder: ``data/tokens/<source>``.
        split: train, validation or test.
        verify: whether to read and compare the content.
        tokenizer: fingerprint that the shards must have been encoded with, if it matters.

    Raises UserError for a split that is not there, a file that is missing, cut or changed, and
    for shards of another tokenizer.
    """
    manifest = _manifest(folder)
    if split not in manifest["splits"]:
        raise unknown_name("split", split, manifest["splits"], where=str(folder))
    try:
        opened = _open(folder, split, manifest)
        entry = manifest["splits"][split]
        sums = [shard["sha256"] for shard in entry["shards"]]
        array_sums = {name: entry[f"{name}_sha256"] for name in ("ends", "bytes")}
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder / "manifest.json", f"a key is missing or wrong: {error!r}") from None
    if tokenizer not in (None, opened.tokenizer):
        raise UserError(
            f"{folder} was encoded with another tokenizer ({opened.tokenizer[:12]}, "
            f"expected {str(tokenizer)[:12]})",
            hint=f"encode it again: dvc repro encode@{folder.name}",
            exit_code=BAD_DATA,
        )
    if verify:
        _verify(opened, sums, array_sums)
    return opened


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.exists():
        raise UserError(
            f"{path} is missing",
            hint=f"encode the source first: dvc repro encode@{folder.name}",
            exit_code=NO_INPUT,
        )
    manifest = read_json(path)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("splits"), dict):
        raise _damaged(path, "it has no splits")
    if manifest.get("version") != VERSION:
        raise _damaged(path, f"version {manifest.get('version')!r}, this program reads {VERSION}")
    return manifest


def _open(folder: Path, split: Split, manifest: dict[str, Any]) -> TokenSplit:
    entry, dtype = manifest["splits"][split], np.dtype(manifest["dtype"]).newbyteorder("<")
    if dtype != dtype_for(manifest["vocab_size"]):
        raise _damaged(
            folder / "manifest.json", f"{dtype} does not fit {manifest['vocab_size']} ids"
        )
    arrays, starts, tokens = [], [], 0
    for number, shard in enumerate(entry["shards"]):
        path = shard_path(folder, split, number)
        _check_size(path, shard["tokens"] * dtype.itemsize)
        arrays.append(np.asarray(np.memmap(path, dtype, mode="r")))
        starts.append(tokens)
        tokens += shard["tokens"]
    if tokens != entry["tokens"]:
        raise _damaged(
            folder / "manifest.json", f"{tokens} tokens in shards, {entry['tokens']} in all"
        )
    identity = {key: manifest[key] for key in ("dtype", "vocab_size", "eos_id", "tokenizer")}
    opened = TokenSplit(
        folder=folder,
        split=split,
        tokens=tokens,
        documents=entry["documents"],
        text_bytes=entry["text_bytes"],
        vocab_size=manifest["vocab_size"],
        eos_id=manifest["eos_id"],
        tokenizer=manifest["tokenizer"],
        sha256=fingerprint([identity, entry]),
        _shards=arrays,
        _starts=starts,
    )
    if opened.documents and opened.ends[-1] != tokens:
        raise _damaged(
            array_path(folder, split, "ends"), f"it ends at {opened.ends[-1]}, not {tokens}"
        )
    return opened


def _verify(opened: TokenSplit, sums: list[str], array_sums: dict[str, str]) -> None:
    for name, expected in array_sums.items():
        path = array_path(opened.folder, opened.split, name)
        if not path.exists():
            raise _damaged(path, "it is missing")
        _check_sum(path, sha256_file(path), expected)
    ended, at_ends = 0, True
    for eos in _verified_eos(opened, sums):
        at_ends &= np.array_equal(eos + 1, opened.ends[ended : ended + len(eos)])
        ended += len(eos)
    if not at_ends or ended != opened.documents:
        path = array_path(opened.folder, opened.split, "ends")
        places = f"its {opened.documents:,} ends are not the places of the {ended:,} EOS ids"
        raise _damaged(path, places)


def _verified_eos(opened: TokenSplit, sums: list[str]) -> Iterator[Ints]:
    """The places of EOS, in order, of files whose ids and SHA-256 are checked on the way."""
    for number, (shard, expected) in enumerate(zip(opened._shards, sums, strict=True)):
        path, sha = shard_path(opened.folder, opened.split, number), hashlib.sha256()
        for start in range(0, len(shard), _CHECK_TOKENS):
            part = shard[start : start + _CHECK_TOKENS]
            sha.update(part.data)
            if (largest := int(part.max())) >= opened.vocab_size:
                raise _damaged(path, f"it holds id {largest}, the vocabulary {opened.vocab_size}")
            yield np.flatnonzero(part == opened.eos_id) + opened._starts[number] + start
        _check_sum(path, sha.hexdigest(), expected)


def _check_size(path: Path, expected: int) -> None:
    if not path.exists():
        raise _damaged(path, "it is missing")
    if (size := path.stat().st_size) != expected:
        raise _damaged(path, f"{size:,} bytes, expected {expected:,}")


def _check_sum(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise _damaged(path, f"its SHA-256 is {found[:12]}..., expected {expected[:12]}...")


def _load_array(path: Path, length: int) -> Ints:
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise _damaged(path, "it is missing") from None
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from None
    if values.dtype != np.int64 or values.shape != (length,):
        raise _damaged(path, f"{values.dtype} {values.shape}, expected int64 ({length},)")
    return np.asarray(values)  # a plain array over the map: numpy.memmap makes small calls slow


def _damaged(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} is damaged or was changed: {why}",
        hint=f"encode it again: dvc repro --force encode@{path.parent.name}",
        exit_code=BAD_DATA,
    )
