"""The flags that several commands take, and --help in panels that keep many of them apart.

A flag of sampling has the name of its field in `model.sampling.SamplingOptions`, and no default of
its own: what is not given is what the model's folder says.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

INPUT, OUTPUT, SPEED = "Input", "Output", "Speed"
SAMPLING = "Sampling (default: what the recipe wrote into the model's generation_config.json)"
PANELS = (INPUT, OUTPUT, SAMPLING, SPEED)


class PanelCommand(TyperCommand):
    """A command whose options stand in --help under the titles of their panels, as plain text."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, a section a panel."""
        panels: dict[str, list[tuple[str, str]]] = {title: [] for title in PANELS}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                title = getattr(parameter, "rich_help_panel", None) or "Options"
                panels.setdefault(title, []).append(record)
        for title, records in panels.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def panel(title: str, help: str, *names: str, **settings: Any) -> Any:
    """A flag in a panel; ``names`` where it is not called like its argument."""
    return typer.Option(*names, help=help, rich_help_panel=title, **settings)


def _flag(kind: Any, help: str, **settings: Any) -> Any:
    return Annotated[kind | None, panel(SAMPLING, help, **settings)]


SAMPLING_FLAGS: dict[str, Any] = {
    "max_new_tokens": _flag(int, "Tokens to generate at most."),
    "temperature": _flag(float, "0: always the likeliest token. Given alone, it does not move."),
    "final_temperature": _flag(float, "Where the temperature has moved to at the last token."),
    "temperature_power": _flag(float, "Of that move: 1 is straight, above 1 fast at first."),
    "top_k": _flag(int, "Of the k likeliest; 0: all."),
    "top_p": _flag(float, "Of the likeliest that hold this probability; 1: all."),
    "min_p": _flag(float, "Of those with this share of the likeliest's; 0: all."),
    "repetition_penalty": _flag(float, "Divides the logits of what came before; 1: none."),
    "frequency_penalty": _flag(float, "Taken off for each time that a token was generated."),
    "presence_penalty": _flag(float, "Taken off once a token was generated."),
    "no_repeat_ngram_size": _flag(int, "No run of so many tokens comes twice; 0: they may."),
    "stop": _flag(list[str], "End after this text; may be given again.", metavar="TEXT"),
    "seed": _flag(int, "Of the first sample, then one more a sample; default: another each time."),
}
NAMES = (*SAMPLING_FLAGS, "draft_tokens")
Json = Annotated[bool, typer.Option("--json", help="As JSON.")]
Dtype = Annotated[Literal["fp32", "bf16"], panel(SPEED, "Of weights and arithmetic.")]
Quantize = Annotated[
    Literal["int8", "int4"] | None, panel(SPEED, "Weights as small integers, on the CPU.")
]
Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"], panel(SPEED, "auto: PHASEWISE_DEVICE, or the best.")
]


def takes_sampling(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags of sampling, which it finds in its context's ``params``."""
    signature = inspect.signature(command, eval_str=True)

    @functools.wraps(command)
    def run(**given: Any) -> None:
        command(**{name: given[name] for name in signature.parameters})

    flags = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=flag)
        for name, flag in SAMPLING_FLAGS.items()
    ]
    own = signature.parameters.values()
    run.__signature__ = signature.replace(parameters=[*own, *flags])  # type: ignore[attr-defined]
    return run


def given_sampling(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given, as keywords of SamplingOptions."""
    given = {name: flags[name] for name in NAMES if flags.get(name) not in (None, [])}
    return given | ({"stop": tuple(given["stop"])} if "stop" in given else {})
