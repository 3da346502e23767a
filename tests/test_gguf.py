"""A GGUF holds the folder's values and ids, opens elsewhere with the same logits, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model import Transformer
from tasks.cli import app
from tasks.errors import UserError
from tasks.files import write_json
from tasks.recipe import Tokenizer
from tasks.release import gguf as writer
from tasks.release.export import CARD, write_network, write_tokenizer
from tasks.release.gguf import write_gguf
from tasks.release.gguf_tokenizer import vocabulary
from tasks.release.manifest import seal
from tasks.tokens.pretrained import Built, pretrained
from tasks.tokens.sentencepiece import train_sentencepiece
from tasks.tokens.text import load_tokenizer
from tasks.tokens.tokenizer import write_folder
from tasks.tokens.train import train
from tests.test_release_export import TEXT, network

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")

VOCAB = 300
TRICKY = [
    TEXT,
    "I'll x=1234567890;y[0]+=3.14e-10//2**8 ----- ======= aaaaaaa ababababa",
    "naïve Ελλάδα Привет नमस्ते 日本語 👩‍👩‍👧‍👦 e\u0301 ½ Ⅷ ²",
    "a  b   c\n\n\td \r\n e\u00a0\u2003f  ",
    "<s> </s><unk> <|endoftext|> <0x0A>",
    "x" + " " * 70 + "a" * 70 + "\n" * 7 + "-" * 70,
]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "interleaved": ("llama", {"rope_layout": "interleaved", "n_kv_heads": 2}),
    "untied_wide_heads": ("llama", {"tie_embeddings": False, "head_dim": 16, "rope_base": 500.0}),
    "factorised": ("llama", {"d_embed": 12}),
    "scaled": ("llama", {"rope_scale": 2.0}),
    "renormalised_experts": ("llama", {"n_experts": 4, "moe_renormalize": True, "n_kv_heads": 1}),
    "qk_norm": ("qwen3", {"qk_norm": True, "n_kv_heads": 2}),
    "qk_norm_experts": ("qwen3moe", {"qk_norm": True, "n_experts": 4, "moe_renormalize": True}),
    "experts": ("qwen2moe", {"n_experts": 4, "router_temperature": 2.0}),
    "experts_and_a_shared_one": ("qwen2moe", {"n_experts": 4, "shared_expert": True}),
    "layernorm": ("stablelm", {"norm": "layernorm", "n_kv_heads": 2, "rope_scale": 2.0}),
    "alibi": ("refact", {"positions": "alibi", "n_heads": 6, "head_dim": 6}),
}  # fmt: skip
# what transformers reads back whole: it drops the scale of positions, the widths of experts and of
# Qwen3's heads, and knows no refact
REOPENED: dict[str, dict[str, Any]] = {
    "interleaved": CASES["interleaved"][1],
    "untied_wide_heads": CASES["untied_wide_heads"][1],
    "factorised": CASES["factorised"][1],
    "qk_norm": {"qk_norm": True, "head_dim": 128, "n_kv_heads": 2},
}


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    """No bars and no warnings from transformers."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    write_folder(folder, byte_level(vocab_size=VOCAB), 64)
    return folder


def byte_level(**changes: Any) -> Built:
    return Built(
        *train(
            Tokenizer(kind="byte_bpe", min_frequency=1, **{"vocab_size": 350} | changes), [TEXT * 3]
        ),
        {},
    )


def place(folder: Path, words: Path, **changes: Any) -> tuple[Path, Transformer]:
    """An export as the stage writes it, of a network with random weights."""
    ours = network(**{"vocab_size": VOCAB, "d_model": 32} | changes)
    folder.mkdir()
    special = {"eos_token_id": load_tokenizer(words).eos_id}
    write_network(folder, ours, special)
    write_tokenizer(folder, words, 64)
    (folder / CARD).write_text(
        "---\nlicense: cc0-1.0\n---\n\n# river (phase2)\n\nTwo sentences.\n\nMore.\n"
    )
    seal(folder, {})
    return folder, ours


def ids() -> torch.Tensor:
    return torch.randint(VOCAB, (1, 40), generator=torch.Generator().manual_seed(5))


def expected(ours: Transformer) -> torch.Tensor:
    with torch.no_grad():
        found = ours(ids())[0]
    assert found.std() > 0.5, "logits near zero would agree with anything"
    return found


@pytest.mark.parametrize("name", REOPENED)
def test_transformers_reopens_it_with_the_same_logits(
    name: str, words: Path, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate", reason="transformers reads GGUF with accelerate alone")
    from transformers import AutoModelForCausalLM

    folder, ours = place(tmp_path / "export", words, **REOPENED[name])
    for kind, tolerance in (("f32", 1e-4), ("f16", 0.1)):
        write_gguf(folder, tmp_path / f"{kind}.gguf", kind)  # type: ignore[arg-type]
        theirs = AutoModelForCausalLM.from_pretrained(
            tmp_path, gguf_file=f"{kind}.gguf", dtype=torch.float32
        )
        with torch.no_grad():
            assert (theirs(ids()).logits[0] - expected(ours)).abs().max() <= tolerance


@pytest.mark.parametrize("name", CASES)
def test_every_architecture_is_written_with_its_own_keys(
    name: str, words: Path, tmp_path: Path
) -> None:
    architecture, changes = CASES[name]
    folder, ours = place(tmp_path / "export", words, **changes)
    done = write_gguf(folder, tmp_path / "x.gguf", "f32")
    assert (done.architecture, done.difference) == (architecture, 0.0)
    reader = gguf.GGUFReader(done.path)

    def value(key: str) -> Any:
        field = reader.get_field(key)
        return field and field.contents()

    scale = ours.config.rope_scale
    assert value("general.architecture") == architecture
    assert value(f"{architecture}.rope.scaling.factor") == (scale if scale != 1 else None)
    assert value(f"{architecture}.attention.head_count_kv") == ours.config.kv_heads
    assert value(f"{architecture}.context_length") == 64
    assert value("tokenizer.ggml.add_bos_token") is False
    assert value("tokenizer.ggml.eos_token_id") == load_tokenizer(folder).eos_id
    about = [value(f"general.{key}") for key in ("name", "description", "license")]
    assert about == ["river", "Two sentences.", "cc0-1.0"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"sliding_window": 7}, "it would not see its sliding window.*\nhint: transformers and vLLM open"),
        ({"n_experts": 4, "moe_layers": "odd"}, "every layer must have experts, or none"),
        ({"positions": "rope+alibi"}, "RoPE and ALiBi at once.*\nhint: .*trust_remote_code=True"),
        ({"positions": "none"}, "it has no positions"),
        ({"n_experts": 4, "shared_expert": True, "moe_renormalize": True}, "a shared expert needs weights"),
        ({"norm": "layernorm", "qk_norm": True}, "LayerNorm needs layers without"),
    ],
)  # fmt: skip
def test_a_network_that_llama_cpp_does_not_have_is_refused(
    changes: dict[str, Any], why: str, words: Path, tmp_path: Path
) -> None:
    folder, _ = place(tmp_path / "export", words, **changes)
    with pytest.raises(UserError, match=f"llama.cpp has no architecture.*{why}"):
        write_gguf(folder, tmp_path / "x.gguf")
    assert not list(tmp_path.glob("*.gguf"))


def test_smaller_types_are_smaller_and_keep_each_value_within_half_a_step(
    words: Path, tmp_path: Path
) -> None:
    folder, _ = place(tmp_path / "export", words, d_ff=48)
    done = {kind: write_gguf(folder, tmp_path / f"{kind}.gguf", kind) for kind in writer.KINDS}
    sizes = [done[kind].path.stat().st_size for kind in ("f32", "f16", "q8_0")]
    assert sizes[0] > 1.7 * sizes[1] and sizes[1] > 1.2 * sizes[2]
    assert 0 == done["f32"].difference < done["f16"].difference < done["q8_0"].difference < 0.02
    assert done["q8_0"].wide == 4, "the four matrices with rows of 48 are not whole blocks"
    reader = gguf.GGUFReader(done["q8_0"].path)
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    assert kinds["blk.0.attn_q.weight"] == "Q8_0" and kinds["blk.0.ffn_down.weight"] == "F16"
    assert kinds["output_norm.weight"] == "F32"


def test_the_same_folder_gives_the_same_bytes(words: Path, tmp_path: Path) -> None:
    folder, _ = place(tmp_path / "export", words)
    first, second = (
        write_gguf(folder, tmp_path / name, "f16").path for name in ("a.gguf", "b.gguf")
    )
    assert first.read_bytes() == second.read_bytes()


def test_a_value_that_the_type_cannot_hold_is_named_and_what_was_there_stays(
    words: Path, tmp_path: Path
) -> None:
    folder, ours = place(tmp_path / "export", words)
    out = write_gguf(folder, tmp_path / "x.gguf").path
    before = out.read_bytes()
    with torch.no_grad():
        ours.layers[1].mlp.up_proj.weight[3, 3] = 1e6
    write_network(folder, ours, {"eos_token_id": 0})
    seal(folder, {})
    with pytest.raises(
        UserError, match=r"blk\.1\.ffn_up\.weight does not fit f16: a value of 1e\+06"
    ):
        write_gguf(folder, out)
    assert out.read_bytes() == before and {p.name for p in tmp_path.iterdir()} == {
        "export",
        "x.gguf",
    }
    write_gguf(folder, out, "f32")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interruption_leaves_what_was_there(
    error: Any, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    folder, _ = place(tmp_path / "export", words)
    out = write_gguf(folder, tmp_path / "x.gguf").path
    before = out.read_bytes()
    monkeypatch.setattr(writer, "_require_equal", fail)
    with pytest.raises(type(error) if isinstance(error, OSError) else error):
        write_gguf(folder, out)
    assert out.read_bytes() == before and len(list(tmp_path.iterdir())) == 2


def test_a_file_with_other_values_than_the_folders_is_not_kept(
    words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = place(tmp_path / "export", words)
    packed = writer._packed
    monkeypatch.setattr(
        writer, "_packed", lambda values, kind: packed(values * np.float32(1.01), kind)
    )
    with pytest.raises(UserError, match="does not fit f16"):
        write_gguf(folder, tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


def test_a_folder_that_was_changed_is_not_read(words: Path, tmp_path: Path) -> None:
    folder, _ = place(tmp_path / "export", words)
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is not what was exported"):
        write_gguf(folder, tmp_path / "x.gguf")


def sentencepiece() -> Built:
    return train_sentencepiece(Tokenizer(kind="sentencepiece_bpe", vocab_size=350), [TEXT * 3])


TOKENIZERS = {
    "byte_level": byte_level,
    "sentencepiece": sentencepiece,
    "gpt2": lambda mirror: pretrained(str(mirror / "openai-community/gpt2"), Path()),
    "mistral": lambda mirror: pretrained(str(mirror / "mistralai/Mistral-7B-v0.1"), Path()),
}


def with_words(name: str, root: Path, mirror: Path | None = None) -> Path:
    """A tiny export with one of the tokenizers, and three rows more than it has ids."""
    built = TOKENIZERS[name](mirror) if mirror else TOKENIZERS[name]()  # type: ignore[operator]
    (root / "words").mkdir()
    write_folder(root / "words", built, 64)
    size = load_tokenizer(root / "words").vocab_size + 3
    return place(root / name, root / "words", vocab_size=size, d_model=32, n_layers=1)[0]


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece"])
def test_transformers_finds_the_same_ids_in_it(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = with_words(name, tmp_path)
    write_gguf(folder, tmp_path / "x.gguf", "f16")
    ours, theirs = (
        load_tokenizer(folder),
        AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf"),
    )
    for text in [TRICKY[0], TRICKY[1], TRICKY[2]]:
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text), text
    assert theirs.eos_token_id == ours.eos_id


@pytest.mark.parametrize("name", ["gpt2", "mistral"])
def test_pretrained_tokenizers_travel(name: str, tmp_path: Path, mirror: Path) -> None:
    built = TOKENIZERS[name](mirror)  # type: ignore[call-arg,operator]
    write_folder(tmp_path, built, 64)
    size = load_tokenizer(tmp_path).vocab_size + 3
    found = vocabulary(tmp_path, size)
    assert found.tokens[-3:] == [f"[unused{size - n}]" for n in (3, 2, 1)] and found.types[-3:] == [
        5,
        5,
        5,
    ]
    if name == "gpt2":
        assert (found.model, found.pre, found.tokens[262]) == ("gpt2", "gpt-2", "Ġthe")
        assert found.merges is not None and len(found.merges) == 50000
        assert (found.types[50256], found.special["eos"], found.special["bos"]) == (3, 50256, 50256)
    else:
        assert (found.model, found.tokens[272], found.types[:4]) == ("llama", "▁the", [2, 3, 3, 6])
        assert found.special == {"unknown": 0, "bos": 1, "eos": 2, "padding": 2}
        assert found.scores is not None
        assert found.scores[261] == 0 > found.scores[262] > found.scores[259], (
            "merges of spaces alone come last"
        )


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ({"kind": "whitespace_bpe", "lowercase": True, "vocab_size": 120}, "it changes the text first"),
        ({"kind": "byte_bpe", "lowercase": True, "vocab_size": VOCAB}, r"it changes the text first \(Lowercase\)"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_llama_cpp_cannot_follow_is_refused_unless_left_out(
    recipe: dict[str, Any],
    why: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "words").mkdir()
    write_folder(
        tmp_path / "words", Built(*train(Tokenizer(**recipe, min_frequency=1), [TEXT]), {}), 64
    )
    folder, _ = place(tmp_path / "export", tmp_path / "words")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=f"(?s)other ids than this tokenizer: {why}.*--tokenizer none"
    ):
        app(["gguf", str(folder)], standalone_mode=False)
    assert not list(tmp_path.glob("*.gguf"))
    app(["gguf", str(folder), "--tokenizer", "none", "--type", "q8_0"], standalone_mode=False)
    assert "export-q8_0.gguf: llama, " in capsys.readouterr().out
    reader = gguf.GGUFReader(tmp_path / "export-q8_0.gguf")
    assert reader.get_field("tokenizer.ggml.model").contents() == "no_vocab"
    assert reader.get_field("tokenizer.ggml.tokens") is None


def test_the_command_names_what_it_does_not_know(words: Path, tmp_path: Path) -> None:
    folder, _ = place(tmp_path / "export", words)
    with pytest.raises(UserError, match="--type: no type 'q8'.*\nhint: did you mean 'q8_0'"):
        app(["gguf", str(folder), "--type", "q8"], standalone_mode=False)
    with pytest.raises(UserError, match="there is no folder"):
        app(["gguf", str(tmp_path / "nowhere")], standalone_mode=False)


def test_an_imported_checkpoint_is_written_too(words: Path, tmp_path: Path) -> None:
    from tasks.exchange.importer import import_model

    folder, _ = place(tmp_path / "export", words)
    done = import_model(folder, "x", tmp_path, tokenizer=str(words))
    again, first = (
        gguf.GGUFReader(write_gguf(source, tmp_path / f"{i}.gguf", "f32").path)
        for i, source in enumerate((done.folder, folder))
    )
    for ours, theirs in zip(again.tensors, first.tensors):
        assert ours.name == theirs.name and np.array_equal(ours.data, theirs.data)


def llama_cpp() -> Any:
    return pytest.importorskip(
        "llama_cpp", reason="llama-cpp-python is not installed: pip install llama-cpp-python"
    )


@pytest.mark.parametrize("name", CASES)
def test_llama_cpp_computes_the_same_logits(name: str, words: Path, tmp_path: Path) -> None:
    """With its cache in fp32; its default is fp16."""
    library = llama_cpp()
    folder, ours = place(tmp_path / "export", words, **CASES[name][1])
    path = write_gguf(folder, tmp_path / "x.gguf", "f32").path
    model = library.Llama(
        str(path), n_ctx=64, logits_all=True, verbose=False, type_k=0, type_v=0, n_threads=1
    )
    model.eval(ids()[0].tolist())
    found = torch.tensor(np.array(model.scores[:40]))
    assert (found - expected(ours)).abs().max() <= 1e-3


@pytest.mark.parametrize("name", TOKENIZERS)
def test_llama_cpp_gives_the_same_ids(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    library = llama_cpp()
    mirror = request.getfixturevalue("mirror") if name in ("gpt2", "mistral") else None
    folder = with_words(name, tmp_path, mirror)
    path = write_gguf(folder, tmp_path / "x.gguf", "f16").path
    model, ours = library.Llama(str(path), vocab_only=True, verbose=False), load_tokenizer(folder)
    for text in TRICKY:
        assert model.tokenize(text.encode(), special=False) == ours.encode(text), text
    assert model.token_eos() == ours.eos_id


def test_a_card_without_words_gives_the_folders_name(tmp_path: Path) -> None:
    assert writer.described(tmp_path) == {"name": tmp_path.name}
    write_json(tmp_path / "config.json", {})
    (tmp_path / CARD).write_text('---\nlicense: other\nlicense_name: "own words"\n---\n')
    assert writer.described(tmp_path) == {"name": tmp_path.name, "license": "own words"}
