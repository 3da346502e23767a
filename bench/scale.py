"""Does the data half of the pipeline scale: memory that stays, time in proportion?

    python -m bench.scale 0.3 1 --text '/data/hub/**/*.parquet' --folder /tmp/scale

Makes corpora of so many gigabytes from real text: every document is a stretch of it in which each
fourth word is drawn anew, so that none repeats another, but for known shares of exact and of near
duplicates. Runs every data stage as a child process and shows, a stage: the peak of the resident
memory of its whole process tree, CPU seconds (which, unlike the time on the clock, do not depend
on who else uses the machine) and their growth from one size to the next, over the growth in bytes.
"""

from __future__ import annotations

import argparse
import glob
import json
import random
import resource
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

POOL_BYTES = 60_000_000  # of real text that the documents are made from
FILE_BYTES = 100_000_000
EXACT, NEAR = 0.03, 0.03  # shares of documents that duplicate an earlier one
REMEMBERED = 2000  # earlier documents that may be duplicated
POLL_SECONDS = 0.05
SOURCE = "text"
STAGES = (
    ("download", "tasks.data.download", True),
    ("clean", "tasks.data.clean", True),
    ("dedup", "tasks.data.dedup", False),
    ("split", "tasks.data.split", False),
    ("tokenizer", "tasks.tokens.tokenizer", False),
    ("encode", "tasks.tokens.encode", True),
)


@dataclass
class Cost:
    """What one stage took."""

    stage: str
    gigabytes: float
    seconds: float
    cpu_seconds: float
    peak_bytes: int  # resident, summed over the process tree; a shared page counts once a process
    peak_own_bytes: int  # the same without pages of files, which the kernel may drop


def words_of(pattern: str) -> list[str]:
    """Real text, cut at single spaces, from the string columns of parquet files."""
    import pyarrow.parquet as pq

    held, words = 0, []
    paths = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
    for path in paths:
        share = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(256):
                for row in batch.to_pylist():
                    for value in row.values():
                        if isinstance(value, str) and len(value) > 200 and "\0" not in value:
                            words.extend(value.split(" "))
                            share += len(value)
                if share > POOL_BYTES / len(paths):
                    break
        held += share
    assert held, f"no text matches {pattern!r}"
    return words


def documents(words: list[str], gigabytes: float, seed: int = 0) -> Iterator[tuple[str, str]]:
    """Text and kind (new, exact or near) of documents of so many bytes in all."""
    draw = random.Random(seed)
    earlier: deque[list[str]] = deque(maxlen=REMEMBERED)
    left = gigabytes * 1e9
    while left > 0:
        kind, chance = "new", draw.random()
        if earlier and chance < EXACT:
            kind, own = "exact", list(draw.choice(earlier))
        elif earlier and chance < EXACT + NEAR:
            kind, own = "near", list(draw.choice(earlier))
            own[draw.randrange(len(own))] = f"changed{draw.randrange(10**9)}"
        else:
            count = max(60, min(20_000, int(draw.lognormvariate(5.5, 0.9))))
            start = draw.randrange(len(words) - count)
            own = words[start : start + count]
            for place in range(draw.randrange(4), count, 4):
                own[place] = words[int(draw.random() * len(words))]
            earlier.append(own)
        text = " ".join(own)
        left -= len(text.encode())
        yield text, kind


def write_corpus(folder: Path, words: list[str], gigabytes: float) -> dict[str, int]:
    """JSON lines in files of about ``FILE_BYTES``; returns how many documents of each kind."""
    counts = {"new": 0, "exact": 0, "near": 0}
    folder.mkdir(parents=True)
    number, handle = 0, open(folder / "00000.jsonl", "w", encoding="utf-8")
    for text, kind in documents(words, gigabytes):
        counts[kind] += 1
        handle.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        if handle.tell() > FILE_BYTES:
            handle.close()
            number += 1
            handle = open(folder / f"{number:05d}.jsonl", "w", encoding="utf-8")
    handle.close()
    return counts


def recipe() -> dict[str, Any]:
    return {
        "name": "scale",
        "description": "Text made to measure",
        "seed": 1,
        "sources": {SOURCE: {"files": {"train": ["corpus/*.jsonl"]}}},
        "tokenizer": {"kind": "byte_bpe", "vocab_size": 8000, "sample_bytes": "20M"},
        "model": {"d_model": 32, "n_layers": 1, "n_heads": 2, "d_ff": 64, "max_seq_len": 64},
        "phases": {
            "phase1": {
                "starts_from": "init",
                "tokens": 3200,
                "mixture": {SOURCE: 1.0},
                "seq_len": 32,
                "batch_tokens": 320,
            }
        },
        **{section: {} for section in ("dedup", "held_out", "training", "evaluation")},
        "release": {"phase": "phase1"},
    }


def measured(stage: str, module: str, of_source: bool, root: Path, gigabytes: float) -> Cost:
    """Run one stage as a child process and watch its tree."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    command = [sys.executable, "-m", module, *([SOURCE] if of_source else []), "--root", str(root)]
    child = subprocess.Popen(command)
    peak = own = 0
    while child.poll() is None:
        there = tree_memory(child.pid)
        peak, own = max(peak, there[0]), max(own, there[1])
        time.sleep(POLL_SECONDS)
    if child.returncode:
        sys.exit(f"{stage} failed with exit code {child.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(stage, gigabytes, time.monotonic() - started, cpu, peak, own)


def tree_memory(root: int) -> tuple[int, int]:
    """Resident bytes of a process and all below it: all pages, and those of no file."""
    whole = own = 0
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        try:
            fields = dict(
                line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            )
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += [int(word) for word in (task / "children").read_text().split()]
        except OSError:  # it has ended
            continue
        size = {key: int(fields.get(key, "0 kB").split()[0]) * 1024 for key in _KINDS}
        whole += sum(size.values())
        own += size["RssAnon"] + size["RssShmem"]
    return whole, own


_KINDS = ("RssAnon", "RssFile", "RssShmem")


def show(costs: list[Cost]) -> None:
    """A line a stage and size, with the growth of CPU seconds over the growth in bytes."""
    print(f"{'stage':<11}{'GB':>5}{'peak MB':>9}{'own MB':>8}{'seconds':>9}{'CPU s':>8}  growth")
    first: dict[str, Cost] = {}
    for cost in sorted(
        costs, key=lambda c: ([s for s, _, _ in STAGES].index(c.stage), c.gigabytes)
    ):
        least = first.setdefault(cost.stage, cost)
        growth = (cost.cpu_seconds / least.cpu_seconds) / (cost.gigabytes / least.gigabytes)
        print(
            f"{cost.stage:<11}{cost.gigabytes:>5g}{cost.peak_bytes / 1e6:>9.0f}"
            f"{cost.peak_own_bytes / 1e6:>8.0f}{cost.seconds:>9.1f}{cost.cpu_seconds:>8.1f}"
            + ("" if least is cost else f"  {growth:.2f}")
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("gigabytes", nargs="+", type=float)
    parser.add_argument("--text", required=True, metavar="GLOB", help="parquet files of real text")
    parser.add_argument("--folder", type=Path, required=True, help="an empty one, with room")
    parser.add_argument("--stages", nargs="+", default=[name for name, _, _ in STAGES])
    parser.add_argument("--json", type=Path, help="write the figures here too")
    given = parser.parse_args()
    words = words_of(given.text)
    costs = []
    for gigabytes in given.gigabytes:
        root = given.folder / f"{gigabytes:g}"
        if not root.exists():
            made = write_corpus(root / "corpus", words, gigabytes)
            (root / "params.yaml").write_text(json.dumps(recipe()))  # JSON is YAML
            (root / "made.json").write_text(json.dumps(made))
        print(f"{gigabytes:g} GB: {(root / 'made.json').read_text()}", flush=True)
        for stage, module, of_source in STAGES:
            if stage in given.stages:
                costs.append(measured(stage, module, of_source, root, gigabytes))
    show(costs)
    if given.json:
        given.json.write_text(json.dumps([asdict(cost) for cost in costs], indent=1))


if __name__ == "__main__":
    main()
