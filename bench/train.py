"""Whole training steps of the recipes: samples in memory, loss, backward, clipping, optimizer, EMA.

On a GPU this is the figure that counts: tokens a second and MFU with everything that a step does,
compiled as training compiles it, with and without document masks, and where the time goes.

    python -m bench.train --profile --json gpu.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.common import Row, Table, hardware, versions

RECIPES = Path(__file__).parent.parent / "recipes"
ON_A_CPU, ON_A_GPU = ("demo",), ("haipai-50m", "h64lm-249m", "chaya-62m")
DOCUMENT_TOKENS = 300  # of the documents that the samples are made of
UNIT = "tokens/s"


def bench(
    recipes: tuple[str, ...] = (), steps: int = 5, micro_batch_tokens: int | None = None,
    compiled: bool = True,
) -> Table:  # fmt: skip
    """Steps of each recipe: compiled against eager, and document masks against none."""
    table = Table("Whole training steps of recipes")
    for name in recipes or default_recipes():
        eager = rates(name, steps, micro_batch_tokens, compiled=False, documents=False)
        plain = eager
        if compiled:
            plain = rates(name, steps, micro_batch_tokens, compiled=True, documents=False)
            table.rows.append(Row(f"{name}: compiled / eager", plain.rates, eager.rates, UNIT))
        masked = rates(name, steps, micro_batch_tokens, compiled=compiled, documents=True)
        table.rows.append(Row(f"{name}: document masks / none", masked.rates, plain.rates, UNIT))
        table.notes.append(f"{name}: {plain.describe()}")
        step, _ = stepper(name, micro_batch_tokens, compiled=False, documents=False)
        table.notes.append(f"{name}, eager: {matrix_share(step):.0%} of a step is matrix products "
                           "and attention, by the profiler")  # fmt: skip
    return table


def default_recipes() -> tuple[str, ...]:
    """What is trained in earnest, where there is a GPU; else what a CPU trains in minutes."""
    import torch

    return ON_A_GPU if torch.cuda.is_available() else ON_A_CPU


class Rates:
    """Tokens a second of each step, and what they amount to."""

    def __init__(self, per_step: list[float], flops_a_token: int, device: Any) -> None:
        from tasks.training.device import peak_flops

        self.rates, self._flops = per_step, flops_a_token
        self._peak, self._memory = peak_flops(device), device.memory_bytes()

    def describe(self) -> str:
        median = statistics.median(self.rates)
        flops = median * self._flops
        mfu = (
            f", MFU {100 * flops / self._peak:.1f} % of {self._peak / 1e12:.0f} TFLOP/s"
            if self._peak
            else ""
        )
        return (
            f"{median:,.0f} tokens/s, {self._flops / 1e6:,.1f} MFLOP a token, "
            f"{flops / 1e12:.2f} TFLOP/s{mfu}, peak memory {self._memory / 1e9:.1f} GB"
        )


def rates(
    name: str, steps: int, micro_batch_tokens: int | None, *, compiled: bool, documents: bool
) -> Rates:
    """Train ``steps`` steps after three to warm up."""
    from tasks.planning import flops_a_token

    step, state = stepper(name, micro_batch_tokens, compiled, documents)
    seconds = []
    for number in range(steps + 3):
        started = time.perf_counter()
        step()
        if number >= 3:
            seconds.append(time.perf_counter() - started)
    tokens = state.settings.batch_tokens
    flops = flops_a_token(state.model.config, state.settings.seq_len)
    return Rates([tokens / s for s in seconds], flops, state.device)


def stepper(
    name: str, micro_batch_tokens: int | None, compiled: bool, documents: bool
) -> tuple[Callable[[], None], Any]:
    """A function that trains one step of a recipe's last phase on random ids, and its state."""
    import torch

    from model import Transformer
    from tasks import recipe as recipes
    from tasks.settings import settings as machine_settings
    from tasks.training import loop
    from tasks.training.batch import Batch
    from tasks.training.device import micro_batch_size, open_device
    from tasks.training.state import TrainState

    recipe = recipes.load(RECIPES / f"{name}.yaml")
    phase = recipe.phases[recipe.phases_in_order()[-1]]
    machine = machine_settings()
    if micro_batch_tokens:
        machine = machine.model_copy(update={"micro_batch_tokens": micro_batch_tokens})
    device = open_device(machine, phase.precision)
    if device.torch_device.type == "cpu" and phase.precision == "fp16":
        device = open_device(machine, "bf16")
    torch.manual_seed(0)
    config = recipe.model_config_with_vocab
    model = Transformer(config)
    state = TrainState.build("bench", phase, device, model, compiled=compiled)
    ids = torch.randint(config.vocabulary, (phase.batch_size, phase.seq_len + 1))
    position = torch.arange(phase.seq_len)
    each = (position // DOCUMENT_TOKENS).expand(phase.batch_size, -1)
    batch = Batch(ids[:, :-1], ids[:, 1:], each if documents else None)
    rows = micro_batch_size(machine, phase)

    def step() -> None:
        loss, _ = loop.accumulate(state, batch, rows)
        loop.update(state, loss, spike=False)
        if device.torch_device.type == "cuda":
            torch.cuda.synchronize()

    return step, state


def matrix_share(step: Callable[[], None]) -> float:
    """Share of a step's time that goes to matrix products and attention, Muon's products included.

    By the time that operations take without those that they call; of kernels, on a GPU.
    """
    from torch.autograd import DeviceType

    step()
    step()
    with profiled() as seen:
        step()
    gpu = any(event.device_type == DeviceType.CUDA for event in seen.events())
    spent = {
        event.key: event.self_device_time_total if gpu else event.self_cpu_time_total
        for event in seen.key_averages()
        if event.device_type == DeviceType.CPU
    }
    return sum(t for name, t in spent.items() if _is_matrix(name)) / sum(spent.values())


def _is_matrix(operation: str) -> bool:
    """Whether an operation of torch is a matrix product or attention."""
    name = operation.removeprefix("aten::")
    return name in ("mm", "addmm", "bmm", "baddbmm", "_grouped_mm") or "dot_product" in name


@contextmanager
def profiled() -> Iterator[Any]:
    """The profile of the block, to be read after it."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as seen:
        yield seen


def print_profile(step: Callable[[], None]) -> None:
    """Show which operations the time of a step goes to, after two to warm up."""
    import torch

    step()
    step()
    with profiled() as seen:
        step()
    by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    print(seen.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=60))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.train", description=__doc__)
    parser.add_argument(
        "--recipe",
        action="append",
        help="may be given again; default: demo, on a GPU haipai-50m, h64lm-249m and chaya-62m",
    )
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--micro-batch-tokens", type=int, help="most tokens of a forward pass")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--profile", action="store_true", help="show where the time goes too")
    parser.add_argument("--json", type=Path, help="write what was measured here too")
    given = parser.parse_args()
    names = tuple(given.recipe or default_recipes())
    table = bench(names, given.steps, given.micro_batch_tokens, not given.eager)
    table.notes += [hardware(), versions("torch")]
    table.print()
    if given.json:
        import json
        from dataclasses import asdict

        given.json.write_text(json.dumps(asdict(table)), "utf-8")
    if given.profile:
        for name in names:
            step, _ = stepper(name, given.micro_batch_tokens, not given.eager, documents=False)
            print_profile(step)


if __name__ == "__main__":
    main()
