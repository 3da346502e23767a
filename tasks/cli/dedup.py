"""`phasewise data dedup`: near-duplicate removal for anybody's files, without a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tasks.data.files_dedup import Account

Option = typer.Option


def dedup(
    files: Annotated[
        list[str], typer.Argument(help="jsonl, parquet or txt files, or globs; all of one form.")
    ],
    out: Annotated[Path, Option(help="A new folder for the kept rows and removed.jsonl.")],
    threshold: Annotated[float, Option(help="Jaccard similarity of near duplicates.")] = 0.8,
    text_key: Annotated[str, Option(help="Column of the text.")] = "text",
    ngram: Annotated[int, Option(help="Words a shingle.")] = 5,
    lines: Annotated[bool, Option("--lines", help="A line of a txt is a document.")] = False,
    exact_only: Annotated[bool, Option("--exact-only", help="Leave near duplicates be.")] = False,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace the folder --out.")] = False,
) -> None:
    """Remove exact and near duplicates from files; of each the first stays."""
    from pydantic import ValidationError

    from tasks.data.files_dedup import REMOVED, dedup_files
    from tasks.errors import UserError
    from tasks.recipe import Dedup

    try:
        settings = Dedup(threshold=threshold, ngram=ngram, near=not exact_only)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{first['msg']}, got {first['input']}", where=f"--{first['loc'][0]}"
        ) from None
    accounts = dedup_files(
        files, out, settings, text_key=text_key, by_line=lines, overwrite=overwrite
    )
    _show(accounts)
    print(f"wrote {out}; what went, and because of what, is in {out / REMOVED}")


def _show(accounts: list[Account]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("file", "rows", "exact", "near", "kept", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    figures = [(a.path.name, a.rows, a.exact, a.near, a.kept) for a in accounts]
    if len(figures) > 1:
        columns = list(zip(*figures, strict=True))[1:]
        figures.append(("all", *map(sum, columns)))  # type: ignore[arg-type]
    for name, *counts in figures:
        table.add_row(name, *(f"{count:,}" for count in counts))
    Console().print(table)
