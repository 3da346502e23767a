"""The local files of a source: which they are, in which split, and their rows one after another."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from tasks.data.formats import file_rows
from tasks.data.rows import Place, Row
from tasks.errors import NO_INPUT, UserError
from tasks.files import sha256_file
from tasks.recipe import SPLITS, Files, Split
from tasks.shardwise import identity

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
        """Raises UserError where no file matches (exit code 66), or one does in two splits."""
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

        Raises UserError for an ending that is not known, and naming file and line for whatever
        cannot be read.
        """
        policy = self._files.encoding_errors
        for number, path in enumerate(self._paths[split]):
            if number < start[0]:
                continue
            skip = start[1] if number == start[0] else 0
            try:
                for row in file_rows(self._root, path, self._kind(path), policy, skip):
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

    def _kind(self, path: str) -> str:
        """The format of a file: as the recipe says, or by its ending."""
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
        return kind

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


def file_facts(root: Path, path: str) -> dict[str, Any]:
    """Name, bytes and SHA-256 of a file, as provenance has them."""
    full = root / path
    return {"file": path, "bytes": full.stat().st_size, "sha256": sha256_file(full)}
