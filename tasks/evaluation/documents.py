"""What a model paid for each held-out document: the sums that every figure is made of.

    data/documents/<source>/{validation,test} -> HeldOutText: texts, bytes, words, ids, fingerprint
    nats of each document, each weights       -> evaluation/<phase>.documents.npz

A set's fingerprint is of its text, so it is the same for every tokenizer: two models are compared
on a set by its fingerprint, document by document. A word is what stands between white space
(`str.split`), counted in the text that is scored.
"""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.data import documents
from tasks.errors import BAD_DATA, UserError
from tasks.evaluation.bootstrap import standard_error
from tasks.evaluation.scoring import DocumentSums, Protocol
from tasks.files import atomic_file
from tasks.tokens.text import TextTokenizer
from tasks.workspace import Workspace

MOST_NATS_A_WORD = 700.0  # beyond it exp() is no float: text without white space


@dataclass(frozen=True, eq=False)
class HeldOutText:
    """The documents of a set, in order."""

    name: str
    texts: tuple[str, ...]

    @cached_property
    def bytes(self) -> NDArray[np.int64]:
        """UTF-8 bytes of each (D,)."""
        return np.array([len(text.encode()) for text in self.texts], np.int64)

    @cached_property
    def words(self) -> NDArray[np.int64]:
        """What white space separates in each (D,)."""
        return np.array([len(text.split()) for text in self.texts], np.int64)

    @cached_property
    def ids(self) -> NDArray[np.bytes_]:
        """First 32 hex digits of the SHA-256 of each (D,)."""
        return np.array([documents.content_id(text).encode() for text in self.texts], "S32")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the ids in order: of the text, whatever reads it."""
        return hashlib.sha256(self.ids.tobytes()).hexdigest()


def held_out_text(
    workspace: Workspace, name: str, sizes: NDArray[np.int64], tokenizer: TextTokenizer
) -> HeldOutText:
    """The text of the first documents of a set ``<source>/<split>`` that the tokens were made from.

    ``sizes``: the bytes of each document, as the tokens' shards have them. Raises UserError where
    data/documents and data/tokens do not tell of the same documents.
    """
    source, split = name.split("/")
    texts: list[str] = []
    for document in documents.read(workspace.documents / source, split):  # type: ignore[arg-type]
        if len(texts) == len(sizes):
            break
        expected = document.bytes == sizes[len(texts)] and document.text.strip()
        if expected or tokenizer.encode(document.text):  # else encode dropped it, on its ledger
            texts.append(document.text)
    found = HeldOutText(name, tuple(texts))
    if not np.array_equal(found.bytes, sizes):
        raise UserError(
            f"{name}: data/documents and data/tokens hold different documents",
            hint=f"encode the source again: dvc repro encode@{source}",
            exit_code=BAD_DATA,
        )
    return found


def figures(sums: DocumentSums, text: HeldOutText) -> dict[str, float]:
    """The figures of one model on one set, bits per byte first; some may be infinite.

    ``bits_per_byte_se`` is missing for a set of one document, ``word_perplexity`` where a word
    costs more than exp() can say.
    """
    whole, words = sums.total(int(text.bytes.sum())), int(text.words.sum())
    found = {"bits_per_byte": whole.bits_per_byte}
    if whole.text_bytes and (se := standard_error(sums.nats, text.bytes)) is not None:
        found["bits_per_byte_se"] = se
    found["perplexity"] = whole.perplexity
    if words and whole.loss_sum / words < MOST_NATS_A_WORD:
        found["word_perplexity"] = math.exp(whole.loss_sum / words)
    return found | {"loss": whole.loss, "accuracy": whole.accuracy}


def write_documents(
    path: Path, texts: Iterable[HeldOutText], sums: Mapping[tuple[str, str], DocumentSums]
) -> None:
    """Write what each document cost; ``sums``: (set, weights) -> sums.

    Arrays (D,): ``<set>:bytes``, ``:words``, ``:id`` of the text, ``:tokens``, and for each weights
    ``:nats:<weights>`` and ``:correct:<weights>``. Equal sums make equal bytes.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for text in texts:
        arrays |= {f"{text.name}:{key}": getattr(text, key) for key in ("bytes", "words")}
        arrays[f"{text.name}:id"] = text.ids
    for (name, weights), found in sums.items():
        arrays[f"{name}:tokens"] = found.tokens
        arrays[f"{name}:nats:{weights}"] = found.nats
        arrays[f"{name}:correct:{weights}"] = found.correct
    with atomic_file(path) as handle:
        np.savez(handle, **arrays)  # type: ignore[arg-type]


def read_documents(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of `write_documents`; empty where there is no such file (an older workspace).

    Raises UserError where the file is damaged.
    """
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is damaged: {error}",
            hint=f"evaluate again: dvc repro --force evaluate@{path.name.split('.')[0]}",
            exit_code=BAD_DATA,
        ) from None


def sums_of(arrays: Mapping[str, NDArray[Any]], name: str, weights: str) -> DocumentSums | None:
    """The sums of one set and weights, or None where they were not written."""
    keys = (f"{name}:nats:{weights}", f"{name}:tokens", f"{name}:correct:{weights}")
    return DocumentSums(*(arrays[key] for key in keys)) if set(keys) <= arrays.keys() else None


def described(protocol: Protocol) -> str:
    """The protocol in words."""
    how = f"context of {protocol.seq_len} tokens, stride {protocol.stride}"
    if protocol.alone:
        return how + ", each document alone"
    return how + (", documents masked from each other" if protocol.document_mask else "")


def protocol_of(details: Mapping[str, Any]) -> Protocol | None:
    """The protocol of an evaluation's details, or None where an older one does not tell."""
    told = details.get("protocol")
    return Protocol(**told) if told and set(told) == set(asdict(Protocol(1, 1))) else None
