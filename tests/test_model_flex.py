"""Documents by blocks (FlexAttention, for CUDA) and by a bias give the same, and neither leaks.

FlexAttention refuses gradients on a CPU, because its CPU kernel has none; its plain implementation
does, so the check alone is lifted here. What only a GPU can show is the kernel itself.
"""

import pytest
import torch
import torch.nn.attention.flex_attention as flex
from hypothesis import given, settings

from model import ModelConfig, masks
from model.masks import sight
from tests.test_model_strategies import (
    CONTEXT,
    VOCABULARY,
    lively_model,
    one_thread,  # noqa: F401
    random_ids,
    small_configs,
)

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")


def documents(*borders: int) -> torch.Tensor:
    """(1, CONTEXT): a new document at each border."""
    return sum((torch.arange(CONTEXT) >= b).long() for b in (0, *borders)).unsqueeze(0) - 1


@pytest.fixture(params=["bias", "blocks"])
def path(request, monkeypatch):
    take(request.param, monkeypatch)
    return request.param


def take(path: str, monkeypatch) -> None:
    monkeypatch.setattr(flex, "_validate_device", lambda *tensors: None)
    monkeypatch.setattr(masks, "takes_blocks", lambda device: path == "blocks")


def loss_and_gradients(config, document_ids, device="cpu"):
    model = lively_model(config).train().to(device)
    ids = random_ids(len(document_ids), CONTEXT).to(device)
    total = model.loss(ids, ids.roll(-1, dims=1), document_ids.to(device))[0]
    total.backward()
    return total.detach(), {name: p.grad for name, p in model.named_parameters()}


@settings(max_examples=12, deadline=None)
@given(small_configs())
def test_blocks_give_the_loss_and_the_gradients_of_the_bias(config):
    rows = torch.cat([documents(5, 11), documents()])
    results = []
    for path in ("bias", "blocks"):
        with pytest.MonkeyPatch.context() as monkeypatch:
            take(path, monkeypatch)
            results.append(loss_and_gradients(config, rows))
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("positions", ["rope", "rope+alibi"])
@pytest.mark.parametrize("window", [None, 4])
def test_a_changed_token_changes_nothing_in_another_document(path, positions, window):
    """Neither a logit nor the gradient of any input of the other documents."""
    config = ModelConfig(
        d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=16, max_seq_len=CONTEXT,
        vocab_size=VOCABULARY, positions=positions, sliding_window=window,
    )  # fmt: skip
    model, rows = lively_model(config), documents(6, 11)
    middle = (rows == 1)[0]

    def run(ids):
        embedded = []
        hook = model.embed_tokens.register_forward_hook(lambda *a: embedded.append(a[2]))
        logits = model(ids, document_ids=rows)
        hook.remove()
        weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
        (gradient,) = torch.autograd.grad((logits.log_softmax(-1) * weights).sum(), embedded)
        return logits.detach()[0], gradient[0]

    ids = random_ids(1, CONTEXT)
    other = torch.where(middle, (ids + 1) % VOCABULARY, ids)
    for before, after in zip(run(ids), run(other), strict=True):
        assert torch.equal(before[~middle], after[~middle])
        assert not torch.allclose(before[middle], after[middle])


def test_a_model_with_documents_is_one_graph_for_the_compiler(path):
    config = ModelConfig(
        d_model=16, n_layers=2, n_heads=2, d_ff=16, max_seq_len=CONTEXT, vocab_size=VOCABULARY
    )
    model, rows, ids = lively_model(config), documents(6), random_ids(1, CONTEXT)
    compiled = torch.compile(model.loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(ids, ids, rows)[0], model.loss(ids, ids, rows)[0])


def test_blocks_are_for_cuda_without_dropout_and_for_whole_sequences():
    config = ModelConfig(
        d_model=16, n_layers=1, n_heads=2, d_ff=16, max_seq_len=CONTEXT, vocab_size=VOCABULARY
    )
    assert masks.takes_blocks(torch.device("cuda")) and not masks.takes_blocks(torch.device("cpu"))

    def seen(dropout, left_padding=None):
        return sight(
            config, 0, CONTEXT, slopes=None, left_padding=left_padding,
            document_ids=documents(3), device=torch.device("cpu"), dtype=torch.float32,
            dropout=dropout,
        )  # fmt: skip

    with pytest.MonkeyPatch.context() as monkeypatch:
        take("blocks", monkeypatch)
        assert seen(dropout=False).blocks is not None
        assert seen(dropout=True).bias is not None
        assert seen(dropout=False, left_padding=torch.tensor([2])).bias is not None


@CUDA
def test_on_a_gpu_the_kernel_gives_the_gradients_of_the_bias_on_a_cpu():
    config = ModelConfig(
        d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=64, max_seq_len=CONTEXT,
        vocab_size=VOCABULARY, positions="rope+alibi", sliding_window=7,
    )  # fmt: skip
    rows = documents(5, 11)
    there, here = loss_and_gradients(config, rows, "cuda"), loss_and_gradients(config, rows)
    torch.testing.assert_close(there[0].cpu(), here[0], rtol=1e-2, atol=1e-2)
    for name, gradient in there[1].items():
        torch.testing.assert_close(gradient.cpu(), here[1][name], rtol=5e-2, atol=5e-2)
