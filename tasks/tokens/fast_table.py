"""Encode what has no merges: each byte, or each character, is looked up in a table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tasks.tokens.encoder import Encode, Ids, Unsuitable, byte_of_character, refuse_odd
from tasks.tokens.text import TextTokenizer

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
CODE_POINTS = 0x110000


def with_table(tokenizer: TextTokenizer) -> Encode:
    """Encode by looking each byte or character up. Raises Unsuitable for what merges or splits."""
    spec, vocab = tokenizer.spec, tokenizer.spec["model"]["vocab"]
    refuse_odd(spec)
    if spec["model"].get("merges") or spec["model"].get("byte_fallback") or spec.get("normalizer"):
        raise Unsuitable("it merges or normalizes")
    pre, unknown = spec.get("pre_tokenizer"), spec["model"].get("unk_token")
    if pre and {key: pre.get(key) for key in BYTES} == BYTES:
        codec, unit, size = "utf-8", "<u1", 256
        entries = {byte: vocab.get(char) for char, byte in byte_of_character().items()}
    elif not pre and unknown in vocab and not spec["model"].get("fuse_unk"):
        codec, unit, size = "utf-32-le", "<u4", CODE_POINTS
        entries = {ord(token): id_ for token, id_ in vocab.items() if len(token) == 1}
    else:
        raise Unsuitable("its ids are neither bytes nor characters")
    table = np.full(size, vocab.get(unknown, 0), np.uint32)
    for entry, id_ in entries.items():
        if id_ is None:
            raise Unsuitable(f"byte {entry} is not in its vocabulary")
        table[entry] = id_

    def encode(texts: Sequence[str]) -> list[Ids]:
        return [table[np.frombuffer(text.encode(codec), unit)] for text in texts]

    return encode
