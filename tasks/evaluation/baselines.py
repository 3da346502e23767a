"""Stage `baselines`: what counting alone predicts, for the figures of a phase to stand beside.

    tokens that the phase and its parents drew -> unigrams, 5-grams (tasks/evaluation/ngram.py)
        x data/tokens/*/{validation,test} -> evaluation/<phase>.baselines.json

They are fitted on the targets that the network learnt from, each token once, up to
`evaluation.baseline_tokens`, and score the sets that `evaluate` scores, each token from those
before it in its document, the first from an EOS. A network that does not beat the 5-grams has
learnt less than a table of counts.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tasks import stage
from tasks.evaluation.drawn import Drawn, drawn
from tasks.evaluation.evaluate import Figures, sets_to_score, table
from tasks.evaluation.ngram import Ngram
from tasks.evaluation.scoring import Score
from tasks.files import write_json
from tasks.recipe import Recipe
from tasks.tokens.mixture import load_mix
from tasks.training.validate import HeldOutSet
from tasks.units import show_count
from tasks.workspace import Workspace

ORDERS = {"unigram": 1, "5-gram": 5}


def baselines(workspace: Workspace, recipe: Recipe, phase: str) -> None:
    """Write evaluation/<phase>.baselines.json: set -> model -> bits_per_byte, perplexity and the
    training_tokens that it was counted from.

    Raises UserError where there is no held-out text, or where shards, mixes or the checkpoint are
    missing or do not belong together.
    """
    plan, mix = recipe.evaluation, load_mix(workspace.mix(phase))
    sets = sets_to_score(workspace, recipe)
    tokens, runs = together(drawn(workspace, recipe, phase, plan.baseline_tokens))
    figures: Figures = {held_out.name: {} for held_out in sets}
    for name, order in ORDERS.items():
        model = Ngram.fit(tokens, runs, mix.vocab_size, mix.eos_id, order)
        for held_out in sets:
            result = score(model, held_out, alone=plan.documents == "alone")
            figures[held_out.name][name] = {
                "bits_per_byte": result.bits_per_byte,
                "perplexity": result.perplexity,
                "training_tokens": len(tokens),
            }
    write_json(workspace.evaluation(phase, "baselines.json"), figures)
    print(f"    counted from {show_count(len(tokens))} tokens")
    print(table(figures))


def together(parts: list[Drawn]) -> tuple[np.ndarray, np.ndarray]:
    """All tokens that were drawn (N,) and the length of each unbroken run of them (R,)."""
    tokens: list[Any] = [run for part in parts for run in part.read()]
    runs = np.concatenate([part.stops - part.starts for part in parts])
    return np.concatenate(tokens), runs


def score(model: Ngram, held_out: HeldOutSet, alone: bool = False) -> Score:
    """How well a model predicts a set: sums over its tokens, without each EOS where ``alone``."""
    tokens = np.concatenate([[model.eos_id], held_out.tokens])
    nats = -np.log(model.probabilities(tokens)[1:])
    if alone:
        nats = nats[held_out.tokens != model.eos_id]
    return Score(float(nats.sum()), len(nats), 0, held_out.text_bytes)


if __name__ == "__main__":
    stage.main(baselines, "phase")
