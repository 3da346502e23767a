"""The model card: what an export is, written from what is known of it and nothing else.

    recipe (sources, licences, phases) + facts (counts, fingerprints)   as it is exported
        + figures, or a whole report (tasks/report/facts.py)            as it is registered
        -> README.md

A line whose fact is not there is left out. The YAML header is the Hugging Face hub's, with the
figures as `model-index` (https://huggingface.co/docs/hub/model-cards).
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ruamel.yaml import YAML

from model import ModelConfig
from tasks.recipe import Recipe
from tasks.release import card_parts as parts
from tasks.release.card_parts import Facts
from tasks.report.account import words
from tasks.units import show_bytes

Evaluation = Mapping[str, Mapping[str, Mapping[str, float]]]
Report = Mapping[str, Any]


def card(
    recipe: Recipe,
    facts: Facts,
    evaluation: Evaluation | None = None,
    report: Report | None = None,
) -> str:
    """The model card as Markdown.

    Args:
        evaluation: set -> raw or ema -> bits_per_byte, perplexity, accuracy, as in
            evaluation/<phase>.json.
        report: all that was measured, as in reports/report.json, of a run whose released phase is
            this export's.
    """
    lineage = [*reversed(recipe.parents(facts.phase)), facts.phase]
    evaluation = evaluation or {}
    sections = {
        "Use": parts.use(recipe, facts),
        "Training data": "\n\n".join([parts.data(recipe, facts, lineage), *_ledger(report)]),
        "Training": "\n\n".join([parts.training(recipe, lineage), *_trained(report)]),
        "Network": parts.network(ModelConfig.from_dict(facts.architecture), facts),
        "Held-out text": _measured(evaluation, facts.weights, report),
        "Benchmarks": _table(report, "benchmarks"),
        "Generated text": _generated(report),
        "Limits": _limits(recipe, facts, lineage, evaluation, report),
        "Where it comes from": parts.provenance(facts),
    }
    top = [
        _header(recipe, facts, lineage, evaluation, report),
        f"# {recipe.name} ({facts.phase})",
        recipe.description,
        parts.summary(facts),
    ]
    body = [f"## {title}\n\n{text}" for title, text in sections.items() if text]
    return "\n\n".join([*top, *body]) + "\n"


def _header(
    recipe: Recipe,
    facts: Facts,
    lineage: list[str],
    evaluation: Evaluation,
    report: Report | None,
) -> str:
    """What the hub reads: licence, data sets, languages, figures."""
    used = parts.sources(recipe, lineage)
    licence = recipe.release.license
    known = re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence.lower())
    found: dict[str, Any] = {"license": licence.lower() if known else "other"}
    if not known:
        found["license_name"] = licence
    if all(source.languages for source in used.values()):
        found["language"] = sorted({code for s in used.values() for code in s.languages})
    found |= {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["phasewise"],
    }
    if hub := sorted({source.hub.id for source in used.values() if source.hub}):
        found["datasets"] = hub
    results = [*_results(recipe, facts, evaluation), *_task_results(report)]
    if results:
        found["model-index"] = [{"name": recipe.name, "results": results}]
    out = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.sort_base_mapping_type_on_output = False, False
    yaml.dump(found, out)
    return f"---\n{out.getvalue()}---"


def _results(recipe: Recipe, facts: Facts, evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    """The held-out figures as the hub wants them: task, data set, metrics."""
    for name, figures in sorted(evaluation.items()):
        if facts.weights not in figures:
            continue
        key, _, split = name.partition("/")
        source = recipe.sources.get(key)
        dataset: dict[str, Any] = {"name": name, "type": key, "split": split}
        if source is not None and source.hub:
            hub = source.hub
            dataset |= {"type": hub.id, "config": hub.config, "revision": hub.revision}
        row = figures[facts.weights]
        metrics = [{"type": "bits_per_byte", "name": "bits per byte",
                    "value": round(row["bits_per_byte"], 4)}]  # fmt: skip
        if "word_perplexity" in row:
            metrics.append({"type": "word_perplexity", "name": "perplexity, a word",
                            "value": round(row["word_perplexity"], 2)})  # fmt: skip
        yield {"task": {"type": "text-generation"}, "dataset": dataset, "metrics": metrics}


def _task_results(report: Report | None) -> Iterator[dict[str, Any]]:
    for task, found in (report or {}).get("benchmarks", {}).items():
        yield {
            "task": {"type": "text-generation"},
            "dataset": {"name": task, "type": task},
            "metrics": [{"type": found["metric"], "value": round(found["value"], 4)}],
        }


def _ledger(report: Report | None) -> Iterator[str]:
    """What became of each source's documents: in, dropped by reason, out."""
    if report is None:
        return
    rows = []
    for name, source in report["ledger"]["sources"].items():
        first, last = source["stages"][0]["in"], source["stages"][-1]["out"]
        gone: dict[str, int] = {}
        for book in source["stages"]:
            for reason, count in book["dropped"].items():
                gone[reason] = gone.get(reason, 0) + count["documents"]
        told = ", ".join(f"{words(r)} {n:,}" for r, n in sorted(gone.items(), key=lambda g: -g[1]))
        rows.append(
            [
                name,
                f"{first['documents']:,} ({show_bytes(first['bytes'])})",
                told or "nothing",
                f"{last['documents']:,} ({show_bytes(last['bytes'])})",
                f"{source['splits'].get('train', {}).get('tokens', 0):,}",
            ]
        )
    yield parts.table(
        ["Source", "Documents downloaded", "Dropped", "Kept, held-out text among them",
         "Training tokens"], rows
    )  # fmt: skip


def _trained(report: Report | None) -> Iterator[str]:
    """How long it took and where the loss ended."""
    from tasks.report import measures
    from tasks.report.markdown import table

    if report is not None:
        yield table(measures.training(dict(report)))


def _measured(evaluation: Evaluation, weights: str, report: Report | None) -> str:
    """The held-out figures; with a report also the baselines and every phase."""
    if report is None:
        return _held_out(evaluation, weights) if evaluation else ""
    from tasks.report import tables
    from tasks.report.markdown import part, table

    facts = dict(report)
    every = part("### Every phase on every set", table(tables.matrix(facts)))
    return "\n\n".join([table(tables.released(facts)), *every])


def _held_out(evaluation: Evaluation, weights: str) -> str:
    rows = [
        [
            name,
            f"{row['bits_per_byte']:.4f}",
            f"{row['perplexity']:.4g}",
            f"{100 * row['accuracy']:.1f} %",
        ]
        for name, figures in sorted(evaluation.items())
        for row in ([figures[weights]] if weights in figures else [])
    ]
    heads = ["Set", "Bits per byte", "Perplexity (a token)", "Accuracy (a token)"]
    return parts.table(heads, rows) + (
        "\n\nBits per byte compare across tokenizers; the other two do not."
    )


def _table(report: Report | None, name: str) -> str:
    """A table of tasks/report/measures.py."""
    from tasks.report import measures
    from tasks.report.markdown import table

    return "" if report is None else table(getattr(measures, name)(dict(report)))


def _generated(report: Report | None) -> str:
    found = [_table(report, "measures"), _table(report, "generation_speed")]
    return "\n\n".join(part for part in found if part)


def _limits(
    recipe: Recipe,
    facts: Facts,
    lineage: list[str],
    evaluation: Evaluation,
    report: Report | None,
) -> str:
    """What it is not, and what is not known of it."""
    used = parts.sources(recipe, lineage).values()
    codes = sorted({code for source in used for code in source.languages})
    lines = [
        "It continues text. It was not trained to follow instructions, nor to refuse any.",
        f"With {facts.parameters['total']:,} parameters it is a small model: no source of facts. "
        "What it writes may be false, and repeats what its training text says and leaves out.",
        f"It sees at most {facts.architecture['max_seq_len']} tokens.",
    ]
    if codes and all(source.languages for source in used):
        lines.append(f"Its training text was kept to {', '.join(codes)} by a language filter.")
    else:
        lines.append("No language filter was set for all of its text; others may be in it.")
    unmeasured = [
        *(["held-out text"] if not evaluation else []),
        *(["benchmarks"] if not (report or {}).get("benchmarks") else []),
        *(["memorisation"] if not _memorised(report) else []),
        "bias", "toxicity", "truthfulness",
    ]  # fmt: skip
    lines.append(f"Not measured here: {', '.join(unmeasured)}.")
    if not facts.native:
        lines.append("In transformers it needs `trust_remote_code=True`: read the code first.")
    return "\n".join(f"- {line}" for line in lines)


def _memorised(report: Report | None) -> bool:
    made = (report or {}).get("generation", {})
    return any("memorised_share" in m for one in made.values()
               for m in one.get("measures", {}).values())  # fmt: skip
