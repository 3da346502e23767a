"""Encoding with byte-level BPE: ours against tiktoken's own `encode_ordinary_batch`.

Both have the same words and ranks and the same threads, and the ids are compared first. Its batch
call hands each text to a thread, which costs it; a plain loop stands beside it. The last row is all
that the stage does to a shard, from parquet to a file of ids, against tiktoken with the texts in
memory. The text is the documentation of this Python installation; the tokenizer is GPT-2's where
PHASEWISE_HUB names a mirror that holds it, else one trained on that text.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.common import Row, Table, main, take_turns
from tasks.data.documents import Document, Writer, shards
from tasks.recipe import Hub, Tokenizer
from tasks.settings import settings
from tasks.tokens.encode import encode_part
from tasks.tokens.encoder import Ids
from tasks.tokens.fast import fastest, tiktoken_ranks
from tasks.tokens.pretrained import Built, pretrained
from tasks.tokens.text import TextTokenizer
from tasks.tokens.tokenizer import write_folder
from tasks.tokens.train import train
from tasks.workers import batches, map_in_threads

GPT2 = "openai-community/gpt2"
BYTES = 12_000_000
VOCAB_SIZE = 32_000
REPEATS = 7


def corpus() -> list[str]:
    """Documentation, ``BYTES`` of it or all that there is."""
    from tasks.data.installed import InstalledReader

    texts: list[str] = []
    held = 0
    for kind in ("stdlib", "packages"):
        for row in InstalledReader(kind).rows("train"):
            texts.append(str(row.values["text"]))
            held += len(texts[-1])
            if held >= BYTES:
                return texts
    return texts


def tokenizer(texts: list[str]) -> tuple[Built, str]:
    """A byte-level BPE tokenizer, and what it is."""
    mirror = settings().hub
    if mirror and (mirror / GPT2 / "tokenizer.json").exists():
        return pretrained(Hub(id=GPT2, revision="mirror"), Path()), "GPT-2's tokenizer"
    with contextlib.redirect_stderr(io.StringIO()):
        built = Built(*train(Tokenizer(vocab_size=VOCAB_SIZE), texts), {})
    return built, f"{VOCAB_SIZE:,} ids, trained on this text"


def peer(ready: TextTokenizer) -> tuple[Any, Ids]:
    """tiktoken with GPT-2's pattern as it ships it and the same ranks, and our id of each rank."""
    from tiktoken import Encoding
    from tiktoken_ext.openai_public import r50k_pat_str  # type: ignore[import-untyped]

    ranks, id_of_rank = tiktoken_ranks(ready.spec)
    special = {ready.eos_token: len(ranks)}
    encoding = Encoding("peer", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)
    return encoding, id_of_rank


def bench() -> Table:
    """Encoding with byte-level BPE."""
    texts = corpus()
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    built, what = tokenizer(texts)
    with tempfile.TemporaryDirectory() as folder:
        runs, name = _runs(texts, built, Path(folder))
        times = take_turns(runs, REPEATS)
    table = Table(
        "Encoding with byte-level BPE",
        notes=[f"{what}; {megabytes:.1f} MB of text in {len(texts):,} documents; ours: {name}"],
    )
    for row, ours, theirs in (
        ("one thread", "ours, 1", "theirs, 1"),
        ("one thread, a loop of encode_ordinary", "ours, 1", "loop"),
        (f"{settings().cores} threads", "ours, all", "theirs, all"),
        ("one thread, shard to token files", "stage", "theirs, 1"),
    ):
        table.rows.append(
            Row.of_times(row, times[ours], times[theirs], work=megabytes, unit="MB/s")
        )
    return table


def _runs(
    texts: list[str], built: Built, folder: Path
) -> tuple[dict[str, Callable[[], object]], str]:
    """What is measured, by name, and the name of our encoder."""
    ready = TextTokenizer(built.content, built.special["eos_token"])
    encode, name = fastest(ready, texts)
    tiktoken, id_of_rank = peer(ready)
    for ours, theirs in zip(encode(texts), tiktoken.encode_ordinary_batch(texts), strict=True):
        if not np.array_equal(ours, id_of_rank[theirs]):
            raise SystemExit("the two do not give the same ids")
    blocks, cores = list(batches(texts, len)), settings().cores
    return {
        "ours, 1": lambda: encode(texts),
        "theirs, 1": lambda: tiktoken.encode_ordinary_batch(texts, num_threads=1),
        "loop": lambda: [tiktoken.encode_ordinary(text) for text in texts],
        "stage": _stage(texts, built, folder, name),
        "ours, all": lambda: list(map_in_threads(encode, blocks)),
        "theirs, all": lambda: tiktoken.encode_ordinary_batch(texts, num_threads=cores),
    }, name


def _stage(texts: list[str], built: Built, folder: Path, name: str) -> Callable[[], object]:
    """All that the stage does to one shard of documents."""
    write_folder(folder, built, 1024)
    with Writer(folder / "texts", shard_bytes=None) as writer:
        for text in texts:
            writer.add(Document.of(text, "docs", "train", "{}"))
    (shard,) = shards(folder / "texts")["train"]

    def run() -> None:
        out = folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        encode_part(str(shard), out, "docs", str(folder), name)

    return run


if __name__ == "__main__":
    main(bench)
