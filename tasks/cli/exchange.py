"""`phasewise import` and `phasewise gguf`: weights from elsewhere, and to elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from tasks.cli.project import project_root
from tasks.errors import unknown_name

Option = typer.Option


def import_(
    source: Annotated[Path, typer.Argument(help="A folder of transformers, or a file of weights.")],
    to: Annotated[str, Option(help="Name: becomes checkpoints/imported/<name>.")],
    kind: Annotated[str, Option(help="auto, transformers, chaya, rscalm, mini or h64lm.")] = "auto",
    tokenizer: Annotated[
        str | None, Option(help="A folder, a file, or owner/name[@revision] on the hub.")
    ] = None,
    heads: Annotated[int | None, Option(help="Query heads, where the file does not tell.")] = None,
    max_seq_len: Annotated[
        int | None, Option(help="Context in tokens, where the file does not tell.")
    ] = None,
) -> None:
    """Import weights as a checkpoint that a phase may start from."""
    from tasks.exchange.importer import import_model

    done = import_model(
        source,
        to,
        project_root(),
        kind=kind,
        tokenizer=tokenizer,
        heads=heads,
        max_seq_len=max_seq_len,
    )
    print(f"{done.kind}, {done.parameters:,} parameters, is at {done.folder}")
    for note in done.notes:
        typer.secho(f"warning: {note}", err=True, fg="yellow")
    print(f"start a phase from it: starts_from: imported/{to}")
    if done.tokenizer:
        print(f"try it: phasewise generate --model {done.folder} --prompt 'The'")


def gguf(
    model: Annotated[str, typer.Argument(help="An exported folder, or models:/<name>@<alias>.")],
    type_: Annotated[str, Option("--type", help="f16, q8_0 or f32.")] = "f16",
    out: Annotated[Path | None, Option(help="The file; default: <model>-<type>.gguf here.")] = None,
    tokenizer: Annotated[
        str, Option(help="auto: with the model's own; none: the file takes and gives ids.")
    ] = "auto",
) -> None:
    """Write a model as a GGUF file, which llama.cpp opens."""
    from tasks.registry.pull import SCHEME, resolve
    from tasks.release.gguf import KINDS, write_gguf

    kind = next((kind for kind in KINDS if kind == type_), None)
    if kind is None:
        raise unknown_name("type", type_, KINDS, where="--type")
    if tokenizer not in ("auto", "none"):
        raise unknown_name("tokenizer", tokenizer, ("auto", "none"), where="--tokenizer")
    folder = resolve(model)
    stem = re.sub(r"\W+", "-", model.removeprefix(SCHEME)) if model.startswith(SCHEME) else (
        folder.resolve().name
    )  # fmt: skip
    done = write_gguf(
        folder, out or Path(f"{stem}-{kind}.gguf"), kind, with_tokenizer=tokenizer == "auto"
    )
    print(
        f"{done.path}: {done.architecture}, {done.tensors} tensors, "
        f"{done.path.stat().st_size / 1e6:.1f} MB; read back, values within {done.difference:.1e}"
    )
    if done.wide:
        print(f"note: {done.wide} matrices are f16: their rows are not whole blocks of 32 values")
