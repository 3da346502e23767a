"""`phasewise compare`: two models on the same text, and whether the difference is noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tasks.cli.flags import Json
from tasks.errors import NO_INPUT, UserError

if TYPE_CHECKING:
    from tasks.evaluation.bootstrap import Difference
    from tasks.evaluation.compare import Comparison
    from tasks.recipe import Recipe
    from tasks.workspace import Workspace

_MODEL = "A phase of the recipe, an exported folder, models:/<name>@<alias> or models:/<name>/3."


def compare(
    first: Annotated[str, typer.Argument(help=_MODEL, metavar="A")],
    second: Annotated[str, typer.Argument(help="The same.", metavar="B")],
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="<source>/<split> of the project; may be given again. Default: all held-out sets.",
            metavar="NAME",
        ),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            help="A file of one's own instead: plain text by paragraphs, jsonl, csv or parquet "
            "with a column text; may be given again.",
            metavar="FILE",
        ),
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format", help="Of --text: auto, paragraphs, lines, txt, jsonl, csv, parquet."
        ),
    ] = "auto",
    context: Annotated[
        int | None,
        typer.Option(
            help="Tokens seen at once. Default: the shorter of the two models' contexts.",
            min=1,
            metavar="<int>",
        ),
    ] = None,
    level: Annotated[
        float, typer.Option(help="A difference with p below it is no noise.", metavar="<float>")
    ] = 0.05,
    as_json: Json = False,
) -> None:
    """Compare two models on the same documents, by bits per byte, with a paired bootstrap."""
    from tasks.evaluation import compare as work
    from tasks.evaluation.contestants import open_contestant

    _check(sets, text, form, level)
    root, recipe = _project()
    one, other = (open_contestant(name, root, recipe) for name in (first, second))
    if text:
        texts = work.texts_of_files(text, form)
    elif recipe is None:
        raise UserError(
            "there is no project around here, so there is no held-out text",
            hint="give some: --text FILE; it should be text that neither model was trained on",
            exit_code=NO_INPUT,
        )
    else:
        texts = work.held_out_texts(root, recipe, sets)
    found = work.compare(one, other, texts, root, recipe, level=level, context=context)
    if as_json:
        print(json.dumps(found.record(), indent=2, ensure_ascii=False))
    else:
        _show(found)


def _check(sets: list[str] | None, text: list[Path] | None, form: str, level: float) -> None:
    from typing import get_args

    from tasks.errors import unknown_name
    from tasks.recipe import Files

    known = get_args(Files.model_fields["format"].annotation)
    if form not in known:
        raise unknown_name("format", form, known, where="--format")
    if sets and text:
        raise UserError("--set and --text exclude each other: give one of them")
    if not 0 < level < 1:
        raise UserError(f"must lie between 0 and 1, got {level}", where="--level")


def _project() -> tuple[Workspace, Recipe | None]:
    """The workspace around the current folder and its recipe; None where there is no project."""
    from tasks.cli.project import load_recipe, project_root
    from tasks.workspace import Workspace

    try:
        root = project_root()
    except UserError:
        return Workspace(Path.cwd()), None
    return Workspace(root), load_recipe(root / "params.yaml")


def _show(found: Comparison) -> None:
    """Bits per byte of each set with their difference, the other figures, and the verdict."""
    from tasks.evaluation.documents import described

    print(f"A: {found.first.name}\nB: {found.second.name}\n")
    rows = [
        [one.name, *(f"{row['bits_per_byte']:.4f}" for row in (one.first, one.second)),
         *_gap(one.difference)]
        for one in found.sets
    ]  # fmt: skip
    if len(found.sets) > 1:
        rows.append(["mean of the sets", "", "", *_gap(found.overall)])
    _print(["bits per byte", "A", "B", "A - B", f"{1 - found.level:.0%} interval", "p"], rows)
    heads = {"word_perplexity": "ppl/word"}
    if found.same_tokenizer:
        heads |= {"perplexity": "ppl/token", "accuracy": "accuracy"}
    print()
    _print(
        ["", *(f"{head} {which}" for head in heads.values() for which in "AB")],
        [
            [one.name, *(_shown(name, row) for name in heads for row in (one.first, one.second))]
            for one in found.sets
        ],
    )
    print(f"\n{described(found.protocol)}; fp32")
    for one in found.sets:
        print(f"{one.name}: {one.documents:,} documents, {one.words:,} words, "
              f"{one.text_bytes:,} bytes, SHA-256 {one.fingerprint[:12]}")  # fmt: skip
    for note in found.notes:
        print(f"note: {note}")
    if not found.same_tokenizer:
        print("note: their tokenizers differ, so figures a token (perplexity, accuracy) do not "
              "compare and are left out")  # fmt: skip
    print(found.verdict())


def _gap(gap: Difference) -> list[str]:
    return [f"{gap.difference:+.4f}", f"{gap.low:+.4f} to {gap.high:+.4f}", f"{gap.p:.3f}"]


def _shown(name: str, figures: dict[str, float]) -> str:
    from tasks.units import show_count

    if name not in figures:
        return "-"
    return f"{figures[name]:.2%}" if name == "accuracy" else show_count(figures[name])


def _print(heads: list[str], rows: list[list[str]]) -> None:
    """A table in plain columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    for row in [heads, *rows]:
        first, *others = (
            f"{cell:{'<' if i == 0 else '>'}{widths[i]}}" for i, cell in enumerate(row)
        )
        print("  ".join([first, *others]).rstrip())
