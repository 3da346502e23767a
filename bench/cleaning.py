"""Cleaning, MB of text a second of processor time on one core: each profile on its kind of text.

    PHASEWISE_BENCH_HUB=<a mirror of the hub> python -m bench.cleaning

``theirs`` is the same text through character repair and white space alone (the profile ``plain``):
the ratio is what a profile's own edits and rules cost. Processor time, not the clock: other
programs on the machine disturb it less.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.common import Row, Table, main
from tasks.data.profiles import PROFILES, Cleaner, Dropped

HUB = Path(os.environ.get("PHASEWISE_BENCH_HUB", "../shared/hub"))
BYTES, REPEATS = 4_000_000, 7
SOURCES = {  # profile -> data set and configuration, columns
    "plain": ("Skylion007/openwebtext/plain_text", ("text",)),
    "encyclopedia": ("wikimedia/wikipedia/20231101.en", ("text",)),
    "news": ("abisee/cnn_dailymail/3.0.0", ("article",)),
    "web": ("Skylion007/openwebtext/plain_text", ("text",)),
    "latex": ("togethercomputer/RedPajama-Data-1T/arxiv", ("text",)),
    "dialogue": ("databricks/databricks-dolly-15k/default", ("instruction", "response")),
    "stories": ("roneneldan/TinyStories/default", ("text",)),
}
MIN_WORDS = 30


def bench() -> Table:
    """Cleaning, by profile."""
    table = Table(
        "Cleaning, MB a second of one core",
        notes=["theirs: the same texts through the profile plain (characters, white space)"],
    )
    for profile, (folder, columns) in SOURCES.items():
        texts = list(sample(HUB / folder, columns))
        if not texts:
            table.notes.append(f"{profile}: nothing at {HUB / folder}, not measured")
            continue
        table.rows.append(measure(profile, texts))
        dropped = sum(isinstance(Cleaner(profile, MIN_WORDS).clean(t), Dropped) for t in texts)
        table.notes.append(f"{profile}: {len(texts):,} texts of {folder}, {dropped:,} dropped")
    return table


def measure(profile: str, texts: list[str]) -> Row:
    """The two cleaners take turns."""
    assert profile in PROFILES
    ours, plain = Cleaner(profile, MIN_WORDS), Cleaner("plain", MIN_WORDS)
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for turn in range(REPEATS + 1):
        for name, cleaner in (("ours", ours), ("plain", plain)):
            seconds = _processor_seconds(lambda c=cleaner: [c.clean(text) for text in texts])
            if turn:
                times[name].append(seconds)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    print(f"    {profile}: {megabytes / statistics.median(times['ours']):.1f} MB/s", flush=True)
    return Row.of_times(profile, times["ours"], times["plain"], work=megabytes, unit="MB/s")


def sample(folder: Path, columns: tuple[str, ...]) -> Iterator[str]:
    """Texts spread over the training split, up to ``BYTES``; columns are joined by a line feed."""
    import pyarrow.parquet as pq

    rows: list[str] = []
    for path in sorted(folder.glob("train-*.parquet")):
        table = pq.read_table(path, columns=list(columns))
        parts = zip(*(table[name].to_pylist() for name in columns), strict=True)
        rows += ["\n".join(part) for part in parts]
    size, step = sum(map(len, rows)), 0
    step = max(1, size // BYTES)
    yield from rows[::step]


def _processor_seconds(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


if __name__ == "__main__":
    main(bench)
