"""A model that takes part: what it is called, and its continuation of a text, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from model.counts import count_parameters
from model.sampling import SamplingOptions
from tasks.cli.pieces import Piece, until
from tasks.errors import UserError
from tasks.release.likely import Drawn, drawn
from tasks.release.sampler import Sample, Sampler

if TYPE_CHECKING:
    from torch import Tensor

ALTERNATIVES = 4


@dataclass
class Speaker:
    """A model and its last sample, which is None where it was stopped."""

    name: str
    sampler: Sampler
    sample: Sample | None = field(default=None, repr=False)

    def __str__(self) -> str:
        config = self.sampler.network.config
        total = count_parameters(config)["total"]
        return f"{self.name}: {total:,} parameters, a context of {config.max_seq_len:,} tokens"

    def go_on(
        self,
        text: str,
        options: SamplingOptions,
        *,
        stop: str | None = None,
        make_room: bool = False,
        watched: bool = False,
    ) -> Iterator[Piece]:
        """The pieces of what comes after ``text``, before the text ``stop``.

        Args:
            make_room: as of `Sampler.stream`.
            watched: give each piece its tokens, with their probabilities. Raises UserError where
                the model has a draft, whose tokens come several at once.
        """
        self.sample = None
        if watched and self.sampler.draft is not None:
            raise UserError(
                "the probabilities of tokens from a draft are not known",
                hint="say /probs off, or leave out --draft",
            )
        if stop:
            options = replace(options, stop=(*options.stop, stop))
        new: list[Drawn] = []

        def notice(before: Sequence[int], logits: Tensor, id_: int) -> None:
            new.append(drawn(self.sampler.tokenizer, before, logits, id_, ALTERNATIVES))

        texts = self.sampler.stream(
            text, options, make_room=make_room, notice=notice if watched else None
        )

        def pieces() -> Iterator[Piece]:
            while True:
                try:
                    one = next(texts)
                except StopIteration as end:
                    self.sample = end.value
                    return
                yield Piece(one, tuple(new))
                new.clear()

        with closing(texts):
            source = pieces()
            yield from until(source, stop)
            for _ in source:  # the sampler has seen the stop too, and tells how it ended
                pass
