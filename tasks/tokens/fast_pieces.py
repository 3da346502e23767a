"""Encode SentencePiece's BPE (Llama's, Mistral's) with tiktoken.

tiktoken merges the neighbours whose joint bytes have the best rank, leftmost first; SentencePiece
does the same with characters. So characters are put together from bytes before anything else: the
beginnings of their UTF-8 are tokens too, and where a character is unknown, what was put together
comes apart again into the ids of its bytes.

    rank   256 bytes < beginnings of characters < characters < pieces in the order of merges
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tasks.tokens.encoder import Encode, Ids, Unsuitable, refuse_odd
from tasks.tokens.text import TextTokenizer

SPACE = "\u2581"
WORDS = r" *[^ \n]+| +|\n"  # no piece goes on across the start of a gap, or holds a line break
PREPEND = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": SPACE},
        {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
    ],
}


def with_pieces(tokenizer: TextTokenizer) -> Encode:
    """Encode with tiktoken. Raises Unsuitable for what is not SentencePiece's BPE with bytes."""
    import tiktoken

    refuse_odd(tokenizer.spec)
    always = _always_prepends(tokenizer.spec)
    ids = _ids_of_bytes(tokenizer.spec["model"])
    encoding = tiktoken.Encoding(
        "phasewise",
        pat_str=WORDS,
        mergeable_ranks={piece: rank for rank, piece in enumerate(ids)},
        special_tokens={tokenizer.eos_token: len(ids)},  # one, or it looks for the empty pattern
    )
    flat = np.array([id_ for several in ids.values() for id_ in several], np.uint32)
    length = np.array([len(several) for several in ids.values()])
    start = np.cumsum(length) - length

    def encode_one(text: str) -> Ids:
        text = text.replace(SPACE, " ")
        if text and (always or not text.startswith(" ")):
            text = " " + text
        ranks = encoding.encode_to_numpy(text, disallowed_special=())
        lengths = length[ranks]
        ends = np.cumsum(lengths)
        places = np.repeat(start[ranks] - ends + lengths, lengths)
        return flat[places + np.arange(len(places))]

    def encode(texts: Sequence[str]) -> list[Ids]:
        return [encode_one(text) for text in texts]

    return encode


def _always_prepends(spec: dict[str, Any]) -> bool:
    """Whether a space is put before a text that starts with one too."""
    normalizer, pre = spec.get("normalizer"), spec.get("pre_tokenizer")
    if normalizer == PREPEND and not pre:
        return True
    metaspace = {"type": "Metaspace", "replacement": SPACE, "split": False}
    if (
        not normalizer
        and pre
        and pre.get("prepend_scheme") in ("first", "always")
        and {key: pre.get(key) for key in metaspace} == metaspace
    ):
        return False
    raise Unsuitable("it does not put one space before a text, as SentencePiece does")


def _ids_of_bytes(model: dict[str, Any]) -> dict[bytes, list[int]]:
    """Bytes of each tiktoken token -> the ids it stands for, in the order of rank."""
    vocab = model["vocab"]
    try:
        single = [vocab[f"<0x{byte:02X}>"] for byte in range(256)]
    except KeyError as missing:
        raise Unsuitable(f"the byte {missing} is not in its vocabulary") from None
    characters = {_bytes(token): [id_] for token, id_ in vocab.items() if len(token) == 1}
    ids = {bytes([byte]): [id_] for byte, id_ in enumerate(single)}
    for character in characters:
        for end in range(2, len(character)):
            ids.setdefault(character[:end], [single[byte] for byte in character[:end]])
    ids |= characters
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        piece = left + right
        if "\n" in piece or SPACE in piece.lstrip(SPACE):
            raise Unsuitable(f"its piece {piece!r} goes on after a space or a line break")
        ids.setdefault(_bytes(piece), [vocab[piece]])
    return ids


def _bytes(piece: str) -> bytes:
    return piece.replace(SPACE, " ").encode()
