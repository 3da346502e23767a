"""The whole account: every document and byte from the download to the trained token, in one view.

raw -> clean -> dedup -> split -> encode   each a ledger that balances: in = out + dropped
 |________|_______|_______|________|       and takes in what the one before let out
                                           -> tokens encoded -> tokens drawn by each phase
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import BAD_DATA, UserError
from tasks.files import read_json
from tasks.ledger import Count, Ledger, read_ledgers
from tasks.recipe import Recipe
from tasks.units import show_bytes, show_count
from tasks.workspace import Workspace

COUNTS = ("tokens", "documents", "text_bytes")  # of a split, in a manifest


@dataclass(frozen=True)
class Draw:
    """What one phase reads of one source.

    Attributes:
        tokens: padding included.
        epochs: passes over it.
        padding: positions that hold no target.
        cut: share of its documents that an epoch cuts; None where the mix does not say.
    """

    tokens: int
    epochs: float
    padding: int = 0
    cut: float | None = None


@dataclass(frozen=True)
class SourceAccount:
    """One source: its ledgers in the order of the stages, and what each split holds."""

    source: str
    ledgers: list[Ledger]
    splits: dict[str, dict[str, int]]
    """Split -> tokens, documents, text_bytes."""
    drawn: dict[str, Draw]

    @property
    def tokens(self) -> dict[str, int]:
        return {split: facts["tokens"] for split, facts in self.splits.items()}

    @property
    def breaks(self) -> list[str]:
        """Stages that do not take in just what the stage before let out; empty: it balances."""
        pairs = zip(self.ledgers, self.ledgers[1:], strict=False)
        return [after.stage for before, after in pairs if after.taken != before.kept]

    @property
    def dropped(self) -> Count:
        """All that was dropped on the way."""
        return sum((c for book in self.ledgers for c in book.dropped.values()), Count())


@dataclass(frozen=True)
class Account:
    """All sources."""

    sources: list[SourceAccount]

    @property
    def balanced(self) -> bool:
        return not any(source.breaks for source in self.sources)

    @property
    def downloaded(self) -> Count:
        return sum((source.ledgers[0].taken for source in self.sources), Count())

    @property
    def kept(self) -> Count:
        return sum((source.ledgers[-1].kept for source in self.sources), Count())

    @property
    def dropped(self) -> Count:
        return sum((source.dropped for source in self.sources), Count())

    def tokens(self, split: str) -> int:
        return sum(source.tokens.get(split, 0) for source in self.sources)

    def drawn(self, phase: str) -> int:
        return sum(s.drawn[phase].tokens for s in self.sources if phase in s.drawn)


def read_account(workspace: Workspace, recipe: Recipe) -> Account:
    """Read the ledgers of all sources, the manifests of their tokens and the mixes.

    Raises UserError where a file is missing or broken, or a ledger does not balance.
    """
    mixes = {phase: read_json(workspace.mix(phase)) for phase in recipe.phases_in_order()}
    sources = []
    for name in recipe.sources:
        paths = _paths(workspace, name)
        books = [b for path in paths for b in _ledgers(path) if b.source == name]
        splits = read_json(workspace.tokens(name) / "manifest.json")["splits"]
        counts = {
            split: {key: int(facts[key]) for key in COUNTS} for split, facts in splits.items()
        }
        sources.append(SourceAccount(name, books, counts, dict(_draws(mixes, name))))
    return Account(sources)


def _ledgers(path: Path) -> list[Ledger]:
    try:
        return read_ledgers(path)
    except AssertionError as error:
        raise UserError(
            f"a ledger does not balance: {error}", where=str(path), exit_code=BAD_DATA
        ) from None


def _paths(workspace: Workspace, source: str) -> list[Path]:
    """The ledgers of a source in the order of the stages."""
    folders = [
        workspace.raw(source),
        workspace.clean(source),
        workspace.dedup,
        workspace.documents / source,
        workspace.tokens(source),
    ]
    return [folder / "ledger.json" for folder in folders]


def _draws(mixes: dict[str, Any], source: str) -> Iterator[tuple[str, Draw]]:
    for phase, mix in mixes.items():
        for part in mix["sources"]:
            if part["name"] == source:
                facts = mix.get("ledger", {}).get("packing", {}).get("sources", {}).get(source)
                yield phase, Draw(int(part["tokens"]), float(part["epochs"]), *_packing(facts))


def _packing(facts: dict[str, int] | None) -> tuple[int, float | None]:
    if facts is None:
        return 0, None
    return facts["padding"], facts["cut_documents"] / max(1, facts["documents"])


def as_facts(account: Account) -> dict[str, Any]:
    """The account as plain JSON values: `ledger` of reports/report.json."""
    return {
        "balanced": account.balanced,
        "downloaded": vars(account.downloaded),
        "dropped": vars(account.dropped),
        "kept": vars(account.kept),
        "train_tokens": account.tokens("train"),
        "sources": {source.source: _source_facts(source) for source in account.sources},
    }


def _source_facts(source: SourceAccount) -> dict[str, Any]:
    stages = [
        {key: value for key, value in book.to_dict().items() if key not in ("source", "notes")}
        for book in source.ledgers
    ]
    drawn = {phase: vars(draw) for phase, draw in source.drawn.items()}
    return {"stages": stages, "breaks": source.breaks, "splits": source.splits, "drawn": drawn}


def ledger_summary(workspace: Workspace, recipe: Recipe) -> str:
    """The account in a few lines for the terminal: each source, then the sum and the balance."""
    account = read_account(workspace, recipe)
    width = max(len(source.source) for source in account.sources)
    lines = ["Where the text went"]
    for source in account.sources:
        reasons: dict[str, int] = {}
        for book in source.ledgers:
            for reason, count in book.dropped.items():
                reasons[reason] = reasons.get(reason, 0) + count.documents
        gone = ", ".join(f"{words(reason)} {n:,}" for reason, n in _most(reasons)) or "nothing"
        first, last = source.ledgers[0].taken, source.ledgers[-1].kept
        lines.append(
            f"  {source.source:<{width}}  {first.documents:,} documents ({show_bytes(first.bytes)})"
            f" -> {last.documents:,} ({show_bytes(last.bytes)}); dropped: {gone}"
        )
    drawn = ", ".join(
        f"{show_count(account.drawn(phase))} in {phase}" for phase in recipe.phases_in_order()
    )
    lines.append(f"  {show_count(account.tokens('train'))} training tokens; trained on {drawn}")
    lines.append(f"  {balance({s.source: s.breaks for s in account.sources})}")
    return "\n".join(lines)


def balance(breaks: dict[str, list[str]]) -> str:
    """One sentence on whether every document is accounted for; ``breaks``: source -> stages."""
    broken = [f"{stage} of {source}" for source, stages in breaks.items() for stage in stages]
    if not broken:
        return "Every stage balances: in = out + dropped, and takes in what the one before let out."
    return f"NOT balanced: {', '.join(broken)} did not take in what the stage before let out."


def words(reason: str) -> str:
    """``near_duplicate`` -> ``near duplicate``."""
    return reason.replace("_", " ")


def _most(reasons: dict[str, int], shown: int = 4) -> list[tuple[str, int]]:
    """The most frequent reasons, the rest as one."""
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ordered[shown:])
    return ordered[:shown] + ([("other", rest)] if rest else [])
