"""An exported folder as one GGUF file, which llama.cpp and what is built on it open.

    folder -> its network, as llama.cpp lays it out   (gguf_network.py)
           -> its tokenizer, where its ids survive    (gguf_tokenizer.py)
           -> a temporary file -> read back, every value compared -> renamed

GGUF: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Matrices are stored in the type
asked for; norms and routers, which are small and matter, stay fp32.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from tasks.errors import BAD_DATA, INTERNAL, UserError
from tasks.files import named_when_done
from tasks.release.manifest import verify_model
from tasks.release.opening import open_export

if TYPE_CHECKING:
    from model import ModelConfig
    from tasks.release.gguf_tokenizer import Vocabulary

Kind = Literal["f32", "f16", "q8_0"]
KINDS: tuple[Kind, ...] = ("f32", "f16", "q8_0")
Values = npt.NDArray[np.float32]
BLOCK = 32  # values that share a scale in q8_0
# Half a step of each format, relative to the value (f16) or to its block's largest (q8_0, whose
# scale is an f16 itself), and half of f16's smallest step.
_F16_STEP, _F16_TINY, _Q8_STEP = 2.0**-11, 2.0**-25, 0.5 / 127 + 2.0**-10


@dataclass(frozen=True)
class Written:
    """What became of a folder: ``wide`` counts the matrices whose rows q8_0 cannot divide."""

    path: Path
    architecture: str
    tensors: int
    wide: int
    difference: float
    """Largest difference of a stored value from the folder's."""


def write_gguf(
    folder: Path, out: Path, kind: Kind = "f16", *, with_tokenizer: bool = True
) -> Written:
    """Write the model in ``folder`` to ``out``, whole and checked, or leave what is there.

    Args:
        folder: an export, or an imported checkpoint.
        kind: f32; f16; or q8_0, 8 bits with a scale for each 32 values.
        with_tokenizer: without one, the file takes and gives ids.

    Raises UserError where llama.cpp has no such network or tokenizer, or a value does not fit the
    type.
    """
    from tasks.release import gguf_network
    from tasks.release.gguf_tokenizer import vocabulary

    verify_model(folder)
    network = open_export(folder)
    words = vocabulary(folder, network.config.vocabulary) if with_tokenizer else None
    config, weights = gguf_network.plain(network)
    architecture = gguf_network.architecture(config)
    tensors = [(name, tensor.numpy()) for name, tensor in gguf_network.tensors(config, weights)]
    with named_when_done(out) as temporary:
        _write(temporary, architecture, config, described(folder), words, tensors, kind)
        difference = _require_equal(temporary, tensors, words, kind)
    wide = sum(kind != _stored_as(name, values, kind) == "f16" for name, values in tensors)
    return Written(out, architecture, len(tensors), wide, difference)


def described(folder: Path) -> dict[str, str]:
    """name, description and license of a model, from its card where there is one."""
    card = folder / "README.md"
    text = card.read_text("utf-8") if card.is_file() else ""
    found = {"name": folder.resolve().name}
    if title := re.search(r"^# (?P<name>[\w.-]+).*\n\n(?P<description>\S.*)", text, re.MULTILINE):
        found |= title.groupdict()
    if license_ := re.search(r"^license(?:_name)?: (?!other$)(.+)$", text, re.MULTILINE):
        found["license"] = license_[1].strip('"')
    return found


def _write(
    path: Path,
    architecture: str,
    config: ModelConfig,
    about: dict[str, str],
    words: Vocabulary | None,
    tensors: list[tuple[str, Values]],
    kind: Kind,
) -> None:
    from gguf import GGUFWriter, LlamaFileType

    from tasks.release.gguf_network import keys

    types = {
        "f32": LlamaFileType.ALL_F32,
        "f16": LlamaFileType.MOSTLY_F16,
        "q8_0": LlamaFileType.MOSTLY_Q8_0,
    }
    writer = GGUFWriter(path, architecture)
    for key, text in about.items():
        writer.add_string(f"general.{key}", text)
    writer.add_file_type(types[kind])
    writer.add_quantization_version(2)
    for key, value in keys(config).items():
        if isinstance(value, str):
            writer.add_string(f"{architecture}.{key}", value)
        elif isinstance(value, int):
            writer.add_uint32(f"{architecture}.{key}", value)
        else:
            writer.add_float32(f"{architecture}.{key}", value)
    _add_tokenizer(writer, words)
    for name, values in tensors:
        packed, raw_type = _packed(values, _stored_as(name, values, kind))
        writer.add_tensor(name, packed, raw_dtype=raw_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any, words: Vocabulary | None) -> None:
    if words is None:
        writer.add_tokenizer_model("no_vocab")
        return
    writer.add_tokenizer_model(words.model)
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    if words.merges is not None:
        writer.add_token_merges(words.merges)
    if words.scores is not None:
        writer.add_token_scores(words.scores)
    for name, number in sorted(words.special.items()):
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
    # training text had neither: a document follows the EOS of the one before
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(words.model == "llama")


def _stored_as(name: str, values: Values, kind: Kind) -> Kind:
    """The type of one tensor; q8_0 falls back to f16 where a row is not whole blocks."""
    if values.ndim == 1 or "ffn_gate_inp" in name:
        return "f32"
    return "f16" if kind == "q8_0" and values.shape[-1] % BLOCK else kind


def _packed(values: Values, kind: Kind) -> tuple[npt.NDArray[Any], Any]:
    from gguf import GGMLQuantizationType as Type
    from gguf.quants import quantize

    number = {"f32": Type.F32, "f16": Type.F16, "q8_0": Type.Q8_0}[kind]
    if kind == "f16":
        with np.errstate(over="ignore"):  # what overflows is told by name when read back
            return values.astype(np.float16), number
    return (quantize(values, number) if kind == "q8_0" else values), number


def _require_equal(
    path: Path, tensors: list[tuple[str, Values]], words: Vocabulary | None, kind: Kind
) -> float:
    """Read the file back; returns the largest difference of a value from the folder's.

    Raises UserError where a tensor's name, shape or values, or a token, is not what was written.
    """
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader, largest = GGUFReader(path), 0.0
    found = {tensor.name: tensor for tensor in reader.tensors}
    if found.keys() != {name for name, _ in tensors}:
        raise UserError("the GGUF's tensors are not those written", exit_code=INTERNAL)
    for name, values in tensors:
        stored = dequantize(found[name].data, found[name].tensor_type).reshape(values.shape)
        difference = np.abs(stored.astype(np.float32) - values)
        if not np.all(difference <= _allowed(values, _stored_as(name, values, kind))):
            raise UserError(
                f"{name} does not fit {kind}: a value of {np.abs(values).max():.3g} comes back "
                f"otherwise by {np.nanmax(difference):.3g}",
                hint="nothing was written; choose --type f32",
                exit_code=BAD_DATA,
            )
        largest = max(largest, float(difference.max()))
    tokens = reader.get_field("tokenizer.ggml.tokens")
    if (tokens.contents() if tokens else None) != (words.tokens if words else None):
        raise UserError("the GGUF's tokens are not those written", exit_code=INTERNAL)
    return largest


def _allowed(values: Values, kind: Kind) -> npt.NDArray[np.floating[Any]] | float:
    """How far each stored value may be from its own."""
    if kind == "f32":
        return 0.0
    if kind == "f16":
        return np.abs(values) * _F16_STEP + _F16_TINY
    blocks = np.abs(values).reshape(*values.shape[:-1], -1, BLOCK)
    largest = blocks.max(axis=-1, keepdims=True) * _Q8_STEP
    return np.broadcast_to(largest, blocks.shape).reshape(values.shape)
