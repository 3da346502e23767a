"""Stage `evaluate`: a finished phase on every held-out set, with raw and EMA weights.

    checkpoints/<phase> x data/tokens/*/{validation,test} -> evaluation/<phase>.json
                                                             evaluation/<phase>.details.json

Every set of every source is scored, those that the phase did not draw from too: that is where
forgetting shows. The windows are those of tasks/release/scoring.py, of the phase's seq_len. A cap
on a set's tokens cuts it after a whole document, so that its bytes are exact.

The weights are fp32 and so is the arithmetic, whatever precision the phase trained in: the figure
belongs to the weights that are exported, and does not change with the machine's bf16.
"""

from __future__ import annotations

import hashlib
import math
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import stage
from tasks.errors import NO_INPUT, NON_FINITE, UserError
from tasks.files import write_json
from tasks.progress import Progress, progress
from tasks.recipe import Phase, Recipe, Sampling
from tasks.settings import settings
from tasks.units import show_count
from tasks.workspace import Workspace

if TYPE_CHECKING:
    import torch

    from model import Transformer
    from tasks.release.scoring import Score
    from tasks.tokens.text import TextTokenizer
    from tasks.training.validate import HeldOutSet

VERSION = 1
FILES = {"raw": "model", "ema": "ema"}  # weights -> the file's stem in a checkpoint


def evaluate(workspace: Workspace, recipe: Recipe, phase: str) -> None:
    """Write evaluation/<phase>.json (figures) and <phase>.details.json (sets, windows, samples).

    Raises UserError where there is no held-out text, or where a loss is not finite.
    """
    import torch

    from tasks.tokens.text import load_tokenizer
    from tasks.training import checkpoint
    from tasks.training.device import open_device
    from tasks.training.state import load_network
    from tasks.training.validate import held_out_sets

    source = checkpoint.require(workspace.checkpoint(phase))
    trained, plan = recipe.phases[phase], recipe.evaluation
    sets = held_out_sets(workspace, recipe, plan.max_tokens, ("validation", "test"))
    if not sets:
        raise UserError(
            "no source has held-out text",
            where="params.yaml: held_out",
            hint="give validation or test a share above 0, or a source an official split",
            exit_code=NO_INPUT,
        )
    tokenizer = load_tokenizer(workspace.tokenizer)
    device = open_device(settings(), "fp32").torch_device
    torch.backends.cuda.matmul.allow_tf32 = False  # which open_device allows, and is not fp32
    stride = window_stride(recipe, phase)
    figures: dict[str, dict[str, dict[str, float]]] = {held_out.name: {} for held_out in sets}
    samples = []
    there = [name for name, stem in FILES.items() if (source / f"{stem}.safetensors").exists()]
    total = len(there) * sum(len(held_out.tokens) for held_out in sets)
    with progress(total, "tokens", f"evaluating {phase}") as shown:
        for weights in there:
            network = load_network(source, FILES[weights]).float().to(device).eval()
            for held_out in sets:
                result = _score(network, held_out, trained, stride, device, tokenizer.eos_id, shown)
                figures[held_out.name][weights] = as_figures(result, f"{held_out.name} ({weights})")
            prompts = plan.prompts
            samples += draw(network, tokenizer, prompts, plan.sampling, recipe.seed, weights)
    write_json(
        details_path(workspace, phase),
        {
            "version": VERSION,
            "phase": phase,
            "weights": there,
            "seq_len": trained.seq_len,
            "stride": stride,
            "precision": "fp32",
            "document_mask": trained.document_mask,
            "sets": {held_out.name: describe(held_out, tokenizer.eos_id) for held_out in sets},
            "samples": samples,
        },
    )
    write_json(workspace.evaluation(phase), figures)
    print(table(figures))


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


def details_path(workspace: Workspace, phase: str) -> Path:
    """evaluation/<phase>.details.json."""
    return workspace.evaluation(phase).with_suffix(".details.json")


def _score(
    network: Transformer,
    held_out: HeldOutSet,
    phase: Phase,
    stride: int,
    device: torch.device,
    eos_id: int,
    shown: Progress,
) -> Score:
    from tasks.release.scoring import score

    return score(
        network,
        held_out.tokens,
        held_out.text_bytes,
        seq_len=phase.seq_len,
        stride=stride,
        batch_size=max(1, settings().micro_batch_tokens // phase.seq_len),
        device=device,
        autocast=nullcontext,
        eos_id=eos_id,
        document_mask=phase.document_mask,
        advance=shown.advance,
    )


def as_figures(result: Score, name: str) -> dict[str, float]:
    """The four figures of one set. Raises UserError (exit code 3) where one is not finite."""
    figures = {
        "bits_per_byte": result.bits_per_byte,
        "perplexity": result.perplexity,
        "loss": result.loss,
        "accuracy": result.accuracy,
    }
    if broken := [key for key, value in figures.items() if not math.isfinite(value)]:
        raise UserError(
            f"{name}: {', '.join(broken)} not finite (loss {result.loss}, "
            f"{result.text_bytes} bytes of text)",
            hint="the weights are broken, or the set holds no text",
            exit_code=NON_FINITE,
        )
    return figures


def describe(held_out: HeldOutSet, eos_id: int) -> dict[str, Any]:
    """What a set is: counts, and the SHA-256 of its token ids as little-endian 32-bit numbers."""
    tokens = held_out.tokens
    return {
        "fingerprint": hashlib.sha256(tokens.astype("<u4").tobytes()).hexdigest(),
        "documents": int((tokens == eos_id).sum()),
        "tokens": len(tokens),
        "text_bytes": held_out.text_bytes,
        "tokens_scored": len(tokens),
    }


def draw(
    network: Transformer,
    tokenizer: TextTokenizer,
    prompts: list[str],
    sampling: Sampling,
    seed: int,
    weights: str,
) -> list[dict[str, str]]:
    """One continuation of each prompt; raw and EMA weights draw with the same seeds."""
    from model.sampling import SamplingOptions
    from tasks.release.sampler import Sampler

    options = SamplingOptions(**sampling.keywords(), seed=seed)
    drawn = Sampler(network, tokenizer).sample(prompts, options, len(prompts))
    return [{"prompt": one.prompt, "text": one.text, "weights": weights} for one in drawn]


def table(figures: dict[str, dict[str, dict[str, float]]]) -> str:
    """The figures as lines of text: a line a set, bits per byte and perplexity of each weights."""
    weights = list(next(iter(figures.values())))
    width = max(len(name) for name in figures)
    heads = [f"{f'bits/byte {name}':>14} {f'perplexity {name}':>15}" for name in weights]
    lines = [f"    {'':<{width}} " + " ".join(heads)]
    for name, row in figures.items():
        cells = [f"{row[w]['bits_per_byte']:>14.4f} {show_count(row[w]['perplexity']):>15}"
                 for w in weights]  # fmt: skip
        lines.append(f"    {name:<{width}} " + " ".join(cells))
    return "\n".join(lines)


if __name__ == "__main__":
    stage.main(evaluate, "phase")
