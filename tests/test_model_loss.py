"""The loss in chunks is the plain loss, and its sums add up to the loss of the whole batch."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from model import ModelConfig, Transformer
from model.loss import linear_cross_entropy, token_losses
from tests.test_model_strategies import (
    CONTEXT,
    VOCABULARY,
    lively_model,
    one_thread,  # noqa: F401
    random_ids,
    small_configs,
)

few = settings(max_examples=40, deadline=None)


def plain_loss(hidden, table, targets, smoothing=0.0):
    logits = F.linear(hidden, table).float()
    return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)


def some_rows(rows: int, width: int, vocabulary: int, ignored: list[int], seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=generator).requires_grad_()
    table = torch.randn(vocabulary, width, generator=generator).requires_grad_()
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    targets[[i for i in ignored if i < rows]] = -100
    return hidden, table, targets


@few
@given(
    st.integers(1, 20),
    st.integers(1, 8),
    st.integers(2, 40),
    st.lists(st.integers(0, 19)),
    st.sampled_from([0.0, 0.1, 0.9]),
    st.integers(1, 25),
)
def test_the_chunked_loss_and_its_gradients_are_the_plain_ones(
    rows, width, vocabulary, ignored, smoothing, chunk
):
    hidden, table, targets = some_rows(rows, width, vocabulary, ignored)
    expected = plain_loss(hidden, table, targets, smoothing)
    by_plain = torch.autograd.grad(3.0 * expected, (hidden, table))
    loss = linear_cross_entropy(hidden, table, targets, smoothing, chunk)
    by_chunks = torch.autograd.grad(3.0 * loss, (hidden, table))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(by_chunks, by_plain, rtol=1e-4, atol=1e-4)


def test_a_wide_table_is_taken_in_parts_and_none_is_left_out(monkeypatch):
    monkeypatch.setattr("model.loss._TABLE_ROWS", 7)
    hidden, table, targets = some_rows(9, 4, 40, [2])
    by_plain = torch.autograd.grad(plain_loss(hidden, table, targets), (hidden, table))
    loss = linear_cross_entropy(hidden, table, targets, rows_a_chunk=4)
    by_parts = torch.autograd.grad(loss, (hidden, table))
    torch.testing.assert_close(by_parts, by_plain, rtol=1e-4, atol=1e-4)


def test_under_autocast_it_is_as_good_as_the_plain_loss_on_bf16_logits():
    hidden, table, targets = some_rows(64, 32, 500, [3, 4])
    exact = plain_loss(hidden, table, targets)
    by_exact = torch.autograd.grad(exact, (hidden, table))
    with torch.autocast("cpu", torch.bfloat16):
        plain = plain_loss(hidden, table, targets)
        loss = linear_cross_entropy(hidden, table, targets, rows_a_chunk=10)
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=1e-4)
    by_plain = torch.autograd.grad(plain, (hidden, table))
    by_chunks = torch.autograd.grad(loss, (hidden, table))
    for chunked, other, true in zip(by_chunks, by_plain, by_exact, strict=True):
        assert chunked.dtype == torch.float32
        assert (chunked - true).norm() <= 1.1 * (other - true).norm()


def test_without_any_target_the_loss_and_its_gradients_are_zero_and_not_nan():
    hidden, table, targets = some_rows(4, 3, 5, [0, 1, 2, 3])
    loss = linear_cross_entropy(hidden, table, targets)
    loss.backward()
    assert loss == 0 and not hidden.grad.any() and not table.grad.any()


def test_going_back_twice_is_refused_and_not_scaled_twice():
    loss = linear_cross_entropy(*some_rows(4, 3, 5, []))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_measuring_needs_no_gradient_and_no_smoothing():
    hidden, table, targets = some_rows(9, 3, 5, [2])
    with torch.no_grad():
        assert linear_cross_entropy(hidden, table, targets) == pytest.approx(
            plain_loss(hidden, table, targets).item()
        )
        with pytest.raises(ValueError, match="label smoothing is for training"):
            linear_cross_entropy(hidden, table, targets, 0.1)


@few
@given(small_configs(), st.integers(1, 20))
def test_the_loss_of_a_model_is_that_of_its_logits(config, chunk):
    model = lively_model(config)
    ids, targets = random_ids(2, CONTEXT), random_ids(2, CONTEXT, seed=1)
    targets[0, :5] = -100
    logits = model(ids).detach()
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    total, count, _ = model.loss(ids, targets)
    assert count == 2 * CONTEXT - 5
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-3)
    losses, hits = model.score(ids, targets)
    torch.testing.assert_close(losses.sum(), expected, rtol=1e-5, atol=1e-3)
    assert torch.equal(hits, logits.argmax(dim=-1) == targets)
    assert not losses[0, :5].any() and not hits[0, :5].any()


@few
@given(small_configs(), st.sampled_from([1, 2, 4]))
def test_sums_over_micro_batches_are_the_sum_of_the_batch(config, size):
    """k micro-batches of b sequences give the loss and the gradients of one batch of k·b."""
    ids, targets = random_ids(4, CONTEXT), random_ids(4, CONTEXT, seed=1)
    targets[0, :9] = -100
    results = []
    for step in (4, size):
        model = lively_model(config).train()
        objective, tokens = 0.0, 0
        for start in range(0, 4, step):
            rows = slice(start, start + step)
            total, count, aux = model.loss(ids[rows], targets[rows])
            total = total + aux.get("loss", 0.0)
            total.backward()
            objective, tokens = objective + total.item(), tokens + count.item()
        gradients = [p.grad / tokens for p in model.parameters()]
        results.append((objective / tokens, gradients))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-3, atol=1e-5)


def test_a_model_learns_a_rule_from_its_loss():
    """The next id is the last one plus three: the loss falls from ln V to almost nothing."""
    config = ModelConfig(
        d_model=32, n_layers=1, n_heads=2, d_ff=64, max_seq_len=CONTEXT, vocab_size=VOCABULARY
    )
    model = Transformer(config, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = (random_ids(16, 1) + 3 * torch.arange(CONTEXT + 1)) % VOCABULARY
    means = []
    for _ in range(60):
        total, count, _ = model.loss(ids[:, :-1], ids[:, 1:])
        means.append((total / count).item())
        (total / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert means[0] == pytest.approx(torch.tensor(float(VOCABULARY)).log().item(), abs=0.1)
    assert means[-1] < 0.1


def test_the_loss_of_each_token_does_not_depend_on_the_chunks():
    hidden, table, targets = some_rows(11, 4, 7, [5])
    whole, parts = token_losses(hidden, table, targets), token_losses(hidden, table, targets, 3)
    torch.testing.assert_close(whole, parts)
