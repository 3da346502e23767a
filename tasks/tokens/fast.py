"""The fastest encoder that gives exactly the ids of ``tokenizers``.

tiktoken encodes byte-level BPE six times as fast. It ranks byte strings where ``tokenizers`` ranks
pairs, so tokenizer.json is translated (the 256 bytes, then each merge in order) and the result is
compared on the text at hand before it is used; where the two differ, or where a tokenizer is not
of that kind, ``tokenizers`` does the work and a line says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tasks.tokens.text import TextTokenizer

Ids: TypeAlias = npt.NDArray[np.uint32]
Encode: TypeAlias = Callable[[Sequence[str]], list[Ids]]

# GPT-2's pattern (Radford et al. 2019) with possessive repeats: the same words, less backtracking
WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
SAMPLE_BYTES = 1_000_000
_LONG_TEXT, _LONG_SPACE = 100_000, re.compile(r"\s{1000}")
_TRICKY = (
    " a  b   c\n\n\td \r\n e\u00a0\u2003f  ",
    "I'll we've they're it's I'd I'm can't CAN'T 'tis 'S",
    "x=1234567890;y[0]+=3.14e-10//2**8 -- <|endoftext|> <|endoftext|",
    "naïve Ελλάδα Привет שלום नमस्ते 日本語 한국어 👩‍👩‍👧‍👦 e\u0301 ½ Ⅷ ²",
    "\x00\x1b\x7f\x85\u2028\ufeff\U0010ffff",
    " " * 700 + "a" * 700 + "\n" * 70 + "-" * 700,
)


def fastest(tokenizer: TextTokenizer, sample: Sequence[str]) -> tuple[Encode, str]:
    """The quickest exact encoder of a tokenizer, and its name (tiktoken or tokenizers).

    Args:
        tokenizer: whose ids are wanted.
        sample: texts like those to come; the first megabyte is encoded both ways and compared.
    """
    slow = with_tokenizers(tokenizer)
    try:
        fast = with_tiktoken(tokenizer)
    except Unsuitable as reason:
        print(f"    encoding with tokenizers: {reason}")
        return slow, "tokenizers"
    texts = [*_TRICKY, *_first(sample, SAMPLE_BYTES)]
    for text, ours, theirs in zip(texts, fast(texts), slow(texts)):
        if not np.array_equal(ours, theirs):
            print(f"    encoding with tokenizers: tiktoken gives other ids for {text[:80]!r}")
            return slow, "tokenizers"
    return fast, "tiktoken"


class Unsuitable(ValueError):
    """Why tiktoken cannot stand in for a tokenizer."""


def with_tokenizers(tokenizer: TextTokenizer) -> Encode:
    """Encode with the tokenizer itself."""

    def encode(texts: Sequence[str]) -> list[Ids]:
        return [np.asarray(ids, np.uint32) for ids in tokenizer.encode_batch(texts)]

    return encode


def with_tiktoken(tokenizer: TextTokenizer) -> Encode:
    """Encode with tiktoken. Raises Unsuitable for what is not plain byte-level BPE."""
    import tiktoken

    ranks, id_of_rank = _ranks(tokenizer.spec)
    # one special token, never looked for: with none, tiktoken tries the empty pattern everywhere
    encoding = tiktoken.Encoding(
        "phasewise",
        pat_str=WORDS,
        mergeable_ranks=ranks,
        special_tokens={tokenizer.eos_token: len(ranks)},
    )

    def encode(texts: Sequence[str]) -> list[Ids]:
        encoded: list[Ids] = []
        for text in texts:
            if len(text) > _LONG_TEXT and _LONG_SPACE.search(text):
                # tiktoken's matcher runs out of stack in a million spaces
                encoded.append(np.asarray(tokenizer.encode(text), np.uint32))
            else:  # this call lets other threads run, which encode_ordinary does in part only
                encoded.append(id_of_rank[encoding.encode_to_numpy(text, disallowed_special=())])
        return encoded

    return encode


def _ranks(spec: dict[str, Any]) -> tuple[dict[bytes, int], Ids]:
    """tiktoken's ranks of a tokenizer.json (bytes of a token -> priority), and id by rank."""
    model = spec["model"]
    if model.get("type", "BPE") != "BPE":
        raise Unsuitable(f"the model is {model['type']}, not BPE")
    pre = spec.get("pre_tokenizer") or {}
    if {key: pre.get(key) for key in BYTE_LEVEL} != BYTE_LEVEL or spec.get("normalizer"):
        raise Unsuitable("it is not byte-level BPE with GPT-2's words and no normalizer")
    odd = ("dropout", "ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")
    if used := [key for key in odd if model.get(key)]:
        raise Unsuitable(f"it uses {', '.join(used)}")
    if any(not token["special"] for token in spec.get("added_tokens", [])):
        raise Unsuitable("it has added tokens that are looked for in the text")
    vocab, alphabet = model["vocab"], byte_of_character()
    if missing := [char for char in alphabet if char not in vocab]:
        raise Unsuitable(f"{len(missing)} of the 256 bytes are not in its vocabulary")
    tokens = list(alphabet)
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        tokens.append(left + right)
    ranks = {bytes(alphabet[char] for char in token): rank for rank, token in enumerate(tokens)}
    if len(ranks) != len(tokens):
        raise Unsuitable("two of its merges make the same token")
    return ranks, np.array([vocab[token] for token in tokens], np.uint32)


@cache
def byte_of_character() -> dict[str, int]:
    """The byte behind each of the 256 characters of a byte-level vocabulary.

    Printable Latin-1 stands for itself; the others take the code points from 256 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    shown = {chr(byte): byte for byte in printable}
    return shown | {chr(256 + place): byte for place, byte in enumerate(others)}


def _first(texts: Sequence[str], limit: int) -> list[str]:
    taken: list[str] = []
    for text in texts:
        if limit <= 0:
            break
        taken.append(text[:limit])
        limit -= len(text)
    return taken
