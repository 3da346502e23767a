"""One model in four sizes of number: what each takes, what it loses, how fast it goes on.

folder -> fp32, bf16, int8, int4 -> bytes of weights, bits per byte and perplexity of the same
                                    texts (quantize.compare), new tokens a second
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch

from model.decoder import Decoder
from model.generate import generate
from model.sampling import SamplingOptions
from tasks.errors import UserError
from tasks.evaluation.speed import Speed
from tasks.release.manifest import verify_export
from tasks.release.native import load_export
from tasks.release.opening import Dtype, Quantization, open_network
from tasks.release.quantize import KINDS, Quantized, compare
from tasks.tokens.text import load_tokenizer

if TYPE_CHECKING:
    from model import Transformer

_STORED: dict[str, tuple[Dtype, Quantization | None]] = {
    "fp32": ("fp32", None),
    "bf16": ("bf16", None),
    "int8": ("fp32", "int8"),
    "int4": ("fp32", "int4"),
}
SPEED_TOKENS, SPEED_REPEATS = 64, 5


@dataclass(frozen=True)
class Variant:
    """A model with its weights stored in one way, or why it cannot be."""

    kind: str
    figures: Quantized | None
    tokens_per_second: float | None
    """New tokens of one greedy continuation on the CPU; the best of a few."""
    obstacle: str | None = None


def measure(folder: Path, texts: Sequence[str]) -> Iterator[Variant]:
    """Measure an exported model on ``texts`` in each of `quantize.KINDS`, on the CPU, fp32 first.

    Raises UserError where the export is not whole. A network whose tables do not fit a kind of
    integers is no error: its variant says so.
    """
    verify_export(folder)
    tokenizer, network = load_tokenizer(folder), load_export(folder)
    for kind in KINDS:
        try:
            [figures] = compare(network, tokenizer, texts, [kind])
        except UserError as error:
            if kind not in get_args(Quantization):
                raise
            yield Variant(kind, None, None, error.message)
        else:
            yield Variant(kind, figures, decode_speed(*_open(folder, kind)))


def first_tokens(folder: Path, texts: Iterable[str], most: int) -> list[str]:
    """The texts that an exported model reads in ``most`` tokens, the last of them cut.

    Raises UserError where the export is not whole, or there is no text.
    """
    verify_export(folder)
    tokenizer = load_tokenizer(folder)
    kept: list[str] = []
    for text in texts:
        ids = tokenizer.encode(text)
        if len(ids) >= most:
            kept.append(tokenizer.decode(ids[:most]).rstrip("\ufffd"))
            break
        kept.append(text)
        most -= len(ids) + 1  # and the end of the text
        if most < 1:
            break
    if not any(kept):
        raise UserError("the text is empty", hint="give another: --text FILE")
    return kept


def decode_speed(network: Transformer, start_id: int) -> float:
    """New tokens a second of one greedy continuation, after one that warms up; the best of few."""
    new = min(SPEED_TOKENS, network.config.max_seq_len)
    options = SamplingOptions(max_new_tokens=new, temperature=0.0)
    decoder, best = Decoder(network), 0.0
    for repeat in range(1 + SPEED_REPEATS):
        speed = Speed()
        with speed.watch(network):
            speed.add(generate(decoder, [[start_id]], options))
        if repeat and speed.new_seconds:
            best = max(best, speed.new_tokens / speed.new_seconds)
    return best


def _open(folder: Path, kind: str) -> tuple[Transformer, int]:
    """The network of that kind and the id that a text starts after."""
    dtype, integers = _STORED[kind]
    network, tokenizer = open_network(folder, torch.device("cpu"), dtype, integers)
    return network, tokenizer.eos_id
