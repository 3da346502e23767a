"""Two models on the same documents: the error of a figure, of a difference, and what is said."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tasks.cli import app
from tasks.data.documents import content_id
from tasks.errors import UserError
from tasks.evaluation import contestants
from tasks.evaluation.bootstrap import paired, paired_mean, standard_error
from tasks.evaluation.compare import compare, held_out_texts, texts_of_files
from tasks.evaluation.contestants import at_folder, open_contestant
from tasks.evaluation.documents import HeldOutText, Protocol
from tasks.files import read_json, write_json
from tasks.recipe import Recipe
from tasks.release.export import export
from tasks.training.state import load_network
from tasks.workspace import Workspace
from tests.held_out_workspace import RECIPE, make_compared, make_encoded, place

# The error of a figure.


def test_the_standard_error_is_that_of_the_delta_method() -> None:
    random = np.random.default_rng(1)
    sizes = random.integers(100, 1000, 800)
    nats = 0.7 * sizes + random.normal(0, 40, 800)
    ratio = nats.sum() / sizes.sum()
    by_hand = math.sqrt(((nats - ratio * sizes) ** 2).sum()) / sizes.sum() / math.log(2)
    assert standard_error(nats, sizes) == pytest.approx(by_hand, rel=0.08)


def test_of_two_documents_the_bootstrap_can_be_counted_out() -> None:
    # draws: both the first (1/4), one of each (1/2), both the second (1/4)
    bits = np.array([1.0, 3.0])
    found = standard_error(bits * math.log(2) * 10, np.array([10, 10]))
    assert found == pytest.approx(math.sqrt(0.5), rel=0.05), "variance (1 + 0 + 0 + 1) / 4"


def test_documents_that_all_cost_the_same_leave_no_error_and_one_tells_nothing() -> None:
    sizes = np.array([10, 20, 40])
    assert standard_error(0.5 * sizes, sizes) == pytest.approx(0, abs=1e-12)
    assert standard_error(np.array([5.0]), np.array([9])) is None


def test_long_documents_weigh_by_their_bytes() -> None:
    first, second = np.array([100.0, 1.0]), np.array([90.0, 2.0])
    found = paired(first, second, np.array([1000, 10]))
    assert found.difference == pytest.approx((101 - 92) / 1010 / math.log(2))


# The difference of two models.


def test_pairing_sees_what_the_errors_of_both_hide() -> None:
    random = np.random.default_rng(2)
    sizes = random.integers(100, 1000, 300)
    hard = random.gamma(9, 0.1, 300)  # nats a byte: documents differ far more than models do
    first, second = hard * sizes, (hard + 0.01 + random.normal(0, 0.01, 300)) * sizes
    found, alone = paired(first, second, sizes), standard_error(first, sizes)
    assert alone is not None and found.se < alone / 10
    assert found.p < 0.01 and found.low < found.difference < found.high < 0
    other = paired(second, first, sizes)
    assert other.difference == -found.difference and other.p == found.p


def test_noise_is_called_noise_as_often_as_the_level_promises() -> None:
    random, wrong = np.random.default_rng(3), 0
    for _ in range(200):
        sizes = random.integers(50, 500, 40)
        nats = random.normal(1.0, 0.1, 40) * sizes
        found = paired(nats, nats + random.normal(0, 0.05, 40) * sizes, sizes)
        wrong += found.p < 0.05
    assert 2 <= wrong <= 22, "about 10 of 200 pairs of equal models"


def test_the_same_nats_do_not_differ_and_their_p_is_one() -> None:
    nats, sizes = np.array([3.0, 4.0, 9.0]), np.array([5, 6, 7])
    found = paired(nats, nats, sizes)
    assert (found.difference, found.se, found.low, found.high, found.p) == (0, 0, 0, 0, 1)


@pytest.mark.parametrize("documents", [1, 2, 4, 6, 30])
def test_few_documents_cannot_be_sure_however_alike_they_are(documents: int) -> None:
    sizes = np.full(documents, 100)
    found = paired(np.full(documents, 50.0), np.full(documents, 60.0), sizes)
    assert found.p == pytest.approx(max(2 / 1001, 2 / 2**documents))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 30), st.integers(0, 2**32 - 1))
def test_the_interval_excludes_nothing_where_p_is_above_the_level(n: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 100, n)
    found = paired(random.gamma(2, 9, n), random.gamma(2, 9, n), sizes)
    assert found.low <= found.high and 0 < found.p <= 1
    if not found.low <= 0 <= found.high:
        assert found.p < 0.06 or n < 7
    assert found == paired(*_again(n, seed)), "the draws are seeded"


def _again(n: int, seed: int) -> Any:
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 100, n)
    return random.gamma(2, 9, n), random.gamma(2, 9, n), sizes


def test_the_mean_over_sets_weighs_each_alike_whatever_its_size() -> None:
    small = (np.array([10.0, 12.0]), np.array([9.0, 10.0]), np.array([10, 10]))
    large = (np.full(500, 50.0), np.full(500, 51.0), np.full(500, 100))
    found = paired_mean([small, large])
    gaps = [paired(*one).difference for one in (small, large)]
    assert found.difference == pytest.approx(sum(gaps) / 2)
    assert found.se == pytest.approx(paired(*small).se / 2, rel=0.1), "the large one has none"
    with pytest.raises(ValueError, match="no set"):
        paired_mean([])


# Models, in a workspace.


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Recipe]:
    """phase1 is the untrained network, phase2 one with weights too large, and so much worse."""
    workspace, recipe = make_compared(tmp_path_factory.mktemp("compared"))
    (workspace.root / "dvc.yaml").write_text("stages: {}\n")
    (workspace.root / "recipes").mkdir()
    write_json(workspace.root / "params.yaml", RECIPE)
    return workspace, recipe


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with another tokenizer."""
    root = tmp_path_factory.mktemp("foreign")
    workspace, recipe = make_encoded(root, tokenizer={"vocab_size": 400})
    place(workspace, model=load_network(workspace.checkpoint("init")))
    export(workspace, recipe, "phase1")
    return workspace.export("phase1")


@pytest.fixture()
def unscored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scoring anything now is an error."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a model was scored")

    monkeypatch.setattr(contestants, "score_now", refuse)


def test_two_phases_are_compared_by_what_their_evaluations_recorded(
    compared: tuple[Workspace, Recipe], unscored: None
) -> None:
    workspace, recipe = compared
    good, bad = (open_contestant(name, workspace, recipe) for name in ("phase1", "phase2"))
    texts = held_out_texts(workspace, recipe)
    found = compare(good, bad, texts, workspace, recipe)
    assert [one.name for one in found.sets] == [
        "early/validation", "early/test", "late/validation", "late/test",
    ]  # fmt: skip
    for one in found.sets:
        for phase, figures in (("phase1", one.first), ("phase2", one.second)):
            assert figures == read_json(workspace.evaluation(phase))[one.name]["ema"]
        gap = one.first["bits_per_byte"] - one.second["bits_per_byte"]
        assert one.difference.difference == pytest.approx(gap) and gap < 0
    assert found.better is good and found.notes == []
    assert found.verdict().startswith("phase1 is better than phase2 (")
    turned = compare(bad, good, texts, workspace, recipe)
    assert turned.better is turned.second
    assert turned.overall.difference == -found.overall.difference


def test_an_export_from_elsewhere_is_found_by_its_checkpoint(
    compared: tuple[Workspace, Recipe], unscored: None, tmp_path: Path
) -> None:
    workspace, recipe = compared
    shutil.copytree(workspace.export("phase1"), tmp_path / "fetched")
    fetched = open_contestant(str(tmp_path / "fetched"), workspace, recipe)
    bad = open_contestant("phase2", workspace, recipe)
    texts = held_out_texts(workspace, recipe, ["late/test"])
    found = compare(fetched, bad, texts, workspace, recipe)
    assert [one.name for one in found.sets] == ["late/test"]


def test_scoring_now_gives_what_was_recorded(compared: tuple[Workspace, Recipe]) -> None:
    workspace, recipe = compared
    good = open_contestant("phase1", workspace, recipe)
    texts = held_out_texts(workspace, recipe)
    recorded, _ = contestants.sums_on(good, texts, Protocol(32, 32), workspace)
    now = contestants.score_now(good, texts, Protocol(32, 32))
    for name, sums in recorded.items():
        np.testing.assert_allclose(now[name].nats, sums.nats, rtol=1e-6)
        assert now[name].tokens.tolist() == sums.tokens.tolist()


def test_another_protocol_or_text_is_scored_anew_and_the_text_is_told(
    compared: tuple[Workspace, Recipe], unscored: None
) -> None:
    workspace, recipe = compared
    good = open_contestant("phase1", workspace, recipe)
    [text] = held_out_texts(workspace, recipe, ["late/test"])
    with pytest.raises(AssertionError, match="was scored"):
        contestants.sums_on(good, [text], Protocol(32, 16), workspace)
    changed = HeldOutText("late/test", (*text.texts[:-1], "Another text."))
    with pytest.raises(AssertionError, match="was scored"):
        contestants.sums_on(good, [changed], Protocol(32, 32), workspace)


def test_a_set_of_another_hash_is_never_put_beside_without_saying_so(
    compared: tuple[Workspace, Recipe],
) -> None:
    workspace, recipe = compared
    good, bad = (open_contestant(name, workspace, recipe) for name in ("phase1", "phase2"))
    [text] = held_out_texts(workspace, recipe, ["late/test"])
    changed = HeldOutText("late/test", (*text.texts[:-1], "Another text."))
    found = compare(good, bad, [changed], workspace, recipe)
    assert found.sets[0].fingerprint == changed.fingerprint
    assert len(found.notes) == 2
    assert f"another text of late/test ({text.fingerprint[:12]}, not" in found.notes[0]


def test_models_with_other_tokenizers_compare_on_the_same_text(
    compared: tuple[Workspace, Recipe], foreign: Path
) -> None:
    workspace, recipe = compared
    bad, other = open_contestant("phase2", workspace, recipe), at_folder(foreign, "other")
    texts = held_out_texts(workspace, recipe)
    found = compare(other, bad, texts, workspace, recipe)
    assert not found.same_tokenizer and found.better is other
    for one, text in zip(found.sets, texts, strict=True):
        assert one.text_bytes == sum(len(t.encode()) for t in text.texts)
        loss = pytest.approx(math.log(400), rel=0.02)
        assert one.first["loss"] == loss, "an untrained network with its own 400 ids"


def test_the_shorter_context_holds_for_both(
    compared: tuple[Workspace, Recipe], foreign: Path
) -> None:
    workspace, recipe = compared
    bad, other = open_contestant("phase2", workspace, recipe), at_folder(foreign, "other")
    longer = replace(other, config=replace(other.config, max_seq_len=64))
    assert contestants.protocol_between(bad, longer, workspace, recipe) == Protocol(32, 32)
    strided = recipe.model_copy(
        update={"evaluation": recipe.evaluation.model_copy(update={"stride": 24})}
    )
    found = contestants.protocol_between(bad, longer, workspace, strided, 16)
    assert found == Protocol(16, 16)
    texts = held_out_texts(workspace, recipe, ["late/test"])
    with pytest.raises(UserError, match="sees 32 tokens at most, not 40"):
        compare(bad, other, texts, workspace, recipe, context=40)


def test_files_of_ones_own_are_read_as_a_sources_files_are(tmp_path: Path) -> None:
    plain, lines = tmp_path / "some [1].txt", tmp_path / "more.jsonl"
    plain.write_text("A first\nparagraph.\n\nA second.\n")
    lines.write_text('{"text": "one"}\n{"text": "two"}\n')
    first, second = texts_of_files([plain, lines])
    assert first.texts == ("A first\nparagraph.", "A second.") and first.name == str(plain)
    assert second.texts == ("one", "two")
    assert second.ids.tolist() == [content_id(text).encode() for text in ("one", "two")]
    [by_lines] = texts_of_files([plain], "lines")
    assert len(by_lines.texts) == 3
    with pytest.raises(UserError, match="no file"):
        texts_of_files([tmp_path / "none.txt"])
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match="no text in it"):
        texts_of_files([tmp_path / "empty.txt"])


# The command.


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["compare", *arguments])


def test_the_command_says_who_is_better_on_what(
    compared: tuple[Workspace, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(compared[0].root)
    done = run("phase2", "phase1")
    assert done.exit_code == 0, done.output
    assert "phase1 is better than phase2" in done.stdout
    assert "context of 32 tokens, stride 32" in done.stdout
    for name in ("early/validation", "late/test", "ppl/word A", "ppl/token B", "mean of the sets"):
        assert name in done.stdout
    told = read_json(compared[0].evaluation("phase1", "details.json"))["sets"]["late/test"][
        "fingerprint"
    ]
    assert told[:12] in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_the_command_speaks_json_and_takes_files_outside_a_project(
    compared: tuple[Workspace, Recipe],
    foreign: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.txt").write_text("\n\n".join(f"Paragraph number {i}." for i in range(20)))
    ours = str(compared[0].export("phase1"))
    done = run(ours, str(foreign), "--text", "own.txt", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["same_tokenizer"] is False and told["sets"]["own.txt"]["documents"] == 20
    assert {"difference", "se", "low", "high", "p", "fingerprint"} <= set(told["sets"]["own.txt"])
    shown = run(ours, str(foreign), "--text", "own.txt").stdout
    assert "tokenizers differ" in shown and "ppl/token" not in shown
    same = json.loads(run(ours, ours, "--text", "own.txt", "--json").stdout)
    assert same["overall"] == {"difference": 0, "se": 0, "low": 0, "high": 0, "p": 1}
    assert "do not differ at all" in same["verdict"]


def test_the_commands_errors_are_words(
    compared: tuple[Workspace, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def error(*arguments: str) -> str:
        done = run(*arguments)
        assert isinstance(done.exception, UserError), done.output
        return str(done.exception)

    monkeypatch.chdir(compared[0].root)
    assert "did you mean 'phase1'" in error("phas1", "phase2")
    assert "did you mean 'late/test'" in error("phase1", "phase2", "--set", "late/tets")
    assert "exclude each other" in error("phase1", "phase2", "--set", "a/test", "--text", "x")
    assert "did you mean 'lines'" in error("phase1", "phase2", "--text", "x", "--format", "line")
    assert "between 0 and 1" in error("phase1", "phase2", "--level", "2")
    monkeypatch.chdir(tmp_path)
    ours = str(compared[0].export("phase1"))
    assert "no held-out text" in error(ours, ours)
    assert "there is no folder phase1" in error("phase1", ours)
    shutil.copytree(ours, tmp_path / "broken")
    (tmp_path / "broken/model.safetensors").write_bytes(b"x")
    assert "model.safetensors has 1 bytes" in error(ours, str(tmp_path / "broken"))
