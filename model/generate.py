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

from .decoder import Decoder
from .sampling import SamplingOptions, penalize, pick
from .speculate import Draft, judge
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
    proposed: int = 0
    """Ids that a draft model proposed."""
    accepted: int = 0
    """Those of them that stayed."""


@dataclass
class _Row:
    prompt: list[int]
    dropped: int
    budget: int
    generator: torch.Generator
    ids: list[int] = field(default_factory=list)
    finish: Finish | None = None
    proposed: int = 0
    accepted: int = 0

    def take(self, token: int, options: SamplingOptions, decode: Decode | None) -> None:
        """Add an id, or end."""
        if token < 0:
            raise ValueError("the model's logits are NaN: its weights or its input are broken")
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
        return Completion(
            self.prompt, self.dropped, self.ids, self.finish, self.proposed, self.accepted
        )


def generate(
    model: Transformer | Decoder,
    prompts: Sequence[Sequence[int]],
    options: SamplingOptions | None = None,
    decode: Decode | None = None,
    draft: Transformer | Decoder | None = None,
) -> list[Completion]:
    """Continue each prompt, a list of ids, until it ends; completions in the order of the prompts.

    `decode` turns ids into text and is needed where `options.stop` has texts. Row b draws with the
    seed `options.seed + b`. `draft`, a smaller model of the same vocabulary, proposes ids that the
    model need only check (`speculate.py`): the same distribution, and at temperature 0 the same
    ids. Whoever calls often passes a `Decoder`, which is else made anew each time.

    Raises ValueError on an empty prompt, an id outside the vocabulary, a draft of another one, or
    logits that are not numbers.
    """
    options = options or SamplingOptions()
    _need_decode(options, decode)
    _need_one_vocabulary(model, draft)
    rows = [_row(model, prompt, options, number) for number, prompt in enumerate(prompts)]
    for _ in _decode_rows(model, rows, options, decode, draft):
        pass
    return [row.completion() for row in rows]


def stream(
    model: Transformer | Decoder,
    prompt: Sequence[int],
    options: SamplingOptions | None = None,
    decode: Decode | None = None,
    draft: Transformer | Decoder | None = None,
) -> Generator[int, None, Completion]:
    """Continue one prompt and yield each id as it comes; the completion is the return value.

    Arguments and errors as of `generate`, raised before the first id. The ids are those of
    `generate([prompt])` with the same seed.
    """
    options = options or SamplingOptions()
    _need_decode(options, decode)
    _need_one_vocabulary(model, draft)
    row = _row(model, prompt, options, 0)
    return _stream_row(row, _decode_rows(model, [row], options, decode, draft))


def _stream_row(row: _Row, rounds: Iterator[None]) -> Generator[int, None, Completion]:
    seen = 0
    for _ in rounds:
        while seen < len(row.ids):
            seen += 1
            yield row.ids[seen - 1]
    return row.completion()


def _need_decode(options: SamplingOptions, decode: Decode | None) -> None:
    if options.stop and decode is None:
        raise ValueError("stop texts can only be found with `decode`, which turns ids into text")


def _need_one_vocabulary(model: Transformer | Decoder, draft: Transformer | Decoder | None) -> None:
    if draft is not None and draft.config.vocabulary != model.config.vocabulary:
        raise ValueError(
            f"the draft has a vocabulary of {draft.config.vocabulary} ids, the model one of "
            f"{model.config.vocabulary}: a draft must have the model's tokenizer"
        )


def _row(
    model: Transformer | Decoder, prompt: Sequence[int], options: SamplingOptions, number: int
) -> _Row:
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
    model: Transformer | Decoder,
    rows: list[_Row],
    options: SamplingOptions,
    decode: Decode | None,
    draft: Transformer | Decoder | None,
) -> Iterator[None]:
    """Add an id or more to every row that has not ended, again and again, until all have."""
    if not rows:
        return
    batch = _Batch(model, rows, options, draft)
    while batch.rows:
        for row, tokens in zip(batch.rows, batch.next_ids(), strict=True):
            for token in tokens:
                if row.finish is None:
                    row.take(token, options, decode)
        yield
        batch.drop_finished()


class _Batch:
    """Rows that are decoded together: padded on the left to one end, each with its pending ids.

    Pending ids are those that the cache does not hold: the whole prompt first, the last id then.
    """

    def __init__(
        self,
        model: Transformer | Decoder,
        rows: list[_Row],
        options: SamplingOptions,
        draft: Transformer | Decoder | None,
    ) -> None:
        self.decoder = _prepare(model, len(rows))
        self.rows, self.options, device = rows, options, self.decoder.device
        longest = max(len(row.prompt) for row in rows)
        # a round reads the pending id and all proposals, also after a row that has just ended full
        spare = options.draft_tokens + 1 if draft is not None else 0
        capacity = longest + max(row.budget for row in rows) - 1 + spare
        self.padding = torch.tensor([longest - len(row.prompt) for row in rows], device=device)
        self.padded = any(len(row.prompt) < longest for row in rows)
        ids = [[0] * (longest - len(row.prompt)) + row.prompt for row in rows]
        self.pending = torch.tensor(ids, device=device)
        self.cache = self.decoder.new_cache(len(rows), capacity)
        self.draft = None
        if draft is not None:
            self.draft = Draft(_prepare(draft, len(rows)), len(rows), capacity)

    def next_ids(self) -> list[list[int]]:
        """The ids that come next in each row; afterwards the last of each is pending."""
        if self.draft is None:
            return [[token] for token in self._choose(self._read(self.pending)).tolist()]
        if self.cache.length == 0:
            self.draft.decoder.read(self.pending, self.draft.cache, self._pads())
            return [[token] for token in self._choose(self._read(self.pending)).tolist()]
        return self._speculate(self.draft)

    def drop_finished(self) -> None:
        """Go on with the rows that have not ended."""
        going = [row.finish is None for row in self.rows]
        if all(going):
            return
        self.rows = [row for row in self.rows if row.finish is None]
        mask = torch.tensor(going, device=self.padding.device)
        self.pending, self.padding = self.pending[mask], self.padding[mask]
        self.cache.keep(mask)
        if self.draft is not None:
            self.draft.cache.keep(mask)

    def _pads(self) -> Tensor | None:
        return self.padding if self.padded else None

    def _read(self, ids: Tensor, last: int = 1) -> Tensor:
        return self.decoder.read(ids, self.cache, self._pads(), last)

    @torch.inference_mode()
    def _choose(self, logits: Tensor) -> Tensor:
        """logits (B, 1, V) -> the next ids (B,), which are pending then."""
        logits, rows, options = logits[:, 0], self.rows, self.options
        if options.penalizes:
            logits = torch.stack(
                [penalize(line, r.prompt, r.ids, options) for line, r in zip(logits, rows)]
            )
        ids = pick(logits, options, [r.generator for r in rows], [len(r.ids) for r in rows])
        self.pending = ids.unsqueeze(1)
        return ids

    @torch.inference_mode()
    def _speculate(self, draft: Draft) -> list[list[int]]:
        """One round: proposals, one pass of the model over them, and what stays."""
        before = self.cache.length - self.padding
        ids, sources, rooms = draft.propose(self.pending, self._pads(), self.rows, self.options)
        logits = self._read(torch.cat((self.pending, ids), dim=1), last=ids.shape[1] + 1)
        found = []
        for b, (row, room, proposals) in enumerate(zip(self.rows, rooms, ids.tolist())):
            kept = judge(logits[b], proposals[:room], sources[b], row, self.options)
            row.proposed += room
            row.accepted += len(kept) - 1
            found.append(kept)
        counts = before + torch.tensor([len(kept) for kept in found], device=before.device)
        draft.cache.settle(self.padding, counts)
        self.padding = self.cache.settle(self.padding, counts)
        self.padded = bool(self.padding.any())
        self.pending = torch.tensor([kept[-1:] for kept in found], device=before.device)
        return found


def _prepare(model: Transformer | Decoder, rows: int) -> Decoder:
    return model if isinstance(model, Decoder) else Decoder(model, rows)


def _ends(ids: list[int], stop: Sequence[str], decode: Decode) -> bool:
    """Whether a stop text has just come into the text of `ids`.

    Only the last ids are decoded. Each holds at least a byte of text; a few more are taken because
    the first may hold half a character, or a space that decoding takes off.
    """
    longest = max(len(text.encode()) for text in stop)
    text = decode(ids[-(longest + 8) :])
    return any(ending in text for ending in stop)
