"""The text a tokenizer is trained on: a seeded, capped sample of training documents.

Held-out text is never part of it. Which documents are taken depends on the seed, the source and
their number alone, so the sample is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.data import documents
from tasks.errors import BAD_DATA, UserError
from tasks.recipe import Recipe
from tasks.tokens.order import permute, round_keys
from tasks.workspace import Workspace


@dataclass(frozen=True)
class Choice:
    """What is taken of one source.

    Attributes:
        source: its name.
        take: bytes to take of each training document, in order; 0 leaves it out.
        available: bytes of all its training text.
    """

    source: str
    take: npt.NDArray[np.int64]
    available: int

    @property
    def bytes(self) -> int:
        return int(self.take.sum())

    @property
    def documents(self) -> int:
        return int((self.take > 0).sum())


@dataclass(frozen=True)
class Sample:
    """The chosen documents; their text is read again on every walk, never held as a whole."""

    workspace: Workspace
    choices: list[Choice]

    def texts(self) -> Iterator[str]:
        """The text of the sample, source after source, in the order of the documents."""
        for choice in self.choices:
            folder = self.workspace.documents / choice.source
            for document, take in zip(documents.read(folder, "train"), choice.take.tolist()):
                if take >= document.bytes:
                    yield document.text
                elif take:
                    yield document.text.encode()[:take].decode(errors="ignore")

    @property
    def bytes(self) -> int:
        return sum(choice.bytes for choice in self.choices)


def draw(workspace: Workspace, recipe: Recipe) -> Sample:
    """Choose the sample: ``tokenizer.sample_bytes`` in all, shared by ``tokenizer.mixture`` (a
    source with less than its share gives what it has) or in proportion to the sources' sizes.

    Raises UserError (exit code 65) where there is no text to train on.
    """
    wanted = recipe.tokenizer.mixture
    names = [name for name in recipe.sources if wanted is None or wanted.get(name)]
    sizes = {name: _document_bytes(workspace, name) for name in names}
    totals = {name: int(size.sum()) for name, size in sizes.items()}
    empty = [name for name, total in totals.items() if not total]
    if not sum(totals.values()) or (wanted and empty):
        raise UserError(
            f"no training text in {', '.join(empty)}",
            where="data/documents",
            hint="see in data/documents/<source>/ledger.json where the documents went",
            exit_code=BAD_DATA,
        )
    budgets = _budgets(totals, wanted, recipe.tokenizer.sample_bytes)
    return Sample(
        workspace,
        [
            Choice(name, _take(sizes[name], budgets[name], recipe.seed, name), totals[name])
            for name in names
            if totals[name]
        ],
    )


def _document_bytes(workspace: Workspace, source: str) -> npt.NDArray[np.int64]:
    read = documents.read(workspace.documents / source, "train")
    return np.fromiter((document.bytes for document in read), np.int64)


def _budgets(totals: dict[str, int], wanted: dict[str, float] | None, cap: int) -> dict[str, int]:
    """Bytes to take of each source, at most what it has."""
    if wanted is None:
        whole = sum(totals.values())
        return {name: min(total, cap * total // whole) for name, total in totals.items()}
    weight = sum(wanted.values())
    return {name: min(total, int(cap * wanted[name] / weight)) for name, total in totals.items()}


def _take(
    sizes: npt.NDArray[np.int64], budget: int, seed: int, source: str
) -> npt.NDArray[np.int64]:
    """Bytes of each document: whole ones in a random order until the budget is spent, the last
    one cut."""
    keys = round_keys(seed, "tokenizer sample", source)
    order = permute(np.arange(len(sizes)), len(sizes), keys)
    spent_before = np.cumsum(sizes[order]) - sizes[order]
    take = np.zeros_like(sizes)
    take[order] = np.clip(budget - spent_before, 0, sizes[order])
    return take
