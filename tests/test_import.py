"""Weights from elsewhere give the logits that they gave there, or are refused by name."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from model import ModelConfig, Transformer, load_model
from tasks import recipe as recipes
from tasks.errors import UserError
from tasks.exchange.chaya import as_trained, difference
from tasks.exchange.importer import import_model
from tasks.files import read_json
from tasks.release.export import write_network
from tasks.release.native import load_export
from tasks.training import checkpoint
from tasks.training.train import train
from tasks.workspace import Workspace
from tests import legacy_models as legacy
from tests.places import ROOT
from tests.release_workspace import write_tokenizer
from tests.test_release_export import NATIVE, network

IDS = torch.randint(61, (24,), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module", autouse=True)
def _alone() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def put(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def logits(folder: Path) -> Tensor:
    with torch.no_grad():
        return load_model(folder)(IDS[None])[0]


def agree(found: Tensor, expected: Tensor) -> bool:
    assert expected.std() > 0.5, "logits near zero would agree with anything"
    return bool((found - expected).abs().max() <= 1e-4 * max(1.0, expected.abs().max().item()))


def prefixed(state: legacy.State, prefix: str) -> legacy.State:
    return {prefix + name: tensor for name, tensor in state.items()}


def rscalm_file(state: legacy.State) -> dict[str, Any]:
    config = {"n_head": 4, "d_model": 32, "seq_len": 48, "dropout": 0.1}
    return {"model": prefixed(state, "_orig_mod."), "optim": {"state": {}, "param_groups": []},
            "scaler": {}, "config": config}  # fmt: skip


def mini_file(state: legacy.State) -> dict[str, Any]:
    return {"step": 3, "model_state_dict": prefixed(state, "_orig_mod."), "optimizer_state_dict": {},
            "loss": 1.5, "config": {"model": {"n_heads": 4, "block_size": 40}}}  # fmt: skip


def h64lm_file(state: legacy.State) -> dict[str, Any]:
    return {"epoch": 1, "step": 2, "model_state_dict": prefixed(state, "module."),
            "optimizer_state_dict": {}, "scheduler_state_dict": {}}  # fmt: skip


LEGACY: list[tuple[str, Callable[[], legacy.State], Callable[..., Any], Callable[..., Tensor], dict]] = [
    ("rscalm", legacy.rscalm_state, rscalm_file, legacy.rscalm, {"max_seq_len": 48, "rope_layout": "interleaved"}),
    ("mini", legacy.mini_state, mini_file, legacy.mini, {"max_seq_len": 40, "n_kv_heads": 2}),
    ("h64lm", legacy.h64lm_state, h64lm_file, legacy.h64lm,
     {"max_seq_len": 1024, "n_experts": 4, "moe_layers": "odd", "router_temperature": 2.0}),
]  # fmt: skip


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("case", LEGACY, ids=lambda case: case[0])
def test_a_published_checkpoint_gives_its_own_logits(case: Any, bare: bool, tmp_path: Path) -> None:
    kind, make, wrap, forward, known = case
    state = make()
    source = put(tmp_path / "last.pt", state if bare else wrap(state))
    options: dict[str, Any] = {}
    if bare and kind == "rscalm":  # nothing in the bare weights tells their heads
        with pytest.raises(UserError, match="the file does not tell.*\nhint: give --heads"):
            import_model(source, kind, tmp_path)
        options = {"heads": 4, "max_seq_len": 48}
    done = import_model(source, kind, tmp_path, **options)
    assert (done.kind, done.folder, done.notes) == (
        kind,
        tmp_path / "checkpoints/imported" / kind,
        [],
    )
    assert agree(logits(done.folder), forward(state, IDS, heads=4))
    config = load_model(done.folder).config.to_dict()
    assert {key: config[key] for key in known} == known
    assert config["tie_embeddings"] == (kind != "h64lm")


def test_chaya_is_imported_with_true_rotations_and_says_how_far_off_they_are(
    tmp_path: Path,
) -> None:
    state = legacy.chaya_state()
    content = {"model_state_dict": prefixed(state, "module."), "epoch": 3, "val_loss": 3.6}
    done = import_model(put(tmp_path / "chaya.pt", content), "chaya", tmp_path)
    own = load_model(done.folder)
    config = own.config
    assert (config.n_heads, config.d_embed, config.max_seq_len, config.norm_eps) == (
        8,
        10,
        512,
        1e-8,
    )
    assert agree(logits(done.folder), legacy.chaya(state, IDS, 8, legacy.turn_half))
    [note] = done.notes
    off, other = difference(own)
    assert "logits DIFFER" in note and f"{off:.2f} of their" in note and f"{other:.0%}" in note
    assert off > 0.1, "the two embeddings of positions are far apart"
    assert agree(logits(done.folder), own(IDS[None])[0]), "measuring leaves the network as it was"
    with torch.no_grad():
        exact = as_trained(own)(IDS[None])[0]
    assert agree(exact, legacy.chaya(state, IDS, 8))


def test_a_buffer_tells_the_heads_and_an_option_that_contradicts_it_is_refused(
    tmp_path: Path,
) -> None:
    state = legacy.chaya_state(width=48)
    bare = put(tmp_path / "bare.pt", state)
    with pytest.raises(UserError, match="--heads: the file does not tell.*width of 48"):
        import_model(bare, "a", tmp_path)
    told = put(tmp_path / "told.pt", state | {"layers.0.attn.rotary.inv_freq": torch.ones(6)})
    done = import_model(told, "b", tmp_path)
    assert read_json(done.folder / "config.json")["phasewise"]["n_heads"] == 4
    with pytest.raises(UserError, match="--heads: 8 contradicts the file, which says 4"):
        import_model(told, "c", tmp_path, heads=8)


def test_a_prefix_is_taken_off_at_the_start_alone(tmp_path: Path) -> None:
    state = legacy.mini_state()
    state["blocks.0.attn.module.q_proj.weight"] = state.pop("blocks.0.attn.q_proj.weight")
    with pytest.raises(
        UserError,
        match=r"missing: blocks\.0\.attn\.q_proj\.weight.*not known: blocks\.0\.attn\.module\.q",
    ):
        import_model(put(tmp_path / "x.pt", prefixed(state, "module._orig_mod.")), "x", tmp_path)


def missing(state: legacy.State) -> str:
    del state["model.layers.1.mlp.experts.2.up_proj.weight"]
    return r"missing: layers\.1\.mlp\.experts\.2\.up_proj\.weight"


def no_layer(state: legacy.State) -> str:
    for name in [name for name in state if name.startswith("model.layers.2.")]:
        del state[name]
    return r"missing: model\.layers\.2\.input_layernorm\.weight"


def left_over(state: legacy.State) -> str:
    state |= {f"extra.{i}.weight": torch.ones(2) for i in range(12)}
    return r"not known: (extra\.\d+\.weight, ){9}extra\.\d+\.weight and 2 more"


def misshaped(state: legacy.State) -> str:
    state["model.layers.0.mlp.up_proj.weight"] = torch.ones(7, 32)
    return r"of another shape: layers\.0\.mlp\.up_proj\.weight \(7, 32\), not \(20, 32\)"


def not_finite(state: legacy.State) -> str:
    state["model.norm.weight"][3] = float("nan")
    return r"not finite: norm\.weight"


def alibi(state: legacy.State) -> str:
    state["model.layers.0.self_attn.alibi_slopes"] = torch.ones(4)
    return "an ALiBi of inverted sign"


def no_head(state: legacy.State) -> str:
    del state["lm_head.weight"]
    return r"missing: lm_head\.weight"


@pytest.mark.parametrize(
    "spoil", [missing, no_layer, left_over, misshaped, not_finite, alibi, no_head]
)
def test_a_state_dict_that_does_not_fit_is_refused_by_name(spoil: Any, tmp_path: Path) -> None:
    state = legacy.h64lm_state()
    words = spoil(state)
    with pytest.raises(UserError, match=words):
        import_model(put(tmp_path / "x.pt", h64lm_file(state)), "x", tmp_path, kind="h64lm")
    assert not (tmp_path / "checkpoints/imported/x").exists()


class Anything:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("this code must not run",)


def test_a_file_with_code_in_it_is_not_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = legacy.mini_state()
    source = put(tmp_path / "evil.pt", {"model": state, "config": Anything()})
    with pytest.raises(UserError, match="asks to build .*print, which is no tensor"):
        import_model(source, "x", tmp_path)
    assert "must not run" not in capsys.readouterr().out
    source = put(tmp_path / "args.pt", {"model": state, "config": argparse.Namespace(n_head=2)})
    with pytest.raises(UserError, match=r"asks to build argparse\.Namespace"):
        import_model(source, "x", tmp_path)


def test_what_is_no_file_of_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no tensors here")
    with pytest.raises(UserError, match="is not a whole file of tensors"):
        import_model(tmp_path / "text.pt", "x", tmp_path)
    whole = put(tmp_path / "whole.pt", legacy.mini_state()).read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="is not a whole file of tensors"):
        import_model(tmp_path / "cut.pt", "x", tmp_path)
    with pytest.raises(UserError, match="holds no weights"):
        import_model(put(tmp_path / "numbers.pt", {"loss": 1.0}), "x", tmp_path)
    with pytest.raises(UserError, match="has the names of none of chaya, rscalm, mini, h64lm"):
        import_model(put(tmp_path / "other.pt", {"wte.weight": torch.ones(2)}), "x", tmp_path)
    with pytest.raises(UserError, match="there is no file"):
        import_model(tmp_path / "nowhere.pt", "x", tmp_path)
    with pytest.raises(UserError, match="names of Haipai's tensors were never published"):
        import_model(tmp_path / "text.pt", "x", tmp_path, kind="haipai")
    with pytest.raises(UserError, match="did you mean 'rscalm'"):
        import_model(tmp_path / "text.pt", "x", tmp_path, kind="rscaml")


def test_weights_may_lie_in_safetensors_and_a_name_is_taken_once(tmp_path: Path) -> None:
    state = {name: t.clone() for name, t in legacy.mini_state().items()}
    save_file(state, tmp_path / "mini.safetensors")
    done = import_model(tmp_path / "mini.safetensors", "mini", tmp_path)
    assert agree(logits(done.folder), legacy.mini(state, IDS, 4))
    before = (done.folder / "manifest.json").read_bytes()
    with pytest.raises(UserError, match="is there already"):
        import_model(tmp_path / "mini.safetensors", "mini", tmp_path)
    with pytest.raises(UserError, match="is no name"):
        import_model(tmp_path / "mini.safetensors", "../mini", tmp_path)
    shutil.rmtree(done.folder)
    import_model(tmp_path / "mini.safetensors", "mini", tmp_path)
    assert (done.folder / "manifest.json").read_bytes() == before, (
        "the same weights, the same bytes"
    )


@pytest.mark.parametrize("name", [n for n in NATIVE if not n.startswith("factorised")])
def test_a_folder_that_transformers_wrote_comes_back_with_its_logits(
    name: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    ours = network(**NATIVE[name][1], vocab_size=61)
    (tmp_path / "ours").mkdir()
    write_network(tmp_path / "ours", ours, {})
    AutoModelForCausalLM.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    assert "phasewise" in read_json(tmp_path / "theirs/config.json"), "they carry on keys of others"
    values = read_json(tmp_path / "theirs/config.json")
    del values["phasewise"]
    (tmp_path / "theirs/config.json").write_text(json.dumps(values))
    for folder in ("ours", "theirs"):
        done = import_model(tmp_path / folder, folder, tmp_path)
        with torch.no_grad():
            assert agree(logits(done.folder), ours(IDS[None])[0]), folder
    assert load_model(done.folder).config.kv_heads == ours.config.kv_heads


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "rope_theta": 1e4}}, "rope_type is 'llama3'"),
        ({"model_type": "gpt2"}, "no model_type that can be imported 'gpt2'"),
        ({"vocab_size": 60}, r"of another shape: embed_tokens\.weight"),
        ({"num_attention_heads": 5, "head_dim": None}, "n_heads 5 does not divide"),
        ({"num_hidden_layers": 3}, r"not the model's: layers\.3\."),
    ],
)  # fmt: skip
def test_what_no_network_of_ours_computes_is_refused_by_its_key(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    (tmp_path / "theirs").mkdir()
    write_network(tmp_path / "theirs", network(vocab_size=61), {})
    values = read_json(tmp_path / "theirs/config.json") | {"rope_scaling": None} | changes
    del values["phasewise"]
    (tmp_path / "theirs/config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=words):
        import_model(tmp_path / "theirs", "x", tmp_path)


def test_an_import_with_a_tokenizer_speaks_and_one_that_does_not_fit_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tasks.cli import app

    write_tokenizer(tmp_path / "words")
    (tmp_path / "words/report.json").unlink()
    (tmp_path / "theirs").mkdir()
    write_network(tmp_path / "theirs", network(vocab_size=300), {})
    done = import_model(tmp_path / "theirs", "x", tmp_path, tokenizer=str(tmp_path / "words"))
    app(["generate", "--model", str(done.folder), "--prompt", "The", "--max-new-tokens", "4"],
        standalone_mode=False)  # fmt: skip
    assert capsys.readouterr().out.startswith("The")
    spoilt = done.folder / "model.safetensors"
    spoilt.write_bytes(spoilt.read_bytes()[:-4])
    with pytest.raises(UserError, match="model.safetensors has"):
        app(["generate", "--model", str(done.folder), "--prompt", "The"], standalone_mode=False)
    (tmp_path / "small").mkdir()
    write_network(tmp_path / "small", network(vocab_size=61), {})
    with pytest.raises(UserError, match="the tokenizer has 300 ids, the network 61 rows"):
        import_model(tmp_path / "small", "y", tmp_path, tokenizer=str(tmp_path / "words"))


def test_a_tokenizer_may_be_an_id_on_the_hub_or_its_mirror(
    tmp_path: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHASEWISE_HUB", str(mirror))
    (tmp_path / "theirs").mkdir()
    write_network(
        tmp_path / "theirs", network(vocab_size=50257, d_model=4, n_heads=1, n_layers=1), {}
    )
    done = import_model(tmp_path / "theirs", "x", tmp_path, tokenizer="openai-community/gpt2")
    assert read_json(done.folder / "tokenizer_config.json")["eos_token"] == "<|endoftext|>"


def test_a_sentencepiece_model_is_a_tokenizer_too_if_its_ids_can_be_kept(tmp_path: Path) -> None:
    import io

    import sentencepiece

    from tasks.recipe import Tokenizer
    from tasks.tokens.sentencepiece import train_sentencepiece
    from tests.test_release_export import TEXT

    made = train_sentencepiece(Tokenizer(kind="sentencepiece_bpe", vocab_size=320), [TEXT * 3])
    (tmp_path / "kept.model").write_bytes(made.files["tokenizer.model"])
    other = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 3), model_writer=other, model_type="bpe", vocab_size=60,
        hard_vocab_limit=False, pad_id=3, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "other.model").write_bytes(other.getvalue())
    (tmp_path / "none.model").write_text("nothing")
    (tmp_path / "theirs").mkdir()
    write_network(tmp_path / "theirs", network(vocab_size=320), {})
    done = import_model(tmp_path / "theirs", "x", tmp_path, tokenizer=str(tmp_path / "kept.model"))
    assert (done.folder / "tokenizer.json").read_bytes() == made.content
    assert (done.folder / "kept.model").exists()
    for name in ("other", "none"):
        with pytest.raises(UserError, match=rf"no tokenizer.json gives the ids of .*{name}\.model"):
            import_model(
                tmp_path / "theirs", name, tmp_path, tokenizer=str(tmp_path / f"{name}.model")
            )


def test_the_command_says_where_the_weights_are_and_what_is_wrong_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tasks.cli import app

    (tmp_path / "recipes").mkdir()
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "chaya.pt", legacy.chaya_state())
    app(["import", "chaya.pt", "--to", "chaya", "--max-seq-len", "256"], standalone_mode=False)
    said = capsys.readouterr()
    assert "chaya, " in said.out and "starts_from: imported/chaya" in said.out
    assert "warning: " in said.err and "logits DIFFER" in said.err
    assert load_model("checkpoints/imported/chaya").config.max_seq_len == 256


@pytest.mark.parametrize(
    ("start", "words"),
    [("imported/../x", "String should match pattern"), ("imported/", "String should match pattern"),
     ("import/x", "String should match pattern"), ("imported", "there is no phase 'imported'")],
)  # fmt: skip
def test_a_recipe_names_an_import_by_its_folder_alone(start: str, words: str) -> None:
    text = (ROOT / "tests/tiny.yaml").read_text()
    with pytest.raises(UserError, match=words):
        recipe_of_text(text.replace("starts_from: init", f"starts_from: {start}"))
    recipe = recipe_of_text(text.replace("starts_from: init", "starts_from: imported/x"))
    assert recipe.phases["phase1"].parent is None and recipe.phases["phase2"].parent == "phase1"
    with pytest.raises(UserError, match="is the folder of imported models"):
        recipe_of_text(text.replace("phase1", "imported"))


def recipe_of_text(text: str) -> recipes.Recipe:
    from ruamel.yaml import YAML

    from tasks.recipe_file import validate

    return validate(YAML(typ="safe", pure=True).load(text))


@pytest.fixture
def work(tiny: Path, tmp_path: Path) -> Path:
    """The tiny recipe, whose first phase starts from weights that came from elsewhere."""
    root = Path(shutil.copytree(tiny, tmp_path / "work"))
    text = (root / "params.yaml").read_text()
    text = text.replace("starts_from: init", "starts_from: imported/elsewhere")
    (root / "params.yaml").write_text(text.replace("tokens: 15360", "tokens: 1024"))
    return root


def elsewhere(root: Path, **changes: Any) -> ModelConfig:
    """checkpoints/imported/elsewhere, from a folder as transformers has it."""
    recipe = recipes.load(root / "params.yaml")
    size = read_json(Workspace(root).tokenizer / "report.json")["vocab_size"]
    values = recipe.model.to_dict() | {"vocab_size": size, "resid_dropout": 0.0, "init_std": 0.3}
    config = ModelConfig.from_dict(values | changes)
    (root / "theirs").mkdir()
    write_network(
        root / "theirs", Transformer(config, generator=torch.Generator().manual_seed(1)), {}
    )
    import_model(root / "theirs", "elsewhere", root)
    return config


def remix(root: Path) -> tuple[Workspace, recipes.Recipe]:
    from tasks.tokens.mix import mix

    workspace, recipe = Workspace(root), recipes.load(root / "params.yaml")
    mix(workspace, recipe, "phase1")
    return workspace, recipe


def test_a_phase_goes_on_from_imported_weights_with_the_recipes_dropout(work: Path) -> None:
    elsewhere(work)
    workspace, recipe = remix(work)
    assert recipe.parents("phase1") == [] and recipe.parents("phase2") == ["phase1"]
    train(workspace, recipe, "phase1")
    trained = load_export(workspace.checkpoint("phase1"))
    assert trained.config.resid_dropout == 0.1, "what acts in training alone is the recipe's"
    start = load_model(workspace.checkpoint("imported/elsewhere")).embed_tokens.weight
    assert 0 < (trained.embed_tokens.weight - start).abs().max() < 0.2, "it went on from there"


def test_imported_weights_of_another_network_are_refused_with_the_fields(work: Path) -> None:
    elsewhere(work, rope_base=500.0, d_ff=48, vocab_size=100)
    workspace, recipe = remix(work)
    with pytest.raises(
        UserError, match=r"model\.d_ff: 48 there, 64 here.*vocab_size.*rope_base: 500"
    ):
        train(workspace, recipe, "phase1")


def test_an_import_with_another_tokenizer_is_refused(work: Path, tmp_path: Path) -> None:
    elsewhere(work)
    shutil.rmtree(work / "checkpoints/imported/elsewhere")
    write_tokenizer(tmp_path / "words")
    (tmp_path / "words/report.json").unlink()
    import_model(work / "theirs", "elsewhere", work, tokenizer=str(tmp_path / "words"))
    workspace, recipe = remix(work)
    with pytest.raises(UserError, match="ids mean other words"):
        train(workspace, recipe, "phase1")


def test_a_missing_import_says_how_to_make_it(work: Path) -> None:
    workspace, recipe = remix(work)
    with pytest.raises(UserError, match="phasewise import <weights> --to elsewhere"):
        train(workspace, recipe, "phase1")
    assert checkpoint.fault(work / "checkpoints/init") is None


def test_dvc_sees_an_import_as_a_file_that_a_phase_depends_on(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dvc.repo import Repo

    elsewhere(work)
    shutil.copy(ROOT / "dvc.yaml", work)
    (work / "model").mkdir()
    monkeypatch.chdir(work)
    with Repo.init(no_scm=True) as repository:
        stages = {stage.addressing: stage for stage in repository.index.stages}
        depends = [dependency.def_path for dependency in stages["train@phase1"].deps]
    assert "checkpoints/imported/elsewhere" in depends
