"""What is logged of a mixture of experts."""

from __future__ import annotations

import math

import pytest
import torch

from model import ModelConfig, Transformer
from tasks.registry.feed import points
from tasks.training.routing import RoutingLog

N_EXPERTS = 4


def network() -> Transformer:
    torch.manual_seed(0)
    config = ModelConfig(
        d_model=16, n_layers=4, n_heads=2, d_ff=32, max_seq_len=8, vocab_size=50,
        n_experts=N_EXPERTS, moe_layers="odd", moe_capacity_factor=1.0, init_std=0.5,
    )  # fmt: skip
    return Transformer(config).train()


def test_a_step_in_micro_batches_logs_what_one_batch_logs() -> None:
    model, tokens = network(), torch.randint(50, (8, 9))
    logs = []
    for micro_batch in (8, 2):
        log = RoutingLog()
        for rows in tokens.split(micro_batch):
            log.add(model.loss(rows[:, :-1], rows[:, 1:])[2])
        logs.append(log.figures(batch_tokens=64))
    whole, parts = logs
    assert parts.keys() == whole.keys()
    for name in whole.keys() - {"expert_load"}:
        assert parts[name] == pytest.approx(whole[name], rel=1e-5), name
    assert torch.tensor(parts["expert_load"]).allclose(torch.tensor(whole["expert_load"]))


def test_loads_are_shares_and_a_full_expert_drops() -> None:
    model = network()
    log = RoutingLog()
    tokens = torch.randint(50, (8, 9))
    log.add(model.loss(tokens[:, :-1], tokens[:, 1:])[2])
    figures = log.figures(batch_tokens=64)
    loads = figures["expert_load"]
    assert len(loads) == 2 and all(len(layer) == N_EXPERTS for layer in loads)
    assert all(math.isclose(sum(layer), 1, abs_tol=1e-4) for layer in loads)
    largest = max(max(layer) for layer in loads)
    assert figures["expert_load_max"] == pytest.approx(N_EXPERTS * largest, rel=1e-3)
    assert figures["expert_load_max"] > 1 < figures["balance_loss"]
    # beyond its even share an expert has no room, so an uneven load must drop
    assert 0 < figures["expert_dropped"] < 1


def test_a_dense_network_logs_nothing_of_experts_and_a_sparse_one_reaches_the_charts() -> None:
    log = RoutingLog()
    log.add({})
    assert log.figures(batch_tokens=64) == {}
    record = {"kind": "train", "tokens": 64, "time": 1.0, "loss": 2.0, "expert_dropped": 0.25}
    assert {point.name for point in points([record], 0)} == {"train/loss", "train/expert_dropped"}


def test_gradient_norms_by_layer_reach_the_charts() -> None:
    norms = {"layers.0": 0.5, "embed_tokens": 2.0}
    record = {"kind": "layers", "step": 1, "tokens": 64, "time": 1.0, "grad_norms": norms}
    found = {point.name: (point.value, point.step) for point in points([record], 100)}
    assert found == {"grad_norm/layers.0": (0.5, 164), "grad_norm/embed_tokens": (2.0, 164)}
