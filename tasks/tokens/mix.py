"""Stage ``mix``: what one phase draws from which shards, checked before anything is trained.

A sample is ``seq_len + 1`` tokens: the inputs, and the same shifted by one as targets. Windows of
a source overlap by that one token, so each token of an epoch is a target once. The phase's shares
are by tokens; as all its samples are of one length, they are by samples as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np

from tasks import stage
from tasks.errors import BAD_DATA, UserError
from tasks.files import atomic_folder, fingerprint, write_json
from tasks.recipe import Phase, Recipe
from tasks.tokens.best_fit import best_fit
from tasks.tokens.curriculum import Curriculum
from tasks.tokens.mix_ledger import mix_ledger, show_mix
from tasks.tokens.mixture import VERSION, Course, HeldOutSet, Mix, MixSource, decisive
from tasks.tokens.order import Interleaving
from tasks.tokens.packing import Packing
from tasks.tokens.shards import TokenSplit, open_split, splits
from tasks.tokens.shares import Shares, phase_shares
from tasks.units import show_count
from tasks.workspace import Workspace


def mix(workspace: Workspace, recipe: Recipe, phase: str) -> None:
    """Check the mixture of ``phase`` against the shards and write data/mix/<phase>/.

    Raises UserError where a source has no shards, too few tokens for one window, or would be
    passed over more often than ``max_epochs``.
    """
    shelf = Shelf(workspace, recipe, phase)
    made = plan_mix(workspace, recipe, phase, shelf)
    show_mix(made)
    with atomic_folder(workspace.mix(phase).parent) as folder:
        write_json(folder / "mix.json", made.to_json())
        for source in made.sources:
            if source.packing is not None:
                shelf.packing(source.name, recipe.phases[phase].seq_len).save(folder, source.name)


@dataclass
class Shelf:
    """The training splits that a phase may draw from, opened once, and how they are packed."""

    workspace: Workspace
    recipe: Recipe
    phase: str
    _splits: dict[str, TokenSplit] = field(default_factory=dict)
    _packings: dict[tuple[str, int], Packing] = field(default_factory=dict)

    def open(self, source: str) -> TokenSplit:
        """The training split of a source; all that are opened must be of one tokenizer."""
        if source not in self._splits:
            split = open_split(self.workspace.tokens(source), "train", verify=False)
            for name, other in self._splits.items():
                if split.tokenizer != other.tokenizer:
                    raise UserError(
                        f"{name} and {source} were encoded with different tokenizers",
                        where=str(split.folder),
                        hint="encode them again: dvc repro",
                        exit_code=BAD_DATA,
                    )
            self._splits[source] = split
        return self._splits[source]

    def tokens(self, source: str) -> int:
        """Tokens of its training split."""
        return self.open(source).tokens

    def windows(self, source: str, settings: Phase) -> int:
        """Samples of one epoch. Raises UserError where the source has not one."""
        split = self.open(source)
        if settings.packing == "best_fit":
            return self.packing(source, settings.seq_len).windows
        if split.tokens <= settings.seq_len:
            raise UserError(
                f"{source} has {split.tokens:,} training tokens, too few for one window of "
                f"{settings.seq_len:,}; the largest legal seq_len is {split.tokens - 1:,}",
                where=f"params.yaml: phases.{self.phase}.seq_len",
                hint=f"lower seq_len, or leave {source} out of the mixture",
                exit_code=BAD_DATA,
            )
        return (split.tokens - 1) // settings.seq_len

    def packing(self, source: str, seq_len: int) -> Packing:
        """Its documents packed, best fit first."""
        key = source, seq_len
        if key not in self._packings:
            self._packings[key] = best_fit(np.asarray(self.open(source).ends), seq_len)
        return self._packings[key]


def plan_mix(workspace: Workspace, recipe: Recipe, phase: str, shelf: Shelf | None = None) -> Mix:
    """The mix of a phase, checked, not written. Raises UserError as ``mix`` does."""
    shelf = shelf or Shelf(workspace, recipe, phase)
    settings, key = recipe.phases[phase], f"params.yaml: phases.{phase}"
    shares = phase_shares(recipe, phase, shelf)
    turns = _turns(shares)
    sources = []
    for name, samples in zip(shares.rows[0], turns.drawn(settings.samples)):
        source = _source(shelf, settings, name, str(shares.mean[name]), samples)
        _check_epochs(settings, source, key)
        sources.append(source)
    first = shelf.open(sources[0].name)
    made = Mix(
        version=VERSION,
        phase=phase,
        seed=recipe.seed,
        seq_len=settings.seq_len,
        samples=settings.samples,
        period=turns.period,
        tokenizer=first.tokenizer,
        vocab_size=first.vocab_size,
        eos_id=first.eos_id,
        sources=tuple(sources),
        held_out=tuple(_held_out(workspace, recipe, first)),
        ledger={},
        fingerprint="",
        course=_course(shares, turns),
    )
    return replace(
        made,
        ledger=mix_ledger(workspace, recipe, made, shelf, shares),
        fingerprint=fingerprint(decisive(made.to_json())),
    )


def _turns(shares: Shares) -> Interleaving | Curriculum:
    rows = [list(row.values()) for row in shares.rows]
    if shares.constant:
        return Interleaving(rows[0])
    return Curriculum(shares.starts, rows, shares.linear, shares.samples)


def _course(shares: Shares, turns: Interleaving | Curriculum) -> Course | None:
    if isinstance(turns, Interleaving):
        return None
    rows = [[str(share) for share in row.values()] for row in shares.rows]
    return Course(shares.linear, shares.starts, rows, turns.before)


def _source(shelf: Shelf, settings: Phase, name: str, weight: str, samples: int) -> MixSource:
    split, windows = shelf.open(name), shelf.windows(name, settings)
    packed = settings.packing == "best_fit"
    return MixSource(
        name=name,
        weight=weight,
        tokens=samples * settings.seq_len,
        samples=samples,
        available=split.tokens,
        windows=windows,
        epochs=samples / windows,
        fingerprint=split.sha256,
        packing=shelf.packing(name, settings.seq_len).sha256 if packed else None,
    )


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
        hint=f"{lower}give {source.name} a smaller weight or more text, raise max_epochs, or let "
        "the other sources fill in (on_exhausted: reweight)",
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


if __name__ == "__main__":
    stage.main(mix, "phase")
