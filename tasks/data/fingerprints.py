"""What dedup keeps of a document: its id, its size, a digest of its text, and its band keys.

    a part of the texts --> runs of at most RUN documents, each a few files:
        ids     (n, 16) bytes         first half of the SHA-256 of the text
        sizes   (n,) int64            UTF-8 bytes
        digests (n, 2) uint64         SHA-256 of the normalised text; sorted, and beside it which
        digest_rows (n,) uint32           document of the run each is; where the sketch asks for it
        keys    (bands, m) uint64     of the m documents that have words, each band sorted: the
                                          band key, its last ``ROW_BITS`` replaced by which
                                          document of the run it is

A run fits in memory whatever the part's length. As its keys are sorted, all documents whose keys
lie in one range are a slice of it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tasks.data.documents import content_id
from tasks.data.minhash import band_keys, signatures
from tasks.data.shingles import BLOCK_BYTES, Hashes, shingles
from tasks.data.texts import Part, texts
from tasks.shardwise import part_folder

ROW_BITS = 16  # of a key; that the others are equal by chance only makes one candidate more
RUN = 2**ROW_BITS  # documents
_FOLD = bytes(32 if chr(b).isspace() else ord(chr(b).lower()) if b < 128 else b for b in range(256))
_OTHER_SPACE = re.compile("[\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")


class Sketch(NamedTuple):
    """What is made: digests or not, and how the band keys; ``bands`` 0: none are."""

    exact: bool
    ngram: int
    bands: int
    rows: int


class Prints(NamedTuple):
    """Fingerprints of some documents; row i is document i."""

    ids: npt.NDArray[np.uint8]  # (documents, 16)
    sizes: npt.NDArray[np.int64]
    digests: Hashes  # (documents, 2)
    keys: Hashes  # (documents, bands)
    has_words: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Run:
    """A run of fingerprints on disk.

    Attributes:
        folder: of the part that it is in.
        number: among the runs of its part.
        first: number of its first document in the corpus.
        documents: how many it holds.
    """

    folder: Path
    number: int
    first: int
    documents: int

    def array(self, name: str) -> npt.NDArray[Any]:
        """One of the files above, mapped into memory."""
        path = self.folder / f"{name}-{self.number:05d}.npy"
        return np.load(path, mmap_mode="r", allow_pickle=False)


def fingerprint_part(part: Part, out: Path, sketch: Sketch) -> list[int]:
    """Fingerprint the texts of a part into ``out``; returns the documents of each run."""
    counts: list[int] = []
    made: list[Prints] = []
    held = 0
    for ids, block in _blocks(texts(part)):
        if held + len(block) > RUN:
            counts.append(_write(out, len(counts), made))
            made, held = [], 0
        made.append(fingerprint(ids, block, sketch))
        held += len(block)
    if made:
        counts.append(_write(out, len(counts), made))
    return counts


def fingerprint(ids: Sequence[str | None], block: list[str], sketch: Sketch) -> Prints:
    """Fingerprints of a block of texts; an id that is None is made."""
    named = [id_ or content_id(text) for id_, text in zip(ids, block, strict=True)]
    found = shingles(block, sketch.ngram) if sketch.bands else None
    if found:
        keys = band_keys(signatures(found, sketch.bands * sketch.rows), sketch.bands, sketch.rows)
    return Prints(
        ids=np.frombuffer(bytes.fromhex("".join(named)), np.uint8).reshape(-1, 16),
        sizes=np.array(
            [len(text) if text.isascii() else len(text.encode()) for text in block], np.int64
        ),
        digests=exact_digests(block if sketch.exact else []),
        keys=keys if found else np.zeros((len(block), 0), np.uint64),
        has_words=np.diff(found.bounds) > 0 if found else np.zeros(len(block), bool),
    )


def _blocks(
    items: Iterator[tuple[str | None, str]],
) -> Iterator[tuple[list[str | None], list[str]]]:
    """Ids and texts of about ``BLOCK_BYTES``, which shingles and signatures share a cache with."""
    ids: list[str | None] = []
    block: list[str] = []
    held = 0
    for id_, text in items:
        ids.append(id_)
        block.append(text)
        held += len(text)
        if held >= BLOCK_BYTES or len(block) >= RUN:
            yield ids, block
            ids, block, held = [], [], 0
    if block:
        yield ids, block


def _write(out: Path, number: int, made: list[Prints]) -> int:
    """Write the run of that number; returns its documents."""

    def save(name: str, array: npt.NDArray[Any]) -> None:
        np.save(out / f"{name}-{number:05d}.npy", array, allow_pickle=False)

    ids, sizes, digests, keys, has_words = map(np.concatenate, zip(*made, strict=True))
    rows = np.flatnonzero(has_words)
    columns = keys.T[:, rows]
    columns &= ~np.uint64(2**ROW_BITS - 1)
    columns |= rows.astype(np.uint64)
    columns.sort(axis=1)
    save("ids", ids)
    save("sizes", sizes)
    save("keys", columns)
    if len(digests):
        order = np.lexsort((digests[:, 1], digests[:, 0]))
        save("digests", digests[order])
        save("digest_rows", order.astype(np.uint32))
    return len(ids)


def all_runs(folder: Path, counts: Sequence[Sequence[int]]) -> list[Run]:
    """The runs of all parts in order, numbered through; ``counts`` are the parts' results."""
    runs: list[Run] = []
    first = 0
    for part, of_part in enumerate(counts):
        for number, documents in enumerate(of_part):
            runs.append(Run(part_folder(folder, part), number, first, documents))
            first += documents
    return runs


def exact_digests(texts: Sequence[str]) -> Hashes:
    """First 16 bytes of the SHA-256 of each text in lower case with single spaces for white space.

    Punctuation counts: ``x + y`` and ``x - y`` are two texts. Texts that differ in nothing else
    have the same words, so the near step, whose shingles are of words, takes the longer ones.

    Returns:
        (texts, 2).
    """
    if not texts:
        return np.zeros((0, 2), np.uint64)
    encoded = [(text if text.isascii() else _lower(text)).encode() for text in texts]
    folded = bytearray(b" ".join([*encoded, b""])).translate(_FOLD)
    buffer = np.frombuffer(folded, np.uint8)
    keep = buffer != ord(" ")
    keep[1:] |= keep[:-1]  # the first space behind a word stays
    keep[:1] = True
    starts = np.cumsum([0, *(len(raw) + 1 for raw in encoded)])
    single = buffer[keep].tobytes()
    counts = np.add.reduceat(keep, starts[:-1], dtype=np.int64)
    edges = [0, *np.cumsum(counts).tolist()]
    digests = [
        hashlib.sha256(single[start:stop].strip(b" ")).digest()[:16]
        for start, stop in pairwise(edges)
    ]
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)


def _lower(text: str) -> str:
    """In lower case, with no white space beyond ASCII."""
    text = text.lower()
    return _OTHER_SPACE.sub(" ", text) if _OTHER_SPACE.search(text) else text
