"""How good it is: tables that are neither HTML nor Markdown yet, and what they are made of."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

Facts = dict[str, Any]
SHADES = 5  # of the matrix's tint; 0 is none
NONE = "–"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class Cell:
    """A cell.

    Attributes:
        best: marked as the best of its row.
        bar: 0 to 1, drawn below the text.
        lines: small lines below it.
        shade: 0 (none) to ``SHADES`` - 1: how dark its ground is.
        tone: ``good`` or ``bad``: of its last line.
    """

    text: str
    best: bool = False
    bar: float | None = None
    lines: tuple[str, ...] = ()
    shade: int = 0
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """Rows in groups; a group with a name has a heading. Columns from ``first_number`` on hold
    numbers; those of ``minor`` are left out where there is little room. ``legend`` tells what
    marks and colours of the page mean."""

    heads: list[str]
    groups: dict[str, list[list[Cell]]]
    first_number: int = 1
    note: str = ""
    legend: str = ""
    minor: tuple[int, ...] = ()


def printable(text: str) -> str:
    """Text of a corpus or a model, with U+FFFD for what would steer a terminal or break a page."""
    return _CONTROL.sub("\ufffd", text)


def figure(value: float | None, error: float | None = None, digits: int = 4) -> str:
    """``1.9293 ± 0.0041``; a dash for what is not there."""
    if value is None:
        return NONE
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def signed(value: float, digits: int = 4) -> str:
    """``−0.1234`` or ``+0.1234``."""
    return f"{value:+.{digits}f}".replace("-", "−")


def change(value: float, error: float | None = None) -> tuple[str, str]:
    """A change of bits per byte in words, and its tone: none within two standard errors."""
    arrow = "▼" if value < 0 else "▲" if value > 0 else "="
    sure = error is None or abs(value) > 2 * error
    tone = ("good" if value < 0 else "bad") if sure and value else ""
    return f"{arrow} {signed(value)}" + ("" if error is None else f" ± {error:.4f}"), tone


def released(facts: Facts) -> Table:
    """The released weights on every held-out set, beside what they must beat."""
    phase, weights = facts["released"]["phase"], facts["released"]["weights"]
    parent = facts["phases"][phase]["parent"]
    baselines, champion = facts.get("baselines", {}).get(phase, {}), champion_scores(facts)
    columns = [f"{phase} {weights}"]
    columns += [f"parent: {parent}"] if parent else []
    columns += [_champion_name(facts)] if champion else []
    columns += sorted({kind for by_kind in baselines.values() for kind in by_kind})
    perplexities = any("word_perplexity" in w.get(weights, {}) for w in _sets(facts).values())
    rows = []
    for name, by_weights in sorted(_sets(facts).items(), key=_tests_first):
        now = by_weights.get(weights)
        if now is None:
            continue
        cells = [Cell(name), Cell(figure(now["bits_per_byte"]), lines=_error(now))]
        if parent:
            then = facts["figures"][parent].get(name, {}).get(weights)
            cells.append(_beside(then, facts["changes"].get(phase, {}).get(name, {}).get(weights)))
        if champion:
            cells.append(champion_cell(champion.get(name)))
        for kind in columns[len(cells) - 1 :]:
            cells.append(_baseline(baselines.get(name, {}).get(kind), now))
        cells += [
            Cell(f"{now['perplexity']:.4g}"),
            *([Cell(_word_perplexity(now))] if perplexities else []),
            Cell(f"{100 * now['accuracy']:.1f} %"),
        ]
        rows.append(cells)
    last = [
        "perplexity, a token",
        *(["perplexity, a word"] if perplexities else []),
        "accuracy, a token",
    ]
    count = len(columns) + 1
    note = (
        "Bits per byte of the original text, less is better, ± standard error over documents. "
        "With what it is to beat: how far the release is from it, ▼ better, ▲ worse."
    )
    minor = tuple(range(count, count + len(last)))
    return Table(["Held-out set", *columns, *last], {"": rows}, note=note, minor=minor)


def released_scores(facts: Facts) -> dict[str, dict[str, float]]:
    """Figures of the released weights on each test set (validation where none is)."""
    weights = facts["released"]["weights"]
    scores = {
        n: by_weights[weights] for n, by_weights in _sets(facts).items() if weights in by_weights
    }
    return {n: s for n, s in scores.items() if n.endswith("/test")} or scores


def matrix(facts: Facts) -> Table | None:
    """Every phase on every held-out set, raw and EMA, with the change since the parent phase.

    None where there is but one phase and one kind of weights: `released` has told it all.
    """
    columns = [
        (phase, weights)
        for phase in facts["phases"]
        for weights in ("raw", "ema")
        if any(weights in by_weights for by_weights in facts["figures"][phase].values())
    ]
    if len(columns) < 2:
        return None
    names = sorted({name for figures in facts["figures"].values() for name in figures})
    rows = []
    for name in names:
        found = [facts["figures"][p].get(name, {}).get(w) for p, w in columns]
        values = [scores["bits_per_byte"] for scores in found if scores]
        changes = [facts["changes"].get(p, {}).get(name, {}).get(w) for p, w in columns]
        cells = [
            _matrix_cell(scores, moved, min(values), max(values))
            for scores, moved in zip(found, changes, strict=True)
        ]
        rows.append([Cell(name), *cells])
    heads = ["Held-out set", *(f"{phase} {weights}" for phase, weights in columns)]
    note = (
        "Bits per byte ± standard error, then the change since the parent phase with the same "
        "weights: ▼ better, ▲ worse (forgotten)."
    )
    legend = (
        "● the best of its set; the darker the ground, the further above it. A change is in "
        "colour where it is beyond two standard errors."
    )
    return Table(heads, {"": rows}, note=note, legend=legend)


def _matrix_cell(
    scores: dict[str, float] | None, moved: dict[str, float] | None, least: float, most: float
) -> Cell:
    if scores is None:
        return Cell(NONE)
    value = scores["bits_per_byte"]
    share = (value - least) / (most - least) if most > least else 0.0
    shade = 0 if value == least else max(1, round(share * (SHADES - 1)))
    lines, tone = _error(scores), ""
    if moved:
        text, tone = change(moved["change"], moved.get("se"))
        lines = (*lines, text)
    return Cell(figure(value), best=value == least, lines=lines, shade=shade, tone=tone)


def champion_scores(facts: Facts) -> dict[str, dict[str, float]]:
    """Set -> what the gate's comparison says of the champion before; empty where there is none."""
    comparison = facts.get("registration", {}).get("comparison") or {}
    sets = comparison.get("sets", {})
    return sets if isinstance(sets, dict) else {}


def _champion_name(facts: Facts) -> str:
    version = facts["registration"].get("compared_with")
    return f"@{facts['settings']['release']['alias']} before" + (
        f", version {version}" if version else ""
    )


def champion_cell(scores: dict[str, float] | None) -> Cell:
    """The champion's figure, and how far the release is from it."""
    if not scores or "champion" not in scores:
        return Cell(NONE)
    moved = {"change": scores["difference"], "se": scores.get("se")}
    return _beside({"bits_per_byte": scores["champion"]}, moved)


def _sets(facts: Facts) -> dict[str, dict[str, dict[str, float]]]:
    found: dict[str, dict[str, dict[str, float]]] = facts["figures"][facts["released"]["phase"]]
    return found


def _tests_first(item: tuple[str, Any]) -> tuple[bool, str]:
    return not item[0].endswith("/test"), item[0]


def _beside(then: dict[str, float] | None, moved: dict[str, Any] | None) -> Cell:
    """What something else scored, and how far the release is from it."""
    if then is None:
        return Cell(NONE)
    text, tone = change(moved["change"], moved.get("se")) if moved else ("", "")
    return Cell(figure(then["bits_per_byte"]), lines=(text,) if text else (), tone=tone)


def _baseline(then: dict[str, float] | None, now: dict[str, float]) -> Cell:
    if then is None:
        return Cell(NONE)
    return _beside(then, {"change": now["bits_per_byte"] - then["bits_per_byte"]})


def _error(scores: dict[str, float]) -> tuple[str, ...]:
    error = scores.get("bits_per_byte_se")
    return () if error is None else (f"± {error:.4f}",)


def _word_perplexity(scores: dict[str, float]) -> str:
    value = scores.get("word_perplexity")
    return NONE if value is None else f"{value:.4g}"
