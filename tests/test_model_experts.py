"""Experts: what the router chooses, what its losses reward, what is dropped and what is reported."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import ModelConfig
from model.experts import Experts, balance_loss
from tests.test_model_strategies import (
    CONTEXT,
    VOCABULARY,
    lively_model,
    one_thread,  # noqa: F401
    random_ids,
)

few = settings(max_examples=25, deadline=None)


def config(**values) -> ModelConfig:
    sizes = {"d_model": 8, "n_layers": 2, "n_heads": 2, "d_ff": 12, "max_seq_len": CONTEXT}
    return ModelConfig(**sizes | {"vocab_size": VOCABULARY, "n_experts": 4} | values)


def layer(**values) -> Experts:
    return lively_model(config(**values)).layers[1].mlp


def some_input(batch: int = 3, length: int = CONTEXT, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, length, 8, generator=torch.Generator().manual_seed(seed))


def by_hand(experts: Experts, x: torch.Tensor) -> torch.Tensor:
    """Every expert on every token, weighted by the router: slow and plain."""
    settings_ = experts.config
    p = (experts.gate(x) / settings_.router_temperature).softmax(dim=-1)
    weights, chosen = p.topk(settings_.n_experts_per_token, dim=-1)
    if settings_.moe_renormalize:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    sparse = torch.zeros_like(p).scatter(-1, chosen, weights)
    outputs = torch.stack([expert(x) for expert in experts.experts], dim=-1)
    mixed = (outputs * sparse.unsqueeze(-2)).sum(dim=-1)
    return mixed if experts.shared_expert is None else mixed + experts.shared_expert(x)


@few
@given(
    st.integers(2, 5),
    st.integers(1, 2),
    st.booleans(),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.booleans(),
    st.integers(1, 5),
)
def test_sorting_tokens_by_expert_gives_what_running_every_expert_gives(
    n_experts, top_k, renormalize, temperature, shared, length
):
    experts = layer(
        n_experts=n_experts, n_experts_per_token=top_k, router_temperature=temperature,
        moe_renormalize=renormalize and top_k > 1, shared_expert=shared,
    )  # fmt: skip
    x = some_input(2, length)
    y, routing = experts(x)
    torch.testing.assert_close(y, by_hand(experts, x), rtol=1e-5, atol=1e-5)
    assert routing.load.sum() == pytest.approx(1.0)
    assert routing.dropped == 0


@given(st.lists(st.floats(0, 1), min_size=2, max_size=16).filter(lambda p: sum(p) > 1e-3))
def test_the_balance_loss_is_least_at_uniform_load(weights):
    share = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    n = len(weights)
    uniform = torch.full((n,), 1 / n, dtype=torch.float64)
    least = balance_loss(uniform, uniform).item()
    assert least == pytest.approx(1.0)
    # The excess over 1 is exactly the squared distance from uniform, so uniform is the only least.
    excess = n * (share - uniform).square().sum().item()
    assert balance_loss(share, share).item() == pytest.approx(1.0 + excess)


def test_a_collapsed_router_pays_the_number_of_experts():
    collapsed = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert balance_loss(collapsed, collapsed) == 4.0


def test_following_the_balance_loss_evens_out_a_leaning_router():
    experts = layer(n_experts_per_token=1)
    x = some_input(8) + 1.0
    with torch.no_grad():
        experts.gate.weight.zero_()
        experts.gate.weight[0] = 0.2
    optimizer = torch.optim.SGD(experts.gate.parameters(), lr=0.3)
    loads = []
    for _ in range(100):
        routing = experts(x)[1]
        loads.append(routing.load.max().item())
        optimizer.zero_grad()
        routing.balance.mean().backward()
        optimizer.step()
    assert loads[0] > 0.9
    assert loads[-1] < 0.6


def test_the_z_loss_is_the_mean_square_of_the_log_sum_of_exponentials():
    experts = layer()
    x = some_input()
    expected = torch.log(experts.gate(x).exp().sum(dim=-1)).square().mean(dim=1)
    torch.testing.assert_close(experts(x)[1].z, expected)


@few
@given(st.sampled_from([0.25, 0.5, 1.0, 4.0]), st.integers(1, 2))
def test_no_expert_takes_more_of_a_sequence_than_its_capacity(factor, top_k):
    experts = layer(moe_capacity_factor=factor, n_experts_per_token=top_k).train()
    x = some_input()
    _, chosen, kept, routing = experts._route(x)
    capacity = -(-factor * CONTEXT * top_k // 4)
    for row in range(3):
        for expert in range(4):
            mine = chosen[row] == expert
            assert (mine & kept[row]).sum() == min(mine.sum(), capacity)
            # The earlier token goes first: what was dropped comes after all that was kept.
            places = kept[row][mine].tolist()
            assert places == sorted(places, reverse=True)
    assert routing.dropped == pytest.approx(1.0 - kept.float().mean().item())


def test_a_dropped_token_passes_by_and_only_training_drops():
    experts = layer(moe_capacity_factor=0.01, n_experts_per_token=1).train()
    x = some_input(1)
    y = experts(x)[0][0]
    kept = experts._route(x)[2][0, :, 0]
    assert 1 <= kept.sum() <= 4
    assert not y[~kept].any() and y[kept].all()
    torch.testing.assert_close(experts.eval()(x)[0], by_hand(experts, x), rtol=1e-5, atol=1e-5)


def test_every_parameter_has_a_gradient_even_of_an_expert_without_tokens():
    model = lively_model(config(n_experts=6, n_experts_per_token=1)).train()
    total, _, aux = model.loss(random_ids(1, 2), random_ids(1, 2, seed=1))
    (total + aux["loss"]).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_report_holds_the_weighted_losses_and_the_load_of_each_layer():
    model = lively_model(config(n_layers=4, moe_layers="odd", balance_loss=0.5, router_z_loss=0.25))
    targets = random_ids(2, CONTEXT, seed=1)
    targets[0, 4:] = -100
    _, _, aux = model.loss(random_ids(2, CONTEXT), targets)
    assert aux["expert_load"].shape == (2, 4) and aux["dropped"].tolist() == [0.0, 0.0]
    torch.testing.assert_close(aux["expert_load"].sum(dim=1), torch.ones(2))
    both = 0.5 * aux["balance_loss"] + 0.25 * aux["router_z_loss"]
    assert aux["loss"].item() == pytest.approx(both.item())
    # Each sequence counts as often as it has targets: 4 and 16.
    routings = model._run(random_ids(2, CONTEXT))[1]
    balance = torch.stack([routing.balance for routing in routings]).mean(dim=0)
    assert aux["balance_loss"].item() == pytest.approx((4 * balance[0] + 16 * balance[1]).item())


def test_a_dense_model_reports_nothing():
    model = lively_model(config(n_experts=None))
    assert model.loss(random_ids(1, 4), random_ids(1, 4))[2] == {}


def values_and_gradients(experts: Experts, x: torch.Tensor) -> dict[str, torch.Tensor]:
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = experts(x)
    y.float().square().sum().backward()
    found = {name: p.grad.clone() for name, p in experts.named_parameters()}
    experts.zero_grad()
    return found | {"x": x.grad, "y": y.detach()}


@pytest.mark.parametrize("capacity", [None, 0.6])
def test_one_grouped_product_gives_what_the_loop_over_experts_gives(monkeypatch, capacity):
    experts = layer(d_ff=16, n_experts_per_token=2, moe_capacity_factor=capacity).train()
    one_by_one = values_and_gradients(experts, some_input())
    assert (capacity is None) == (experts(some_input())[1].dropped == 0)
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        patch.setattr(experts, "_one_by_one", None)
        grouped = values_and_gradients(experts, some_input())
    assert grouped.keys() == one_by_one.keys()
    for name, value in grouped.items():
        torch.testing.assert_close(value, one_by_one[name], rtol=0.02, atol=0.07, msg=name)


def test_experts_are_one_graph_when_they_are_compiled():
    experts = layer(d_ff=16, n_experts_per_token=2, moe_capacity_factor=0.6).train()
    compiled = torch.compile(experts, backend="eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(some_input())[0], experts(some_input())[0])
