"""`phasewise quantize`: what smaller numbers would save of a model, and what they would cost."""

from __future__ import annotations

import codecs
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tasks.cli.flags import Json
from tasks.errors import BAD_DATA, NO_INPUT, UserError

if TYPE_CHECKING:
    from tasks.release.variants import Variant

BYTES_A_TOKEN = 64  # more of a text file than this is not read for its tokens


def quantize(
    model: Annotated[
        str, typer.Argument(help="An exported folder, or models:/<name>@<alias>.", metavar="MODEL")
    ],
    text: Annotated[
        list[Path] | None,
        typer.Option(
            help="UTF-8 text to measure on; may be given again. Default: the project's "
            "validation text.",
            metavar="FILE",
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option(help="Of the text at most.", min=2, metavar="<int>")
    ] = 16_384,
    as_json: Json = False,
) -> None:
    """Compare a model in fp32, bf16, int8 and int4 on the CPU: size, quality lost, speed."""
    from tasks.registry.pull import resolve
    from tasks.release.variants import first_tokens, measure

    folder = resolve(model)
    where, texts = _given(text, tokens) if text else _validation()
    measured = first_tokens(folder, texts, tokens)
    made = measure(folder, measured)
    size = sum(len(document.encode()) for document in measured)
    if as_json:
        about = {"files": where, "documents": len(measured), "bytes": size}
        rows = [_record(row) for row in made]
        print(json.dumps({"model": model, "text": about, "variants": rows}, indent=2))
        return
    print(f"on {size:,} bytes of {', '.join(where)}")
    _show(made)


def _record(row: Variant) -> dict[str, Any]:
    if row.figures is None:
        return {"kind": row.kind, "obstacle": row.obstacle}
    return {**asdict(row.figures), "tokens_per_second": row.tokens_per_second}


def _show(made: Iterable[Variant]) -> None:
    """A row a variant; what changed is against the first."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for title in ("weights", "MB", "bits/byte", "change", "perplexity", "change", "tokens/s"):
        table.add_column(title, justify="left" if title == "weights" else "right")
    obstacles, first = [], None
    for row in made:
        if row.figures is None:
            obstacles.append(f"no {row.kind}: {row.obstacle}")
            continue
        now = row.figures
        first = first or now
        bits = now.bits_per_byte - first.bits_per_byte
        perplexity = now.perplexity / first.perplexity - 1
        table.add_row(
            row.kind,
            f"{now.weight_bytes / 1e6:,.2f}",
            f"{now.bits_per_byte:.4f}",
            "" if now is first else f"{bits:+.4f}",
            f"{now.perplexity:,.2f}",
            "" if now is first else f"{perplexity:+.2%}",
            f"{row.tokens_per_second:,.0f}",
        )
    Console().print(table)
    for line in obstacles:
        print(line)


def _given(paths: list[Path], tokens: int) -> tuple[list[str], Iterator[str]]:
    """The names of text files, and their texts."""
    return [str(path) for path in paths], (_read(path, tokens) for path in paths)


def _validation() -> tuple[list[str], Iterator[str]]:
    """The folders of the project's validation text, and its documents, each source in turn.

    Raises UserError where there is no project around, or no such text in it.
    """
    from tasks.cli.project import project_root
    from tasks.data.documents import read, shards
    from tasks.workspace import Workspace

    try:
        folders = sorted(Workspace(project_root()).documents.glob("*"))
    except UserError:
        folders = []
    folders = [folder for folder in folders if "validation" in shards(folder)]
    if not folders:
        raise UserError(
            "there is no validation text to measure on (no data/documents with it around here)",
            hint="give some: --text FILE; it should be text that the model was not trained on",
            exit_code=NO_INPUT,
        )
    rounds = itertools.zip_longest(*(read(folder, "validation") for folder in folders))
    texts = (document.text for row in rounds for document in row if document is not None)
    return [f"data/documents/{folder.name} (validation)" for folder in folders], texts


def _read(path: Path, tokens: int) -> str:
    """As much of a text file as may be measured. Raises UserError where it is not UTF-8 text."""
    try:
        with open(path, "rb") as handle:
            content = handle.read(tokens * BYTES_A_TOKEN)
            whole = not handle.read(1)
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {(error.strerror or str(error)).lower()}",
            where="--text",
            exit_code=NO_INPUT,
        ) from None
    try:
        return codecs.getincrementaldecoder("utf-8-sig")().decode(content, final=whole)
    except UnicodeDecodeError as error:
        raise UserError(
            f"not UTF-8 text: byte {content[error.start]:#04x} at {error.start:,}",
            where=str(path),
            exit_code=BAD_DATA,
        ) from None
