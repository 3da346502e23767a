"""From a training sample to the texts it is made of, and from a text to the samples that read it.

    trace   sample -> reader: source, epoch, window, pieces of documents -> lookup: text, origin
    find    text -> lookup: documents and the tokens that hold it -> reader, backwards: samples

Both are arithmetic on the mix: nothing was recorded while training.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

from tasks.errors import USAGE, UserError, unknown_name
from tasks.recipe import Phase, Recipe, Split
from tasks.tokens.lookup import Lookup, Match
from tasks.tokens.mixture import load_mix
from tasks.tokens.reader import Reader
from tasks.tokens.shards import splits
from tasks.tokens.streams import Piece
from tasks.workspace import Workspace

AROUND = 24  # tokens shown before and after what was read


@dataclass(frozen=True)
class Part:
    """A part of one document that a sample has as targets.

    Attributes:
        document: position in the training split.
        id, origin: of the document; where it came from (file, row, url, title, ...).
        start, stop: its tokens that were read.
        tokens: of the whole document, EOS included.
        before, text, after: the text that was read, and some that stands around it.
    """

    document: int
    id: str
    origin: dict[str, Any]
    start: int
    stop: int
    tokens: int
    before: str
    text: str
    after: str


@dataclass(frozen=True)
class Trace:
    """What one training sample is made of.

    Attributes:
        sample, step: its number in the phase, and the optimizer step (from 0) that reads it.
        source, epoch, window: where it was drawn from.
        padding: positions without a target.
        parts: in the order in which they are read.
    """

    phase: str
    sample: int
    step: int
    source: str
    epoch: int
    window: int
    padding: int
    parts: list[Part]


@dataclass(frozen=True)
class Reading:
    """When a phase reads a text.

    Attributes:
        times: how often it reads the first token of it.
        samples: the samples that read any of it, in order.
        tokens_seen: tokens of the phase before the first of them.
        trained: whether the phase has been trained to its end.
    """

    phase: str
    times: int
    samples: list[int]
    tokens_seen: int
    trained: bool


@dataclass(frozen=True)
class Found:
    """A place where a text stands.

    Attributes:
        source, split, document: where; readings are of the training split alone.
        id, origin: of the document.
        start, stop: characters of the document.
        before, text, after: the place and what stands around it.
        readings: phases that draw the source, in order.
    """

    source: str
    split: Split
    document: int
    id: str
    origin: dict[str, Any]
    start: int
    stop: int
    before: str
    text: str
    after: str
    readings: list[Reading]


class Tracer:
    """Trace samples and find texts in one workspace. Shards are opened when first asked for."""

    def __init__(self, workspace: Workspace, recipe: Recipe) -> None:
        self.workspace, self.recipe = workspace, recipe
        self._readers: dict[str, Reader] = {}
        self._lookups: dict[tuple[str, Split], Lookup] = {}

    def trace(self, phase: str, sample: int) -> Trace:
        """What a sample is made of. Raises UserError for a phase or a sample that is not there."""
        reader, settings = self.reader(phase), self.recipe.phases[phase]
        if not 0 <= sample < len(reader):
            raise UserError(
                f"{phase} has no sample {sample:,}; its samples are 0 to {len(reader) - 1:,}",
                hint=f"samples of step N: phasewise data trace {phase} --step N",
                exit_code=USAGE,
            )
        where, pieces = reader.locate(sample), reader.pieces(sample)
        lookup = self.lookup(where.source, "train")
        return Trace(
            phase=phase,
            sample=sample,
            step=step_of(settings, sample),
            source=where.source,
            epoch=where.epoch,
            window=where.window,
            padding=settings.seq_len - sum(piece.stop - piece.start for piece in pieces),
            parts=[_part(lookup, piece) for piece in pieces],
        )

    def samples_of(self, phase: str, step: int) -> range:
        """The samples of an optimizer step. Raises UserError for one that the phase has not."""
        self.reader(phase)
        settings = self.recipe.phases[phase]
        if not 0 <= step < settings.steps:
            raise UserError(
                f"{phase} has no step {step:,}; its steps are 0 to {settings.steps - 1:,}",
                exit_code=USAGE,
            )
        return settings.samples_at(step)

    def find(
        self, text: str, phase: str | None = None, ignore_case: bool = False, most: int = 20
    ) -> list[Found]:
        """The first ``most`` places where a text stands, in all splits of all sources, and when
        phases (or one) read them. Raises UserError for an empty text or an unknown phase."""
        if not text:
            raise UserError("there is no text to look for", exit_code=USAGE)
        if phase is not None:
            self.reader(phase)
        found: list[Found] = []
        for source in self.recipe.sources:
            for split in splits(self.workspace.tokens(source)):
                for match in self.lookup(source, split).search(text, ignore_case):
                    found.append(self._found(source, split, match, phase))
                    if len(found) == most:
                        return found
        return found

    def reader(self, phase: str) -> Reader:
        """The reader of a phase. Raises UserError where there is no such phase."""
        if phase not in self.recipe.phases:
            raise unknown_name("phase", phase, self.recipe.phases)
        if phase not in self._readers:
            mix = load_mix(self.workspace.mix(phase))
            self._readers[phase] = Reader(self.workspace, mix, verify=False)
        return self._readers[phase]

    def lookup(self, source: str, split: Split) -> Lookup:
        """Text and ids of a split. Raises UserError where there is no such source or split."""
        if source not in self.recipe.sources:
            raise unknown_name("source", source, self.recipe.sources)
        if (source, split) not in self._lookups:
            self._lookups[source, split] = Lookup(self.workspace, source, split)
        return self._lookups[source, split]

    def _found(self, source: str, split: Split, match: Match, phase: str | None) -> Found:
        text, around = match.text.text, 3 * AROUND
        return Found(
            source=source,
            split=split,
            document=match.document,
            id=match.text.id,
            origin=json.loads(match.text.origin),
            start=match.start,
            stop=match.stop,
            before=text[max(0, match.start - around) : match.start],
            text=text[match.start : match.stop],
            after=text[match.stop : match.stop + around],
            readings=self._readings(source, match, phase) if split == "train" else [],
        )

    def _readings(self, source: str, match: Match, phase: str | None) -> list[Reading]:
        start, stop = self.lookup(source, "train").stretch(match)
        found = []
        for name in [phase] if phase else self.recipe.phases_in_order():
            if not self.workspace.mix(name).exists():
                continue
            reader = self.reader(name)
            if source not in [drawn.name for drawn in reader.mix.sources]:
                continue
            samples = reader.when(source, match.document, start, stop)
            times = len(reader.when(source, match.document, start, start + 1))
            seen = samples[0] * reader.mix.seq_len if samples else 0
            trained = self.workspace.checkpoint(name).exists()
            found.append(Reading(name, times, samples, seen, trained))
        return found


def step_of(settings: Phase, sample: int) -> int:
    """The optimizer step that reads a sample of a phase."""
    token = sample * settings.seq_len
    return bisect_right(range(settings.steps), token, key=lambda n: settings.plan.at(n).first) - 1


def _part(lookup: Lookup, piece: Piece) -> Part:
    document, ids = lookup.document(piece.document), lookup.ids(piece.document)
    decode = lookup.tokenizer.decode
    return Part(
        document=piece.document,
        id=document.id,
        origin=json.loads(document.origin),
        start=piece.start,
        stop=piece.stop,
        tokens=len(ids),
        before=decode(ids[max(0, piece.start - AROUND) : piece.start]),
        text=decode(ids[piece.start : piece.stop]),
        after=decode(ids[piece.stop : piece.stop + AROUND]),
    )
