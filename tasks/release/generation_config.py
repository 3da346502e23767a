"""generation_config.json: the recipe's sampling as an export has it, written and read back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import BAD_DATA, UserError
from tasks.files import read_json, write_json

if TYPE_CHECKING:
    from tasks.recipe import Sampling

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
# What it has no name for: it stands there under "phasewise".
_OURS = ("final_temperature", "temperature_power", "frequency_penalty", "presence_penalty", "stop")


def write_generation_config(folder: Path, sampling: Sampling, special: dict[str, int]) -> None:
    """Write generation_config.json: what transformers' `generate` does when asked nothing else."""
    values: dict[str, Any] = {
        "do_sample": sampling.temperature > 0,
        "max_new_tokens": sampling.max_new_tokens,
        "repetition_penalty": sampling.repetition_penalty,
    }
    if sampling.temperature > 0:  # transformers warns of settings that greedy decoding ignores
        values |= {
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
        }
        if sampling.min_p:
            values["min_p"] = sampling.min_p
    if sampling.no_repeat_ngram_size:
        values["no_repeat_ngram_size"] = sampling.no_repeat_ngram_size
    ours = {name: value for name, value in sampling.keywords().items() if value and name in _OURS}
    if ours:
        values["phasewise"] = ours
    write_json(folder / GENERATION_CONFIG, values | special)


def default_sampling(folder: Path) -> dict[str, Any]:
    """What generation_config.json of a folder sets, as keywords of `SamplingOptions`.

    The recipe's ``evaluation.sampling`` wrote it. Raises UserError where a value cannot be.
    """
    from model.sampling import SamplingOptions

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
