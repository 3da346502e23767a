"""What every encoder is: a function from texts to ids, and what none of the fast ones can do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Ids: TypeAlias = npt.NDArray[np.uint32]
Encode: TypeAlias = Callable[[Sequence[str]], list[Ids]]


class Unsuitable(ValueError):
    """Why another encoder cannot stand in for a tokenizer."""


def refuse_odd(spec: dict[str, Any]) -> None:
    """Raise Unsuitable for a tokenizer.json that is not BPE, or BPE with a habit of its own."""
    model = spec["model"]
    if model.get("type", "BPE") != "BPE":
        raise Unsuitable(f"the model is {model['type']}, not BPE")
    odd = ("dropout", "ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")
    if used := [key for key in odd if model.get(key)]:
        raise Unsuitable(f"it uses {', '.join(used)}")
    if any(not token["special"] for token in spec.get("added_tokens", [])):
        raise Unsuitable("it has added tokens that are looked for in the text")


@cache
def byte_of_character() -> dict[str, int]:
    """The byte behind each of the 256 characters of a byte-level vocabulary.

    Printable Latin-1 stands for itself; the others take the code points from 256 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    shown = {chr(byte): byte for byte in printable}
    return shown | {chr(256 + place): byte for place, byte in enumerate(others)}
