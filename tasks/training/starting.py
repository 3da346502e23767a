"""The network that a phase trains: that of the checkpoint it starts from, which is the recipe's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from model import ModelConfig
from tasks.errors import UserError
from tasks.files import read_json, sha256_file
from tasks.recipe import IMPORTED, Recipe
from tasks.workspace import Workspace

# what a recipe may choose anew for imported weights: it acts in training alone
TRAINING_ONLY = (
    "embed_dropout", "attn_dropout", "resid_dropout", "init", "init_std", "balance_loss",
    "router_z_loss", "moe_capacity_factor",
)  # fmt: skip


def starting_config(workspace: Workspace, recipe: Recipe, phase: str) -> ModelConfig:
    """The network that a phase trains: that of the checkpoint it starts from.

    Of an import it is the recipe's, which may differ in what acts in training alone. Raises
    UserError that shows the fields in which they differ otherwise (of a checkpoint of ours: it was
    made before the recipe was changed), or where an import brought another tokenizer.
    """
    start = recipe.phases[phase].starts_from
    parent = workspace.checkpoint(start)
    given = ModelConfig.from_dict(read_json(parent / "config.json")["phasewise"])
    words = read_json(workspace.tokenizer / "report.json")
    asked = replace(recipe.model, vocab_size=words["vocab_size"])
    there, here = _computed(given), _computed(asked)
    off = [
        f"model.{key}: {there.get(key)!r} there, {here.get(key)!r} here"
        for key in asked.to_dict()
        if there.get(key) != here.get(key)
    ]
    imported = start.startswith(IMPORTED)
    own = parent / "tokenizer.json"
    if imported and own.exists() and sha256_file(own) != words["fingerprint"]:
        off.append("tokenizer.json: another one, so ids mean other words")
    if off:
        raise UserError(
            f"{start} is another network than the recipe's: {'; '.join(off)}",
            where=f"params.yaml: phases.{phase}.starts_from",
            hint="set the recipe's model and tokenizer to what was imported"
            if imported
            else f"make it again: dvc repro train@{phase}",
        )
    return asked if imported else given


def _computed(config: ModelConfig) -> dict[str, Any]:
    """The fields that make a network compute what it does, by what they stand for."""
    values = config.to_dict() | {"n_kv_heads": config.kv_heads, "head_dim": config.head_size}
    idle = [*TRAINING_ONLY]
    if config.n_experts is None:
        idle += ["n_experts_per_token", "moe_layers", "router_temperature"]
    return {key: value for key, value in values.items() if key not in idle}
