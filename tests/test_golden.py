"""Golden losses: a change that is not meant to change the mathematics changes none of these.

Every recipe's own architecture, optimizer and schedule, at a width that a test can afford, for 20 steps
on fixed ids. To accept a change of the mathematics, say so in the commit and write the file anew:

    python -m tests.test_golden
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from model import Transformer
from tasks import recipe as recipes
from tasks.recipe import Phase
from tasks.training.device import Device
from tasks.training.ema import EMA
from tasks.training.loop import train
from tasks.training.optimizer import build_optimizer
from tasks.training.state import TrainState
from tests.places import ROOT

GOLDEN = ROOT / "tests/golden_losses.json"
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
VOCABULARY, SEQ_LEN, STEPS = 512, 32, 20


class Text:
    """Ids with something to learn: each follows from the one before, mostly."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        follows = random.permutation(VOCABULARY)
        ids = [0]
        for _ in range(200_000):
            sure = random.random() < 0.8
            ids.append(int(follows[ids[-1]]) if sure else int(random.integers(VOCABULARY)))
        self.ids = np.array(ids, np.int64)

    def samples(self, first: int, count: int, *, documents: bool = True) -> Any:
        rows = [self.ids[i * SEQ_LEN : (i + 1) * SEQ_LEN + 1] for i in range(first, first + count)]
        return SimpleNamespace(tokens=np.stack(rows), document_ids=None)


def small(path: Path) -> tuple[Transformer, Phase]:
    """A recipe's network and last phase, scaled down."""
    recipe = recipes.load(path)
    heads = recipe.model.n_heads
    config = replace(
        recipe.model,
        vocab_size=VOCABULARY,
        n_layers=2,
        d_model=heads * 16,
        d_ff=heads * 32,
        d_embed=recipe.model.d_embed and heads * 8,
        max_seq_len=SEQ_LEN,
    )
    last = recipe.phases[recipe.phases_in_order()[-1]].model_dump()
    batch = 8 * SEQ_LEN
    last |= {"seq_len": SEQ_LEN, "batch_tokens": batch, "tokens": STEPS * batch}
    last |= {"warmup_tokens": 4 * batch, "precision": "fp32"}
    torch.manual_seed(recipe.seed)
    return Transformer(config), Phase(**last)


def losses(path: Path) -> list[float]:
    network, phase = small(path)
    device = Device(torch.device("cpu"), torch.float32)
    state = TrainState(
        phase="golden",
        settings=phase,
        device=device,
        model=network,
        optimizer=build_optimizer(network, phase.optimizer, phase.lr),
        scaler=device.scaler(),
        ema=EMA(network, phase.ema_decay) if phase.ema_decay else None,
    )
    seen: list[float] = []
    reader: Any = Text()
    train(state, reader, 4, 0, lambda _, report: not seen.append(report.loss))  # type: ignore[func-returns-value]
    return [round(loss, 5) for loss in seen]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_the_losses_are_those_of_the_golden_run(path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())[path.stem]
    torch.set_num_threads(1)
    assert losses(path) == pytest.approx(golden, rel=2e-4)
    assert golden[-1] < golden[0]


if __name__ == "__main__":
    torch.set_num_threads(1)
    GOLDEN.write_text(json.dumps({p.stem: losses(p) for p in RECIPES}, indent=1) + "\n")
