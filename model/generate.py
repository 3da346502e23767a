"""Continuations of prompts: read the prompt once, then one id at a time from the cache.

Prompts of unequal length share a batch by padding on the left, where nothing sees it. A row gives
what it would give alone: it has its own generator and positions, and leaves the batch when it ends.

A prompt that fits the context is read whole and decoding ends when the context is full. One that
does not is cut from the left, which `Completion.dropped` tells, so far that there is room for the
new tokens, but never to less than half the context.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from .cache import KVCache
from .sampling import SamplingOptions, penalize, pick
from .transformer import Transformer

Decode = Callable[[list[int]], str]
Finish = Literal["eos", "stop", "length", "context"]


@dataclass(frozen=True)
class Completion:
    """What became of one prompt."""

    prompt: list[int]
    """The ids that were read."""
    dropped: int
    """Ids cut from the left of the prompt because the context could not hold them."""
    ids: list[int]
    """The new ids, without the end-of-sequence id."""
    finish: Finish
    """eos: an id of `eos_ids` came; stop: a text of `stop` came; length: `max_new_tokens` are
    there; context: the model's context is full."""


@dataclass
class _Row:
    prompt: list[int]
    dropped: int
    budget: int
    generator: torch.Generator
    ids: list[int] = field(default_factory=list)
    finish: Finish | None = None

    def take(self, token: int, options: SamplingOptions, decode: Decode | None) -> None:
        """Add an id, or end."""
        if token in options.eos_ids:
            self.finish = "eos"
            return
        self.ids.append(token)
        if decode is not None and options.stop and _ends(self.ids, options.stop, decode):
            self.finish = "stop"
        elif len(self.ids) == self.budget:
            self.finish = "length" if self.budget == options.max_new_tokens else "context"

    def completion(self) -> Completion:
        assert self.finish is not None
        return Completion(self.prompt, self.dropped, self.ids, self.finish)


def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    options: SamplingOptions | None = None,
    decode: Decode | None = None,
) -> list[Completion]:
    """Continue each prompt, a list of ids, until it ends; completions in the order of the prompts.

    `decode` turns ids into text and is needed where `options.stop` has texts. Row b draws with the
    seed `options.seed + b`. Raises ValueError on an empty prompt or an id outside the vocabulary.
    """
    options = options or SamplingOptions()
    _need_decode(options, decode)
    rows = [_row(model, prompt, options, number) for number, prompt in enumerate(prompts)]
    for _ in _decode_rows(model, rows, options, decode):
        pass
    return [row.completion() for row in rows]


def stream(
    model: Transformer,
    prompt: Sequence[int],
    options: SamplingOptions | None = None,
    decode: Decode | None = None,
) -> Generator[int, None, Completion]:
    """Continue one prompt and yield each id as it comes; the completion is the return value.

    Arguments and errors as of `generate`, raised before the first id. The ids are those of
    `generate([prompt])` with the same seed.
    """
    options = options or SamplingOptions()
    _need_decode(options, decode)
    row = _row(model, prompt, options, 0)
    return _stream_row(model, row, options, decode)


def _stream_row(
    model: Transformer, row: _Row, options: SamplingOptions, decode: Decode | None
) -> Generator[int, None, Completion]:
    for _ in _decode_rows(model, [row], options, decode):
        if row.finish != "eos":
            yield row.ids[-1]
    return row.completion()


def _need_decode(options: SamplingOptions, decode: Decode | None) -> None:
    if options.stop and decode is None:
        raise ValueError("stop texts can only be found with `decode`, which turns ids into text")


def _row(model: Transformer, prompt: Sequence[int], options: SamplingOptions, number: int) -> _Row:
    """A checked prompt, cut to the context, with its budget and its generator."""
    ids, config = list(prompt), model.config
    if not ids:
        raise ValueError(f"prompt {number} is empty: give at least one id, such as the start id")
    outside = next((i for i in ids if not 0 <= i < config.vocabulary), None)
    if outside is not None:
        raise ValueError(
            f"prompt {number} holds the id {outside}, outside the vocabulary of {config.vocabulary}"
        )
    dropped = 0
    if len(ids) > config.max_seq_len:
        room = min(options.max_new_tokens, config.max_seq_len // 2)
        dropped = len(ids) - (config.max_seq_len - room)
    kept = ids[dropped:]
    # The last new id is not read again, so it needs no place in the context.
    budget = min(options.max_new_tokens, config.max_seq_len - len(kept) + 1)
    generator = torch.Generator(device=model.device)
    if options.seed is None:
        generator.seed()
    else:
        generator.manual_seed((options.seed + number) % 2**63)
    return _Row(kept, dropped, budget, generator)


def _decode_rows(
    model: Transformer, rows: list[_Row], options: SamplingOptions, decode: Decode | None
) -> Iterator[None]:
    """Add one id to every row that has not ended, again and again, until all have."""
    if not rows:
        return
    longest = max(len(row.prompt) for row in rows)
    capacity = longest + max(row.budget for row in rows) - 1
    padding = torch.tensor([longest - len(row.prompt) for row in rows], device=model.device)
    padded = [[0] * (longest - len(row.prompt)) + row.prompt for row in rows]
    ids = torch.tensor(padded, device=model.device)
    cache = model.new_cache(len(rows), capacity)
    while rows:
        logits = _read(model, ids, cache, padding if padding.any() else None)
        ids = _choose(logits, rows, options)
        for row, token in zip(rows, ids.flatten().tolist(), strict=True):
            row.take(token, options, decode)
        yield
        going = [row.finish is None for row in rows]
        if not all(going):
            rows = [row for row in rows if row.finish is None]
            mask = torch.tensor(going, device=model.device)
            ids, padding = ids[mask], padding[mask]
            cache.keep(mask)


@torch.inference_mode()
def _read(model: Transformer, ids: Tensor, cache: KVCache, padding: Tensor | None) -> Tensor:
    """ids (B, T) -> logits (B, V) of what comes after the last, fp32, without dropout.

    Both modes are set for this call alone: between two ids the caller's code runs.
    """
    training = model.training
    model.eval()
    try:
        hidden = model.hidden(ids, cache=cache, left_padding=padding)
        return model.logits(hidden[:, -1]).float()
    finally:
        model.train(training)


@torch.inference_mode()
def _choose(logits: Tensor, rows: list[_Row], options: SamplingOptions) -> Tensor:
    """logits (B, V) -> the next ids (B, 1)."""
    punished = [
        penalize(line, row.prompt, row.ids, options) for line, row in zip(logits, rows, strict=True)
    ]
    picked = pick(torch.stack(punished), options, [row.generator for row in rows])
    return picked.unsqueeze(1)


def _ends(ids: list[int], stop: Sequence[str], decode: Decode) -> bool:
    """Whether a stop text has just come into the text of `ids`.

    Only the last ids are decoded. Each holds at least a byte of text; a few more are taken because
    the first may hold half a character, or a space that decoding takes off.
    """
    longest = max(len(text.encode()) for text in stop)
    text = decode(ids[-(longest + 8) :])
    return any(ending in text for ending in stop)
