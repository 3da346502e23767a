"""A recipe is valid, or says what is wrong, where, and what was probably meant."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.counts import count_parameters
from tasks import recipe as recipes
from tasks.errors import UserError
from tasks.recipe_file import read_yaml, validate
from tasks.stage import stages
from tasks.units import parse_count, show_bytes, show_count, show_seconds
from tests.places import ROOT

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.fixture(scope="module")
def demo() -> dict[str, Any]:
    return read_yaml(ROOT / "recipes/demo.yaml")


def change(raw: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(raw)
    *path, last = key.split(".")
    section = changed
    for part in path:
        section = section[part]
    if value is Ellipsis:
        del section[last]
    else:
        section[last] = value
    return changed


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_is_valid_and_has_the_name_of_its_file(path: Path) -> None:
    assert recipes.load(path).name == path.stem


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_dvc_resolves_the_stages_of_every_recipe(path: Path, tmp_path: Path) -> None:
    for name, target in (("params.yaml", path), ("dvc.yaml", ROOT / "dvc.yaml")):
        (tmp_path / name).write_text(target.read_text())
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "--no-scm", "-q"], cwd=tmp_path, check=True)
    done = subprocess.run(
        [*dvc, "stage", "list", "--name-only"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert sorted(done.stdout.split()) == sorted(stages(recipes.load(path)))


def test_the_readme_lists_every_recipe_with_its_size() -> None:
    readme = (ROOT / "README.md").read_text()
    for path in RECIPES:
        total = count_parameters(recipes.load(path).model_config_with_vocab)["total"]
        assert f"| `{path.stem}` | {total:,} |" in readme


BAD: list[tuple[str, Any, str]] = [
    ("trainin", {}, "trainin: unknown key; did you mean 'training'?"),
    ("phases.phase2.warmup_token", 5, "phases.phase2.warmup_token: unknown key; did you mean 'warmup_tokens'"),
    ("training.lrr", 1.0, "training.lrr: unknown key; did you mean 'lr'?"),
    ("model.n_layer", 2, "model.n_layer: unknown key; did you mean 'n_layers'?"),
    ("model.n_heads", 3, "n_heads 3 does not divide d_model 128"),
    ("model.n_heads", "4", "model.n_heads: should be a valid integer, got '4'"),
    ("model.attn_dropout", True, "model.attn_dropout: should be a valid number, got True"),
    ("model", ..., "model: this key is needed"),
    ("model.d_ff", ..., "model.d_ff: this key is needed"),
    ("model.vocab_size", 5, "model.vocab_size: comes from the tokenizer"),
    ("phases.phase2.lr", "fast", "phases.phase2.lr: should be a valid number, got 'fast'"),
    ("phases.phase2.lr", True, "phases.phase2.lr: should be a valid number, got True"),
    ("phases.phase2.lr", float("nan"), "phases.phase2.lr: should be a finite number"),
    ("phases.phase2.lr", -1.0, "phases.phase2.lr: should be greater than 0"),
    ("phases.phase1.tokens", "many", "phases.phase1.tokens: expected a count"),
    ("phases.phase1.tokens", 0, "phases.phase1.tokens: should be greater than 0"),
    ("phases.phase1.tokens", 1.5, "phases.phase1.tokens: expected a count"),
    ("phases.phase1.tokens", "50K", "must stay below tokens"),
    ("phases.phase2.batch_tokens", 1000, "must be a multiple of seq_len (256), got 1000; the nearest is 768"),
    ("phases.phase2.seq_len", 512, "phases.phase2.seq_len: 512 is beyond model.max_seq_len (256)"),
    ("phases.phase2.mixture", {"stdlib": -1, "packages": 1}, "mixture.stdlib is negative"),
    ("phases.phase2.mixture", {"stdlib": 0}, "the weights sum to 0"),
    ("phases.phase2.mixture", {"stdlb": 1}, "there is no source 'stdlb'; did you mean 'stdlib'?"),
    ("phases.phase2.starts_from", "phase3", "phases.phase2.starts_from: there is no phase 'phase3'"),
    ("phases.phase1.starts_from", "phase2", "goes in a circle (phase1 -> phase2 -> phase1)"),
    ("phases.phase2.select_on", "stdlb/validation", "did you mean 'stdlib/validation'?"),
    ("phases.phase2.select", "best", "need select_on"),
    ("phases.phase2.batch_ramp", {"start": 3000, "tokens": "100K"}, "halved a whole number of times"),
    ("phases.phase2.optimizer", {"name": "muno"}, "phases.phase2.optimizer.name"),
    ("release.phase", "phase9", "release.phase: there is no phase 'phase9'"),
    ("phases.phase2.ema_decay", None, "release.weights: 'ema', but phases.phase2.ema_decay is null"),
    ("sources.stdlib.profile", "doc", "sources.stdlib.profile"),
    ("sources.a; rm -rf", {"installed": "stdlib"}, "String should match pattern"),
    ("sources.stdlib.hub", {"id": "a/b", "revision": "c"}, "exactly one of hub, files, installed"),
    ("sources.stdlib.installed", ..., "exactly one of hub, files, installed is needed, got none"),
    ("seed", 10**25, "seed: should be less than or equal to"),
    ("tokenizer.vocab_size", 100, "vocab_size must be at least 257"),
    ("held_out.validation", 0.99, "validation + test must stay below 1"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "message"), BAD, ids=[f"{k}={v!r}"[:50] for k, v, _ in BAD]
)
def test_a_bad_recipe_names_file_key_and_fault(
    demo: dict[str, Any], key: str, value: Any, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        validate(change(demo, key, value), "params.yaml")
    assert str(caught.value).startswith("params.yaml: ")
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_several_faults_are_told_at_once(demo: dict[str, Any]) -> None:
    raw = change(change(demo, "phases.phase1.lr", "a"), "phases.phase2.token", 3)
    with pytest.raises(UserError) as caught:
        validate(raw)
    assert "phases.phase1.lr" in str(caught.value)
    assert "phases.phase2.token" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a: [1", ":1:"),
        ("a: 1\na: 2", "duplicate key"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("a:\n\t- 1", ":2:"),
        ("- 1", "expected a mapping"),
        ("", "an empty file"),
        ("a: !!python/object:os.system x", "tags"),
    ],
)
def test_broken_yaml_is_refused_with_its_place(tmp_path: Path, text: str, where: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        recipes.load(path)
    assert where in str(caught.value)


def test_a_missing_recipe_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="phasewise recipes use"):
        recipes.load(tmp_path / "params.yaml")


def test_a_stage_with_a_bad_recipe_exits_with_2_and_no_traceback(tmp_path: Path) -> None:
    bad = (ROOT / "recipes/demo.yaml").read_text().replace("n_heads: 4", "n_heads: 3")
    (tmp_path / "params.yaml").write_text(bad)
    done = subprocess.run(
        [sys.executable, "-m", "tasks.training.init", "--root", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "n_heads 3" in done.stderr
    assert "Traceback" not in done.stderr


def test_phases_inherit_the_shared_settings_key_by_key(demo: dict[str, Any]) -> None:
    recipe = validate(change(demo, "phases.phase2.optimizer", {"eps": 1e-6}))
    assert recipe.phases["phase2"].optimizer.weight_decay == 0.1
    assert recipe.phases["phase2"].optimizer.eps == 1e-6
    assert recipe.phases["phase1"].optimizer.eps == 1e-8


def test_the_fingerprint_follows_every_setting(demo: dict[str, Any]) -> None:
    assert validate(demo).fingerprint == validate(copy.deepcopy(demo)).fingerprint
    other = validate(change(demo, "phases.phase2.tokens", "2M"))
    assert other.fingerprint != validate(demo).fingerprint


def test_an_override_may_be_written_as_dvc_passes_it(demo: dict[str, Any]) -> None:
    assert validate(change(demo, "phases.phase2.tokens", "2M")).phases["phase2"].tokens == 2_000_000


@given(st.integers(0, 10**15))
def test_counts_are_read_as_written(number: int) -> None:
    assert parse_count(number) == parse_count(str(number)) == number
    assert parse_count(f"{number % 10**6}K") == (number % 10**6) * 1000


@pytest.mark.parametrize(
    ("text", "number"),
    [("678M", 678_000_000), ("1.4B", 1_400_000_000), ("64Ki", 65_536), ("2GB", 2 * 10**9), ("0.5K", 500)],
)  # fmt: skip
def test_quantities_have_units(text: str, number: int) -> None:
    assert parse_count(text) == number


@pytest.mark.parametrize("text", ["", "-1", "1.5", "0.0001K", "3 apples", "1e400", None, True, 2.5])
def test_what_is_no_quantity_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="count|whole"):
        parse_count(text)


def test_figures_are_shown_short() -> None:
    assert show_count(678_000_000) == "678M"
    assert show_count(12) == "12"
    assert [show_bytes(n) for n in (0, 999, 12_345, 999_960, 1_250_000_000, 5 * 10**12)] == [
        "0 B", "999 B", "12.3 kB", "1 MB", "1.25 GB", "5 TB",
    ]  # fmt: skip
    assert show_seconds(5025) == "1h 23m"
