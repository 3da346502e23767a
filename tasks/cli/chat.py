"""`phasewise chat`: talk with a model, or with two at once, in a terminal.

The models continue text. A template writes what was said down as one text, and the reply is how it
goes on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tasks.cli.flags import (
    INPUT,
    Device,
    Dtype,
    Quantize,
    given_sampling,
    panel,
    takes_sampling,
)
from tasks.cli.generate import sampling_options

if TYPE_CHECKING:
    from model.sampling import SamplingOptions
    from tasks.cli.interactive import Session
    from tasks.cli.transcript import Template
    from tasks.release.sampler import Sampler


@takes_sampling
def chat(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A phase, an exported folder, or models:/<name>@<alias>.",
            rich_help_panel=INPUT,
        ),
    ],
    other: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL2", help="Another one, which goes on beside it.", rich_help_panel=INPUT
        ),
    ] = None,
    template: Annotated[
        str,
        panel(
            INPUT,
            "How turns are written: plain, dialogue, or with {user} and {model} in it.",
            metavar="TEXT",
        ),
    ] = "plain",
    dtype: Dtype = "fp32",
    quantize: Quantize = None,
    device: Device = "auto",
) -> None:
    """Write a text with a trained model, turn by turn; with two, side by side.

    The models were trained to continue text, not to answer: a reply is how the text goes on. Both
    of two models draw with the sampling of the first, and with the same seed.
    """
    from tasks.cli.transcript import Template

    written = Template.of(template)
    given = given_sampling(context.params)
    sampling_options({}, given)
    from tasks.registry.pull import resolve
    from tasks.release.generation_config import default_sampling
    from tasks.release.sampler import Sampler

    names = [model] if other is None else [model, other]
    folders = [resolve(name) for name in names]
    options = sampling_options(default_sampling(folders[0]), given)
    samplers = [Sampler.open(one, device=device, dtype=dtype, quantize=quantize) for one in folders]
    session = open_session(list(zip(names, samplers)), options, template=written, remembers=True)
    for speaker in session.talk.speakers:
        print(speaker, file=sys.stderr)
    print("They continue text, and were not taught to answer. ", end="", file=sys.stderr)
    session.run()


def open_session(
    models: list[tuple[str, Sampler]],
    options: SamplingOptions,
    *,
    template: Template | None = None,
    remembers: bool = False,
    num_samples: int = 1,
    speed: bool = False,
) -> Session:
    """A session with named models, each by the end of its name where that tells them apart."""
    from tasks.cli.conversation import Conversation
    from tasks.cli.interactive import Session
    from tasks.cli.speaker import Speaker
    from tasks.cli.transcript import Template

    names = short_names([name for name, _ in models])
    speakers = [Speaker(name, one) for name, (_, one) in zip(names, models, strict=True)]
    written = template or Template.of("plain")
    talk = Conversation(speakers, options, written, remembers, num_samples)
    return Session(talk, speed)


def short_names(models: list[str]) -> list[str]:
    """What models are called: the last part of a folder's name, more where two are the same."""
    short = [one if one.startswith("models:/") else Path(one).resolve().name for one in models]
    if len(set(short)) == len(short):
        return short
    if len(set(models)) == len(models):
        return models
    return [f"{name} ({number})" for number, name in enumerate(short, 1)]
