"""Near duplicates, from texts to decisions on one core: against datasketch and rensa.

All read the same parquet file and find near duplicates by MinHash over shingles of five words, with
as many hashes and bands. The peers say what their index says; ours verifies every candidate by its
true Jaccard similarity. The text is the documentation of this Python installation (of texts that
begin alike the first alone), with an edited copy of every fiftieth document; recall is the share
of the copies of a true similarity of at least 0.8 that were found.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from bench.common import Row, Table, main, take_turns
from tasks.data.documents import Document, Writer, shards
from tasks.data.duplicates import STAYS, find_duplicates, sketch_of
from tasks.data.fingerprints import fingerprint_part
from tasks.data.texts import shard_part
from tasks.recipe import Dedup
from tasks.settings import settings
from tasks.shardwise import work_folder

SETTINGS = Dedup(exact=False)
BYTES = 24_000_000
LEAST_WORDS = 60
OPENING = 40  # characters
REPEATS = 5


def corpus() -> tuple[list[str], list[tuple[int, int]]]:
    """Texts, and the pairs (text, edited copy) that are near duplicates."""
    from tasks.data.installed import InstalledReader

    draw = random.Random(0)
    texts: list[str] = []
    pairs: list[tuple[int, int]] = []
    held = 0
    openings: set[str] = set()
    originals = (
        str(row.values["text"])
        for kind in ("stdlib", "packages")
        for row in InstalledReader(kind).rows("train")
    )
    for text in originals:
        if len(text.split()) < LEAST_WORDS or text[:OPENING] in openings:
            continue
        openings.add(text[:OPENING])
        texts.append(text)
        held += len(text)
        if len(texts) % 50 == 49:
            words = text.split(" ")
            for _ in range(draw.randint(1, 1 + len(words) // 60)):
                words[draw.randrange(len(words))] = f"edited{draw.random()}"
            copy = " ".join(words)
            if similarity(text, copy) >= SETTINGS.threshold:
                pairs.append((len(texts) - 1, len(texts)))
                texts.append(copy)
                held += len(copy)
        if held >= BYTES:
            break
    return texts, pairs


def tokens(text: str) -> list[str]:
    """Runs of five words, the way the peers' users make them."""
    words = text.lower().split()
    n = SETTINGS.ngram
    return [" ".join(words[i : i + n]) for i in range(max(1, len(words) - n + 1))]


def similarity(a: str, b: str) -> float:
    """The lesser of the two that words between white space and runs of letters and digits give."""
    plain = [re.sub(r"[\W_]+", " ", text) for text in (a, b)]
    pairs = [[set(tokens(text)) for text in pair] for pair in ((a, b), plain)]
    return min(len(first & second) / len(first | second) for first, second in pairs)


def ours(path: Path, folder: Path) -> set[int]:
    """The documents that go."""
    quiet = io.StringIO()
    with (
        contextlib.redirect_stdout(quiet),
        contextlib.redirect_stderr(quiet),
        work_folder(folder / "work") as work,
    ):
        verdicts = find_duplicates([shard_part(path)], [path.stat().st_size], SETTINGS, work)
        return {i for i, reason in enumerate(verdicts.reason.tolist()) if reason != STAYS}


def our_signatures(path: Path, folder: Path) -> None:
    shutil.rmtree(folder / "prints", ignore_errors=True)
    (folder / "prints").mkdir()
    fingerprint_part(shard_part(path), folder / "prints", sketch_of(SETTINGS))


def rensa_signatures(path: Path) -> Any:
    """All digests, in the quickest way it offers."""
    from rensa import RMinHash

    bands, rows = sketch_of(SETTINGS)[-2:]
    return RMinHash.digest_matrix_from_token_sets(map(tokens, _read(path)), bands * rows, 42)


def _read(path: Path) -> list[str]:
    texts: list[str] = pq.read_table(path)["text"].to_pylist()
    return texts


def datasketch(path: Path) -> set[int]:
    from datasketch import MinHash, MinHashLSH

    bands, rows = sketch_of(SETTINGS)[-2:]
    index = MinHashLSH(num_perm=bands * rows, params=(bands, rows))
    gone = set()
    for number, text in enumerate(_read(path)):
        made = MinHash(num_perm=bands * rows)
        made.update_batch([token.encode() for token in tokens(text)])
        if index.query(made):
            gone.add(number)
        else:
            index.insert(number, made)
    return gone


def rensa(path: Path) -> set[int]:
    from rensa import RMinHashLSH

    bands, rows = sketch_of(SETTINGS)[-2:]
    index = RMinHashLSH(SETTINGS.threshold, bands * rows, bands)
    flags = index.query_duplicate_flags_matrix_one_shot(rensa_signatures(path))
    return {number for number, flag in enumerate(flags) if flag}


def bench() -> Table:
    bands, rows = sketch_of(SETTINGS)[-2:]
    table = Table(
        "Near duplicates, one core",
        notes=[f"threshold {SETTINGS.threshold}, {bands} bands of {rows} rows"],
    )
    os.environ["PHASEWISE_WORKERS"] = "1"
    settings.cache_clear()
    texts, pairs = corpus()
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        with Writer(Path(folder) / "texts", shard_bytes=None) as writer:
            for text in texts:
                writer.add(Document.of(text, "docs", "train", "{}"))
        (path,) = shards(Path(folder) / "texts")["train"]
        found: dict[str, set[int]] = {}

        def keep(name: str, work: Callable[[], set[int]]) -> Callable[[], None]:
            return lambda: found.update({name: work()})

        times = take_turns(
            {
                "ours": keep("ours", lambda: ours(path, Path(folder))),
                "datasketch": keep("datasketch", lambda: datasketch(path)),
                "rensa": keep("rensa", lambda: rensa(path)),
                "our signatures": lambda: our_signatures(path, Path(folder)),
                "rensa's signatures": lambda: rensa_signatures(path),
            },
            repeats=REPEATS,
        )
    signatures = times["our signatures"], times["rensa's signatures"]
    table.rows.append(
        Row.of_times("text to signatures, rensa", *signatures, work=megabytes, unit="MB/s")
    )
    for name in ("datasketch", "rensa"):
        table.rows.append(
            Row.of_times(
                f"text to decisions, {name}",
                times["ours"],
                times[name],
                work=megabytes,
                unit="MB/s",
            )
        )
        shares = [sum(copy in found[who] or original in found[who] for original, copy in pairs)
                  / len(pairs) for who in ("ours", name)]  # fmt: skip
        table.rows.append(Row(f"recall, {name}", [shares[0]], [shares[1]], "of the copies"))
    return table


if __name__ == "__main__":
    main(bench)
