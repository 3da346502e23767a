"""The order of the stages is DVC's own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import dag, walk
from tasks import recipe
from tasks.errors import USAGE, UserError
from tasks.stage import stages
from tests import flows_toy


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A toy that `dvc repro` has run, and the order in which it ran the stages."""
    root = flows_toy.make(tmp_path_factory.mktemp("toy"))
    return root, re.findall(r"Running stage '(.+)':", flows_toy.run(root, "dvc", "repro"))


@pytest.fixture
def order(toy: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The toy as current folder; the order in which DVC ran it."""
    root, ran = toy
    monkeypatch.chdir(root)
    return ran


@pytest.fixture
def seed_changed(order: list[str]) -> Iterator[None]:
    flows_toy.edit_params(Path(), "seed: 1", "seed: 2")
    yield
    flows_toy.edit_params(Path(), "seed: 2", "seed: 1")


def test_the_order_is_the_one_in_which_dvc_repro_runs(order: list[str]) -> None:
    assert dag.load().stages == order
    assert sorted(order) == sorted(stages(recipe.load()))  # as the work knows them


def test_a_target_brings_all_it_stands_on_upstream_first_and_no_more(
    order: list[str],
) -> None:
    story = dag.load()
    chosen = story.up_to("train@phase1")
    assert chosen[-1] == "train@phase1"
    assert {"download@stdlib", "dedup", "init", "mix@phase1"} <= set(chosen)
    assert not {"train@phase2", "mix@phase2", "export@phase1", "report"} & set(chosen)
    for i, stage in enumerate(chosen):
        assert set(story.graph.successors(stage)) <= set(chosen[:i])


def test_a_name_stands_for_all_its_addresses(order: list[str]) -> None:
    pipeline = dag.load()
    assert pipeline.expand(["train"]) == ["train@phase1", "train@phase2"]
    assert pipeline.names("download") == ["stdlib", "packages"]
    after = pipeline.after("train")
    assert {"export@phase1", "export@phase2", "evaluate@phase1", "register"} <= set(after)
    assert after[-1] == "report" and not {"train@phase2", "mix@phase2", "init"} & set(after)


def test_an_unknown_phase_is_refused_with_those_there_are(order: list[str]) -> None:
    with pytest.raises(UserError, match="no phase 'phase3'") as caught:
        dag.load().address("train", "phase3")
    assert caught.value.exit_code == USAGE
    assert caught.value.hint is not None and "phase1, phase2" in caught.value.hint


def test_an_unknown_stage_is_refused_with_the_nearest(order: list[str]) -> None:
    with pytest.raises(UserError, match="did you mean 'dedup'"):
        dag.load().up_to("dedupe")


def test_after_a_run_nothing_is_stale(order: list[str]) -> None:
    assert dag.stale(order) == []


def test_stale_is_what_dvc_status_lists(order: list[str], seed_changed: None) -> None:
    listed = json.loads(flows_toy.run(Path(), "dvc", "status", "--json"))
    assert "dedup" in listed and "download@stdlib" not in listed
    assert dag.stale(order) == [stage for stage in order if stage in listed]


def test_a_folder_that_is_no_project_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no dvc\.yaml"):
        dag.load()
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    with pytest.raises(UserError, match="not a DVC project"):
        dag.load()


def test_a_busy_dvc_does_not_undo_a_walk_that_went_well(monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(addresses: object) -> list[str]:
        raise UserError("held by process 7", exit_code=75)

    monkeypatch.setattr(dag, "stale", busy)
    assert walk._left_to_do(["report"]).endswith("is not known: held by process 7")
    monkeypatch.setattr(dag, "stale", list)
    assert walk._left_to_do(["export@a", "report"]).startswith("out of date now: export@a, report")
    assert walk._left_to_do([]) == ""
