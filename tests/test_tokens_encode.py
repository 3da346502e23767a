"""Encoding: the same ids by every way, and a source that is written whole or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import recipe as recipes
from tasks.errors import UserError
from tasks.ledger import read_ledgers
from tasks.recipe import Tokenizer
from tasks.settings import settings as machine
from tasks.tokens import fast
from tasks.tokens.encode import NO_TOKENS, encode
from tasks.tokens.fast import Unsuitable, fastest, with_tiktoken, with_tokenizers
from tasks.tokens.shards import open_split, splits
from tasks.tokens.text import TextTokenizer
from tasks.tokens.tokenizer import tokenizer
from tasks.tokens.train import train
from tasks.workspace import Workspace
from tests.test_tokens_workspace import (
    TOPICS,
    copy_of,
    encode_all,
    encoded,
    make_workspace,
    write_documents,
)

__all__ = ["encoded"]  # a fixture

CONTENT, _ = train(Tokenizer(kind="byte_bpe", vocab_size=1000), TOPICS)
WORDS = TextTokenizer(CONTENT, "<|endoftext|>")
QUICK, EXACT = with_tiktoken(WORDS), with_tokenizers(WORDS)


# Encoding ----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.text(max_size=300), max_size=5))
def test_tiktoken_gives_the_ids_of_tokenizers_for_every_text(texts: list[str]) -> None:
    for ours, theirs in zip(QUICK(texts), EXACT(texts), strict=True):
        assert ours.dtype == theirs.dtype == np.uint32
        assert np.array_equal(ours, theirs)


@settings(deadline=None)
@given(st.text(" \n\t\r\u00a0\u2028ab'st1½_", max_size=60))
def test_tiktoken_cuts_words_and_spaces_where_tokenizers_does(text: str) -> None:
    assert np.array_equal(QUICK([text])[0], EXACT([text])[0])


def test_tiktoken_gives_the_ids_of_tokenizers_on_real_text() -> None:
    for ours, theirs in zip(QUICK(TOPICS), EXACT(TOPICS), strict=True):
        assert np.array_equal(ours, theirs)


def test_tiktoken_stands_in_for_gpt2(mirror: Path) -> None:
    content = (mirror / "openai-community/gpt2/tokenizer.json").read_bytes()
    words = TextTokenizer(content, "<|endoftext|>")
    encoder, name = fastest(words, TOPICS)
    assert name == "tiktoken"
    assert encoder(["Hello, world!<|endoftext|>"])[0].tolist()[:4] == [15496, 11, 995, 0]
    assert words.eos_id not in encoder(["<|endoftext|>"])[0]


def test_a_million_spaces_do_not_break_encoding() -> None:
    text = "a" + " " * 1_100_000 + "b"
    assert WORDS.decode(QUICK([text])[0].tolist()) == text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "no normalizer"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "GPT-2's words"),
        ({"model": {"ignore_merges": True}}, "ignore_merges"),
        ({"added_tokens": [{"content": "x", "special": False}]}, "added tokens"),
        ({"model": {"type": "WordLevel"}}, "not BPE"),
        ({"model": {"merges": [["a", "b"], ["a", "b"]]}}, "the same token"),
    ],
)
def test_what_tiktoken_cannot_do_is_said_and_done_by_tokenizers(
    change: dict[str, Any], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = TextTokenizer(CONTENT, "<|endoftext|>")
    model = words.spec["model"] | change.get("model", {})
    words.spec = words.spec | change | {"model": model}
    with pytest.raises(Unsuitable, match=reason):
        with_tiktoken(words)
    encoder, name = fastest(words, TOPICS[:2])
    assert name == "tokenizers" and reason in capsys.readouterr().out
    assert np.array_equal(encoder(TOPICS[:1])[0], EXACT(TOPICS[:1])[0])


def test_an_encoder_that_differs_on_the_text_is_not_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fast, "WORDS", r"\S+|\s+")
    assert fastest(WORDS, TOPICS[:2])[1] == "tokenizers"
    assert "tiktoken gives other ids" in capsys.readouterr().out


def test_threads_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, recipe = make_workspace(tmp_path)
    tokenizer(workspace, recipe)
    monkeypatch.setattr("tasks.workers.BATCH_BYTES", 3_000)
    sums = []
    for cores in ("1", "4"):
        monkeypatch.setenv("PHASEWISE_WORKERS", cores)
        machine.cache_clear()
        encode(workspace, recipe, "one")
        files = sorted(workspace.tokens("one").iterdir())
        sums.append([(file.name, hashlib.sha256(file.read_bytes()).digest()) for file in files])
    assert sums[0] == sums[1] and len(sums[0]) == 8


def test_a_document_without_a_token_is_dropped_and_booked(tmp_path: Path) -> None:
    section = {"kind": "whitespace_bpe", "vocab_size": 400}
    workspace, recipe = make_workspace(tmp_path, tokenizer=section)
    write_documents(workspace, {"one": {"train": [*TOPICS[:5], " \n ", TOPICS[5]], "test": [" "]}})
    encode_all(workspace, recipe)
    (book,) = read_ledgers(workspace.tokens("one") / "ledger.json")
    assert (book.taken.documents, book.kept.documents) == (8, 6)
    assert (book.dropped[NO_TOKENS].documents, book.dropped[NO_TOKENS].bytes) == (2, 4)
    assert splits(workspace.tokens("one")) == ["train"], "nothing of test is left"
    assert open_split(workspace.tokens("one"), "train").documents == 6
    assert not list(workspace.tokens("one").glob("test*"))


def test_encoding_that_fails_leaves_the_old_shards_whole(
    tmp_path: Path, encoded: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = copy_of(encoded, tmp_path)
    before = open_split(workspace.tokens("one"), "train").sha256
    shard = workspace.documents / "one" / "validation-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    monkeypatch.setattr("tasks.tokens.encode.SAMPLE_DOCUMENTS", 1)  # so that train is written
    with pytest.raises(UserError, match="damaged"):
        encode(workspace, recipes.load(tmp_path / "params.yaml"), "one")
    assert open_split(workspace.tokens("one"), "train").sha256 == before
    assert not list((workspace.root / "data/tokens").glob(".*"))
