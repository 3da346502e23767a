"""Stage ``split``: the documents that stay, in train, validation and test, decontaminated.

    data/clean/*/ + data/dedup/ --drop duplicates--> official splits hold; where a source has no
    validation or test split, one is made by hash --decontaminate train--> data/documents/<source>/

A document goes to a made split by the hash of the seed and its cluster (the id of the one document
of it that stays): two runs, two machines and a corpus that has grown all agree, and no near
duplicate lies on the other side. The split stands before the tokenizer is trained, so that no later
stage learns anything from held-out text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tasks import stage
from tasks.data.clean import summary
from tasks.data.decisions import Column, Place, read_decisions
from tasks.data.decontaminate import Decontaminator, held_out_runs, shared_runs
from tasks.data.documents import Document, Writer, read
from tasks.errors import BAD_DATA, UserError
from tasks.files import atomic_folder
from tasks.ledger import Ledger, write_ledgers
from tasks.progress import progress
from tasks.recipe import SPLITS, HeldOut, Recipe, Split
from tasks.workspace import Workspace

ENOUGH = 10  # documents; a source with fewer keeps them all for training
Plan = dict[Place, list[Split | None]]  # by position; None: the document goes


@dataclass(frozen=True)
class Assigned:
    """The cleaned documents that stay, each with the split it goes to."""

    workspace: Workspace
    decisions: dict[Place, Column]
    plan: Plan

    def of(self, source: str) -> Iterator[Document]:
        """One source's documents. Raises UserError where dedup saw others than these."""
        for split in SPLITS:
            column = self.decisions.get((source, split), Column([], []))
            count = 0
            for position, document in enumerate(read(self.workspace.clean(source), split)):
                if position >= len(column.ids) or document.id != column.ids[position]:
                    raise self._stale(source)
                count += 1
                goes_to = self.plan[source, split][position]
                if goes_to == split:
                    yield document
                elif goes_to:
                    yield replace(document, split=goes_to)
            if count != len(column.ids):
                raise self._stale(source)

    def _stale(self, source: str) -> UserError:
        return UserError(
            f"{self.workspace.clean(source)} is not what {self.workspace.dedup} was made from",
            hint="run: python -m tasks.data.dedup",
            exit_code=BAD_DATA,
        )


def split(workspace: Workspace, recipe: Recipe) -> None:
    """Write the documents that stay as train, validation and test splits of each source.

    Applies the decisions of dedup, makes held-out splits where a source has no official ones, and
    removes from training text what it shares with any held-out text of any source.
    """
    decisions = read_decisions(workspace.dedup)
    plan = assign(decisions, recipe.held_out, recipe.seed)
    assigned = Assigned(workspace, decisions, plan)
    with atomic_folder(workspace.documents) as folder:
        decontaminate = _decontaminator(assigned, recipe, folder)
        ledgers = [
            _write(folder / source, source, assigned, decontaminate) for source in recipe.sources
        ]
        for ledger in ledgers:
            _check_some_left(ledger, trains=recipe.sources[ledger.source].trains)
    for ledger in ledgers:
        shares = ", ".join(f"{n:,} {name}" for name, n in ledger.notes["splits"].items())
        print(
            f"    {ledger.source}: {summary(ledger)}; {ledger.notes['documents_cut']:,} lost "
            f"sentences ({shares})"
        )


def assign(decisions: dict[Place, Column], shares: HeldOut, seed: int) -> Plan:
    """Which split each document goes to.

    Official splits hold. Of a source's training documents, ``shares.test`` and
    ``shares.validation`` go to those splits that the source has no official one of: at least one
    document, where the share is not 0 and the source has ``ENOUGH`` documents.
    """
    plan: Plan = {
        (source, official): [official if keep else None for keep in column.keep]
        for (source, official), column in decisions.items()
    }
    for (source, official), column in decisions.items():
        if official != "train" or sum(column.keep) < ENOUGH:
            continue
        kept = [position for position, keep in enumerate(column.keep) if keep]
        draws = {position: draw(seed, column.ids[position]) for position in kept}
        left = sorted(kept, key=lambda position: (draws[position], position))
        low = 0.0
        for name, share in (("test", shares.test), ("validation", shares.validation)):
            made: Split = name  # type: ignore[assignment]
            if share == 0 or (source, made) in decisions:
                continue
            taken = [position for position in left if draws[position] < low + share] or left[:1]
            for position in taken:
                plan[source, official][position] = made
            left = left[len(taken) :]
            low += share
    return plan


def draw(seed: int, cluster: str) -> float:
    """A number in [0, 1) for a cluster, from its name and the seed alone."""
    digest = hashlib.sha256(f"{seed}:{cluster}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def _decontaminator(assigned: Assigned, recipe: Recipe, scratch: Path) -> Decontaminator:
    """Read the held-out documents, then the training documents, and note what they share."""
    n = recipe.held_out.ngram
    if not recipe.held_out.decontaminate:
        return Decontaminator(held_out_runs([], n), {}, n)

    def documents(held_out: bool) -> Iterator[Document]:
        title = "held-out runs" if held_out else "decontaminating"
        with progress(None, "documents", title) as shown:
            for source in recipe.sources:
                for document in assigned.of(source):
                    if (document.split != "train") == held_out:
                        yield document
                        shown.advance()

    runs = held_out_runs(documents(held_out=True), n)
    shared = shared_runs(documents(held_out=False), runs, n, scratch)
    return Decontaminator(runs, shared, n)


def _write(folder: Path, source: str, assigned: Assigned, decontaminate: Decontaminator) -> Ledger:
    """Write one source's documents and its ledger."""
    ledger = Ledger("split", source, notes={"documents_cut": 0, "shared_runs": []})
    counts: dict[Split, int] = dict.fromkeys(SPLITS, 0)
    with Writer(folder) as writer, progress(None, "documents", f"writing {source}") as shown:
        for document in assigned.of(source):
            if document.split == "train":
                kept = decontaminate(document, ledger)
            else:
                ledger.keep(document.bytes)
                kept = document
            if kept:
                writer.add(kept)
                counts[kept.split] += 1
            shown.advance()
    ledger.notes["splits"] = counts
    write_ledgers(folder / "ledger.json", [ledger])
    return ledger


def _check_some_left(ledger: Ledger, trains: bool) -> None:
    splits = ledger.notes["splits"]
    if not (splits["train"] if trains else sum(splits.values())):
        raise UserError(
            f"no {'training ' if trains else ''}document is left: {summary(ledger)}",
            where=f"sources.{ledger.source}",
            hint="data/*/ledger.json tell what each stage dropped, and why",
            exit_code=BAD_DATA,
        )


if __name__ == "__main__":
    stage.main(split)
