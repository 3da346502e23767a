"""Small configurations of every kind, for tests that hold for all models, and a test of the kinds."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import find
from hypothesis import strategies as st

from model import ModelConfig, Transformer

VOCABULARY = 23
CONTEXT = 16


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads, and on a busy machine wait a hundred times longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@st.composite
def small_configs(draw, **fixed) -> ModelConfig:
    """Any mixture of choices at a size that runs in a millisecond; `fixed` values are not drawn."""
    n_heads = draw(st.sampled_from([1, 2, 3, 4, 6]))
    divisors = [n for n in range(1, n_heads + 1) if n_heads % n == 0]
    values = {
        "d_model": draw(st.sampled_from([8, 12])),
        "n_layers": draw(st.integers(1, 3)),
        "n_heads": n_heads,
        "n_kv_heads": draw(st.sampled_from(divisors)),
        "head_dim": draw(st.sampled_from([4, 6])),
        "d_ff": draw(st.sampled_from([5, 16])),
        "max_seq_len": CONTEXT,
        "vocab_size": VOCABULARY,
        "norm": draw(st.sampled_from(["rmsnorm", "layernorm"])),
        "positions": draw(st.sampled_from(["rope", "alibi", "rope+alibi", "none"])),
        "rope_layout": draw(st.sampled_from(["half", "interleaved"])),
        "rope_scale": draw(st.sampled_from([1.0, 2.0])),
        "sliding_window": draw(st.sampled_from([None, 1, 3, 7])),
        "qk_norm": draw(st.booleans()),
        "tie_embeddings": draw(st.booleans()),
        "d_embed": draw(st.sampled_from([None, 4])),
    }
    if draw(st.booleans()):
        values |= {
            "n_experts": draw(st.integers(2, 4)),
            "n_experts_per_token": draw(st.integers(1, 2)),
            "router_temperature": draw(st.sampled_from([1.0, 2.0])),
            "shared_expert": draw(st.booleans()),
            "moe_capacity_factor": draw(st.sampled_from([None, 0.75, 1.25])),
        }
    return ModelConfig(**values | fixed)


def lively_model(config: ModelConfig, seed: int = 0) -> Transformer:
    """A model in evaluation mode whose logits differ by much more than rounding does.

    First weights of 0.02 make all logits alike, and a test on them would pass for a wrong model.
    """
    generator = torch.Generator().manual_seed(seed)
    model = Transformer(config, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.3, generator=generator)
            else:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def random_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    """Ids of the small vocabulary."""
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def test_every_kind_is_drawn():
    kinds = {
        "experts with a capacity": lambda c: c.moe_capacity_factor is not None,
        "grouped heads with a window": lambda c: 1 < c.kv_heads < c.n_heads and c.sliding_window,
        "both positions": lambda c: c.positions == "rope+alibi",
        "an untied, factorised table": lambda c: c.d_embed is not None and not c.tie_embeddings,
    }
    assert all(find(small_configs(), kind) for kind in kinds.values())
