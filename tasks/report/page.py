"""The report of one run as one HTML page, drawn from reports/report.json alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tasks.report import curves, measures, settings, tables
from tasks.report.account import balance, words
from tasks.report.html import document, figures, table, text, tiles, titled
from tasks.report.sankey import NOTE, picture
from tasks.report.tables import Facts
from tasks.report.words import gate, loading, verdict
from tasks.units import show_bytes, show_count, show_seconds

MOST_TILES = 4  # of held-out sets


def page(facts: Facts) -> str:
    """The whole page."""
    sections = {
        "results": ("Held-out text", results(facts)),
        "benchmarks": ("Benchmarks", table(measures.benchmarks(facts))),
        "training": ("Training", training(facts)),
        "samples": ("Samples", generation(facts)),
        "data": ("From download to trained token", data(facts)),
        "recipe": ("Recipe", recipe(facts)),
        "lineage": ("Lineage", table(settings.lineage(facts))),
        "use": ("Use it", use(facts)),
    }
    head = (
        f'<h1>{text(facts["name"])}</h1>\n<p class="soft">{text(facts["description"])}</p>\n'
        f'<p class="verdict">{strong(verdict(facts))}{_gate(facts)}</p>\n{first_figures(facts)}'
    )
    foot = f"<footer>recipe {text(facts['lineage']['recipe'])}</footer>"
    return document(f"{facts['name']} · report", head, sections, foot)


def strong(sentence: str) -> str:
    """A sentence whose part before the first comma stands out."""
    first, comma, rest = text(sentence).partition(",")
    return f"<b>{first}</b>{comma}{rest}"


def _gate(facts: Facts) -> str:
    reason = gate(facts)
    return f"<br><small>{text(reason)}</small>" if reason else ""


def first_figures(facts: Facts) -> str:
    """The figures to see first."""
    seconds = sum(summary["seconds"] for summary in facts["training"].values())
    tokens = sum(summary["tokens"] for summary in facts["training"].values())
    scores = tables.released_scores(facts)
    shown = [
        (f"bits per byte, {name}", tables.figure(s["bits_per_byte"])) for name, s in scores.items()
    ][:MOST_TILES]
    shown.append(("parameters", show_count(facts["parameters"]["total"])))
    shown += [("tokens trained on", show_count(tokens)), ("training", show_seconds(seconds))]
    return tiles(shown)


def results(facts: Facts) -> str:
    """The release beside its baselines, then every phase on every set."""
    return (
        table(tables.released(facts), "pinned")
        + titled("Every phase on every set: what was learnt, what was forgotten",
                 table(tables.matrix(facts), "pinned"))
        + titled("The sets", table(settings.held_out(facts)))
    )  # fmt: skip


def training(facts: Facts) -> str:
    """Loss, held-out bits per byte, learning rate, gradient and speed over the tokens."""
    drawn = {
        "Training loss": curves.loss_chart(facts["curves"]),
        "Held-out text while training": curves.held_out_chart(facts["curves"]),
        "Learning rate": curves.lr_chart(facts["curves"]),
        "Gradient norm": curves.grad_norm_chart(facts["curves"]),
        "Speed": curves.speed_chart(facts["curves"]),
    }
    return figures(drawn) + titled("Speed of training", table(measures.training(facts)))


def generation(facts: Facts) -> str:
    """What was measured of generated text, how fast it came, and the text."""
    return (
        samples(facts)
        + titled("Measured of generated text", table(measures.measures(facts)))
        + titled("Speed of generation", table(measures.generation_speed(facts)))
    )


def samples(facts: Facts) -> str:
    """For each prompt, what every phase wrote, side by side: the released weights open, the
    others folded."""
    weights = facts["released"]["weights"]
    found = [
        (phase, sample)
        for phase, made in facts.get("generation", {}).items()
        for sample in made.get("samples", [])
    ]
    parts = []
    for prompt in dict.fromkeys(sample["prompt"] for _, sample in found):
        mine = [(phase, s) for phase, s in found if s["prompt"] == prompt]
        last = {phase: [s["weights"] for p, s in mine if p == phase] for phase, _ in mine}
        shown = [
            (phase, s) for phase, s in _first_of_each(mine)
            if s["weights"] == (weights if weights in last[phase] else last[phase][0])
        ]  # fmt: skip
        rest = [pair for pair in mine if pair not in shown]
        more = f"<details><summary>{len(rest)} more</summary>{_quotes(rest)}</details>"
        parts.append(titled(f"“{prompt}”", _quotes(shown) + (more if rest else "")))
    return "\n".join(parts)


def _first_of_each(found: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The first sample of each phase and weights."""
    first: dict[tuple[str, str], tuple[str, Any]] = {}
    for phase, sample in found:
        first.setdefault((phase, sample["weights"]), (phase, sample))
    return list(first.values())


def _quotes(found: Iterable[tuple[str, Any]]) -> str:
    quotes = "".join(
        f"<figure><figcaption>{text(phase)} · {text(s['weights'])}{_seed(s)}</figcaption>"
        f"<blockquote><b>{text(s['prompt'])}</b>{text(s['text'])}</blockquote></figure>"
        for phase, s in found
    )
    return f'<div class="samples">{quotes}</div>'


def _seed(sample: dict[str, Any]) -> str:
    return f" · seed {sample['seed']}" if "seed" in sample else ""


def data(facts: Facts) -> str:
    """The whole way of the text: in one sentence, as a picture, as a table."""
    ledger = facts["ledger"]
    came, gone, kept = ledger["downloaded"], ledger["dropped"], ledger["kept"]
    drawn = sum(d["tokens"] for s in ledger["sources"].values() for d in s["drawn"].values())
    told = (
        f"<p>{came['documents']:,} documents ({show_bytes(came['bytes'])}) came in, "
        f"{gone['documents']:,} were dropped, {kept['documents']:,} ({show_bytes(kept['bytes'])}) "
        f"stayed, the held-out text among them, and gave {ledger['train_tokens']:,} training "
        f"tokens; the phases trained on {drawn:,}, repeats counted.</p>"
    )
    drawing = picture(ledger)
    if drawing:
        drawing = f'<figure class="way">{drawing}</figure><p class="note">{text(NOTE)}</p>'
    breaks = {name: source["breaks"] for name, source in ledger["sources"].items()}
    kind, sign = ("balanced", "✓ ") if ledger["balanced"] else ("unbalanced", "✗ ")
    balanced = f'<p class="{kind}"><b>{sign}</b>{text(balance(breaks))}</p>'
    return told + drawing + balanced + titled(
        "Source by source", table(settings.ledger(facts))
    ) + titled("Dropped, for example", "".join(drops(ledger)))  # fmt: skip


def drops(ledger: dict[str, Any]) -> Iterable[str]:
    """Examples of what was dropped, by source, stage and reason."""
    for name, source in ledger["sources"].items():
        for book in source["stages"]:
            for reason, examples in book["examples"].items():
                count = book["dropped"][reason]["documents"]
                title = f"{name} · {book['stage']} · {words(reason)} ({count:,})"
                quotes = "".join(f"<blockquote>{text(e)}</blockquote>" for e in examples)
                yield f"<details><summary>{text(title)}</summary>{quotes}</details>"


def recipe(facts: Facts) -> str:
    """The recipe as a paper's tables."""
    return (
        '<div class="settings">'
        + table(settings.phases(facts), "first")
        + table(settings.network(facts))
        + table(settings.data(facts))
        + "</div>"
    )


def use(facts: Facts) -> str:
    """How to load the model, by each program that opens it."""
    return "".join(
        f"<h3>{text(title)}</h3><pre>{text(code)}</pre>" for title, code in loading(facts).items()
    )
