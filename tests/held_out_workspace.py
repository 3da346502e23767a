"""A small workspace with held-out text for the tests of evaluation: the topics of Python's manual."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch

from model import Transformer
from tasks.data import documents
from tasks.evaluation.evaluate import evaluate
from tasks.recipe import Recipe, Split
from tasks.recipe_file import validate
from tasks.release.export import export
from tasks.tokens.encode import encode
from tasks.tokens.tokenizer import tokenizer
from tasks.training import checkpoint
from tasks.training.init import init
from tasks.training.state import load_network
from tasks.workspace import Workspace

RECIPE: dict[str, Any] = {
    "name": "topics",
    "description": "Two topics",
    "seed": 7,
    "sources": {name: {"files": {"train": ["*.txt"]}} for name in ("early", "late")},
    "dedup": {},
    "held_out": {},
    "tokenizer": {"vocab_size": 320},
    "model": {"d_model": 32, "n_layers": 2, "n_heads": 2, "d_ff": 64, "max_seq_len": 32},
    "training": {"seq_len": 32, "batch_tokens": 256},
    "phases": {
        "phase1": {"starts_from": "init", "tokens": 256, "mixture": {"early": 1}},
        "phase2": {"starts_from": "phase1", "tokens": 256, "mixture": {"late": 1}},
    },
    "evaluation": {"prompts": ["The "], "sampling": {"max_new_tokens": 8}},
    "release": {"phase": "phase1"},
}


def make_encoded(root: Path, **sections: Any) -> tuple[Workspace, Recipe]:
    """Two sources with three held-out topics a split, a tokenizer, tokens, an untrained network.

    ``sections`` replace whole sections of the recipe.
    """
    workspace, recipe = Workspace(root), validate(RECIPE | sections)
    texts = list(dict.fromkeys(topics[name][:600] for name in sorted(topics)))  # some come twice
    for source, chosen in (("early", texts[:30]), ("late", texts[30:60])):
        with documents.Writer(workspace.documents / source) as writer:
            for number, text in enumerate(chosen):
                split: Split = (
                    "test" if number % 10 == 0 else "validation" if number % 10 == 5 else "train"
                )
                writer.add(documents.Document.of(text, source, split, "{}"))
    tokenizer(workspace, recipe)
    for source in recipe.sources:
        encode(workspace, recipe, source)
    init(workspace, recipe)
    return workspace, recipe


def make_compared(root: Path) -> tuple[Workspace, Recipe]:
    """Two phases, exported and evaluated: phase1 is the untrained network, phase2 is much worse."""
    workspace, recipe = make_encoded(root)
    good = load_network(workspace.checkpoint("init"))
    bad = Transformer(replace(good.config, init_std=0.3), generator=torch.Generator())
    for phase, network in (("phase1", good), ("phase2", bad)):
        place(workspace, phase, model=bad, ema=network)
        export(workspace, recipe, phase)
        evaluate(workspace, recipe, phase)
    return workspace, recipe


def place(workspace: Workspace, phase: str = "phase1", **weights: Transformer) -> None:
    """Make checkpoints/<phase> of some networks."""
    tensors = {stem: dict(network.state_dict()) for stem, network in weights.items()}
    config = {"phasewise": weights["model"].config.to_dict()}
    state = {"phase": phase, "step": 1, "tokens": 256}
    checkpoint.save(workspace.checkpoint(phase), tensors, {"config": config, "state": state})
