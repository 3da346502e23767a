"""The way of the text as nodes and what leaves them: what tasks/report/sankey.py draws.

    download ── clean ── dedup ── split ── encode ── phase1
                  └ reasons └ reasons └ held out    └ phase2

Every node takes in what the one before let out; what it drops leaves by its reason. Sizes are bytes
of text; what a phase reads is in tokens, repeats counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from tasks.report.account import words
from tasks.units import show_bytes, show_count

Kind = Literal["dropped", "held_out", "phase"]
Parts = dict[str, float]  # source -> size
MOST_REASONS = 4  # of one stage; the rest go together
HELD_OUT = ("validation", "test")


@dataclass
class Exit:
    """What leaves the way at a node, with its size by source."""

    label: str
    detail: str
    kind: Kind
    parts: Parts

    @property
    def size(self) -> float:
        return sum(self.parts.values())


@dataclass
class Node:
    """A stage: bytes in and out by source, and what leaves."""

    title: str
    detail: str
    taken: Parts
    kept: Parts
    exits: list[Exit] = field(default_factory=list)


@dataclass(frozen=True)
class Flow:
    """All nodes in order, and what the phases draw from the last of them, in tokens."""

    sources: list[str]
    nodes: list[Node]
    phases: list[Exit]


def flow_of(ledger: dict[str, Any]) -> Flow:
    """The flow of `ledger` in reports/report.json."""
    sources: dict[str, Any] = ledger["sources"]
    stages = dict.fromkeys(book["stage"] for s in sources.values() for book in s["stages"])
    nodes = [_node(stage, sources) for stage in stages]
    train = {name: s["splits"].get("train", {}).get("text_bytes", 0) for name, s in sources.items()}
    for node in nodes:
        if node.title == "split":
            _hold_out(node, sources, train)
    if nodes and nodes[-1].title == "encode":  # it reads what is held out too
        nodes[-1].taken = nodes[-1].kept = train
        nodes[-1].title = "training text"
        size = show_bytes(sum(train.values()))
        nodes[-1].detail = f"{size} · {show_count(ledger['train_tokens'])} tokens"
    return Flow(list(sources), nodes, _phases(sources))


def _node(stage: str, sources: dict[str, Any]) -> Node:
    books = {n: b for n, s in sources.items() for b in s["stages"] if b["stage"] == stage}
    taken = {name: float(book["in"]["bytes"]) for name, book in books.items()}
    kept = {name: float(book["out"]["bytes"]) for name, book in books.items()}
    documents = sum(book["in"]["documents"] for book in books.values())
    detail = f"{show_bytes(sum(taken.values()))} · {show_count(documents)} documents"
    return Node(stage, detail, taken, kept, _dropped(books))


def _dropped(books: dict[str, Any]) -> list[Exit]:
    """The reasons of a stage, the largest first; the small ones together; then what was edited."""
    parts: dict[str, Parts] = {}
    documents: dict[str, int] = {}
    for name, book in books.items():
        for reason, count in book["dropped"].items():
            parts.setdefault(reason, {})[name] = float(count["bytes"])
            documents[reason] = documents.get(reason, 0) + count["documents"]
    order = sorted(parts, key=lambda reason: (-sum(parts[reason].values()), reason))
    most = MOST_REASONS if len(order) > MOST_REASONS + 1 else len(order)
    exits = [_reason(words(r), [parts[r]], documents[r]) for r in order[:most]]
    if rest := order[most:]:
        gone = sum(documents[reason] for reason in rest)
        exits.append(_reason(f"{len(rest)} other reasons", [parts[r] for r in rest], gone))
    edited = {n: float(b["edited_bytes"]) for n, b in books.items() if b["edited_bytes"] > 0}
    if edited:
        size = show_bytes(sum(edited.values()))
        exits.append(Exit("edited away", f"{size}, in documents kept", "dropped", edited))
    return exits


def _reason(label: str, several: list[Parts], documents: int) -> Exit:
    parts: Parts = {}
    for one in several:
        for name, size in one.items():
            parts[name] = parts.get(name, 0.0) + size
    detail = f"{show_bytes(sum(parts.values()))}, {_documents(documents)}"
    return Exit(label, detail, "dropped", parts)


def _documents(count: int) -> str:
    return f"{count:,} document{'s' * (count != 1)}"


def _hold_out(node: Node, sources: dict[str, Any], train: Parts) -> None:
    """Let the validation and test text leave at the split: the phases read the rest."""
    for split in HELD_OUT:
        held = {n: s["splits"][split] for n, s in sources.items() if split in s["splits"]}
        parts = {name: float(facts["text_bytes"]) for name, facts in held.items()}
        if size := sum(parts.values()):
            count = sum(facts["documents"] for facts in held.values())
            detail = f"{show_bytes(size)}, {_documents(count)}"
            node.exits.append(Exit(f"held out: {split}", detail, "held_out", parts))
    node.kept = train


def _phases(sources: dict[str, Any]) -> list[Exit]:
    found = []
    for phase in dict.fromkeys(p for s in sources.values() for p in s["drawn"]):
        drawn = {n: s["drawn"][phase] for n, s in sources.items() if phase in s["drawn"]}
        parts = {name: float(draw["tokens"]) for name, draw in drawn.items() if draw["tokens"]}
        epochs = ", ".join(f"{n} {draw['epochs']:.2g}×" for n, draw in drawn.items() if n in parts)
        found.append(
            Exit(phase, f"{show_count(sum(parts.values()))} tokens: {epochs}", "phase", parts)
        )
    return found
