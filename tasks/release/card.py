"""The model card: what an export is, written from what is known of it and nothing else.

    recipe (sources, licences, phases) + facts (counts, fingerprints) [+ held-out figures]
        -> README.md

A line whose fact is not there is left out. The YAML header is the Hugging Face hub's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from model import ModelConfig
from tasks.recipe import INIT, Phase, Recipe, Source
from tasks.recipe_mixture import mixture_shares
from tasks.units import show_count


@dataclass(frozen=True)
class Facts:
    """What is known of one export; pipeline.json holds it too."""

    phase: str
    weights: str
    """ema or raw."""
    step: int
    tokens: int
    """Trained on in this phase."""
    total_tokens: int
    """Trained on in this phase and those before it."""
    recipe: str
    """Fingerprint of the resolved recipe."""
    checkpoint: str
    """Fingerprint of the checkpoint's files."""
    tokenizer: str
    """SHA-256 of tokenizer.json."""
    parameters: dict[str, int]
    """total, active, non_embedding: of the network as it was trained."""
    architecture: dict[str, Any]
    """ModelConfig as it was trained."""
    transformers_class: str
    obstacles: list[str]
    """What no class of transformers computes; empty: `transformers_class` is one of its own."""
    mixtures: dict[str, list[dict[str, Any]]]
    """Phase -> what its mix says of each source: name, tokens, epochs, ..."""

    @property
    def native(self) -> bool:
        return not self.obstacles


Evaluation = Mapping[str, Mapping[str, Mapping[str, float]]]


def card(recipe: Recipe, facts: Facts, evaluation: Evaluation | None = None) -> str:
    """The model card as Markdown.

    Args:
        evaluation: set -> raw or ema -> bits_per_byte, perplexity, accuracy, as in
            evaluation/<phase>.json.
    """
    lineage = [*reversed(recipe.parents(facts.phase)), facts.phase]
    parts = [
        _header(recipe, lineage),
        f"# {recipe.name} ({facts.phase})",
        recipe.description,
        _summary(facts),
        "## Use",
        _use(recipe, facts),
        "## Training data",
        _data(recipe, facts, lineage),
        "## Training",
        _training(recipe, lineage),
        "## Network",
        _network(ModelConfig.from_dict(facts.architecture), facts),
    ]
    if evaluation:
        parts += ["## Held-out text", _held_out(evaluation, facts.weights)]
    parts += ["## Limits", _limits(facts), "## Where it comes from", _provenance(facts)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(recipe: Recipe, lineage: list[str]) -> str:
    used = _sources(recipe, lineage)
    hub = sorted({source.hub.id for source in used.values() if source.hub})
    known = re.fullmatch(r"[a-z0-9][a-z0-9.-]*", recipe.release.license.lower())
    lines = [f"license: {recipe.release.license.lower()}"] if known else [
        "license: other", f"license_name: {json.dumps(recipe.release.license)}",
    ]  # fmt: skip
    lines += ["library_name: transformers", "pipeline_tag: text-generation", "tags:", "- phasewise"]
    if hub:
        lines += ["datasets:", *(f"- {name}" for name in hub)]
    return "\n".join(["---", *lines, "---"])


def _sources(recipe: Recipe, lineage: list[str]) -> dict[str, Source]:
    """The sources that any phase of the lineage drew from, in the recipe's order."""
    drawn = {
        name
        for phase in lineage
        for name, share in mixture_shares(recipe.phases[phase]).items()
        if share
    }
    return {name: source for name, source in recipe.sources.items() if name in drawn}


def _summary(facts: Facts) -> str:
    average = "the exponential moving average of the weights" if facts.weights == "ema" else (
        "the weights of the last step"
    )  # fmt: skip
    counts = facts.parameters
    size = f"{counts['total']:,} parameters ({counts['non_embedding']:,} outside the embeddings"
    if counts["active"] != counts["total"]:
        size += f", {counts['active']:,} active for a token"
    return (
        f"A causal language model of {size}), trained on {facts.total_tokens:,} tokens. "
        f"The folder holds {average}, in fp32."
    )


def _use(recipe: Recipe, facts: Facts) -> str:
    trust = "" if facts.native else ", trust_remote_code=True"
    if facts.native:
        note = f"The folder opens as `{facts.transformers_class}`, with no code of its own."
    else:
        note = (
            "No class of transformers computes this network "
            f"({', '.join(facts.obstacles)}), so its own code is in the folder and must be allowed "
            "to run."
        )
    python = f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("<folder>")
model = AutoModelForCausalLM.from_pretrained("<folder>"{trust})
inputs = tokenizer({json.dumps(recipe.evaluation.prompts[0])}, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs)[0]))
```"""
    lines = ["```sh", "phasewise generate --model <folder> --prompt "
             + json.dumps(recipe.evaluation.prompts[0])]  # fmt: skip
    if facts.phase == recipe.release.phase:
        uri = f"models:/{recipe.name}@{recipe.release.alias}"
        lines += [f"phasewise pull {uri} <folder>"]
        python += f"""

```python
import mlflow

model = mlflow.pyfunc.load_model("{uri}")
print(model.predict([{json.dumps(recipe.evaluation.prompts[0])}]))
```"""
    return "\n\n".join([note, python, "\n".join([*lines, "```"])])


def _data(recipe: Recipe, facts: Facts, lineage: list[str]) -> str:
    rows = []
    for name, source in _sources(recipe, lineage).items():
        row = [name, _origin(source), source.license]
        for phase in lineage:
            row.append(_share(recipe.phases[phase], name, facts.mixtures.get(phase, [])))
        rows.append(row)
    split = recipe.held_out
    return (
        _table(["Source", "From", "Licence", *(f"Share in {p}" for p in lineage)], rows)
        + "\n\nShares are of tokens. Where a source has no official split, "
        f"{100 * split.validation:.4g} % of its documents are held out for validation and "
        f"{100 * split.test:.4g} % for testing, after the removal of duplicates."
    )


def _origin(source: Source) -> str:
    if source.hub:
        address = f"https://huggingface.co/datasets/{source.hub.id}"
        return f"[{source.hub.id}]({address}), {source.hub.config}, {source.hub.revision[:12]}"
    if source.files:
        return "local files"
    return f"documentation of a Python installation ({source.installed})"


def _share(phase: Phase, name: str, mixture: list[dict[str, Any]]) -> str:
    """Of what was drawn, where the mix is there; else as the recipe writes it."""
    rows = {row["name"]: row for row in mixture}
    if rows and name in rows and "weight" in rows[name]:
        share = float(Fraction(rows[name]["weight"]))
    else:
        share = mixture_shares(phase).get(name, 0.0)
    if not share:
        return "-"
    epochs = rows.get(name, {}).get("epochs")
    return f"{100 * share:.4g} %" + (f", {float(epochs):.3g} epochs" if epochs else "")


def _training(recipe: Recipe, lineage: list[str]) -> str:
    rows = []
    for name in lineage:
        phase = recipe.phases[name]
        start = "random weights" if phase.starts_from == INIT else phase.starts_from
        rows.append(
            [
                name,
                start,
                show_count(phase.total_tokens),
                f"{phase.steps:,} x {show_count(phase.batch_tokens)}",
                str(phase.seq_len),
                f"{phase.lr:g} to {phase.min_lr:g}, {phase.schedule}",
                phase.precision,
            ]
        )
    heads = ["Phase", "Starts from", "Tokens", "Steps", "Sequence", "Learning rate", "Precision"]
    return _table(heads, rows)


def _network(config: ModelConfig, facts: Facts) -> str:
    rows: list[list[Any]] = [
        ["Layers", config.n_layers],
        ["Width", config.d_model],
        ["Query heads / key-value heads", f"{config.n_heads} / {config.kv_heads}"],
        ["Head width", config.head_size],
        ["Feed-forward", f"SwiGLU, {config.d_ff}"],
        [
            "Norm",
            f"{config.norm}, eps {config.norm_eps:g}" + (", QK norm" if config.qk_norm else ""),
        ],
        ["Positions", _positions(config)],
        ["Context", f"{config.max_seq_len} tokens"],
        ["Vocabulary", f"{config.vocabulary:,}"],
        ["Output table", "the embedding's" if config.tie_embeddings else "its own"],
    ]
    if config.sliding_window is not None:
        rows.append(["Sliding window", f"{config.sliding_window} tokens"])
    if config.d_embed is not None:
        where = "multiplied out in this folder" if facts.native else "kept"
        rows.append(["Factorised embedding", f"{config.d_embed}, {where}"])
    if config.n_experts is not None:
        shared = " and a shared one" if config.shared_expert else ""
        rows.append(
            ["Experts", f"{config.n_experts_per_token} of {config.n_experts}{shared} in "
             f"{config.moe_layers} layers"]
        )  # fmt: skip
    rows += [
        [f"Parameters, {name.replace('_', '-')}", f"{facts.parameters[name]:,}"]
        for name in ("total", "active", "non_embedding")
    ]
    return _table(["", ""], rows)


def _positions(config: ModelConfig) -> str:
    rope = f"RoPE, base {config.rope_base:g}"
    if config.rope_scale != 1.0:
        rope += f", positions divided by {config.rope_scale:g}"
    return {"rope": rope, "alibi": "ALiBi", "rope+alibi": f"{rope}; ALiBi", "none": "none"}[
        config.positions
    ]


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
    return _table(["Set", "Bits per byte", "Perplexity (a token)", "Accuracy (a token)"], rows) + (
        "\n\nBits per byte compare across tokenizers; the other two do not."
    )


def _limits(facts: Facts) -> str:
    lines = [
        "It continues text. It was not trained to follow instructions, nor to refuse any.",
        "What it writes may be false, and repeats what its training text says and leaves out.",
        f"It sees at most {facts.architecture['max_seq_len']} tokens.",
    ]
    if not facts.native:
        lines.append("In transformers it needs `trust_remote_code=True`: read the code first.")
    return "\n".join(f"- {line}" for line in lines)


def _provenance(facts: Facts) -> str:
    rows = [
        ["Recipe", f"`{facts.recipe}`"],
        ["Checkpoint", f"`{facts.checkpoint}`"],
        ["Tokenizer", f"`{facts.tokenizer}`"],
    ]
    return _table(["", "SHA-256"], rows) + (
        f"\n\nThe weights are those after step {facts.step:,} of {facts.phase}. `pipeline.json` "
        "has the size and the SHA-256 of every file of this folder."
    )


def _table(heads: list[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
