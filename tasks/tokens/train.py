"""Train a BPE tokenizer (Sennrich et al. 2016), over bytes or over characters.

    byte_bpe        GPT-2's words (Radford et al. 2019), then merges over bytes.
                    decode(encode(x)) == x for every text; there is no unknown token.
    whitespace_bpe  words between white space, then merges over characters.
                    Lossy on purpose: every run of white space becomes one space and none is kept
                    at the ends, capitals are lost where lowercase is on, characters that the
                    sample did not hold become [UNK], and U+2581 (which marks a space) becomes a
                    space. Apart from that, decode(encode(x)) == " ".join(x.split()).
                    Bits per byte of a lossy tokenizer flatter it: it is asked for less.

Same sample, same bytes of tokenizer.json, for any number of threads.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library

from tasks.errors import BAD_DATA, UserError
from tasks.recipe import Tokenizer
from tasks.settings import settings

END = "<|endoftext|>"
PAD, UNK, BOS, EOS = "[PAD]", "[UNK]", "[BOS]", "[EOS]"
SPACE = "\u2581"
BATCH = 256  # texts handed over at once
PIECE_CHARACTERS = 100_000  # a longer text is pre-tokenized in pieces, or takes memory 50-fold


def train(recipe: Tokenizer, texts: Iterable[str]) -> tuple[bytes, dict[str, str]]:
    """Train on ``texts``; returns tokenizer.json and the special tokens by their names.

    Raises UserError where the vocabulary is too small for the characters of the sample.
    """
    os.environ.setdefault("RAYON_NUM_THREADS", str(settings().cores))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    byte_level = recipe.kind == "byte_bpe"
    tokenizer = _byte_level(recipe) if byte_level else _between_spaces(recipe)
    special = [END] if byte_level else [PAD, UNK, BOS, EOS]
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        min_frequency=recipe.min_frequency,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()) if byte_level else [],
        show_progress=False,
    )
    pieces = (piece for text in texts for piece in cut(text, recipe.max_word))
    tokenizer.train_from_iterator(_batches(pieces), trainer)
    if (size := tokenizer.get_vocab_size()) > recipe.vocab_size:
        raise UserError(
            f"too small: the sample alone has {size - len(special):,} different characters, and "
            f"there are {len(special)} special tokens",
            where="params.yaml: tokenizer.vocab_size",
            hint=f"set it well above {size:,}, or choose kind byte_bpe, which needs 257",
            exit_code=BAD_DATA,
        )
    names = (
        {"eos_token": END, "bos_token": END, "pad_token": END}
        if byte_level
        else {"eos_token": EOS, "bos_token": BOS, "pad_token": PAD, "unk_token": UNK}
    )
    return tokenizer.to_str(pretty=True).encode(), names


def _byte_level(recipe: Tokenizer) -> Any:
    tokenizer = Library(models.BPE())
    if recipe.lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _between_spaces(recipe: Tokenizer) -> Any:
    tokenizer = Library(models.BPE(unk_token=UNK))
    steps = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    if recipe.lowercase:
        steps.insert(0, normalizers.Lowercase())
    tokenizer.normalizer = normalizers.Sequence(steps)
    # a word or a run of punctuation, each with the space before it as its first character:
    # the mark is what brings the spaces back
    words = rf"{SPACE}?\w+|{SPACE}?[^\w{SPACE}]+|{SPACE}"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(SPACE, prepend_scheme="always", split=False),
            pre_tokenizers.Split(Regex(words), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(SPACE, prepend_scheme="always", split=False)
    return tokenizer


def cut(text: str, max_word: int) -> Iterator[str]:
    """A text in pieces that hold no word, nor gap, longer than ``max_word`` characters.

    Merging takes time quadratic in a word's length: one of 400,000 characters takes minutes. The
    pieces joined are the text; most texts are one piece.
    """
    if len(text) <= max_word:
        yield text
        return
    long_run = re.compile(rf"\S{{{max_word}}}(?=\S)|\s{{{max_word}}}(?=\s)")
    start = 0
    while start < len(text):
        match = long_run.search(text, start, start + PIECE_CHARACTERS)
        end = match.end() if match else start + PIECE_CHARACTERS
        yield text[start:end]
        start = end


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(islice(texts, BATCH)):
        yield batch
