"""Stage ``mix``: what one phase draws from which shards, checked before anything is trained.

A sample is ``seq_len + 1`` tokens: the inputs, and the same shifted by one as targets. Windows of
a source overlap by that one token, so each token of an epoch is a target once. The phase's shares
are by tokens; as all its samples are of one length, they are by samples as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from fractions import Fraction
from typing import Any

from tasks import stage
from tasks.errors import BAD_DATA, UserError
from tasks.files import fingerprint, write_json
from tasks.recipe import Phase, Recipe
from tasks.tokens.mixture import VERSION, HeldOutSet, Mix, MixSource, load_mix
from tasks.tokens.order import Interleaving, exact_shares
from tasks.tokens.shards import TokenSplit, open_split, splits
from tasks.units import show_count
from tasks.workspace import Workspace

__all__ = ["HeldOutSet", "Mix", "MixSource", "load_mix", "mix", "plan_mix"]

EPOCHS_TO_WARN = 4  # Muennighoff et al. 2023: up to 4 passes are nearly as good as new text


def mix(workspace: Workspace, recipe: Recipe, phase: str) -> None:
    """Check the mixture of ``phase`` against the shards and write data/mix/<phase>.json.

    Raises UserError where a source has no shards, too few tokens for one window, or would be
    passed over more often than ``max_epochs``.
    """
    made = plan_mix(workspace, recipe, phase)
    _show(made)
    for source in made.sources:
        if source.epochs > EPOCHS_TO_WARN:
            print(
                f"    warning: {source.name} is passed over {source.epochs:.1f} times; beyond "
                f"{EPOCHS_TO_WARN} passes, new text is worth more than old"
            )
    write_json(workspace.mix(phase), asdict(made))


def plan_mix(workspace: Workspace, recipe: Recipe, phase: str) -> Mix:
    """The mix of a phase, checked, not written. Raises UserError as ``mix`` does."""
    settings, key = recipe.phases[phase], f"params.yaml: phases.{phase}"
    shares = exact_shares(settings.mixture, f"{key}.mixture")
    shards = _open(workspace, list(shares), settings.seq_len, key)
    first = next(iter(shards.values()))
    interleaving = Interleaving(list(shares.values()))
    sources = []
    for (name, split), samples in zip(shards.items(), interleaving.drawn(settings.samples)):
        windows = (split.tokens - 1) // settings.seq_len
        source = MixSource(
            name=name,
            weight=str(shares[name]),
            tokens=samples * settings.seq_len,
            samples=samples,
            available=split.tokens,
            windows=windows,
            epochs=samples / windows,
            fingerprint=split.sha256,
        )
        _check_epochs(settings, source, key)
        sources.append(source)
    decisive: dict[str, Any] = {
        "version": VERSION,
        "phase": phase,
        "seed": recipe.seed,
        "seq_len": settings.seq_len,
        "samples": settings.samples,
        "period": interleaving.period,
        "tokenizer": first.tokenizer,
        "vocab_size": first.vocab_size,
        "eos_id": first.eos_id,
    }
    return Mix(
        **decisive,
        sources=tuple(sources),
        held_out=tuple(_held_out(workspace, recipe, first)),
        ledger=_ledger(workspace, recipe, settings, sources),
        fingerprint=fingerprint(decisive | {"sources": [asdict(source) for source in sources]}),
    )


def _open(workspace: Workspace, names: list[str], seq_len: int, key: str) -> dict[str, TokenSplit]:
    """The training splits of the sources, of one tokenizer and long enough each."""
    shards = {name: open_split(workspace.tokens(name), "train", verify=False) for name in names}
    for name, split in shards.items():
        if split.tokenizer != shards[names[0]].tokenizer:
            raise UserError(
                f"{names[0]} and {name} were encoded with different tokenizers",
                where=str(split.folder),
                hint="encode them again: dvc repro",
                exit_code=BAD_DATA,
            )
        if split.tokens <= seq_len:
            raise UserError(
                f"{name} has {split.tokens:,} training tokens, too few for one window of "
                f"{seq_len:,}; the largest legal seq_len is {split.tokens - 1:,}",
                where=f"{key}.seq_len",
                hint=f"lower seq_len, or leave {name} out of the mixture",
                exit_code=BAD_DATA,
            )
    return shards


def _check_epochs(settings: Phase, source: MixSource, key: str) -> None:
    if source.epochs <= settings.max_epochs:
        return
    share = float(Fraction(source.weight))
    there = source.windows * settings.seq_len
    steps = int(there * settings.max_epochs / share) // settings.batch_tokens
    lower = f"lower tokens to {steps * settings.batch_tokens:,}, " if steps else ""
    raise UserError(
        f"{source.name} would be passed over {source.epochs:.1f} times (max_epochs is "
        f"{settings.max_epochs:g}): {100 * share:.4g} % of {show_count(settings.tokens)} tokens "
        f"are its share, and it has {show_count(there)}",
        where=key,
        hint=f"{lower}give {source.name} a smaller weight or more text, or raise max_epochs",
    )


def _held_out(workspace: Workspace, recipe: Recipe, like: TokenSplit) -> list[HeldOutSet]:
    found = []
    for source in recipe.sources:
        folder = workspace.tokens(source)
        for split in splits(folder):
            if split != "train":
                opened = open_split(folder, split, verify=False, tokenizer=like.tokenizer)
                counts = opened.tokens, opened.documents, opened.text_bytes
                found.append(HeldOutSet(source, split, *counts, opened.sha256))
    return found


def _ledger(
    workspace: Workspace, recipe: Recipe, settings: Phase, sources: list[MixSource]
) -> dict[str, Any]:
    """Where the training tokens of every source go in this phase."""
    length = settings.seq_len
    drawn = {source.name: source.tokens for source in sources}
    assert sum(drawn.values()) == settings.samples * length
    idle = {}
    for name in recipe.sources:
        if name not in drawn and "train" in splits(workspace.tokens(name)):
            idle[name] = open_split(workspace.tokens(name), "train", verify=False).tokens
    return {
        "tokens_asked": settings.tokens,
        "tokens": settings.samples * length,
        "drawn": drawn,
        "never_drawn": {s.name: max(0, s.windows - s.samples) * length for s in sources},
        "outside_windows": {s.name: s.available - s.windows * length for s in sources},
        "sources_not_drawn": idle,
    }


def _show(made: Mix) -> None:
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
    sets = [f"{s.source}/{s.split} {show_count(s.tokens)}" for s in made.held_out]
    print(f"    held out: {', '.join(sets) or 'nothing, so nothing will measure this phase'}")


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


if __name__ == "__main__":
    stage.main(mix, "phase")
