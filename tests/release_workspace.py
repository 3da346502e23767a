"""A small finished workspace for the tests of the release: two phases, two sources, every file."""

from __future__ import annotations

import atexit
import json
import math
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from tasks import recipe as recipes
from tasks.files import read_json, sha256_file, write_json
from tasks.ledger import Ledger, write_ledgers
from tasks.recipe import Recipe
from tasks.workspace import Workspace
from tests.places import ROOT

STARTED = 1_700_000_000.0
STEPS = {"phase1": 40, "phase2": 20}
BATCH_TOKENS = 8192
BITS = {  # phase -> set -> raw, ema: every figure another one, so that each can be looked for
    "phase1": {
        "stdlib/validation": (2.1111, 2.1011),
        "stdlib/test": (2.2222, 2.2022),
        "packages/validation": (1.8181, 1.8081),
        "packages/test": (1.7171, 1.7071),
    },
    "phase2": {
        "stdlib/validation": (1.9191, 1.9091),
        "stdlib/test": (1.9393, 1.9293),
        "packages/validation": (1.8484, 1.8384),
        "packages/test": (1.7575, 1.7474),
    },
}


@cache
def empty_database() -> Path:
    """An MLflow database with its tables and nothing in them: made once, then copied."""
    from mlflow import MlflowClient

    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()
    return folder / "mlflow.db"


def make_workspace(root: Path, *, tracked: bool = True) -> tuple[Workspace, Recipe]:
    """Fill ``root`` with everything up to the evaluation, but no exports."""
    root.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "recipes/demo.yaml", root / "params.yaml")
    if tracked:
        shutil.copy(empty_database(), root / "mlflow.db")
    workspace, recipe = Workspace(root), recipes.load(root / "params.yaml")
    write_data(workspace)
    for phase in STEPS:
        write_mix(workspace, phase)
        write_history(workspace.metrics(phase), phase)
        write_evaluation(workspace, phase)
    return workspace, recipe


def history(phase: str, steps: int | None = None) -> list[dict[str, Any]]:
    """The records of a phase's first ``steps`` steps (default: all, and its end)."""
    total, before = STEPS[phase], 0 if phase == "phase1" else STEPS["phase1"]
    header = {
        "kind": "run",
        "phase": phase,
        "recipe": "demo",
        "fingerprint": f"{phase:0<16}",
        "run_key": f"demo/{phase}/{phase:0<16}",
        "parent": None if before == 0 else f"demo/phase1/{'phase1':0<16}",
        "total_steps": total,
        "total_tokens": total * BATCH_TOKENS,
        "tokens_before": before * BATCH_TOKENS,
        "batch_tokens": BATCH_TOKENS,
        "time": STARTED + before,
    }
    records: list[dict[str, Any]] = [header]
    for step in range(1, (steps or total) + 1):
        where = {"step": step, "tokens": step * BATCH_TOKENS, "time": STARTED + before + step}
        loss = 3 + 5 * math.exp(-(before + step) / 15)
        figures = {"loss": loss, "lr": 3e-3 * (1 - step / (total + 1)), "grad_norm": 1 / step}
        records.append({"kind": "train", **where, **figures, "tokens_per_second": 20_000.0 + step})
        if step % (total // 4) == 0:
            for name, bits in BITS[phase].items():
                if name.endswith("/validation"):
                    for weights, value in zip(("raw", "ema"), bits, strict=True):
                        value += (total - step) / 50
                        scores = {"bits_per_byte": value, "loss": 2 * value, "perplexity": 9.0}
                        place = {"set": name, "weights": weights, "accuracy": 0.25}
                        records.append({"kind": "validation", **where, **place, **scores})
            records.append({"kind": "sample", **where, "prompt": "If ", "text": f"then {step}"})
    if steps is None:
        end = {"event": "finished", "step": total, "time": STARTED + before + total}
        records.append({"kind": "event", **end})
    return records


def write_history(folder: Path, phase: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    append(folder / "history.jsonl", history(phase))
    summary = {
        "steps": STEPS[phase],
        "tokens": STEPS[phase] * BATCH_TOKENS,
        "loss": 3.25,
        "tokens_per_second": 20_010.0,
        "seconds": 16.4,
        "memory_bytes": None,
        "skipped_steps": 0,
        "resumed": 1,
    }
    write_json(folder / "summary.json", summary)


def append(path: Path, records: list[dict[str, Any]]) -> None:
    with open(path, "a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def write_evaluation(workspace: Workspace, phase: str) -> None:
    figures = {
        name: {
            weights: {"bits_per_byte": b, "perplexity": 2**b, "loss": b, "accuracy": 0.3}
            for weights, b in zip(("raw", "ema"), bits, strict=True)
        }
        for name, bits in BITS[phase].items()
    }
    write_json(workspace.evaluation(phase), figures)
    sample = {"prompt": "Return the ", "text": f"sum of {phase} & <b>", "weights": "ema"}
    held_out = {"fingerprint": "f" * 64, "documents": 5, "tokens": 999, "text_bytes": 4000}
    details = {
        "sets": {name: held_out | {"tokens_scored": 990} for name in figures},
        "seq_len": 256,
        "stride": 256,
        "weights": ["raw", "ema"],
    }
    path = workspace.evaluation(phase)
    write_json(path.with_suffix(".details.json"), details)
    write_json(path.with_suffix(".generation.json"), {"samples": [sample], "measures": {}})


def write_mix(workspace: Workspace, phase: str) -> None:
    sources = [
        {"name": name, "weight": w, "tokens": 70_000, "windows": 200, "epochs": 1.5}
        | {"fingerprint": f"{name:0<64}"}
        for name, w in (("stdlib", "1/5"), ("packages", "4/5"))
    ]
    mix = {"version": 1, "phase": phase, "seed": 42, "seq_len": 256, "samples": 400, "period": 5}
    write_json(workspace.mix(phase), mix | {"sources": sources, "fingerprint": f"{phase:1<64}"})


def ledger(stage: str, source: str, kept: int, dropped: dict[str, int]) -> Ledger:
    """A ledger of 100-byte documents, with one example a reason."""
    book = Ledger(stage, source)
    for _ in range(kept):
        book.keep(100, 98 if stage == "clean" else 100)
    for reason, count in dropped.items():
        for number in range(count):
            book.drop(reason, f"{source} {reason} {number} <i>".ljust(100, "."))
    return book


def write_data(workspace: Workspace) -> None:
    """Ledgers from download to tokens; in each, what comes in is what the one before let out."""
    dedup = []
    for source, size in (("stdlib", 1200), ("packages", 3400)):
        write_ledgers(workspace.raw(source) / "ledger.json", [ledger("download", source, size, {})])
        clean = ledger("clean", source, size - 30, {"too_short": 23, "not_english": 7})
        write_ledgers(workspace.clean(source) / "ledger.json", [clean])
        left, out = size - 30, 9800  # bytes that 100 cleaned documents have
        book = Ledger("dedup", source)
        for number in range(left):
            if number < 11:
                book.drop("near_duplicate", f"{source} twice {number}".ljust(98, "."))
            else:
                book.keep(98)
        dedup.append(book)
        split = Ledger("split", source)
        for _ in range(left - 11):
            split.keep(98)
        folder = workspace.documents / source
        write_ledgers(folder / "ledger.json", [split])
        encode = Ledger("encode", source, notes={"tokens": out})
        for _ in range(left - 11):
            encode.keep(98)
        tokens = workspace.tokens(source)
        write_ledgers(tokens / "ledger.json", [encode])
        splits = {
            name: {"tokens": count, "documents": documents, "text_bytes": 98 * documents}
            for name, count, documents in (
                ("train", 70_123, left - 31),
                ("validation", 1_234, 10),
                ("test", 1_432, 10),
            )
        }
        write_json(tokens / "manifest.json", {"version": 1, "vocab_size": 4096, "splits": splits})
    write_ledgers(workspace.dedup / "ledger.json", dedup)
    write_tokenizer(workspace.tokenizer)


def write_tokenizer(folder: Path, vocab_size: int = 300) -> None:
    """A byte-level BPE tokenizer of this file's text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet
    )
    tokenizer.train([__file__], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"eos_token": "<|endoftext|>"})
    report = {
        "vocab_size": tokenizer.get_vocab_size(),
        "eos_id": tokenizer.token_to_id("<|endoftext|>"),
        "fingerprint": sha256_file(folder / "tokenizer.json"),
    }
    write_json(folder / "report.json", report)


def write_export(workspace: Workspace, recipe: Recipe, phase: str, **network: Any) -> Path:
    """An export of a small network with random weights, as the export stage writes it."""
    import torch

    from model import ModelConfig, Transformer
    from tasks.release import export as exporter
    from tasks.release.card_parts import Facts
    from tasks.release.generation_config import write_generation_config
    from tasks.release.manifest import seal

    words = read_json(workspace.tokenizer / "report.json")
    sizes = {"d_model": 32, "n_layers": 2, "n_heads": 2, "d_ff": 48, "max_seq_len": 64}
    config = ModelConfig(**sizes | {"vocab_size": words["vocab_size"]} | network)
    model = Transformer(config, generator=torch.Generator().manual_seed(len(phase)))
    folder = workspace.export(phase)
    folder.mkdir(parents=True)
    special = {"eos_token_id": words["eos_id"], "pad_token_id": words["eos_id"]}
    exporter.write_network(folder, model.eval(), special)
    write_generation_config(folder, recipe.evaluation.sampling, special)
    exporter.write_tokenizer(folder, workspace.tokenizer, config.max_seq_len)
    (folder / "README.md").write_text("to be written\n")
    facts = Facts(
        phase=phase,
        weights="ema",
        step=20,
        tokens=20 * BATCH_TOKENS,
        total_tokens=60 * BATCH_TOKENS,
        recipe=recipe.fingerprint,
        checkpoint="c" * 64,
        tokenizer="t" * 64,
        parameters={"total": 40_000, "active": 40_000, "non_embedding": 30_000},
        architecture=config.to_dict(),
        transformers_class="LlamaForCausalLM",
        obstacles=[],
        mixtures={},
    )
    seal(folder, vars(facts))
    return folder
