"""What the report says, as tables that are neither HTML nor Markdown yet."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tasks.ledger import Ledger
from tasks.recipe import INIT, Phase, Recipe, Source
from tasks.recipe_mixture import mixture_shares
from tasks.release.account import Account, SourceAccount, show_bytes, words
from tasks.release.provenance import network_settings
from tasks.units import show_count, show_seconds

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class Cell:
    """A cell; ``bar`` (0 to 1) is drawn behind it, ``best`` marks it, ``lines`` stand below it."""

    text: str
    best: bool = False
    bar: float | None = None
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """Rows in groups; a group with a name has a heading. Columns from ``first_number`` on hold
    numbers; those of ``minor`` are left out where there is little room."""

    heads: list[str]
    groups: dict[str, list[list[Cell]]]
    first_number: int = 1
    note: str = ""
    minor: tuple[int, ...] = ()


def printable(text: str) -> str:
    """Text of a corpus or a model, with U+FFFD for what would steer a terminal or break a page."""
    return _CONTROL.sub("\ufffd", text)


def matrix(recipe: Recipe, evaluations: dict[str, Any]) -> Table:
    """Bits per byte of every phase on every held-out set, raw and EMA; the best of a set marked."""
    columns = [
        (phase, weights)
        for phase in recipe.phases_in_order()
        for weights in ("raw", "ema")
        if any(weights in figures for figures in evaluations.get(phase, {}).values())
    ]
    names = sorted({name for figures in evaluations.values() for name in figures})
    rows = []
    for name in names:
        found = [
            evaluations[phase].get(name, {}).get(weights, {}).get("bits_per_byte")
            for phase, weights in columns
        ]
        least = min(value for value in found if value is not None)
        cells = [Cell("–" if v is None else f"{v:.4f}", best=v == least) for v in found]
        rows.append([Cell(name), *cells])
    heads = ["Held-out set", *(f"{phase} {weights}" for phase, weights in columns)]
    note = "Bits per byte of the original text, less is better; the best of each set is marked."
    return Table(heads, {"": rows}, note=note)


def speed(recipe: Recipe, summaries: dict[str, Any]) -> Table:
    """How long each phase took."""
    rows = []
    for phase in recipe.phases_in_order():
        facts = summaries[phase]
        memory = facts.get("memory_bytes")
        rows.append(
            [
                Cell(phase),
                Cell(f"{facts['tokens']:,}"),
                Cell(f"{facts['steps']:,}"),
                Cell(f"{facts['tokens_per_second']:,.0f}"),
                Cell(show_seconds(facts["seconds"])),
                Cell(show_bytes(memory) if memory else "–"),
                Cell(f"{facts['loss']:.4f}"),
                Cell(str(facts.get("resumed", 0))),
            ]
        )
    heads = ["Phase", "Tokens", "Steps", "Tokens/s", "Training", "Memory", "Last loss", "Resumed"]
    note = "Tokens/s is the median step's; the last loss is the mean of the last 2 % of the steps."
    return Table(heads, {"": rows}, note=note, minor=(2, 5, 7))


def ledger(account: Account) -> Table:
    """Every stage of every source: in, dropped by reason, out; then tokens encoded and drawn."""
    heads = ["Stage", "In", "Dropped", "Edited", "Out", "Kept"]
    groups = {source.source: _source_rows(source) for source in account.sources}
    return Table(heads, groups, minor=(1, 3))


def _source_rows(source: SourceAccount) -> list[list[Cell]]:
    rows = [_ledger_row(book, book.stage in source.breaks) for book in source.ledgers]
    empty = [Cell("")] * 3
    held_out = tuple(f"{k}: {n:,}" for k, n in source.tokens.items() if k != "train")
    train = Cell(f"{source.tokens.get('train', 0):,}", lines=held_out)
    rows.append([Cell("training tokens"), *empty, train, Cell("")])
    for phase, draw in source.drawn.items():
        packing = [] if draw.cut is None else [f"{100 * draw.cut:.3g} % of documents cut"]
        if draw.padding:
            packing.append(f"{100 * draw.padding / draw.tokens:.2g} % padding")
        epochs = Cell(f"{draw.epochs:.3g} epochs", lines=tuple(packing))
        rows.append([Cell(f"drawn by {phase}"), *empty, Cell(f"{draw.tokens:,}"), epochs])
    return rows


def _ledger_row(book: Ledger, breaks: bool) -> list[Cell]:
    gone = sum(count.documents for count in book.dropped.values())
    reasons = sorted(book.dropped.items(), key=lambda item: -item[1].documents)
    lines = tuple(f"{words(r)}: {c.documents:,} ({show_bytes(c.bytes)})" for r, c in reasons)
    share = book.kept.bytes / book.taken.bytes if book.taken.bytes else 1.0
    return [
        Cell(book.stage, lines=("does not balance!",) if breaks else ()),
        Cell(f"{book.taken.documents:,}", lines=(show_bytes(book.taken.bytes),)),
        Cell(f"{gone:,}" if gone else "–", lines=lines),
        Cell(show_bytes(book.edited_bytes) if book.edited_bytes else "–"),
        Cell(f"{book.kept.documents:,}", lines=(show_bytes(book.kept.bytes),)),
        Cell(f"{100 * share:.1f} %", bar=share),
    ]


def phases(recipe: Recipe) -> Table:
    """The settings of the phases side by side, as a paper has them."""
    names = recipe.phases_in_order()
    lines: list[tuple[str, Callable[[Phase], str]]] = [
        ("Starts from", lambda p: "random weights" if p.starts_from == INIT else p.starts_from),
        ("Tokens", lambda p: f"{p.total_tokens:,}"),
        ("Steps", lambda p: f"{p.steps:,}"),
        ("Batch", lambda p: f"{p.batch_tokens:,} tokens"),
        ("Sequence", lambda p: f"{p.seq_len:,} tokens"),
        ("Mixture", _mixture),
        ("Packing", lambda p: words(p.packing)),
        ("Learning rate", lambda p: f"{p.lr:g} → {p.min_lr:g}, {p.schedule}"),
        ("Warmup", lambda p: f"{show_count(p.warmup_tokens)} tokens"),
        ("Optimizer", _optimizer),
        ("Gradient clip", lambda p: _or_none(p.grad_clip)),
        ("EMA decay", lambda p: _or_none(p.ema_decay)),
        ("Precision", lambda p: p.precision),
        ("Document mask", lambda p: "yes" if p.document_mask else "no"),
    ]
    rows = [
        [Cell(title), *(Cell(show(recipe.phases[name])) for name in names)] for title, show in lines
    ]
    return Table(["Training", *names], {"": rows}, first_number=9)


def network(recipe: Recipe, parameters: dict[str, int]) -> Table:
    """The network's settings, and how large they make it."""
    rows = [[Cell(name), Cell(_value(v))] for name, v in network_settings(recipe).items()]
    for name, count in parameters.items():
        rows.append([Cell(f"parameters, {words(name)}"), Cell(f"{count:,}")])
    return Table(["Network", ""], {"": rows}, first_number=9)


def data(recipe: Recipe) -> Table:
    """Sources, cleaning, held-out text and tokenizer."""
    rows = []
    for name, source in recipe.sources.items():
        facts = f"{_origin(source)}; profile {source.profile}; licence {source.license}"
        rows.append([Cell(name), Cell(facts)])
    dedup, held, tokenizer = recipe.dedup, recipe.held_out, recipe.tokenizer
    near = f"Jaccard ≥ {dedup.threshold:g} of {dedup.ngram}-grams" if dedup.near else "exact only"
    clean = f", no run of {held.ngram} words shared" if held.decontaminate else ""
    rows += [
        [Cell("Duplicates"), Cell(near)],
        [
            Cell("Held out"),
            Cell(f"{100 * held.validation:g} % validation, {100 * held.test:g} % test{clean}"),
        ],
        [Cell("Tokenizer"), Cell(f"{words(tokenizer.kind)}, {tokenizer.vocab_size:,} ids at most")],
        [Cell("Seed"), Cell(str(recipe.seed))],
    ]
    return Table(["Data", ""], {"": rows}, first_number=9)


def _mixture(phase: Phase) -> str:
    """The shares as written, at each point of the phase where they change; what more is done."""
    shares = sorted(mixture_shares(phase).items(), key=lambda item: -item[1])
    columns = [{n: w / sum(row.values()) for n, w in row.items()} for row in phase.mixture_points]
    arrow = " → " if phase.curriculum == "linear" else " | "
    parts = [
        f"{name} {arrow.join(f'{100 * column[name]:.3g}' for column in columns)} %"
        for name, share in shares
        if share
    ]
    if phase.mixture_at:
        parts.append(f"at {', '.join(_place(at) for at in phase.mixture_at)}")
    if phase.mixture_temperature:
        parts.append(f"times tokens^(1/{phase.mixture_temperature:g})")
    parts += [f"{100 * share:.3g} % replay of {name}" for name, share in phase.replay.items()]
    return ", ".join(parts)


def _place(at: float) -> str:
    return f"{100 * at:.3g} %" if at <= 1 else f"{show_count(at)} tokens"


def _optimizer(phase: Phase) -> str:
    o = phase.optimizer
    return f"{o.name}, β {o.betas[0]:g}/{o.betas[1]:g}, decay {o.weight_decay:g}"


def _origin(source: Source) -> str:
    if source.hub:
        return f"{source.hub.id} ({source.hub.config}) at {source.hub.revision[:12]}"
    return "local files" if source.files else f"documentation of this Python ({source.installed})"


def _or_none(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
