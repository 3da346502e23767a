"""The English that every Python installation holds: docstrings, topics, descriptions, licences.

Source files are parsed, never imported: importing runs the code of every package. Parsing is what
costs, so in the many packages only files that are mostly documentation are parsed. Files are
taken in an order that is fixed and mixed (by hash of the path), so that a capped source is a fair
sample and not the packages that begin with A.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import os
import platform
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from email.parser import BytesParser
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from tasks.data.rows import Place, Row
from tasks.recipe import Split
from tasks.workers import map_ordered

Kind = Literal["stdlib", "packages"]
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
FILES_A_TASK = 64
MAX_FILE_BYTES = 1_000_000  # larger ones are generated
# least share of a source file that stands in triple quotes for it to be parsed
DOCUMENTED_SHARE: dict[Kind, float] = {"stdlib": 0.0, "packages": 0.5}
_SKIPPED_FOLDERS = {
    "__pycache__",
    "_vendor",
    "dist-packages",
    "idlelib",
    "site-packages",
    "test",
    "testing",
    "tests",
    "vendor",
}
_LICENSES = ("license", "licence", "copying", "notice", "authors")


class Text(NamedTuple):
    """One text of an installed file: the name of what it documents, and the text."""

    name: str
    text: str


class InstalledReader:
    """The documentation of the standard library, or of the installed packages."""

    splits: ClassVar[list[Split]] = ["train"]
    resumable: ClassVar[bool] = False  # seconds of work, and what it reads is an installation

    def __init__(self, kind: Kind) -> None:
        self._kind: Kind = kind
        self._roots = _roots(kind)
        self._files = 0
        self._unread: list[str] = []

    def rows(self, split: Split, start: Place = (0, 0), mark: Any = None) -> Iterator[Row]:
        """One row a text, with the column ``text``; the same installation, the same rows."""
        assert split == "train" and start == (0, 0)
        if self._kind == "stdlib":
            yield from _topics()
        for root in self._roots:
            paths = _ordered(root)
            tasks = [
                (self._kind, root, paths[i : i + FILES_A_TASK])
                for i in range(0, len(paths), FILES_A_TASK)
            ]
            for (_, _, names), results in map_ordered(texts_of_files, tasks):
                for name, texts in zip(names, results, strict=True):
                    self._files += 1
                    if texts is None:
                        self._unread.append(name)
                    for text in texts or []:
                        yield Row({"text": text.text}, {"file": name, "name": text.name})

    def mark(self, place: Place) -> Any:
        return None

    def identity(self) -> Any:
        return self._kind

    def provenance(self) -> dict[str, Any]:
        """Which Python and packages; how many files were looked at, and which could not be read."""
        packages = [path.stem for root in self._roots for path in root.glob("*.dist-info")]
        return {
            "kind": f"installed {self._kind}",
            "python": platform.python_version(),
            "packages": sorted(packages),
            "files": self._files,
            "files_not_read": self._unread,
        }


def _roots(kind: Kind) -> list[Path]:
    if kind == "stdlib":
        return [Path(sysconfig.get_paths()["stdlib"])]
    folders = {
        Path(entry) for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))
    }
    return sorted(folder for folder in folders if folder.is_dir())


def _topics() -> Iterator[Row]:
    """The topics of ``help()``: the language reference as plain text."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    for name in sorted(topics):
        yield Row({"text": topics[name]}, {"file": "pydoc_data/topics.py", "name": name})


def _ordered(root: Path) -> list[str]:
    """Paths, relative to ``root``, of the files that may hold English, in order of their hash."""
    found: list[str] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        metadata = ".dist-info" in folder
        found += [
            os.path.relpath(os.path.join(folder, name), root)
            for name in names
            if (_is_metadata(name) if metadata else name.endswith(".py"))
        ]
    return sorted(found, key=lambda path: hashlib.sha256(os.fsencode(path)).digest())


def _is_metadata(name: str) -> bool:
    return name == "METADATA" or name.lower().startswith(_LICENSES)


def texts_of_files(task: tuple[Kind, Path, list[str]]) -> list[list[Text] | None]:
    """The texts of some files; None for a file that cannot be read or is not valid Python."""
    kind, root, paths = task
    return [_texts(root / path, DOCUMENTED_SHARE[kind]) for path in paths]


def _texts(path: Path, share: float) -> list[Text] | None:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return []
        content = path.read_bytes()
    except OSError:  # a link to nowhere, no permission
        return None
    if path.suffix == ".py":
        return docstrings(content) if _documented(content) > share else []
    if path.name == "METADATA":
        message = BytesParser().parsebytes(content)
        content = str(message.get("Description") or message.get_payload()).encode()
    text = content.decode(errors="replace")
    return [Text(path.name, inspect.cleandoc(text))] if text.strip() else []


def _documented(source: bytes) -> float:
    """About what share of a source file stands in triple quotes."""
    quoted = sum(map(len, source.split(b'"""')[1::2])) + sum(map(len, source.split(b"'''")[1::2]))
    return quoted / max(1, len(source))


def docstrings(source: bytes) -> list[Text] | None:
    """The docstrings of a module, its classes and functions; None for one that does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other people's escape sequences
            module = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return None
    return list(_walk(module, ""))


def _walk(node: Documented, name: str) -> Iterator[Text]:
    if text := ast.get_docstring(node):
        yield Text(name, text)
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _walk(child, f"{name}.{child.name}" if name else child.name)
