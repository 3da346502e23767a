"""Several runs beside each other, as one dictionary: what differs, and what may be compared.

    report.json of each run -> compare_runs() -> comparison.json -> the page, the Markdown

Figures stand side by side only where they measure the same thing: on a set, where its text is the
same (its fingerprint); a token, where the tokenizer is too. What cannot be compared is said.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.report.facts import Facts
from tasks.report.runs import Run

VERSION = 1
KIND = "phasewise comparison"
PER_TOKEN = ("perplexity", "loss", "accuracy")
FIGURES = ("bits_per_byte", "word_perplexity", *PER_TOKEN)
_IDENTITY = ("name", "description")
_EXACT = 1e-6  # bits per byte: documents that do not give the figure are not its documents


def compare_runs(runs: Sequence[Run]) -> dict[str, Any]:
    """The comparison of two runs or more; the first is what the others are held against.

    Keys: kind, version, runs, settings, sets, figures, training, generation, ledger, curves, notes;
    lists are in the order of the runs. docs/reports.md lists what each holds.
    """
    if len(runs) < 2:
        raise UserError("a comparison takes two runs or more", hint="name another run")
    labels = _labels(runs)
    facts = [run.facts for run in runs]
    sets = {name: _set(name, facts) for name in _names(facts)}
    notes = list(_notes(labels, facts, sets))
    return {
        "kind": KIND,
        "version": VERSION,
        "runs": [_run(label, run) for label, run in zip(labels, runs, strict=True)],
        "settings": differing(facts),
        "sets": sets,
        "figures": {name: _figures(name, place, runs) for name, place in sets.items()},
        "training": [_training(one) for one in facts],
        "generation": [_generation(one) for one in facts],
        "ledger": [_ledger(one) for one in facts],
        "curves": [one["curves"] for one in facts],
        "comparable_curves": {
            "loss": _equal(one["lineage"]["tokenizer"] for one in facts),
            "held_out": _held_out_curves(facts, sets),
        },
        "notes": notes,
    }


def differing(facts: Sequence[Facts]) -> dict[str, list[Any]]:
    """Settings that are not the same in all runs: ``phases.phase2.lr`` -> a value each, None where
    a run has no such setting."""
    flat = [dict(_flat(one["settings"])) for one in facts]
    keys = dict.fromkeys(key for one in flat for key in one)
    found = {key: [one.get(key) for one in flat] for key in keys}
    return {
        key: values
        for key, values in found.items()
        if key not in _IDENTITY and not _equal(json.dumps(value) for value in values)
    }


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, part in value.items():
        if isinstance(part, dict) and part:
            yield from _flat(part, f"{prefix}{key}.")
        else:
            yield prefix + key, part


def _labels(runs: Sequence[Run]) -> list[str]:
    """The first names that tell the runs apart: the recipes', the folders', those given."""
    candidates = (
        [run.facts["name"] for run in runs],
        [_folder(run.origin) for run in runs],
        [run.origin for run in runs],
    )
    return next((names for names in candidates if len(set(names)) == len(runs)), candidates[-1])


def _folder(origin: str) -> str:
    if origin.startswith("models:/"):
        return origin
    path = Path(origin).resolve()
    if path.name == "report.json":
        path = path.parent.parent if path.parent.name == "reports" else path.parent
    return path.name


def _run(label: str, run: Run) -> dict[str, Any]:
    facts = run.facts
    return {
        "label": label,
        "name": facts["name"],
        "released": facts["released"],
        "parameters": facts["parameters"],
        "tokens": sum(phase["tokens"] for phase in facts["phases"].values()),
        "recipe": facts["lineage"]["recipe"],
        "commit": facts["lineage"].get("commit"),
        "tokenizer": facts["lineage"]["tokenizer"],
    }


def _names(facts: Sequence[Facts]) -> list[str]:
    """Held-out sets that any run was measured on, test sets first."""
    names = {name for one in facts for name in one["sets"]}
    return sorted(names, key=lambda name: (not name.endswith("/test"), name))


def _set(name: str, facts: Sequence[Facts]) -> dict[str, Any]:
    """Which runs share the text of the first that has the set, and its protocol and tokenizer."""
    held = [one["sets"].get(name) for one in facts]
    first = next(i for i, one in enumerate(held) if one)
    text = [one is not None and one.get("fingerprint") == held[first]["fingerprint"]
            for one in held]  # fmt: skip
    protocols = [one["protocols"].get(one["released"]["phase"]) for one in facts]
    tokenizers = [one["lineage"]["tokenizer"] for one in facts]
    return {
        "fingerprints": [one.get("fingerprint") if one else None for one in held],
        "reference": first,
        "same_text": text,
        "same_protocol": [protocol == protocols[first] for protocol in protocols],
        "same_tokenizer": [tokenizer == tokenizers[first] for tokenizer in tokenizers],
    }


def _figures(name: str, place: dict[str, Any], runs: Sequence[Run]) -> list[dict[str, Any] | None]:
    """The figures of each run that may stand beside the first's; None: another text, or no such
    set. ``difference`` is in bits per byte from the first, with its standard error ``se``."""
    reference = place["reference"]
    found: list[dict[str, Any] | None] = []
    for number, run in enumerate(runs):
        scores = _scores(run.facts, name)
        if scores is None or not place["same_text"][number]:
            found.append(None)
            continue
        kept = {
            key: scores[key]
            for key in (*FIGURES, "bits_per_byte_se")
            if scores.get(key) is not None
            and (key not in PER_TOKEN or place["same_tokenizer"][number])
        }
        if number != reference and place["same_protocol"][number]:
            kept |= difference(runs[reference], run, name)
        found.append(kept)
    return found


def difference(first: Run, other: Run, name: str) -> dict[str, Any]:
    """``other`` less ``first`` on a set in bits per byte: ``difference``, ``se`` and ``paired``.

    Paired by document where both runs' scores of documents are there; else the error is that of
    two independent figures, which is too large: the documents are the same.
    """
    before, after = _scores(first.facts, name), _scores(other.facts, name)
    if before is None or after is None:
        return {}
    moved = after["bits_per_byte"] - before["bits_per_byte"]
    error = _paired_error(first, other, name, moved)
    if error is not None:
        return {"difference": moved, "se": error, "paired": True}
    errors = [s["bits_per_byte_se"] for s in (before, after) if "bits_per_byte_se" in s]
    if len(errors) < 2:
        return {"difference": moved}
    return {"difference": moved, "se": math.hypot(*errors), "paired": False}


def _paired_error(first: Run, other: Run, name: str, moved: float) -> float | None:
    import numpy as np

    from tasks.evaluation.bootstrap import paired
    from tasks.evaluation.documents import read_documents

    columns = []
    for run in (first, other):
        released = run.facts["released"]
        if run.workspace is None:
            return None
        arrays = read_documents(run.workspace.evaluation(released["phase"], "documents.npz"))
        keys = (f"{name}:id", f"{name}:nats:{released['weights']}", f"{name}:bytes")
        if not set(keys) <= arrays.keys():
            return None
        columns.append([arrays[key] for key in keys])
    (ids, before, sizes), (others, after, _) = columns
    if len(ids) < 2 or not np.array_equal(ids, others):
        return None
    found = paired(after, before, sizes)
    return found.se if abs(found.difference - moved) < _EXACT else None


def _scores(facts: Facts, name: str) -> dict[str, float] | None:
    released = facts["released"]
    found: dict[str, float] | None = (
        facts["figures"][released["phase"]].get(name, {}).get(released["weights"])
    )
    return found


def _training(facts: Facts) -> dict[str, Any]:
    """Tokens, seconds and tokens a second of all phases, and the most memory."""
    summaries = facts["training"].values()
    tokens, seconds = (sum(s[key] for s in summaries) for key in ("tokens", "seconds"))
    memory = [s["memory_bytes"] for s in summaries if s.get("memory_bytes")]
    rate = tokens / seconds if seconds else None
    return {
        "tokens": tokens,
        "steps": sum(s["steps"] for s in summaries),
        "seconds": seconds,
        "tokens_per_second": rate,
        "memory_bytes": max(memory) if memory else None,
    }


def _generation(facts: Facts) -> dict[str, Any]:
    """Speed of the released phase's generation; empty where it was not measured."""
    made = facts.get("generation", {}).get(facts["released"]["phase"], {})
    speed: dict[str, Any] = made.get("speed") or {}
    return speed


def _ledger(facts: Facts) -> dict[str, Any]:
    ledger = facts["ledger"]
    drawn = sum(d["tokens"] for s in ledger["sources"].values() for d in s["drawn"].values())
    keys = ("downloaded", "dropped", "kept", "train_tokens", "balanced")
    return {key: ledger[key] for key in keys} | {"drawn_tokens": drawn}


def _held_out_curves(facts: Sequence[Facts], sets: dict[str, Any]) -> list[str]:
    """Sets whose curves while training may share a chart: the same text, cut at the same token."""
    caps = [
        sorted({p["validation_tokens"] for p in one["settings"]["phases"].values()})
        for one in facts
    ]
    if not _equal(map(str, caps)) or not _equal(one["lineage"]["tokenizer"] for one in facts):
        return []
    drawn = {v["set"] for one in facts for c in one["curves"] for v in c["validation"]}
    return [name for name in sets if name in drawn and all(sets[name]["same_text"])]


def _notes(labels: list[str], facts: Sequence[Facts], sets: dict[str, Any]) -> Iterator[str]:
    """What cannot be compared, and why."""
    for name, place in sets.items():
        for label, fingerprint, same in zip(
            labels, place["fingerprints"], place["same_text"], strict=True
        ):
            if fingerprint is None:
                yield f"{label} was not measured on {name}."
            elif not same:
                yield f"{name} of {label} is another text ({fingerprint[:12]}): not compared."
    protocols = [json.dumps(one["protocols"].get(one["released"]["phase"])) for one in facts]
    if not _equal(protocols):
        told = "; ".join(f"{label}: {p}" for label, p in zip(labels, protocols, strict=True))
        yield f"The runs were not scored alike, so no difference is given between those: {told}."
    if not _equal(one["lineage"]["tokenizer"] for one in facts):
        yield (
            "The tokenizers differ: perplexity, accuracy and loss a token, and the curves, are not "
            "compared; bits per byte and perplexity a word are."
        )


def _equal(values: Any) -> bool:
    return len(set(values)) <= 1
