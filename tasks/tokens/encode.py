"""Stage ``encode``: the documents of one source become rows of token ids, shard by shard.

    data/documents/<source>/ shards --batches of 1 MB--> a row of ids each --joined in order-->
    data/tokens/<source>/

Every split is encoded. The ids are those of ``tokenizers`` to the last one, and the bytes written
depend neither on the number of workers nor on where a shard of documents ends.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

from tasks import stage
from tasks.data import documents
from tasks.data.documents import read_shard, split_of
from tasks.files import atomic_folder, write_json
from tasks.ledger import Ledger, write_ledgers
from tasks.recipe import Recipe, Split
from tasks.settings import settings
from tasks.shardwise import identity, map_parts, part_folder, work_folder
from tasks.tokens.fast import ENCODERS, Encode, fastest
from tasks.tokens.join import join_parts
from tasks.tokens.shard_writer import SplitWriter
from tasks.tokens.shards import VERSION, dtype_for
from tasks.tokens.text import TextTokenizer, load_tokenizer
from tasks.units import show_count
from tasks.workers import batches
from tasks.workspace import Workspace

SAMPLE_DOCUMENTS = 256
NO_TOKENS = "encodes to nothing"


def encode(workspace: Workspace, recipe: Recipe, source: str) -> None:
    """Encode all documents of ``source`` with the tokenizer of the workspace.

    Raises UserError where documents or tokenizer are missing or damaged.
    """
    os.environ.setdefault("RAYON_NUM_THREADS", str(settings().cores))
    folder, tokenizer_folder = workspace.documents / source, workspace.tokenizer.resolve()
    tokenizer = load_tokenizer(tokenizer_folder)
    sample = [document.text for document in islice(documents.read(folder), SAMPLE_DOCUMENTS)]
    _, encoder = fastest(tokenizer, sample)
    there = documents.shards(folder.resolve())
    paths = [path for split_paths in there.values() for path in split_paths]
    ledger = Ledger("encode", source)
    with work_folder(workspace.work("encode", source)) as work:
        results = map_parts(
            partial(encode_part, source=source, tokenizer=str(tokenizer_folder), encoder=encoder),
            [str(path) for path in paths],
            work / "shards",
            [VERSION, tokenizer.fingerprint, tokenizer.eos_id, identity(paths)],
            title="encoding",
            sizes=[path.stat().st_size for path in paths],
        )
        rows: dict[Split, list[tuple[Path, dict[str, Any]]]] = {}
        for number, (path, result) in enumerate(zip(paths, results, strict=True)):
            ledger.merge(Ledger.from_dict(result["ledger"]))
            if result["entry"]:
                part = (part_folder(work / "shards", number), result["entry"])
                rows.setdefault(split_of(path), []).append(part)
        with atomic_folder(workspace.tokens(source)) as target:
            dtype = dtype_for(tokenizer.vocab_size)
            entries = {name: join_parts(parts, target, name, dtype) for name, parts in rows.items()}
            ledger.notes = {
                name: {key: entry[key] for key in ("documents", "tokens", "text_bytes")}
                | {"bytes_per_token": entry["text_bytes"] / entry["tokens"]}
                for name, entry in entries.items()
            }
            write_json(target / "manifest.json", _manifest(tokenizer, entries))
            write_ledgers(target / "ledger.json", [ledger])
    for name, entry in entries.items():
        print(f"    {name}: {_figures(entry)}, with {encoder}")
    for reason, count in ledger.dropped.items():
        print(f"    dropped {count.documents:,} documents: {reason}")


def encode_part(
    path: str, out: Path, source: str, tokenizer: str, encoder: str
) -> dict[str, dict[str, Any] | None]:
    """Encode one shard of documents into one row in ``out``.

    Returns its ledger, and its entry as a manifest has it (None where nothing has a token).
    """
    encode_texts, words = _encoder(Path(tokenizer), encoder, _stamp_of(Path(tokenizer)))
    split = split_of(Path(path))
    writer = SplitWriter(out, split, words.vocab_size, words.eos_id, shard_tokens=sys.maxsize)
    ledger = Ledger("encode", source)
    for batch in batches(read_shard(Path(path)), lambda document: document.bytes):
        kept = []
        encoded = encode_texts([document.text for document in batch])
        for document, ids in zip(batch, encoded, strict=True):
            if len(ids):
                ledger.keep(document.bytes)
                kept.append((ids, document.bytes))
            else:
                ledger.drop(NO_TOKENS, document.text)
        writer.add([ids for ids, _ in kept], [size for _, size in kept])
    entry = writer.finish() if writer.tokens else None
    return {"ledger": ledger.to_dict(), "entry": entry}


def _stamp_of(folder: Path) -> str:
    """What tells one tokenizer of a folder from the one that replaces it."""
    return str(identity([folder / "tokenizer.json", folder / "tokenizer_config.json"]))


@lru_cache(maxsize=1)
def _encoder(folder: Path, name: str, _stamp: str) -> tuple[Encode, TextTokenizer]:
    tokenizer = load_tokenizer(folder)
    return ENCODERS[name](tokenizer), tokenizer


def _manifest(tokenizer: TextTokenizer, entries: dict[Split, Any]) -> dict[str, Any]:
    return {
        "version": VERSION,
        "dtype": dtype_for(tokenizer.vocab_size).name,
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        "tokenizer": tokenizer.fingerprint,
        "splits": entries,
    }


def _figures(entry: dict[str, Any]) -> str:
    return (
        f"{entry['documents']:,} documents, {show_count(entry['tokens'])} tokens, "
        f"{entry['text_bytes'] / entry['tokens']:.2f} bytes a token"
    )


if __name__ == "__main__":
    stage.main(encode, "source")
