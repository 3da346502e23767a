"""Where the tokens of every source go in a phase: what the mix keeps, and what the stage prints."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from tasks.recipe import Recipe
from tasks.tokens.mixture import Mix, MixSource
from tasks.tokens.order import permute, round_keys
from tasks.tokens.packing import Packing, concatenated_cuts
from tasks.tokens.shards import TokenSplit, open_split, splits
from tasks.tokens.shares import Shares
from tasks.units import show_count
from tasks.workspace import Workspace

EPOCHS_TO_WARN = 4  # Muennighoff et al. 2023: up to 4 passes are nearly as good as new text


class Splits(Protocol):
    def open(self, source: str) -> TokenSplit: ...

    def packing(self, source: str, seq_len: int) -> Packing: ...


def mix_ledger(
    workspace: Workspace, recipe: Recipe, made: Mix, there: Splits, shares: Shares
) -> dict[str, Any]:
    """Where the training tokens of every source go in this phase."""
    length, settings = made.seq_len, recipe.phases[made.phase]
    drawn = {source.name: source.tokens for source in made.sources}
    assert sum(drawn.values()) == made.samples * length
    idle = {}
    for name in recipe.sources:
        if name not in drawn and "train" in splits(workspace.tokens(name)):
            idle[name] = open_split(workspace.tokens(name), "train", verify=False).tokens
    cuts = {s.name: _cuts(made, s, there) for s in made.sources}
    ledger = {
        "tokens_asked": settings.tokens,
        "tokens": made.samples * length,
        "drawn": drawn,
        "never_drawn": {s.name: _never_drawn(s, length, cuts[s.name]) for s in made.sources},
        "outside_windows": {
            s.name: 0 if s.packing else s.available - s.windows * length for s in made.sources
        },
        "sources_not_drawn": idle,
        "packing": {"method": settings.packing, "sources": cuts},
    }
    if settings.replay:
        ledger["replay"] = {n: round(made.tokens * share) for n, share in settings.replay.items()}
    if shares.capped:
        ledger["capped"] = {
            name: {"asked": round(made.tokens * share), "drawn": drawn[name]}
            for name, share in shares.capped.items()
        }
    if shares.rounded:
        ledger["shares_rounded"] = True
    return ledger


def _cuts(made: Mix, source: MixSource, there: Splits) -> dict[str, int]:
    """Documents, those that an epoch cuts, and positions of the phase that hold no target."""
    split, length = there.open(source.name), made.seq_len
    if source.packing is None:
        cut, padding = concatenated_cuts(np.asarray(split.ends), length), 0
    else:
        packing = there.packing(source.name, length)
        cut = packing.cut_documents
        epochs, rest = divmod(source.samples, source.windows)
        keys = round_keys(made.seed, made.phase, source.name, epochs)
        padding = epochs * packing.padding(np.arange(source.windows))
        padding += packing.padding(permute(np.arange(rest), source.windows, keys))
    return {"documents": split.documents, "cut_documents": cut, "padding": padding}


def _never_drawn(source: MixSource, length: int, cuts: dict[str, int]) -> int:
    """Tokens that are never a target; of those in windows, where they are not packed."""
    if source.samples >= source.windows:
        return 0
    if source.packing is None:
        return (source.windows - source.samples) * length
    return source.available - (source.tokens - cuts["padding"])


def show_mix(made: Mix) -> None:
    """Print what a phase draws, with a warning for a source that is read too often."""
    rows = [("source", "weight", "tokens drawn", "of tokens", "epochs")]
    for source in made.sources:
        rows.append(
            (
                source.name,
                f"{100 * float(Fraction(source.weight)):.4g} %",
                show_count(source.tokens),
                show_count(source.available),
                f"{source.epochs:.3g}",
            )
        )
    for line in _table(rows):
        print(f"    {line}")
    print(f"    {show_count(made.tokens)} tokens in {made.samples:,} samples")
    if made.course:
        _show_course(made)
    _show_notes(made)
    sets = [f"{s.source}/{s.split} {show_count(s.tokens)}" for s in made.held_out]
    print(f"    held out: {', '.join(sets) or 'nothing, so nothing will measure this phase'}")
    for source in made.sources:
        if source.epochs > EPOCHS_TO_WARN:
            print(
                f"    warning: {source.name} is passed over {source.epochs:.1f} times; beyond "
                f"{EPOCHS_TO_WARN} passes, new text is worth more than old"
            )


def _show_course(made: Mix) -> None:
    assert made.course is not None
    rows = [("share at token", *(show_count(n * made.seq_len) for n in made.course.starts))]
    for number, source in enumerate(made.sources):
        shares = [100 * float(Fraction(row[number])) for row in made.course.shares]
        rows.append((source.name, *(f"{share:.4g} %" for share in shares)))
    for line in _table(rows):
        print(f"    {line}")
    print(f"    {'in straight lines between them' if made.course.linear else 'in steps'}")


def _show_notes(made: Mix) -> None:
    packing = made.ledger["packing"]
    facts = packing["sources"].values()
    documents, cut, padding = (
        sum(fact[name] for fact in facts) for name in ("documents", "cut_documents", "padding")
    )
    print(
        f"    packing {packing['method']}: {100 * cut / max(1, documents):.3g} % of the documents "
        f"are cut, {100 * padding / made.tokens:.3g} % of the tokens are padding"
    )
    for phase, tokens in made.ledger.get("replay", {}).items():
        print(f"    replay: {show_count(tokens)} of the tokens by the mixture of {phase}")
    for name, count in made.ledger.get("capped", {}).items():
        print(
            f"    capped: {name} gives {show_count(count['drawn'])} tokens of the "
            f"{show_count(count['asked'])} that its weight asks for; the others fill in"
        )


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows as lines: the first column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    ]
