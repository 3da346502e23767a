"""Changes of the recipe in force: one value, and not a character beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from tasks import recipe
from tasks.errors import UserError
from tasks.recipe_edit import edit, edited
from tests.places import ROOT

DEMO = ROOT / "recipes/demo.yaml"


@pytest.fixture
def params(tmp_path: Path) -> Path:
    return shutil.copy(DEMO, tmp_path / "params.yaml")


def difference(path: Path, *changes: str) -> list[tuple[str, str]]:
    """The lines that changed, before and after, where no line was added."""
    before, after = path.read_text().splitlines(), edited(path, changes).splitlines()
    assert len(before) == len(after)
    return [(a, b) for a, b in zip(before, after, strict=True) if a != b]


def test_a_value_is_replaced_and_its_comment_stays(params: Path) -> None:
    assert difference(params, "phases.phase2.tokens=2M") == [("    tokens: 400K", "    tokens: 2M")]
    assert difference(params, "sources.packages.license=mixed") == [
        ("    license: various # each package's own", "    license: mixed # each package's own")
    ]


def test_a_value_in_a_line_of_its_mapping_is_replaced_or_added(params: Path) -> None:
    before = "  optimizer: {name: muon, betas: [0.9, 0.95], weight_decay: 0.1}"
    after = "  optimizer: {name: muon, betas: [0.9, 0.95], weight_decay: 5e-2, eps: 1e-6}"
    changes = ["training.optimizer.weight_decay=5e-2", "training.optimizer.eps=1e-6"]
    assert difference(params, *changes) == [(before, after)]


def test_a_new_key_stands_at_the_end_of_its_section(params: Path) -> None:
    after = edited(params, ["phases.phase1.optimizer.weight_decay=0.2", "training.spike_factor=3"])
    assert "    min_lr: 3e-4\n    optimizer: {weight_decay: 0.2}\n  phase2:" in after
    assert "weight_decay: 0.1}\n  spike_factor: 3\n" in after


def test_a_mapping_is_replaced_whole(params: Path) -> None:
    assert difference(params, "phases.phase1.mixture={stdlib: 1}") == [
        ("    mixture: {stdlib: 0.2, packages: 0.8}", "    mixture: {stdlib: 1}")
    ]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_can_be_changed_in_one_line(path: Path) -> None:
    phase = next(iter(recipe.load(path).phases))
    assert len(difference(path, "seed=17")) == 1
    edited(path, [f"phases.{phase}.lr=0.5", f"phases.{phase}.optimizer.weight_decay=0.0"])


def test_all_changes_are_written_or_none(params: Path) -> None:
    with pytest.raises(UserError, match="greater than or equal to 0"):
        edit(params, ["phases.phase1.lr=5e-3", "seed=-1"])
    assert params.read_text() == DEMO.read_text()
    edit(params, ["phases.phase1.lr=5e-3", "seed=1"])
    changed = recipe.load(params)
    assert changed.phases["phase1"].lr == 5e-3 and changed.seed == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("phases.phase2.tokns=2M", "did you mean phases.phase2.tokens"),
        ("phases.phase2.optimizer.lr=1e-3", "did you mean phases.phase2.lr"),
        ("phases.phase3.lr=1e-3", "did you mean 'phase2'? it has: phase1, phase2"),
        ("phase.phase2.lr=1e-3", "did you mean phases.phase2.lr"),
        ("sources.stdlb.license=x", "it has: stdlib, packages"),
        ("phases.phase2.mixture.pakages=1", "did you mean 'packages'"),
        ("phases.phase2.lr.x=1", "phases.phase2.lr is a value"),
        ("phases.phase2.lr=fast", "got 'fast'"),
        ("phases.phase2.tokens", "expected key=value"),
        ("phases.phase2.mixture={a: [", "is not a value that YAML knows"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(params: Path, change: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        edited(params, [change])
    assert words in str(caught.value)


@settings(max_examples=15, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1))
def test_any_text_is_written_so_that_it_is_read_back(text: str) -> None:
    after = edited(DEMO, [f"description={json.dumps(text, ensure_ascii=False)}"])
    assert YAML(typ="safe", pure=True).load(after)["description"] == text
