"""How well a model predicts held-out text: every token once, weighted alike, in nats and in bits.

    targets   t0 t1 t2 t3 t4 ...     the stream: documents, each followed by its EOS
    inputs   EOS t0 t1 t2 t3 ...     so that the first token is predicted too, from an EOS

    windows of seq_len inputs, one every stride:   |------scored------|
                                                          |--context--|scored|
                                                                 |--context--|scored|

A window scores what the windows before it did not, so all but the first tokens of the stream are
predicted from at least seq_len - stride tokens. The figure that compares across tokenizers is bits
per byte: the bits of all tokens, EOS too, over the UTF-8 bytes of the text that they came from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    from model import Transformer

IGNORED = -100  # torch's mark of a target that counts for nothing


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


def score(
    model: Transformer,
    tokens: NDArray[np.integer],
    text_bytes: int,
    *,
    seq_len: int,
    stride: int,
    batch_size: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]],
    eos_id: int,
    document_mask: bool = False,
    advance: Callable[[int], object] | None = None,
) -> Score:
    """Score ``tokens`` (N,), a stream of documents that each end in ``eos_id``.

    The figure does not depend on ``batch_size`` but for the order of float sums. Dropout is off,
    and the model is left in the mode it came in.

    Args:
        text_bytes: UTF-8 bytes of the text that the tokens came from.
        seq_len: tokens that the model sees at once.
        stride: tokens from one window to the next, at most ``seq_len``.
        batch_size: windows of one forward pass.
        autocast: makes the context of a forward pass; ``nullcontext`` for the weights' own dtype.
        document_mask: tokens see their own document only, as in training with such a mask.
        advance: called with the number of tokens scored by each pass.

    Raises ValueError for an empty stream or a stride beyond ``seq_len``.
    """
    import torch

    if not len(tokens):
        raise ValueError("there is no token to score")
    training = model.training
    model.eval()
    loss_sum, correct = 0.0, 0
    try:
        for batch in _batches(windows(len(tokens), seq_len, stride), batch_size):
            inputs, targets = _rows(tokens, batch, eos_id)
            documents = _documents(inputs, eos_id) if document_mask else None
            with torch.no_grad(), autocast():
                losses, hits = model.score(
                    torch.from_numpy(inputs).to(device),
                    torch.from_numpy(targets).to(device),
                    None if documents is None else torch.from_numpy(documents).to(device),
                )
            # summed in fp64 on the CPU: some devices have no fp64
            loss_sum += losses.cpu().double().sum().item()
            correct += int(hits.sum().item())
            if advance:
                advance(sum(window.stop - window.scored for window in batch))
    finally:
        model.train(training)
    return Score(loss_sum, len(tokens), correct, text_bytes)


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
