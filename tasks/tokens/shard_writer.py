"""Write token shards; what they are is told in shards.py."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from tasks.errors import BAD_DATA, UserError
from tasks.files import sha256_file
from tasks.recipe import Split
from tasks.tokens.shards import array_path, dtype_for, shard_path

SHARD_TOKENS = 100_000_000


class SplitWriter:
    """Write the shards of one split, document by document; used inside ``atomic_folder``."""

    def __init__(
        self,
        folder: Path,
        split: Split,
        vocab_size: int,
        eos_id: int,
        shard_tokens: int = SHARD_TOKENS,
    ) -> None:
        self._folder, self._split, self._shard_tokens = folder, split, shard_tokens
        self._vocab_size, self._dtype = vocab_size, dtype_for(vocab_size)
        self._eos = np.array([eos_id], np.uint32)
        self._ends, self._bytes = array("q"), array("q")
        self._file: BinaryIO | None = None
        self._sha = hashlib.sha256()
        self._shards: list[dict[str, Any]] = []
        self.tokens = self.text_bytes = 0

    def add(self, documents: Sequence[npt.NDArray[np.uint32]], text_bytes: Sequence[int]) -> None:
        """Append documents, given as ids without EOS, and the bytes of each one's text.

        Raises UserError where a document holds the EOS id itself.
        """
        if not documents:
            return
        row = np.concatenate([part for ids in documents for part in (ids, self._eos)])
        if int(row.max()) >= self._vocab_size:  # the cast below would wrap it into another id
            raise AssertionError(f"id {row.max()} in a vocabulary of {self._vocab_size}")
        if np.count_nonzero(row == self._eos) != len(documents):
            raise UserError(
                f"the tokenizer makes its end-of-text id {self._eos[0]} of text, so that the end "
                "of a document cannot be told",
                hint="take a tokenizer whose end-of-text token is no part of text",
                exit_code=BAD_DATA,
            )
        end = self.tokens
        for ids, size in zip(documents, text_bytes, strict=True):
            end += len(ids) + 1
            self._ends.append(end)
            self._bytes.append(size)
        self.text_bytes += sum(text_bytes)
        self._append(row.astype(self._dtype))

    def _append(self, row: npt.NDArray[Any]) -> None:
        while len(row):
            if self._file is None:
                path = shard_path(self._folder, self._split, len(self._shards))
                self._file, self._sha = open(path, "wb"), hashlib.sha256()
                self._shards.append({"file": path.name, "tokens": 0})
            shard = self._shards[-1]
            part = row[: self._shard_tokens - shard["tokens"]]
            content = part.tobytes()
            self._file.write(content)
            self._sha.update(content)
            shard["tokens"] += len(part)
            self.tokens += len(part)
            row = row[len(part) :]
            if shard["tokens"] == self._shard_tokens:
                self._end_shard()

    def _end_shard(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            self._shards[-1]["sha256"] = self._sha.hexdigest()

    def finish(self) -> dict[str, Any]:
        """Close the last shard, write the arrays, and return the split's part of the manifest."""
        self._end_shard()
        sums = {}
        for name, values in (("ends", self._ends), ("bytes", self._bytes)):
            path = array_path(self._folder, self._split, name)
            np.save(path, np.array(values, np.int64), allow_pickle=False)
            sums[f"{name}_sha256"] = sha256_file(path)
        counts = {"tokens": self.tokens, "documents": len(self._ends)}
        return counts | {"text_bytes": self.text_bytes, "shards": self._shards} | sums
