"""Sample efficiency: one phase of a project trained in several ways at equal tokens, over seeds.

    python -m bench.efficiency PHASE --root PROJECT --seeds 3
        --variant muon:optimizer.name=muon --variant masks:document_mask=true

The project's text, tokenizer and shards are used as they are; weights and order are drawn anew from
each seed. A difference is taken seed by seed, so that what the seed does to both falls out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from bench.common import hardware, versions
from tasks.errors import UserError
from tasks.training.history import read_history

BASE = "as in the recipe"
FOLDERS = ("documents", "tokenizer", "tokens")
Overrides = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """Bits per byte at the end, mean over the held-out sets, by kind of weights."""

    by_weights: dict[str, float]
    tokens_per_second: float


def run(root: Path, phase: str, overrides: Overrides, seed: int) -> Result:
    """Train the phase in a folder of its own."""
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        yaml = YAML()
        recipe = yaml.load((root / "params.yaml").read_text("utf-8"))
        recipe["seed"] = seed
        settings = recipe["phases"][phase]
        settings["starts_from"] = "init"
        for key, value in overrides.items():
            *path, last = key.split(".")
            place_of = settings
            for part in path:
                place_of = place_of.setdefault(part, {})
            place_of[last] = value
        recipe["phases"] = {phase: settings}
        recipe["release"]["phase"] = phase
        with open(work / "params.yaml", "w", encoding="utf-8") as file:
            yaml.dump(recipe, file)
        (work / "data").mkdir()
        for name in FOLDERS:
            (work / "data" / name).symlink_to((root / "data" / name).resolve())
        stages = [["tokens.mix", phase], ["training.init"], ["training.train", phase]]
        for module, *name in stages:
            command = [sys.executable, "-m", f"tasks.{module}", *name, "--root", str(work)]
            environment = os.environ | {"PHASEWISE_TRACK": "false"}
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise UserError(done.stderr.strip())
        records = read_history(work / "metrics" / phase / "history.jsonl")
    last = max(r["step"] for r in records if r["kind"] == "validation")
    scores: dict[str, list[float]] = {}
    for record in records:
        if record["kind"] == "validation" and record["step"] == last:
            scores.setdefault(record["weights"], []).append(record["bits_per_byte"])
    rate = statistics.median(r["tokens_per_second"] for r in records if r["kind"] == "train")
    return Result({name: statistics.fmean(values) for name, values in scores.items()}, rate)


def table(results: dict[str, list[Result]]) -> str:
    """Markdown: mean and standard deviation over seeds, and how far from the recipe's own."""
    lines = [
        "| variant | weights | bits per byte | difference | tokens/s |",
        "|---|---|---:|---:|---:|",
    ]
    for name, runs in results.items():
        for weights in runs[0].by_weights:
            values = [r.by_weights[weights] for r in runs]
            others = [r.by_weights[weights] for r in results[BASE]]
            apart = [a - b for a, b in zip(values, others, strict=True)]
            rate = statistics.median(r.tokens_per_second for r in runs)
            differs = "" if name == BASE else _spread(apart, "+")
            lines.append(f"| {name} | {weights} | {_spread(values)} | {differs} | {rate:,.0f} |")
    return "\n".join(lines)


def _spread(values: list[float], sign: str = "") -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):{sign}.4f} ± {deviation:.4f}"


def parse(text: str) -> tuple[str, Overrides]:
    """``muon:optimizer.name=muon,lr=3e-3`` -> its name and what it changes in the phase."""
    name, _, changes = text.partition(":")
    pairs = [change.partition("=") for change in changes.split(",")]
    return name, {key: YAML(typ="safe", pure=True).load(value) for key, _, value in pairs}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.efficiency",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("phase")
    parser.add_argument("--root", type=Path, default=Path(), help="a project with its shards made")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variant", action="append", default=[], metavar="NAME:KEY=VALUE,...")
    given = parser.parse_args()
    variants: dict[str, Overrides] = {BASE: {}} | dict(map(parse, given.variant))
    results: dict[str, list[Result]] = {name: [] for name in variants}
    for seed in range(1, given.seeds + 1):
        for name, overrides in variants.items():
            result = run(given.root, given.phase, overrides, seed)
            results[name].append(result)
            print(f"seed {seed}, {name}: {result.by_weights}", file=sys.stderr, flush=True)
    print(table(results))
    print(f"\n{hardware()}; {versions('torch')}; {given.seeds} seeds, mean ± standard deviation")


if __name__ == "__main__":
    main()
