"""The estimate of what a network costs is exact where it can be and near the measured peak elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import given, settings

from model import KVCache, ModelConfig, Transformer, count_parameters
from tasks.costs import (
    Step,
    block_bytes,
    cache_bytes,
    flops_a_token,
    keys_seen,
    matrix_weights,
    palm_flops_a_token,
    parts,
    training_bytes,
)
from tasks.training.measure import measure
from tests.places import ROOT
from tests.test_model_strategies import VOCABULARY, small_configs

HAIPAI = ModelConfig(
    d_model=384, n_layers=12, n_heads=6, d_ff=2048, max_seq_len=1024, vocab_size=50_000
)


def scaled(**values) -> ModelConfig:
    """Haipai's proportions, a few layers of them."""
    sizes = {"d_model": 256, "n_layers": 3, "n_heads": 4, "d_ff": 1024, "max_seq_len": 512}
    return ModelConfig(**sizes | {"vocab_size": 8000} | values)


@settings(max_examples=40, deadline=None)
@given(small_configs())
def test_the_parts_sum_to_the_parameters_of_the_network_that_is_built(config):
    assert sum(parts(config).values()) == sum(p.numel() for p in Transformer(config).parameters())


@settings(max_examples=40, deadline=None)
@given(small_configs())
def test_the_cache_is_as_large_as_the_estimate_says(config):
    import torch

    assert KVCache(config, 3, 7, dtype=torch.float32).nbytes == cache_bytes(config, 3, 7, "fp32")
    assert cache_bytes(config, 3, 7) * 2 == cache_bytes(config, 3, 7, "fp32")


@settings(max_examples=40, deadline=None)
@given(small_configs())
def test_a_token_passes_every_matrix_but_the_embedding_and_the_idle_experts(config):
    """Weights of two dimensions, less the looked-up table and what the router left out."""
    model = Transformer(config)
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    looked_up = 0 if config.tie_embeddings else VOCABULARY * config.embed_size
    counts = count_parameters(config)
    assert matrix_weights(config) == matrices - looked_up - (counts["total"] - counts["active"])


def test_a_window_and_causal_order_hide_keys():
    assert keys_seen(4, None) == (1 + 2 + 3 + 4) / 4
    assert keys_seen(4, 2) == (1 + 2 + 2 + 2) / 4
    assert keys_seen(4, 9) == keys_seen(4, None)
    windowed = replace(HAIPAI, sliding_window=100)
    assert flops_a_token(windowed, 1024) < flops_a_token(HAIPAI, 1024)
    attention = 12 * 12 * 6 * 64
    assert palm_flops_a_token(HAIPAI, 1024) == 6 * matrix_weights(HAIPAI) + attention * 1024
    assert palm_flops_a_token(windowed, 1024) == 6 * matrix_weights(HAIPAI) + attention * 100


def test_flops_are_those_that_torch_counts():
    """torch's own counter, on the forward and the backward pass of logits: all but hidden keys."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    config = scaled(n_layers=2, n_kv_heads=2, d_embed=64)
    model = Transformer(config)
    ids = torch.zeros(1, 128, dtype=torch.long)
    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model(ids).sum().backward()
    assert counter.get_total_flops() == 128 * palm_flops_a_token(config, 128)


def test_recomputing_keeps_less_and_sharing_heads_keeps_less():
    step = Step(4, 512)
    assert (
        training_bytes(HAIPAI, step)["layers"]
        > 3 * (training_bytes(HAIPAI, replace(step, recompute=True))["layers"])
    )
    assert block_bytes(replace(HAIPAI, n_kv_heads=1), step, 0) < block_bytes(HAIPAI, step, 0)
    with_ema = training_bytes(HAIPAI, replace(step, ema=True))
    assert with_ema["ema"] == 4 * 54_599_040
    assert with_ema["total"] == sum(n for part, n in with_ema.items() if part != "total")


MEASURED = {
    "dense bf16, gradients accumulated": (scaled(), Step(2, 512, accumulates=True)),
    "recompute": (scaled(n_layers=5), Step(4, 512, "fp32", recompute=True)),
    "grouped heads and a window": (scaled(n_kv_heads=1, sliding_window=99), Step(3, 512, "fp32")),
    "experts": (scaled(n_experts=4, moe_layers="odd"), Step(2, 512, "fp32")),
    "more weights than activations, EMA": (scaled(d_model=512, n_heads=8), Step(1, 64, ema=True)),
    "a large vocabulary": (scaled(n_layers=1, vocab_size=30_000), Step(2, 512)),
}


@pytest.fixture(scope="module")
def measured():
    """The peak of each, two children at a time."""
    with ThreadPoolExecutor(2) as pool:
        return dict(
            zip(MEASURED, pool.map(lambda case: measure(*case, steps=2), MEASURED.values()))
        )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured by /proc")
@pytest.mark.parametrize("name", MEASURED)
def test_the_estimate_is_within_15_percent_of_the_measured_peak(name, measured):
    expected = training_bytes(*MEASURED[name])["total"]
    assert expected == pytest.approx(measured[name]["peak_bytes"], rel=0.15)


def test_profile_prints_the_parts_and_json(tmp_path):
    def profile(*arguments):
        return subprocess.run(
            [sys.executable, "-c", "from tasks.cli import main; main()", "profile", *arguments],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip

    made = json.loads(profile("demo", "--batch", "2", "--json").stdout)
    assert made["parameters"]["total"] == sum(made["parameters"]["parts"].values())
    assert made["memory"]["total"] > 12 * made["parameters"]["total"]
    wrong = profile("demo", "--seq-len", "9999999")
    assert wrong.returncode == 2 and "max_seq_len" in wrong.stderr
    wrong = profile("demo", "--precision", "fp8")
    assert wrong.returncode == 2 and "bf16" in wrong.stderr
    (tmp_path / "config.json").write_text("{}")
    assert profile(str(tmp_path)).returncode == 65
