"""Stage ``tokenizer``: one tokenizer for all phases, trained here or taken from elsewhere.

    training documents --> sample.py --> train.py, sentencepiece.py, symbols.py --.
    hub, mirror or file --> pretrained.py ----------------------------------------+-->
    data/tokenizer/
        tokenizer.json, tokenizer_config.json, special_tokens_map.json   for AutoTokenizer
        tokenizer.model                for llama.cpp, where SentencePiece made it
        report.json                    size, fingerprint, bytes a token, ids without or of rare use

The size that counts is the one that training reached, never a larger one that was asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from model.counts import count_parameters
from tasks import stage
from tasks.data import documents
from tasks.errors import BAD_DATA, UserError
from tasks.files import atomic_folder, write_bytes, write_json
from tasks.progress import progress
from tasks.recipe import Recipe
from tasks.tokens.fast import Encode, fastest
from tasks.tokens.pretrained import Built, pretrained
from tasks.tokens.sample import Sample, draw
from tasks.tokens.sentencepiece import train_sentencepiece
from tasks.tokens.symbols import byte_tokenizer, train_characters
from tasks.tokens.text import TextTokenizer
from tasks.tokens.train import train
from tasks.units import show_count
from tasks.workers import batches, map_in_threads
from tasks.workspace import Workspace

VERSION = 1
HELD_OUT_BYTES = 1_000_000  # of a source's held-out text, to measure bytes a token
EXAMPLES = 20
RARE = 100  # an id that the sample uses less often has hardly been taught anything


def tokenizer(workspace: Workspace, recipe: Recipe) -> None:
    """Train or fetch the tokenizer of the recipe and measure it.

    Raises UserError for a corpus without training text, a vocabulary too small for it, and a
    pretrained tokenizer of another size than the recipe's.
    """
    sample = draw(workspace, recipe)
    for choice in sample.choices:
        print(
            f"    {choice.source}: {show_count(choice.bytes)} of {show_count(choice.available)} "
            f"bytes, {choice.documents:,} training documents"
        )
    built = _build(workspace, recipe, sample)
    ready = TextTokenizer(built.content, built.special["eos_token"])
    _check_size(recipe, ready)
    report = _report(workspace, recipe, sample, built, ready)
    with atomic_folder(workspace.tokenizer) as folder:
        write_folder(folder, built, recipe.model.max_seq_len)
        write_json(folder / "report.json", report)
    print(f"    {_figures(recipe, report)}")
    for source, held_out in report["held_out"].items():
        print(f"    {source}: {held_out['bytes_per_token']:.3f} bytes a token, held out")


def write_folder(folder: Path, built: Built, max_length: int) -> None:
    """Write the three files that ``transformers.AutoTokenizer`` opens, and the tokenizer's own."""
    write_bytes(folder / "tokenizer.json", built.content)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    write_json(folder / "tokenizer_config.json", config | built.special)
    write_json(folder / "special_tokens_map.json", built.special)
    for name, content in built.files.items():
        write_bytes(folder / name, content)


def _build(workspace: Workspace, recipe: Recipe, sample: Sample) -> Built:
    asked = recipe.tokenizer
    if asked.pretrained is not None:
        if asked.lowercase:
            raise UserError(
                "a pretrained tokenizer has rules of its own for capitals",
                where="params.yaml: tokenizer.lowercase",
                hint="remove the key",
            )
        return pretrained(asked.pretrained, workspace.root)
    with progress(sample.bytes, "bytes", "training text read") as shown:

        def texts() -> Iterable[str]:
            for text in sample.texts():
                shown.advance(len(text.encode()))
                yield text

        if asked.kind == "sentencepiece_bpe":
            built = train_sentencepiece(asked, texts())
        elif asked.kind == "character":
            built = train_characters(asked, texts())
        elif asked.kind == "byte":
            built = byte_tokenizer(asked)
        else:
            built = Built(*train(asked, texts()), {})
    return dataclasses.replace(built, origin={"trained": asked.kind, "sample_bytes": sample.bytes})


def _check_size(recipe: Recipe, ready: TextTokenizer) -> None:
    asked, size = recipe.tokenizer.vocab_size, ready.vocab_size
    if size == asked:
        return
    if recipe.tokenizer.kind == "pretrained":
        raise UserError(
            f"the pretrained tokenizer has {size:,} ids, the recipe says {asked:,}",
            where="params.yaml: tokenizer.vocab_size",
            hint=f"set it to {size}",
            exit_code=BAD_DATA,
        )
    assert size < asked
    print(
        f"    {asked:,} ids were asked for, but the sample teaches only {size:,}: "
        f"the vocabulary has {size:,}"
    )


def _report(
    workspace: Workspace, recipe: Recipe, sample: Sample, built: Built, ready: TextTokenizer
) -> dict[str, Any]:
    head = list(islice(sample.texts(), 256))
    encode, _ = fastest(ready, head)
    counts = _count_ids(encode, sample.texts(), ready.vocab_size)
    seen = set(np.flatnonzero(counts).tolist()) | ready.special_ids
    unused = [id_ for id_ in range(ready.vocab_size) if id_ not in seen]
    rare = int(((counts > 0) & (counts < RARE)).sum())
    return {
        "version": VERSION,
        "kind": recipe.tokenizer.kind,
        "origin": built.origin,
        "vocab_size": ready.vocab_size,
        "vocab_size_asked": recipe.tokenizer.vocab_size,
        "eos_id": ready.eos_id,
        "special": built.special,
        "fingerprint": ready.fingerprint,
        "sample": {
            choice.source: {
                "documents": choice.documents,
                "bytes": choice.bytes,
                "available_bytes": choice.available,
            }
            for choice in sample.choices
        },
        "held_out": {
            source: measured
            for source in recipe.sources
            if (measured := _held_out(workspace, source, encode))
        },
        "unused": {"ids": len(unused), "examples": [ready.token(i) for i in unused[:EXAMPLES]]},
        "rare": {"ids": rare, "below": RARE},
    }


def _figures(recipe: Recipe, report: dict[str, Any]) -> str:
    """Said and not written: were the network in the report, a change of its depth would have every
    document encoded anew."""
    size = report["vocab_size"]
    counts = count_parameters(dataclasses.replace(recipe.model, vocab_size=size))
    share = 1 - counts["non_embedding"] / counts["total"]
    return (
        f"{size:,} ids, {share:.0%} of the network's parameters; the sample leaves "
        f"{report['unused']['ids']:,} unused, and uses {report['rare']['ids']:,} under {RARE} times"
    )


def _count_ids(encode: Encode, texts: Iterable[str], size: int) -> np.ndarray:
    counts = np.zeros(size, np.int64)
    for _, encoded in map_in_threads(encode, batches(texts, len)):
        counts += np.bincount(np.concatenate(encoded), minlength=size)
    return counts


def _held_out(workspace: Workspace, source: str, encode: Encode) -> dict[str, Any] | None:
    """Bytes a token of a source's validation text (test text where it has no other)."""
    folder = workspace.documents / source
    there = documents.shards(folder)
    split = next((split for split in ("validation", "test") if split in there), None)
    if split is None:
        return None
    texts, size = [], 0
    for document in documents.read(folder, split):
        texts.append(document.text)
        size += document.bytes
        if size >= HELD_OUT_BYTES:
            break
    tokens = sum(len(ids) for ids in encode(texts))
    if not tokens:
        return None
    return {"split": split, "bytes": size, "tokens": tokens, "bytes_per_token": size / tokens}


if __name__ == "__main__":
    stage.main(tokenizer)
