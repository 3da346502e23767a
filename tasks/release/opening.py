"""An exported folder or an imported checkpoint, verified and opened on a device of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from tasks.errors import BAD_DATA, UserError, unknown_name
from tasks.tokens.text import TextTokenizer, load_tokenizer

if TYPE_CHECKING:
    import torch

    from model import Transformer

Dtype = Literal["fp32", "bf16"]
Quantization = Literal["int8", "int4"]
DeviceName = Literal["auto", "cpu", "cuda", "mps"]


def open_network(
    folder: Path, device: torch.device, dtype: Dtype, kind: Quantization | None
) -> tuple[Transformer, TextTokenizer]:
    """The network of an exported folder, ready to run, and its tokenizer.

    Errors as of `Sampler.open`.
    """
    import torch

    from tasks.release.manifest import verify_model

    verify_model(folder)
    tokenizer = load_tokenizer(folder)
    network = open_export(folder, device, torch.bfloat16 if dtype == "bf16" else torch.float32)
    if kind is not None:
        from tasks.release.quantize import quantize

        network = quantize(network, kind)
    return network.eval(), tokenizer


def open_export(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Transformer:
    """The network of a verified folder. Raises UserError where its files do not make one.

    A manifest vouches for the bytes that were sealed, not for what they say.
    """
    from safetensors import SafetensorError

    from tasks.release.native import load_export

    try:
        return load_export(folder, device, dtype)
    except (ValueError, FileNotFoundError, RecursionError, SafetensorError) as error:
        raise UserError(str(error), hint="fetch or export it again", exit_code=BAD_DATA) from None


def pick_device(name: str) -> torch.device:
    """The device of that name. Raises UserError where this machine has none."""
    from tasks.settings import settings
    from tasks.training.device import open_device

    if name not in get_args(DeviceName):
        raise unknown_name("device", name, get_args(DeviceName))
    here = settings()
    if name == "auto":
        return open_device(here, "fp32").torch_device
    try:
        return open_device(here.model_copy(update={"device": name}), "fp32").torch_device
    except UserError as error:
        raise UserError(
            error.message, where="--device", hint="leave it out, or set it to auto or cpu"
        ) from None


def integer_device(device: DeviceName) -> DeviceName:
    """Where quantized weights run: the CPU. Raises UserError for another device."""
    if device not in ("auto", "cpu"):
        raise UserError(
            f"quantized weights run on the CPU, not on {device}",
            where="--quantize",
            hint="leave out --device, or take --dtype bf16 there",
        )
    return "cpu"
