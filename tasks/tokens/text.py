"""Text to ids and back, with the tokenizer of a folder that ``transformers`` opens too.

Documents are text and nothing but text: a document that contains the letters ``<|endoftext|>``
gets the ids of those letters. The EOS id is put between documents by number, never by its name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tasks.errors import BAD_DATA, NO_INPUT, UserError
from tasks.files import read_json

MAX_FILE_BYTES = 50_000_000
MAX_VOCAB = 1_000_000
MODELS = ("BPE", "Unigram", "WordPiece", "WordLevel")


class TextTokenizer:
    """A tokenizer with what the pipeline needs to know about it.

    Attributes:
        vocab_size: number of ids; every id is below it.
        eos_id: the id that ends each document.
        fingerprint: SHA-256 of tokenizer.json, as hex.
    """

    def __init__(self, content: bytes, eos_token: str, where: str = "tokenizer.json") -> None:
        self.spec = check_spec(content, where)
        if self.spec.get("truncation") or self.spec.get("padding"):
            raise UserError(
                "it truncates or pads text; set both to null", where=where, exit_code=BAD_DATA
            )
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self._tokenizer = build(content, where)
        self._tokenizer.encode_special_tokens = True
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        if eos_token not in ids:
            raise UserError(
                f"the end-of-text token {eos_token!r} is not in the vocabulary",
                where=where,
                exit_code=BAD_DATA,
            )
        self.eos_token, self.eos_id = eos_token, ids[eos_token]
        self.vocab_size = max(ids.values()) + 1

    def encode(self, text: str) -> list[int]:
        """Ids of a text, with no special token added. Raises UserError for a lone surrogate."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, on all cores."""
        try:
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError:  # what the library makes of a surrogate
            raise UserError(
                "the text holds half of a surrogate pair, which is not a character",
                hint="replace it: text.encode('utf-8', 'replace').decode()",
                exit_code=BAD_DATA,
            ) from None
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of ids; special ids (EOS, padding) are left out unless asked for.

        Bytes that are not whole UTF-8 characters come out as U+FFFD.
        """
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def continuation(self, prompt: Sequence[int], new: Sequence[int]) -> str:
        """The text of ``new`` as it reads after ``prompt``: the seam may hold a space, or none."""
        before, after = self.decode(prompt), self.decode([*prompt, *new])
        return after[len(before) :] if after.startswith(before) else self.decode(new)

    def token(self, id_: int) -> str | None:
        """A token as the vocabulary writes it, or None where there is no such id."""
        return self._tokenizer.id_to_token(id_)

    @property
    def special_ids(self) -> set[int]:
        added = self._tokenizer.get_added_tokens_decoder()
        return {id_ for id_, token in added.items() if token.special}


def load_tokenizer(folder: Path) -> TextTokenizer:
    """The tokenizer of a folder: ``data/tokenizer``, or an export.

    Raises UserError where a file is missing, is not what it should be, or where report.json (if
    there is one) was written for another tokenizer.json.
    """
    path = folder / "tokenizer.json"
    content = read_limited(path)
    config = read_json(folder / "tokenizer_config.json")
    eos_token = token_name(config, "eos_token")
    if eos_token is None:
        raise UserError(
            "eos_token is missing", where=f"{folder}/tokenizer_config.json", exit_code=BAD_DATA
        )
    tokenizer = TextTokenizer(content, eos_token, str(path))
    report = folder / "report.json"
    if report.exists():
        expected = read_json(report).get("fingerprint")
        if expected != tokenizer.fingerprint:
            raise UserError(
                f"SHA-256 is {tokenizer.fingerprint}, but it was written as {expected}",
                where=str(path),
                hint="the file was changed by hand: run the tokenizer stage again",
                exit_code=BAD_DATA,
            )
    return tokenizer


def read_limited(path: Path) -> bytes:
    """The bytes of a file of at most 50 MB. Raises UserError where it is missing or larger."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise UserError(
                f"{path} has {size:,} bytes; a tokenizer's file has at most {MAX_FILE_BYTES:,}",
                exit_code=BAD_DATA,
            )
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{path} is missing", hint="make it: dvc repro tokenizer", exit_code=NO_INPUT
        ) from None


def check_spec(content: bytes, where: str) -> dict[str, Any]:
    """Parse a tokenizer.json and check its outline before any library builds it.

    Raises UserError for what is not JSON, has no known model, or has more than a million ids.
    """

    def fault(message: str) -> UserError:
        return UserError(message, where=where, exit_code=BAD_DATA)

    try:
        spec = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise fault(f"not valid JSON: {error}") from None
    model = spec.get("model") if isinstance(spec, dict) else None
    if not isinstance(model, dict) or "vocab" not in model:
        raise fault("this JSON is not a tokenizer: it has no model with a vocabulary")
    if model.get("type", "BPE") not in MODELS:
        raise fault(f"model type {model['type']!r} is not one of {', '.join(MODELS)}")
    if len(model["vocab"]) > MAX_VOCAB:
        raise fault(f"{len(model['vocab']):,} ids; the most is {MAX_VOCAB:,}")
    return spec


def build(content: bytes, where: str) -> Any:
    """The ``tokenizers.Tokenizer`` of a tokenizer.json. Raises UserError where there is none."""
    try:
        return Tokenizer.from_str(content.decode())
    except Exception as error:  # the library has no exception of its own
        raise UserError(f"not a tokenizer: {error}", where=where, exit_code=BAD_DATA) from None


def token_name(config: dict[str, Any], key: str) -> str | None:
    """A special token of a tokenizer_config.json, written as a string or as an object."""
    value = config.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
