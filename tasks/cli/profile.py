"""`phasewise profile`: what a network costs, by part, and beside it what a real step took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tasks.cli.flags import Json
from tasks.cli.project import load_recipe, project_root
from tasks.cli.recipes import recipe_path
from tasks.errors import BAD_DATA, UserError

if TYPE_CHECKING:
    from model.config import ModelConfig

Option = typer.Option
PRECISIONS = ("bf16", "fp16", "fp32")


def profile(
    network: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE_OR_MODEL]",
            help="A recipe's name or an exported folder. Default: the params.yaml in force.",
        ),
    ] = None,
    batch: Annotated[int, Option(min=1, help="Sequences of one forward pass.")] = 1,
    seq_len: Annotated[int | None, Option(min=1, help="Default: the whole context.")] = None,
    precision: Annotated[str, Option(help="bf16, fp16 or fp32.")] = "bf16",
    recompute: Annotated[
        bool, Option("--recompute", help="Blocks run again in the backward pass.")
    ] = False,
    measure: Annotated[
        bool, Option("--measure", help="Train a few steps in a child and show its peak.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Parameters, FLOPs a token and memory of a network, by part."""
    if precision not in PRECISIONS:
        raise UserError(f"no precision {precision!r}", hint=f"one of {', '.join(PRECISIONS)}")
    config = _config(network)
    length = seq_len or config.max_seq_len
    if length > config.max_seq_len:
        raise UserError(
            f"--seq-len {length} is longer than the context",
            hint=f"max_seq_len is {config.max_seq_len}",
        )
    from tasks import costs

    step = costs.Step(batch, length, precision, recompute)
    made = costs.profile(config, step, context=length)
    if measure:
        from tasks.training.measure import measure as measured

        made["measured"] = measured(config, step)
    if as_json:
        print(json.dumps(made, indent=2))
    else:
        _show(made, step)


def _config(network: str | None) -> ModelConfig:
    """The network of an exported folder, a recipe or the params.yaml in force."""
    folder = Path(network) if network else None
    if folder is not None and (folder / "config.json").exists():
        from model.load import read_config

        try:
            return read_config(folder)
        except ValueError as error:
            raise UserError(str(error), exit_code=BAD_DATA) from None
    path = recipe_path(network) if network else project_root() / "params.yaml"
    return load_recipe(path).model_config_with_vocab


def _show(made: dict[str, Any], step: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    from tasks.units import show_bytes, show_count, show_seconds

    console, counts, flops = Console(), made["parameters"], made["flops_a_token"]
    table = Table("part", box=None)
    table.add_column("parameters", justify="right")
    table.add_column("share", justify="right")
    for part, number in counts["parts"].items():
        if number:
            table.add_row(part, f"{number:,}", f"{number / counts['total']:.1%}")
    table.add_row("total", f"{counts['total']:,}")
    table.add_row("active", f"{counts['active']:,}")
    table.add_row("not embedding", f"{counts['non_embedding']:,}")
    console.print(table)
    print(
        f"FLOPs a token  forward {show_count(flops['forward'])}, training "
        f"{show_count(flops['training'])}; {show_count(flops['palm'])} by PaLM's appendix B"
    )
    print(f"  {made['flops_formula']}")
    passes = f"{step.batch} x {step.seq_len} tokens, {step.precision}"
    print(f"memory         {passes}{', recompute' if step.recompute else ''}")
    for part, size in made["memory"].items():
        if size:
            print(f"  {part.replace('_', ' '):<13} {show_bytes(size):>9}")
    blocks = made["block_bytes"]
    print(f"  a block keeps {show_bytes(max(blocks))} for the backward pass, recomputed or not")
    print(f"  KV cache of {step.batch} x {step.seq_len} tokens: {show_bytes(made['kv_cache'])}")
    if measured := made.get("measured"):
        ratio = made["memory"]["total"] / measured["peak_bytes"]
        print(
            f"measured       peak {show_bytes(measured['peak_bytes'])} on {measured['device']}; "
            f"the estimate is {ratio:.2f} of it; a step took {show_seconds(measured['seconds'])}"
        )
