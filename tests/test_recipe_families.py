"""The published recipes: their exact sizes, and that a family differs in size alone."""

from __future__ import annotations

from typing import Any

import pytest

from model.counts import count_parameters
from tasks import recipe as recipes
from tasks.recipe_file import read_yaml
from tests.places import ROOT

# recipe -> parameters, and those that one token goes through
PUBLISHED = {
    "chaya-62m": (62_334_784, 62_334_784),
    "h64lm-249m": (249_720_576, 122_318_592),
    "haipai-50m": (54_599_040, 54_599_040),
    "mini-tiny": (1_059_200, 1_059_200),
    "mini-small": (6_314_752, 6_314_752),
    "mini-medium": (50_390_528, 50_390_528),
    "mini-large": (226_617_600, 226_617_600),
    "rscalm-138m": (137_841_408, 137_841_408),
    "rscalm-335m": (334_758_912, 334_758_912),
    "rscalm-350m": (435_471_360, 435_471_360),
    "rscalm-670m": (670_147_840, 670_147_840),
    "rscalm-700m": (879_904_000, 879_904_000),
}
SIZES = {"name", "description", "model.d_model", "model.n_layers", "model.n_heads", "model.d_ff"}
BLOCK = {"model.max_seq_len"} | {  # Mini's context grows with the model, and all counts with it
    f"phases.pretrain.{key}" for key in ("seq_len", "batch_tokens", "tokens", "warmup_tokens")
}


def flat(values: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Nested settings by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = flat(value, f"{path}{key}.") if isinstance(value, dict) and value else None
        found |= inner or {f"{path}{key}": value}
    return found


def test_every_recipe_of_a_published_model_has_its_exact_size() -> None:
    assert set(PUBLISHED) | {"demo"} == {p.stem for p in (ROOT / "recipes").glob("*.yaml")}
    for name, (total, active) in PUBLISHED.items():
        recipe = recipes.load(ROOT / f"recipes/{name}.yaml")
        counts = count_parameters(recipe.model_config_with_vocab)
        assert (counts["total"], counts["active"]) == (total, active), name
        assert f"{total:,}" in (ROOT / f"recipes/{name}.yaml").read_text(), name


@pytest.mark.parametrize(("family", "keys"), [("rscalm", SIZES), ("mini", SIZES | BLOCK)])
def test_the_members_of_a_family_differ_in_their_size_alone(family: str, keys: set[str]) -> None:
    paths = sorted((ROOT / "recipes").glob(f"{family}-*.yaml"))
    members = [flat(read_yaml(path)) for path in paths]
    assert len(members) >= 4
    assert all(set(member) == set(members[0]) for member in members)
    differ = {key for key in members[0] if len({str(member[key]) for member in members}) > 1}
    assert differ == keys


def test_a_step_of_mini_is_32_samples_and_all_its_sizes_take_as_many() -> None:
    for path in (ROOT / "recipes").glob("mini-*.yaml"):
        phase = recipes.load(path).phases["pretrain"]
        assert (phase.batch_size, phase.steps) == (32, 10_000), path.stem
        assert phase.warmup_tokens == 500 * phase.batch_tokens


def test_rscalm_takes_the_published_steps() -> None:
    phase = recipes.load(ROOT / "recipes/rscalm-138m.yaml").phases["pretrain"]
    assert (phase.steps, phase.batch_size, phase.seq_len) == (200_000, 64, 1024)
    assert phase.warmup_tokens == 2_000 * phase.batch_tokens
