"""Rows of local files: txt, paragraphs, lines, jsonl, csv, parquet."""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from tasks.data.documents import MOST_BYTES
from tasks.data.encoding import Decoded, decode, refuse_binary, repair
from tasks.data.parquet import parquet_rows
from tasks.data.rows import Place, Row, labels
from tasks.errors import BAD_DATA, NO_INPUT, UserError
from tasks.files import sha256_file
from tasks.recipe import SPLITS, Files, Split
from tasks.shardwise import identity

MOST_LINE_BYTES = 4 * MOST_BYTES  # a line of JSON has other columns and escapes
_PIECE_BYTES = 1_000_000
_ENDINGS = {
    ".txt": "txt",
    ".text": "txt",
    ".md": "txt",
    ".rst": "txt",
    ".tex": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}


class LocalReader:
    """The files of a source, by glob relative to the folder of params.yaml."""

    resumable: ClassVar[bool] = True

    def __init__(self, files: Files, root: Path, where: str) -> None:
        """Raises UserError: no file matches (exit code 66), an unknown ending, one file twice."""
        self._files, self._root, self._where = files, root, where
        self._paths = {split: self._matches(split) for split in SPLITS if getattr(files, split)}
        self._refuse_shared()

    @property
    def splits(self) -> list[Split]:
        return list(self._paths)

    @property
    def folder(self) -> Path:
        return self._root

    @property
    def paths(self) -> dict[Split, list[str]]:
        """The files of each split, relative to ``folder``."""
        return self._paths

    def _matches(self, split: Split) -> list[str]:
        patterns: list[str] = getattr(self._files, split)
        there = {
            path
            for pattern in patterns
            for path in glob.glob(pattern, root_dir=self._root, recursive=True)  # noqa: PTH207
        }
        found = {path for path in there if (self._root / path).is_file()}
        for path in sorted(there - found):
            if not (self._root / path).is_dir():
                raise UserError(
                    "is no file: a link that leads nowhere, or a pipe",
                    where=str(self._root / path),
                    hint="mend or delete it, or write globs that leave it out",
                    exit_code=NO_INPUT,
                )
        if not found:
            raise UserError(
                f"no file matches {', '.join(map(repr, patterns))} in {self._root.resolve()}",
                where=f"{self._where}.files.{split}",
                hint="globs are relative to the folder of params.yaml; ** matches any folders",
                exit_code=NO_INPUT,
            )
        return sorted(found)

    def _refuse_shared(self) -> None:
        seen: dict[str, Split] = {}
        for split, paths in self._paths.items():
            for path in paths:
                if path in seen:
                    raise UserError(
                        f"{path} is matched by both {seen[path]} and {split}",
                        where=f"{self._where}.files",
                        hint="name each file in one split",
                    )
                seen[path] = split

    def rows(self, split: Split, start: Place = (0, 0), mark: Any = None) -> Iterator[Row]:
        """The rows of a split, file by file in the order of their names, from ``start`` on.

        Raises UserError naming file and line for whatever cannot be read.
        """
        for number, path in enumerate(self._paths[split]):
            if number < start[0]:
                continue
            skip = start[1] if number == start[0] else 0
            try:
                for row in self._read(path)(path, skip):
                    yield replace(row, place=(number, row.place[1]))
            except PermissionError:
                raise UserError(
                    "no permission to read this file",
                    where=str(self._root / path),
                    exit_code=NO_INPUT,
                ) from None

    def mark(self, place: Place) -> Any:
        return None

    def identity(self) -> Any:
        paths = [path for paths in self._paths.values() for path in paths]
        return [paths, identity(self._root / path for path in paths)]

    def _read(self, path: str) -> Callable[[str, int], Iterator[Row]]:
        kind: str = self._files.format
        if kind == "auto":
            kind = _ENDINGS.get(Path(path).suffix.lower(), "")
            if not kind:
                raise UserError(
                    f"{path}: cannot tell the format from the ending {Path(path).suffix!r}; "
                    f"known are {', '.join(_ENDINGS)}",
                    where=f"{self._where}.files.format",
                    hint="set format to txt, paragraphs, lines, jsonl, csv or parquet",
                )
        if kind != "parquet":
            refuse_binary(self._root / path)
        readers: dict[str, Callable[[str, int], Iterator[Row]]] = {
            "txt": self._text,
            "paragraphs": self._paragraphs,
            "lines": self._lines,
            "jsonl": self._json_lines,
            "csv": self._csv,
            "parquet": self._parquet,
        }
        return readers[kind]

    def _row(
        self, values: dict[str, Any], origin: dict[str, Any], number: int, decoded: Decoded
    ) -> Row:
        """A row of a file; ``number`` counts what could be skipped before it."""
        return Row(
            values,
            origin | labels(values),
            (0, number),
            dropped="encoding" if decoded.skip else None,
            repaired=0 if decoded.skip else decoded.repaired,
        )

    def _text(self, path: str, skip: int) -> Iterator[Row]:
        full = self._root / path
        if skip:
            return
        if (size := full.stat().st_size) > MOST_BYTES:
            raise UserError(
                f"would be one document of {size:,} bytes; the most is {MOST_BYTES:,}",
                where=str(full),
                hint="set files.format to paragraphs or lines, each a document, or split the file",
                exit_code=BAD_DATA,
            )
        decoded = decode(full.read_bytes(), self._files.encoding_errors, str(full))
        yield self._row({"text": decoded.text}, {"file": path}, 0, decoded)

    def _lines(self, path: str, skip: int) -> Iterator[Row]:
        for number, line in self._decoded_lines(path, skip):
            if isinstance(line, Row):
                yield line
            else:
                origin = {"file": path, "line": number}
                yield self._row({"text": line.text}, origin, number - 1, line)

    def _paragraphs(self, path: str, skip: int) -> Iterator[Row]:
        """What stands between blank lines; a row's number is that of the line before it."""
        held: list[Decoded] = []
        first = 0

        def paragraph() -> Iterator[Row]:
            if held:
                text = "\n".join(line.text for line in held)
                repaired = sum(line.repaired for line in held)
                whole = Decoded(text, repaired, any(line.skip for line in held))
                yield self._row({"text": text}, {"file": path, "line": first}, first - 1, whole)
                held.clear()

        for number, line in self._decoded_lines(path, skip, blank=True):
            if isinstance(line, Row):
                yield from paragraph()
                yield line
            elif not line.text.strip():
                yield from paragraph()
            else:
                first = first if held else number
                held.append(line)
        yield from paragraph()

    def _decoded_lines(
        self, path: str, skip: int, blank: bool = False
    ) -> Iterator[tuple[int, Decoded | Row]]:
        """Lines with their numbers; blank ones only where asked for. Only a line feed ends a line.

        One that is too long to hold comes as a row that says so.
        """
        full = self._root / path
        with open(full, "rb") as handle:
            for number, raw, size in _bounded_lines(handle):
                if number <= skip:
                    continue
                if size > MOST_LINE_BYTES:
                    shown = {"text": raw[:1000].decode(errors="replace")}
                    origin = {"file": path, "line": number}
                    yield number, Row(shown, origin, (0, number - 1), "too_long", size)
                    continue
                where = f"{full}:{number}"
                decoded = decode(raw.rstrip(b"\r\n"), self._files.encoding_errors, where)
                if blank or decoded.text.strip():
                    yield number, decoded

    def _json_lines(self, path: str, skip: int) -> Iterator[Row]:
        for number, decoded in self._decoded_lines(path, skip):
            if isinstance(decoded, Row):
                yield decoded
                continue
            where = f"{self._root / path}:{number}"
            try:
                values = json.loads(decoded.text)
            except (ValueError, RecursionError) as error:  # or a number of thousands of digits
                raise UserError(
                    f"not JSON: {error}",
                    where=where,
                    hint="mend or delete the line; format 'lines' reads lines of plain text",
                    exit_code=BAD_DATA,
                ) from None
            if not isinstance(values, dict):
                raise UserError(
                    f"expected an object with columns, got {type(values).__name__}",
                    where=where,
                    hint='a line of JSON lines is an object: {"text": "..."}',
                    exit_code=BAD_DATA,
                )
            yield self._row(values, {"file": path, "line": number}, number - 1, decoded)

    def _csv(self, path: str, skip: int) -> Iterator[Row]:
        full = self._root / path
        csv.field_size_limit(MOST_LINE_BYTES)
        tabs = full.suffix.lower() == ".tsv"
        with open(full, encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
            lines = iter(lambda: handle.readline(MOST_LINE_BYTES + 1), "")
            reader = csv.reader(lines, delimiter="\t" if tabs else ",", strict=True)
            try:
                header = next(reader, [])
                for number, cells in enumerate(reader):
                    where = f"{full}:{reader.line_num}"
                    if not cells or number < skip:
                        continue
                    if len(cells) != len(header):
                        raise UserError(
                            f"{len(cells)} columns, but the header has {len(header)}: "
                            f"{', '.join(header)}",
                            where=where,
                            hint="put a cell that holds the separator into quotes",
                            exit_code=BAD_DATA,
                        )
                    fields = [repair(c, self._files.encoding_errors, where) for c in cells]
                    values = dict(zip(header, (field.text for field in fields), strict=True))
                    whole = Decoded(
                        "", sum(f.repaired for f in fields), any(f.skip for f in fields)
                    )
                    origin = {"file": path, "line": reader.line_num}
                    yield self._row(values, origin, number, whole)
            except csv.Error as error:
                raise UserError(
                    f"not CSV: {error}",
                    where=f"{full}:{reader.line_num}",
                    hint="look for a quote that is not closed; separator, quotes and line ends "
                    "are those of RFC 4180",
                    exit_code=BAD_DATA,
                ) from None

    def _parquet(self, path: str, skip: int) -> Iterator[Row]:
        for number, values in parquet_rows(self._root / path, skip):
            yield self._row(values, {"file": path, "row": number}, number, Decoded(""))

    def provenance(self) -> dict[str, Any]:
        """Every file of every split, with its bytes and SHA-256."""
        return {
            "kind": "files",
            "files": [
                {"split": split} | file_facts(self._root, path)
                for split, paths in self._paths.items()
                for path in paths
            ],
        }


def _bounded_lines(handle: BinaryIO) -> Iterator[tuple[int, bytes, int]]:
    """Number, beginning and bytes of each line; of a longer one than fits only the beginning."""
    number = 0
    while raw := handle.readline(MOST_LINE_BYTES + 1):
        number += 1
        size = last = len(raw)
        if size > MOST_LINE_BYTES:
            ended, raw = raw.endswith(b"\n"), raw[:1000]
            while not ended and last:
                piece = handle.readline(_PIECE_BYTES)
                last, ended = len(piece), piece.endswith(b"\n")
                size += last
        yield number, raw, size


def file_facts(root: Path, path: str) -> dict[str, Any]:
    """Name, bytes and SHA-256 of a file, as provenance has them."""
    full = root / path
    return {"file": path, "bytes": full.stat().st_size, "sha256": sha256_file(full)}
