"""`phasewise generate`: text from an exported folder or a registered model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tasks.cli.flags import (
    INPUT,
    OUTPUT,
    SPEED,
    Device,
    Dtype,
    Quantize,
    given_sampling,
    panel,
    takes_sampling,
)
from tasks.cli.prompts import read_prompts
from tasks.errors import UserError

if TYPE_CHECKING:
    from model.sampling import SamplingOptions
    from tasks.release.sampler import Sampler


@takes_sampling
def generate(
    context: typer.Context,
    model: Annotated[
        str,
        panel(INPUT, "A phase, an exported folder, or models:/<name>@<alias>.", metavar="MODEL"),
    ],
    prompt: Annotated[
        list[str] | None,
        panel(INPUT, "May be given again; empty: start a new text.", metavar="TEXT"),
    ] = None,
    prompt_file: Annotated[
        str | None,
        panel(INPUT, "Lines of text, or .jsonl with \"prompt\"; '-': stdin.", metavar="FILE"),
    ] = None,
    interactive: Annotated[
        bool, panel(INPUT, "Ask for prompts, one after another.", "--interactive")
    ] = False,
    num_samples: Annotated[int, panel(OUTPUT, "Samples a prompt.", min=1, metavar="<int>")] = 1,
    stream: Annotated[bool, panel(OUTPUT, "Print tokens as they come.", "--stream")] = False,
    as_json: Annotated[bool, panel(OUTPUT, "One JSON object a sample.", "--json")] = False,
    attention: Annotated[
        Path | None,
        panel(OUTPUT, "Picture of who attends to whom: .png, .svg, .html.", metavar="FILE"),
    ] = None,
    layer: Annotated[
        int | None, panel(OUTPUT, "The only one in the picture, from 0.", min=0, metavar="<int>")
    ] = None,
    head: Annotated[
        int | None, panel(OUTPUT, "The only one in the picture, from 0.", min=0, metavar="<int>")
    ] = None,
    batch_size: Annotated[int, panel(SPEED, "Samples drawn at once.", min=1, metavar="<int>")] = 8,
    dtype: Dtype = "fp32",
    quantize: Quantize = None,
    device: Device = "auto",
    draft: Annotated[
        str | None, panel(SPEED, "A smaller model that proposes tokens.", metavar="MODEL")
    ] = None,
    draft_tokens: Annotated[
        int | None, panel(SPEED, "Tokens that the draft proposes at once.")
    ] = None,
    compiled: Annotated[
        bool,
        panel(SPEED, "Compile one token's step, on the CPU, with --batch-size 1.", "--compile"),
    ] = False,
    speed: Annotated[bool, panel(SPEED, "Print tokens a second to stderr.", "--speed")] = False,
) -> None:
    """Continue prompts with a trained model."""
    _check_together(context.params)
    given = given_sampling(context.params)
    sampling_options({}, given)
    texts = [] if interactive else read_prompts(prompt, prompt_file)
    texts = [text for text in texts for _ in range(num_samples)]
    from tasks.cli.samples import Printer
    from tasks.registry.pull import resolve
    from tasks.release.generation_config import default_sampling
    from tasks.release.sampler import Sampler, seeded, shifted

    folder, small = resolve(model), resolve(draft) if draft else None
    sampler = Sampler.open(
        folder, device=device, dtype=dtype, quantize=quantize, draft=small, compiled=compiled
    )
    options = sampling_options(default_sampling(folder), given)
    if interactive:
        from tasks.cli.chat import open_session

        open_session([(model, sampler)], options, num_samples=num_samples, speed=speed).run()
        return
    if attention:
        _check_attention(attention, len(texts), sampler, layer, head)
    printer = Printer(sampler, len(texts), as_json, speed)
    if stream:
        options = seeded(options)
        samples = [printer.stream(t, shifted(options, n)) for n, t in enumerate(texts)]
    else:
        samples = [printer.sample(one) for one in sampler.sample(texts, options, batch_size)]
    printer.show_speed()
    if attention:
        from tasks.release.attention_picture import draw

        [sample] = samples
        ids = [*sample.prompt_ids, *sample.ids]
        draw(sampler, ids, len(sample.prompt_ids), attention, model, layer, head)
        print(f"attention: {attention}", file=sys.stderr)


def _check_together(flags: dict[str, Any]) -> None:
    """Raises UserError for flags that exclude each other, or that say nothing alone."""
    for one, other in _APART:
        if flags[one] and flags[other]:
            raise UserError(f"{_flag(one)} and {_flag(other)} exclude each other")
    for one, needed in _NEEDS:
        if flags[one] is not None and not flags[needed]:
            raise UserError(f"{_flag(one)} says nothing without {_flag(needed)}")


_APART = (
    ("interactive", "prompt"),
    ("interactive", "prompt_file"),
    ("interactive", "as_json"),
    ("interactive", "attention"),
    ("stream", "as_json"),
)
_NEEDS = (("draft_tokens", "draft"), ("layer", "attention"), ("head", "attention"))


def _check_attention(
    picture: Path, texts: int, sampler: Sampler, layer: int | None, head: int | None
) -> None:
    """Raise UserError where there are more texts than one, or no such layer, head or format."""
    from tasks.release.attention_picture import check_picture

    if texts != 1:
        raise UserError(
            f"--attention draws one text, not {texts}", hint="give one --prompt and one sample"
        )
    check_picture(picture, sampler.network.config, layer, head)


def _flag(name: str) -> str:
    return "--" + name.removeprefix("as_").replace("_", "-")


def sampling_options(defaults: dict[str, Any], given: dict[str, Any]) -> SamplingOptions:
    """The model's own sampling, but for what was given. Raises UserError where it cannot be.

    A temperature given is meant to hold: it does not move to the model's final one.
    """
    from model.sampling import SamplingOptions

    if "temperature" in given:
        defaults = {k: v for k, v in defaults.items() if k != "final_temperature"}
    try:
        return SamplingOptions(**defaults | given)
    except ValueError as error:
        raise UserError(str(error)) from None
