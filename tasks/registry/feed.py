"""From the lines of a history.jsonl to the points of MLflow's charts, as the file grows."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from tasks.errors import BAD_DATA, NO_INPUT, UserError
from tasks.registry.provenance import record_name

TRAIN = ("loss", "lr", "grad_norm", "tokens_per_second", "mfu", "balance_loss", "router_z_loss",
         "expert_load_max", "expert_dropped")  # fmt: skip
VALIDATION = ("bits_per_byte", "perplexity")
FINAL = "final_bits_per_byte/"
SYSTEM = "system/"  # MLflow shows what begins so on a page of its own


class Point(NamedTuple):
    """One value of one metric; ``step`` in tokens, so that the x axis is tokens."""

    name: str
    value: float
    step: int
    milliseconds: int


class Dataset(NamedTuple):
    """What a run read: a name, where it lies, its fingerprint, a few figures, and what for."""

    name: str
    source: str
    fingerprint: str
    figures: dict[str, Any]
    context: str = "train"


class Tail:
    """Reads what was appended to a file of JSON lines since it was last asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = self._line = 0

    def read(self) -> list[dict[str, Any]]:
        """The new whole lines; all of them again where the file has become shorter.

        Raises UserError where the file is missing or a line is not a JSON object.
        """
        try:
            with open(self.path, "rb") as file:
                if file.seek(0, os.SEEK_END) < self._offset:
                    self._offset = self._line = 0
                file.seek(self._offset)
                whole, newline, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            raise UserError(f"{self.path} is missing", exit_code=NO_INPUT) from None
        if not newline:
            return []
        records = [self._parse(line) for line in whole.split(b"\n")]
        self._offset += len(whole) + 1
        return records

    def _parse(self, line: bytes) -> dict[str, Any]:
        self._line += 1
        try:
            record = json.loads(line)
            record["kind"]
        except (ValueError, TypeError, KeyError) as error:
            where = f"{self.path}:{self._line}"
            raise UserError(f"not a record: {error!r}", where=where, exit_code=BAD_DATA) from None
        return dict(record)


def points(records: Iterable[dict[str, Any]], tokens_before: int) -> Iterator[Point]:
    """The metrics in a history's records; values that are missing or not finite are left out.

    A point's step is the tokens of all phases up to it, so that phases follow each other on one
    axis.
    """
    for record in records:
        if record["kind"] == "train":
            names = {name: f"train/{name}" for name in TRAIN}
        elif record["kind"] == "validation":
            place = f"validation/{record['set'].rsplit('/', 1)[0]}"
            prefix = "ema_" if record["weights"] == "ema" else ""
            names = {name: f"{place}/{prefix}{name}" for name in VALIDATION}
        elif record["kind"] == "layers":
            names = {name: f"grad_norm/{name}" for name in record["grad_norms"]}
            record = record | record["grad_norms"]
        elif record["kind"] == "system":
            names = {name: SYSTEM + name for name in record["figures"]}
            record = record | record["figures"]
        else:
            continue
        milliseconds = int(record["time"] * 1000)
        for name, metric in names.items():
            value = record.get(name)
            if _is_number(value):
                yield Point(
                    record_name(metric), value, tokens_before + record["tokens"], milliseconds
                )


def final_metrics(evaluation: dict[str, Any]) -> dict[str, float]:
    """``final_bits_per_byte/<source>.<split>.<weights>`` of an evaluation/<phase>.json.

    One slash: MLflow's page draws what stands before it as one section.
    """
    return {
        record_name(f"{FINAL}{name.replace('/', '.')}.{weights}"): figures["bits_per_byte"]
        for name, by_weights in evaluation.items()
        for weights, figures in by_weights.items()
        if _is_number(figures["bits_per_byte"])
    }


def generation_metrics(generation: dict[str, Any]) -> dict[str, float]:
    """``generation/<weights>_<measure>`` of what an evaluation/<phase>.generation.json holds."""
    return {
        record_name(f"generation/{weights}_{measure}"): value
        for weights, measures in generation.get("measures", {}).items()
        for measure, value in measures.items()
        if _is_number(value)
    }


def benchmark_metrics(benchmarks: dict[str, Any]) -> dict[str, float]:
    """``benchmark/<task>_<metric>`` of what evaluation/benchmarks.json holds."""
    return {
        record_name(f"benchmark/{task}_{result['metric']}"): result["value"]
        for task, result in benchmarks.items()
        if _is_number(result["value"])
    }


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)
