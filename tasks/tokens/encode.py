"""Stage ``encode``: the documents of one source become rows of token ids, on all cores.

    data/documents/<source>/  --batches of 1 MB--> threads --in order--> data/tokens/<source>/

Every split is encoded. The ids are those of ``tokenizers`` to the last one, and the bytes written
do not depend on the number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tasks import stage
from tasks.data import documents
from tasks.data.documents import Document
from tasks.files import atomic_folder, write_json
from tasks.ledger import Ledger, write_ledgers
from tasks.progress import progress
from tasks.recipe import SPLITS, Recipe, Split
from tasks.settings import settings
from tasks.tokens.fast import Encode, Ids, fastest
from tasks.tokens.shard_writer import SplitWriter
from tasks.tokens.shards import VERSION, dtype_for
from tasks.tokens.text import TextTokenizer, load_tokenizer
from tasks.units import show_count
from tasks.workers import batches, map_in_threads
from tasks.workspace import Workspace

SAMPLE_DOCUMENTS = 256
NO_TOKENS = "encodes to nothing"


def encode(workspace: Workspace, recipe: Recipe, source: str) -> None:
    """Encode all documents of ``source`` with the tokenizer of the workspace.

    Raises UserError where documents or tokenizer are missing or damaged.
    """
    os.environ.setdefault("RAYON_NUM_THREADS", str(settings().cores))
    tokenizer = load_tokenizer(workspace.tokenizer)
    folder = workspace.documents / source
    sample = [document.text for document in islice(documents.read(folder), SAMPLE_DOCUMENTS)]
    encoder, name = fastest(tokenizer, sample)
    ledger = Ledger("encode", source)
    there = documents.shards(folder)
    with atomic_folder(workspace.tokens(source)) as target:
        entries: dict[Split, Any] = {}
        for split in SPLITS:
            if split in there:
                writer = SplitWriter(target, split, tokenizer.vocab_size, tokenizer.eos_id)
                _encode_split(folder, split, encoder, writer, ledger)
                if writer.tokens:
                    entries[split] = entry = writer.finish()
                    print(f"    {split}: {_figures(entry)}, with {name}")
        ledger.notes = {
            split: {key: entry[key] for key in ("documents", "tokens", "text_bytes")}
            | {"bytes_per_token": entry["text_bytes"] / entry["tokens"]}
            for split, entry in entries.items()
        }
        write_json(target / "manifest.json", _manifest(tokenizer, entries))
        write_ledgers(target / "ledger.json", [ledger])
    for reason, count in ledger.dropped.items():
        print(f"    dropped {count.documents:,} documents: {reason}")


def _encode_split(
    folder: Path, split: Split, encoder: Encode, writer: SplitWriter, ledger: Ledger
) -> None:
    def encode_batch(batch: Sequence[Document]) -> list[Ids]:
        return encoder([document.text for document in batch])

    read = batches(documents.read(folder, split), lambda document: document.bytes)
    with progress(None, "tokens", f"encoding {split}") as shown:
        for batch, encoded in map_in_threads(encode_batch, read):
            before = writer.tokens
            kept = []
            for document, ids in zip(batch, encoded, strict=True):
                if len(ids):
                    ledger.keep(document.bytes)
                    kept.append((ids, document.bytes))
                else:
                    ledger.drop(NO_TOKENS, document.text)
            writer.add([ids for ids, _ in kept], [size for _, size in kept])
            shown.advance(writer.tokens - before)


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
