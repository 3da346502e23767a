"""How fast a model reads a prompt and how fast it goes on, which are two figures.

    start |---- prompt: all its tokens in one pass ----|-- new token --|-- new token --| ...

The first new token comes out of the pass over the prompt, so it counts there. A draft model's
reading of the prompt does too.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from model import Transformer
    from model.generate import Completion


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

    def __str__(self) -> str:
        parts = [
            _rate("prompt", self.prompt_tokens, self.prompt_seconds),
            _rate("generated", self.new_tokens, self.new_seconds),
        ]
        if self.proposed:
            share = self.accepted / self.proposed
            parts.append(f"draft {self.accepted:,} of {self.proposed:,} accepted ({share:.0%})")
        return "; ".join(parts)


def _noting(passes: list[float]) -> Callable[..., None]:
    def note(*_: Any) -> None:
        passes.append(time.perf_counter())

    return note


def _rate(what: str, tokens: int, seconds: float) -> str:
    """Tokens and their speed; no speed where there was nothing to time."""
    speed = f", {tokens / seconds:,.0f} tokens/s" if tokens and seconds > 0 else ""
    return f"{what} {tokens:,} tokens{speed}"
