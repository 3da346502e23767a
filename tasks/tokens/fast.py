"""The fastest encoder that gives exactly the ids of ``tokenizers``.

tiktoken encodes byte-level BPE six times as fast. It ranks byte strings where ``tokenizers`` ranks
pairs, so tokenizer.json is translated (the 256 bytes, then each merge in order). So can BPE over
characters be, with a byte for what has no character (fast_pieces.py); a tokenizer with no merges
at all is a table that numpy looks up (fast_table.py). Each is compared on the text at hand before
it is used; where it differs, or where a tokenizer is of none of these kinds, ``tokenizers`` does
the work and a line says so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from tasks.tokens.encoder import Encode, Ids, Unsuitable, byte_of_character, refuse_odd
from tasks.tokens.fast_pieces import with_pieces
from tasks.tokens.fast_table import with_table
from tasks.tokens.text import TextTokenizer

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
    """The quickest exact encoder of a tokenizer, and its name in ``ENCODERS``.

    Args:
        tokenizer: whose ids are wanted.
        sample: texts like those to come; the first megabyte is encoded both ways and compared.
    """
    slow = with_tokenizers(tokenizer)
    model = tokenizer.spec["model"]
    name = "tiktoken" if model.get("merges") else "table"
    name = "tiktoken-pieces" if model.get("byte_fallback") else name
    try:
        fast = ENCODERS[name](tokenizer)
    except Unsuitable as reason:
        print(f"    encoding with tokenizers: {reason}")
        return slow, "tokenizers"
    texts = [*_TRICKY, *_first(sample, SAMPLE_BYTES)]
    for text, ours, theirs in zip(texts, fast(texts), slow(texts)):
        if not np.array_equal(ours, theirs):
            print(f"    encoding with tokenizers: {name} gives other ids for {text[:80]!r}")
            return slow, "tokenizers"
    return fast, name


def with_tokenizers(tokenizer: TextTokenizer) -> Encode:
    """Encode with the tokenizer itself."""

    def encode(texts: Sequence[str]) -> list[Ids]:
        return [np.asarray(ids, np.uint32) for ids in tokenizer.encode_batch(texts)]

    return encode


def with_tiktoken(tokenizer: TextTokenizer) -> Encode:
    """Encode with tiktoken. Raises Unsuitable for what is not plain byte-level BPE."""
    import tiktoken

    ranks, id_of_rank = tiktoken_ranks(tokenizer.spec)
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


def tiktoken_ranks(spec: dict[str, Any]) -> tuple[dict[bytes, int], Ids]:
    """tiktoken's ranks of a tokenizer.json (bytes of a token -> priority), and id by rank."""
    model = spec["model"]
    refuse_odd(spec)
    pre = spec.get("pre_tokenizer") or {}
    if {key: pre.get(key) for key in BYTE_LEVEL} != BYTE_LEVEL or spec.get("normalizer"):
        raise Unsuitable("it is not byte-level BPE with GPT-2's words and no normalizer")
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


def _first(texts: Sequence[str], limit: int) -> list[str]:
    taken: list[str] = []
    for text in texts:
        if limit <= 0:
            break
        taken.append(text[:limit])
        limit -= len(text)
    return taken


ENCODERS = {
    "table": with_table,
    "tiktoken-pieces": with_pieces,
    "tiktoken": with_tiktoken,
    "tokenizers": with_tokenizers,
}
