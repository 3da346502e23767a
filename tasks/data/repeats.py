"""data/dedup/repeated.parquet: the repeated passages of training text, and how they are cut.

source, split, position   the document's place (position within source and split)
first, stop               a passage: its first word, and the word behind its last

Dedup finds them (spans.py) and writes them; the split stage cuts them, in training text alone, at
the borders of sentences, as decontamination does. Words are those of shingles.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.data.cluster import Indices
from tasks.data.decontaminate import without_words, word_places
from tasks.data.documents import Document
from tasks.data.held_out import Numbered
from tasks.data.shingles import word_hashes
from tasks.errors import BAD_DATA, UserError
from tasks.ledger import EXAMPLE_CHARACTERS, Ledger
from tasks.recipe import Split

FILE = "repeated.parquet"
REASON = "repeated_span"
SHOWN = 10  # cuts of a source, in its ledger
SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("split", pa.string()),
        ("position", pa.int64()),
        ("first", pa.int64()),
        ("stop", pa.int64()),
    ]
)
Ranges = list[tuple[int, int]]  # of words: first, and the one behind the last


def write_repeats(path: Path, found: Iterable[tuple[tuple[str, Split, int], Indices]]) -> None:
    """Write passages, those of one source and split after the other's.

    Each item: source, split and the number of the first document of these, and the passages.
    """
    with pq.ParquetWriter(path, SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        for (source, split, start), rows in found:
            if len(rows):
                names = [[name] * len(rows) for name in (source, split)]
                columns = [*names, rows[:, 0] - start, rows[:, 1], rows[:, 2]]
                writer.write_table(pa.table(columns, schema=SCHEMA))


def repeats_of(
    folder: Path, source: str, split: Split, first: int, rows: int
) -> dict[int, Ranges] | None:
    """The passages of documents ``first`` to ``first + rows`` of a source and split, by the number
    of the document among these. None where ``folder``, data/dedup, was made without them.

    Raises UserError where the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    where = [
        ("source", "=", source),
        ("split", "=", split),
        ("position", ">=", first),
        ("position", "<", first + rows),
    ]
    try:  # row groups are of one shard each, so the others are not read
        table = pq.read_table(
            path, columns=SCHEMA.names[2:], filters=where, page_checksum_verification=True
        )
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path} is damaged: {error}",
            hint="run: python -m tasks.data.dedup",
            exit_code=BAD_DATA,
        ) from None
    found: dict[int, Ranges] = {}
    for position, start, stop in zip(*table.to_pydict().values(), strict=True):
        found.setdefault(position - first, []).append((start, stop))
    return found


def without_repeats(
    documents: Iterable[Numbered], found: dict[int, Ranges] | None, ledger: Ledger
) -> Iterator[Numbered]:
    """The documents, training text without the passages that ``repeats_of`` found in it.

    A document that goes whole is booked; of one that stays, what it lost alone: the caller books
    the rest of it. Where a letter's lower case is two characters, words cannot be told from the
    hashes, and the document stays as it is.
    """
    if found is None:
        yield from documents
        return
    note = ledger.notes.setdefault("repeated_spans", blank_note())
    for number, document in documents:
        ranges = found.get(number, []) if document.split == "train" else []
        places = word_places(document.text) if ranges else []
        if len(places) != (len(word_hashes([document.text]).hashes) if ranges else 0):
            ranges = []
        if not ranges:
            yield number, document
            continue
        rest = without_words(document.text, places, ranges)
        _note(note, document, places, ranges, rest)
        if rest is None:
            ledger.drop(REASON, document.text)
            continue
        made = Document.of(rest, document.source, document.split, document.origin)
        lost = document.bytes - made.bytes
        note["documents_cut"] += 1
        note["bytes_cut"] += lost
        ledger.taken.add(lost, documents=0)
        ledger.edited_bytes += lost
        yield number, made


def blank_note() -> dict[str, Any]:
    """What the ledger of the split tells of repeated passages."""
    return {"documents_cut": 0, "bytes_cut": 0, "words_repeated": 0, "shown": []}


def merge_note(note: dict[str, Any], part: dict[str, Any]) -> None:
    """Add the note of a part of the same source."""
    for name in ("documents_cut", "bytes_cut", "words_repeated"):
        note[name] += part[name]
    note["shown"] = (note["shown"] + part["shown"])[:SHOWN]


def _note(
    note: dict[str, Any],
    document: Document,
    places: list[tuple[int, int]],
    ranges: Ranges,
    rest: str | None,
) -> None:
    note["words_repeated"] += sum(stop - start for start, stop in ranges)
    if len(note["shown"]) < SHOWN:
        start, stop = ranges[0]
        passage = document.text[places[start][0] : places[stop - 1][1]]
        note["shown"].append(
            {
                "document": document.text[:100],
                "passage": passage[:EXAMPLE_CHARACTERS],
                "words": stop - start,
                "lost": "the document" if rest is None else "sentences",
            }
        )
