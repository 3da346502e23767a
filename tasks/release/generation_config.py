"""generation_config.json as a model's own sampling: what the recipe wrote, read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model.sampling import SamplingOptions
from tasks.errors import BAD_DATA, UserError
from tasks.files import read_json

GENERATION_CONFIG = "generation_config.json"
# What generation_config.json calls as we do; null there stands for "not set".
_SHARED = (
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
)


def default_sampling(folder: Path) -> dict[str, Any]:
    """What generation_config.json of a folder sets, as keywords of `SamplingOptions`.

    The recipe's ``evaluation.sampling`` wrote it. Raises UserError where a value cannot be.
    """
    path = folder / GENERATION_CONFIG
    if not path.exists():
        return {}
    values = read_json(path)
    try:
        found = {name: values[name] for name in _SHARED if values.get(name) is not None}
        found |= values.get("phasewise", {})
        if values.get("do_sample") is False:
            found["temperature"] = 0.0
        if "stop" in found:
            found["stop"] = tuple(found["stop"])
        SamplingOptions(**found)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(str(error), where=str(path), exit_code=BAD_DATA) from None
    return found
