"""A tokenizer as a GGUF holds it: only one whose ids llama.cpp gives too, or none.

    byte-level BPE with GPT-2's words   tokenizer model "gpt2", words "gpt-2": tokens and merges
    SentencePiece's BPE                 tokenizer model "llama": tokens and scores, no merges

llama.cpp knows neither normalizers (lowercase, collapsed white space) nor words of one's own, so a
tokenizer that has them is refused: it would run, and give other ids without a word. One difference
is left, which llama.cpp shares with SentencePiece itself: where a prompt for the second kind starts
with a space, it keeps that space and puts its own before it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.files import read_json
from tasks.tokens.fast import BYTE_LEVEL, byte_of_character
from tasks.tokens.text import TextTokenizer, load_tokenizer, token_name
from tasks.tokens.train import SPACE

BYTES = [f"<0x{number:02X}>" for number in range(256)]
# GGUF's own numbers for what a token is
NORMAL, UNKNOWN, CONTROL, UNUSED, BYTE = 1, 2, 3, 5, 6
_ODD = ("dropout", "ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")
# the ways in which a tokenizer.json marks words as SentencePiece does
_METASPACE = {"type": "Metaspace", "replacement": SPACE, "split": False}
_PREPENDED = [
    {"type": "Prepend", "prepend": SPACE},
    {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
]
_GAPS = {
    "type": "Split",
    "pattern": {"Regex": rf"{SPACE}*[^{SPACE}]+|{SPACE}+"},
    "behavior": "Isolated",
    "invert": False,
}


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF says of a tokenizer; lists are by id and as long as the embedding table."""

    model: str
    tokens: list[str]
    types: list[int]
    special: dict[str, int]
    """bos, eos, unk and pad (named ``unknown`` and ``padding`` there) -> id."""
    pre: str = "default"
    merges: list[str] | None = None
    scores: list[float] | None = None


def vocabulary(folder: Path, size: int) -> Vocabulary:
    """The tokenizer of a model's folder, with ``size`` ids.

    Raises UserError that says what llama.cpp cannot do, and what can be written nevertheless.
    """
    words = load_tokenizer(folder)
    try:
        if (words.spec["model"].get("type") or "BPE") != "BPE":
            raise _Unfit(f"its model is {words.spec['model']['type']}, not BPE")
        if odd := [key for key in _ODD if words.spec["model"].get(key)]:
            raise _Unfit(f"it uses {', '.join(odd)}")
        if any(not token["special"] for token in words.spec.get("added_tokens", [])):
            raise _Unfit("it has added tokens that are looked for in the text")
        if words.spec["model"].get("byte_fallback"):
            return _sentencepiece(words, _special(folder, words), size)
        return _byte_level(words, _special(folder, words), size)
    except _Unfit as reason:
        raise UserError(
            f"llama.cpp would give other ids than this tokenizer: {reason}",
            where=str(folder / "tokenizer.json"),
            hint="--tokenizer none writes a GGUF that takes and gives ids alone; phasewise "
            "generate and transformers open the folder with its tokenizer",
        ) from None


class _Unfit(ValueError):
    """Why a tokenizer cannot travel."""


def _byte_level(words: TextTokenizer, special: dict[str, int], size: int) -> Vocabulary:
    spec = words.spec
    pre = spec.get("pre_tokenizer") or {}
    if spec.get("normalizer"):
        raise _Unfit(f"it changes the text first ({_kinds(spec['normalizer'])})")
    if {key: pre.get(key) for key in BYTE_LEVEL} != BYTE_LEVEL:
        raise _Unfit("its words are not those of GPT-2")
    if not spec["model"]["vocab"].keys() >= byte_of_character().keys():
        raise _Unfit("some of the 256 bytes are not in its vocabulary")
    tokens, types = _tokens(words, size)
    pairs = [m if isinstance(m, str) else " ".join(m) for m in spec["model"]["merges"]]
    return Vocabulary("gpt2", tokens, types, special, pre="gpt-2", merges=pairs)


def _sentencepiece(words: TextTokenizer, special: dict[str, int], size: int) -> Vocabulary:
    """llama.cpp merges the neighbours whose union has the best score, so scores must say all that
    the merges say: each split of a token is one of them, and those of one token come together."""
    spec = words.spec
    vocab: dict[str, int] = spec["model"]["vocab"]
    if not _marks_words(spec):
        raise _Unfit("it changes the text before it is cut, or cuts it in its own way")
    if not vocab.keys() >= set(BYTES):
        raise _Unfit("some of the 256 bytes are not in its vocabulary")
    merges = [tuple(m.split(" ", 1) if isinstance(m, str) else m) for m in spec["model"]["merges"]]
    made = [token for token, _ in groupby(vocab["".join(pair)] for pair in merges)]
    aside = {token["content"] for token in spec.get("added_tokens", [])} | set(BYTES)
    splits = {
        (token[:cut], token[cut:])
        for token in vocab.keys() - aside
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    }
    if len(made) != len(set(made)) or splits != set(merges):
        raise _Unfit("its merges say more than an order of its tokens does")
    tokens, types = _tokens(words, size)
    for number in (vocab[byte] for byte in BYTES):
        types[number] = BYTE
    if "unknown" in special:
        types[special["unknown"]] = UNKNOWN
    rank = {number: place for place, number in enumerate(made)}
    scores = [-float(rank.get(number, len(made))) for number in range(size)]
    return Vocabulary("llama", tokens, types, special, scores=scores)


def _marks_words(spec: dict[str, Any]) -> bool:
    """Whether a space becomes U+2581, one more comes before the text, and nothing else happens."""
    normalizer, pre = spec.get("normalizer"), spec.get("pre_tokenizer")
    if normalizer is None:
        return pre in [_METASPACE | {"prepend_scheme": where} for where in ("first", "always")]
    if normalizer.get("normalizers") != _PREPENDED:
        return False
    if pre is None:
        return True
    # cut where a gap starts: that changes nothing where no token goes on across one
    crossing = re.compile(rf"[^{SPACE}]{SPACE}")
    return pre == _GAPS and not any(map(crossing.search, spec["model"]["vocab"]))


def _tokens(words: TextTokenizer, size: int) -> tuple[list[str], list[int]]:
    """Every id's token and type; ids without a token get a name that no text can be."""
    assert words.vocab_size <= size
    named = [words.token(number) for number in range(size)]
    special = words.special_ids
    types = [
        UNUSED if token is None else CONTROL if number in special else NORMAL
        for number, token in enumerate(named)
    ]
    return [f"[unused{i}]" if token is None else token for i, token in enumerate(named)], types


def _special(folder: Path, words: TextTokenizer) -> dict[str, int]:
    """Special ids by GGUF's names; BOS and padding are EOS where the tokenizer has none."""
    config = read_json(folder / "tokenizer_config.json")
    ids = {words.token(number): number for number in words.special_ids}
    found = {"eos": words.eos_id, "bos": words.eos_id, "padding": words.eos_id}
    for ours, theirs in (("bos", "bos"), ("pad", "padding"), ("unk", "unknown")):
        if (name := token_name(config, f"{ours}_token")) in ids:
            found[theirs] = ids[name]
    return found


def _kinds(normalizer: dict[str, Any]) -> str:
    return ", ".join(step["type"] for step in normalizer.get("normalizers", [normalizer]))
