"""Tokenizers without merges: an id for every character of the sample, or for every byte.

character   the characters of the training sample by code point, then [UNK] and <|endoftext|>.
            Where vocab_size has no room for all, the rarest become [UNK]; that is said, with
            the size that would keep them. Any other text comes back as it was.
byte        ids 0 to 255 are the bytes of UTF-8, 256 is <|endoftext|>.
            decode(encode(x)) == x for every text, and there is nothing to train.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Library

from tasks.recipe import Tokenizer
from tasks.tokens.encoder import byte_of_character
from tasks.tokens.fast_table import CODE_POINTS
from tasks.tokens.pretrained import Built
from tasks.tokens.train import END, UNK
from tasks.workers import batches


def train_characters(recipe: Tokenizer, texts: Iterable[str]) -> Built:
    """One id a character: the ``vocab_size - 2`` most frequent ones, ties by code point."""
    normalizer = normalizers.Lowercase() if recipe.lowercase else None
    if normalizer is not None:
        texts = map(normalizer.normalize_str, texts)
    counts = count_characters(texts)
    seen = np.flatnonzero(counts)
    room = recipe.vocab_size - 2
    kept = seen[np.argsort(-counts[seen], kind="stable")][:room]
    if lost := len(seen) - len(kept):
        share = 1 - counts[kept].sum() / counts.sum()
        print(
            f"    {lost:,} of {len(seen):,} characters ({share:.2g} of the sample) become {UNK}: "
            f"tokenizer.vocab_size {len(seen) + 2} keeps them all"
        )
    characters = [*map(chr, sorted(kept.tolist())), UNK, END]
    vocab = {character: id_ for id_, character in enumerate(characters)}
    tokenizer = Library(models.BPE(vocab, [], unk_token=UNK))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.Fuse()
    return _built(tokenizer, {UNK: "unk_token"})


def byte_tokenizer(recipe: Tokenizer) -> Built:
    """One id a byte."""
    vocab = byte_of_character() | {END: 256}
    tokenizer = Library(models.BPE(vocab, []))
    if recipe.lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _built(tokenizer, {})


def count_characters(texts: Iterable[str]) -> npt.NDArray[np.int64]:
    """How often each code point occurs, as an array of 1,114,112."""
    counts = np.zeros(CODE_POINTS, np.int64)
    for batch in batches(texts, len):
        points = np.frombuffer("".join(batch).encode("utf-32-le"), np.uint32)
        counts += np.bincount(points, minlength=CODE_POINTS)
    return counts


def _built(tokenizer: Library, more: dict[str, str]) -> Built:
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in (*more, END)]
    )
    names = {"eos_token": END, "bos_token": END, "pad_token": END}
    return Built(
        tokenizer.to_str(pretty=True).encode(),
        names | {name: token for token, name in more.items()},
        {},
    )
