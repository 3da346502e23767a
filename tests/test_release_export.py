"""An export opens elsewhere with the same logits, is whole or not there, and says what it is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from model import ModelConfig, Transformer, load_model
from model.generate import generate
from model.sampling import SamplingOptions
from tasks.errors import UserError
from tasks.files import read_json, write_json
from tasks.recipe import Recipe
from tasks.recipe_file import validate
from tasks.release import export as stage
from tasks.release import native
from tasks.release.export import add_evaluation, export, verify_export
from tasks.release.native import load_export
from tasks.training import checkpoint
from tasks.workspace import Workspace

VOCAB = 300
SHAPE: dict[str, Any] = {
    "d_model": 32, "n_layers": 4, "n_heads": 4, "d_ff": 48, "max_seq_len": 64, "init_std": 0.3,
}  # fmt: skip
TEXT = (
    "The river was low that summer, and the boys walked across it without wetting their knees.\n"
    "Nobody in the village could remember such a year: the mill stood still from June on.\n"
)

NATIVE: dict[str, tuple[str, dict[str, Any]]] = {
    "tied_with_rope_scale": ("LlamaForCausalLM", {"rope_scale": 2.0}),
    "untied_grouped_queries": ("LlamaForCausalLM", {"n_kv_heads": 2, "tie_embeddings": False}),
    "factorised": ("LlamaForCausalLM", {"d_embed": 12}),
    "factorised_untied": ("LlamaForCausalLM", {"d_embed": 12, "tie_embeddings": False}),
    "interleaved": ("LlamaForCausalLM", {"rope_layout": "interleaved", "n_kv_heads": 1}),
    "wide_heads": ("LlamaForCausalLM", {"head_dim": 16, "rope_base": 500.0}),
    "odd_heads": ("MistralForCausalLM", {"n_heads": 3, "head_dim": 8}),
    "window": ("MistralForCausalLM", {"sliding_window": 7}),
    "qk_norm": ("Qwen3ForCausalLM", {"qk_norm": True, "rope_layout": "interleaved"}),
    "qk_norm_window": ("Qwen3ForCausalLM", {"qk_norm": True, "sliding_window": 5}),
    "layernorm": ("StableLmForCausalLM", {"norm": "layernorm", "rope_layout": "interleaved"}),
    "layernorm_scaled": ("StableLmForCausalLM", {"norm": "layernorm", "rope_scale": 2.0, "n_kv_heads": 2}),
    "experts_at_a_temperature": (
        "Qwen2MoeForCausalLM", {"n_experts": 4, "moe_layers": "odd", "router_temperature": 2.0},
    ),
    "experts_with_a_shared_one": (
        "Qwen2MoeForCausalLM", {"n_experts": 4, "shared_expert": True, "moe_renormalize": True},
    ),
}  # fmt: skip
CUSTOM: dict[str, dict[str, Any]] = {
    "alibi": {"positions": "alibi"},
    "rope_and_alibi_factorised": {"positions": "rope+alibi", "d_embed": 12},
    "layernorm_with_qk_norm": {"norm": "layernorm", "rope_layout": "interleaved", "qk_norm": True},
    "experts_with_qk_norm": {"n_experts": 4, "qk_norm": True, "sliding_window": 9},
}


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    """No bars and no warnings from transformers."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of a few merges, in the files that AutoTokenizer opens."""
    folder = tmp_path_factory.mktemp("tokenizer")
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([TEXT * 3], trainer)
    assert made.get_vocab_size() == VOCAB
    made.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", {"eos_token": "<|endoftext|>"})
    return folder


def recipe_of(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "name": "river",
        "description": "A model of two sentences",
        "seed": 1,
        "sources": {
            "wiki": {
                "hub": {"id": "owner/wiki", "revision": "0123456789abcdef"},
                "license": "CC-BY-SA-4.0",
            },
            "notes": {"files": {"train": ["*.txt"]}, "license": "CC0-1.0 | own"},
            "unused": {"files": {"train": ["*.md"]}},
        },
        "dedup": {},
        "held_out": {},
        "tokenizer": {"vocab_size": VOCAB},
        "model": SHAPE,
        "training": {"seq_len": 64, "batch_tokens": 128},
        "phases": {
            "phase1": {"starts_from": "init", "tokens": 256, "mixture": {"wiki": 1}},
            "phase2": {
                "starts_from": "phase1", "tokens": 512, "mixture": {"wiki": 1, "notes": 3},
            },
        },
        "evaluation": {"prompts": ["The river"], "sampling": {"temperature": 0.7, "top_p": 0.9}},
        "release": {"phase": "phase2"},
    }  # fmt: skip
    return validate(values | changes)


def network(seed: int = 1, **changes: Any) -> Transformer:
    """Random weights, the norms' too: ones there would hide a norm that is left out."""
    generator = torch.Generator().manual_seed(seed)
    config = ModelConfig.from_dict({**SHAPE, "vocab_size": VOCAB, **changes})
    made = Transformer(config, generator=generator).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" in name:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return made


def place(
    root: Path, tokenizer: Path, ema: Transformer, raw: Transformer | None = None
) -> Workspace:
    """A workspace with a finished phase2, whose raw weights are ``raw`` or none of its own."""
    workspace = Workspace(root)
    shutil.copytree(tokenizer, workspace.tokenizer)
    tensors = {"model": dict((raw or ema).state_dict())}
    if raw:
        tensors["ema"] = dict(ema.state_dict())
    records = {
        "config": {"phasewise": ema.config.to_dict()},
        "state": {"phase": "phase2", "step": 4, "tokens": 512},
    }
    checkpoint.save(workspace.checkpoint("phase2"), tensors, records)
    write_json(
        workspace.mix("phase2"), {"sources": [{"name": "notes", "tokens": 384, "epochs": 2.5}]}
    )
    return workspace


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    """exports/phase2 of a plain network, never to be changed."""
    workspace = place(tmp_path_factory.mktemp("plain"), tokenizer, network(), network(2))
    export(workspace, recipe_of(), "phase2")
    return workspace.export("phase2")


@pytest.fixture()
def copy(exported: Path, tmp_path: Path) -> Path:
    """An export that a test may spoil."""
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def ids(rows: int = 2, length: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(VOCAB, (rows, length), generator=generator)


@pytest.mark.parametrize("name", NATIVE)
def test_transformers_opens_a_native_export_without_our_code_and_gives_the_same_logits(
    name: str, tokenizer: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    kind, changes = NATIVE[name]
    ours = network(**changes)
    workspace = place(tmp_path, tokenizer, ours)
    export(workspace, recipe_of(release={"phase": "phase2", "weights": "raw"}), "phase2")
    folder = workspace.export("phase2")
    theirs, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(theirs).__name__ == kind == verify_export(folder)["transformers_class"]
    assert not any(report.values()), f"transformers had to make up or leave out: {report}"
    assert not list(folder.glob("*.py"))
    with torch.no_grad():
        expected = ours(ids())
        assert expected.std() > 0.5, "logits near zero would agree with anything"
        assert (theirs(ids()).logits - expected).abs().max() <= 1e-4
        assert (load_export(folder)(ids()) - expected).abs().max() <= 1e-4


def test_greedy_text_is_the_same_in_transformers(exported: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    words, theirs = (
        AutoTokenizer.from_pretrained(exported),
        AutoModelForCausalLM.from_pretrained(exported),
    )
    inputs = words("The river was", return_tensors="pt")
    out = theirs.generate(**inputs, max_new_tokens=24, do_sample=False)
    prompt = inputs["input_ids"][0].tolist()
    options = SamplingOptions(max_new_tokens=24, temperature=0.0, eos_ids=(words.eos_token_id,))
    [done] = generate(load_model(exported), [prompt], options)
    new = [i for i in out[0].tolist()[len(prompt) :] if i != words.eos_token_id]
    assert new == done.ids and words.decode(new) == words.decode(done.ids)
    assert words.decode(words(TEXT)["input_ids"]) == TEXT
    assert (words.model_max_length, words.pad_token_id) == (
        SHAPE["max_seq_len"],
        words.eos_token_id,
    )


def test_generation_settings_are_the_recipes(exported: Path) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    settings = GenerationConfig.from_pretrained(exported)
    assert (settings.do_sample, settings.temperature, settings.top_p) == (True, 0.7, 0.9)
    assert (settings.top_k, settings.max_new_tokens) == (0, 64)
    eos = AutoTokenizer.from_pretrained(exported).eos_token_id
    assert settings.eos_token_id == settings.pad_token_id == settings.bos_token_id == eos == 0


def test_an_export_that_brings_its_code_opens_where_nothing_of_ours_is(
    tokenizer: Path, tmp_path: Path
) -> None:
    folders, expected = [], []
    for name, changes in CUSTOM.items():
        ours = network(**changes)
        workspace = place(tmp_path / name, tokenizer, ours)
        export(workspace, recipe_of(release={"phase": "phase2", "weights": "raw"}), "phase2")
        assert verify_export(workspace.export("phase2"))["obstacles"]
        folders.append(str(shutil.copytree(workspace.export("phase2"), tmp_path / f"alone_{name}")))
        expected.append(ours(ids()).tolist())
    (tmp_path / "empty").mkdir()
    told = json.dumps(folders), json.dumps(ids().tolist())
    # -S: without the .pth files, which may have put this repository among the packages
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", ELSEWHERE, sysconfig.get_path("purelib"), *told],
        cwd=tmp_path / "empty",
        env={
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PATH": "/usr/bin:/bin",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name, logits, wanted in zip(CUSTOM, json.loads(done.stdout), expected, strict=True):
        assert (torch.tensor(logits) - torch.tensor(wanted)).abs().max() <= 1e-4, name


ELSEWHERE = """
import importlib.util, json, sys
sys.path.append(sys.argv[1])
assert importlib.util.find_spec("model") is None and importlib.util.find_spec("tasks") is None
import torch
from transformers import AutoModelForCausalLM
folders, ids = json.loads(sys.argv[2]), torch.tensor(json.loads(sys.argv[3]))
found = []
for folder in folders:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        logits = model(ids).logits
        found.append(logits.tolist())
        # a row that is padded on the left gives what it gives alone
        padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids[:, :20]], dim=1)
        mask = torch.cat([torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 20, dtype=torch.long)], dim=1)
        alone = model(ids[:, :20], labels=ids[:, :20])
        assert (model(padded, attention_mask=mask).logits[:, 3:] - alone.logits).abs().max() < 1e-4
        wanted = torch.nn.functional.cross_entropy(alone.logits[:, :-1].flatten(0, 1), ids[:, 1:20].flatten())
        assert torch.allclose(alone.loss, wanted)
        # with the cache and without it, and as one does it by hand
        greedy = ids[:1, :4]
        for _ in range(10):
            greedy = torch.cat([greedy, model(greedy).logits[:, -1:].argmax(-1)], dim=1)
        calls = []
        hook = model.model.layers[0].register_forward_hook(lambda _, inputs, __: calls.append(inputs[0].shape[1]))
        options = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        cached = model.generate(ids[:1, :4], **options)
        assert calls == [4] + [1] * 9, "each token is read once"
        hook.remove()
        assert torch.equal(cached, greedy)
        assert torch.equal(model.generate(ids[:1, :4], use_cache=False, **options), greedy)
        # rows of unequal length, padded on the left, give what each gives alone
        batch = torch.stack([torch.cat([torch.zeros(5, dtype=torch.long), ids[0, :4]]), ids[1, :9]])
        mask = torch.ones_like(batch)
        mask[0, :5] = 0
        both = model.generate(batch, attention_mask=mask, **options)
        assert torch.equal(both[0, 5:], greedy[0])
        assert torch.equal(both[1], model.generate(ids[1:2, :9], **options)[0])
        # beams reorder the cache
        beams = model.generate(ids[:1, :4], num_beams=3, **options)
        assert torch.equal(beams, model.generate(ids[:1, :4], num_beams=3, use_cache=False, **options))
print(json.dumps(found))
"""


def test_transformers_is_not_asked_to_run_code_without_the_users_word(
    tokenizer: Path, tmp_path: Path
) -> None:
    from transformers import AutoConfig

    workspace = place(tmp_path, tokenizer, network(positions="alibi"))
    export(workspace, recipe_of(), "phase2")
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoConfig.from_pretrained(workspace.export("phase2"), trust_remote_code=False)


def test_the_weights_are_those_that_the_recipe_names(tokenizer: Path, tmp_path: Path) -> None:
    ema, raw = network(1), network(2)
    workspace = place(tmp_path, tokenizer, ema, raw)
    for weights, wanted in (("ema", ema), ("raw", raw)):
        export(workspace, recipe_of(release={"phase": "phase2", "weights": weights}), "phase2")
        folder = workspace.export("phase2")
        assert verify_export(folder)["weights"] == weights
        assert torch.equal(load_model(folder)(ids()), wanted(ids()))


def test_a_phase_without_an_average_gives_its_raw_weights_aloud(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = place(tmp_path, tokenizer, network())
    export(workspace, recipe_of(), "phase2")
    assert "phase2 has no EMA" in capsys.readouterr().out
    assert verify_export(workspace.export("phase2"))["weights"] == "raw"


def test_the_same_checkpoint_gives_the_same_bytes(
    exported: Path, tokenizer: Path, tmp_path: Path
) -> None:
    workspace = place(tmp_path, tokenizer, network(), network(2))
    export(workspace, recipe_of(), "phase2")
    again = {p.name: p.read_bytes() for p in workspace.export("phase2").iterdir()}
    assert again == {p.name: p.read_bytes() for p in exported.iterdir()}


def test_the_folder_holds_no_pickle_and_no_path_of_this_machine(exported: Path) -> None:
    for path in exported.iterdir():
        assert path.suffix in {".json", ".md", ".safetensors"}, path.name
        content = path.read_bytes()
        assert not content.startswith((b"\x80", b"PK")), path.name
        assert str(exported.parents[1]).encode() not in content, path.name
    assert len({path.stat().st_mode for path in exported.iterdir()}) == 1
    header = (exported / "model.safetensors").read_bytes()[8:200]
    assert b'"format":"pt"' in header


def spoil_size(folder: Path) -> str:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    return "model.safetensors has"


def spoil_byte(folder: Path) -> str:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    return "model.safetensors was changed"


def spoil_missing(folder: Path) -> str:
    (folder / "tokenizer.json").unlink()
    return "tokenizer.json is missing"


def spoil_added(folder: Path) -> str:
    (folder / "adapter_config.json").write_text("{}")
    return "adapter_config.json is not one of its files"


def spoil_manifest(folder: Path) -> str:
    (folder / "pipeline.json").unlink()
    return "pipeline.json is missing"


def spoil_half_manifest(folder: Path) -> str:
    (folder / "pipeline.json").write_text('{"version": 1')
    return "not valid JSON"


def spoil_version(folder: Path) -> str:
    write_json(folder / "pipeline.json", read_json(folder / "pipeline.json") | {"version": 99})
    return "export format 99"


def spoil_escape(folder: Path) -> str:
    manifest = read_json(folder / "pipeline.json")
    manifest["files"]["../outside"] = {"bytes": 0, "sha256": ""}
    write_json(folder / "pipeline.json", manifest)
    return "is not a file name"


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_size, spoil_byte, spoil_missing, spoil_added, spoil_manifest, spoil_half_manifest,
        spoil_version, spoil_escape,
    ],
)  # fmt: skip
def test_an_export_that_is_not_as_it_was_written_is_refused_by_name(spoil: Any, copy: Path) -> None:
    assert verify_export(copy)["phase"] == "phase2"
    words = spoil(copy)
    with pytest.raises(UserError, match=words):
        verify_export(copy)


def test_an_export_that_is_not_there_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no exported model"):
        verify_export(tmp_path / "nowhere")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("step", ["write_network", "require_equal_logits", "seal"])
def test_an_export_that_is_interrupted_leaves_what_was_there(
    step: str,
    error: Any,
    tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> None:
        raise error

    workspace = place(tmp_path, tokenizer, network())
    with monkeypatch.context() as patch:
        patch.setattr(stage, step, fail)
        with pytest.raises(type(error) if isinstance(error, OSError) else error):
            export(workspace, recipe_of(), "phase2")
    assert list((tmp_path / "exports").iterdir()) == []
    export(workspace, recipe_of(), "phase2")
    before = (workspace.export("phase2") / "pipeline.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(stage, step, fail)
        with pytest.raises(type(error) if isinstance(error, OSError) else error):
            export(workspace, recipe_of(), "phase2")
    assert [p.name for p in (tmp_path / "exports").iterdir()] == ["phase2"]
    assert (workspace.export("phase2") / "pipeline.json").read_bytes() == before
    verify_export(workspace.export("phase2"))


def test_a_conversion_that_changes_the_logits_is_not_exported(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one mistake that a public converter made: neighbouring pairs taken for halves."""
    workspace = place(tmp_path, tokenizer, network(rope_layout="interleaved"))
    monkeypatch.setattr(native, "_pairs_apart", lambda rows, head_size: rows)
    with pytest.raises(UserError, match="logits differ"):
        export(workspace, recipe_of(), "phase2")
    assert not workspace.export("phase2").exists()


def test_broken_weights_are_not_exported(tokenizer: Path, tmp_path: Path) -> None:
    broken = network()
    with torch.no_grad():
        broken.norm.weight[3] = float("nan")
    workspace = place(tmp_path, tokenizer, broken)
    with pytest.raises(UserError, match=r"not finite: norm\.weight"):
        export(workspace, recipe_of(), "phase2")
    assert not workspace.export("phase2").exists()


def test_a_tokenizer_of_another_size_is_refused(tokenizer: Path, tmp_path: Path) -> None:
    workspace = place(tmp_path, tokenizer, network(vocab_size=VOCAB - 1))
    with pytest.raises(UserError, match="trained with another tokenizer"):
        export(workspace, recipe_of(), "phase2")


def test_a_missing_checkpoint_says_how_to_make_it(tokenizer: Path, tmp_path: Path) -> None:
    shutil.copytree(tokenizer, Workspace(tmp_path).tokenizer)
    with pytest.raises(UserError, match=r"dvc repro train@phase2"):
        export(Workspace(tmp_path), recipe_of(), "phase2")


def test_the_card_tells_what_is_known_and_nothing_else(exported: Path) -> None:
    text = (exported / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    values = YAML(typ="safe").load(header)
    assert values["license"] == "apache-2.0"
    assert values["datasets"] == ["owner/wiki"]
    assert values["library_name"] == "transformers"
    assert "[owner/wiki](https://huggingface.co/datasets/owner/wiki)" in body
    assert "CC-BY-SA-4.0 | 100 % | 25 % |" in body
    assert "CC0-1.0 \\| own | - | 75 %, 2.5 epochs |" in body
    assert "unused" not in body
    parameters = sum(p.numel() for p in network().parameters())
    assert f"{parameters:,} parameters" in body
    assert "trained on 768 tokens" in body, "256 of phase1 and 512 of phase2"
    assert "trust_remote_code" not in body
    assert "Bits per byte" not in body
    assert "models:/river@champion" in body


def test_held_out_figures_come_into_the_card_and_the_export_stays_whole(copy: Path) -> None:
    figures = {"bits_per_byte": 1.2345, "perplexity": 33.3, "loss": 3.5, "accuracy": 0.25}
    add_evaluation(
        copy, recipe_of(), {"wiki/test": {"raw": figures | {"loss": 9.0}, "ema": figures}}
    )
    verify_export(copy)
    assert "| wiki/test | 1.2345 | 33.3 | 25.0 % |" in (copy / "README.md").read_text()
