"""Shards: one row of tokens wherever its files are cut, and no damage that goes unseen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.data.documents import read
from tasks.errors import BAD_DATA, NO_INPUT, UserError
from tasks.files import read_json, sha256_file, write_json
from tasks.tokens.encode import encode
from tasks.tokens.shard_writer import SplitWriter
from tasks.tokens.shards import VERSION, dtype_for, open_split, splits
from tasks.tokens.text import load_tokenizer
from tasks.workspace import Workspace
from tests.test_tokens_workspace import (
    ODD,
    copy_of,
    encode_all,
    encoded,
    make_workspace,
    write_documents,
)

__all__ = ["encoded"]  # a fixture


def write_shards(folder: Path, vocab: int, shard_tokens: int, **rows: list[list[int]]) -> None:
    """Shards of some splits from the ids of their documents, ``shard_tokens`` a file."""
    folder.mkdir(parents=True)
    entries = {}
    for split, documents in rows.items():
        writer = SplitWriter(folder, split, vocab, 0, shard_tokens)  # type: ignore[arg-type]
        for ids in documents:
            writer.add([np.array(ids, np.uint32)], [len(ids)])
        entries[split] = writer.finish()
    manifest = {"version": VERSION, "dtype": dtype_for(vocab).name, "vocab_size": vocab}
    manifest |= {"eos_id": 0, "tokenizer": "t" * 64, "splits": entries}
    write_json(folder / "manifest.json", manifest)


# Reading -----------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
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
    write_shards(folder, 100, shard_tokens, train=rows)
    there = open_split(folder, "train")
    whole = [id_ for row in rows for id_ in [*row, 0]]
    assert len(list(folder.glob("*.bin"))) == -(-len(whole) // shard_tokens)
    assert there.read(0, there.tokens).tolist() == whole
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    assert there.read(start, stop).tolist() == whole[start:stop]
    assert there.ends.tolist() == np.cumsum([len(row) + 1 for row in rows]).tolist()
    spans = [there.span(number) for number in range(len(rows))]
    assert [there.read(*span).tolist() for span in spans] == [[*row, 0] for row in rows]
    length = data.draw(st.integers(1, len(whole)))
    starts = np.arange(-length, 2 * len(whole), 3)  # also before the beginning, and round the ring
    found = np.full((len(starts), length), -1)
    for stretch, place, view in zip(*there.views(starts, starts + length), strict=True):
        found[stretch, place : place + len(view)] = view
        assert not view.flags.owndata and len(view) <= shard_tokens
    assert found.tolist() == [np.roll(whole, -first)[:length].tolist() for first in starts]


@pytest.mark.parametrize(("vocab", "name"), [(65_535, "uint16"), (65_536, "uint32")])
def test_the_largest_id_of_a_vocabulary_is_stored_without_wrapping(
    tmp_path: Path, vocab: int, name: str
) -> None:
    write_shards(tmp_path / "s", vocab, 100, train=[[vocab - 1, 1]])
    there = open_split(tmp_path / "s", "train")
    assert there.read(0, 3).tolist() == [vocab - 1, 1, 0]
    assert there.read(0, 1).dtype == name


def test_an_id_beyond_the_vocabulary_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="id 70000 in a vocabulary of 400"):
        write_shards(tmp_path / "s", 400, 100, train=[[70_000]])


def test_reading_beyond_a_split_is_refused(encoded: Workspace) -> None:
    there = open_split(encoded.tokens("one"), "train")
    for start, stop in ((-1, 2), (0, there.tokens + 1), (5, 4)):
        with pytest.raises(IndexError):
            there.read(start, stop)


# Damage -------------------------------------------------------------------------------------------


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
    write_shards(tmp_path / "s", 10, 100, train=[[5, 6]])
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


# Whole by its checksums and wrong all the same ----------------------------------------------------


def sealed(folder: Path) -> None:
    """Make the manifest fit the files, as a wrong writer would have."""
    path = folder / "manifest.json"
    manifest = read_json(path)
    entry = manifest["splits"]["train"]
    for shard in entry["shards"]:
        shard["sha256"] = sha256_file(folder / shard["file"])
    for name in ("ends", "bytes"):
        entry[f"{name}_sha256"] = sha256_file(folder / f"train.{name}.npy")
    write_json(path, manifest)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(tmp_path / "source", 100, 4, train=[[5, 6, 7], [8, 9], [4]])
    return tmp_path / "source"


def test_an_end_that_is_no_end_of_text_is_found(folder: Path) -> None:
    ends = np.load(folder / "train.ends.npy", allow_pickle=False)
    np.save(folder / "train.ends.npy", ends - [0, 1, 0], allow_pickle=False)
    sealed(folder)
    with pytest.raises(UserError, match="ends.npy is damaged .* not the places") as error:
        open_split(folder, "train")
    assert error.value.exit_code == BAD_DATA and "encode@source" in str(error.value)
    np.save(folder / "train.ends.npy", ends[[1, 0, 2]], allow_pickle=False)
    sealed(folder)
    with pytest.raises(UserError, match="not the places"):
        open_split(folder, "train")


def test_an_end_of_text_within_a_document_is_found(folder: Path) -> None:
    tokens = np.fromfile(folder / "train-00000.bin", "<u2")
    tokens[1] = 0
    tokens.tofile(folder / "train-00000.bin")
    sealed(folder)
    with pytest.raises(UserError, match="3 ends are not the places of the 4 EOS ids"):
        open_split(folder, "train")


@pytest.mark.parametrize("name", ["ends", "bytes"])
def test_an_array_that_is_missing_is_named(folder: Path, name: str) -> None:
    (folder / f"train.{name}.npy").unlink()
    with pytest.raises(UserError, match=f"train.{name}.npy") as error:
        open_split(folder, "train")
    assert error.value.exit_code in (BAD_DATA, 66)


def test_a_tokenizer_that_makes_the_end_of_text_of_text_is_refused(tmp_path: Path) -> None:
    writer = SplitWriter(tmp_path, "train", 100, 0)
    with pytest.raises(UserError, match="makes its end-of-text id 0 of text") as error:
        writer.add([np.array([3, 0, 4], np.uint32)], [3])
    assert error.value.exit_code == BAD_DATA
