"""The samples of one step, as this rank's rows on its device.

    step -> plan: samples first .. first + n -> this rank's part -> [shorter rows] -> micro-batches

All of it is a function of the step's number, the ranks and the recipe; nothing is carried over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.errors import UserError
from tasks.recipe import Phase
from tasks.tokens.reader import Reader
from tasks.training.world import World


@dataclass(frozen=True)
class Batch:
    """Rows of token ids with their targets, each (rows, length); document ids where asked for."""

    inputs: Tensor
    targets: Tensor
    documents: Tensor | None

    @property
    def valid(self) -> Tensor:
        """Number of targets that count, ()."""
        return (self.targets >= 0).sum()

    def split(self, rows: int) -> Iterator[Batch]:
        """Micro-batches of ``rows`` rows, or the largest smaller number that divides this batch."""
        count = len(self.inputs)
        rows = next(n for n in range(min(rows, count), 0, -1) if count % n == 0)
        for start in range(0, count, rows):
            part = slice(start, start + rows)
            documents = None if self.documents is None else self.documents[part]
            yield Batch(self.inputs[part], self.targets[part], documents)

    def to(self, device: torch.device) -> Batch:
        """The same on a device; to a GPU without waiting for the copy."""

        def move(tensor: Tensor) -> Tensor:
            if device.type == "cuda":
                tensor = tensor.pin_memory()
            return tensor.to(device, non_blocking=True)

        documents = None if self.documents is None else move(self.documents)
        return Batch(move(self.inputs), move(self.targets), documents)


def samples_of(settings: Phase, step: int, world: World) -> tuple[int, int]:
    """The first sample that this rank reads in a step, and how many.

    Raises UserError where the ranks cannot share the step's samples evenly.
    """
    samples = settings.samples_at(step)
    count = len(samples)
    if count % world.size:
        raise UserError(
            f"a step of {count} samples cannot be shared by {world.size} processes",
            where="PHASEWISE_LAUNCH",
            hint=f"use a number of processes that divides {count}, or another batch_tokens",
        )
    share = count // world.size
    return samples[world.rank * share], share


def read_batch(reader: Reader, settings: Phase, step: int, world: World) -> Batch:
    """This rank's rows of a step, on the CPU."""
    first, count = samples_of(settings, step, world)
    samples = reader.samples(first, count, documents=settings.document_mask)
    rows = count * settings.rows(settings.plan.at(step).first)
    tokens, targets = torch.from_numpy(samples.tokens), torch.from_numpy(samples.targets)
    documents = None
    if samples.document_ids is not None:
        documents = torch.from_numpy(samples.document_ids)[:, :-1].reshape(rows, -1)
    return Batch(tokens[:, :-1].reshape(rows, -1), targets.reshape(rows, -1), documents)
