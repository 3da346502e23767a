"""The one place where a `.pt` file is opened: tensors and plain values come out, or an error.

torch writes its files as a pickle, which can hold code. ``weights_only=True`` builds tensors,
containers and scalars and nothing else; a file that asks for more is refused by the name of what
it asks for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tasks.errors import BAD_DATA, NO_INPUT, UserError

# under which key a checkpoint keeps its weights; a file may also be the weights themselves
CONTAINERS = ("model_state_dict", "model", "state_dict")
# what DistributedDataParallel and torch.compile put before every name
PREFIXES = ("module.", "_orig_mod.")
_ASKED = re.compile(r"unsupported global:? (?:GLOBAL )?([\w.]+)", re.IGNORECASE)  # torch's words


@dataclass(frozen=True)
class StateDict:
    """Named fp32 tensors, and the numbers and texts that lay beside them in the file."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


def read_state_dict(path: Path) -> StateDict:
    """The weights in a `.pt`, `.pth`, `.bin` or `.safetensors` file, on the CPU.

    Prefixes are taken off the start of names and nowhere else. ``values`` are those beside the
    weights, and those of tables among them (``config``).

    Raises UserError where the file is missing, cut short, holds anything but tensors and plain
    values, or has no weights.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}", exit_code=NO_INPUT)
    content = _read(path)
    found, beside = content, {}
    if isinstance(content, dict):
        beside = content
        found = next((content[k] for k in CONTAINERS if isinstance(content.get(k), dict)), content)
    if not isinstance(found, dict) or not any(isinstance(t, Tensor) for t in found.values()):
        raise UserError(
            f"{path} holds no weights: a table of named tensors is expected, or one under "
            f"{', '.join(CONTAINERS)}",
            exit_code=BAD_DATA,
        )
    tensors = {_bare(str(name)): t for name, t in found.items() if isinstance(t, Tensor)}
    if len(tensors) != sum(isinstance(t, Tensor) for t in found.values()):
        raise UserError(f"{path}: two tensors have one name but for a prefix", exit_code=BAD_DATA)
    return StateDict({name: t.float() for name, t in tensors.items()}, _plain(beside))


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise _broken(path, error) from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file can fail anywhere in the reader
        asked = _ASKED.search(str(error))
        if not asked:
            raise _broken(path, error) from None
        raise UserError(
            f"{path} asks to build {asked[1]}, which is no tensor: it was not opened",
            hint="load it where you trust it, save the tensors alone "
            "(torch.save(model.state_dict(), ...)), and import that",
            exit_code=BAD_DATA,
        ) from None


def _broken(path: Path, error: Exception) -> UserError:
    words = str(error).strip().partition("\n")[0][:160]
    # torch's own words for a file that is no pickle invite to open it in the way that runs code
    reason = "" if not words or "weights_only" in words else f" ({words})"
    return UserError(
        f"{path} is not a whole file of tensors{reason}", hint="get it again", exit_code=BAD_DATA
    )


def _plain(table: dict[Any, Any]) -> dict[str, Any]:
    """Numbers and texts of a table and of the tables in it; the outer one's go first."""
    inner = [_plain(value) for value in table.values() if isinstance(value, dict)]
    own = {str(k): v for k, v in table.items() if isinstance(v, bool | int | float | str)}
    return {key: value for values in (*inner, own) for key, value in values.items()}


def _bare(name: str) -> str:
    while prefix := next((p for p in PREFIXES if name.startswith(p)), None):
        name = name.removeprefix(prefix)
    return name
