"""The parts of a model card that come from the recipe and the export alone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from model import ModelConfig
from tasks.errors import UserError
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


def sources(recipe: Recipe, lineage: list[str]) -> dict[str, Source]:
    """The sources that any phase of the lineage drew from, in the recipe's order."""
    drawn = {
        name
        for phase in lineage
        for name, share in mixture_shares(recipe.phases[phase]).items()
        if share
    }
    return {name: source for name, source in recipe.sources.items() if name in drawn}


def summary(facts: Facts) -> str:
    """One paragraph: what kind of model, how large, trained on how much."""
    average = (
        "the exponential moving average of the weights"
        if facts.weights == "ema"
        else "the weights of the last step"
    )
    counts = facts.parameters
    size = f"{counts['total']:,} parameters ({counts['non_embedding']:,} outside the embeddings"
    if counts["active"] != counts["total"]:
        size += f", {counts['active']:,} active for a token"
    return (
        f"A causal language model of {size}), trained on {facts.total_tokens:,} tokens. "
        f"The folder holds {average}, in fp32."
    )


def use(recipe: Recipe, facts: Facts) -> str:
    """How to load it, by each program that opens it."""
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
    if llama_cpp(ModelConfig.from_dict(facts.architecture)):
        lines += ["phasewise gguf <folder>  # for llama.cpp, where it has this tokenizer too"]
    return "\n\n".join([note, python, "\n".join([*lines, "```"])])


def llama_cpp(config: ModelConfig) -> str | None:
    """The architecture of llama.cpp that computes this network; None where it has none."""
    from tasks.release.gguf_network import architecture

    try:
        return architecture(config)
    except UserError:
        return None


def data(recipe: Recipe, facts: Facts, lineage: list[str]) -> str:
    """Where its text comes from: a line a source, with its share in each phase."""
    rows = []
    for name, source in sources(recipe, lineage).items():
        row = [name, _origin(source), source.license]
        for phase in lineage:
            row.append(_share(recipe.phases[phase], name, facts.mixtures.get(phase, [])))
        rows.append(row)
    split = recipe.held_out
    return (
        table(["Source", "From", "Licence", *(f"Share in {p}" for p in lineage)], rows)
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


def training(recipe: Recipe, lineage: list[str]) -> str:
    """The phases as a table."""
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
    return table(heads, rows)


def network(config: ModelConfig, facts: Facts) -> str:
    """The network as a table."""
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
    return table(["", ""], rows)


def _positions(config: ModelConfig) -> str:
    rope = f"RoPE, base {config.rope_base:g}"
    if config.rope_scale != 1.0:
        rope += f", positions divided by {config.rope_scale:g}"
    return {"rope": rope, "alibi": "ALiBi", "rope+alibi": f"{rope}; ALiBi", "none": "none"}[
        config.positions
    ]


def provenance(facts: Facts) -> str:
    """Fingerprints of what it was made of."""
    rows = [
        ["Recipe", f"`{facts.recipe}`"],
        ["Checkpoint", f"`{facts.checkpoint}`"],
        ["Tokenizer", f"`{facts.tokenizer}`"],
    ]
    return table(["", "SHA-256"], rows) + (
        f"\n\nThe weights are those after step {facts.step:,} of {facts.phase}. `pipeline.json` "
        "has the size and the SHA-256 of every file of this folder."
    )


def table(heads: list[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
