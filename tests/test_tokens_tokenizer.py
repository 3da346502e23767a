"""The tokenizer: what it loses (nothing, or what it says), what it refuses, how it is trained."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tasks.data.documents import read
from tasks.errors import BAD_DATA, NO_INPUT, UNAVAILABLE, UserError
from tasks.files import read_json, write_json
from tasks.recipe import Hub, Tokenizer
from tasks.settings import settings as machine
from tasks.tokens import text as text_module
from tasks.tokens.pretrained import Built, pretrained
from tasks.tokens.sample import draw
from tasks.tokens.text import TextTokenizer, load_tokenizer
from tasks.tokens.tokenizer import tokenizer, write_folder
from tasks.tokens.train import cut, train
from tests.places import ROOT
from tests.test_tokens_workspace import TOPICS, make_workspace, write_documents

GPT2 = Hub(id="openai-community/gpt2", revision="607a30d783dfa663caf39e06633721c8d4cfcd7e")


@cache
def trained(**section: Any) -> TextTokenizer:
    content, special = train(Tokenizer(**section), TOPICS[:60])
    return TextTokenizer(content, special["eos_token"])


def byte_level() -> TextTokenizer:
    return trained(kind="byte_bpe", vocab_size=500)


def between_spaces() -> TextTokenizer:
    return trained(kind="whitespace_bpe", vocab_size=600, lowercase=True)


# What comes back ---------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.text(max_size=200))
@example("<|endoftext|>")
@example("\x00\x1f\x7f\x85\u2028\ufeff\ufffe\U0010ffff e\u0301 \u0130 ﬁ")
@example("  two  spaces \n\n\t and tabs \r\n ")
def test_bytes_come_back_as_they_were_for_every_text(text: str) -> None:
    words = byte_level()
    ids = words.encode(text)
    assert words.decode(ids) == text
    assert all(0 <= id_ < words.vocab_size for id_ in ids)
    assert words.eos_id not in ids


@pytest.mark.parametrize("text", TOPICS[60:70])
def test_help_texts_come_back_as_they_were(text: str) -> None:
    assert byte_level().decode(byte_level().encode(text)) == text


def test_lower_case_is_all_that_a_lowercase_byte_tokenizer_loses() -> None:
    words = trained(kind="byte_bpe", vocab_size=300, lowercase=True)
    assert words.decode(words.encode("  The CAT,\n\tÉté ")) == "  the cat,\n\tété "


def test_words_between_spaces_come_back_readable() -> None:
    words = between_spaces()
    text = 'The  statement (see "Names")\n\n raises an error:  it\'s not 3.14, is it?'
    assert words.decode(words.encode(text)) == " ".join(text.lower().split())


@settings(deadline=None)
@given(st.lists(st.text("abcdefghijklmnopqrstuvwxyz.,;:()'\"0123", min_size=1), max_size=30))
def test_between_spaces_only_the_kind_and_number_of_spaces_is_lost(parts: list[str]) -> None:
    words = between_spaces()
    for space in (" ", "\n", " \t  "):
        text = space.join(parts)
        assert words.decode(words.encode(text)) == " ".join(parts)


def test_between_spaces_an_unseen_character_is_unknown_and_lost() -> None:
    words = between_spaces()
    assert "[UNK]" in [words.token(id_) for id_ in words.encode("日本")]
    assert words.decode(words.encode("a 日 b")).split() == ["a", "b"]


@pytest.mark.parametrize("name", ["<|endoftext|>", "[EOS]", "[PAD]"])
def test_the_name_of_a_special_token_in_a_text_is_text(name: str) -> None:
    for words in (byte_level(), between_spaces()):
        ids = words.encode(f"before {name} after")
        assert not set(ids) & (words.special_ids - {1})  # 1 is [UNK] where there is one
        assert len(ids) > 3


def test_special_ids_are_left_out_of_a_text_unless_asked_for() -> None:
    words = byte_level()
    ids = [*words.encode("a"), words.eos_id, *words.encode("b")]
    assert words.decode(ids) == "ab"
    assert words.decode(ids, skip_special_tokens=False) == "a<|endoftext|>b"


def test_half_a_surrogate_pair_is_refused_in_words() -> None:
    with pytest.raises(UserError, match="surrogate"):
        byte_level().encode("a\ud800b")


# Training ----------------------------------------------------------------------------------------


def test_haipais_special_tokens_are_ids_0_to_3() -> None:
    words = between_spaces()
    assert [words.token(id_) for id_ in range(4)] == ["[PAD]", "[UNK]", "[BOS]", "[EOS]"]
    assert words.eos_id == 3


def test_training_makes_the_same_bytes_for_one_thread_and_for_three(tmp_path: Path) -> None:
    code = (
        "import sys, hashlib; from pydoc_data.topics import topics;"
        "from tasks.recipe import Tokenizer; from tasks.tokens.train import train;"
        "texts = [text for _, text in sorted(topics.items())];"
        "recipe = Tokenizer(kind=sys.argv[1], vocab_size=2000);"
        "print(hashlib.sha256(train(recipe, texts)[0]).hexdigest())"
    )
    for kind in ("byte_bpe", "whitespace_bpe"):
        sums = set()
        for threads in ("1", "3"):
            environment = os.environ | {"RAYON_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)}
            done = subprocess.run(
                [sys.executable, "-c", code, kind],
                env=environment,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=True,
            )
            sums.add(done.stdout)
        assert len(sums) == 1, kind


def test_the_stage_writes_the_same_folder_twice(tmp_path: Path) -> None:
    sums = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        workspace, recipe = make_workspace(tmp_path / name)
        tokenizer(workspace, recipe)
        files = sorted(workspace.tokenizer.iterdir())
        sums.append([(file.name, hashlib.sha256(file.read_bytes()).digest()) for file in files])
    assert sums[0] == sums[1] and len(sums[0]) == 4


def test_pieces_of_a_text_join_to_the_text_and_hold_no_long_word() -> None:
    text = "a " * 70_000 + "x" * 1000 + " " * 900 + "end " + "日" * 500
    pieces = list(cut(text, 256))
    assert "".join(pieces) == text
    assert max(len(word) for piece in pieces for word in piece.split()) <= 256
    assert list(cut(TOPICS[0], 256)) == [TOPICS[0]]


def test_one_endless_word_does_not_hold_up_training() -> None:
    digests = (hashlib.sha256(number.to_bytes(2)).hexdigest() for number in range(6000))
    word = "".join(digests).translate(str.maketrans("0123456789", "ghijklmnop"))
    started = time.monotonic()
    content, _ = train(Tokenizer(kind="byte_bpe", vocab_size=1000), [word])
    assert time.monotonic() - started < 10  # a minute without the cut
    saved = json.loads(content)
    assert saved["pre_tokenizer"]["type"] == "ByteLevel", "the cut is not part of the tokenizer"


def test_fewer_ids_than_asked_for_is_said_and_the_real_size_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, recipe = make_workspace(
        tmp_path, tokenizer={"kind": "byte_bpe", "vocab_size": 50_257}
    )
    tokenizer(workspace, recipe)
    report = read_json(workspace.tokenizer / "report.json")
    assert 257 < report["vocab_size"] < 50_257 == report["vocab_size_asked"]
    assert load_tokenizer(workspace.tokenizer).vocab_size == report["vocab_size"]
    assert f"teaches only {report['vocab_size']:,}" in capsys.readouterr().out


def test_a_vocabulary_smaller_than_the_alphabet_is_refused() -> None:
    with pytest.raises(UserError, match="different characters") as error:
        train(Tokenizer(kind="whitespace_bpe", vocab_size=20), TOPICS[:5])
    assert "byte_bpe" in str(error.value)


# The sample --------------------------------------------------------------------------------------


def test_the_sample_is_training_text_within_its_cap_and_shares(tmp_path: Path) -> None:
    section = {"kind": "byte_bpe", "vocab_size": 300, "sample_bytes": 20_000}
    workspace, recipe = make_workspace(
        tmp_path, tokenizer=section | {"mixture": {"one": 0.25, "two": 0.75}}
    )
    sample = draw(workspace, recipe)
    assert [(choice.source, choice.bytes) for choice in sample.choices] == [
        ("one", 5_000),
        ("two", 15_000),
    ]
    train_text = {d.text for s in ("one", "two") for d in read(workspace.documents / s, "train")}
    for piece in sample.texts():
        assert any(text.startswith(piece.rstrip("\ufffd")) for text in train_text)
    assert sum(len(text.encode()) for text in sample.texts()) == pytest.approx(20_000, abs=8)


def test_without_a_mixture_the_sample_is_shared_by_size(tmp_path: Path) -> None:
    section = {"kind": "byte_bpe", "vocab_size": 300, "sample_bytes": 20_000}
    workspace, recipe = make_workspace(tmp_path, tokenizer=section)
    one, two = draw(workspace, recipe).choices
    assert one.bytes / two.bytes == pytest.approx(one.available / two.available, rel=0.01)


def test_another_seed_draws_another_sample(tmp_path: Path) -> None:
    section = {"kind": "byte_bpe", "vocab_size": 300, "sample_bytes": 5_000}
    drawn = set()
    for seed in (1, 2):
        workspace, recipe = make_workspace(tmp_path, tokenizer=section, seed=seed)
        drawn.add(tuple(draw(workspace, recipe).texts()))
    assert len(drawn) == 2


def test_held_out_text_teaches_the_tokenizer_nothing(tmp_path: Path) -> None:
    workspace, recipe = make_workspace(tmp_path)
    tokenizer(workspace, recipe)
    before = (workspace.tokenizer / "tokenizer.json").read_bytes()
    write_documents(
        workspace,
        {
            "one": {
                "train": [d.text for d in read(workspace.documents / "one", "train")],
                "validation": ["zyzzyva " * 5000],
            }
        },
    )
    tokenizer(workspace, recipe)
    assert (workspace.tokenizer / "tokenizer.json").read_bytes() == before
    held_out = read_json(workspace.tokenizer / "report.json")["held_out"]["one"]
    assert held_out["split"] == "validation" and held_out["bytes"] == 40_000


@pytest.mark.parametrize("texts", [[], [""]])
def test_a_corpus_without_training_text_is_refused(tmp_path: Path, texts: list[str]) -> None:
    workspace, recipe = make_workspace(tmp_path)
    empty = {"train": texts, "validation": ["held out"]}
    write_documents(workspace, {"one": empty, "two": empty})  # type: ignore[dict-item]
    with pytest.raises(UserError, match="no training text in one, two") as error:
        tokenizer(workspace, recipe)
    assert error.value.exit_code == BAD_DATA
    assert not workspace.tokenizer.exists()


# Files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["byte_bpe", "whitespace_bpe"])
def test_transformers_opens_the_folder_and_gives_the_same_ids(tmp_path: Path, kind: str) -> None:
    from transformers import AutoTokenizer

    section = {"kind": kind, "vocab_size": 500, "lowercase": kind == "whitespace_bpe"}
    workspace, recipe = make_workspace(tmp_path, tokenizer=section)
    tokenizer(workspace, recipe)
    ours = load_tokenizer(workspace.tokenizer)
    theirs = AutoTokenizer.from_pretrained(workspace.tokenizer, local_files_only=True)
    for text in [*TOPICS[20:23], " a  b\n", "naïve café"]:
        ids = ours.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)
    assert theirs.eos_token_id == ours.eos_id and len(theirs) == ours.vocab_size
    assert theirs.pad_token_id is not None and theirs.model_max_length == 64
    assert not theirs.clean_up_tokenization_spaces


def test_the_report_holds_what_others_need(tmp_path: Path) -> None:
    workspace, recipe = make_workspace(tmp_path)
    tokenizer(workspace, recipe)
    report, words = (
        read_json(workspace.tokenizer / "report.json"),
        load_tokenizer(workspace.tokenizer),
    )
    content = (workspace.tokenizer / "tokenizer.json").read_bytes()
    assert report["fingerprint"] == words.fingerprint == hashlib.sha256(content).hexdigest()
    assert (report["vocab_size"], report["eos_id"]) == (words.vocab_size, words.eos_id)
    assert 1 < report["held_out"]["two"]["bytes_per_token"] < 5
    assert report["held_out"]["two"]["split"] == "test", "two has no validation split"
    seen = {id_ for text in draw(workspace, recipe).texts() for id_ in words.encode(text)}
    assert report["unused"]["ids"] == words.vocab_size - len(seen) - 1


def test_a_tokenizer_changed_by_hand_is_refused(tmp_path: Path) -> None:
    workspace, recipe = make_workspace(tmp_path)
    tokenizer(workspace, recipe)
    path = workspace.tokenizer / "tokenizer.json"
    path.write_text(path.read_text().replace('"dropout": null', '"dropout": 0.1'))
    with pytest.raises(UserError, match="changed by hand") as error:
        load_tokenizer(workspace.tokenizer)
    assert error.value.exit_code == BAD_DATA


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "not a tokenizer"),
        ('{"model": {"type": "Evil", "vocab": {}}}', "'Evil' is not one of"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0}}}', "not a tokenizer"),
        ('{"truncation": {"max_length": 4}, "model": {"vocab": {}}}', "truncates"),
    ],
)
def test_what_is_no_tokenizer_is_refused_in_words(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": "</s>"})
    with pytest.raises(UserError, match=words) as error:
        load_tokenizer(tmp_path)
    assert error.value.exit_code == BAD_DATA


def test_files_and_vocabularies_beyond_the_limits_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, special = train(Tokenizer(kind="byte_bpe", vocab_size=300), TOPICS[:3])
    write_folder(tmp_path, Built(content, special, {}), 64)
    assert load_tokenizer(tmp_path).vocab_size == 300
    monkeypatch.setattr(text_module, "MAX_VOCAB", 299)
    with pytest.raises(UserError, match="the most is 299"):
        load_tokenizer(tmp_path)
    monkeypatch.setattr(text_module, "MAX_FILE_BYTES", 1000)
    with pytest.raises(UserError, match="at most 1,000"):
        load_tokenizer(tmp_path)


# Pretrained ----------------------------------------------------------------------------------------


def from_mirror(mirror: Path, monkeypatch: pytest.MonkeyPatch, wanted: Hub) -> Built:
    monkeypatch.setenv("PHASEWISE_HUB", str(mirror))
    machine.cache_clear()
    return pretrained(wanted, Path())


def test_gpt2_of_the_mirror_has_50257_ids_and_loses_nothing(
    mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = from_mirror(mirror, monkeypatch, GPT2)
    words = TextTokenizer(built.content, built.special["eos_token"])
    assert (words.vocab_size, words.eos_id) == (50_257, 50_256)
    assert words.encode("Hello, world!") == [15496, 11, 995, 0]
    assert built.content == (mirror / "openai-community/gpt2/tokenizer.json").read_bytes()
    for text in TOPICS[:5]:
        assert words.decode(words.encode(text)) == text


def test_a_pretrained_tokenizer_must_have_the_size_of_the_recipe(
    tmp_path: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    monkeypatch.setenv("PHASEWISE_HUB", str(mirror))
    machine.cache_clear()
    wanted = {"id": GPT2.id, "revision": GPT2.revision}
    section = {"kind": "pretrained", "vocab_size": 50_000, "pretrained": wanted}
    workspace, recipe = make_workspace(tmp_path, tokenizer=section)
    with pytest.raises(UserError, match="50,257 ids, the recipe says 50,000"):
        tokenizer(workspace, recipe)
    _, recipe = make_workspace(tmp_path, tokenizer=section | {"vocab_size": 50_257})
    tokenizer(workspace, recipe)
    report = read_json(workspace.tokenizer / "report.json")
    assert report["origin"]["pretrained"]["revision"] == GPT2.revision
    theirs = AutoTokenizer.from_pretrained(workspace.tokenizer, local_files_only=True)
    ours = load_tokenizer(workspace.tokenizer)
    assert theirs(TOPICS[0])["input_ids"] == ours.encode(TOPICS[0])
    assert (len(theirs), theirs.eos_token_id) == (50_257, ours.eos_id)


def test_a_tokenizer_that_adds_tokens_is_taken_without_them(
    mirror: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mistral = Hub(id="mistralai/Mistral-7B-v0.1", revision="main")
    built = from_mirror(mirror, monkeypatch, mistral)
    assert json.loads(built.content)["post_processor"] is None
    assert "post_processor left out" in capsys.readouterr().out
    assert built.special["eos_token"] == "</s>"
    words = TextTokenizer(built.content, "</s>")
    assert words.vocab_size == 32_000
    assert words.decode(words.encode("Hello  world\n日本")) == "Hello  world\n日本"


def test_a_tokenizer_that_cuts_or_frames_text_is_taken_without_that(tmp_path: Path) -> None:
    content, _ = train(Tokenizer(kind="byte_bpe", vocab_size=300), TOPICS[:3])
    end = ["<|endoftext|>", 0]
    frame = {"type": "BertProcessing", "sep": end, "cls": end}
    cut_off = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    spec = json.loads(content) | {"post_processor": frame, "truncation": cut_off}
    write_json(tmp_path / "tokenizer.json", spec)
    built = pretrained(".", tmp_path)
    words = TextTokenizer(built.content, built.special["eos_token"])
    assert words.decode(words.encode(TOPICS[0])) == TOPICS[0]
    assert json.loads(built.content)["post_processor"] is None


def test_a_local_tokenizer_is_taken_by_folder_or_by_file(tmp_path: Path) -> None:
    content, _ = train(Tokenizer(kind="byte_bpe", vocab_size=300), TOPICS[:3])
    (tmp_path / "own").mkdir()
    (tmp_path / "own/tokenizer.json").write_bytes(content)
    for wanted in ("own", "own/tokenizer.json"):
        built = pretrained(wanted, tmp_path)
        assert (built.content, built.special) == (content, {"eos_token": "<|endoftext|>"})


def test_a_pretrained_tokenizer_brings_names_of_tokens_and_no_code(tmp_path: Path) -> None:
    content, special = train(Tokenizer(kind="byte_bpe", vocab_size=300), TOPICS[:3])
    (tmp_path / "tokenizer.json").write_bytes(content)
    config = {"auto_map": {"AutoTokenizer": "evil.py"}, "eos_token": {"content": "<|endoftext|>"}}
    write_json(tmp_path / "tokenizer_config.json", config | {"unk_token": "not in it"})
    built = pretrained(".", tmp_path)
    write_folder(tmp_path / "out", built, 64)
    assert built.special == {"eos_token": special["eos_token"]}
    assert "auto_map" not in read_json(tmp_path / "out/tokenizer_config.json")


def test_a_tokenizer_that_does_not_say_how_a_text_ends_is_refused(tmp_path: Path) -> None:
    content, _ = train(Tokenizer(kind="byte_bpe", vocab_size=300), TOPICS[:3])
    (tmp_path / "tokenizer.json").write_bytes(content.replace(b"<|endoftext|>", b"<|fin|>"))
    with pytest.raises(UserError, match="which token ends a text") as error:
        pretrained(".", tmp_path)
    assert error.value.exit_code == BAD_DATA
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": "<|fin|>"})
    assert pretrained(".", tmp_path).special == {"eos_token": "<|fin|>"}


def test_a_tokenizer_that_is_not_there_or_not_to_be_had_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing") as error:
        pretrained("nowhere", tmp_path)
    assert error.value.exit_code == NO_INPUT
    with pytest.raises(UserError, match="PHASEWISE_HUB") as error:
        pretrained(Hub(id="no-such-owner/no-such-model", revision="main"), tmp_path)
    assert error.value.exit_code == UNAVAILABLE
