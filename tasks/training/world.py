"""The processes that train one phase together, and what they tell one another.

    torchrun --nproc-per-node N        N processes, rank 0 .. N-1, one GPU (or share of cores) each

A step's samples are dealt to the ranks in order, so that the step is the same for any number of
them. Rank 0 alone writes files and prints; what decides anything is agreed on by all. Alone, a
process is a world of one and nothing is sent.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

STORE = "PHASEWISE_WORLD_STORE"  # where the processes of one machine meet; see launch.py


@dataclass(frozen=True)
class World:
    """One process among ``size``."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def sum(self, *numbers: Tensor) -> list[Tensor]:
        """The sums over all ranks of some scalars."""
        if self.size == 1:
            return list(numbers)
        together = torch.stack([number.double() for number in numbers])
        dist.all_reduce(together)
        return list(together.unbind())

    def most(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        if self.size == 1:
            return number
        largest = torch.tensor(number)
        if dist.get_backend() == "nccl":
            largest = largest.cuda()
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest.item())

    def wait(self) -> None:
        """Go on when all ranks have come here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """The world that torchrun set up for this process, or a world of one.

    ``device`` is the setting of that name. NCCL between GPUs, gloo between CPUs. A rank that dies
    takes the others with it: torchrun ends them, and an operation that waits for it fails at once.
    """
    if "RANK" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield World()
        return
    local_rank = int(os.environ["LOCAL_RANK"])
    cuda = device in ("auto", "cuda") and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local_rank)
    size, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    store = dist.FileStore(path, size) if (path := os.environ.get(STORE)) else None
    dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=rank, world_size=size)
    try:
        yield World(dist.get_rank(), dist.get_world_size(), local_rank)
    finally:
        dist.destroy_process_group()
