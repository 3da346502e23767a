"""Encoding and shards: the same ids by every way, and no damage that goes unseen."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import recipe as recipes
from tasks.data.documents import read
from tasks.errors import BAD_DATA, NO_INPUT, UserError
from tasks.files import read_json, write_json
from tasks.ledger import read_ledgers
from tasks.recipe import Tokenizer
from tasks.settings import settings as machine
from tasks.tokens import fast
from tasks.tokens.encode import NO_TOKENS, encode
from tasks.tokens.fast import Unsuitable, fastest, with_tiktoken, with_tokenizers
from tasks.tokens.shard_writer import SplitWriter
from tasks.tokens.shards import VERSION, dtype_for, open_split, splits
from tasks.tokens.text import TextTokenizer, load_tokenizer
from tasks.tokens.tokenizer import tokenizer
from tasks.tokens.train import train
from tasks.workspace import Workspace
from tests.test_tokens_workspace import (
    ODD,
    TOPICS,
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


# Shards ------------------------------------------------------------------------------------------


def write_split(folder: Path, rows: list[list[int]], vocab: int, shard_tokens: int) -> None:
    folder.mkdir(parents=True)
    writer = SplitWriter(folder, "train", vocab, 0, shard_tokens)
    for row in rows:
        writer.add([np.array(row, np.uint32)], [2 * len(row)])
    write_json(
        folder / "manifest.json",
        {
            "version": VERSION,
            "dtype": dtype_for(vocab).name,
            "vocab_size": vocab,
            "eos_id": 0,
            "tokenizer": "t" * 64,
            "splits": {"train": writer.finish()},
        },
    )


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=9), min_size=1, max_size=9),
    shard_tokens=st.integers(1, 20),
    data=st.data(),
)
def test_a_split_reads_as_one_row_wherever_its_files_are_cut(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[list[int]],
    shard_tokens: int,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("cut") / "source"
    write_split(folder, rows, 100, shard_tokens)
    there = open_split(folder, "train")
    whole = [id_ for row in rows for id_ in [*row, 0]]
    assert len(list(folder.glob("*.bin"))) == -(-len(whole) // shard_tokens)
    assert there.read(0, there.tokens).tolist() == whole
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    assert there.read(start, stop).tolist() == whole[start:stop]
    length = data.draw(st.integers(1, len(whole)))
    starts = np.arange(len(whole) - length + 1)
    expected = [whole[first : first + length] for first in starts]
    out = np.zeros((len(starts) + 1, length), np.int64)
    there.gather(starts, out, np.arange(1, len(starts) + 1))
    assert out[1:].tolist() == expected and not out[0].any()
    ring = there.take(starts + length)
    assert ring.tolist() == [(whole + whole)[place] for place in (starts + length).tolist()]
    assert there.ends.tolist() == np.cumsum([len(row) + 1 for row in rows]).tolist()


@pytest.mark.parametrize(("vocab", "name"), [(65_535, "uint16"), (65_536, "uint32")])
def test_the_largest_id_of_a_vocabulary_is_stored_without_wrapping(
    tmp_path: Path, vocab: int, name: str
) -> None:
    write_split(tmp_path / "s", [[vocab - 1, 1]], vocab, 100)
    there = open_split(tmp_path / "s", "train")
    assert there.read(0, 3).tolist() == [vocab - 1, 1, 0]
    assert there.read(0, 1).dtype == name


def test_an_id_beyond_the_vocabulary_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="id 70000 in a vocabulary of 400"):
        write_split(tmp_path / "s", [[70_000]], 400, 100)


def test_reading_beyond_a_split_is_refused(encoded: Workspace) -> None:
    there = open_split(encoded.tokens("one"), "train")
    for start, stop in ((-1, 2), (0, there.tokens + 1), (5, 4)):
        with pytest.raises(IndexError):
            there.read(start, stop)


def copy_of(workspace: Workspace, root: Path) -> Workspace:
    shutil.copytree(workspace.root, root, dirs_exist_ok=True)
    return Workspace(root)


def cut_short(folder: Path) -> None:
    path = folder / "train-00000.bin"
    path.write_bytes(path.read_bytes()[:-2])


def empty_shard(folder: Path) -> None:
    (folder / "train-00000.bin").write_bytes(b"")


def remove_shard(folder: Path) -> None:
    (folder / "train-00000.bin").unlink()


def flip_a_bit(folder: Path) -> None:
    path = folder / "train-00000.bin"
    content = bytearray(path.read_bytes())
    content[len(content) // 2 // 2 * 2] ^= 1
    path.write_bytes(content)


def move_an_end(folder: Path) -> None:
    ends = np.load(folder / "train.ends.npy")
    ends[0] += 1
    np.save(folder / "train.ends.npy", ends)


def pickled_ends(folder: Path) -> None:
    np.save(folder / "train.ends.npy", np.array([{"a": 1}], object), allow_pickle=True)


def forget_a_document(folder: Path) -> None:
    np.save(folder / "train.bytes.npy", np.load(folder / "train.bytes.npy")[:-1])


def change_manifest(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps(read_json(path) | changes))

    return change


def break_json(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text()[:-20])


def no_counts(folder: Path) -> None:
    change_manifest(splits={"train": {"shards": []}})(folder)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut_short, "train-00000.bin is damaged or was changed: .* bytes, expected"),
        (empty_shard, "train-00000.bin is damaged or was changed: 0 bytes, expected"),
        (remove_shard, "train-00000.bin is damaged or was changed: it is missing"),
        (flip_a_bit, "train-00000.bin is damaged or was changed: its SHA-256"),
        (move_an_end, r"train.ends.npy is damaged or was changed: its SHA-256"),
        (pickled_ends, r"train.ends.npy is damaged or was changed"),
        (forget_a_document, r"train.bytes.npy is damaged or was changed"),
        (break_json, "manifest.json is not valid JSON"),
        (no_counts, "manifest.json is damaged or was changed: .*tokens"),
        (change_manifest(splits=None), "it has no splits"),
        (change_manifest(version=2), "version 2, this program reads 1"),
        (change_manifest(vocab_size=70_000), "uint16 does not fit 70000 ids"),
        (change_manifest(dtype="object"), "manifest.json is damaged or was changed"),
    ],
)
def test_damaged_shards_are_refused_in_words(
    tmp_path: Path, encoded: Workspace, damage: Callable[[Path], None], words: str
) -> None:
    folder = copy_of(encoded, tmp_path).tokens("one")
    damage(folder)
    with pytest.raises(UserError, match=words) as error:
        open_split(folder, "train")
    assert error.value.exit_code == BAD_DATA
    assert "one" in str(error.value)


def test_an_id_that_the_vocabulary_lacks_is_found_even_under_a_right_checksum(
    tmp_path: Path,
) -> None:
    write_split(tmp_path / "s", [[5, 6]], 10, 100)
    path = tmp_path / "s/train-00000.bin"
    path.write_bytes(np.array([5, 60_000, 0], "<u2").tobytes())
    manifest = read_json(tmp_path / "s/manifest.json")
    shard = manifest["splits"]["train"]["shards"][0]
    shard["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    write_json(tmp_path / "s/manifest.json", manifest)
    with pytest.raises(UserError, match="it holds id 60000, the vocabulary 10"):
        open_split(tmp_path / "s", "train")


def test_sizes_are_checked_even_where_content_is_not(tmp_path: Path, encoded: Workspace) -> None:
    folder = copy_of(encoded, tmp_path).tokens("one")
    flip_a_bit(folder)
    assert open_split(folder, "train", verify=False).tokens > 0
    cut_short(folder)
    with pytest.raises(UserError, match="expected"):
        open_split(folder, "train", verify=False)


def test_shards_of_another_tokenizer_are_refused(encoded: Workspace) -> None:
    ours = load_tokenizer(encoded.tokenizer).fingerprint
    assert open_split(encoded.tokens("one"), "train", tokenizer=ours).tokenizer == ours
    with pytest.raises(UserError, match="another tokenizer") as error:
        open_split(encoded.tokens("one"), "train", tokenizer="f" * 64)
    assert "dvc repro encode@one" in str(error.value)


def test_a_split_or_source_that_is_not_there_is_named(encoded: Workspace) -> None:
    with pytest.raises(UserError, match="no split 'test'.*\n.*train, validation"):
        open_split(encoded.tokens("one"), "test")
    with pytest.raises(UserError, match="encode@three") as error:
        splits(encoded.tokens("three"))
    assert error.value.exit_code == NO_INPUT


def test_the_fingerprint_of_a_split_follows_its_content(tmp_path: Path, encoded: Workspace) -> None:
    first = open_split(encoded.tokens("one"), "train").sha256
    workspace, recipe = make_workspace(tmp_path)
    encode_all(workspace, recipe)
    assert open_split(workspace.tokens("one"), "train").sha256 == first
    texts = [document.text for document in read(workspace.documents / "one", "train")]
    texts[0] += ODD[2]
    write_documents(workspace, {"one": {"train": texts}})
    encode(workspace, recipe, "one")
    assert open_split(workspace.tokens("one"), "train").sha256 != first
