"""What it was made of: the ledgers, the recipe and the fingerprints, as tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tasks.recipe import INIT
from tasks.report.account import words
from tasks.report.tables import NONE, Cell, Facts, Table
from tasks.units import show_bytes, show_count

PhaseSettings = dict[str, Any]


def ledger(facts: Facts) -> Table:
    """Every stage of every source: in, dropped by reason, out; then tokens encoded and drawn."""
    heads = ["Stage", "In", "Dropped", "Edited", "Out", "Kept"]
    groups = {name: _source_rows(s) for name, s in facts["ledger"]["sources"].items()}
    return Table(heads, groups, minor=(1, 3))


def _source_rows(source: dict[str, Any]) -> list[list[Cell]]:
    rows = [_ledger_row(book, book["stage"] in source["breaks"]) for book in source["stages"]]
    empty = [Cell("")] * 3
    tokens = {split: held["tokens"] for split, held in source["splits"].items()}
    held_out = tuple(f"{split}: {n:,}" for split, n in tokens.items() if split != "train")
    train = Cell(f"{tokens.get('train', 0):,}", lines=held_out)
    rows.append([Cell("training tokens"), *empty, train, Cell("")])
    for phase, draw in source["drawn"].items():
        packing = [] if draw["cut"] is None else [f"{100 * draw['cut']:.3g} % of documents cut"]
        if draw["padding"]:
            packing.append(f"{100 * draw['padding'] / draw['tokens']:.2g} % padding")
        epochs = Cell(f"{draw['epochs']:.3g} epochs", lines=tuple(packing))
        rows.append([Cell(f"drawn by {phase}"), *empty, Cell(f"{draw['tokens']:,}"), epochs])
    return rows


def _ledger_row(book: dict[str, Any], breaks: bool) -> list[Cell]:
    taken, kept = book["in"], book["out"]
    gone = sum(count["documents"] for count in book["dropped"].values())
    reasons = sorted(book["dropped"].items(), key=lambda item: -item[1]["documents"])
    lines = tuple(f"{words(r)}: {c['documents']:,} ({show_bytes(c['bytes'])})" for r, c in reasons)
    share = kept["bytes"] / taken["bytes"] if taken["bytes"] else 1.0
    return [
        Cell(book["stage"], lines=("does not balance!",) if breaks else ()),
        Cell(f"{taken['documents']:,}", lines=(show_bytes(taken["bytes"]),)),
        Cell(f"{gone:,}" if gone else NONE, lines=lines),
        Cell(show_bytes(book["edited_bytes"]) if book["edited_bytes"] else NONE),
        Cell(f"{kept['documents']:,}", lines=(show_bytes(kept["bytes"]),)),
        Cell(f"{100 * share:.1f} %", bar=share),
    ]


def phases(facts: Facts) -> Table:
    """The settings of the phases side by side, as a paper has them."""
    names = list(facts["phases"])
    both = {name: facts["settings"]["phases"][name] | facts["phases"][name] for name in names}
    lines: list[tuple[str, Callable[[PhaseSettings], str]]] = [
        ("Starts from", lambda p: _start(p["starts_from"])),
        ("Tokens", lambda p: f"{p['tokens']:,}"),
        ("Steps", lambda p: f"{p['steps']:,}"),
        ("Batch", lambda p: f"{p['batch_tokens']:,} tokens"),
        ("Sequence", lambda p: f"{p['seq_len']:,} tokens"),
        ("Mixture", lambda p: p["mixture"]),
        ("Packing", lambda p: words(p["packing"])),
        ("Learning rate", lambda p: f"{p['lr']:g} → {p['min_lr']:g}, {p['schedule']}"),
        ("Warmup", lambda p: f"{show_count(p['warmup_tokens'])} tokens"),
        ("Optimizer", _optimizer),
        ("Gradient clip", lambda p: _or_none(p["grad_clip"])),
        ("EMA decay", lambda p: _or_none(p["ema_decay"])),
        ("Precision", lambda p: p["precision"]),
        ("Document mask", lambda p: "yes" if p["document_mask"] else "no"),
    ]
    rows = [[Cell(title), *(Cell(show(both[name])) for name in names)] for title, show in lines]
    return Table(["Training", *names], {"": rows}, first_number=len(names) + 1)


def network(facts: Facts) -> Table:
    """The network's settings, and how large they make it."""
    rows = [[Cell(name), Cell(shown(value))] for name, value in facts["settings"]["model"].items()]
    for name, count in facts["parameters"].items():
        rows.append([Cell(f"parameters, {words(name)}"), Cell(f"{count:,}")])
    return Table(["Network", ""], {"": rows}, first_number=2)


def data(facts: Facts) -> Table:
    """Sources, cleaning, held-out text and tokenizer."""
    settings = facts["settings"]
    rows = []
    for name, source in settings["sources"].items():
        told = f"{_origin(source)}; profile {source['profile']}; licence {source['license']}"
        rows.append([Cell(name), Cell(told)])
    dedup, held, tokenizer = settings["dedup"], settings["held_out"], settings["tokenizer"]
    near = f"Jaccard ≥ {dedup['threshold']:g} of {dedup['ngram']}-grams"
    clean = f", no run of {held['ngram']} words shared" if held["decontaminate"] else ""
    out = f"{100 * held['validation']:g} % validation, {100 * held['test']:g} % test{clean}"
    size = facts["lineage"]["vocab_size"]
    rows += [
        [Cell("Duplicates"), Cell(near if dedup["near"] else "exact only")],
        [Cell("Held out"), Cell(out)],
        [Cell("Tokenizer"), Cell(f"{words(tokenizer['kind'])}, {size:,} ids")],
        [Cell("Seed"), Cell(str(settings["seed"]))],
    ]
    return Table(["Data", ""], {"": rows}, first_number=2)


def held_out(facts: Facts) -> Table:
    """What the held-out sets are."""
    names = {"documents": "Documents", "words": "Words", "tokens": "Tokens", "text_bytes": "Bytes"}
    keys = [key for key in names if any(key in held for held in facts["sets"].values())]
    rows = []
    for name, held in sorted(facts["sets"].items()):
        counts = [Cell(shown(held.get(key, NONE))) for key in keys]
        rows.append([Cell(name), *counts, Cell(str(held.get("fingerprint", NONE))[:12])])
    heads = ["Held-out set", *(names[key] for key in keys), "SHA-256 of the text"]
    protocol = facts["protocols"][facts["released"]["phase"]]
    how = ", ".join(f"{key} {shown(value)}" for key, value in protocol.items())
    note = f"As scored, a cap of the recipe cuts a set; {how}." if how else ""
    return Table(heads, {"": rows}, note=note, minor=(len(heads) - 1,))


def lineage(facts: Facts) -> Table:
    """Fingerprints of all that the release was made of."""
    found = facts["lineage"]
    commit = found.get("commit", "")
    if commit and found.get("uncommitted_changes"):
        commit += " and uncommitted changes"
    rows = [
        ("Recipe", found["recipe"]),
        ("Git commit", commit),
        *((f"Data of {phase}", key) for phase, key in found.get("data", {}).items()),
        ("Tokenizer", found["tokenizer"]),
        *((f"Checkpoint of {phase}", key) for phase, key in found.get("checkpoints", {}).items()),
        ("Export", found.get("export")),
        ("MLflow run", facts.get("registration", {}).get("run_id")),
        ("MLflow", facts.get("registration", {}).get("tracking_uri")),
    ]
    shown_rows = [[Cell(title), Cell(str(value))] for title, value in rows if value]
    return Table(["Made of", "SHA-256, or id"], {"": shown_rows}, first_number=2)


def shown(value: Any) -> str:
    """A setting's value as a reader writes it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(shown, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else "none" if value is None else str(value)


def _start(name: str) -> str:
    return "random weights" if name == INIT else name


def _optimizer(phase: PhaseSettings) -> str:
    o = phase["optimizer"]
    return f"{o['name']}, β {o['betas'][0]:g}/{o['betas'][1]:g}, decay {o['weight_decay']:g}"


def _origin(source: dict[str, Any]) -> str:
    if hub := source["hub"]:
        return f"{hub['id']} ({hub['config']}) at {hub['revision'][:12]}"
    installed = f"documentation of this Python ({source['installed']})"
    return "local files" if source["files"] else installed


def _or_none(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"
