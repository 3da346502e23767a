"""A conversation: turns that one model continues, or two, each on its own replies.

    what is typed -> a turn -> transcript.text(model) -> the end that the context holds -> pieces
        -> the screen and, piece by piece, the turn's reply: what Ctrl-C leaves is kept

One that does not remember begins anew with each turn.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from model.sampling import SamplingOptions
from tasks.cli.flags import NAMES
from tasks.cli.pieces import Piece
from tasks.cli.samples import tell_cut
from tasks.cli.screen import Screen
from tasks.cli.speaker import Speaker
from tasks.cli.transcript import Template, Transcript, Turn
from tasks.errors import BAD_DATA, UserError
from tasks.release.likely import Drawn
from tasks.release.sampler import seeded, shifted


@dataclass
class Conversation:
    """Who speaks, what was said, and the sampling in force.

    With a seed, the first continuation draws with it and each later one with one more; where it
    does not remember, every turn draws with the seed itself.
    """

    speakers: list[Speaker]
    options: SamplingOptions
    template: Template
    remembers: bool = True
    num_samples: int = 1
    """Continuations of each turn, where it does not remember."""
    watched: bool = False
    """Whether the probability of each token is told."""
    transcript: Transcript = field(init=False)
    drawn: list[list[Drawn]] = field(init=False)
    """The tokens of the last continuation of each speaker, where they were watched."""

    def __post_init__(self) -> None:
        assert self.remembers or len(self.speakers) == 1
        assert self.num_samples == 1 or not self.remembers
        self.screen = Screen([one.name for one in self.speakers])
        self.draws = 0
        self.reset()

    @property
    def turns(self) -> list[Turn]:
        return self.transcript.turns

    def say(self, line: str) -> None:
        """A new turn: what is typed, and what comes after it.

        KeyboardInterrupt leaves the turn with what had come; any error takes it back.
        """
        before = copy.deepcopy(self.turns)
        if not self.remembers:
            self.reset()
        turn = self.transcript.open(line)
        echo = line if self.transcript.template.joins else ""
        with self._taken_back(before):
            for number in range(self.num_samples):
                turn.replies = [""] * len(self.speakers)
                self._draw(turn, echo, number)

    def more(self) -> None:
        """Go on with the last turn; where there is none, begin a text of which nothing is given."""
        before = copy.deepcopy(self.turns)
        with self._taken_back(before):
            self._draw(self.turns[-1] if self.turns else self.transcript.open(""), "")

    def retry(self) -> None:
        """Draw the last replies anew. Raises UserError where there are none."""
        before = copy.deepcopy(self.turns)
        turn = self._last()
        turn.replies = [""] * len(self.speakers)
        with self._taken_back(before):
            self._draw(turn, turn.user if self.transcript.template.joins else "")

    def undo(self) -> Turn:
        """Take the last turn back; returns it. Raises UserError where there is none."""
        turn = self._last()
        self.turns.pop()
        self._forget_samples()
        return turn

    def reset(self) -> None:
        """Forget what was said."""
        self.transcript = Transcript(self.template, len(self.speakers))
        self._forget_samples()

    def use(self, template: Template) -> None:
        """Write all turns down another way."""
        self.template = self.transcript.template = template

    def set(self, options: SamplingOptions) -> None:
        """Take another sampling; another seed is drawn with from the start."""
        if options.seed != self.options.seed:
            self.draws = 0
        self.options = options

    def save(self, path: Path) -> None:
        """Write it to a file; errors as of `Transcript.save`."""
        sampling = {name: getattr(self.options, name) for name in NAMES}
        self.transcript.save(path, [one.name for one in self.speakers], sampling)

    def load(self, path: Path) -> None:
        """Go on with a saved one and its sampling; errors as of `Transcript.load`."""
        transcript, sampling = Transcript.load(path, len(self.speakers))
        try:
            if "stop" in sampling:
                sampling["stop"] = tuple(sampling["stop"])
            options = SamplingOptions(
                **{name: sampling[name] for name in NAMES if name in sampling}
            )
        except (TypeError, ValueError) as error:
            raise UserError(str(error), where=f"{path}: sampling", exit_code=BAD_DATA) from None
        self.transcript, self.template, self.draws = transcript, transcript.template, 0
        self.options = options
        self._forget_samples()

    def text(self, number: int = 0) -> str:
        """What speaker ``number`` would go on from."""
        return self.transcript.text(number)

    def _draw(self, turn: Turn, echo: str, number: int = 0) -> None:
        options = seeded(self.options)
        options = shifted(options, self.draws if self.remembers else number)
        self.draws += 1
        if self.num_samples > 1:
            self.screen.head(f"{number + 1} of {self.num_samples}, seed {options.seed}")
        self.drawn = [[] for _ in self.speakers]
        cut = [_was_cut(one) for one in self.speakers]
        with ExitStack() as stack:
            texts = [
                stack.enter_context(closing(self._kept(turn, place, options)))
                for place in range(len(self.speakers))
            ]
            self.screen.show(echo, texts)
        for speaker, before in zip(self.speakers, cut, strict=True):
            self._tell(speaker, before)

    def _kept(
        self, turn: Turn, number: int, options: SamplingOptions
    ) -> Generator[Piece, None, None]:
        """The pieces of a reply, each put down before it is shown."""
        pieces = self.speakers[number].go_on(
            self.text(number),
            options,
            stop=self.transcript.template.stop,
            make_room=self.remembers,
            watched=self.watched,
        )
        for piece in pieces:
            turn.replies[number] += piece.text
            self.drawn[number] += piece.drawn
            yield piece

    def _tell(self, speaker: Speaker, was_cut: bool) -> None:
        """Say to stderr, once, that the start is not read any more; and why the text ended."""
        sample = speaker.sample
        assert sample is not None
        name = f"{speaker.name}: " if len(self.speakers) > 1 else ""
        if not was_cut:
            tell_cut(sample, speaker.sampler.network.config.max_seq_len, name)
        if self.remembers and sample.finish in _ENDS:
            print(f"[{name}{_ENDS[sample.finish]}]", file=sys.stderr)

    def _last(self) -> Turn:
        if not self.turns:
            raise UserError("nothing was said yet")
        return self.turns[-1]

    def _forget_samples(self) -> None:
        self.drawn = [[] for _ in self.speakers]
        for speaker in self.speakers:
            speaker.sample = None

    @contextmanager
    def _taken_back(self, before: list[Turn]) -> Iterator[None]:
        """Put the turns back as they were where the block fails."""
        try:
            yield
        except Exception:
            self.transcript.turns = before
            raise


def _was_cut(speaker: Speaker) -> bool:
    return speaker.sample is not None and speaker.sample.dropped > 0


_ENDS = {"eos": "end of text", "context": "the context is full; /more goes on with its end"}
