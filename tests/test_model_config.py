"""A configuration is checked whole when it is made, and counts the parameters that it will have."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from pydantic import BaseModel, ConfigDict, ValidationError

from model import ModelConfig, Transformer, count_parameters
from model.config import ModelConfig as ConfigAlone
from tests.test_model_strategies import (
    one_thread,  # noqa: F401
    small_configs,
)

ROOT = Path(__file__).resolve().parents[1]

HAIPAI = {
    "vocab_size": 50_000, "d_model": 384, "n_layers": 12, "n_heads": 6, "d_ff": 2048,
    "max_seq_len": 1024, "rope_scale": 2.0,
}  # fmt: skip
CHAYA = {
    "vocab_size": 50_257, "d_embed": 192, "d_model": 640, "n_layers": 8, "n_heads": 8,
    "d_ff": 2560, "max_seq_len": 512, "norm_eps": 1e-8, "init": "torch",
}  # fmt: skip
H64LM = {
    "vocab_size": 32_000, "d_model": 768, "n_layers": 6, "n_heads": 12, "n_kv_heads": 4,
    "d_ff": 3072, "max_seq_len": 1024, "tie_embeddings": False, "norm_eps": 1e-5,
    "n_experts": 8, "n_experts_per_token": 2, "moe_layers": "odd", "router_temperature": 2.0,
}  # fmt: skip


def rscalm(d_model: int, n_layers: int, n_heads: int) -> dict:
    return {
        "vocab_size": 32_000, "d_model": d_model, "n_layers": n_layers, "n_heads": n_heads,
        "d_ff": 4 * d_model, "max_seq_len": 1024, "rope_layout": "interleaved",
    }  # fmt: skip


def mini(d_model: int, n_layers: int) -> dict:
    return {
        "vocab_size": 65, "d_model": d_model, "n_layers": n_layers, "n_heads": 4,
        "d_ff": 4 * d_model, "max_seq_len": 256, "norm": "layernorm", "norm_eps": 1e-5,
    }  # fmt: skip


PUBLISHED = {
    "haipai-50m": (HAIPAI, 54_599_040, 54_599_040),
    "chaya-62m": (CHAYA, 62_334_784, 62_334_784),
    "rscalm-138m": (rscalm(768, 12, 12), 137_841_408, 137_841_408),
    "rscalm-350m": (rscalm(1024, 24, 16), 435_471_360, 435_471_360),
    "rscalm-700m": (rscalm(1280, 32, 20), 879_904_000, 879_904_000),
    "mini-tiny": (mini(128, 4), 1_059_200, 1_059_200),
    "mini-small": (mini(256, 6), 6_314_752, 6_314_752),
    "mini-medium": (mini(512, 12), 50_390_528, 50_390_528),
    "mini-large": (mini(768, 24), 226_617_600, 226_617_600),
    "h64lm-249m": (H64LM, 249_720_576, 122_318_592),
}


def built_size(config: ModelConfig) -> int:
    with torch.device("meta"):
        model = Transformer(config)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_size_has_its_exact_count(name):
    values, total, active = PUBLISHED[name]
    config = ModelConfig(**values)
    counts = count_parameters(config)
    assert counts["total"] == total == built_size(config)
    assert counts["active"] == active


def test_what_is_not_a_table_of_the_vocabulary_is_counted_apart():
    assert count_parameters(ModelConfig(**HAIPAI))["non_embedding"] == 35_399_040
    tables = 2 * 32_000 * 768
    assert count_parameters(ModelConfig(**H64LM))["non_embedding"] == 249_720_576 - tables


@settings(max_examples=40, deadline=None)
@given(small_configs())
def test_counting_by_hand_equals_building(config):
    counts = count_parameters(config)
    assert counts["total"] == built_size(config) == sum(counts["parts"].values())
    assert counts["active"] <= counts["total"]


@given(small_configs())
def test_a_configuration_comes_back_from_json_equal(config):
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_counting_waits_for_the_tokenizer():
    config = replace(ModelConfig(**HAIPAI), vocab_size=None)
    with pytest.raises(ValueError, match="take it from the tokenizer"):
        count_parameters(config)
    with pytest.raises(ValueError, match="take it from the tokenizer"):
        Transformer(config)


def test_a_whole_number_and_its_float_are_one_setting():
    assert (
        ModelConfig(**HAIPAI | {"rope_base": 10_000}).to_dict() == ModelConfig(**HAIPAI).to_dict()
    )


BAD = [
    ({"n_heads": 7}, "n_heads 7 does not divide d_model 384; the nearest that do are 6 or 8"),
    ({"n_kv_heads": 4}, "n_kv_heads 4 does not divide n_heads 6; the nearest that do are 3 or 6"),
    ({"n_kv_heads": 12}, "n_kv_heads 12 does not divide n_heads 6; the nearest that do are 6"),
    ({"head_dim": 33}, "must be even, got 33; set head_dim 32 or 34"),
    ({"d_model": 384.0}, "d_model must be a whole number, got 384.0"),
    ({"d_model": True}, "d_model must be a whole number, got True"),
    ({"d_model": "384"}, "d_model must be a whole number, got '384'"),
    ({"n_layers": 0}, "n_layers must lie in 1 to 4096, got 0"),
    ({"vocab_size": 1}, "vocab_size must lie in 2 to"),
    ({"norm": "rms_norm"}, "norm must be one of rmsnorm, layernorm, got 'rms_norm', did you mean"),
    ({"positions": ["rope"]}, "positions must be one of"),
    ({"tie_embeddings": 1}, "tie_embeddings must be true or false, got 1"),
    ({"norm_eps": 0}, "norm_eps must be a finite number above 0 and at most 1, got 0"),
    ({"rope_base": float("nan")}, "rope_base must be a finite number above 1, got nan"),
    ({"rope_scale": float("inf")}, "rope_scale must be a finite number above 0, got inf"),
    ({"rope_scale": "2"}, "rope_scale must be a number, got '2'"),
    ({"attn_dropout": 1.0}, "attn_dropout must be a finite number of at least 0 and below 1"),
    ({"resid_dropout": -0.1}, "resid_dropout must be a finite number of at least 0"),
    ({"sliding_window": 1024}, "sliding_window 1024 would never act .* set it to 1023 or less"),
    ({"n_experts": 1}, "n_experts must lie in 2 to"),
    ({"n_experts": 4, "n_experts_per_token": 5}, "n_experts_per_token 5 is more than n_experts 4"),
    ({"n_experts": 4, "moe_capacity_factor": 0}, "moe_capacity_factor must be a finite number abo"),
    ({"n_experts": 4, "moe_layers": "odd", "n_layers": 1}, "moe_layers odd leaves no layer"),
    ({"n_experts": 4, "n_experts_per_token": 1, "moe_renormalize": True}, "router cannot learn"),
    ({"shared_expert": True}, "shared_expert is set but n_experts is not"),
    ({"moe_capacity_factor": 1.0}, "moe_capacity_factor is set but n_experts is not"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_what_cannot_be_built_is_refused_with_the_nearest_that_can(change, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**HAIPAI | change)


def test_an_unknown_key_is_refused_with_the_nearest_known_one():
    with pytest.raises(ValueError, match="no such key: 'n_head', did you mean 'n_heads'"):
        ModelConfig.from_dict(HAIPAI | {"n_head": 6})
    with pytest.raises(ValueError, match="lacks d_ff, max_seq_len"):
        ModelConfig.from_dict({"d_model": 8, "n_layers": 1, "n_heads": 1})


class Recipe(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    model: ModelConfig


def test_as_a_field_of_a_recipe_it_takes_a_mapping_and_stays_strict():
    assert Recipe.model_validate({"model": HAIPAI}).model == ModelConfig(**HAIPAI)
    for bad in ({"n_layers": "12"}, {"n_layers": 12.0}, {"n_head": 6}, {"n_heads": 7}):
        with pytest.raises(ValidationError):
            Recipe.model_validate({"model": HAIPAI | bad})


def test_the_configuration_and_the_counts_load_without_torch():
    code = (
        "import sys; from model.config import ModelConfig; from model import count_parameters; "
        "assert 'torch' not in sys.modules; from model import Transformer; "
        "assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert ConfigAlone is ModelConfig


def test_the_package_names_what_it_does_not_have():
    import model

    with pytest.raises(AttributeError, match="no attribute 'Transfomer'"):
        _ = model.Transfomer
    assert all(getattr(model, name) is not None for name in model.__all__)
