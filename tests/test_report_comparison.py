"""Runs stand beside each other only where they measure the same thing; the rest is said."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dvc.repo import Repo
from typer.testing import CliRunner

from tasks import recipe as recipes
from tasks.cli import app
from tasks.errors import BAD_DATA, NO_INPUT, UserError
from tasks.files import read_json, write_json
from tasks.report.comparison import compare_runs, differing
from tasks.report.comparison_page import markdown, page
from tasks.report.report import report
from tasks.report.runs import Run, open_run, open_runs
from tests.places import ROOT
from tests.release_workspace import BITS
from tests.report_workspace import make_whole
from tests.test_report import Page

BETTER = 0.05  # bits per byte


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs") / "base"
    report(*make_whole(root))
    return root


@pytest.fixture
def two(original: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two runs, each in its folder; the second is wider, and better everywhere by ``BETTER``."""
    base, wide = tmp_path / "base", tmp_path / "wide"
    shutil.copytree(original, base)
    shutil.copytree(original, wide)
    text = (wide / "params.yaml").read_text()
    assert "d_model: 128" in text
    (wide / "params.yaml").write_text(text.replace("d_model: 128", "d_model: 192"))
    for phase in BITS:
        improve(wide, phase)
    write(wide)
    return base, wide


def improve(root: Path, phase: str) -> None:
    """Lower every figure of a phase, and each document's nats with it."""
    path = root / "evaluation" / f"{phase}.json"
    figures = read_json(path)
    for by_weights in figures.values():
        for scores in by_weights.values():
            scores["bits_per_byte"] -= BETTER
    write_json(path, figures)
    with np.load(path.with_suffix(".documents.npz")) as found:
        arrays = dict(found)
    for key in [key for key in arrays if ":nats:" in key]:
        sizes = arrays[key.split(":nats:")[0] + ":bytes"]
        wobble = np.sin(np.arange(len(sizes)))  # the documents do not gain alike
        arrays[key] -= (
            BETTER * math.log(2) * sizes.sum() * (d := sizes * (1 + wobble / 9)) / d.sum()
        )
    with open(path.with_suffix(".documents.npz"), "wb") as file:
        np.savez(file, **arrays)


def write(root: Path) -> None:
    from tasks.workspace import Workspace

    report(Workspace(root), recipes.load(root / "params.yaml"))


def change(root: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edit a run's report.json."""
    path = root / "reports/report.json"
    facts = read_json(path)
    edit(facts)
    write_json(path, facts)


def compared(*roots: Path) -> dict[str, Any]:
    return compare_runs(open_runs([str(root) for root in roots], ROOT))


def test_only_what_differs_is_listed_as_a_difference(two: tuple[Path, Path]) -> None:
    found = compared(*two)
    assert found["settings"] == {"model.d_model": [128, 192]}
    assert [run["label"] for run in found["runs"]] == ["base", "wide"]
    first, second = (run["parameters"]["total"] for run in found["runs"])
    assert second > first


def test_a_setting_that_one_run_lacks_is_a_difference() -> None:
    runs = [{"settings": {"model": {"a": 1, "b": {}}}}, {"settings": {"model": {"a": True}}}]
    assert differing(runs) == {"model.a": [1, True], "model.b": [{}, None]}


def test_figures_differ_by_what_was_made_better_and_their_error_is_paired(
    two: tuple[Path, Path],
) -> None:
    for scores in compared(*two)["figures"].values():
        base, wide = scores
        assert "difference" not in base
        assert wide["difference"] == pytest.approx(-BETTER)
        assert wide["paired"]
        apart = math.hypot(base["bits_per_byte_se"], wide["bits_per_byte_se"])
        assert 0 < wide["se"] < apart / 5, "documents that are hard are hard for both"


def test_without_the_documents_the_error_is_of_two_figures_and_marked(
    two: tuple[Path, Path],
) -> None:
    base, wide = two
    (wide / "evaluation/phase2.documents.npz").unlink()
    scores = compared(base, wide)["figures"]["stdlib/test"]
    assert not scores[1]["paired"]
    errors = [one["bits_per_byte_se"] for one in scores]
    assert scores[1]["se"] == pytest.approx(math.hypot(*errors))
    assert "~" in markdown(compared(base, wide)).split("| stdlib/test")[1].split("\n")[0]


def test_report_files_compare_as_their_folders_do(two: tuple[Path, Path]) -> None:
    files = [root / "reports/report.json" for root in two]
    by_file, by_folder = compared(*files), compared(*two)
    assert by_file["settings"] == by_folder["settings"]
    assert [run["label"] for run in by_file["runs"]] == ["base", "wide"]
    for name, scores in by_file["figures"].items():
        assert scores[1]["difference"] == by_folder["figures"][name][1]["difference"]


def test_a_run_that_wrote_no_report_is_read_from_its_stages(two: tuple[Path, Path]) -> None:
    base, wide = two
    expected = compared(base, wide)
    for name in ("report.json", "registration.json"):
        (wide / "reports" / name).unlink()
    assert compared(base, wide)["figures"] == expected["figures"]


def test_another_text_under_the_same_name_is_not_compared_and_that_is_said(
    two: tuple[Path, Path],
) -> None:
    base, wide = two
    change(wide, lambda facts: facts["sets"]["stdlib/test"].update(fingerprint="a" * 64))
    found = compared(base, wide)
    assert found["figures"]["stdlib/test"][1] is None
    assert found["figures"]["packages/test"][1] is not None
    assert "stdlib/test of wide is another text" in " ".join(found["notes"])
    hidden = f"{BITS['phase2']['stdlib/test'][1] - BETTER:.4f}"
    for text in (page(found), markdown(found)):
        assert "another text" in text and hidden not in text


def test_per_token_figures_and_curves_need_the_same_tokenizer(two: tuple[Path, Path]) -> None:
    base, wide = two
    both = compared(base, wide)
    assert "perplexity, a token" in markdown(both)
    assert "Training loss" in Page(page(both)).text
    change(wide, lambda facts: facts["lineage"].update(tokenizer="b" * 64))
    found = compared(base, wide)
    assert "perplexity" not in found["figures"]["stdlib/test"][1]
    assert "bits_per_byte" in found["figures"]["stdlib/test"][1]
    assert "word_perplexity" in found["figures"]["stdlib/test"][1]
    assert "The tokenizers differ" in " ".join(found["notes"])
    assert "perplexity, a token" not in markdown(found)
    assert "Training loss" not in Page(page(found)).text


def test_runs_that_were_not_scored_alike_have_no_difference(two: tuple[Path, Path]) -> None:
    base, wide = two
    change(wide, lambda facts: facts["protocols"]["phase2"].update(stride=64))
    found = compared(base, wide)
    assert all("difference" not in scores[1] for scores in found["figures"].values())
    assert "not scored alike" in " ".join(found["notes"])


def test_a_set_that_one_run_lacks_is_said(two: tuple[Path, Path]) -> None:
    base, wide = two
    change(base, lambda facts: facts["sets"].pop("packages/test"))
    change(base, lambda facts: facts["figures"]["phase2"].pop("packages/test"))
    found = compared(base, wide)
    assert found["sets"]["packages/test"]["reference"] == 1
    assert found["figures"]["packages/test"][0] is None
    assert "base was not measured on packages/test." in found["notes"]


def test_the_page_of_a_comparison_fetches_nothing(two: tuple[Path, Path]) -> None:
    source = page(compared(*two))
    shown = Page(source)
    assert not {"script", "link", "iframe", "img"} & set(shown.tags)
    for reference in ("http://", "https://", "url(", "@import"):
        assert reference not in source
    for title in ("Held-out text", "Curves", "Settings that differ", "Speed", "Training loss"):
        assert title in shown.text


def test_one_run_is_no_comparison_and_two_of_the_same_are_refused(two: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match="two runs"):
        compared(two[0])
    with pytest.raises(UserError, match="named twice"):
        compared(two[0], two[0])


@pytest.mark.parametrize(
    ("content", "words"),
    [('{"kind": "else"}', "not a report"), ("[]", "not a report"), ("{", "not valid JSON"),
     ('{"kind": "phasewise report", "version": 99}', "version 99")],
)  # fmt: skip
def test_a_file_that_is_no_report_is_refused_by_name(
    tmp_path: Path, content: str, words: str
) -> None:
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(UserError, match=words) as caught:
        open_run(str(path), ROOT)
    assert caught.value.exit_code == BAD_DATA and str(path) in str(caught.value)


def test_a_run_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in (str(tmp_path / "empty"), str(tmp_path / "no.json")):
        with pytest.raises(UserError) as caught:
            open_run(name, ROOT)
        assert caught.value.exit_code == NO_INPUT and name in str(caught.value)


@pytest.mark.parametrize("form", ["html", "md", "json"])
def test_the_command_writes_the_form_that_the_name_says(two: tuple[Path, Path], form: str) -> None:
    out = two[0].parent / f"both.{form}"
    done = CliRunner().invoke(app, ["report", "--compare", *map(str, two), "--out", str(out)])
    assert done.exit_code == 0, done.output
    text = out.read_text()
    assert "d_model" in text
    if form == "json":
        assert json.loads(text)["kind"] == "phasewise comparison"


def test_the_command_writes_one_report_anew_from_its_json(two: tuple[Path, Path]) -> None:
    base = two[0]
    out = base.parent / "again.html"
    done = CliRunner().invoke(app, ["report", str(base / "reports/report.json"), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert out.read_text() == (base / "reports/report.html").read_text()


@pytest.mark.parametrize("form", ["html", "md", "json"])
def test_a_report_to_pass_on_quotes_no_document(two: tuple[Path, Path], form: str) -> None:
    base, _ = two
    out = base / f"public.{form}"
    whole = (base / f"reports/report.{form}").read_text()
    done = CliRunner().invoke(app, ["report", str(base), "--no-examples", "--out", str(out)])
    assert done.exit_code == 0, done.output
    quote = "stdlib too_short 1"  # how the fixture's documents begin
    assert quote in whole.replace("\\", "")
    assert quote not in out.read_text().replace("\\", "")


def test_the_command_refuses_two_runs_without_compare_and_an_unknown_form(
    two: tuple[Path, Path],
) -> None:
    for words in (["report", *map(str, two)], ["report", str(two[0]), "--out", "x.pdf"]):
        with pytest.raises(UserError, match="comparison|no form"):
            CliRunner().invoke(app, words, catch_exceptions=False)


def test_a_revision_is_read_from_what_dvc_keeps_of_it(original: Path, tmp_path: Path) -> None:
    """The report of a tag, though the working tree holds another by now."""
    project = tmp_path / "project"
    (project / "reports").mkdir(parents=True)
    shutil.copy(original / "reports/report.json", project / "reports/report.json")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "--quiet"], cwd=project, check=True)
    with Repo.init(str(project)) as kept:
        kept.add([str(project / "reports/report.json")])
    for words in (["add", "."], ["commit", "--quiet", "-m", "one"], ["tag", "first"]):
        subprocess.run([*git, *words], cwd=project, check=True)
    (project / "reports/report.json").unlink()
    run = open_run("first", project)
    assert run == Run("first", read_json(original / "reports/report.json"))
    with pytest.raises(UserError, match="nowhere is neither a folder") as caught:
        open_run("nowhere", project)
    assert caught.value.exit_code == NO_INPUT
