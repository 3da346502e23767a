"""Held-out figures: every token once, weighted alike, in bits over the bytes of the text."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from model import ModelConfig, Transformer
from tasks.data import documents
from tasks.errors import NON_FINITE, UserError
from tasks.files import read_json
from tasks.recipe import Recipe, Split
from tasks.recipe_file import validate
from tasks.release.evaluate import details_path, evaluate, window_stride
from tasks.release.scoring import Score, score, windows
from tasks.tokens.encode import encode
from tasks.tokens.tokenizer import tokenizer
from tasks.training import checkpoint
from tasks.training.init import init
from tasks.training.state import load_network
from tasks.workspace import Workspace

EOS = 0
VOCAB = 11
CONFIG = ModelConfig(
    d_model=16, n_layers=2, n_heads=2, d_ff=24, max_seq_len=32, vocab_size=VOCAB, init_std=0.3
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Bigram(nn.Module):
    """A stand-in whose loss of a target depends on the input before it alone, by a table (V, V)."""

    def __init__(self, nats: Tensor) -> None:
        super().__init__()
        self.nats = nats

    def score(
        self, inputs: Tensor, targets: Tensor, documents: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        counted = targets >= 0
        losses = self.nats[inputs, targets.clamp_min(0)]
        hits = self.nats[inputs].argmin(-1) == targets
        return torch.where(counted, losses, 0.0), hits & counted


def run(model: Any, tokens: list[int] | np.ndarray, text_bytes: int = 1, **options: Any) -> Score:
    settings = {"seq_len": 8, "stride": 8, "batch_size": 4} | options
    return score(
        model,
        np.asarray(tokens, dtype=np.uint16),
        text_bytes,
        device=torch.device("cpu"),
        autocast=nullcontext,
        eos_id=EOS,
        **settings,
    )


def network(**changes: Any) -> Transformer:
    generator = torch.Generator().manual_seed(3)
    return Transformer(replace(CONFIG, **changes), generator=generator).eval()


def stream(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, VOCAB, length)


def test_a_network_that_knows_nothing_loses_log_of_the_vocabulary_a_token() -> None:
    model = network()
    with torch.no_grad():
        model.embed_tokens.weight.zero_()
    result = run(model, stream(30), text_bytes=60)
    assert result.loss == pytest.approx(math.log(VOCAB), rel=1e-6)
    assert result.perplexity == pytest.approx(VOCAB, rel=1e-5)
    assert result.bits_per_byte == pytest.approx(30 * math.log2(VOCAB) / 60, rel=1e-6)


def test_bits_per_byte_is_what_pen_and_paper_give() -> None:
    # ids 0 (EOS), 1, 2 cost 1, 2 and 2 bits; the text is "ab" + "b", so three bytes
    bits = torch.tensor([1.0, 2.0, 2.0]) * math.log(2)
    result = run(Bigram(bits.expand(3, 3)), [1, 2, EOS, 2, EOS], text_bytes=3)
    assert result.bits_per_byte == pytest.approx((2 + 2 + 1 + 2 + 1) / 3)
    assert result.loss == pytest.approx(8 * math.log(2) / 5)
    assert result.accuracy == pytest.approx(2 / 5), "the likeliest id is EOS, which comes twice"


def test_a_long_document_weighs_by_its_tokens_not_as_one_of_two() -> None:
    nats = torch.full((3, 3), 1.0)
    nats[:, 2] = 5.0
    tokens = [1] * 17 + [EOS] + [2, EOS]
    result = run(Bigram(nats), tokens, seq_len=4, stride=4, batch_size=2)
    assert result.loss == pytest.approx((18 + 5 + 1) / 20)
    assert result.loss != pytest.approx((1.0 + (5 + 1) / 2) / 2), "the mean of document means"


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 200), st.integers(1, 40), st.data())
def test_windows_score_each_token_once_with_the_promised_context(
    tokens: int, seq_len: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, seq_len))
    found = list(windows(tokens, seq_len, stride))
    scored = [i for window in found for i in range(window.scored, window.stop)]
    assert scored == list(range(tokens))
    for window in found:
        assert window.start <= window.scored < window.stop <= window.start + seq_len
        assert window.scored - window.start in (0, seq_len - stride)
    assert all(w.start == w.scored for w in found) == (stride == seq_len or len(found) == 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 20), st.integers(1, 9), st.data())
def test_every_token_is_predicted_from_the_one_before_it_whatever_the_windows(
    length: int, seq_len: int, batch_size: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, seq_len))
    tokens = data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=length, max_size=length))
    nats = torch.arange(VOCAB * VOCAB, dtype=torch.float32).view(VOCAB, VOCAB)
    result = run(Bigram(nats), tokens, seq_len=seq_len, stride=stride, batch_size=batch_size)
    pairs = zip([EOS, *tokens], tokens, strict=False)
    assert result.loss_sum == sum(before * VOCAB + now for before, now in pairs)
    assert result.tokens == length


def test_the_figure_does_not_depend_on_the_batch_size() -> None:
    model, tokens = network(), stream(101)
    results = [run(model, tokens, stride=5, batch_size=n) for n in (1, 3, 100)]
    for result in results[1:]:
        assert result.loss_sum == pytest.approx(results[0].loss_sum, rel=1e-6)
        assert (result.correct, result.tokens) == (results[0].correct, results[0].tokens)


def test_one_window_over_the_whole_stream_is_what_the_network_says_itself() -> None:
    model, tokens = network(), stream(20)
    result = run(model, tokens, seq_len=32, stride=32)
    ids = torch.from_numpy(np.concatenate([[EOS], tokens]))
    expected = model(ids[None, :-1])[0].log_softmax(-1)
    picked = expected.gather(1, ids[1:, None])
    assert result.loss_sum == pytest.approx(-picked.sum().item(), rel=1e-5)
    assert result.correct == int((expected.argmax(-1) == ids[1:]).sum())


def test_a_shorter_stride_gives_tokens_more_context_and_so_another_figure() -> None:
    model, tokens = network(), stream(64)
    assert run(model, tokens, stride=8).loss != run(model, tokens, stride=1).loss


def test_a_stride_that_would_leave_tokens_out_is_refused() -> None:
    with pytest.raises(ValueError, match=r"stride must lie in 1 to seq_len \(8\), got 9"):
        run(network(), stream(20), stride=9)


def test_an_empty_stream_is_refused() -> None:
    with pytest.raises(ValueError, match="no token"):
        run(network(), [])


def test_with_a_document_mask_the_document_before_changes_nothing_but_the_first_token() -> None:
    """Input 0 is the EOS before the stream; the first document ends at its EOS."""
    model = network()
    tail = [4, 5, 6, 7, EOS]
    first, other = [1, 2, 3, EOS], [9, 8, 1, EOS]

    def of_tail(head: list[int], mask: bool) -> float:
        # The head's losses, and that of the tail's first token, which the head's EOS predicts,
        # are those of the same stream cut after it: what follows cannot change them.
        options: dict[str, Any] = {"seq_len": 16, "stride": 16, "document_mask": mask}
        whole = run(model, head + tail, **options).loss_sum
        return whole - run(model, head + tail[:1], **options).loss_sum

    assert of_tail(first, mask=True) == pytest.approx(of_tail(other, mask=True), abs=1e-5)
    assert abs(of_tail(first, mask=False) - of_tail(other, mask=False)) > 1e-3


def test_scoring_turns_dropout_off_and_leaves_the_mode_and_the_weights() -> None:
    model = network(resid_dropout=0.5, attn_dropout=0.5).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, second = run(model, stream(40)), run(model, stream(40))
    assert first == second
    assert model.training
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_a_set_without_text_has_no_bits_per_byte_but_says_so_as_infinity() -> None:
    assert Score(3.0, 3, 0, 0).bits_per_byte == math.inf
    assert Score(800.0 * 3, 3, 0, 9).perplexity == math.inf


# The stage, on the reference topics of Python's own manual.

RECIPE: dict[str, Any] = {
    "name": "topics",
    "description": "Two topics",
    "seed": 7,
    "sources": {name: {"files": {"train": ["*.txt"]}} for name in ("early", "late")},
    "dedup": {},
    "held_out": {},
    "tokenizer": {"vocab_size": 320},
    "model": {"d_model": 32, "n_layers": 2, "n_heads": 2, "d_ff": 64, "max_seq_len": 32},
    "training": {"seq_len": 32, "batch_tokens": 256},
    "phases": {"phase1": {"starts_from": "init", "tokens": 256, "mixture": {"early": 1}}},
    "evaluation": {"prompts": ["The "], "sampling": {"max_new_tokens": 8}},
    "release": {"phase": "phase1"},
}


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Recipe]:
    """Two sources with held-out topics, a tokenizer, their tokens and an untrained network."""
    workspace = Workspace(tmp_path_factory.mktemp("topics"))
    recipe = validate(RECIPE)
    names = sorted(topics)
    for source, chosen in (("early", names[:30]), ("late", names[30:60])):
        with documents.Writer(workspace.documents / source) as writer:
            for number, name in enumerate(chosen):
                split: Split = (
                    "test" if number % 10 == 0 else "validation" if number % 10 == 5 else "train"
                )
                text = topics[name][:600]
                writer.add(documents.Document.of(text, source, split, "{}"))
    tokenizer(workspace, recipe)
    for source in recipe.sources:
        encode(workspace, recipe, source)
    init(workspace, recipe)
    return workspace, recipe


@pytest.fixture()
def finished(encoded: tuple[Workspace, Recipe], tmp_path: Path) -> tuple[Workspace, Recipe]:
    """A workspace whose phase1 has raw weights and, quite unlike them, an EMA."""
    shutil.copytree(encoded[0].root, tmp_path / "copy")
    workspace = Workspace(tmp_path / "copy")
    raw = load_network(workspace.checkpoint("init"))
    ema = Transformer(raw.config, generator=torch.Generator().manual_seed(9))
    place(workspace, model=raw, ema=ema)
    return workspace, encoded[1]


def place(workspace: Workspace, **weights: Transformer) -> None:
    """Make checkpoints/phase1 of some networks."""
    tensors = {stem: dict(network.state_dict()) for stem, network in weights.items()}
    config = {"phasewise": weights["model"].config.to_dict()}
    state = {"phase": "phase1", "step": 1, "tokens": 256}
    checkpoint.save(workspace.checkpoint("phase1"), tensors, {"config": config, "state": state})


def changed(recipe: Recipe, **evaluation: Any) -> Recipe:
    return recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update=evaluation)})


def test_every_held_out_set_of_every_source_is_measured_with_both_weights(
    finished: tuple[Workspace, Recipe],
) -> None:
    workspace, recipe = finished
    evaluate(workspace, recipe, "phase1")
    figures = read_json(workspace.evaluation("phase1"))
    details = read_json(details_path(workspace, "phase1"))
    there = {
        f"{source}/{split}": texts
        for source in recipe.sources
        for split in ("validation", "test")
        if (texts := [d.text for d in documents.read(workspace.documents / source, split)])
    }
    assert set(figures) == set(details["sets"]) == set(there) and len(there) == 4
    for name, texts in there.items():
        told = details["sets"][name]
        assert told["documents"] == len(texts) == 3
        assert told["text_bytes"] == sum(len(text.encode()) for text in texts)
        assert told["tokens_scored"] == told["tokens"]
        assert set(figures[name]) == {"raw", "ema"}
        assert figures[name]["raw"]["loss"] != figures[name]["ema"]["loss"]
        for row in figures[name].values():
            nats = row["loss"] * told["tokens"]
            assert row["bits_per_byte"] == pytest.approx(nats / math.log(2) / told["text_bytes"])
            assert row["perplexity"] == pytest.approx(math.exp(row["loss"]))
            assert 0 <= row["accuracy"] <= 1
    assert (details["seq_len"], details["stride"], details["precision"]) == (32, 32, "fp32")
    assert details["weights"] == ["raw", "ema"]


def test_the_same_weights_give_the_same_bytes_and_samples_from_both(
    finished: tuple[Workspace, Recipe],
) -> None:
    workspace, recipe = finished
    recipe = changed(recipe, prompts=["The ", ""], max_tokens=300)
    paths = workspace.evaluation("phase1"), details_path(workspace, "phase1")
    evaluate(workspace, recipe, "phase1")
    first = [path.read_bytes() for path in paths]
    evaluate(workspace, recipe, "phase1")
    assert [path.read_bytes() for path in paths] == first
    samples = read_json(paths[1])["samples"]
    assert [(s["prompt"], s["weights"]) for s in samples] == [
        ("The ", "raw"), ("", "raw"), ("The ", "ema"), ("", "ema"),
    ]  # fmt: skip
    assert samples[0]["text"] != samples[2]["text"]


def test_a_cap_keeps_whole_documents_and_exact_bytes(finished: tuple[Workspace, Recipe]) -> None:
    workspace, recipe = finished
    evaluate(workspace, changed(recipe, max_tokens=200), "phase1")
    for name, told in read_json(details_path(workspace, "phase1"))["sets"].items():
        source, split = name.split("/")
        texts = [d.text for d in documents.read(workspace.documents / source, split)]
        kept = texts[: told["documents"]]
        assert told["text_bytes"] == sum(len(text.encode()) for text in kept)
        assert told["tokens"] <= 200 or told["documents"] == 1


def test_a_phase_without_an_average_is_measured_with_its_raw_weights_alone(
    finished: tuple[Workspace, Recipe],
) -> None:
    workspace, recipe = finished
    place(workspace, model=load_network(workspace.checkpoint("init")))
    evaluate(workspace, changed(recipe, max_tokens=100), "phase1")
    assert all(list(row) == ["raw"] for row in read_json(workspace.evaluation("phase1")).values())


def test_weights_that_are_not_numbers_leave_no_figure(finished: tuple[Workspace, Recipe]) -> None:
    workspace, recipe = finished
    broken = load_network(workspace.checkpoint("init"))
    with torch.no_grad():
        broken.norm.weight[0] = float("nan")
    place(workspace, model=broken)
    with pytest.raises(UserError, match=r"loss.* not finite") as caught:
        evaluate(workspace, recipe, "phase1")
    assert caught.value.exit_code == NON_FINITE
    assert not workspace.evaluation("phase1").exists()


def test_a_stride_beyond_the_windows_is_an_error_of_the_recipe(
    finished: tuple[Workspace, Recipe],
) -> None:
    _, recipe = finished
    assert window_stride(changed(recipe, stride=7), "phase1") == 7
    with pytest.raises(UserError, match=r"evaluation\.stride"):
        window_stride(changed(recipe, stride=33), "phase1")
