"""A model back from its folder: `config.json` and `model.safetensors`, checked key by key.

`config.json` holds `ModelConfig.to_dict()` under the key "phasewise"; other keys are other
programs' business. Loading is strict: what is missing, left over, misshaped or not finite is named.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .config import ModelConfig
from .transformer import Transformer

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CONFIG_KEY = "phasewise"
_SHOWN = 10


def load_model(
    folder: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Transformer:
    """The model in `folder`, in evaluation mode, on `device`, in `dtype` or as it is stored.

    Names may bear the prefix `model.` that transformers gives to all but the output table.
    Raises FileNotFoundError where a file is missing and ValueError where one is not what it
    should be, with up to ten of the keys at fault.
    """
    config = read_config(folder)
    path = Path(folder) / WEIGHTS_FILE
    weights = _read_weights(path)
    with torch.device("meta"):
        model = Transformer(config)
    check_weights(model, weights, path)
    # Copied, because tensors read from a file lie at any address, and the rounding of matrix
    # products depends on it: a loaded model gives the bits of the one that was stored.
    own = {name: t.to(device=device, dtype=dtype, copy=True) for name, t in weights.items()}
    model.load_state_dict(own, strict=True, assign=True)
    model.positions.reset(device)
    return model.eval()


def read_config(folder: str | Path) -> ModelConfig:
    """The configuration in the `config.json` of `folder`; errors as of `load_model`."""
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {folder} is not a model's folder")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict) or not isinstance(values.get(CONFIG_KEY), dict):
        raise ValueError(f"{path} has no table {CONFIG_KEY!r}: the folder is not one of ours")
    try:
        return ModelConfig.from_dict(values[CONFIG_KEY])
    except ValueError as error:
        raise ValueError(f"{path}, {CONFIG_KEY!r}: {error}") from None


def check_weights(model: Transformer, weights: Mapping[str, Tensor], source: object) -> None:
    """ValueError unless `weights` has exactly the model's names and shapes, all finite."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    faults = {
        "missing": sorted(wanted.keys() - shapes.keys()),
        "not the model's": sorted(shapes.keys() - wanted.keys()),
        "of another shape": [
            f"{name} {shapes[name]}, not {wanted[name]}"
            for name in sorted(wanted.keys() & shapes.keys())
            if shapes[name] != wanted[name]
        ],
        "not finite": sorted(name for name, t in weights.items() if not t.isfinite().all()),
    }
    found = [f"{kind}: {_listed(names)}" for kind, names in faults.items() if names]
    if found:
        raise ValueError(f"{source} does not fit the model. " + "; ".join(found))


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}); get it again"
        ) from None
    return {name.removeprefix("model."): tensor for name, tensor in weights.items()}


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
