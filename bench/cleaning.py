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
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from bench.common import Row, Table, main
from tasks.data.profiles import PROFILES, Cleaner, Dropped
from tasks.data.rows import Row as SourceRow
from tasks.data.rows import Template, articles

HUB = Path(os.environ.get("PHASEWISE_BENCH_HUB", "../shared/hub"))
BYTES, REPEATS = 4_000_000, 7


class Source(NamedTuple):
    """A data set's folder; the columns that make a text, joined by a line feed; the splits."""

    folder: str
    columns: tuple[str, ...] = ("text",)
    splits: tuple[str, ...] = ("train",)
    regroup: bool = False  # rows are lines of WikiText: texts are its articles


SOURCES = {
    "plain": Source("Skylion007/openwebtext/plain_text"),
    "encyclopedia": Source("wikimedia/wikipedia/20231101.en"),
    "wikitext": Source(
        "Salesforce/wikitext/wikitext-103-raw-v1", splits=("validation", "test"), regroup=True
    ),
    "news": Source("abisee/cnn_dailymail/3.0.0", ("article",)),
    "web": Source("Skylion007/openwebtext/plain_text"),
    "latex": Source("togethercomputer/RedPajama-Data-1T/arxiv"),
    "dialogue": Source("databricks/databricks-dolly-15k/default", ("instruction", "response")),
    "stories": Source("roneneldan/TinyStories/default"),
}
MIN_WORDS = 30


def bench() -> Table:
    """Cleaning, by profile."""
    table = Table(
        "Cleaning, MB a second of one core",
        notes=["theirs: the same texts through the profile plain (characters, white space)"],
    )
    for profile, source in SOURCES.items():
        texts = list(sample(source))
        if not texts:
            table.notes.append(f"{profile}: nothing at {HUB / source.folder}, not measured")
            continue
        table.rows.append(measure(profile, texts))
        dropped = sum(isinstance(Cleaner(profile, MIN_WORDS).clean(t), Dropped) for t in texts)
        table.notes.append(
            f"{profile}: {len(texts):,} texts of {source.folder}, {dropped:,} dropped"
        )
    return table


def measure(profile: str, texts: list[str]) -> Row:
    """The two cleaners take turns."""
    assert profile in PROFILES
    ours, plain = Cleaner(profile, MIN_WORDS), Cleaner("plain", MIN_WORDS)
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for turn in range(REPEATS + 1):
        for name, cleaner in (("ours", ours), ("plain", plain)):
            seconds = _processor_seconds(cleaner, texts)
            if turn:
                times[name].append(seconds)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    print(f"    {profile}: {megabytes / statistics.median(times['ours']):.1f} MB/s", flush=True)
    return Row.of_times(profile, times["ours"], times["plain"], work=megabytes, unit="MB/s")


def sample(source: Source) -> Iterator[str]:
    """Texts spread over the splits, up to ``BYTES``."""
    import pyarrow.parquet as pq

    folder = HUB / source.folder
    rows: list[str] = []
    for path in chain(*(sorted(folder.glob(f"{split}-*.parquet")) for split in source.splits)):
        table = pq.read_table(path, columns=list(source.columns))
        parts = zip(*(table[name].to_pylist() for name in source.columns), strict=True)
        rows += ["\n".join(part) for part in parts]
    if source.regroup:
        lines = (SourceRow({"text": row}, {}) for row in rows)
        rows = [text for text, _ in articles(lines, Template("{text}", "bench"))]
    size = sum(map(len, rows))
    step = max(1, size // BYTES)
    yield from rows[::step]


def _processor_seconds(cleaner: Cleaner, texts: list[str]) -> float:
    started = time.process_time()
    for text in texts:
        cleaner.clean(text)
    return time.process_time() - started


if __name__ == "__main__":
    main(bench)
