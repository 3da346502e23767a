"""Held-out figures: every token once, weighted alike, in bits over the bytes of the text."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
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
from tasks.evaluation.documents import (
    HeldOutText,
    figures,
    held_out_text,
    read_documents,
    sums_of,
)
from tasks.evaluation.evaluate import evaluate, window_stride
from tasks.evaluation.forgetting import forgetting_matrix
from tasks.evaluation.scoring import (
    DocumentSums,
    Protocol,
    Score,
    score,
    score_documents,
    windows,
)
from tasks.files import read_json
from tasks.recipe import Recipe
from tasks.tokens.text import load_tokenizer
from tasks.training.state import load_network
from tasks.workspace import Workspace
from tests.held_out_workspace import make_encoded, place

EOS = 0
VOCAB = 11
CONFIG = ModelConfig(
    d_model=16, n_layers=2, n_heads=2, d_ff=24, max_seq_len=32, vocab_size=VOCAB, init_std=0.3
)


class Bigram(nn.Module):
    """A stand-in whose loss of a target depends on the input before it alone, by a table (V, V)."""

    def __init__(self, nats: Tensor) -> None:
        super().__init__()
        self.nats, self.device = nats, nats.device

    def score(
        self, inputs: Tensor, targets: Tensor, documents: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        counted = targets >= 0
        losses = self.nats[inputs, targets.clamp_min(0)]
        hits = self.nats[inputs].argmin(-1) == targets
        return torch.where(counted, losses, 0.0), hits & counted


def run(
    model: Any,
    tokens: list[int] | np.ndarray,
    text_bytes: int = 1,
    batch_size: int = 4,
    **protocol: Any,
) -> Score:
    how = Protocol(**{"seq_len": 8, "stride": 8} | protocol)
    ids = np.asarray(tokens, dtype=np.uint16)
    return score(model, ids, text_bytes, how, eos_id=EOS, batch_size=batch_size)


def of_documents(
    model: Any, tokens: list[int] | np.ndarray, batch_size: int = 4, **protocol: Any
) -> DocumentSums:
    how = Protocol(**{"seq_len": 8, "stride": 8} | protocol)
    ids = np.asarray(tokens, dtype=np.uint16)
    return score_documents(model, ids, how, eos_id=EOS, batch_size=batch_size)


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


def test_each_document_pays_for_its_own_tokens_and_for_the_eos_that_ends_it() -> None:
    nats = torch.tensor([1.0, 2.0, 4.0]).expand(3, 3)  # ids 0 (EOS), 1, 2 cost 1, 2, 4 nats
    sums = of_documents(Bigram(nats), [1, 2, EOS, EOS, 2, 2, 1], seq_len=2, stride=2)
    assert sums.nats.tolist() == [2 + 4 + 1, 1, 4 + 4 + 2]
    assert sums.tokens.tolist() == [3, 1, 3], "what stands after the last EOS is a document too"
    assert sums.correct.tolist() == [1, 1, 0], "the likeliest id is always EOS"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=90), st.booleans(), st.data())
def test_the_documents_add_up_to_the_stream_whatever_the_windows(
    tokens: list[int], alone: bool, data: st.DataObject
) -> None:
    tokens = [*tokens, EOS]
    seq_len, batch_size = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 9))
    stride = data.draw(st.integers(1, seq_len))
    nats = torch.arange(VOCAB * VOCAB, dtype=torch.float32).view(VOCAB, VOCAB)
    how = {"seq_len": seq_len, "stride": stride, "batch_size": batch_size}
    sums = of_documents(Bigram(nats), tokens, alone=alone, **how)
    expected, before, document = [0], EOS, 0
    for token in tokens:
        if not (alone and token == EOS):
            expected[document] += before * VOCAB + token
        if token == EOS:
            expected.append(0)
            document += 1
        before = token
    assert sums.nats.tolist() == expected[:-1]
    assert sums.tokens.sum() == len(tokens) - alone * document


def test_a_document_scored_alone_does_not_see_the_one_before_it() -> None:
    model, tail = network(), [4, 5, 6, 7, 8, EOS]
    first, other = [1, 2, 3, EOS], [9, 8, 1, EOS]
    how: dict[str, Any] = {"seq_len": 4, "stride": 4, "alone": True}
    found = [of_documents(model, head + tail, **how).nats[1] for head in (first, other)]
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    # its last window moves back to hold four inputs: 8 is predicted from 4 5 6 7, not from 7 alone
    ids = torch.tensor([[EOS, 4, 5, 6], [4, 5, 6, 7]])
    log_p = model(ids).log_softmax(-1)
    picked = [log_p[0, i, token] for i, token in enumerate(tail[:4])] + [log_p[1, 3, 8]]
    assert found[0] == pytest.approx(-sum(picked).item(), rel=1e-5)


def test_the_figures_of_a_set_are_what_pen_and_paper_give() -> None:
    text = HeldOutText("a/test", ("to be", " or\tnot\nto be ", "ü"))
    sums = DocumentSums(np.array([6.0, 8.0, 2.0]), np.array([3, 4, 1]), np.array([1, 1, 0]))
    assert text.bytes.tolist() == [5, 14, 2] and text.words.tolist() == [2, 4, 1]
    found = figures(sums, text)
    assert found["bits_per_byte"] == pytest.approx(16 / math.log(2) / 21)
    assert found["word_perplexity"] == pytest.approx(math.exp(16 / 7))
    assert found["perplexity"] == pytest.approx(math.exp(16 / 8))
    assert (found["loss"], found["accuracy"]) == (2.0, 0.25)


def test_text_without_white_space_has_no_word_perplexity_and_one_document_no_error() -> None:
    sums = DocumentSums(np.array([900.0]), np.array([300]), np.array([0]))
    found = figures(sums, HeldOutText("a/test", ("字" * 200,)))
    assert set(found) == {"bits_per_byte", "perplexity", "loss", "accuracy"}


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
    with_ends = np.where(tokens == 3, EOS, tokens)
    for alone in (False, True):
        with_ends[-1] = EOS
        few, many = (
            of_documents(model, with_ends, stride=5, batch_size=n, alone=alone) for n in (1, 50)
        )
        np.testing.assert_allclose(few.nats, many.nats, rtol=1e-5)
        assert few.correct.tolist() == many.correct.tolist()


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


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Recipe]:
    return make_encoded(tmp_path_factory.mktemp("topics"))


@pytest.fixture()
def finished(encoded: tuple[Workspace, Recipe], tmp_path: Path) -> tuple[Workspace, Recipe]:
    """A workspace whose phase1 has raw weights and, quite unlike them, an EMA."""
    shutil.copytree(encoded[0].root, tmp_path / "copy")
    workspace = Workspace(tmp_path / "copy")
    raw = load_network(workspace.checkpoint("init"))
    ema = Transformer(raw.config, generator=torch.Generator().manual_seed(9))
    place(workspace, model=raw, ema=ema)
    return workspace, encoded[1]


def changed(recipe: Recipe, **evaluation: Any) -> Recipe:
    return recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update=evaluation)})


def test_every_held_out_set_of_every_source_is_measured_with_both_weights(
    finished: tuple[Workspace, Recipe],
) -> None:
    workspace, recipe = finished
    evaluate(workspace, recipe, "phase1")
    figures = read_json(workspace.evaluation("phase1"))
    details = read_json(workspace.evaluation("phase1", "details.json"))
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
        assert told["words"] == sum(len(text.split()) for text in texts)
        assert told["tokens_scored"] == told["tokens"]
        assert set(figures[name]) == {"raw", "ema"}
        assert figures[name]["raw"]["loss"] != figures[name]["ema"]["loss"]
        for row in figures[name].values():
            nats = row["loss"] * told["tokens"]
            assert row["bits_per_byte"] == pytest.approx(nats / math.log(2) / told["text_bytes"])
            assert row["perplexity"] == pytest.approx(math.exp(row["loss"]))
            assert row["word_perplexity"] == pytest.approx(math.exp(nats / told["words"]))
            assert 0 < row["bits_per_byte_se"] < 0.2 * row["bits_per_byte"]
            assert 0 <= row["accuracy"] <= 1
    assert (details["seq_len"], details["stride"], details["precision"]) == (32, 32, "fp32")
    assert details["weights"] == ["raw", "ema"]


def test_the_same_weights_give_the_same_bytes(
    finished: tuple[Workspace, Recipe],
) -> None:
    workspace, recipe = finished
    recipe = changed(recipe, max_tokens=300)
    paths = [workspace.evaluation("phase1"), workspace.evaluation("phase1", "details.json")]
    paths.append(workspace.evaluation("phase1", "documents.npz"))
    evaluate(workspace, recipe, "phase1")
    first = [path.read_bytes() for path in paths]
    evaluate(workspace, recipe, "phase1")
    assert [path.read_bytes() for path in paths] == first


def test_a_cap_keeps_whole_documents_and_exact_bytes(finished: tuple[Workspace, Recipe]) -> None:
    workspace, recipe = finished
    evaluate(workspace, changed(recipe, max_tokens=200), "phase1")
    for name, told in read_json(workspace.evaluation("phase1", "details.json"))["sets"].items():
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


def test_what_each_document_cost_is_kept_by_the_name_of_its_text(
    finished: tuple[Workspace, Recipe],
) -> None:
    workspace, recipe = finished
    evaluate(workspace, recipe, "phase1")
    arrays = read_documents(workspace.evaluation("phase1", "documents.npz"))
    rows = read_json(workspace.evaluation("phase1"))
    for name, row in rows.items():
        source, split = name.split("/")
        there = list(documents.read(workspace.documents / source, split))
        assert arrays[f"{name}:id"].tolist() == [d.id.encode() for d in there]
        assert arrays[f"{name}:bytes"].tolist() == [d.bytes for d in there]
        assert arrays[f"{name}:words"].tolist() == [len(d.text.split()) for d in there]
        for weights, figures_ in row.items():
            sums = sums_of(arrays, name, weights)
            assert sums is not None and len(sums.nats) == 3
            loss = sums.nats.sum() / sums.tokens.sum()
            assert figures_["loss"] == pytest.approx(loss, rel=1e-12)
            assert figures_["accuracy"] == sums.correct.sum() / sums.tokens.sum()
    assert sums_of(arrays, "early/test", "no such weights") is None
    assert read_documents(workspace.root / "none.npz") == {}
    workspace.evaluation("phase1", "documents.npz").write_bytes(b"PK no zip")
    with pytest.raises(UserError, match=r"damaged(.|\n)*evaluate@phase1"):
        read_documents(workspace.evaluation("phase1", "documents.npz"))


def test_a_set_scores_the_same_among_others_and_by_itself(
    finished: tuple[Workspace, Recipe],
) -> None:
    workspace, recipe = finished
    evaluate(workspace, recipe, "phase1")
    among = read_json(workspace.evaluation("phase1"))
    one = recipe.model_copy(update={"sources": {"late": recipe.sources["late"]}})
    evaluate(workspace, one, "phase1")
    assert read_json(workspace.evaluation("phase1")) == {
        name: row for name, row in among.items() if name.startswith("late/")
    }


def test_a_set_is_known_by_its_text_whatever_tokenizer_reads_it(
    finished: tuple[Workspace, Recipe],
) -> None:
    workspace, recipe = finished
    words = load_tokenizer(workspace.tokenizer)
    first = HeldOutText("early/test", ("one", "two"))
    assert first.fingerprint != HeldOutText("early/test", ("two", "one")).fingerprint
    assert first.fingerprint != HeldOutText("early/test", ("one two",)).fingerprint
    sizes = np.array([d.bytes for d in documents.read(workspace.documents / "early", "test")])
    text = held_out_text(workspace, "early/test", sizes, words)
    evaluate(workspace, recipe, "phase1")
    told = read_json(workspace.evaluation("phase1", "details.json"))["sets"]["early/test"]
    assert told["fingerprint"] == text.fingerprint != told["tokens_fingerprint"]
    with pytest.raises(UserError, match=r"different documents(.|\n)*encode@early"):
        held_out_text(workspace, "early/test", sizes + 1, words)


def test_text_that_encodes_to_nothing_is_no_document_of_the_set(
    finished: tuple[Workspace, Recipe],
) -> None:
    workspace, _ = finished
    texts = [d.text for d in documents.read(workspace.documents / "early", "test")]
    folder = workspace.documents / "early"
    for path in folder.glob("test-*.parquet"):
        path.unlink()
    with documents.Writer(folder) as writer:
        for text in (texts[0], "", *texts[1:]):
            writer.add(documents.Document.of(text, "early", "test", "{}"))
    sizes = np.array([len(text.encode()) for text in texts])
    found = held_out_text(workspace, "early/test", sizes, load_tokenizer(workspace.tokenizer))
    assert list(found.texts) == texts


def test_documents_may_be_scored_alone_as_the_harness_does(
    finished: tuple[Workspace, Recipe],
) -> None:
    workspace, recipe = finished
    evaluate(workspace, recipe, "phase1")
    stream_ = read_json(workspace.evaluation("phase1"))
    evaluate(workspace, changed(recipe, documents="alone"), "phase1")
    alone = read_json(workspace.evaluation("phase1"))
    details = read_json(workspace.evaluation("phase1", "details.json"))
    assert details["protocol"]["alone"] is True
    for name, told in details["sets"].items():
        assert told["tokens_scored"] == told["tokens"] - told["documents"], "no EOS counts"
        assert alone[name]["raw"]["bits_per_byte"] < stream_[name]["raw"]["bits_per_byte"]


def test_the_forgetting_matrix_has_every_phase_on_every_set_with_what_it_changed(
    finished: tuple[Workspace, Recipe],
) -> None:
    workspace, recipe = finished
    init_ = load_network(workspace.checkpoint("init"))
    other = Transformer(replace(init_.config, init_std=0.5), generator=torch.Generator())
    place(workspace, "phase2", model=other, ema=init_)
    assert forgetting_matrix(workspace, recipe) == {}
    for phase in ("phase1", "phase2"):
        evaluate(workspace, recipe, phase)
    matrix = forgetting_matrix(workspace, recipe, "raw")
    assert list(matrix) == ["phase1", "phase2"] and len(matrix["phase2"]) == 4
    for name, cell in matrix["phase2"].items():
        before = matrix["phase1"][name]
        assert before.change is None and cell.change is not None and cell.same_protocol
        gap = cell.bits_per_byte - before.bits_per_byte
        assert cell.change.difference == pytest.approx(gap) and gap > 0, "the other is worse"
        assert 0 < cell.change.se < gap
    ema = forgetting_matrix(workspace, recipe)["phase2"]["late/test"]
    assert ema.change is not None and ema.change.difference != cell.change.difference
    # another text: the phases are not put beside each other
    evaluate(workspace, changed(recipe, max_tokens=200), "phase2")
    assert all(c.change is None for c in forgetting_matrix(workspace, recipe)["phase2"].values())
    # an older workspace has no documents
    workspace.evaluation("phase1", "documents.npz").unlink()
    evaluate(workspace, recipe, "phase2")
    cell = forgetting_matrix(workspace, recipe)["phase2"]["late/test"]
    assert cell.change is None and cell.se is not None
