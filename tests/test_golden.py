"""Golden losses: a change that is not meant to change the mathematics changes none of these.

Every recipe's own architecture, optimizer and schedule, at a width that a test can afford, for 20 steps
on fixed ids; and what was trained is exported and opened again. Two layers, 8 dimensions a head and
a quarter of the text for a sliding window: heads, experts and ratios are the recipe's. To accept a
change of the mathematics, say so in the commit and write the file anew:

    python -m tests.test_golden
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from model import ModelConfig, Transformer
from tasks import recipe as recipes
from tasks.recipe import Phase
from tasks.release.export import export, verify_export
from tasks.release.native import load_export
from tasks.training.device import Device
from tasks.training.loop import train
from tasks.training.state import TrainState
from tests.places import ROOT
from tests.test_release_export import place, recipe_of, tokenizer

__all__ = ["tokenizer"]  # a fixture
LLAMA = "LlamaForCausalLM"
CLASSES = {"mini": "StableLmForCausalLM", "h64lm": "PhasewiseForCausalLM"}  # by family
GOLDEN = ROOT / "tests/golden_losses.json"
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
VOCABULARY, SEQ_LEN, STEPS = 512, 32, 20


class Text:
    """Ids with something to learn: each follows from the one before, mostly."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        follows = random.permutation(VOCABULARY)
        ids = [0]
        for _ in range(STEPS * 8 * SEQ_LEN):
            sure = random.random() < 0.8
            ids.append(int(follows[ids[-1]]) if sure else int(random.integers(VOCABULARY)))
        self.ids = np.array(ids, np.int64)

    def samples(self, first: int, count: int, *, documents: bool = True) -> Any:
        rows = [self.ids[i * SEQ_LEN : (i + 1) * SEQ_LEN + 1] for i in range(first, first + count)]
        tokens = np.stack(rows)
        return SimpleNamespace(tokens=tokens, targets=tokens[:, 1:], document_ids=None)


def small(path: Path) -> tuple[Transformer, Phase]:
    """A recipe's network and last phase, scaled down."""
    recipe = recipes.load(path)
    full, width = recipe.model, recipe.model.n_heads * 8
    config = replace(
        full,
        vocab_size=VOCABULARY,
        n_layers=2,
        d_model=width,
        d_ff=full.d_ff * width // full.d_model,
        d_embed=full.d_embed and full.d_embed * width // full.d_model,
        max_seq_len=SEQ_LEN,
        sliding_window=full.sliding_window and SEQ_LEN // 4,
    )
    last = recipe.phases[recipe.phases_in_order()[-1]].model_dump()
    batch = 8 * SEQ_LEN
    last |= {"seq_len": SEQ_LEN, "batch_tokens": batch, "tokens": STEPS * batch}
    last |= {"warmup_tokens": 4 * batch, "precision": "fp32", "select": "last"}
    torch.manual_seed(recipe.seed)
    return Transformer(config), Phase(**last)


@cache
def trained(path: Path) -> tuple[Transformer, list[float]]:
    """A recipe's network after 20 steps, and the loss of each."""
    network, phase = small(path)
    device = Device(torch.device("cpu"), torch.float32)
    state = TrainState.build("golden", phase, device, network)
    seen: list[float] = []
    reader: Any = Text()
    train(state, reader, 4, 0, lambda _, report: not seen.append(report.loss))  # type: ignore[func-returns-value]
    return network, [round(loss, 5) for loss in seen]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_the_losses_are_those_of_the_golden_run(path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())[path.stem]
    torch.set_num_threads(1)
    assert trained(path)[1] == pytest.approx(golden, rel=2e-4)
    assert golden[-1] < golden[0]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_the_trained_network_is_exported_and_opens_with_the_same_logits(
    path: Path, tokenizer: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    network = trained(path)[0].eval()
    workspace = place(tmp_path, tokenizer, network)
    export(workspace, recipe_of(release={"phase": "phase2", "weights": "raw"}), "phase2")
    manifest = verify_export(workspace.export("phase2"))
    assert manifest["transformers_class"] == CLASSES.get(path.stem.split("-")[0], LLAMA)
    assert ModelConfig.from_dict(manifest["architecture"]) == network.config
    ids = torch.from_numpy(Text().ids[: 4 * SEQ_LEN]).view(4, SEQ_LEN)
    with torch.no_grad():
        expected, found = network(ids), load_export(workspace.export("phase2"))(ids)
    assert expected.std() > 0.1, "logits near zero would agree with anything"
    assert (found - expected).abs().max() <= 1e-4 * max(1.0, expected.abs().max().item())


if __name__ == "__main__":
    torch.set_num_threads(1)
    GOLDEN.write_text(json.dumps({p.stem: trained(p)[1] for p in RECIPES}, indent=1) + "\n")
