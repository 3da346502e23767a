"""Shards that are whole by their checksums and wrong all the same; and ends of text that are told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tasks.errors import BAD_DATA, UserError
from tasks.files import read_json, sha256_file, write_json
from tasks.tokens.shard_writer import SplitWriter
from tasks.tokens.shards import open_split
from tests.test_tokens_encode import write_split


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
    write_split(tmp_path / "source", [[5, 6, 7], [8, 9], [4]], 100, 4)
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
