"""SentencePiece, characters and bytes: what comes back, that two files agree, what the stage says."""

from __future__ import annotations

import json
import random
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from model.counts import count_parameters
from tasks.errors import BAD_DATA, INTERNAL, UserError
from tasks.files import read_json
from tasks.recipe import Tokenizer
from tasks.release.export import write_tokenizer
from tasks.tokens.encode import encode
from tasks.tokens.fast import Unsuitable, fastest, with_tokenizers
from tasks.tokens.fast_pieces import with_pieces
from tasks.tokens.fast_table import with_table
from tasks.tokens.pretrained import Built, pretrained
from tasks.tokens.sample import draw
from tasks.tokens.sentencepiece import require_equal, tokenizer_json, train_sentencepiece
from tasks.tokens.symbols import byte_tokenizer, train_characters
from tasks.tokens.text import TextTokenizer, load_tokenizer
from tasks.tokens.tokenizer import tokenizer
from tests.test_tokens_workspace import TOPICS, make_workspace

KINDS = {"sentencepiece_bpe": 600, "character": 200, "byte": 257}
END = "<|endoftext|>"
SHAKESPEARE = "\n !$&',-.3:;?" + "".join(map(chr, [*range(65, 91), *range(97, 123)]))


def ready(built: Built) -> TextTokenizer:
    return TextTokenizer(built.content, built.special["eos_token"])


@cache
def sentences(vocab_size: int = 600) -> Built:
    return train_sentencepiece(
        Tokenizer(kind="sentencepiece_bpe", vocab_size=vocab_size), TOPICS[:60]
    )


@cache
def characters(vocab_size: int = 200, **section: Any) -> TextTokenizer:
    recipe = Tokenizer(kind="character", vocab_size=vocab_size, **section)
    return ready(train_characters(recipe, TOPICS[:60]))


@cache
def bytes_() -> TextTokenizer:
    return ready(byte_tokenizer(Tokenizer(kind="byte", vocab_size=257)))


# SentencePiece -----------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.text(max_size=200) | st.text("abe t-=_ \n.<s>/\u2581", max_size=80))
@example("<s> </s> <unk> <pad> <0x0A>")
@example("\x00\x1f\x7f\x85\u2028\ufeff\ufffe\U0010ffff e\u0301 \u0130 ﬁ")
def test_tokenizer_json_gives_the_ids_and_the_text_of_tokenizer_model(text: str) -> None:
    pieces = SentencePieceProcessor(model_proto=sentences().files["tokenizer.model"])
    words, ids = ready(sentences()), pieces.encode(text)
    assert words.encode(text) == ids
    assert words.decode(ids) == pieces.decode(ids) == text.replace("\u2581", " ")
    assert not set(ids) & words.special_ids


@pytest.mark.parametrize("seed", range(3))
def test_the_files_agree_where_one_piece_can_be_cut_in_many_ways(seed: int) -> None:
    chance = random.Random(seed)
    lines = ["".join(chance.choices("ab c", [5, 5, 1, 1], k=60)) for _ in range(400)]
    built = train_sentencepiece(Tokenizer(kind="sentencepiece_bpe", vocab_size=400), lines)
    others = ["".join(chance.choices("ab c", [5, 5, 1, 1], k=60)) for _ in range(400)]
    require_equal(built.files["tokenizer.model"], built.content, others)


def test_files_that_disagree_are_refused() -> None:
    spec = json.loads(sentences().content)
    spec["model"]["merges"] = spec["model"]["merges"][::-1]
    with pytest.raises(UserError, match="disagree on") as error:
        require_equal(sentences().files["tokenizer.model"], json.dumps(spec).encode(), TOPICS[:3])
    assert error.value.exit_code == INTERNAL


def test_the_special_tokens_are_rscalms() -> None:
    words = ready(sentences())
    assert [words.token(id_) for id_ in range(5)] == ["<unk>", "<s>", "</s>", "<pad>", "<0x00>"]
    assert (words.eos_id, words.special_ids, words.vocab_size) == (2, {0, 1, 2, 3}, 600)


def test_the_same_sample_gives_the_same_two_files() -> None:
    again = train_sentencepiece(Tokenizer(kind="sentencepiece_bpe", vocab_size=600), TOPICS[:60])
    assert again == sentences()
    assert tokenizer_json(again.files["tokenizer.model"]) == again.content


def test_long_lines_and_long_words_are_learned_from() -> None:
    line = "wolf " * 3000 + "x" * 20_000  # SentencePiece alone leaves out lines above 4,192 bytes
    built = train_sentencepiece(Tokenizer(kind="sentencepiece_bpe", vocab_size=300), [line])
    assert len(ready(built).encode("wolf")) == 1


def test_a_vocabulary_smaller_than_bytes_and_characters_is_refused() -> None:
    with pytest.raises(UserError, match="cannot hold 256 bytes") as error:
        train_sentencepiece(Tokenizer(kind="sentencepiece_bpe", vocab_size=280), TOPICS[:60])
    assert error.value.exit_code == BAD_DATA and "byte_bpe" in str(error.value)


# Characters and bytes ----------------------------------------------------------------------------


@settings(deadline=None)
@given(st.text(max_size=200))
@example(END)
@example("  two  spaces \n\n\t and tabs \r\n \x00 \U0010ffff")
def test_bytes_are_their_own_ids_and_come_back_for_every_text(text: str) -> None:
    words = bytes_()
    assert words.encode(text) == list(text.encode())
    assert words.decode(words.encode(text)) == text


@settings(deadline=None)
@given(st.text(sorted({character for text in TOPICS[:60] for character in text}), max_size=200))
@example(END)
@example("  two  spaces \n\n ")
def test_characters_of_the_sample_come_back_one_an_id(text: str) -> None:
    words = characters()
    ids = words.encode(text)
    assert len(ids) == len(text) and words.decode(ids) == text
    assert not set(ids) & words.special_ids


def test_an_unseen_character_is_unknown_and_the_rest_comes_back() -> None:
    words = characters()
    unknown = words.vocab_size - 2
    assert words.token(unknown) == "[UNK]" and words.eos_id == words.vocab_size - 1
    assert words.encode("日本").count(unknown) == 2
    assert words.decode(words.encode("a日b")) == "ab"


def test_the_rarest_characters_give_way_and_it_is_said_how_many(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Tiny shakespeare has 65 characters: Mini's 65 ids hold 63 of them, [UNK] and EOS."""
    text = SHAKESPEARE * 20 + (SHAKESPEARE.replace("$", "").replace("3", "") * 20)
    words = ready(train_characters(Tokenizer(kind="character", vocab_size=65), [text]))
    assert words.vocab_size == 65
    assert words.decode(words.encode("$3 Speak, speak.")) == " Speak, speak."
    said = capsys.readouterr().out
    assert "2 of 65 characters (0.016 of the sample)" in said and "vocab_size 67 keeps" in said
    whole = ready(train_characters(Tokenizer(kind="character", vocab_size=67), [text]))
    assert whole.decode(whole.encode(SHAKESPEARE)) == SHAKESPEARE
    assert not capsys.readouterr().out


def test_capitals_can_be_left_out_of_a_character_vocabulary() -> None:
    words = characters(lowercase=True)
    assert words.decode(words.encode("The CAT")) == "the cat"
    assert not any(words.token(id_) in "ABC" for id_ in range(words.vocab_size - 2))


@settings(deadline=None)
@given(st.lists(st.text(max_size=100), max_size=4))
def test_a_table_gives_the_ids_of_tokenizers_for_every_text(texts: list[str]) -> None:
    for words in (bytes_(), characters()):
        for ours, theirs in zip(with_table(words)(texts), with_tokenizers(words)(texts)):
            assert ours.dtype == theirs.dtype == np.uint32
            assert np.array_equal(ours, theirs)


@settings(deadline=None)
@given(st.lists(st.text(max_size=100) | st.text(" abe\n\t\u2581’é日", max_size=60), max_size=4))
def test_tiktoken_gives_the_ids_of_sentencepiece_for_every_text(texts: list[str]) -> None:
    words = ready(sentences())
    for ours, theirs in zip(with_pieces(words)(texts), with_tokenizers(words)(texts)):
        assert ours.dtype == theirs.dtype == np.uint32
        assert np.array_equal(ours, theirs)


def test_the_quickest_encoder_is_used_where_it_is_exact_and_only_there() -> None:
    for words in (bytes_(), characters()):
        assert fastest(words, TOPICS[:5])[1] == "table"
    assert fastest(ready(sentences()), TOPICS[:5])[1] == "tiktoken-pieces"
    assert fastest(characters(lowercase=True), TOPICS[:5])[1] == "tokenizers"
    with pytest.raises(Unsuitable, match="merges or normalizes"):
        with_table(ready(sentences()))


def test_tiktoken_stands_in_for_mistral(mirror: Path) -> None:
    built = pretrained(str(mirror / "mistralai/Mistral-7B-v0.1"), Path())
    words = ready(built)
    texts = [*TOPICS[:40], " starts with a space", "  two", "naïve 日本 👩‍👩‍👧 \u2581x\n\n\ty", ""]
    encoder, name = fastest(words, texts)
    assert name == "tiktoken-pieces"
    for ours, theirs in zip(encoder(texts), with_tokenizers(words)(texts), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "one space before"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "one space before"),
        ({"model": {"merges": [["a", "\u2581b"]]}}, "goes on after a space"),
        ({"model": {"vocab": {"a": 0}}}, "the byte '<0x00>' is not in"),
        ({"model": {"dropout": 0.1}}, "dropout"),
    ],
)
def test_what_is_not_sentencepiece_is_left_to_tokenizers(
    change: dict[str, Any], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ready(sentences())
    model = words.spec["model"] | change.get("model", {})
    words.spec = words.spec | change | {"model": model}
    assert fastest(words, TOPICS[:2])[1] == "tokenizers"
    assert reason in capsys.readouterr().out


# The stage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_opens_the_export_of_every_kind_and_gives_the_same_ids(
    tmp_path: Path, kind: str
) -> None:
    from transformers import AutoTokenizer

    section = {"kind": kind, "vocab_size": KINDS[kind]}
    workspace, recipe = make_workspace(tmp_path, tokenizer=section)
    tokenizer(workspace, recipe)
    encode(workspace, recipe, "one")
    exported = tmp_path / "exported"
    exported.mkdir()
    write_tokenizer(exported, workspace.tokenizer, 48)
    ours = load_tokenizer(workspace.tokenizer)
    theirs = AutoTokenizer.from_pretrained(exported, local_files_only=True)
    for text in [*TOPICS[20:23], "", " a  b\n", "naïve café 日本 👩‍👩‍👧"]:
        ids = ours.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)
    assert theirs.eos_token_id == ours.eos_id and len(theirs) == ours.vocab_size
    assert (theirs.model_max_length, theirs.pad_token_id is None) == (48, False)
    assert (exported / "tokenizer.model").exists() == (kind == "sentencepiece_bpe")


@pytest.mark.parametrize("kind", KINDS)
def test_the_stage_writes_the_same_bytes_twice(tmp_path: Path, kind: str) -> None:
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        section = {"kind": kind, "vocab_size": KINDS[kind]}
        workspace, recipe = make_workspace(tmp_path / name, tokenizer=section)
        tokenizer(workspace, recipe)
        contents.append({p.name: p.read_bytes() for p in workspace.tokenizer.iterdir()})
    assert contents[0] == contents[1] and len(contents[0]) >= 4


def test_the_stage_says_what_the_ids_cost_and_which_are_hardly_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    section = {"kind": "character", "vocab_size": 200}
    workspace, recipe = make_workspace(tmp_path, tokenizer=section)
    tokenizer(workspace, recipe)
    report = read_json(workspace.tokenizer / "report.json")
    used = Counter(character for text in draw(workspace, recipe).texts() for character in text)
    rare = sum(1 for times in used.values() if times < 100)
    assert report["rare"] == {"ids": rare, "below": 100} and 0 < rare < len(used)
    assert report["vocab_size"] == len(used) + 2
    config = recipe.model.to_dict() | {"vocab_size": len(used) + 2}
    parts = count_parameters(type(recipe.model).from_dict(config))
    share = f"{parts['parts']['embedding'] / parts['total']:.0%}"
    said = capsys.readouterr().out
    assert f"{len(used) + 2} ids, {share} of the network's parameters" in said
    assert f"uses {rare} under 100 times" in said
    assert f"the sample teaches only {len(used) + 2}" in said


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kind": "byte", "vocab_size": 256}, r"must be 257 \(256 bytes and EOS\)"),
        ({"kind": "byte", "vocab_size": 300}, "must be 257"),
        ({"kind": "character", "vocab_size": 2}, "must be at least 3"),
        ({"kind": "sentencepiece_bpe", "vocab_size": 260}, "must be at least 261"),
        ({"kind": "sentencepiece_bpe", "vocab_size": 300, "lowercase": True}, "remove lowercase"),
    ],
)
def test_a_section_that_cannot_work_is_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tokenizer(**section)
