"""A finished workspace with all that a report can tell: errors, baselines, generation, benchmarks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from tasks.files import read_json, write_json
from tasks.recipe import Recipe
from tasks.workspace import Workspace
from tests.release_workspace import BITS, make_workspace

DOCUMENTS = 40
UNIGRAM, FIVE_GRAM = 4.4321, 2.6543  # bits per byte
PROMPTS = ("Return the ", "If the file ")
REASON = "better than @champion (0.0310 ± 0.0071 bits per byte, p 0.002, 2 sets)"
GATE = {
    "verdict": "champion",
    "reason": REASON,
    "champion": "7",
    "compared_with": "6",
    "comparison": {
        "sets": {
            "stdlib/test": {"champion": 1.9678, "difference": -0.0385, "se": 0.0072},
            "packages/test": {"champion": 1.7567, "difference": -0.0093, "se": 0.0061},
        }
    },
}


def make_whole(root: Path) -> tuple[Workspace, Recipe]:
    """A registered run with every file that the stages write."""
    workspace, recipe = make_workspace(root, tracked=False)
    for phase in BITS:
        write_scores(workspace, phase)
        write_baselines(workspace, phase)
        write_generation(workspace, phase)
    write_benchmarks(workspace)
    write_registration(workspace, **GATE)
    return workspace, recipe


def write_registration(workspace: Workspace, **more: Any) -> None:
    registration = {
        "name": "demo",
        "version": "7",
        "alias": "champion",
        "uri": "models:/demo@champion",
        "phase": "phase2",
        "weights": "ema",
        "export": "e" * 64,
        "run_id": "r" * 32,
        "experiment_id": "1",
        "tracking_uri": "sqlite:///mlflow.db",
    }
    write_json(workspace.registration, registration | more)


def nats_of(bits: float, sizes: np.ndarray, seed: int) -> np.ndarray:
    """Nats of documents of these sizes that come to ``bits`` per byte; noisy, the same each time."""
    noise = np.random.default_rng(seed).normal(1.0, 0.15, len(sizes))
    nats = sizes * bits * math.log(2) * noise
    return nats * (bits * math.log(2) * sizes.sum() / nats.sum())


def write_scores(workspace: Workspace, phase: str) -> None:
    """Standard errors beside the figures, and the documents' scores that they come from."""
    from tasks.evaluation.bootstrap import standard_error

    path = workspace.evaluation(phase)
    figures, arrays = read_json(path), {}
    sizes = np.arange(1, DOCUMENTS + 1) * 100
    for name, by_weights in figures.items():
        arrays[f"{name}:bytes"] = sizes
        arrays[f"{name}:tokens"] = sizes // 3
        arrays[f"{name}:id"] = np.array([f"{name}{n:032}".encode()[-32:] for n in sizes], "S32")
        for weights, scores in by_weights.items():
            nats = nats_of(scores["bits_per_byte"], sizes, seed=len(name))
            nats = nats + np.sin(np.arange(len(sizes)) + len(phase)) * 2  # that no document repeats
            nats *= scores["bits_per_byte"] * math.log(2) * sizes.sum() / nats.sum()
            arrays[f"{name}:nats:{weights}"] = nats
            arrays[f"{name}:correct:{weights}"] = sizes // 10
            scores["bits_per_byte_se"] = standard_error(nats, sizes)
            scores["word_perplexity"] = 2 ** (6 * scores["bits_per_byte"])
    write_json(path, figures)
    with open(path.with_suffix(".documents.npz"), "wb") as file:
        np.savez(file, **arrays)


def write_baselines(workspace: Workspace, phase: str) -> None:
    kinds = {"unigram": UNIGRAM, "5-gram": FIVE_GRAM}
    figures = {
        name: {k: {"bits_per_byte": b, "perplexity": 2**b} for k, b in kinds.items()}
        for name in BITS[phase]
    }
    write_json(workspace.evaluation(phase, "baselines.json"), figures)


def write_generation(workspace: Workspace, phase: str) -> None:
    samples = [
        {"prompt": p, "text": f"{phase} wrote this with {w} weights.", "weights": w, "seed": seed}
        for p in PROMPTS
        for w in ("raw", "ema")
        for seed in (0, 1)
    ]
    rates = {"prefill_tokens_per_second": 41_234.0, "decode_tokens_per_second": 876.5}
    measures = {"distinct_1": 0.41, "distinct_2": 0.77, "repetition_rate": 0.031,
                "memorised_share": 0.0123}  # fmt: skip
    found = {
        "samples": samples,
        "measures": {"raw": measures, "ema": measures, "held_out": measures | {"texts": 9}},
        "settings": {"memorised_span": 50},
        "speed": {
            "hardware": "2 cores of a test",
            "batch_1": rates,
            "batch_8": rates,
            "peak_memory_bytes": 123_456_789,
        },
    }
    write_json(workspace.evaluation(phase, "generation.json"), found)


def write_benchmarks(workspace: Workspace) -> None:
    task = {"metric": "accuracy", "n": 800, "harness": "lm-eval 0.4.9"}
    found = {
        "blimp": task | {"value": 0.6125, "se": 0.0172, "chance": 0.5},
        "hellaswag": task | {"value": 0.2562, "se": 0.0154, "chance": 0.25},
    }
    write_json(workspace.evaluation("benchmarks"), found)
