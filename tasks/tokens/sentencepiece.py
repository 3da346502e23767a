"""Train SentencePiece's BPE (Kudo & Richardson 2018) and say the same thing as a tokenizer.json.

    sample --lines--> SentencePiece --> tokenizer.model --pieces, scores--> tokenizer.json
                                              '---- the same ids, checked ----'

llama.cpp reads the one file, ``transformers`` and this pipeline the other. As in Llama the text is
taken as it is (no Unicode normalisation, no space removed), one space is put before it, and a
character beyond the coverage is written as its UTF-8 bytes. So nothing is lost but U+2581, which
stands for a space, and bits per byte are those of the whole text; without the bytes such a
character, and every line break, would become <unk>.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any

from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as Library

from tasks.errors import BAD_DATA, INTERNAL, UserError
from tasks.recipe import Tokenizer
from tasks.tokens.pretrained import Built
from tasks.tokens.text import TextTokenizer
from tasks.tokens.train import SPACE, cut

UNK, BOS, EOS, PAD = "<unk>", "<s>", "</s>", "<pad>"  # ids 0 to 3
COVERAGE = 0.9995  # share of the sample's characters that have an id of their own
CHECKED_CHARACTERS = 1_000_000
_TRICKY = (
    "",
    " ",
    " a  b   c\n\n\td \r\n e\u00a0\u2003f  ",
    "<s> </s><unk> <pad> <0x0A> <|endoftext|> \u2581 \u2581\u2581x \u2585",
    "I'll x=1234567890;y[0]+=3.14e-10//2**8 ----- ======= aaaaaaa ababababa",
    "naïve Ελλάδα Привет שלום नमस्ते 日本語 한국어 👩‍👩‍👧‍👦 e\u0301 ½ Ⅷ ²",
    "\x00\x1b\x7f\x85\u2028\ufeff\U0010ffff",
    " " * 70 + "a" * 70 + "\n" * 7 + "-" * 70,
)


def train_sentencepiece(recipe: Tokenizer, texts: Iterable[str]) -> Built:
    """Train on the lines of ``texts``; the same texts give the same bytes.

    Returns tokenizer.json with tokenizer.model beside it. Raises UserError where the vocabulary is
    too small for the characters of the sample, and (exit code 70) where the two files differ.
    """
    first: list[str] = []
    model = _model(recipe, _lines(_keeping_first(texts, first), recipe.max_word))
    content = tokenizer_json(model)
    require_equal(model, content, first)
    special = {"eos_token": EOS, "bos_token": BOS, "pad_token": PAD, "unk_token": UNK}
    return Built(content, special, {}, {"tokenizer.model": model})


def tokenizer_json(model: bytes) -> bytes:
    """The tokenizer.json that gives the ids of a BPE tokenizer.model with byte fallback.

    SentencePiece merges the neighbours whose joint piece has the best score. As merges in order
    that is: for each piece, best score first, every way to cut it into two other pieces.
    """
    pieces = _processor(model)
    names = [pieces.id_to_piece(id_) for id_ in range(pieces.vocab_size())]
    special = [id_ for id_ in range(len(names)) if pieces.is_control(id_) or pieces.is_unknown(id_)]
    scores = {
        name: pieces.get_score(id_)
        for id_, name in enumerate(names)
        if id_ not in special and not pieces.is_byte(id_)
    }
    merges = [
        (name[:end], name[end:])
        for name in sorted(scores, key=lambda name: -scores[name])
        for end in range(1, len(name))
        if name[:end] in scores and name[end:] in scores
    ]
    vocab = {name: id_ for id_, name in enumerate(names)}
    tokenizer = Library(models.BPE(vocab, merges, unk_token=UNK, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(
        [AddedToken(names[id_], normalized=False, special=True) for id_ in special]
    )
    return tokenizer.to_str(pretty=True).encode()


def require_equal(model: bytes, content: bytes, texts: Iterable[str]) -> None:
    """Raise UserError (exit code 70) unless tokenizer.model and tokenizer.json give the same ids,
    and the same text back, for tricky texts and for ``texts``."""
    pieces, words = _processor(model), TextTokenizer(content, EOS)
    for text in (*_TRICKY, *texts):
        expected = pieces.encode(text)
        if words.encode(text) != expected or words.decode(expected) != pieces.decode(expected):
            raise UserError(
                f"tokenizer.json and tokenizer.model disagree on {text[:80]!r}",
                hint="choose tokenizer.kind byte_bpe, and please report this with the recipe",
                exit_code=INTERNAL,
            )


def _model(recipe: Tokenizer, lines: Iterator[str]) -> bytes:
    import sentencepiece

    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=written,
            model_type="bpe",
            vocab_size=recipe.vocab_size,
            hard_vocab_limit=False,  # a small sample gives fewer ids, which the stage says
            character_coverage=COVERAGE,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=2**30,  # longer lines would be left out in silence
            input_sentence_size=0,  # all of them, in order
            shuffle_input_sentence=False,
            num_threads=1,  # the number is written into the file
            minloglevel=2,
        )
    except RuntimeError as error:
        if "required_chars" not in str(error):
            raise UserError(f"SentencePiece: {error}", exit_code=BAD_DATA) from None
        raise UserError(
            f"too small: {recipe.vocab_size:,} ids cannot hold 256 bytes, 4 special tokens and the "
            f"characters of the sample ({_reason(error)})",
            where="params.yaml: tokenizer.vocab_size",
            hint="set it higher, or choose kind byte_bpe, which needs 257",
            exit_code=BAD_DATA,
        ) from None
    return written.getvalue()


def _reason(error: RuntimeError) -> str:
    """SentencePiece's own words, without its line of C++."""
    return str(error).rpartition("] ")[2].partition(" Increase")[0]


def _processor(model: bytes) -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=model)


def _keeping_first(texts: Iterable[str], first: list[str]) -> Iterator[str]:
    """Pass texts on, and keep the first million characters of them."""
    left = CHECKED_CHARACTERS
    for text in texts:
        if left > 0:
            first.append(text[:left])
            left -= len(text)
        yield text


def _lines(texts: Iterable[str], max_word: int) -> Iterator[str]:
    """What SentencePiece calls sentences. Line breaks are left to the bytes, as in Llama."""
    for text in texts:
        for line in text.split("\n"):
            if line:
                yield from cut(line, max_word)
