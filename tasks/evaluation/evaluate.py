"""Stage `evaluate`: a finished phase on every held-out set, with raw and EMA weights.

    checkpoints/<phase> x data/tokens/*/{validation,test} -> evaluation/<phase>.json
                          data/documents: words, names       evaluation/<phase>.details.json
                                                             evaluation/<phase>.documents.npz

Every set of every source is scored, those that the phase did not draw from too: that is where
forgetting shows. The windows are those of scoring.py, of the phase's seq_len. A cap on a set's
tokens cuts it after a whole document, so that its bytes are exact. Bits per byte comes with its
standard error over documents (bootstrap.py).

The weights are fp32 and so is the arithmetic, whatever precision the phase trained in: the figure
belongs to the weights that are exported, and does not change with the machine's bf16.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import stage
from tasks.errors import NO_INPUT, NON_FINITE, UserError
from tasks.evaluation import documents
from tasks.evaluation.documents import HeldOutText, held_out_text
from tasks.evaluation.headline import headline
from tasks.evaluation.scoring import Protocol
from tasks.files import fingerprint, read_json, write_json
from tasks.progress import Progress, progress
from tasks.recipe import Recipe
from tasks.settings import settings
from tasks.units import show_count
from tasks.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from model import Transformer
    from tasks.evaluation.scoring import DocumentSums
    from tasks.training.validate import HeldOutSet

VERSION = 2
FILES = {"raw": "model", "ema": "ema"}  # weights -> the file's stem in a checkpoint
Figures = dict[str, dict[str, dict[str, float]]]  # set -> weights -> figure -> value
Sums = dict[tuple[str, str], "DocumentSums"]  # (set, weights) -> sums of its documents


def evaluate(workspace: Workspace, recipe: Recipe, phase: str) -> None:
    """Write evaluation/<phase>.json (figures), .details.json (sets, windows) and
    .documents.npz (what each document cost).

    Raises UserError where there is no held-out text, or where a loss is not finite.
    """
    from tasks.tokens.text import load_tokenizer
    from tasks.training import checkpoint

    source = checkpoint.require(workspace.checkpoint(phase))
    protocol = protocol_for(recipe, phase)
    sets = sets_to_score(workspace, recipe)
    tokenizer = load_tokenizer(workspace.tokenizer)
    texts = {s.name: held_out_text(workspace, s.name, s.document_bytes, tokenizer) for s in sets}
    there = weights_in(source)
    sums: Sums = {}
    figures: Figures = {held_out.name: {} for held_out in sets}
    total = len(there) * sum(len(held_out.tokens) for held_out in sets)
    with progress(total, "tokens", f"evaluating {phase}") as shown:
        for weights in there:
            network = fp32_network(source, weights)
            for held_out in sets:
                name, eos_id = held_out.name, tokenizer.eos_id
                sums[name, weights] = score_set(network, held_out.tokens, protocol, eos_id, shown)
                row = documents.figures(sums[name, weights], texts[name])
                figures[name][weights] = finite(row, f"{name} ({weights})")
    documents.write_documents(workspace.evaluation(phase, "documents.npz"), texts.values(), sums)
    write_json(
        workspace.evaluation(phase, "details.json"),
        {
            "version": VERSION,
            "phase": phase,
            "checkpoint": fingerprint(read_json(source / checkpoint.MANIFEST)["files"]),
            "tokenizer": tokenizer.fingerprint,
            "weights": there,
            "seq_len": protocol.seq_len,
            "stride": protocol.stride,
            "precision": "fp32",
            "document_mask": protocol.document_mask,
            "protocol": asdict(protocol),
            "sets": {s.name: describe(s, texts[s.name], sums[s.name, there[0]]) for s in sets},
        },
    )
    write_json(workspace.evaluation(phase), figures)
    write_json(workspace.evaluation(phase, "bits_per_byte.json"), headline(figures))
    print(f"{table(figures)}\n    {documents.described(protocol)}; ± one standard error")


def sets_to_score(workspace: Workspace, recipe: Recipe) -> list[HeldOutSet]:
    """Every held-out set of every source, cut as the recipe says. Raises UserError without any."""
    from tasks.training.validate import held_out_sets

    most_tokens = recipe.evaluation.max_tokens
    sets = held_out_sets(workspace, recipe, most_tokens, ("validation", "test"))
    if not sets:
        raise UserError(
            "no source has held-out text",
            where="params.yaml: held_out",
            hint="give validation or test a share above 0, or a source an official split",
            exit_code=NO_INPUT,
        )
    return sets


def weights_in(checkpoint: Path) -> list[str]:
    """Which of raw and ema a checkpoint holds."""
    return [name for name, stem in FILES.items() if (checkpoint / f"{stem}.safetensors").exists()]


def fp32_network(checkpoint: Path, weights: str) -> Transformer:
    """The raw or ema network of a checkpoint, in fp32, on this machine's device."""
    import torch

    from tasks.training.device import open_device
    from tasks.training.state import load_network

    device = open_device(settings(), "fp32").torch_device
    torch.backends.cuda.matmul.allow_tf32 = False  # which open_device allows, and is not fp32
    return load_network(checkpoint, FILES[weights]).float().to(device).eval()


def protocol_for(recipe: Recipe, phase: str) -> Protocol:
    """How a phase of the recipe is scored."""
    trained = recipe.phases[phase]
    return Protocol(
        seq_len=trained.seq_len,
        stride=window_stride(recipe, phase),
        document_mask=trained.document_mask,
        alone=recipe.evaluation.documents == "alone",
    )


def window_stride(recipe: Recipe, phase: str) -> int:
    """Tokens between windows: evaluation.stride, or the phase's seq_len."""
    seq_len, stride = recipe.phases[phase].seq_len, recipe.evaluation.stride
    if stride is not None and stride > seq_len:
        raise UserError(
            f"{stride} is beyond the seq_len of {phase} ({seq_len}): tokens between the windows "
            "would not be scored",
            where="params.yaml: evaluation.stride",
            hint=f"set it to {seq_len} or less, or to null",
        )
    return stride or seq_len


def score_set(
    network: Transformer,
    tokens: NDArray[np.integer],
    protocol: Protocol,
    eos_id: int,
    shown: Progress,
) -> DocumentSums:
    """The sums of each document of a set's tokens (N,), where the network is."""
    from tasks.evaluation.scoring import score_documents

    rows = max(1, settings().micro_batch_tokens // protocol.seq_len)
    return score_documents(
        network, tokens, protocol, eos_id=eos_id, batch_size=rows, advance=shown.advance
    )


def finite(figures: dict[str, float], name: str) -> dict[str, float]:
    """The figures of one set. Raises UserError (exit code 3) where one is not finite."""
    if broken := [key for key, value in figures.items() if not math.isfinite(value)]:
        raise UserError(
            f"{name}: {', '.join(broken)} not finite (loss {figures['loss']})",
            hint="the weights are broken, or the set holds no text",
            exit_code=NON_FINITE,
        )
    return figures


def describe(held_out: HeldOutSet, text: HeldOutText, sums: DocumentSums) -> dict[str, Any]:
    """What a set is: fingerprints of its text and its token ids (32-bit, little-endian), counts."""
    tokens = held_out.tokens.astype("<u4")
    return {
        "fingerprint": text.fingerprint,
        "tokens_fingerprint": hashlib.sha256(tokens.tobytes()).hexdigest(),
        "documents": len(text.texts),
        "words": int(text.words.sum()),
        "tokens": len(tokens),
        "text_bytes": held_out.text_bytes,
        "tokens_scored": int(sums.tokens.sum()),
    }


def table(figures: Figures) -> str:
    """The figures as lines of text: a line a set, bits per byte and perplexity of each model."""
    models = list(next(iter(figures.values())))
    width = max(len(name) for name in figures)
    wide = max(16, len("perplexity ") + max(map(len, models)))
    heads = [f"{f'bits/byte {name}':>{wide}} {f'perplexity {name}':>{wide}}" for name in models]
    lines = [f"    {'':<{width}} " + " ".join(heads)]
    for name, row in figures.items():
        cells = [f"{_with_error(row[m]):>{wide}} {show_count(row[m]['perplexity']):>{wide}}"
                 for m in models]  # fmt: skip
        lines.append(f"    {name:<{width}} " + " ".join(cells))
    return "\n".join(lines)


def _with_error(row: dict[str, float]) -> str:
    se = row.get("bits_per_byte_se")
    return f"{row['bits_per_byte']:.4f}" + ("" if se is None else f" ±{se:.4f}")


if __name__ == "__main__":
    stage.main(evaluate, "phase")
