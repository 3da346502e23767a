"""Training: forward, loss and backward of the same weights, here and in transformers' Llama.

The network has the shape of Haipai-50M: 54.6M parameters, 50,000 ids, 512 tokens a sequence. Theirs
is `forward(labels)` in eager mode, which writes out all logits; ours computes the same loss in
chunks. Both run under the same autocast, and their losses are compared before anything is timed.
What the machine allows is measured beside them: the matrix products of the same step, alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from bench.common import Row, Table, main, take_turns

SEQ_LEN, REPEATS = 512, 5
SHAPE = {
    "d_model": 384, "n_layers": 12, "n_heads": 6, "d_ff": 2048,
    "max_seq_len": SEQ_LEN, "vocab_size": 50_000,
}  # fmt: skip
UNIT = "tokens/s"
CLOSE = 2e-3  # nats between the two losses, which bf16 rounds differently


def bench() -> Table:
    """Rates of a training step without its optimizer, and the peak of its memory."""
    table = Table(
        "Training step (forward, loss, backward) against transformers' Llama, eager",
        notes=["54.6M parameters, vocabulary 50,000, sequences of 512; micro-batches of 1 to 4"],
    )
    for precision, batches in (("bf16", (1, 4)), ("fp32", (1,))):
        for batch in batches:
            first = (precision, batch) == ("bf16", 1)
            runs: dict[str, Callable[[], object]] = {**contestants(batch, precision, first)}
            names = [name for name in runs if name != "theirs"]
            if first:
                runs["products"] = products(batch, precision)
            seconds = take_turns(runs, REPEATS, warm_ups=0)  # they were compared already
            if first:
                table.notes.append(ceiling(seconds, batch * SEQ_LEN))
            for name in names:
                table.rows.append(
                    Row.of_times(
                        f"{name}, {precision}, {batch} x {SEQ_LEN}",
                        seconds[name],
                        seconds["theirs"],
                        work=batch * SEQ_LEN,
                        unit=UNIT,
                    )
                )
    ours, theirs = ([float(peak_of(who, 4, "bf16"))] for who in ("ours", "theirs"))
    what = f"peak memory, bf16, 4 x {SEQ_LEN}"
    table.rows.append(Row(what, ours, theirs, unit="bytes", better="less"))
    table.notes.append("peak memory: resident set of a fresh process above the imported libraries")
    return table


def contestants(
    batch: int, precision: str, compiled: bool, only: str = ""
) -> dict[str, Callable[[], float]]:
    """By name, a function that runs one step and returns its loss; ``only`` one of them."""
    import torch

    from model import ModelConfig, Transformer

    config = ModelConfig(**SHAPE)  # type: ignore[arg-type]
    model = Transformer(config, generator=torch.Generator().manual_seed(0)).train()
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(config.vocabulary, (batch, SEQ_LEN + 1), generator=draw)
    inputs, targets = ids[:, :-1], ids[:, 1:].contiguous()

    def step(network: Any, loss: Callable[[], Any]) -> float:
        network.zero_grad(set_to_none=True)
        with _autocast(precision):
            value = loss()
        value.backward()
        return float(value.detach())

    def ours(loss: Callable[..., Any]) -> Callable[[], float]:
        def mean() -> Any:
            total, count, _ = loss(inputs, targets)
            return total / count

        return lambda: step(model, mean)

    runs = {"ours": ours(model.loss)}
    if compiled:
        runs["ours compiled"] = ours(torch.compile(model.loss, dynamic=False))
    if only != "ours":
        llama = as_llama(config, model.state_dict())
        runs["theirs"] = lambda: step(
            llama, lambda: llama(inputs, labels=inputs, shift_labels=targets).loss
        )
    if only:
        return {only: runs[only]}
    losses = {name: run() for name, run in runs.items()}
    assert max(losses.values()) - min(losses.values()) < CLOSE, losses
    return runs


def products(batch: int, precision: str) -> Callable[[], object]:
    """A function that does the matrix products of a step and nothing else, attention's left out.

    That is three for each table: forward, and backward by what it read and by the table itself.
    """
    import torch

    from model import ModelConfig, Transformer

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = Transformer(ModelConfig(**SHAPE))  # type: ignore[arg-type]
    tables = [t.detach().to(dtype) for t in model.parameters() if t.ndim == 2]
    sides = {side for table in tables for side in table.shape}
    rows = {side: torch.randn(batch * SEQ_LEN, side, dtype=dtype) for side in sides}
    # Into memory that is there already: making room for results is no part of a product.
    results = {side: torch.empty_like(kept) for side, kept in rows.items()}
    slopes = {table.shape: torch.empty_like(table) for table in tables}

    def run() -> None:
        for table in tables:
            d_out, d_in = table.shape
            torch.mm(rows[d_in], table.T, out=results[d_out])
            torch.mm(rows[d_out], table, out=results[d_in])
            torch.mm(rows[d_out].T, rows[d_in], out=slopes[table.shape])

    run()
    return run


def ceiling(seconds: dict[str, list[float]], tokens: int) -> str:
    """What the products alone would make, and how much of it each one reaches."""
    least = statistics.median(seconds["products"])
    shares = [
        f"{name} {100 * least / statistics.median(seconds[name]):.0f} %"
        for name in seconds
        if name != "products"
    ]
    return (
        f"matrix products alone, bf16, {tokens} tokens: {tokens / least:,.0f} tokens/s; "
        f"of that {', '.join(shares)}"
    )


def as_llama(config: Any, weights: dict[str, Any]) -> Any:
    """transformers' own class with the same weights, in its default attention (SDPA)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size, hidden_size=config.d_model,
            intermediate_size=config.d_ff, num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads, max_position_embeddings=config.max_seq_len,
            rms_norm_eps=config.norm_eps, tie_word_embeddings=True,
        )
    )  # fmt: skip
    llama.load_state_dict({f"model.{n}": t for n, t in weights.items()}, strict=False)
    llama.tie_weights()
    return llama.train()


def peak_of(who: str, batch: int, precision: str) -> int:
    """Peak bytes of a step of ``who`` in a process of its own.

    What is freed goes back to the system at once there, so the peak is what was alive.
    """
    done = subprocess.run(
        [sys.executable, "-m", "bench.model", "--peak", who, str(batch), precision],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(json.loads(done.stdout.splitlines()[-1]))


def print_peak(who: str, batch: int, precision: str) -> None:
    """The child of ``peak_of``: weights and gradients count, libraries do not."""
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    from tasks.training.measure import peak_resident_bytes, resident_bytes

    with _autocast(precision):
        torch.mm(torch.ones(64, 64), torch.ones(64, 64))
    before = resident_bytes()
    contestants(batch, precision, compiled=False, only=who)[who]()
    print(json.dumps(peak_resident_bytes() - before))


def _autocast(precision: str) -> Any:
    import torch

    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast("cpu", torch.bfloat16)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        print_peak(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        main(bench)
