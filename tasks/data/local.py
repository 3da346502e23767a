"""Rows of local files: txt, lines, jsonl, csv, parquet."""

from __future__ import annotations

import csv
import glob
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tasks.data.encoding import Decoded, decode, refuse_binary, repair
from tasks.data.rows import Row, labels
from tasks.errors import BAD_DATA, NO_INPUT, UserError
from tasks.files import sha256_file
from tasks.recipe import SPLITS, Files, Split

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

    def __init__(self, files: Files, root: Path, where: str) -> None:
        """Raises UserError: no file matches (exit code 66), an unknown ending, one file twice."""
        self._files, self._root, self._where = files, root, where
        self._paths = {split: self._matches(split) for split in SPLITS if getattr(files, split)}
        self._refuse_shared()
        self._repaired_bytes = 0

    @property
    def splits(self) -> list[Split]:
        return list(self._paths)

    def _matches(self, split: Split) -> list[str]:
        patterns: list[str] = getattr(self._files, split)
        found = {
            path
            for pattern in patterns
            for path in glob.glob(pattern, root_dir=self._root, recursive=True)  # noqa: PTH207
            if (self._root / path).is_file()
        }
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

    def rows(self, split: Split) -> Iterator[Row]:
        """The rows of a split, file by file in the order of their names.

        Raises UserError naming file and line for whatever cannot be read.
        """
        for path in self._paths[split]:
            try:
                yield from self._read(path)(path)
            except PermissionError:
                raise UserError(
                    "no permission to read this file",
                    where=str(self._root / path),
                    exit_code=NO_INPUT,
                ) from None

    def _read(self, path: str) -> Callable[[str], Iterator[Row]]:
        kind: str = self._files.format
        if kind == "auto":
            kind = _ENDINGS.get(Path(path).suffix.lower(), "")
            if not kind:
                raise UserError(
                    f"{path}: cannot tell the format from the ending {Path(path).suffix!r}; "
                    f"known are {', '.join(_ENDINGS)}",
                    where=f"{self._where}.files.format",
                    hint="set format to txt, lines, jsonl, csv or parquet",
                )
        if kind != "parquet":
            refuse_binary(self._root / path)
        readers: dict[str, Callable[[str], Iterator[Row]]] = {
            "txt": self._text,
            "lines": self._lines,
            "jsonl": self._json_lines,
            "csv": self._csv,
            "parquet": self._parquet,
        }
        return readers[kind]

    def _row(self, values: dict[str, Any], origin: dict[str, Any], decoded: Decoded) -> Row:
        self._repaired_bytes += 0 if decoded.skip else decoded.repaired
        return Row(values, origin | labels(values), bad_encoding=decoded.skip)

    def _text(self, path: str) -> Iterator[Row]:
        full = self._root / path
        decoded = decode(full.read_bytes(), self._files.encoding_errors, str(full))
        yield self._row({"text": decoded.text}, {"file": path}, decoded)

    def _lines(self, path: str) -> Iterator[Row]:
        for number, decoded in self._decoded_lines(path):
            yield self._row({"text": decoded.text}, {"file": path, "line": number}, decoded)

    def _decoded_lines(self, path: str) -> Iterator[tuple[int, Decoded]]:
        """Lines with their numbers, blank ones left out; only a line feed ends a line."""
        full = self._root / path
        with open(full, "rb") as handle:
            for number, raw in enumerate(handle, start=1):
                where = f"{full}:{number}"
                decoded = decode(raw.rstrip(b"\r\n"), self._files.encoding_errors, where)
                if decoded.text.strip():
                    yield number, decoded

    def _json_lines(self, path: str) -> Iterator[Row]:
        for number, decoded in self._decoded_lines(path):
            where = f"{self._root / path}:{number}"
            try:
                values = json.loads(decoded.text)
            except (json.JSONDecodeError, RecursionError) as error:
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
                    exit_code=BAD_DATA,
                )
            yield self._row(values, {"file": path, "line": number}, decoded)

    def _csv(self, path: str) -> Iterator[Row]:
        full = self._root / path
        csv.field_size_limit(sys.maxsize)
        tabs = full.suffix.lower() == ".tsv"
        with open(full, encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
            reader = csv.reader(handle, delimiter="\t" if tabs else ",", strict=True)
            try:
                header = next(reader, [])
                for cells in reader:
                    where = f"{full}:{reader.line_num}"
                    if not cells:
                        continue
                    if len(cells) != len(header):
                        raise UserError(
                            f"{len(cells)} columns, but the header has {len(header)}: "
                            f"{', '.join(header)}",
                            where=where,
                            exit_code=BAD_DATA,
                        )
                    fields = [repair(c, self._files.encoding_errors, where) for c in cells]
                    values = dict(zip(header, (field.text for field in fields), strict=True))
                    whole = Decoded(
                        "", sum(f.repaired for f in fields), any(f.skip for f in fields)
                    )
                    yield self._row(values, {"file": path, "line": reader.line_num}, whole)
            except csv.Error as error:
                raise UserError(
                    f"not CSV: {error}", where=f"{full}:{reader.line_num}", exit_code=BAD_DATA
                ) from None

    def _parquet(self, path: str) -> Iterator[Row]:
        for number, values in enumerate(parquet_rows(self._root / path)):
            yield self._row(values, {"file": path, "row": number}, Decoded(""))

    def provenance(self) -> dict[str, Any]:
        """Every file of every split, with its bytes and SHA-256, and what was not UTF-8."""
        return {
            "kind": "files",
            "repaired_bytes": self._repaired_bytes,
            "files": [
                {"split": split} | file_facts(self._root, path)
                for split, paths in self._paths.items()
                for path in paths
            ],
        }


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file as plain values. Raises UserError for one that is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"not a readable parquet file: {error}", where=str(path), exit_code=BAD_DATA
        ) from None


def file_facts(root: Path, path: str) -> dict[str, Any]:
    """Name, bytes and SHA-256 of a file, as provenance has them."""
    full = root / path
    return {"file": path, "bytes": full.stat().st_size, "sha256": sha256_file(full)}
