"""Our figures beside those of lm-evaluation-harness, on the same export and the same text.

How its `wikitext` task counts (`loglikelihood_rolling`), and what makes ours equal:

    each document by itself, after a prefix token (BOS, in our exports the EOS)   alone=True
    the document's own EOS is not predicted                                       alone=True
    windows of the whole context, the first token of each seeing one token only   stride = seq_len
    the last window moved back until it is full                                   alone=True
    words: re.split(r"\\s+"), which counts an empty one at either end of a page    str.split + those
    bytes: of the page before the detokenizer                                     none is used here

Our default differs on purpose: documents follow one another as in training, and the EOS counts,
because a model must know where a text ends.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model import Transformer
from tasks.data import documents
from tasks.evaluation.contestants import at_folder, score_now
from tasks.evaluation.documents import HeldOutText, Protocol, figures
from tasks.evaluation.scoring import document_windows
from tasks.recipe import Recipe
from tasks.release.export import export
from tasks.training.state import load_network
from tasks.workspace import Workspace
from tests.held_out_workspace import make_encoded, place

pytest.importorskip("lm_eval", reason="lm-eval is not installed: the harness is optional")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Recipe]:
    """An export whose logits are far from uniform, so that every window matters."""
    workspace, recipe = make_encoded(tmp_path_factory.mktemp("harness"))
    config = replace(load_network(workspace.checkpoint("init")).config, init_std=0.2)
    place(workspace, model=Transformer(config, generator=torch.Generator().manual_seed(1)))
    export(workspace, recipe, "phase1")
    return workspace, recipe


@pytest.fixture(scope="module")
def text(exported: tuple[Workspace, Recipe]) -> HeldOutText:
    """Pages shorter and longer than the context of 32; one has white space at both ends."""
    found = [d.text.strip() for d in documents.read(exported[0].documents / "late", "test")]
    short = ["A word.", f"\n {found[0][:200]} \n", "x" * 3]
    return HeldOutText("late/test", (*found, *short))


def harness(folder: Path, pages: tuple[str, ...]) -> dict[str, float]:
    """The metrics of lm-eval's own `wikitext` maths, without its detokenizer, on local pages."""
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks.wikitext.preprocess_wikitext import process_results
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = HFLM(
        pretrained=network, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=3,
        device="cpu",
    )  # fmt: skip
    names = ("word_perplexity", "byte_perplexity", "bits_per_byte")
    config: dict[str, Any] = {
        "task": "local_pages",
        "custom_dataset": lambda **_: DatasetDict(
            test=Dataset.from_list([{"page": p} for p in pages])
        ),
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "page",
        "process_results": process_results,
        "metric_list": [{"metric": name} for name in names],
    }
    found = simple_evaluate(
        model=model, tasks=[ConfigurableTask(config=config)], bootstrap_iters=0, log_samples=False
    )
    row = found["results"]["local_pages"]
    return {name: row[f"{name},none"] for name in names}


def test_the_same_export_has_the_harness_s_figures(
    exported: tuple[Workspace, Recipe], text: HeldOutText
) -> None:
    folder = exported[0].export("phase1")
    theirs = harness(folder, text.texts)
    protocol = Protocol(32, 32, alone=True)
    sums = score_now(at_folder(folder, "export"), [text], protocol)[text.name]
    ours = figures(sums, text)
    assert theirs["bits_per_byte"] == pytest.approx(ours["bits_per_byte"], abs=1e-4)
    assert theirs["byte_perplexity"] == pytest.approx(2 ** ours["bits_per_byte"], rel=1e-4)
    # the harness counts what re.split leaves at the ends of a page as words
    ends = sum(len(re.split(r"\s+", page)) - len(page.split()) for page in text.texts)
    assert ends == 2, "one page has white space at both ends"
    words = int(text.words.sum())
    assert theirs["word_perplexity"] == pytest.approx(
        ours["word_perplexity"] ** (words / (words + ends)), rel=1e-3
    )


def test_the_default_counts_the_eos_too_and_says_other_figures(
    exported: tuple[Workspace, Recipe], text: HeldOutText
) -> None:
    model = at_folder(exported[0].export("phase1"), "export")
    stream = score_now(model, [text], Protocol(32, 32))[text.name]
    alone = score_now(model, [text], Protocol(32, 32, alone=True))[text.name]
    assert (stream.tokens - alone.tokens).tolist() == [1] * len(text.texts)
    assert figures(stream, text)["bits_per_byte"] > figures(alone, text)["bits_per_byte"] + 1e-3


@pytest.mark.parametrize("context_len", [1, 3])
def test_our_windows_are_the_harness_s_windows(context_len: int) -> None:
    from lm_eval.utils import get_rolling_token_windows

    lengths, eos = [1, 7, 8, 9, 16, 17, 30], 0
    tokens = [[100 * d + i + 1 for i in range(n)] for d, n in enumerate(lengths)]
    stream = np.array([token for line in tokens for token in [*line, eos]])
    expected = [
        (window, predicted)
        for line in tokens
        for window, predicted in get_rolling_token_windows(line, eos, 8, context_len)
    ]
    before = np.concatenate([[eos], stream[:-1]])
    ends = np.cumsum([n + 1 for n in lengths])
    found = sorted(document_windows(ends, 8, 9 - context_len), key=lambda w: (w.stop, w.start))
    assert [
        (before[w.start : w.stop].tolist(), stream[w.scored : w.stop].tolist()) for w in found
    ] == expected
