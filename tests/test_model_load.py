"""Loading is strict: a folder gives the very model that was stored, or says what is wrong."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from safetensors.torch import save_file

from model import ModelConfig, Transformer, load_model
from tests.test_model_strategies import (
    lively_model,
    one_thread,  # noqa: F401
    random_ids,
    small_configs,
)

CONFIG = ModelConfig(
    d_model=8, n_layers=2, n_heads=2, d_ff=16, max_seq_len=16, vocab_size=23, positions="rope+alibi"
)


def store(model: Transformer, folder: Path, **changes) -> Path:
    """A folder as an export writes it; `changes` replace or (None) remove weights."""
    weights = {**model.state_dict(), **changes}
    weights = {name: t.contiguous() for name, t in weights.items() if t is not None}
    values = {"model_type": "other", "phasewise": model.config.to_dict()}
    (folder / "config.json").write_text(json.dumps(values))
    save_file(weights, folder / "model.safetensors")
    return folder


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(small_configs())
def test_a_stored_model_comes_back_with_the_same_logits(tmp_path, config):
    model = lively_model(config)
    again = load_model(store(model, tmp_path))
    ids = random_ids(2, 16)
    assert torch.equal(again(ids), model(ids))
    assert again.config == config and not again.training
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(parameter.requires_grad for parameter in again.parameters())


def test_loading_draws_nothing_from_the_global_generator(tmp_path):
    store(lively_model(CONFIG), tmp_path)
    state = torch.get_rng_state()
    load_model(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_names_with_the_prefix_of_transformers_are_known(tmp_path):
    model = lively_model(CONFIG)
    store(model, tmp_path)
    save_file(
        {f"model.{name}": t for name, t in model.state_dict().items()},
        tmp_path / "model.safetensors",
    )
    ids = random_ids(1, 8)
    assert torch.equal(load_model(tmp_path)(ids), model(ids))


def test_the_weights_keep_their_dtype_or_take_the_one_asked_for(tmp_path):
    store(lively_model(CONFIG).to(torch.bfloat16), tmp_path)
    ids = random_ids(1, 8)
    assert load_model(tmp_path)(ids).dtype == torch.bfloat16
    assert load_model(tmp_path, dtype=torch.float32)(ids).dtype == torch.float32


def test_what_does_not_fit_is_named(tmp_path):
    model = lively_model(CONFIG)
    norm, up = "norm.weight", "layers.0.mlp.up_proj.weight"
    cases = [
        ({norm: None}, "missing: norm.weight"),
        ({"norm.bias": torch.zeros(8)}, "not the model's: norm.bias"),
        ({up: torch.zeros(8, 16)}, r"of another shape: .*up_proj.weight \(8, 16\), not \(16, 8\)"),
        ({norm: torch.full((8,), float("nan"))}, "not finite: norm.weight"),
        ({norm: torch.full((8,), float("inf"))}, "not finite: norm.weight"),
    ]
    for changes, message in cases:
        with pytest.raises(ValueError, match=message):
            load_model(store(model, tmp_path, **changes))


def test_of_many_keys_at_fault_ten_are_named_and_the_rest_counted(tmp_path):
    model = lively_model(CONFIG)
    nothing = dict.fromkeys(model.state_dict(), None) | {"other": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"missing: (\S+, ){9}\S+ and 10 more; not the model's"):
        load_model(store(model, tmp_path, **nothing))


def test_a_folder_that_is_not_one_is_said_to_be_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        load_model(tmp_path)
    store(lively_model(CONFIG), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<html>", "config.json is not JSON"),
        ("[]", "has no table 'phasewise'"),
        ('{"phasewise": {"d_model": 8, "n_layer": 2}}', "did you mean 'n_layers'"),
    ],
)
def test_a_configuration_that_is_not_ours_is_refused(tmp_path, text, message):
    store(lively_model(CONFIG), tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "page"])
def test_a_file_that_is_not_whole_is_refused(tmp_path, damage):
    path = store(lively_model(CONFIG), tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] if damage == "cut" else b"<html>404</html>" * 9)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_model(tmp_path)
