"""The flags of sampling, one for each setting, and --help in panels that keep them apart.

A flag has the name of its field in `model.sampling.SamplingOptions`, and no default of its own:
what is not given is what the model's folder says.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

INPUT, OUTPUT, SPEED = "Input", "Output", "Speed"
SAMPLING = "Sampling (default: what the recipe wrote into the model's generation_config.json)"
NAMES = (
    "max_new_tokens",
    "temperature",
    "final_temperature",
    "temperature_power",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "no_repeat_ngram_size",
    "stop",
    "seed",
    "draft_tokens",
)


class PanelCommand(TyperCommand):
    """A command whose options stand in --help under the titles of their panels, as plain text."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, a section a panel, in the order of the first option of each."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                title = getattr(parameter, "rich_help_panel", None) or "Options"
                panels.setdefault(title, []).append(record)
        for title, records in panels.items():
            with formatter.section(title):
                formatter.write_dl(records)


def panel(title: str, help: str, *names: str, **settings: Any) -> Any:
    """A flag in a panel; ``names`` where it is not called like its argument."""
    return typer.Option(*names, help=help, rich_help_panel=title, **settings)


def _flag(help: str, **settings: Any) -> Any:
    return panel(SAMPLING, help, **settings)


MaxNewTokens = Annotated[int | None, _flag("Tokens to generate at most.")]
Temperature = Annotated[
    float | None, _flag("0: always the likeliest token. Given alone, it does not move.")
]
FinalTemperature = Annotated[
    float | None, _flag("Where the temperature has moved to at the last token.")
]
TemperaturePower = Annotated[
    float | None, _flag("Of that move: 1 is straight, above 1 fast at first.")
]
TopK = Annotated[int | None, _flag("Of the k likeliest; 0: all.")]
TopP = Annotated[float | None, _flag("Of the likeliest that hold this probability; 1: all.")]
MinP = Annotated[float | None, _flag("Of those with this share of the likeliest's; 0: all.")]
RepetitionPenalty = Annotated[
    float | None, _flag("Divides the logits of what came before; 1: none.")
]
FrequencyPenalty = Annotated[
    float | None, _flag("Taken off for each time that a token was generated.")
]
PresencePenalty = Annotated[float | None, _flag("Taken off once a token was generated.")]
NoRepeatNgramSize = Annotated[
    int | None, _flag("No run of so many tokens comes twice; 0: they may.")
]
Stop = Annotated[
    list[str] | None, _flag("End after this text; may be given again.", metavar="TEXT")
]
Seed = Annotated[
    int | None, _flag("Of the first sample, then one more a sample; default: another each time.")
]
DraftTokens = Annotated[int | None, panel(SPEED, "Tokens that the draft proposes at once.")]


def given_sampling(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given, as keywords of SamplingOptions."""
    given = {name: flags[name] for name in NAMES if flags[name] is not None}
    if "stop" in given:
        given["stop"] = tuple(given["stop"])
    if not given.get("stop"):
        given.pop("stop", None)
    return given
