"""How well a model predicts held-out text: every token once, weighted alike, in nats and in bits.

    targets   t0 t1 t2 t3 t4 ...     the stream: documents, each followed by its EOS
    inputs   EOS t0 t1 t2 t3 ...     so that the first token is predicted too, from an EOS

    windows of seq_len inputs, one every stride:   |------scored------|
                                                          |--context--|scored|
                                                                 |--context--|scored|

A window scores what the windows before it did not, so all but the first tokens of the stream are
predicted from at least seq_len - stride tokens. Each token's loss goes to its document; an EOS
belongs to the document that it ends. The figure that compares across tokenizers is bits per byte:
the bits of all tokens, EOS too, over the UTF-8 bytes of the text that they came from.

``alone`` scores as lm-evaluation-harness does (`loglikelihood_rolling`): each document by itself
after an EOS, its own EOS not counted, its last window moved back to be as long as the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.tokens.rows import IGNORED

if TYPE_CHECKING:
    from model import Transformer


@dataclass(frozen=True)
class Protocol:
    """How a stream is scored; figures are put side by side under one protocol alone."""

    seq_len: int
    """Tokens that the model sees at once."""
    stride: int
    """Tokens from one window to the next, at most ``seq_len``."""
    document_mask: bool = False
    """Tokens see their own document only, as in training with such a mask."""
    alone: bool = False
    """Each document by itself, its EOS not counted; ``document_mask`` says nothing then."""


@dataclass(frozen=True)
class Score:
    """Sums over one held-out set, and the figures they give."""

    loss_sum: float
    """Nats of all tokens."""
    tokens: int
    correct: int
    """Tokens that were the likeliest id."""
    text_bytes: int
    """UTF-8 bytes of the text that the tokens came from."""

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.loss_sum / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that is beyond a float."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Bits of all tokens over bytes of text; infinite for a set without text."""
        bits = self.loss_sum / math.log(2)
        return bits / self.text_bytes if self.text_bytes else math.inf

    @property
    def accuracy(self) -> float:
        """Share of the tokens that were the likeliest id."""
        return self.correct / self.tokens


class DocumentSums(NamedTuple):
    """Sums of each document of a stream, in order; each (D,)."""

    nats: NDArray[np.float64]
    tokens: NDArray[np.int64]
    correct: NDArray[np.int64]

    def total(self, text_bytes: int) -> Score:
        """The sums over all of them, which hold ``text_bytes`` of text."""
        whole = (self.nats.sum().item(), self.tokens.sum().item(), self.correct.sum().item())
        return Score(*whole, text_bytes)


class Window(NamedTuple):
    """Inputs ``start`` to ``stop`` of a stream, of which ``scored`` to ``stop`` count."""

    start: int
    scored: int
    stop: int


def windows(tokens: int, seq_len: int, stride: int) -> Iterator[Window]:
    """Cut a stream of ``tokens`` so that each is scored once; the last window may be shorter.

    Raises ValueError unless 1 <= stride <= seq_len: a longer stride would leave tokens out.
    """
    if not 1 <= stride <= seq_len:
        raise ValueError(f"stride must lie in 1 to seq_len ({seq_len}), got {stride}")
    start = scored = 0
    while scored < tokens:
        stop = min(start + seq_len, tokens)
        yield Window(start, scored, stop)
        start, scored = start + stride, stop


def document_windows(ends: NDArray[np.int64], seq_len: int, stride: int) -> Iterator[Window]:
    """Windows of each document of a stream by itself, without its EOS; the shortest come first.

    ``ends`` (D,): where each document ends, its EOS included.
    """
    found = []
    for begin, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
        for window in windows(end - 1 - begin, seq_len, stride):
            start = max(0, window.stop - seq_len)
            found.append(Window(begin + start, begin + window.scored, begin + window.stop))
    return iter(sorted(found, key=lambda window: (window.stop - window.start, window)))


def score(
    model: Transformer,
    tokens: NDArray[np.integer],
    text_bytes: int,
    protocol: Protocol,
    **how: Any,
) -> Score:
    """Score a stream as a whole: the sums of `score_documents`, which says what ``how`` may be.

    ``text_bytes``: UTF-8 bytes of the text that the tokens came from.
    """
    return score_documents(model, tokens, protocol, **how).total(text_bytes)


def score_documents(
    model: Transformer,
    tokens: NDArray[np.integer],
    protocol: Protocol,
    *,
    eos_id: int,
    batch_size: int,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    advance: Callable[[int], object] | None = None,
) -> DocumentSums:
    """Score ``tokens`` (N,), a stream of documents that each end in ``eos_id``.

    The figures do not depend on ``batch_size`` but for the order of float sums. Dropout is off,
    and the model is left in the mode it came in. What stands after the last EOS is a document too.

    Args:
        batch_size: windows of one forward pass.
        autocast: makes the context of a forward pass; by default the weights' own dtype.
        advance: called with the number of tokens scored by each pass.

    Raises ValueError for an empty stream or a stride beyond the seq_len, and where documents are
    scored alone and the last has no EOS.
    """
    import torch

    if not len(tokens):
        raise ValueError("there is no token to score")
    if protocol.alone and tokens[-1] != eos_id:
        raise ValueError("the last document does not end in an EOS")
    ends = document_ends(tokens, eos_id)
    seq_len, stride, alone = protocol.seq_len, protocol.stride, protocol.alone
    cut = (
        document_windows(ends, seq_len, stride) if alone else windows(len(tokens), seq_len, stride)
    )
    masked, device = protocol.document_mask and not alone, model.device
    nats, correct = np.zeros(len(ends)), np.zeros(len(ends), np.int64)
    training = model.training
    model.eval()
    try:
        for batch in _batches(cut, batch_size):
            inputs, targets = _rows(tokens, batch, eos_id)
            documents = _documents(inputs, eos_id) if masked else None
            with torch.no_grad(), autocast():
                losses, hits = model.score(
                    torch.from_numpy(inputs).to(device),
                    torch.from_numpy(targets).to(device),
                    None if documents is None else torch.from_numpy(documents).to(device),
                )
            counted = targets != IGNORED
            owners = _owners(batch, ends)
            # summed in fp64 on the CPU: some devices have no fp64
            np.add.at(nats, owners, losses.cpu().double().numpy()[counted])
            np.add.at(correct, owners, hits.cpu().numpy()[counted])
            if advance:
                advance(len(owners))
    finally:
        model.train(training)
    return DocumentSums(nats, np.diff(ends, prepend=0) - alone, correct)


def document_ends(tokens: NDArray[np.integer], eos_id: int) -> NDArray[np.int64]:
    """Where each document of a stream (N,) ends, its EOS included (D,); the last may have none."""
    ends = np.flatnonzero(tokens == eos_id) + 1
    return ends if len(ends) and ends[-1] == len(tokens) else np.append(ends, len(tokens))


def _owners(batch: list[Window], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """The document of each token that some windows score, row by row."""
    places = np.concatenate([np.arange(window.scored, window.stop) for window in batch])
    return np.searchsorted(ends, places, side="right")


def _batches(items: Iterator[Window], size: int) -> Iterator[list[Window]]:
    """Consecutive windows, ``size`` at a time."""
    batch: list[Window] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _rows(
    tokens: NDArray[np.integer], batch: list[Window], eos_id: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Inputs and targets (B, T) of some windows; a short last row ends in EOS that do not count.

    What stands after a row's end cannot change its scores, because a token sees no later one.
    """
    width = max(window.stop - window.start for window in batch)
    inputs = np.full((len(batch), width), eos_id, dtype=np.int64)
    targets = np.full((len(batch), width), IGNORED, dtype=np.int64)
    for row, (start, scored, stop) in enumerate(batch):
        first = max(start, 1)  # input 0 of the stream is the EOS that stands there already
        inputs[row, first - start : stop - start] = tokens[first - 1 : stop - 1]
        targets[row, scored - start : stop - start] = tokens[scored:stop]
    return inputs, targets


def _documents(inputs: NDArray[np.int64], eos_id: int) -> NDArray[np.int64]:
    """A number (B, T) for the document of each input; an EOS belongs to the one that it ends."""
    ends = np.cumsum(inputs == eos_id, axis=1)
    return ends - (inputs == eos_id)
