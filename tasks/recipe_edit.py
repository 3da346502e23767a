"""Changes of the recipe in force: ``phases.phase2.lr=5e-4`` into params.yaml, and nothing else.

Only the characters of the value change, so that comments, order and spacing stay as they are and
``git diff`` shows the change alone. The recipe that would come out is validated as a whole before
a byte is written.
"""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from model.config import ModelConfig
from tasks.errors import UserError, nearest
from tasks.files import write_text
from tasks.recipe import Phase, Recipe, Source, Training
from tasks.recipe_file import read_yaml, validate

_AS_IT_IS = re.compile(r"[\w.+-]+")  # reads the same anywhere in a YAML file
_NAMED: dict[str, Any] = {"sources": Source, "phases": Phase}
_SECTIONS: dict[str, Any] = {"model": ModelConfig, "training": Training}


def edit(path: Path, changes: Sequence[str]) -> None:
    """Write changes, each ``key=value``, into the recipe at ``path``: all of them or none.

    Raises UserError for a key that does not exist (naming the nearest), a value that cannot be, or
    a recipe that is not valid any more; the file is then as it was.
    """
    write_text(path, edited(path, changes))


def edited(path: Path, changes: Sequence[str]) -> str:
    """The text of the recipe at ``path`` with the changes; raises as ``edit`` does."""
    before = read_yaml(path)
    validate(before, str(path))
    text, wanted = path.read_text("utf-8"), copy.deepcopy(before)
    for change in changes:
        key, written, value = _parse(change)
        names = key.split(".")
        _check_key(names, wanted)
        _put(wanted, names, value)
        text = _replace(text, names, written)
    validate(wanted, f"{path} with {', '.join(changes)}" if changes else str(path))
    assert YAML(typ="safe", pure=True).load(text) == wanted, "an edit changed something else"
    return text


def _parse(change: str) -> tuple[str, str, Any]:
    """``a.b=1e-3`` -> ("a.b", "1e-3", 0.001): the key, how to write the value, and the value."""
    key, equals, value = change.partition("=")
    if not (equals and key.strip() and value.strip()):
        raise UserError(
            f"expected key=value, got {change!r}", hint="for example phases.phase2.lr=5e-4"
        )
    try:
        read = YAML(typ="safe", pure=True).load(value)
    except YAMLError:
        raise UserError(f"{value!r} is not a value that YAML knows", where=key.strip()) from None
    return key.strip(), value.strip() if _AS_IT_IS.fullmatch(value.strip()) else _flow(read), read


def _check_key(names: list[str], recipe: dict[str, Any]) -> None:
    """Raise UserError that names the nearest key where there is none of this name.

    What stands below a mapping of free names (a mixture's sources) is for the recipe's schema.
    """
    known = _known(recipe)
    if ".".join(names) in known:
        return
    if names[0] in _NAMED and len(names) > 1 and names[1] not in recipe[names[0]]:
        there = recipe[names[0]]
        guess = nearest(names[1], there)
        raise UserError(
            f"the recipe has no {names[0].removesuffix('s')} {names[1]!r}",
            where="params.yaml",
            hint=(f"did you mean {guess!r}? " if guess else "") + f"it has: {', '.join(there)}",
        )
    above = next(
        (".".join(names[:i]) for i in range(len(names) - 1, 0, -1) if ".".join(names[:i]) in known),
        "",
    )
    if above and not any(key.startswith(f"{above}.") for key in known):
        return  # a mapping of free names
    same = [key for key in known if key.rpartition(".")[2] == names[-1]]
    guess = nearest(".".join(names), same) or nearest(".".join(names), known)
    raise UserError(
        f"{'.'.join(names)}: unknown key",
        where="params.yaml",
        hint=f"did you mean {guess}?" if guess else "`phasewise check` explains a recipe's keys",
    )


def _known(recipe: dict[str, Any]) -> set[str]:
    """Every key that may stand in the recipe, with its sources and phases, dotted."""
    found: set[str] = set()
    for name, field in Recipe.model_fields.items():
        if name in _NAMED:
            found.add(name)
            for each in recipe[name]:
                found |= {f"{name}.{each}"} | _below(_NAMED[name], f"{name}.{each}.")
        else:
            kind = _SECTIONS.get(name, field.annotation)
            found |= {name} | _below(kind, f"{name}.")
    return found


def _below(kind: Any, prefix: str) -> set[str]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        fields = {name: field.annotation for name, field in kind.model_fields.items()}
    else:
        fields = dict.fromkeys(getattr(kind, "__dataclass_fields__", {}))
    found: set[str] = set()
    for name, annotation in fields.items():
        models = [k for k in (annotation, *getattr(annotation, "__args__", ())) if _is_model(k)]
        found |= {f"{prefix}{name}"}.union(*(_below(k, f"{prefix}{name}.") for k in models))
    return found


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _put(recipe: dict[str, Any], names: list[str], value: Any) -> None:
    for i, name in enumerate(names[:-1]):
        recipe = recipe.setdefault(name, {})
        if not isinstance(recipe, dict):
            raise UserError(
                f"{'.'.join(names[: i + 1])} is a value, it has no keys below it",
                where="params.yaml",
            )
    recipe[names[-1]] = value


def _replace(text: str, names: list[str], value: str) -> str:
    """The text with one value in place of another, or a new key at the end of its mapping."""
    node = YAML(pure=True).compose(text)
    rest = list(names)
    while rest and isinstance(node, MappingNode) and (child := _child(node, rest[0])):
        node = child
        rest.pop(0)
    for name in reversed(rest[1:]):
        value = f"{{{name}: {value}}}"
    if not rest:
        return text[: node.start_mark.index] + value + text[_end(node) :]
    assert isinstance(node, MappingNode)
    if node.flow_style:
        comma = ", " if node.value else ""
        at = _end(node.value[-1][1]) if node.value else node.start_mark.index + 1
        return f"{text[:at]}{comma}{rest[0]}: {value}{text[at:]}"
    at = text.find("\n", _end(node.value[-1][1]))
    at = len(text) if at < 0 else at
    indent = " " * node.value[-1][0].start_mark.column
    return f"{text[:at]}\n{indent}{rest[0]}: {value}{text[at:]}"


def _child(node: MappingNode, name: str) -> Node | None:
    return next((value for key, value in node.value if key.value == name), None)


def _end(node: Node) -> int:
    """Where a node's own characters end; a block's mark lies behind the comments after it."""
    if isinstance(node, ScalarNode) or node.flow_style or not node.value:
        return int(node.end_mark.index)
    last = node.value[-1]
    return _end(last[1] if isinstance(last, tuple) else last)


def _flow(value: Any) -> str:
    """A value on one line, as people write it in a recipe."""
    out = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.width = True, 10**6
    yaml.dump({"_": value}, out)
    return out.getvalue().strip().removeprefix("{_: ").removesuffix("}")
