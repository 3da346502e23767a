"""What a recipe will take: an estimate of every cost, each with how it was reached."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from model.config import ModelConfig
from model.counts import count_parameters
from tasks.costs import FLOPS_FORMULA, Step, flops_a_token, training_bytes
from tasks.files import read_json
from tasks.recipe import Phase, Recipe
from tasks.recipe_mixture import mixture_shares
from tasks.settings import settings
from tasks.training.schedule import lr_at
from tasks.workspace import Workspace

MANY_EPOCHS = 4  # Muennighoff et al. 2023: up to 4 passes are nearly as good as fresh text
ASSUMED_UTILISATION = 0.3  # of the measured matrix rate, where no phase was trained here yet


def plan(workspace: Workspace, recipe: Recipe, measure: bool) -> dict[str, Any]:
    """The plan of a recipe as JSON values; sizes in tokens, bytes, FLOPs and seconds.

    Args:
        measure: time a matrix product on this device (imports torch) for the expected time.
    """
    config = recipe.model_config_with_vocab
    parameters = count_parameters(config)
    speed = _speed(workspace, recipe, measure)
    phases: dict[str, Any] = {}
    for name in recipe.phases_in_order():
        phase = recipe.phases[name]
        flops = flops_a_token(config, phase.seq_len) * phase.total_tokens
        seconds = flops / speed["flops_per_second"] if speed["flops_per_second"] else None
        phases[name] = {
            "starts_from": phase.starts_from,
            "tokens": phase.total_tokens,
            "steps": phase.steps,
            "batch_tokens": phase.batch_tokens,
            "seq_len": phase.seq_len,
            "lr": {
                "peak": phase.lr,
                "end": lr_at(phase, phase.steps - 1),
            },
            "flops": flops,
            "expected_seconds": seconds,
            "sources": _sources(workspace, phase),
        }
    return {
        "name": recipe.name,
        "fingerprint": recipe.fingerprint,
        "parameters": dict(parameters),
        "tokens_per_parameter": sum(p["tokens"] for p in phases.values()) / parameters["total"],
        "phases": phases,
        "flops_formula": FLOPS_FORMULA,
        "memory": memory_bytes(recipe, config),
        "disk": _disk(workspace, recipe, parameters["total"]),
        "speed": speed,
    }


def memory_bytes(recipe: Recipe, config: ModelConfig) -> dict[str, int]:
    """Expected peak memory of the longest phase, by part (``costs.training_bytes``)."""
    from tasks.training.device import micro_batch_size

    phase = max(recipe.phases.values(), key=lambda p: p.seq_len)
    batch = micro_batch_size(settings(), phase)
    step = Step(
        batch=batch,
        seq_len=phase.seq_len,
        precision=phase.precision,
        recompute=phase.recompute,
        ema=phase.ema_decay is not None,
        accumulates=batch < phase.batch_size,
        documents=phase.document_mask,
    )
    return training_bytes(config, step)


def _sources(workspace: Workspace, phase: Phase) -> dict[str, Any]:
    sources = {}
    for name, share in mixture_shares(phase).items():
        tokens = phase.total_tokens * share
        available = _encoded_tokens(workspace.tokens(name) / "manifest.json")
        sources[name] = {
            "weight": share,
            "tokens": round(tokens),
            "tokens_available": available,
            "epochs": tokens / available if available else None,
        }
    return sources


def _encoded_tokens(manifest: Path) -> int | None:
    if not manifest.exists():
        return None
    return int(read_json(manifest)["splits"].get("train", {}).get("tokens", 0)) or None


def _disk(workspace: Workspace, recipe: Recipe, parameters: int) -> dict[str, int]:
    """Text three times over (raw, clean, documents; zstd halves it), tokens, and checkpoints."""
    text = sum(source.max_bytes or 0 for source in recipe.sources.values())
    checkpoint = parameters * 4 * 4
    kept = settings().keep_checkpoints + 1
    expected = int(text * 1.5 + text / 2) + len(recipe.phases) * (
        checkpoint * kept + parameters * 4
    )
    return {"expected": expected, "free": shutil.disk_usage(workspace.root).free}


def _speed(workspace: Workspace, recipe: Recipe, measure: bool) -> dict[str, Any]:
    """FLOPs a second to expect: of a phase already trained here, else of a measured product."""
    for name in recipe.phases:
        summary = workspace.metrics(name) / "summary.json"
        if summary.exists():
            rate = read_json(summary)["tokens_per_second"]
            flops = flops_a_token(recipe.model_config_with_vocab, recipe.phases[name].seq_len)
            return {"flops_per_second": rate * flops, "how": f"from {name} as trained here"}
    if not measure:
        return {"flops_per_second": None, "how": "not measured"}
    from tasks.training.device import matrix_flops, open_device

    device = open_device(settings(), next(iter(recipe.phases.values())).precision)
    rate = matrix_flops(device) * ASSUMED_UTILISATION
    return {
        "flops_per_second": rate,
        "how": f"{ASSUMED_UTILISATION:.0%} of a matrix product measured on {device.describe()}",
    }
