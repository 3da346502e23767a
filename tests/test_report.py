"""The report says what the stages wrote, all of it, and nothing that it did not read."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import BAD_DATA, NO_INPUT, UserError
from tasks.files import read_json, write_json
from tasks.ledger import Ledger, read_ledgers, write_ledgers
from tasks.recipe import Recipe
from tasks.release.export import add_evaluation
from tasks.report.account import ledger_summary, read_account
from tasks.report.curves import read_all
from tasks.report.facts import gather, read_report
from tasks.report.markdown import markdown
from tasks.report.page import page
from tasks.report.plots import Line, chart, smooth, standalone, thin, ticks
from tasks.report.report import report
from tasks.report.summary import mlflow_command, summary
from tasks.report.tables import change
from tasks.workspace import Workspace
from tests.places import ROOT
from tests.release_workspace import BATCH_TOKENS, BITS, STEPS, make_workspace, write_export
from tests.report_workspace import (
    FIVE_GRAM,
    PROMPTS,
    REASON,
    UNIGRAM,
    make_whole,
    write_registration,
)

HOSTILE = "</style><script>alert(1)</script> [x](https://example.org) \x00\x1b |`*_"
finite = st.floats(-1e9, 1e9, allow_nan=False)


@pytest.fixture
def finished(tmp_path: Path) -> tuple[Workspace, Recipe]:
    workspace, recipe = make_workspace(tmp_path, tracked=False)
    write_registration(workspace)
    return workspace, recipe


@pytest.fixture
def whole(tmp_path: Path) -> tuple[Workspace, Recipe]:
    """A run with all that can be measured of one."""
    return make_whole(tmp_path)


def written(workspace: Workspace) -> tuple[str, str]:
    """The page and the Markdown."""
    folder = workspace.report
    return (folder / "report.html").read_text(), (folder / "report.md").read_text()


class Page(HTMLParser):
    """Collects the tags and attributes of a page, and the text that a reader sees."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def test_every_figure_of_the_evaluation_stands_in_the_report(
    finished: tuple[Workspace, Recipe],
) -> None:
    report(*finished)
    page, markdown = written(finished[0])
    for by_set in BITS.values():
        for pair in by_set.values():
            for value in pair:
                assert f"{value:.4f}" in page and f"{value:.4f}" in markdown


def test_the_best_figure_of_each_held_out_set_is_marked(
    finished: tuple[Workspace, Recipe],
) -> None:
    report(*finished)
    page, markdown = written(finished[0])
    for name in BITS["phase1"]:
        least = min(value for by_set in BITS.values() for value in by_set[name])
        assert f'best">{least:.4f}<' in page
        assert f"**{least:.4f}**" in markdown
    assert page.count('best">') == len(BITS["phase1"])


def test_the_verdict_names_version_alias_and_figures(finished: tuple[Workspace, Recipe]) -> None:
    report(*finished)
    expected = (
        "demo version 7 (@champion), the EMA weights after phase2: 1.9293 bits per byte on "
        "stdlib/test, 1.7474 on packages/test"
    )
    page, markdown = written(finished[0])
    assert expected in Page(page).text and expected in markdown


def test_the_ledger_leads_from_download_to_trained_token(
    finished: tuple[Workspace, Recipe],
) -> None:
    report(*finished)
    page, markdown = written(finished[0])
    seen = Page(page).text
    for figure in ("1,200", "1,170", "1,159", "3,400", "3,370", "3,359", "70,123", "70,000"):
        assert figure in seen and figure in markdown
    assert "too short: 23 (2.3 kB)" in seen and "near duplicate: 11" in markdown
    assert "4,600 documents (460 kB) came in, 82 were dropped, 4,518" in seen
    assert "140,246 training tokens; the phases trained on 280,000, repeats counted" in seen
    assert "Every stage balances" in seen and "Every stage balances" in markdown
    assert "stdlib too_short 0 <i>" in seen  # an example of what was dropped


def test_a_stage_that_lost_a_document_on_the_way_is_named(
    finished: tuple[Workspace, Recipe],
) -> None:
    workspace, recipe = finished
    path = workspace.tokens("packages") / "ledger.json"
    [book] = read_ledgers(path)
    fewer = Ledger("encode", "packages")
    for _ in range(book.kept.documents - 1):
        fewer.keep(98)
    write_ledgers(path, [fewer])
    assert read_account(workspace, recipe).sources[1].breaks == ["encode"]
    report(workspace, recipe)
    for text in (*written(workspace), ledger_summary(workspace, recipe)):
        assert "NOT balanced: encode of packages" in text
        assert "Every stage balances" not in text


def test_a_ledger_that_was_changed_is_refused(finished: tuple[Workspace, Recipe]) -> None:
    path = finished[0].clean("stdlib") / "ledger.json"
    content = json.loads(path.read_text())
    content[0]["out"]["documents"] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="does not balance") as caught:
        report(*finished)
    assert caught.value.exit_code == BAD_DATA
    assert str(path) in str(caught.value)


def test_the_page_fetches_nothing_and_runs_nothing(finished: tuple[Workspace, Recipe]) -> None:
    report(*finished)
    source = written(finished[0])[0]
    page = Page(source)
    assert not {"script", "link", "iframe", "object", "img", "base"} & set(page.tags)
    assert all(v and v.startswith("#") for k, v in page.attributes if k in ("href", "src"))
    assert not any(k.startswith("on") for k, _ in page.attributes)
    for reference in ("http://", "https://", "url(", "@import"):
        assert reference not in source
    assert "default-src 'none'" in source


def test_hostile_text_of_corpus_and_model_is_shown_as_text(
    finished: tuple[Workspace, Recipe],
) -> None:
    workspace = finished[0]
    path = workspace.evaluation("phase2", "generation.json")
    write_json(path, {"samples": [{"prompt": HOSTILE, "text": HOSTILE, "weights": "ema"}]})
    path = workspace.clean("stdlib") / "ledger.json"
    [book] = read_ledgers(path)
    book.examples["too_short"] = [HOSTILE]
    write_ledgers(path, [book])
    report(*finished)
    source, markdown = written(workspace)
    page = Page(source)
    assert "script" not in page.tags
    assert (
        page.text.count("<script>alert(1)</script>") == 4
    )  # prompt, as a heading too; text; example
    assert not {"\x00", "\x1b"} & set(source + markdown)
    assert markdown.count(r"\<script\>alert(1)\</script\> \[x\](https://example.org)") == 3


def test_the_curves_hold_every_step_of_every_phase_on_one_axis(
    finished: tuple[Workspace, Recipe],
) -> None:
    report(*finished)
    with open(finished[0].report / "curves.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["phase"] for row in rows] == ["phase1"] * 40 + ["phase2"] * 20
    tokens = [int(row["total_tokens"]) for row in rows]
    assert tokens == [n * BATCH_TOKENS for n in range(1, sum(STEPS.values()) + 1)]
    assert all(float(row["loss"]) > 3 and float(row["lr"]) > 0 for row in rows)


def test_the_same_files_give_the_same_report(finished: tuple[Workspace, Recipe]) -> None:
    report(*finished)
    first = written(finished[0])
    report(*finished)
    assert written(finished[0]) == first


def test_page_and_markdown_are_drawn_from_the_json_alone(whole: tuple[Workspace, Recipe]) -> None:
    report(*whole)
    facts = read_report(whole[0].report / "report.json")
    assert (page(facts), markdown(facts)) == written(whole[0])
    told = (ROOT / "docs/reports.md").read_text()
    for key in facts:
        assert f"| `{key}` |" in told, "every key is documented"


def test_each_figure_stands_beside_what_it_must_beat(whole: tuple[Workspace, Recipe]) -> None:
    report(*whole)
    _, markdown = written(whole[0])
    [row] = re.findall(r"\| stdlib/test \| 1.9293 .*", markdown)
    own, parent, champion, five_gram, unigram = row.split("|")[2:7]
    error = read_json(whole[0].evaluation("phase2"))["stdlib/test"]["ema"]["bits_per_byte_se"]
    assert own.strip() == f"1.9293 (± {error:.4f})"
    assert parent.strip().startswith("2.2022 (▼ −0.2729 ± 0.0")
    assert champion.strip() == "1.9678 (▼ −0.0385 ± 0.0072)"
    assert five_gram.strip() == f"{FIVE_GRAM} (▼ {1.9293 - FIVE_GRAM:+.4f})".replace("-", "−")
    assert unigram.strip().startswith(str(UNIGRAM))
    assert "@champion before, version 6" in markdown and REASON in markdown


def test_what_a_phase_forgot_is_marked_as_worse(whole: tuple[Workspace, Recipe]) -> None:
    report(*whole)
    source, markdown = written(whole[0])
    [row] = re.findall(r"\| packages/test \| 1.7171 .*", markdown)
    assert re.search(r"1\.7474 \(± [\d.]+\) \(▲ \+0\.0403 ± [\d.]+\)", row)
    assert re.search(r'<small class="bad">▲&nbsp;\+0\.0403', source)
    assert 'class="number shade4"' in source, "the further above the best, the darker"


def test_a_change_within_its_error_is_not_coloured() -> None:
    assert change(-0.01, 0.006)[1] == change(0.01, 0.006)[1] == ""
    assert (change(-0.01, 0.004)[1], change(0.01, 0.004)[1]) == ("good", "bad")


def test_samples_of_all_phases_stand_side_by_side(whole: tuple[Workspace, Recipe]) -> None:
    report(*whole)
    source = written(whole[0])[0]
    for prompt in PROMPTS:
        part = source.split(f"“{prompt}”")[1].split("<details>")[0]
        assert "phase1 wrote this with ema" in part and "phase2 wrote this with ema" in part
        assert "with raw" not in part, "folded"
    assert Page(source).text.count("with raw weights") == 2 * 2 * len(PROMPTS)


def test_benchmarks_stand_beside_chance_and_speed_beside_its_machine(
    whole: tuple[Workspace, Recipe],
) -> None:
    report(*whole)
    _, markdown = written(whole[0])
    assert "| blimp | accuracy | 0.613 ± 0.017 | 0.500 | yes | 800 |" in markdown
    assert "| hellaswag | accuracy | 0.256 ± 0.015 | 0.250 | no | 800 |" in markdown
    assert "| phase2 | 8 | 41,234 | 876 | 123 MB |" in markdown
    assert "Measured on 2 cores of a test." in markdown
    assert "| phase2 held out | 0.41 |" in markdown and "spans of 50 tokens" in markdown


def test_what_was_not_measured_is_left_out(finished: tuple[Workspace, Recipe]) -> None:
    report(*finished)
    for text in written(finished[0]):
        for title in (
            "Benchmarks",
            "Speed of generation",
            "Measured of",
            "unigram",
            "champion before",
        ):
            assert title not in text


def test_a_model_that_was_not_given_the_alias_says_why(whole: tuple[Workspace, Recipe]) -> None:
    found = read_json(whole[0].registration)
    more = {"verdict": "challenger", "alias": "challenger", "champion": "6", "reason": "worse"}
    write_json(whole[0].registration, found | more)
    report(*whole)
    for text in written(whole[0]):
        assert "It was not given @champion (version 6 keeps it): worse." in text


def test_the_card_tells_all_that_was_measured(whole: tuple[Workspace, Recipe]) -> None:
    workspace, recipe = whole
    folder = write_export(workspace, recipe, "phase2")
    facts = gather(workspace, recipe, read_all(workspace, recipe), None)
    add_evaluation(folder, recipe, facts["figures"]["phase2"], facts)
    card = ModelCard((folder / "README.md").read_text())
    results = {(r.dataset_name, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert results["stdlib/test", "bits_per_byte"] == 1.9293
    assert results["blimp", "accuracy"] == 0.6125
    assert card.data.license == "apache-2.0" and card.data.library_name == "transformers"
    text = card.text
    for told in ("1,200 (120 kB)", "too short 23, near duplicate 11, not english 7", "70,123",
                 "1.9293 (± ", "▲ +0.0403 ±", str(FIVE_GRAM), "0.613 ± 0.017", "876",
                 "PSF-2.0", "phasewise gguf <folder>", "not trained to follow instructions",
                 "Not measured here: bias, toxicity, truthfulness."):  # fmt: skip
        assert told in text, told
    assert "champion before" not in text, "the card does not tell what came after it"


def test_a_phase_without_an_average_has_no_column_for_it(
    finished: tuple[Workspace, Recipe],
) -> None:
    workspace = finished[0]
    path = workspace.evaluation("phase1")
    figures = json.loads(path.read_text())
    write_json(path, {name: {"raw": scores["raw"]} for name, scores in figures.items()})
    report(*finished)
    markdown = written(workspace)[1]
    assert "| Held-out set | phase1 raw | phase2 raw | phase2 ema |" in markdown


@pytest.mark.parametrize(
    "path",
    [
        "reports/registration.json",
        "evaluation/phase1.json",
        "evaluation/phase2.details.json",
        "metrics/phase1/history.jsonl",
        "metrics/phase2/summary.json",
        "data/raw/stdlib/ledger.json",
        "data/tokens/packages/manifest.json",
        "data/mix/phase1/mix.json",
    ],
)
def test_what_an_earlier_stage_has_not_written_is_named(
    finished: tuple[Workspace, Recipe], path: str
) -> None:
    (finished[0].root / path).unlink()
    with pytest.raises(UserError, match="is missing") as caught:
        report(*finished)
    assert caught.value.exit_code == NO_INPUT
    assert path in str(caught.value)
    assert not (finished[0].report / "report.html").exists()


def test_the_terminal_is_told_the_model_its_figures_and_where_to_look(
    finished: tuple[Workspace, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    told = summary(*finished)
    assert "demo version 7 as models:/demo@champion" in told
    for name, (raw, ema) in BITS["phase2"].items():
        [line] = [line for line in told.splitlines() if line.strip().startswith(name)]
        assert line.split()[1:] == [f"{raw:.4f}", f"{ema:.4f}"]
    assert str(finished[0].report / "report.html") in told
    assert "JOB_EXECUTION=false" in told and "--host 127.0.0.1" in told and "make up" in told
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@host:5000")
    assert mlflow_command() == "https://host:5000"


def test_the_terminal_is_told_in_words_that_nothing_is_registered(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing is registered yet") as caught:
        summary(*make_workspace(tmp_path, tracked=False))
    assert caught.value.exit_code == NO_INPUT


def test_the_summary_of_the_ledgers_counts_what_was_dropped(
    finished: tuple[Workspace, Recipe],
) -> None:
    lines = ledger_summary(*finished).splitlines()
    assert "1,200 documents (120 kB) -> 1,159 (114 kB)" in lines[1]
    assert "too short 23, near duplicate 11, not english 7" in lines[1]
    assert "140K training tokens; trained on 140K in phase1, 140K in phase2" in lines[3]


def test_neither_report_nor_summary_loads_torch_or_mlflow() -> None:
    code = (
        "import sys, tasks.report.report, tasks.report.page, tasks.report.summary\n"
        "print({'torch', 'mlflow', 'pandas', 'numpy', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "set()"


@given(finite, finite)
def test_ticks_are_few_rising_and_span_the_values(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    if high - low < 1e-6 * max(abs(low), abs(high)) or high - low < 1e-6:
        return
    marks = ticks(low, high)
    step = marks[1] - marks[0]
    assert 2 <= len(marks) <= 8
    assert all(after > before for before, after in pairwise(marks))
    assert marks[0] <= low + step * 1e-6 and marks[-1] >= high - step * 1e-6


@given(st.lists(finite, min_size=1, max_size=3000))
def test_thinning_and_smoothing_stay_within_the_values(ys: list[float]) -> None:
    room = 1e-6 * max(1.0, *map(abs, ys))
    assert len(smooth(ys)) == len(ys)
    thinned = thin(range(len(ys)), ys)
    assert len(thinned[0]) == len(thinned[1]) <= 500
    for value in (*smooth(ys), *thinned[1]):
        assert min(ys) - room <= value <= max(ys) + room


def test_a_chart_is_a_picture_of_all_its_points() -> None:
    lines = [
        Line("a & <b>", [0, 1, 2, 3], [1.0, math.nan, 3.0, 2.0], dots=True),
        Line("flat", [0, 3], [1.0, 1.0], colour=7, style="dashed"),
    ]
    svg = standalone(chart(lines, "T <x>", "tokens", "loss", [(1, "here")]))
    root = ElementTree.fromstring(svg)
    name = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{name}circle")) == 3
    words = [text.text for text in root.findall(f"{name}text")]
    assert {"a & <b>", "flat", "here", "tokens", "loss"} <= set(words)
    assert "nan" not in svg
    [gap] = [p.get("d") for p in root.findall(f"{name}path") if p.get("class") == "solid k0"][1:]
    assert gap and gap.count("M") == 2  # what is not a number leaves a gap


def test_a_chart_of_one_value_can_be_drawn_and_one_of_none_cannot() -> None:
    ElementTree.fromstring(standalone(chart([Line("one", [5], [0.0])], "t", "x", "y")))
    with pytest.raises(ValueError, match="no points"):
        chart([Line("none", [1], [math.inf])], "t", "x", "y")
