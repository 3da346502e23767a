"""Generating text: the same weights, prompts and number of new ids, here and in transformers.

The network is the 54.6 M one of the recipe haipai-50m with first weights, exported to a folder that
both open. Greedy ids of both are compared in fp32 before anything is timed. How often a draft is
right depends on training, so the speculative row says how often it was here.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.common import Row, Table, main, take_turns

PROMPT, NEW, REPEATS = 64, 128, 3  # as many new ones as `generate` makes unless told
SHAPE = {"d_model": 384, "n_heads": 6, "d_ff": 2048, "max_seq_len": 1024, "vocab_size": 50_000}
LAYERS, DRAFT_LAYERS = 12, 2
DRAWN = {"temperature": 0.8, "top_k": 50}
UNIT = "tokens/s"


@dataclass
class Pair:
    """One network as both libraries hold it, in one dtype."""

    ours: Any
    theirs: Any

    @classmethod
    def open(cls, folder: Path, dtype: Any) -> Pair:
        from transformers import AutoModelForCausalLM

        from tasks.release.native import load_export

        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        theirs.generation_config.pad_token_id = 0
        return cls(load_export(folder, dtype=dtype), theirs)

    def runs(
        self, batch: int, network: Any = None, compiled: bool = False, **options: Any
    ) -> dict[str, Callable[[], Any]]:
        """Ours, on another network where one is given, and theirs; both give ids (batch, NEW)."""
        import torch

        from model import SamplingOptions
        from model.decoder import Decoder
        from model.generate import generate

        prompts = torch.randint(SHAPE["vocab_size"], (batch, PROMPT), generator=_seeded())
        decoder = Decoder(network or self.ours, batch, compiled=compiled)
        chosen = options or {"temperature": 0.0}
        ours = SamplingOptions(max_new_tokens=NEW, seed=0, **chosen)
        theirs = {"do_sample": True, **options} if options else {"do_sample": False}

        def run_ours() -> list[list[int]]:
            return [done.ids for done in generate(decoder, prompts.tolist(), ours)]

        def run_theirs() -> list[list[int]]:
            ids = self.theirs.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                min_new_tokens=NEW,
                max_new_tokens=NEW,
                **theirs,
            )
            return ids[:, PROMPT:].tolist()

        return {"ours": run_ours, "theirs": run_theirs}


def bench() -> Table:
    """Tokens a second of cached decoding, against transformers' generate."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    table = Table(f"Decoding, {PROMPT} ids of prompt and {NEW} new ones, 54.6 M parameters")
    with tempfile.TemporaryDirectory() as made:
        whole, draft = write_networks(Path(made))
        pairs = {
            "fp32": Pair.open(whole, torch.float32),
            "bf16": Pair.open(whole, torch.bfloat16),
        }
        table.notes.append(agreement(pairs["fp32"]))
        for dtype, pair in pairs.items():
            table.rows.append(compiled(dtype, pair))
            for batch in (1, 8):
                table.rows.append(measure(f"greedy, {dtype}, batch {batch}", pair, batch))
            table.rows.append(measure(f"top-k 50, {dtype}, batch 1", pair, 1, **DRAWN))
        table.rows += quantized(pairs)
        table.rows.append(speculative(pairs["fp32"], Pair.open(draft, torch.float32)))
    return table


def measure(what: str, pair: Pair, batch: int, **options: Any) -> Row:
    """One comparison."""
    times = take_turns(pair.runs(batch, **options), REPEATS)
    return Row.of_times(what, times["ours"], times["theirs"], work=batch * NEW, unit=UNIT)


def compiled(dtype: str, pair: Pair) -> Row:
    """The compiled step, which the warm-up compiles; how near it comes to reading memory alone."""
    import torch

    reader = [w.detach().flatten().view(torch.float32) for w in pair.ours.parameters()]
    runs = pair.runs(1, compiled=True)
    # The fastest plain pass over the same bytes that torch has; bf16 in pairs, as numbers of fp32.
    # It reads pages of 4 KiB: a decoder that asked for larger ones can be faster.
    runs["floor"] = lambda: [w.amax() for _ in range(NEW) for w in reader]
    with torch.inference_mode():
        times = take_turns(runs, REPEATS)
    share = statistics.median(f / o for f, o in zip(times["floor"], times["ours"]))
    what = f"greedy, {dtype}, batch 1, compiled ({share:.0%} of a plain read's pace)"
    return Row.of_times(what, times["ours"], times["theirs"], work=NEW, unit=UNIT)


def agreement(pair: Pair) -> str:
    """How many greedy ids of both are the same; ties are broken by the order of float sums."""
    runs = pair.runs(8)
    ours, theirs = runs["ours"](), runs["theirs"]()
    same = sum(a == b for one, two in zip(ours, theirs) for a, b in zip(one, two))
    return f"{same} of {8 * NEW} greedy ids in fp32 are the same"


def quantized(pairs: dict[str, Pair]) -> list[Row]:
    """Our 8-bit and 4-bit weights beside transformers in bf16."""
    from tasks.release.quantize import quantize, weight_bytes

    rows = []
    for kind in ("int8", "int4"):
        network = quantize(pairs["fp32"].ours, kind)
        size = f"{weight_bytes(network) / 1e6:.0f} MB"
        for compiled in (False, True) if kind == "int8" else (False,):
            times = take_turns(pairs["bf16"].runs(1, network, compiled), REPEATS)
            what = f"greedy, {kind} ({size}) beside bf16, batch 1{', compiled' * compiled}"
            rows.append(Row.of_times(what, times["ours"], times["theirs"], work=NEW, unit=UNIT))
    return rows


def speculative(pair: Pair, draft: Pair) -> Row:
    """Both with the same draft: the network's first layers."""
    import torch

    from model import SamplingOptions
    from model.decoder import Decoder
    from model.generate import Completion, generate

    prompt = torch.randint(SHAPE["vocab_size"], (1, PROMPT), generator=_seeded())
    options = SamplingOptions(max_new_tokens=NEW, temperature=0)
    # The model reads the draft_tokens + 1 last ids at once, so tables are laid out for as many.
    decoder = Decoder(pair.ours, rows=options.draft_tokens + 1)
    proposer = Decoder(draft.ours)
    length = {"min_new_tokens": NEW, "max_new_tokens": NEW, "do_sample": False}

    def ours() -> Completion:
        return generate(decoder, prompt.tolist(), options, draft=proposer)[0]

    def theirs() -> Any:
        mask = torch.ones_like(prompt)
        return pair.theirs.generate(
            prompt, attention_mask=mask, assistant_model=draft.theirs, **length
        )

    done = ours()
    what = f"greedy, fp32, draft of {DRAFT_LAYERS} layers, {done.accepted} of {done.proposed} kept"
    times = take_turns({"ours": ours, "theirs": theirs}, REPEATS)
    return Row.of_times(what, times["ours"], times["theirs"], work=NEW, unit=UNIT)


def write_networks(folder: Path) -> tuple[Path, Path]:
    """The network and its first layers alone, each in a folder of transformers."""
    from model import ModelConfig, Transformer
    from tasks.release.export import write_network

    whole = Transformer(ModelConfig(**SHAPE, n_layers=LAYERS), generator=_seeded())
    first = Transformer(ModelConfig(**SHAPE, n_layers=DRAFT_LAYERS))
    weights = whole.state_dict()
    first.load_state_dict({name: weights[name] for name in first.state_dict()})
    folders = folder / "whole", folder / "draft"
    for place, network in zip(folders, (whole, first)):
        place.mkdir()
        write_network(place, network, {})
    return folders


def _seeded() -> Any:
    import torch

    return torch.Generator().manual_seed(0)


if __name__ == "__main__":
    main(bench)
