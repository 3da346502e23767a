"""A sampling setting as it is typed in a session, and as it is shown."""

from __future__ import annotations

import json
import types
import typing
from typing import Any

from model.sampling import SamplingOptions
from tasks.errors import UserError


def parse(name: str, text: str) -> Any:
    """The value of a setting as it is typed. Raises UserError where it is none.

    ``none`` unsets what can be unset. A stop text may be written in quotes, with \\n in it.
    """
    if name == "stop":
        return () if text == "none" else (_unquoted(text),)
    kind = typing.get_type_hints(SamplingOptions)[name]
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if text == "none" and types.NoneType in kinds:
        return None
    wanted = int if int in kinds else float
    try:
        return wanted(text)
    except ValueError:
        what = "a whole number" if wanted is int else "a number"
        extra = " or none" if types.NoneType in kinds else ""
        raise UserError(f"{name} is {what}{extra}, not {text!r}") from None


def _unquoted(text: str) -> str:
    if not text.startswith('"'):
        return text
    try:
        return str(json.loads(text))
    except json.JSONDecodeError:
        raise UserError(f"the quotes of {text} do not close") from None


def shown(value: Any) -> str:
    """A setting as `/set` takes it."""
    if value is None or value == ():
        return "none"
    return " ".join(map(json.dumps, value)) if isinstance(value, tuple) else str(value)
