"""The peak memory of a real training step, measured in a process that does nothing else.

    python -m tasks.training.measure '{"model": {...}, "step": {...}}'

prints one JSON object. On a CPU the peak is the process's resident set above what it was before
the network was built, with the libraries already warm; on CUDA it is the allocator's own peak. The
child's memory goes back to the system as soon as it is freed, so the peak is what was needed, not
what glibc keeps for later; a process that trains for hours holds some tenths more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from model.config import ModelConfig
from tasks.costs import Step
from tasks.errors import UserError
from tasks.settings import settings

STEPS = 3  # the optimizer's moments are there from the second on; the third shows a steady state


def measure(config: ModelConfig, step: Step, steps: int = STEPS) -> dict[str, Any]:
    """Train ``steps`` steps on random ids in a child: ``peak_bytes``, ``seconds`` of the last step,
    ``device``.

    Raises UserError where the child fails, with its last line (it may have been out of memory).
    """
    spec = {"model": config.to_dict(), "step": asdict(step), "steps": steps}
    done = subprocess.run(
        [sys.executable, "-m", "tasks.training.measure", json.dumps(spec)],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(
            f"the measured step failed (exit code {done.returncode}): {last}",
            hint="the estimate above it stands; try a smaller --batch or --seq-len, or --recompute",
        )
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def run(config: ModelConfig, step: Step, steps: int) -> dict[str, Any]:
    """As ``measure``, in this process, which should be a fresh one."""
    import torch

    from tasks.training.device import open_device

    device = open_device(settings(), step.precision)
    _warm_up(step, device)
    base = resident_bytes()
    train = _training(config, step, device)
    seconds = 0.0
    for _ in range(steps):
        started = time.perf_counter()
        train()
        seconds = time.perf_counter() - started
    if device.torch_device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device.torch_device)
    else:
        peak = peak_resident_bytes() - base
    return {"peak_bytes": peak, "seconds": seconds, "device": device.describe()}


def _training(config: ModelConfig, step: Step, device: Any) -> Any:
    """A function that takes one training step on random ids, and returns when it is done."""
    import torch

    from model.transformer import Transformer
    from tasks.recipe import Optimizer
    from tasks.training.ema import EMA
    from tasks.training.optimizer import Optimizers

    model = Transformer(config, generator=torch.Generator().manual_seed(0))
    model.to(device.torch_device).train()
    model.recompute = step.recompute
    optimizer, scaler = Optimizers(model, Optimizer(), 1e-4), device.scaler()
    average = EMA(model, 0.999) if step.ema else None
    shape = (step.batch, step.seq_len + 1)
    ids = torch.randint(config.vocabulary, shape, device=device.torch_device)

    def train() -> None:
        optimizer.zero_grad()
        for _ in range(2 if step.accumulates else 1):
            with device.autocast():
                total, count, aux = model.loss(ids[:, :-1], ids[:, 1:])
            scaler.scale((total + aux.get("loss", 0.0)) / count).backward()
        optimizer.unscale(scaler)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(scaler)
        scaler.update()
        if average:
            average.update(model)
        if device.torch_device.type == "cuda":
            torch.cuda.synchronize()

    return train


def _warm_up(step: Step, device: Any) -> None:
    """Load what torch loads late (matrix kernels, the optimizer), so that it counts for nothing."""
    tiny = ModelConfig(d_model=64, n_layers=1, n_heads=1, d_ff=64, max_seq_len=64, vocab_size=64)
    _training(tiny, Step(1, 64, step.precision), device)()


def resident_bytes() -> int:
    """Memory of this process that is in use now."""
    return _status("VmRSS")


def peak_resident_bytes() -> int:
    """The most memory that this process had in use so far.

    ``getrusage`` would do elsewhere, but on Linux its figure outlives `exec` and so may be that of
    the parent.
    """
    return _status("VmHWM")


def _status(key: str) -> int:
    path = Path("/proc/self/status")
    if not path.exists():
        raise UserError(
            "memory is measured on Linux (/proc) and on CUDA alone",
            hint="leave --measure away: the estimate needs neither",
        )
    lines = path.read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def main() -> None:
    given = json.loads(sys.argv[1])
    config = ModelConfig.from_dict(given["model"])
    print(json.dumps(run(config, Step(**given["step"]), given["steps"])))


if __name__ == "__main__":
    main()
