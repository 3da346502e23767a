"""Benchmarks: our model is to lm-evaluation-harness what its own is, from files and with no network."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tasks.errors import BAD_DATA, NO_INPUT, NON_FINITE, UNAVAILABLE, UserError
from tasks.evaluation.benchmarks import benchmark, run, table
from tasks.evaluation.local_tasks import local_task, normalised, prompt, task_files
from tasks.files import read_json, sha256_file
from tasks.release.export import export
from tasks.release.sampler import Sampler
from tests.places import ROOT
from tests.test_release_export import (
    CUSTOM,
    TEXT,
    _quiet,  # noqa: F401
    exported,  # noqa: F401
    network,
    place,
    recipe_of,
    tokenizer,  # noqa: F401
)

WORDS = TEXT.replace("\n", " ").split()
CHOICE = [
    {"query": f"Question: {WORDS[n]} {WORDS[n + 1]}?", "gold": n % 2,
     "choices": [WORDS[n + 2], " ".join(WORDS[n + 3 : n + 6])] + ["knees"] * (n % 3 == 0)}
    for n in range(20)
]  # fmt: skip
FILES: dict[str, list[dict[str, Any]]] = {
    "reading__choice": CHOICE,
    "reading__schema": [
        {"context_options": [f"The {a}", f"The {b} and"], "continuation": "was low.", "gold": 1}
        for a, b in zip(WORDS[:8], WORDS[8:16])
    ],
    "reading__open": [
        {"context": " ".join(WORDS[n : n + 5]), "continuation": WORDS[n + 5]} for n in range(12)
    ],
    "answers": [
        {"context": "The boys walked", "answer": "nowhere", "aliases": []},
        {"context": "Nobody in the village", "answer": "nobody"},
    ],
}


def write_files(folder: Path, **files: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, rows in (files or FILES).items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", "utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def sampler(exported: Path) -> Sampler:  # noqa: F811
    return Sampler.open(exported)


# Files, without the harness.


def test_a_task_is_called_as_the_last_part_of_its_file(folder: Path):
    assert list(task_files(folder)) == ["answers", "choice", "open", "schema"]


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("Question: How do I boil an egg?\n", "Question: How do I boil an egg?\nAnswer:"),
        ("Passage: Eggs.\nQuestion: is it one?", "Passage: Eggs.\nQuestion: is it one?\nAnswer:"),
        ("Question: Why?\nAnswer: ", "Question: Why?\nAnswer:"),
        ("The woman retired, therefore", "The woman retired, therefore"),
    ],
)
def test_a_question_without_a_cue_gets_the_harnesss(query: str, shown: str):
    assert prompt(query) == shown


def test_answers_are_compared_as_squad_does():
    assert normalised("The  Onion, an 'allium'!") == "onion allium"


@pytest.mark.parametrize(
    ("lines", "where", "said"),
    [
        ("{", ":1", "not JSON"),
        ("[1]", ":1", "not an object"),
        ("", "", "is empty"),
        ('{"text": "a"}', ":1", "none of the shapes"),
        ('{"query": "a", "choices": ["b"], "gold": 1}', ":1", "gold is 1"),
        ('{"query": "a", "choices": ["b", ""], "gold": 0}', ":1", "choices is not"),
        ('{"context": "a", "continuation": "b"}\n{"context": "a"}', ":2", "continuation is not"),
        ('{"context": "a", "answer": "b", "aliases": 3}', ":1", "aliases is not"),
    ],
)
def test_a_line_that_is_no_example_is_named(tmp_path: Path, lines: str, where: str, said: str):
    (tmp_path / "bad.jsonl").write_text(lines)
    with pytest.raises(UserError, match=said) as caught:
        local_task(tmp_path, "bad")
    assert f"bad.jsonl{where}" in str(caught.value) and caught.value.exit_code == BAD_DATA


def test_an_unknown_file_and_a_folder_without_any_are_errors(folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match="did you mean 'schema'"):
        local_task(folder, "shema")
    with pytest.raises(UserError, match="no file of JSON lines") as caught:
        task_files(tmp_path)
    assert caught.value.exit_code == NO_INPUT


def test_every_set_of_the_mirror_is_a_task(mirror: Path):
    names = list(task_files(mirror / "eval_sets"))
    kinds = {name: local_task(mirror / "eval_sets", name)[0]["output_type"] for name in names}
    assert len(kinds) == len(list((mirror / "eval_sets").glob("*.jsonl"))) >= 20
    assert (kinds["piqa"], kinds["winogrande"]) == ("multiple_choice",) * 2
    assert (kinds["lambada_openai"], kinds["gsm8k"]) == ("loglikelihood", "generate_until")


def test_a_recipe_without_benchmarks_costs_nothing(tmp_path: Path):
    from tasks.workspace import Workspace

    benchmark(Workspace(tmp_path), recipe_of())
    assert read_json(tmp_path / "evaluation/benchmarks.json") == {}
    code = "import sys, tasks.evaluation.benchmarks; sys.exit(bool({'torch', 'lm_eval'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_without_the_harness_the_extra_is_named(sampler, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"phasewise\[benchmarks\]"):
        run(sampler, ["choice"], folder)


# With the harness.


def by_hand(sampler: Sampler, context: str, continuation: str) -> tuple[float, bool]:
    """Nats and greediness from plain logits, one text at a time."""
    words, model = sampler.tokenizer, sampler.network
    before = words.encode(context) or [words.eos_id]
    whole = words.encode(context + continuation)
    after = whole[len(words.encode(context)) :]
    ids = torch.tensor([[*before, *after]])
    with torch.no_grad():
        logs = model(ids)[0, len(before) - 1 : -1].log_softmax(-1)
    nats = logs[torch.arange(len(after)), torch.tensor(after)].sum().item()
    return nats, logs.argmax(-1).tolist() == after


def instances(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, given, n) for n, given in enumerate(arguments)]  # type: ignore[arg-type]


def test_log_likelihoods_and_texts_are_those_of_the_harnesss_own_model(
    exported: Path,  # noqa: F811
    sampler: Sampler,
):
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tasks.evaluation.harness import HarnessModel

    ours = HarnessModel(sampler, batch_size=3)
    theirs = HFLM(
        AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32),
        tokenizer=AutoTokenizer.from_pretrained(exported),
        batch_size=2,
        device="cpu",
    )
    # the export's own length would go before the one that is asked for
    theirs.model.generation_config.max_new_tokens = None
    assert (ours.max_length, ours.prefix_token_id) == (theirs.max_length, theirs.prefix_token_id)
    pairs = [
        ("The river", " was low"), ("The river ", "was"), ("", "Nobody"), ("Nobody\n\n", " in the village"),
        (TEXT, " from June on"), (TEXT * 3, " low"), ("knees", TEXT[:80]),
    ]  # fmt: skip
    asked = instances("loglikelihood", *pairs)
    found, expected = ours.loglikelihood(asked), theirs.loglikelihood(asked, disable_tqdm=True)
    for (pair, (nats, greedy)), (other, same) in zip(zip(pairs, found), expected, strict=True):
        assert nats == pytest.approx(other, rel=1e-4), pair
        assert greedy == same
    texts = instances("loglikelihood_rolling", ("The mill",), (TEXT * 2,))
    with redirect_stderr(io.StringIO()):
        expected_sums = theirs.loglikelihood_rolling(texts, disable_tqdm=True)
    assert ours.loglikelihood_rolling(texts) == pytest.approx(expected_sums, rel=1e-4)
    ending = {"until": ["\n", "e"], "max_gen_toks": 24, "do_sample": False}
    wanted = instances("generate_until", ("The boys", ending), ("Nobody in", ending),
                       ("The mill stood", ending | {"until": []}))  # fmt: skip
    with redirect_stderr(io.StringIO()):
        written = theirs.generate_until(wanted, disable_tqdm=True)
    assert ours.generate_until(wanted) == written
    assert any(written)


def test_an_export_that_transformers_has_no_class_for_is_scored_by_our_code(
    tokenizer: Path,  # noqa: F811
    tmp_path: Path,
    folder: Path,
):
    from tasks.evaluation.harness import HarnessModel

    alibi = network(**CUSTOM["alibi"])
    workspace = place(tmp_path, tokenizer, alibi, alibi)
    export(workspace, recipe_of(), "phase2")
    sampler = Sampler.open(workspace.export("phase2"))
    pairs = [("The river", " was low"), ("", "Nobody"), (TEXT[:80], " without wetting")]
    for (nats, greedy), pair in zip(
        HarnessModel(sampler).loglikelihood(instances("loglikelihood", *pairs)), pairs, strict=True
    ):
        expected, likeliest = by_hand(sampler, *pair)
        assert nats == pytest.approx(expected, rel=1e-4) and greedy == likeliest


def test_scores_are_right_and_do_not_move_with_the_batch(sampler: Sampler, folder: Path):
    names = ["choice", "schema", "open", "answers"]
    alone, together = (run(sampler, names, folder, batch_size=size) for size in (1, 4))
    for one, four in zip(alone, together, strict=True):
        a, b = one.record(), four.record()
        loss = (
            a["others"].pop("perplexity", {"value": 1.0}),
            b["others"].pop("perplexity", {"value": 1.0}),
        )
        assert math.log(loss[0]["value"]) == pytest.approx(math.log(loss[1]["value"]), rel=1e-5)
        assert a == b
    found = {result.task: result for result in alone}
    assert list(found) == names

    right = []
    for row in CHOICE:
        nats = [by_hand(sampler, prompt(row["query"]), f" {c}")[0] for c in row["choices"]]
        right.append(nats.index(max(nats)) == row["gold"])
    choice = found["choice"]
    assert (choice.metric, choice.n, choice.data) == (
        "acc",
        20,
        sha256_file(folder / "reading__choice.jsonl"),
    )
    assert choice.value == sum(right) / 20
    mean = choice.value
    assert choice.se == pytest.approx(math.sqrt(mean * (1 - mean) / 19))
    assert choice.chance == pytest.approx((13 / 2 + 7 / 3) / 20)  # 7 of 20 have a third choice
    assert "acc_norm" in choice.others and choice.harness.startswith("lm-eval 0.")

    rows = FILES["reading__schema"]
    right = [
        by_hand(sampler, row["context_options"][1], " was low.")
        > by_hand(sampler, row["context_options"][0], " was low.")
        for row in rows
    ]
    assert (found["schema"].value, found["schema"].chance) == (sum(right) / 8, 0.5)

    pairs = [
        by_hand(sampler, r["context"], f" {r['continuation']}") for r in FILES["reading__open"]
    ]
    assert found["open"].value == sum(greedy for _, greedy in pairs) / 12
    loss = -sum(nats for nats, _ in pairs) / 12
    assert found["open"].others["perplexity"][0] == pytest.approx(math.exp(loss), rel=1e-3)
    assert found["open"].chance is None and found["answers"].metric == "exact_match"
    shown = table(alone)
    assert "choice" in shown and "acc_norm" in shown and "±" in shown


def test_an_answer_counts_where_the_model_gives_it(sampler: Sampler, tmp_path: Path):
    from model import SamplingOptions

    greedy = SamplingOptions(max_new_tokens=32, temperature=0)
    said = sampler.complete("The boys walked", greedy).text.split("\n")[0]
    assert normalised(said)
    rows = [
        {"context": "The boys walked", "answer": "no", "aliases": [said]},
        {"context": "The boys walked", "answer": "nowhere"},
    ]
    [result] = run(sampler, ["asked"], write_files(tmp_path / "sets", asked=rows))
    assert result.value == 0.5


def test_weights_that_are_not_numbers_score_nothing(sampler: Sampler, folder: Path):
    broken = network()
    with torch.no_grad():
        broken.norm.weight[0] = math.nan  # type: ignore[index]
    with pytest.raises(UserError, match="weights are broken") as caught:
        run(Sampler(broken, sampler.tokenizer), ["choice"], folder)
    assert caught.value.exit_code == NON_FINITE


def test_the_command_scores_files_as_json_and_writes_it(
    exported: Path,  # noqa: F811
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    from tasks.cli import app

    monkeypatch.chdir(tmp_path)
    command = ["benchmark", str(exported), "--tasks-from", str(folder), "--task", "choice"]
    done = CliRunner().invoke(app, [*command, "--limit", "4", "--json", "--out", "found.json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == read_json(tmp_path / "found.json")
    assert json.loads(done.stdout)["choice"]["n"] == 4
    caught = CliRunner().invoke(app, command[:4])
    assert "answers, choice, open, schema" in str(caught.exception)


def test_the_stage_scores_the_released_phase(
    exported: Path,  # noqa: F811
    folder: Path,
    tmp_path: Path,
):
    import shutil

    from tasks.workspace import Workspace

    shutil.copytree(exported, tmp_path / "exports/phase2")
    shutil.copytree(folder, tmp_path / "sets")
    plan = {"benchmarks": {"tasks": ["schema"], "tasks_from": "sets", "limit": 3}}
    benchmark(Workspace(tmp_path), recipe_of(evaluation=plan))
    found = read_json(tmp_path / "evaluation/benchmarks.json")["schema"]
    assert (found["metric"], found["n"], found["chance"]) == ("acc", 3, 0.5)


def test_tasks_of_the_harness_itself_are_loaded_by_name(
    sampler: Sampler, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its index is ten thousand files long, so a small one stands in for it; the hub is not there."""
    from functools import partial

    from lm_eval.tasks import TaskManager

    data = folder / "reading__choice.jsonl"
    common = (
        "output_type: multiple_choice\ntest_split: test\ndoc_to_text: query\ndoc_to_target: gold\n"
    )
    (tmp_path / "near.yaml").write_text(
        f"task: near_by\ndataset_path: json\n{common}doc_to_choice: choices\ndataset_kwargs:\n"
        f"  data_files: {{test: {data}}}\n  cache_dir: {tmp_path}\n"
    )
    (tmp_path / "far.yaml").write_text(
        f"task: far_away\ndataset_path: owner/nothing\n{common}doc_to_choice: choices\n"
    )
    small = partial(TaskManager, include_path=str(tmp_path), include_defaults=False)
    monkeypatch.setattr("lm_eval.tasks.TaskManager", small)
    [found] = run(sampler, ["near_by"], limit=6)
    assert (found.metric, found.n, found.data) == ("acc", 6, None)
    assert found.chance == pytest.approx((4 / 2 + 2 / 3) / 6)
    with pytest.raises(UserError, match="did you mean 'near_by'"):
        run(sampler, ["nearby"])
    with pytest.raises(UserError, match="cannot be fetched") as caught:
        run(sampler, ["far_away"])
    assert caught.value.exit_code == UNAVAILABLE
