"""The tokens' part of the story as a whole, and the workspace that its other tests build on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest

from tasks import stage
from tasks.data.documents import Document, Writer, read
from tasks.errors import NO_INPUT
from tasks.files import atomic_folder, read_json, write_json
from tasks.ledger import read_ledgers
from tasks.recipe import Recipe, Split
from tasks.recipe_file import validate
from tasks.tokens.encode import encode
from tasks.tokens.mix import mix
from tasks.tokens.mixture import load_mix
from tasks.tokens.reader import Reader
from tasks.tokens.shards import open_split, splits
from tasks.tokens.text import load_tokenizer
from tasks.tokens.tokenizer import tokenizer
from tasks.workspace import Workspace

# Real English that every Python has: the help texts of the language, about 700 kB.
TOPICS = [text for _, text in sorted(topics.items()) if len(text) > 200]
ODD = [
    "",
    " ",
    "naïve café\u0301 日本語 👩‍👩‍👧\u200d",
    "a\x00b\tc\r\nd\u2028e",
    "<|endoftext|> [EOS]",
]


def make_recipe(root: Path, **changes: Any) -> Recipe:
    """A small valid recipe, written as params.yaml; ``changes`` replace or extend its sections."""
    raw: dict[str, Any] = {
        "name": "tiny",
        "description": "A tiny corpus",
        "seed": 7,
        "sources": {name: {"files": {"train": ["*.txt"]}} for name in ("one", "two")},
        "tokenizer": {"kind": "byte_bpe", "vocab_size": 400},
        "model": {"d_model": 32, "n_layers": 1, "n_heads": 2, "d_ff": 64, "max_seq_len": 64},
        "phases": {"phase1": make_phase()},
        **{section: {} for section in ("dedup", "held_out", "training", "evaluation")},
        "release": {"phase": "phase1"},
    }
    raw |= changes
    write_json(root / "params.yaml", raw)  # JSON is YAML
    return validate(raw)


def make_phase(**changes: Any) -> dict[str, Any]:
    phase = {"starts_from": "init", "tokens": 3200, "mixture": {"one": 0.6, "two": 0.4}}
    return phase | {"seq_len": 32, "batch_tokens": 320} | changes


def write_documents(workspace: Workspace, texts: Mapping[str, Mapping[Split, list[str]]]) -> None:
    """Write source -> split -> texts as data/documents."""
    for source, by_split in texts.items():
        with atomic_folder(workspace.documents / source) as folder, Writer(folder) as writer:
            for split, several in by_split.items():
                for text in several:
                    writer.add(Document.of(text, source, split, "{}"))


def make_texts() -> dict[str, dict[Split, list[str]]]:
    one: dict[Split, list[str]] = {"train": TOPICS[:20] + ODD[1:], "validation": TOPICS[20:23]}
    return {"one": one, "two": {"train": TOPICS[23:50], "test": TOPICS[50:53]}}


def make_workspace(root: Path, **changes: Any) -> tuple[Workspace, Recipe]:
    """A workspace with documents of two sources, and its recipe."""
    workspace, recipe = Workspace(root), make_recipe(root, **changes)
    write_documents(workspace, make_texts())
    return workspace, recipe


def encode_all(workspace: Workspace, recipe: Recipe) -> None:
    tokenizer(workspace, recipe)
    for source in recipe.sources:
        encode(workspace, recipe, source)


@pytest.fixture(scope="session")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace up to its shards; a test that changes it works on a copy."""
    workspace, recipe = make_workspace(tmp_path_factory.mktemp("encoded"))
    encode_all(workspace, recipe)
    return workspace


def copy_of(workspace: Workspace, root: Path) -> Workspace:
    shutil.copytree(workspace.root, root, dirs_exist_ok=True)
    return Workspace(root)


def test_the_stages_run_one_after_the_other_from_their_command_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, _ = make_workspace(tmp_path)
    assert stage.run(tokenizer, tmp_path) == 0
    assert stage.run(encode, tmp_path, "one") == 0
    assert stage.run(encode, tmp_path, "two") == 0
    assert stage.run(mix, tmp_path, "phase1") == 0
    out = capsys.readouterr().out
    assert "400 ids" in out and "with tiktoken" in out and "3.2K tokens in 100 samples" in out
    made = load_mix(workspace.mix("phase1"))
    text = load_tokenizer(workspace.tokenizer).decode(
        Reader(workspace, made).samples(0, 1).tokens[0].tolist()
    )
    assert len(text) > 40
    whole = "".join(document.text for document in read(workspace.documents / "one", "train"))
    assert text.strip("\ufffd") in whole


def test_a_stage_before_its_time_says_what_to_run_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_workspace(tmp_path)
    assert stage.run(encode, tmp_path, "one") == NO_INPUT
    assert "dvc repro tokenizer" in capsys.readouterr().err
    assert stage.run(tokenizer, tmp_path) == 0
    assert stage.run(mix, tmp_path, "phase1") == NO_INPUT
    assert "dvc repro encode@one" in capsys.readouterr().err


def test_every_document_is_in_the_shards_byte_for_byte(encoded: Workspace) -> None:
    words = load_tokenizer(encoded.tokenizer)
    for source in ("one", "two"):
        folder = encoded.tokens(source)
        for split in splits(folder):
            there = open_split(folder, split)
            texts = [d.text for d in read(encoded.documents / source, split)]
            starts = [0, *there.ends[:-1].tolist()]
            tokens = [there.read(a, b).tolist() for a, b in zip(starts, there.ends.tolist())]
            assert [row[-1] for row in tokens] == [words.eos_id] * len(texts)
            assert [words.decode(row[:-1]) for row in tokens] == texts
            assert there.document_bytes.tolist() == [len(text.encode()) for text in texts]
            assert there.text_bytes == there.document_bytes.sum()


def test_the_ledger_of_encoding_balances_with_the_documents(encoded: Workspace) -> None:
    (book,) = read_ledgers(encoded.tokens("one") / "ledger.json")
    texts = [document.text for document in read(encoded.documents / "one")]
    assert book.taken.documents == book.kept.documents == len(texts)
    assert book.taken.bytes == sum(len(text.encode()) for text in texts)
    manifest = read_json(encoded.tokens("one") / "manifest.json")
    assert book.notes["train"]["tokens"] == manifest["splits"]["train"]["tokens"]


def test_the_manifest_says_what_the_files_hold(encoded: Workspace) -> None:
    folder = encoded.tokens("two")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["dtype"] == "uint16" and manifest["vocab_size"] == 400
    assert manifest["tokenizer"] == load_tokenizer(encoded.tokenizer).fingerprint
    assert list(manifest["splits"]) == ["train", "test"] == splits(folder)
    raw = np.fromfile(folder / "train-00000.bin", "<u2")
    assert len(raw) == manifest["splits"]["train"]["tokens"]


def test_an_unknown_source_is_refused_with_the_nearest_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_workspace(tmp_path)
    assert stage.run(encode, tmp_path, "oen") == NO_INPUT
    assert "did you mean 'one'" in capsys.readouterr().err
