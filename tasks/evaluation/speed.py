"""How fast a model reads a prompt and how fast it goes on, which are two figures.

    start |---- prompt: all its tokens in one pass ----|-- new token --|-- new token --| ...

The first new token comes out of the pass over the prompt, so it counts there. A draft model's
reading of the prompt does too.

`Speed` counts whatever is generated; `measure` generates for the sake of the figures alone.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from model import Transformer
    from model.decoder import Decoder
    from model.generate import Completion

PROMPT, NEW = 128, 64  # tokens a row that `measure` reads and makes, where the context has room
REPEATS, SECONDS = 3, 10.0  # turns after the first, and how long they may take


@dataclass
class Speed:
    """Tokens and seconds, added up over all batches that were timed."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    new_tokens: int = 0
    new_seconds: float = 0.0
    proposed: int = 0
    accepted: int = 0
    _started: float = field(default=0.0, repr=False)
    _passes: list[list[float]] = field(default_factory=list, repr=False)

    @contextmanager
    def watch(self, *networks: Transformer) -> Iterator[None]:
        """Note when each pass through the networks begins, for the life of the block: one batch."""
        self._started, self._passes = time.perf_counter(), [[] for _ in networks]
        handles = [
            network.embed_tokens.register_forward_pre_hook(_noting(passes))
            for network, passes in zip(networks, self._passes, strict=True)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def add(self, batch: Sequence[Completion]) -> None:
        """Count the batch, which has just ended."""
        ended = time.perf_counter()
        # each network reads the prompt in its first pass
        first = min([passes[1] for passes in self._passes if len(passes) > 1], default=ended)
        self.prompt_tokens += sum(len(done.prompt) for done in batch)
        self.prompt_seconds += first - self._started
        self.new_tokens += sum(max(0, len(done.ids) - 1) for done in batch)
        self.new_seconds += ended - first
        self.proposed += sum(done.proposed for done in batch)
        self.accepted += sum(done.accepted for done in batch)

    @property
    def seconds(self) -> float:
        return self.prompt_seconds + self.new_seconds

    def __str__(self) -> str:
        parts = [
            _rate("prompt", self.prompt_tokens, self.prompt_seconds),
            _rate("generated", self.new_tokens, self.new_seconds),
        ]
        if self.proposed:
            share = self.accepted / self.proposed
            parts.append(f"draft {self.accepted:,} of {self.proposed:,} accepted ({share:.0%})")
        return "; ".join(parts)


def measure(network: Transformer, batches: Sequence[int] = (1, 8)) -> dict[str, Any]:
    """Tokens a second of greedy decoding in the network's own precision, and on what machine.

    Each batch is run once to warm up and then up to three times, of which the fastest counts: what
    else the machine does only ever slows it.

    Returns:
        ``hardware``, ``prompt_tokens`` and ``new_tokens`` of a row, ``peak_memory_bytes`` (of the
        device on CUDA, of the process elsewhere), and for each batch
        ``batch_<rows>: {prefill_tokens_per_second, decode_tokens_per_second}``, of all rows.
    """
    from model.decoder import Decoder
    from tasks.hardware import hardware
    from tasks.training.device import Device

    context = network.config.max_seq_len
    prompt = max(1, min(PROMPT, context // 2))
    new = max(2, min(NEW, context - prompt + 1))
    found: dict[str, Any] = {"hardware": hardware(), "prompt_tokens": prompt, "new_tokens": new}
    for rows in batches:
        decoder = Decoder(network, rows)
        turns = [_timed(decoder, rows, prompt, new)]
        while len(turns) <= REPEATS and sum(t.seconds for t in turns) < SECONDS:
            turns.append(_timed(decoder, rows, prompt, new))
        found[f"batch_{rows}"] = {
            "prefill_tokens_per_second": max(t.prompt_tokens / t.prompt_seconds for t in turns),
            "decode_tokens_per_second": max(t.new_tokens / t.new_seconds for t in turns),
        }
    found["peak_memory_bytes"] = Device(network.device, network.dtype).memory_bytes()
    return found


def _timed(decoder: Decoder, rows: int, prompt: int, new: int) -> Speed:
    """One batch of prompts; which ids they hold makes no difference to the time."""
    from model.generate import generate
    from model.sampling import SamplingOptions

    vocabulary, speed = decoder.config.vocabulary, Speed()
    prompts = [[(row + place) % vocabulary for place in range(prompt)] for row in range(rows)]
    with speed.watch(decoder.model):
        speed.add(generate(decoder, prompts, SamplingOptions(max_new_tokens=new, temperature=0)))
    return speed


def _noting(passes: list[float]) -> Callable[..., None]:
    def note(*_: Any) -> None:
        passes.append(time.perf_counter())

    return note


def _rate(what: str, tokens: int, seconds: float) -> str:
    """Tokens and their speed; no speed where there was nothing to time."""
    speed = f", {tokens / seconds:,.0f} tokens/s" if tokens and seconds > 0 else ""
    return f"{what} {tokens:,} tokens{speed}"
