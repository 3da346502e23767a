"""Dedup of anybody's files: the engine of the stage, and the kept rows in files of the same form.

    a.jsonl b.jsonl.gz ... --find_duplicates--> DIR/a.jsonl DIR/b.jsonl.gz ... and removed.jsonl

Kept rows stay as they are, byte for byte in lines and with all columns in parquet, in their order.
Of duplicates the one in the earlier file, or in the earlier row, stays.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.data.duplicates import REASONS, STAYS, Verdicts, find_duplicates
from tasks.data.texts import (
    COMPRESSED,
    PART_BYTES,
    Format,
    Part,
    check_column,
    lines,
    record_batches,
)
from tasks.errors import NO_INPUT, UserError, nearest
from tasks.files import atomic_folder
from tasks.recipe import Dedup
from tasks.shardwise import work_folder

FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".txt": "txt",
}  # fmt: skip
REMOVED = "removed.jsonl"


@dataclass(frozen=True)
class Account:
    """What became of one file's rows."""

    path: Path
    rows: int
    exact: int
    near: int

    @property
    def kept(self) -> int:
        return self.rows - self.exact - self.near


def dedup_files(
    patterns: Sequence[str],
    out: Path,
    settings: Dedup,
    *,
    text_key: str = "text",
    by_line: bool = False,
    overwrite: bool = False,
) -> list[Account]:
    """Write the rows that stay, file by file, and removed.jsonl, into a new folder.

    Args:
        patterns: files or globs: JSON lines, parquet or text, also as .gz, .bz2 or .zst (but for
            parquet); all of one form.
        out: the folder; beside it lies unfinished work, with which the same command goes on.
        settings: what is a duplicate.
        text_key: column of the text.
        by_line: a line of a text file is a document, and not the whole file.
        overwrite: replace ``out`` where it exists.

    Returns:
        The account of each file, in order.

    Raises UserError for no such file, files of several forms, two files of one name, a missing
    column, damaged files, and an ``out`` that is there without ``overwrite``.
    """
    _check_free(out, overwrite)
    paths = _paths(patterns)
    form = _form(paths, by_line)
    if any(out.resolve() == path.parent for path in paths):
        raise UserError(f"{out} holds the files that are read", hint="give another --out")
    parts = [part for path in paths for part in _parts(path, form, text_key)]
    work_at = out.resolve().parent / f".{out.name}.work"
    with work_folder(work_at) as work:
        verdicts = find_duplicates(parts, [_bytes(part) for part in parts], settings, work)
        with atomic_folder(out) as folder:
            accounts = [_write_kept(path, folder / path.name, parts, verdicts) for path in paths]
            _write_removed(folder / REMOVED, parts, verdicts)
    return accounts


def _check_free(out: Path, overwrite: bool) -> None:
    """Refuse a folder that is there; even to overwrite, one that dedup has not written."""
    if not out.exists():
        return
    if not overwrite:
        raise UserError(f"{out} is there already", hint="give another --out, or --overwrite")
    if not out.is_dir() or (any(out.iterdir()) and not (out / REMOVED).exists()):
        raise UserError(
            f"{out} holds other things than an earlier dedup", hint="give another --out"
        )


def _paths(patterns: Sequence[str]) -> list[Path]:
    """The files, absolute, in the order of the patterns, each once."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        matches = sorted(glob(pattern, recursive=True)) or [pattern]  # noqa: PTH207
        for path in map(Path, matches):
            if not path.is_file():
                there = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
                near = nearest(path.name, there)
                hint = f"did you mean {path.parent / near}?" if near else None
                raise UserError(f"no file {path}", hint=hint, exit_code=NO_INPUT)
            found[path.resolve()] = None
    names: dict[str, Path] = {}
    for path in found:
        if path.name in (*names, REMOVED):
            raise UserError(
                f"{path.name} cannot be written twice: {names.get(path.name, REMOVED)}, {path}",
                hint="rename one of them",
            )
        names[path.name] = path
    return list(found)


def _form(paths: Sequence[Path], by_line: bool) -> Format:
    """The one form of all files."""
    forms: dict[Format, Path] = {}
    for path in paths:
        ending = Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix
        form = FORMATS.get(ending.lower())
        if form is None or (form == "parquet" and path.suffix in COMPRESSED):
            raise UserError(
                f"{path} is of no known form",
                hint=f"files may end in {', '.join(FORMATS)}, and in .gz, .bz2 or .zst behind that",
            )
        forms.setdefault(form, path)
    if len(forms) > 1:
        pairs = ", ".join(f"{path.name} is {form}" for form, path in forms.items())
        raise UserError(f"the files are of several forms: {pairs}", hint="convert them to one")
    (form,) = forms
    if by_line and form != "txt":
        raise UserError(f"--lines is for text files, and these are {form}")
    return "lines" if by_line else form


def _parts(path: Path, form: Format, key: str) -> Iterator[Part]:
    """Stretches of a file of about ``PART_BYTES``; a compressed one cannot be entered midway."""

    def part(start: int, stop: int | None) -> Part:
        return Part(format=form, path=str(path), key=key, start=start, stop=stop)

    size = path.stat().st_size
    if form == "parquet":
        metadata = _metadata(path, key)
        start, held = 0, 0
        for group in range(metadata.num_row_groups):
            held += metadata.row_group(group).total_byte_size
            if held >= PART_BYTES or group == metadata.num_row_groups - 1:
                yield part(start, group + 1)
                start, held = group + 1, 0
    elif form == "txt" or path.suffix in COMPRESSED or size <= PART_BYTES:
        yield part(0, None)
    else:
        for start in range(0, size, PART_BYTES):
            yield part(start, min(size, start + PART_BYTES))


def _metadata(path: Path, key: str) -> Any:
    try:
        with pq.ParquetFile(path) as file:
            check_column(file.schema_arrow, key, path)
            return file.metadata
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def _bytes(part: Part) -> int:
    if part["format"] in ("jsonl", "lines") and part["stop"]:
        return part["stop"] - part["start"]
    return Path(part["path"]).stat().st_size


def _write_kept(path: Path, out: Path, parts: Sequence[Part], verdicts: Verdicts) -> Account:
    """Write one file's rows that stay."""
    own = [
        (part, bounds)
        for part, bounds in zip(parts, verdicts.parts(), strict=True)
        if part["path"] == str(path)
    ]
    first, stop = (own[0][1][0], own[-1][1][1]) if own else (0, 0)
    reason = verdicts.reason[first:stop]
    account = Account(path, stop - first, *(int((reason == r).sum()) for r in (1, 2)))
    if path.suffix == ".parquet":
        _write_rows(path, out, own, verdicts)
    elif account.kept or not path.name.endswith((".txt", *(f".txt{c}" for c in COMPRESSED))):
        with _open_out(out) as handle:
            for part, (start, _) in own:
                for number, (raw, _) in enumerate(lines(part), start=start):
                    if verdicts.reason[number] == STAYS:
                        handle.write(raw)
    return account


def _write_rows(
    path: Path, out: Path, own: Sequence[tuple[Part, tuple[int, int]]], verdicts: Verdicts
) -> None:
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
    with pq.ParquetWriter(out, schema, compression="zstd", write_page_checksum=True) as writer:
        for part, (number, _) in own:
            for batch in record_batches(part):
                reason: npt.NDArray[np.uint8] = verdicts.reason[number : number + batch.num_rows]
                number += batch.num_rows
                writer.write_batch(batch.filter(pa.array(reason == STAYS)))


@contextlib.contextmanager
def _open_out(path: Path) -> Iterator[BinaryIO]:
    """Open for writing, compressed as the name says."""
    if path.suffix in COMPRESSED:
        with pa.output_stream(str(path)) as stream:
            yield stream
    else:
        with open(path, "wb") as handle:
            yield handle


def _write_removed(path: Path, parts: Sequence[Part], verdicts: Verdicts) -> None:
    """One line for each row that went: its id, and that of the row that stays."""
    names: list[str] = []
    firsts: list[int] = []  # of each file
    starts: list[int] = []
    bounds = list(verdicts.parts())
    for part, (first, _) in zip(parts, bounds, strict=True):
        if not starts or part["path"] != parts[len(starts) - 1]["path"]:
            file_first = first
        names.append(Path(part["path"]).name)
        firsts.append(file_first)
        starts.append(first)
    edges = np.array(starts, np.int64)

    def place(number: int) -> tuple[str, int]:
        at = int(np.searchsorted(edges, number, side="right")) - 1
        return names[at], number - firsts[at]

    with open(path, "w", encoding="utf-8") as handle:
        for start, stop in bounds:
            gone = np.flatnonzero(verdicts.reason[start:stop] != STAYS) + start
            kept = verdicts.kept[gone]
            ids, kept_ids = verdicts.ids(gone), verdicts.ids(kept)
            for number, stays, id_, kept_id in zip(
                gone.tolist(), kept.tolist(), ids, kept_ids, strict=True
            ):
                (file, row), (kept_file, kept_row) = place(number), place(stays)
                line = {
                    "id": id_,
                    "kept_id": kept_id,
                    "jaccard": float(verdicts.jaccard[number]),
                    "reason": REASONS[verdicts.reason[number]],
                    "file": file,
                    "row": row,
                    "kept_file": kept_file,
                    "kept_row": kept_row,
                }
                handle.write(json.dumps(line) + "\n")
