"""One file as rows, by its format: txt, paragraphs, lines, jsonl, csv, parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tasks.data.documents import MOST_BYTES
from tasks.data.encoding import Decoded, Policy, decode, refuse_binary, repair
from tasks.data.parquet import parquet_rows
from tasks.data.rows import Row, labels
from tasks.errors import BAD_DATA, UserError

MOST_LINE_BYTES = 4 * MOST_BYTES  # a line of JSON has other columns and escapes
_PIECE_BYTES = 1_000_000


def file_rows(root: Path, path: str, kind: str, policy: Policy, skip: int = 0) -> Iterator[Row]:
    """The rows of the file ``root/path`` of a format, without the first ``skip``.

    A row's place is (0, how many could be skipped before it). Raises UserError naming file and line
    for whatever cannot be read.
    """
    if kind != "parquet":
        refuse_binary(root / path)
    file = _File(root / path, path, policy)
    formats: dict[str, Callable[[int], Iterator[Row]]] = {
        "txt": file.text,
        "paragraphs": file.paragraphs,
        "lines": file.lines,
        "jsonl": file.json_lines,
        "csv": file.table,
        "parquet": file.parquet,
    }
    return formats[kind](skip)


@dataclass(frozen=True)
class _File:
    """A file, what it is called, and what is done about bytes that are not UTF-8."""

    full: Path
    path: str
    policy: Policy

    def _row(
        self, values: dict[str, Any], place: dict[str, int], number: int, decoded: Decoded
    ) -> Row:
        """A row at a place of the file; ``number`` counts what could be skipped before it."""
        return Row(
            values,
            {"file": self.path} | place | labels(values),
            (0, number),
            dropped="encoding" if decoded.skip else None,
            repaired=0 if decoded.skip else decoded.repaired,
        )

    def text(self, skip: int) -> Iterator[Row]:
        if skip:
            return
        if (size := self.full.stat().st_size) > MOST_BYTES:
            raise UserError(
                f"would be one document of {size:,} bytes; the most is {MOST_BYTES:,}",
                where=str(self.full),
                hint="set files.format to paragraphs or lines, each a document, or split the file",
                exit_code=BAD_DATA,
            )
        decoded = decode(self.full.read_bytes(), self.policy, str(self.full))
        yield self._row({"text": decoded.text}, {}, 0, decoded)

    def lines(self, skip: int) -> Iterator[Row]:
        for number, line in self._decoded_lines(skip):
            if isinstance(line, Row):
                yield line
            else:
                yield self._row({"text": line.text}, {"line": number}, number - 1, line)

    def paragraphs(self, skip: int) -> Iterator[Row]:
        """What stands between blank lines; a row's number is that of the line before it."""
        held: list[Decoded] = []
        first = 0

        def paragraph() -> Iterator[Row]:
            if held:
                text = "\n".join(line.text for line in held)
                repaired = sum(line.repaired for line in held)
                whole = Decoded(text, repaired, any(line.skip for line in held))
                yield self._row({"text": text}, {"line": first}, first - 1, whole)
                held.clear()

        for number, line in self._decoded_lines(skip, blank=True):
            if isinstance(line, Row):
                yield from paragraph()
                yield line
            elif not line.text.strip():
                yield from paragraph()
            else:
                first = first if held else number
                held.append(line)
        yield from paragraph()

    def _decoded_lines(self, skip: int, blank: bool = False) -> Iterator[tuple[int, Decoded | Row]]:
        """Lines with their numbers; blank ones only where asked for. Only a line feed ends a line.

        One that is too long to hold comes as a row that says so.
        """
        with open(self.full, "rb") as handle:
            for number, raw, size in _bounded_lines(handle):
                if number <= skip:
                    continue
                if size > MOST_LINE_BYTES:
                    shown = {"text": raw[:1000].decode(errors="replace")}
                    origin = {"file": self.path, "line": number}
                    yield number, Row(shown, origin, (0, number - 1), "too_long", size)
                    continue
                where = f"{self.full}:{number}"
                decoded = decode(raw.rstrip(b"\r\n"), self.policy, where)
                if blank or decoded.text.strip():
                    yield number, decoded

    def json_lines(self, skip: int) -> Iterator[Row]:
        for number, decoded in self._decoded_lines(skip):
            if isinstance(decoded, Row):
                yield decoded
                continue
            values = json_object(decoded.text, f"{self.full}:{number}")
            yield self._row(values, {"line": number}, number - 1, decoded)

    def table(self, skip: int) -> Iterator[Row]:
        csv.field_size_limit(MOST_LINE_BYTES)
        tabs = self.full.suffix.lower() == ".tsv"
        with open(self.full, encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
            lines = iter(lambda: handle.readline(MOST_LINE_BYTES + 1), "")
            reader = csv.reader(lines, delimiter="\t" if tabs else ",", strict=True)
            try:
                header = next(reader, [])
                for number, cells in enumerate(reader):
                    where = f"{self.full}:{reader.line_num}"
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
                    fields = [repair(c, self.policy, where) for c in cells]
                    values = dict(zip(header, (field.text for field in fields), strict=True))
                    whole = Decoded(
                        "", sum(f.repaired for f in fields), any(f.skip for f in fields)
                    )
                    yield self._row(values, {"line": reader.line_num}, number, whole)
            except csv.Error as error:
                raise UserError(
                    f"not CSV: {error}",
                    where=f"{self.full}:{reader.line_num}",
                    hint="look for a quote that is not closed; separator, quotes and line ends "
                    "are those of RFC 4180",
                    exit_code=BAD_DATA,
                ) from None

    def parquet(self, skip: int) -> Iterator[Row]:
        for number, values in parquet_rows(self.full, skip):
            yield self._row(values, {"row": number}, number, Decoded(""))


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


def json_object(line: str, where: str) -> dict[str, Any]:
    """A line of JSON lines. Raises UserError where it is no object."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:  # or a number of thousands of digits
        raise UserError(
            f"not JSON: {error}",
            where=where,
            hint="mend or delete the line; plain text is 'lines' (format, in a recipe) or a .txt",
            exit_code=BAD_DATA,
        ) from None
    if not isinstance(values, dict):
        raise UserError(
            f"expected an object with columns, got {type(values).__name__}",
            where=where,
            hint='a line of JSON lines is an object: {"text": "..."}',
            exit_code=BAD_DATA,
        )
    return values
