"""Reading samples: against a plain gather of random windows from a numpy.memmap, the usual loader.

The plain gather knows nothing of sources, epochs or documents; the ratio is what knowing costs.
"""

from __future__ import annotations

import bisect
import contextlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.common import Row, Table, main, take_turns
from tasks.files import write_json
from tasks.recipe import Recipe
from tasks.recipe_file import validate
from tasks.tokens.best_fit import best_fit
from tasks.tokens.mix import mix
from tasks.tokens.mixture import load_mix
from tasks.tokens.reader import Reader
from tasks.tokens.shard_writer import SplitWriter
from tasks.tokens.shards import VERSION
from tasks.workspace import Workspace

TOKENS = {"one": 24_000_000, "two": 8_000_000}
VOCABULARY, REPEATS = 50_257, 7
SHAPES = ((1, 1024), (16, 256), (512, 256), (8, 1024), (512, 1024))
TURN_TOKENS = 2_000_000
DOCUMENTS = 100_000


def bench() -> Table:
    """Reading and packing."""
    table = Table(
        "Reading samples, tokens a second; packing documents",
        notes=[
            "theirs: numpy.memmap, a random window cast a row; it knows no source or epoch",
            "packing, theirs: best fit by a sorted list of windows, document by document",
        ],
    )
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        for number, (source, tokens) in enumerate(TOKENS.items()):
            _write(workspace, source, tokens, number)
        for count, seq_len in SHAPES:
            table.rows += _reading(workspace, count, seq_len)
    table.rows.append(_packing())
    return table


def _reading(workspace: Workspace, count: int, seq_len: int) -> list[Row]:
    calls = max(1, TURN_TOKENS // (count * seq_len))
    runs = {"plain memmap": _plain(workspace, count, seq_len, calls)}
    for kind in ("concatenate", "best_fit"):
        reader = _reader(workspace, kind, seq_len)
        runs[kind] = _ours(reader, count, calls, documents=False)
        runs[f"{kind}, document ids"] = _ours(reader, count, calls, documents=True)
    times = take_turns(runs, REPEATS)
    plain, work = times.pop("plain memmap"), calls * count * seq_len
    return [
        Row.of_times(f"{count} x {seq_len}, {name}", ours, plain, work=work, unit="tokens/s")
        for name, ours in times.items()
    ]


def _plain(workspace: Workspace, count: int, seq_len: int, calls: int) -> Callable[[], object]:
    paths = sorted(workspace.root.glob("data/tokens/*/*.bin"))
    maps = [np.memmap(path, np.uint16, "r") for path in paths]
    for tokens in maps:
        tokens.sum()  # every page is mapped, as for a reader that has verified them
    random = np.random.default_rng(0)

    def run() -> None:
        for _ in range(calls):
            tokens = maps[int(random.integers(len(maps)))]
            starts = random.integers(0, len(tokens) - seq_len - 1, count)
            np.stack([tokens[s : s + seq_len + 1].astype(np.int64) for s in starts])

    return run


def _ours(reader: Reader, count: int, calls: int, *, documents: bool) -> Callable[[], object]:
    last, done = len(reader) // count, 0

    def run() -> None:
        nonlocal done
        for call in range(done, done + calls):
            reader.samples(call % last * count, count, documents=documents)
        done += calls

    return run


def _packing() -> Row:
    lengths = np.random.default_rng(0).lognormal(6.2, 1.2, DOCUMENTS).astype(np.int64) + 2
    ends = np.cumsum(lengths)

    def by_sorted_list() -> None:
        rooms: list[int] = []
        for size in sorted((lengths % 1024).tolist(), reverse=True):
            place = bisect.bisect_left(rooms, size)
            room = rooms.pop(place) if place < len(rooms) else 1024
            bisect.insort(rooms, room - size)

    times = take_turns({"ours": lambda: best_fit(ends, 1024), "theirs": by_sorted_list}, REPEATS)
    return Row.of_times(
        "best_fit", times["ours"], times["theirs"], work=DOCUMENTS, unit="documents/s"
    )


def _reader(workspace: Workspace, packing: str, seq_len: int) -> Reader:
    recipe = _recipe(packing, seq_len)
    with contextlib.redirect_stdout(io.StringIO()):
        mix(workspace, recipe, "phase1")
    return Reader(workspace, load_mix(workspace.mix("phase1")))


def _recipe(packing: str, seq_len: int) -> Recipe:
    phase = {"starts_from": "init", "tokens": 50_000_000, "mixture": {"one": 0.7, "two": 0.3}}
    phase |= {"seq_len": seq_len, "batch_tokens": 64 * seq_len, "packing": packing}
    return validate(
        {
            "name": "bench", "description": "reading", "seed": 0,
            "sources": {name: {"files": {"train": ["*.txt"]}} for name in TOKENS},
            "tokenizer": {"kind": "byte_bpe", "vocab_size": VOCABULARY},
            "model": {"d_model": 32, "n_layers": 1, "n_heads": 2, "d_ff": 64, "max_seq_len": 1024},
            "phases": {"phase1": phase}, "release": {"phase": "phase1"},
            **{section: {} for section in ("dedup", "held_out", "training", "evaluation")},
        }
    )  # fmt: skip


def _write(workspace: Workspace, source: str, tokens: int, seed: int) -> None:
    folder, random = workspace.tokens(source), np.random.default_rng(seed)
    folder.mkdir(parents=True)
    writer = SplitWriter(folder, "train", VOCABULARY, 0)
    while writer.tokens < tokens:
        sizes = random.lognormal(6, 1, 500).astype(np.int64) + 2
        documents = [random.integers(1, VOCABULARY, n, dtype=np.uint32) for n in sizes]
        writer.add(documents, (4 * sizes).tolist())
    identity = {"version": VERSION, "dtype": "uint16", "vocab_size": VOCABULARY, "eos_id": 0}
    splits = {"train": writer.finish()}
    write_json(folder / "manifest.json", identity | {"tokenizer": "0" * 64, "splits": splits})


if __name__ == "__main__":
    main(bench)
