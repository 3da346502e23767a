"""`phasewise data show|trace|find`: what is in the shards, in a training sample, and where."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tasks.cli.flags import Json
from tasks.cli.project import load_recipe, project_root
from tasks.errors import UserError, unknown_name

if TYPE_CHECKING:
    from rich.text import Text

    from tasks.tokens.trace import Found, Trace, Tracer

app = typer.Typer(help="Look into the data that phases are trained on.", no_args_is_help=True)


@app.command()
def show(
    source: Annotated[str | None, typer.Argument(help="Default: all, as a table.")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    documents: Annotated[int, typer.Option(min=0, help="Documents to show.")] = 3,
    first: Annotated[int, typer.Option(min=0, help="Position of the first of them.")] = 0,
    as_json: Json = False,
) -> None:
    """What the shards hold: counts and sizes, and documents decoded from their ids."""
    from tasks.tokens.contents import documents_of, split_facts

    tracer = _tracer()
    names = list(tracer.recipe.sources)
    if source is not None and source not in names:
        raise unknown_name("source", source, names)
    facts = split_facts(tracer.workspace, [source] if source else names)
    if source and split not in [fact["split"] for fact in facts]:
        raise unknown_name("split", split, [fact["split"] for fact in facts])
    texts = documents_of(tracer.lookup(source, split), first, documents) if source else []  # type: ignore[arg-type]
    if as_json:
        _print_json({"splits": facts, "documents": texts})
        return
    _print_facts(facts)
    for text in texts:
        head = f"document {text['document']:,}: {text['tokens']:,} tokens, {text['bytes']:,} bytes"
        _print_document(head, text["id"], text["origin"], _text(text["text"]))


@app.command()
def trace(
    phase: Annotated[str, typer.Argument(help="A phase of the recipe.")],
    sample: Annotated[int | None, typer.Argument(help="Number of the sample, from 0.")] = None,
    step: Annotated[
        int | None, typer.Option(help="All samples of an optimizer step, from 0.")
    ] = None,
    as_json: Json = False,
) -> None:
    """The documents that a training sample is made of; what was read of them is marked."""
    if (sample is None) == (step is None):
        raise UserError(
            "give the number of a sample, or --step",
            hint=f"phasewise data trace {phase} 0, or phasewise data trace {phase} --step 0",
        )
    tracer = _tracer()
    numbers = [sample] if sample is not None else tracer.samples_of(phase, step)  # type: ignore[arg-type]
    traces = [tracer.trace(phase, number) for number in numbers]
    if as_json:
        _print_json([asdict(made) for made in traces])
        return
    for made in traces:
        _print_trace(made)


@app.command()
def find(
    text: Annotated[str, typer.Argument(help="Text as it stands in a document.")],
    phase: Annotated[str | None, typer.Option(help="Default: all phases.")] = None,
    ignore_case: Annotated[bool, typer.Option("--ignore-case", "-i")] = False,
    most: Annotated[int, typer.Option(min=1, help="Places to show at most.")] = 20,
    as_json: Json = False,
) -> None:
    """Where a text stands in the data, and which samples of which phases read it, when."""
    places = _tracer().find(text, phase, ignore_case, most)
    if as_json:
        _print_json([asdict(place) for place in places])
        return
    for place in places:
        _print_found(place)
    if len(places) == most:
        print(f"the first {most} places; more: --most {10 * most}")
    elif not places:
        print("it stands in no document of any split")


def _tracer() -> Tracer:
    from tasks.tokens.trace import Tracer
    from tasks.workspace import Workspace

    root = project_root()
    return Tracer(Workspace(root), load_recipe(root / "params.yaml"))


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _print_facts(facts: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from tasks.units import show_bytes, show_count

    table = Table("split", box=None)
    for name in ("documents", "tokens", "of text", "bytes/token", "tokens/document"):
        table.add_column(name, justify="right")
    for fact in facts:
        table.add_row(
            f"{fact['source']}/{fact['split']}",
            f"{fact['documents']:,}",
            show_count(fact["tokens"]),
            show_bytes(fact["text_bytes"]),
            f"{fact['bytes_per_token']:.2f}",
            f"{fact['median_tokens']:.0f} (median)",
        )
    Console().print(table)


def _print_trace(made: Trace) -> None:
    padding = f", {made.padding} positions of padding" if made.padding else ""
    print(
        f"{made.phase}, sample {made.sample:,} (step {made.step:,}): {made.source}, "
        f"epoch {made.epoch}, window {made.window:,}{padding}"
    )
    for part in made.parts:
        stretch = f"tokens {part.start:,} to {part.stop:,} of {part.tokens:,}"
        parts = _text(part.before), _text(part.text, True), _text(part.after)
        _print_document(f"document {part.document:,}: {stretch}", part.id, part.origin, *parts)


def _print_found(place: Found) -> None:
    head = f"{place.source}/{place.split}, document {place.document:,}, character {place.start:,}"
    parts = _text(place.before), _text(place.text, True), _text(place.after)
    _print_document(head, place.id, place.origin, *parts)
    if place.split != "train":
        print("    held out: no phase reads it")
    for reading in place.readings:
        phase = reading.phase if reading.trained else f"{reading.phase} (not trained yet)"
        if not reading.samples:
            print(f"    {phase}: never reads it")
            continue
        shown = ", ".join(f"{sample:,}" for sample in reading.samples[:8])
        more = f" and {len(reading.samples) - 8:,} more" if len(reading.samples) > 8 else ""
        print(
            f"    {phase}: reads it {reading.times} time{'s' * (reading.times != 1)}, first after "
            f"{reading.tokens_seen:,} tokens; samples {shown}{more}"
        )


def _print_document(head: str, id_: str, origin: dict[str, Any], *parts: Text) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    where = ", ".join(f"{key} {value}" for key, value in origin.items())
    print(f"  {head}\n    id {id_[:12]}" + (f", {_printable(where)}" if where else ""))
    Console(highlight=False).print(Padding(Text.assemble(*parts), (0, 0, 0, 4)))


def _text(content: str, marked: bool = False) -> Text:
    """Text for a terminal; what is marked stands in bold between brackets, to be seen in a pipe."""
    from rich.text import Text

    content = _printable(content)
    return Text(f"\u27e6{content}\u27e7", "bold") if marked else Text(content, "dim")


def _printable(text: str) -> str:
    """Text of a corpus, with U+FFFD for what would steer a terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() else "\ufffd" for c in text)
