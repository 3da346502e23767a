"""A YAML file of a user's as plain values, or words that say what is wrong and in which line.

YAML is read as DVC reads it (ruamel, YAML 1.2): ``3e-4`` is a number and a key that stands twice is
an error, which other readers let pass. What a recipe has no use for and an attack has is refused
before any value is made: tags, aliases (a few lines of them unfold to gigabytes), deep nesting and
files of more than 1 MB.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
)
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from tasks.errors import NO_INPUT, UserError

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
_SHOWN = 60  # characters of a key


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file: no tags, no aliases, no key twice, 1 MB and 20 levels at most.

    Raises UserError with file, line and column; exit code 66 where there is no file to read.
    """
    text = _text(path)
    try:
        _refuse_structure(text, path)
        _refuse_keys(_parser().compose(text), path)
        value = _parser().load(text)
    except MarkedYAMLError as error:
        raise _syntax_error(error, path) from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(
            f"the character U+{ord(text[error.position]):04X} may not stand in YAML",
            where=f"{path}:{line}",
            hint="delete it",
        ) from None
    except YAMLError as error:
        raise UserError(str(error), where=str(path)) from None
    except UserError:  # a ValueError too
        raise
    except ValueError as error:  # of a number or a date that Python cannot hold
        raise UserError(
            f"a value that cannot be read: {error}",
            where=str(path),
            hint="write a number that fits into 64 bits, and put text that looks like a date or "
            "a number in quotes",
        ) from None
    if not isinstance(value, dict):
        raise UserError(
            f"expected a mapping of keys, got {_kind(value)}",
            where=str(path),
            hint="copy a recipe: phasewise recipes use demo",
        )
    return value


def _parser() -> YAML:
    return YAML(typ="safe", pure=True)


def _text(path: Path) -> str:
    hint = "copy one: phasewise recipes use demo"
    if not path.exists() and not path.is_symlink():
        raise UserError(f"{path} is missing", hint=hint, exit_code=NO_INPUT)
    if not path.is_file():  # a folder, a link that leads nowhere, a pipe that never ends
        raise UserError(f"{path} is not a file", hint=hint, exit_code=NO_INPUT)
    if (size := path.stat().st_size) > MAX_BYTES:
        raise UserError(
            f"{size:,} bytes: larger than {MAX_BYTES:,} bytes is no recipe",
            where=str(path),
            hint="text to train on goes into files of its own, named under sources",
        )
    try:
        return path.read_text(encoding="utf-8")
    except PermissionError:
        raise UserError(
            "no permission to read this file",
            where=str(path),
            hint="give it: chmod u+r",
            exit_code=NO_INPUT,
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"not UTF-8 text: byte 0x{error.object[error.start]:02x} at offset {error.start}",
            where=str(path),
            hint="save the file as UTF-8",
        ) from None


def _refuse_structure(text: str, path: Path) -> None:
    """Look at the events of a text, of which no value is made, for what no recipe has."""
    depth = 0
    for event in _parser().parse(text):
        where = f"{path}:{event.start_mark.line + 1}"
        if isinstance(event, AliasEvent):
            raise UserError(
                f"aliases (*{event.anchor}) are not allowed",
                where=where,
                hint="write the value out",
            )
        if getattr(event, "tag", None):
            raise UserError(
                f"tags ({event.tag}) are not allowed", where=where, hint="write the value alone"
            )
        depth += isinstance(event, CollectionStartEvent)
        depth -= isinstance(event, CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise UserError(f"nested more than {MAX_DEPTH} levels deep", where=where)


def _refuse_keys(node: Node | None, path: Path) -> None:
    """Keys are words, and each stands once in its mapping."""
    if isinstance(node, SequenceNode):
        for item in node.value:
            _refuse_keys(item, path)
    if not isinstance(node, MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, ScalarNode):
            raise UserError("a key is a word, not a list or mapping", where=f"{path}:{line}")
        if key.value in lines:
            raise UserError(
                f"duplicate key {key.value[:_SHOWN]!r}: in line {lines[key.value]} and line {line}",
                where=f"{path}:{line}",
                hint="delete one of the two",
            )
        lines[key.value] = line
        _refuse_keys(value, path)


def _syntax_error(error: MarkedYAMLError, path: Path) -> UserError:
    mark, begun = error.problem_mark or error.context_mark, error.context_mark
    where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
    message = error.problem or str(error).partition("\n")[0]
    if error.context and begun and begun.line != mark.line:
        message += f" ({error.context} that begins in line {begun.line + 1})"
    tab = "\\t" in message
    hint = "indent with spaces, not with tabs" if tab else "look for a bracket, quote or colon"
    return UserError(message, where=where, hint=hint)


def _kind(value: Any) -> str:
    return "an empty file" if value is None else type(value).__name__
