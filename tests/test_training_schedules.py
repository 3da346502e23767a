"""Everything that moves while a phase runs is a function of the tokens seen."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import ModelConfig, Transformer
from tasks.ramps import Ramp, StepPlan
from tasks.recipe import Phase
from tasks.training.batch import Batch, samples_of
from tasks.training.device import known_peak
from tasks.training.optimizer import Optimizers, is_hidden_matrix
from tasks.training.schedule import dropout_at, lr_at
from tasks.training.selection import Selection
from tasks.training.spikes import ENOUGH, WINDOW, Spikes
from tasks.training.world import World

NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)


def phase(**changes: Any) -> Phase:
    fields = {
        "starts_from": "init", "tokens": 64_000, "mixture": {"a": 1}, "seq_len": 100,
        "batch_tokens": 800, "lr": 1.0,
    }  # fmt: skip
    return Phase(**(fields | changes))


# Steps --------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    tokens=st.integers(1, 10**5),
    size=st.integers(0, 6),
    ramp=st.none() | st.tuples(st.integers(1, 6), st.integers(1, 10**5)),
)
def test_steps_read_every_token_once_and_no_more_than_a_step_too_many(
    tokens: int, size: int, ramp: tuple[int, int] | None
) -> None:
    batch = 64 << size
    ramped = None
    if ramp:
        ramped = Ramp(start=batch >> min(ramp[0], size + 6), tokens=ramp[1])
        if ramped.start == batch:
            ramped = None
    plan = StepPlan.of(tokens, batch, ramped)
    seen = 0
    for step in range(plan.steps):
        now = plan.at(step)
        assert now.first == seen
        assert now.tokens <= batch
        seen += now.tokens
    assert seen == plan.tokens == plan.at(plan.steps).first
    assert plan.at(plan.steps - 1).tokens == batch
    if ramped is None:
        assert tokens <= plan.tokens < tokens + batch


def test_a_batch_ramp_doubles_for_equal_shares_of_its_tokens() -> None:
    ramped = phase(batch_ramp={"start": 200, "tokens": 8000})
    sizes = [ramped.plan.at(step).tokens for step in range(ramped.steps)]
    assert sizes == [200] * 20 + [400] * 10 + [800] * 70
    assert ramped.samples * 100 == ramped.total_tokens == sum(sizes)


@pytest.mark.parametrize(
    ("ramp", "message"),
    [({"start": 300, "tokens": 8000}, "halved a whole number of times, got 300"),
     ({"start": 800, "tokens": 8000}, "halved a whole number of times, got 800"),
     ({"start": 50, "tokens": 8000}, "multiple of seq_len")],
)  # fmt: skip
def test_a_ramp_that_does_not_fit_is_refused(ramp: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        phase(batch_ramp=ramp)


def test_a_sequence_ramp_reads_the_same_samples_in_shorter_rows() -> None:
    ramped = phase(seq_len_ramp={"start": 25, "tokens": 8000})
    assert [ramped.rows(tokens) for tokens in (0, 3999, 4000, 7999, 8000, 64_000)] == [
        4,
        4,
        2,
        2,
        1,
        1,
    ]
    assert ramped.samples == phase().samples


@given(st.integers(1, 40), st.integers(1, 40))
def test_micro_batches_hold_every_row_once(rows: int, most: int) -> None:
    ids = torch.arange(rows).unsqueeze(1)
    parts = list(Batch(ids, ids, ids).split(most))
    assert torch.cat([part.inputs for part in parts]).equal(ids)
    assert {len(part.inputs) for part in parts} == {len(parts[0].inputs)}
    assert len(parts[0].inputs) <= most


@given(st.integers(0, 79), st.sampled_from([1, 2, 4, 8]))
def test_the_ranks_of_a_world_share_a_step_without_gap_or_overlap(step: int, size: int) -> None:
    shares = [samples_of(phase(), step, World(rank, size)) for rank in range(size)]
    read = [i for first, count in shares for i in range(first, first + count)]
    assert read == list(range(step * 8, step * 8 + 8))


def test_a_step_that_the_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="8 samples cannot be shared by 3 processes"):
        samples_of(phase(), 0, World(0, 3))


def test_intervals_end_once_each_whatever_the_batch() -> None:
    for ramp in (None, {"start": 100, "tokens": 9000}):
        p = phase(batch_ramp=ramp)
        due = [step for step in range(1, p.steps + 1) if p.is_due(0.1, step)]
        assert len(due) == 10 and due[-1] == p.steps
        assert (
            len([s for s in range(1, p.steps + 1) if p.is_due(8000, s)]) == p.total_tokens // 8000
        )


# Learning rate and dropout ------------------------------------------------------------------------


def test_a_cosine_warmup_starts_flat_meets_the_peak_and_is_below_the_line_at_first() -> None:
    line, cosine = phase(warmup_tokens=8000), phase(warmup_tokens=8000, warmup="cosine")
    assert lr_at(cosine, 0) < 0.5 * lr_at(line, 0)
    assert lr_at(cosine, 9) == lr_at(line, 9) == 1.0
    rates = [lr_at(cosine, step) for step in range(10)]
    assert rates == sorted(rates)


def test_under_a_batch_ramp_the_rate_follows_tokens_not_steps() -> None:
    plain = phase(warmup_tokens=8000)
    ramped = phase(warmup_tokens=8000, batch_ramp={"start": 400, "tokens": 4000})
    at = {
        p.plan.at(s).first + p.plan.at(s).tokens: lr_at(p, s) for p in (plain,) for s in range(10)
    }
    for step in range(15):
        now = ramped.plan.at(step)
        if (end := now.first + now.tokens) in at:
            assert lr_at(ramped, step) == pytest.approx(at[end])


def test_dropout_moves_in_a_straight_line_to_its_end() -> None:
    config = ModelConfig(d_model=16, n_layers=1, n_heads=2, d_ff=16, max_seq_len=8, attn_dropout=0.2,
                         resid_dropout=0.1)  # fmt: skip
    still, moving = phase(), phase(final_dropout=0.05)
    assert dropout_at(still, config, 70) == {"embed": 0.0, "attn": 0.2, "resid": 0.1}
    assert dropout_at(moving, config, 0) == {"embed": 0.0, "attn": 0.2, "resid": 0.1}
    assert dropout_at(moving, config, moving.steps - 1) == pytest.approx(
        {"embed": 0.05, "attn": 0.05, "resid": 0.05}
    )


# Spikes and selection -----------------------------------------------------------------------------


def test_a_spike_is_told_by_the_median_which_it_cannot_move() -> None:
    spikes = Spikes(1.5)
    for _ in range(ENOUGH - 1):
        spikes.add(2.0)
    assert not spikes.found(1e9), "too few losses to judge by"
    spikes.add(100.0)
    assert spikes.found(3.01) and not spikes.found(2.99)
    assert not Spikes(None, [2.0] * 64).found(1e9)


def test_the_window_of_losses_is_the_whole_state() -> None:
    spikes = Spikes(2.0)
    for loss in range(100):
        spikes.add(float(loss))
    again = Spikes(2.0, list(spikes.losses))
    assert len(again.losses) == WINDOW
    for loss in (60.0, 130.0, 135.0, 140.0):
        assert again.found(loss) == spikes.found(loss) == (loss > 2 * 67.5)


def records(value: float) -> list[dict[str, Any]]:
    return [
        {"set": "a/validation", "weights": "ema", "bits_per_byte": value},
        {"set": "a/validation", "weights": "raw", "bits_per_byte": 0.0},
        {"set": "b/validation", "weights": "ema", "bits_per_byte": 0.0},
    ]


def test_the_best_checkpoint_is_by_the_named_set_and_patience_ends() -> None:
    settings = phase(select="best", select_on="a/validation", patience=2)
    selection = Selection(settings)
    seen = [selection.see(step, records(value)) for step, value in enumerate([3.0, 2.0, 2.5])]
    assert seen == [True, True, False] and selection.chosen == 1 and not selection.gave_up
    resumed = Selection(settings, selection.record())
    assert not resumed.see(3, records(2.1)) and resumed.gave_up and resumed.chosen == 1


def test_best_without_a_set_to_rank_by_is_refused() -> None:
    with pytest.raises(ValueError, match="need select_on"):
        phase(select="best")


# Optimizers ---------------------------------------------------------------------------------------

SPARSE = ModelConfig(
    d_model=16, n_layers=2, n_heads=2, d_ff=32, max_seq_len=8, vocab_size=50, d_embed=8,
    n_experts=2, moe_layers="odd",
)  # fmt: skip


def test_muon_takes_the_matrices_of_blocks_and_adamw_the_rest_each_once() -> None:
    from tasks.recipe import Optimizer

    model = Transformer(SPARSE)
    optimizer = Optimizers(model, Optimizer(name="muon"), lr=1e-2)
    names = {id(p): name for name, p in model.named_parameters()}
    adamw, muon = (
        {names[id(p)] for group in part.param_groups for p in group["params"]}
        for part in optimizer.parts
    )
    assert adamw | muon == set(names.values()) and not adamw & muon
    assert {"embed_tokens.weight", "embed_in.weight", "layers.1.mlp.gate.weight"} <= adamw
    assert all(is_hidden_matrix(name, p) == (name in muon) for name, p in model.named_parameters())
    assert any("experts" in name for name in muon)


def test_muon_saved_and_loaded_goes_on_bit_for_bit_and_its_state_is_whole() -> None:
    from tasks.recipe import Optimizer

    torch.manual_seed(0)
    models = [Transformer(SPARSE), Transformer(SPARSE)]

    def step(model: Transformer, optimizer: Optimizers, seed: int) -> float:
        torch.manual_seed(seed)
        ids = torch.randint(50, (4, 9))
        optimizer.zero_grad()
        loss = model.loss(ids[:, :-1], ids[:, 1:])[0]
        loss.backward()
        optimizer.step(NO_SCALER)
        return loss.item()

    one = Optimizers(models[0], Optimizer(name="muon"), lr=1e-2)
    for seed in range(3):
        step(models[0], one, seed)
    models[1].load_state_dict(models[0].state_dict())
    two = Optimizers(models[1], Optimizer(name="muon"), lr=1e-2)
    saved = {name: t.clone() for name, t in one.tensors().items()}
    kinds = {name.split(".")[0] for name in saved}
    assert kinds == {"exp_avg", "exp_avg_sq", "momentum_buffer"}
    two.load(saved, updates=3)
    for seed in (7, 8):
        assert step(models[0], one, seed) == step(models[1], two, seed)
    for name, weight in models[0].state_dict().items():
        assert weight.equal(models[1].state_dict()[name]), name


# Peaks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H200", 989e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12),
     ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA L4", 121e12), ("NVIDIA L40S", 362e12),
     ("NVIDIA GeForce RTX 4090", 165e12), ("NVIDIA L400", None), ("Tesla T4", None), ("", None)],
)  # fmt: skip
def test_the_peak_of_a_device_is_its_own_or_none(name: str, peak: float | None) -> None:
    assert known_peak(name) == peak


def test_half_a_cosine_is_exact_at_its_ends() -> None:
    p = phase(schedule="cosine", min_lr=0.1)
    assert lr_at(p, 0) == 1.0
    assert lr_at(p, p.steps // 2) == pytest.approx(0.55)
    last = 0.1 + 0.9 * 0.5 * (1 - math.cos(math.pi / p.steps))
    assert lr_at(p, p.steps - 1) == pytest.approx(last)


# Range test ---------------------------------------------------------------------------------------


def test_the_range_test_finds_the_fall_before_the_break() -> None:
    from tasks.training.lr_finder import judge

    lrs = [10 ** (-6 + step / 10) for step in range(50)]
    # flat until 1e-4, falling fastest at 1e-3, least at 1e-2, then breaking away
    losses = [10 - 4 / (1 + math.exp(-4 * (math.log10(lr) + 3))) + 50 * lr for lr in lrs]
    found = judge(lrs, losses)
    assert found.steepest == pytest.approx(1e-3, rel=0.3)
    assert found.suggested == pytest.approx(1e-3, rel=0.6)
    with pytest.raises(ValueError, match="broke away after 3 steps"):
        judge(lrs[:3], losses[:3])
