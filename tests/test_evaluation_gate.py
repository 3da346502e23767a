"""The gate: who becomes champion, who stays a challenger, and the sentence that says why."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model import Transformer
from tasks.data import documents
from tasks.errors import UserError
from tasks.evaluation.bootstrap import paired, paired_mean
from tasks.evaluation.compare import Comparison, SetComparison
from tasks.evaluation.contestants import at_folder
from tasks.evaluation.documents import Protocol
from tasks.evaluation.gate import CHALLENGER, decide, gate_sets, judge
from tasks.files import read_json, write_json
from tasks.recipe import Gate, Recipe
from tasks.recipe_file import validate
from tasks.release.export import export, write_network
from tasks.release.manifest import MANIFEST, seal
from tasks.training.state import load_network
from tasks.workspace import Workspace
from tests.held_out_workspace import RECIPE, make_compared, place

Place = tuple[Workspace, Recipe]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_compared(tmp_path_factory.mktemp("gate"))


@pytest.fixture()
def here(made: Place, tmp_path: Path) -> Place:
    """A copy of the workspace, to change."""
    shutil.copytree(made[0].root, tmp_path / "copy")
    return Workspace(tmp_path / "copy"), made[1]


def gated(recipe: Recipe, **gate: Any) -> Recipe:
    release = recipe.release.model_copy(update={"gate": Gate(**gate)})
    return recipe.model_copy(update={"release": release})


# The rule.


def made_up(workspace: Workspace, *gaps: float, noise: float = 0.001) -> Comparison:
    """A comparison on made-up sets: the candidate's bits per byte less the champion's on each."""
    random, sizes = np.random.default_rng(5), np.full(50, 100)
    model, sets, columns = at_folder(workspace.export("phase1"), "model"), [], []
    for number, gap in enumerate(gaps):
        champion = random.normal(1.0, 0.1, 50) * sizes * np.log(2)
        candidate = champion + (gap + random.normal(0, noise, 50)) * sizes * np.log(2)
        columns.append((candidate, champion, sizes))
        first, second = (
            {"bits_per_byte": one.sum() / 5000 / np.log(2)} for one in (candidate, champion)
        )
        found = paired(candidate, champion, sizes)
        sets.append(SetComparison(f"s{number}/test", "f" * 64, 50, 5000, 900, first, second, found))
    other = replace(model, name="other")
    return Comparison(model, other, Protocol(8, 8), 0.05, sets, paired_mean(columns), [])


@pytest.mark.parametrize(
    ("gaps", "noise", "alias", "words"),
    [
        ((-0.02, -0.03), 0.001, "champion", r"^better than @champion \(0\.025\d ± 0\.000"),
        ((0.02, 0.03), 0.001, CHALLENGER, r"^worse than @champion \(0\.02"),
        ((0.0, 0.0), 0.1, CHALLENGER, r"^no better than @champion beyond noise"),
        (
            (-0.09, 0.03),
            0.001,
            CHALLENGER,
            r"better .* but worse on s1/test by 0\.0[23]\d\d ± 0\.0",
        ),
        ((-0.09, 0.008), 0.001, "champion", r"^better"),  # below max_regression
        ((-0.09, 0.03), 0.2, "champion", r"^better"),  # s1's loss may be noise
    ],
)
def test_a_model_must_win_on_the_mean_and_lose_on_no_set(
    made: Place, gaps: tuple[float, ...], noise: float, alias: str, words: str
) -> None:
    verdict = judge(made_up(made[0], *gaps, noise=noise), "champion", Gate())
    assert verdict.alias == alias
    assert re.search(words, verdict.reason), verdict.reason
    assert verdict.comparison is not None
    sets = verdict.comparison["sets"]
    for one in sets.values():
        assert one["candidate"] - one["champion"] == pytest.approx(one["difference"])
    assert "\n" not in verdict.reason


# In a workspace.


def test_the_first_sound_model_becomes_champion(made: Place) -> None:
    workspace, recipe = made
    verdict = decide(workspace, recipe, workspace.export("phase1"), None)
    assert (verdict.alias, verdict.comparison) == ("champion", None)
    assert "there was no @champion" in verdict.reason


def test_the_better_model_takes_the_alias_and_the_worse_does_not(made: Place) -> None:
    workspace, recipe = made
    good, bad = workspace.export("phase1"), workspace.export("phase2")
    won = decide(workspace, gated(recipe, level=0.2), good, bad)
    assert won.alias == "champion" and won.reason.startswith("better than @champion")
    assert won.comparison is not None and set(won.comparison["sets"]) == {"early/test", "late/test"}
    lost = decide(workspace, gated(recipe, level=0.2), bad, good)
    assert lost.alias == CHALLENGER and lost.reason.startswith("worse than @champion")


def test_one_set_of_three_documents_is_too_few_to_win_on(made: Place) -> None:
    workspace, recipe = made
    named = gated(recipe, sets=["early/validation"])
    good, bad = workspace.export("phase1"), workspace.export("phase2")
    verdict = decide(workspace, named, good, bad)
    assert verdict.alias == CHALLENGER and "p 0.250" in verdict.reason
    assert verdict.comparison is not None
    assert list(verdict.comparison["sets"]) == ["early/validation"]


def test_a_tie_keeps_the_champion(here: Place) -> None:
    workspace, recipe = here
    verdict = decide(workspace, recipe, workspace.export("phase1"), workspace.export("phase1"))
    assert verdict.alias == CHALLENGER
    assert verdict.reason == "its weights are those of @champion, which stays"


def test_without_a_gate_every_release_takes_the_alias(made: Place) -> None:
    workspace, recipe = made
    release = recipe.release.model_copy(update={"gate": None, "alias": "production"})
    open_ = recipe.model_copy(update={"release": release})
    verdict = decide(workspace, open_, workspace.export("phase2"), workspace.export("phase1"))
    assert verdict.alias == "production" and "gate is off" in verdict.reason


def test_an_export_that_was_changed_is_no_champion(here: Place) -> None:
    workspace, recipe = here
    with open(workspace.export("phase1") / "model.safetensors", "r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\0")
    verdict = decide(workspace, recipe, workspace.export("phase1"), None)
    assert verdict.alias == CHALLENGER
    assert verdict.reason.startswith("it is not safe") and "was changed" in verdict.reason


def test_an_export_with_other_logits_than_its_checkpoint_is_no_champion(here: Place) -> None:
    workspace, recipe = here
    folder = workspace.export("phase1")
    manifest = read_json(folder / MANIFEST)
    network = load_network(workspace.checkpoint("phase1"), "ema")
    with torch.no_grad():
        network.layers[0].mlp.down_proj.weight.mul_(3)  # type: ignore[union-attr, operator]
    write_network(folder, network, {})
    seal(folder, {key: v for key, v in manifest.items() if key not in ("version", "files")})
    verdict = decide(workspace, recipe, folder, None)
    assert verdict.alias == CHALLENGER and "logits differ" in verdict.reason


def test_an_export_of_an_older_checkpoint_is_no_champion(here: Place) -> None:
    workspace, recipe = here
    folder = workspace.checkpoint("phase1")
    network = Transformer(load_network(folder).config, generator=torch.Generator())
    shutil.rmtree(folder)
    place(workspace, "phase1", model=network, ema=network)
    verdict = decide(workspace, recipe, workspace.export("phase1"), None)
    assert verdict.alias == CHALLENGER and "of another checkpoint" in verdict.reason


def test_where_the_checkpoint_is_away_the_export_must_at_least_read_back(here: Place) -> None:
    workspace, recipe = here
    shutil.rmtree(workspace.checkpoint("phase1"))
    assert decide(workspace, recipe, workspace.export("phase1"), None).alias == "champion"


def test_a_model_that_was_trained_on_held_out_text_is_no_champion(here: Place) -> None:
    workspace, recipe = here
    leaked = next(iter(documents.read(workspace.documents / "late", "test")))
    with documents.Writer(workspace.documents / "early") as writer:
        for text in ("something else", leaked.text):
            writer.add(documents.Document.of(text, "early", "train", "{}"))
    verdict = decide(workspace, recipe, workspace.export("phase1"), None)
    assert verdict.alias == CHALLENGER
    assert "1 documents of late/test are in its training text too (early)" in verdict.reason


def test_a_model_that_recites_its_training_text_is_no_champion(here: Place) -> None:
    workspace, recipe = here
    path = workspace.evaluation("phase1", "generation.json")
    for share, alias in ((0.6, CHALLENGER), (0.1, "champion"), (None, "champion")):
        write_json(path, {"samples": [], "measures": {"ema": {"memorised_share": share}}})
        verdict = decide(workspace, recipe, workspace.export("phase1"), None)
        assert verdict.alias == alias
        assert ("60% of its samples is training text" in verdict.reason) == (share == 0.6)
    of_its_kind = {"ema": {"memorised_share": 0.6}, "held_out": {"memorised_share": 0.5}}
    write_json(path, {"measures": of_its_kind})  # such text as people repeat
    assert decide(workspace, recipe, workspace.export("phase1"), None).alias == "champion"
    strict = gated(recipe, max_memorised=0.05)
    write_json(path, {"measures": {"ema": {"memorised_share": 0.1}}})
    assert decide(workspace, strict, workspace.export("phase1"), None).alias == CHALLENGER


@pytest.mark.parametrize("missing", [MANIFEST, "tokenizer.json", "config.json"])
def test_a_champion_that_cannot_be_scored_here_stays_and_the_reason_is_told(
    here: Place, tmp_path: Path, missing: str
) -> None:
    workspace, recipe = here
    old = tmp_path / "old"
    shutil.copytree(workspace.export("phase2"), old)
    (old / missing).unlink()
    verdict = decide(workspace, recipe, workspace.export("phase1"), old)
    assert verdict.alias == CHALLENGER and verdict.comparison is None
    assert "cannot be compared with @champion, which stays" in verdict.reason
    assert missing in verdict.reason


def test_a_champion_from_another_workspace_is_scored_here_and_now(
    here: Place, tmp_path: Path
) -> None:
    workspace, recipe = here
    bad = Transformer(
        replace(load_network(workspace.checkpoint("init")).config, init_std=0.4),
        generator=torch.Generator(),
    )
    place(workspace, "phase2", model=bad, ema=bad)  # evaluated by no one
    export(workspace, recipe, "phase2")
    shutil.copytree(workspace.export("phase2"), tmp_path / "old")
    verdict = decide(
        workspace, gated(recipe, level=0.2), workspace.export("phase1"), tmp_path / "old"
    )
    assert verdict.alias == "champion", verdict.reason


def test_the_sets_are_those_named_or_each_sources_test_set_or_its_validation(here: Place) -> None:
    workspace, recipe = here
    assert gate_sets(workspace, recipe, Gate()) == ["early/test", "late/test"]
    manifest = workspace.tokens("late") / "manifest.json"
    told = read_json(manifest)
    del told["splits"]["test"]
    write_json(manifest, told)
    assert gate_sets(workspace, recipe, Gate()) == ["early/test", "late/validation"]
    assert gate_sets(workspace, recipe, Gate(sets=["late/test"])) == ["late/test"]


def test_a_gate_on_a_set_that_there_is_not_is_an_error_of_the_recipe() -> None:
    release = {"phase": "phase1", "gate": {"sets": ["late/tets"]}}
    with pytest.raises(UserError, match=r"release\.gate\.sets.*did you mean 'late/test'"):
        validate(RECIPE | {"release": release})
    assert validate(RECIPE | {"release": {"phase": "phase1", "gate": None}}).release.gate is None
    with pytest.raises(UserError, match=r"release\.gate\.level"):
        validate(RECIPE | {"release": {"phase": "phase1", "gate": {"level": 0}}})
