"""`phasewise generate`: text from an exported folder or a registered model."""

from __future__ import annotations

import itertools
import json
import sys
import time
from dataclasses import replace
from typing import Annotated

import typer

from tasks.errors import UserError

Option = typer.Option


def generate(
    model: Annotated[str, Option(help="An exported folder, or models:/<name>@<alias>.")],
    prompt: Annotated[
        list[str] | None, Option(help="May be given again; '-' or none: stdin.")
    ] = None,
    max_new_tokens: Annotated[int, Option(help="Tokens to generate at most.")] = 64,
    temperature: Annotated[float, Option(help="0: always the likeliest token.")] = 0.8,
    top_k: Annotated[int, Option(help="Of the k likeliest; 0: all.")] = 0,
    top_p: Annotated[float, Option(help="Of the likeliest that hold this probability.")] = 0.95,
    repetition_penalty: Annotated[float, Option(help="1: none.")] = 1.0,
    seed: Annotated[
        int | None, Option(help="The same text again; default: another each time.")
    ] = None,
    num_samples: Annotated[int, Option(min=1, help="Samples a prompt.")] = 1,
    stream: Annotated[bool, Option("--stream", help="Print tokens as they come.")] = False,
    as_json: Annotated[bool, Option("--json", help="One JSON object a sample.")] = False,
) -> None:
    """Continue prompts with a trained model."""
    prompts = read_prompts(prompt)
    from model.sampling import SamplingOptions
    from tasks.release.pull import resolve
    from tasks.release.sampler import Sampler

    try:
        options = SamplingOptions(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    sampler = Sampler(resolve(model))
    started, count = time.perf_counter(), 0
    for text, number in itertools.product(prompts, range(num_samples)):
        drawn = options if seed is None else replace(options, seed=seed + number)
        if stream:
            print(text, end="", flush=True)
            for piece in sampler.stream(text, drawn):
                print(piece, end="", flush=True)
            print()
            continue
        sample = sampler.complete(text, drawn)
        count += sample.tokens
        if sample.dropped:
            print(f"note: the prompt is longer than the context; its first {sample.dropped} tokens "
                  "were left out", file=sys.stderr)  # fmt: skip
        if as_json:
            print(json.dumps(vars(sample), ensure_ascii=False))
        else:
            print(text + sample.text + ("\n" if num_samples * len(prompts) > 1 else ""))
    if count and sys.stderr.isatty():
        print(f"{count / (time.perf_counter() - started):.0f} tokens/s", file=sys.stderr)


def read_prompts(given: list[str] | None) -> list[str]:
    """The prompts given, or those of stdin (one a line). Raises UserError where there is none."""
    if given and given != ["-"]:
        return given
    if sys.stdin.isatty() and not given:
        raise UserError("no prompt", hint="give --prompt 'Once upon', or lines on stdin")
    lines = [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not lines:
        raise UserError("no prompt on stdin", hint="one prompt a line")
    return lines
