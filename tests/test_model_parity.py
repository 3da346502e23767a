"""The same weights give the same logits in transformers, whose code others trust.

Weights are drawn with a spread of 0.3: at 0.02 all logits are alike and a wrong model would pass.
"""

import pytest
import torch
from safetensors.torch import save_file

from model import ModelConfig
from tests.test_model_strategies import (
    lively_model,
    one_thread,  # noqa: F401
    random_ids,
)

transformers = pytest.importorskip("transformers")


def sizes(**values) -> ModelConfig:
    return ModelConfig(
        **{
            "d_model": 48, "n_layers": 3, "n_heads": 6, "d_ff": 96, "max_seq_len": 64,
            "vocab_size": 23,
        } | values
    )  # fmt: skip


def hugging_face(config: ModelConfig, weights: dict, kind: str = "Llama", **extra):
    """The native class with `weights` under its own names, strictly."""
    scaled = config.rope_scale != 1.0
    settings = getattr(transformers, f"{kind}Config")(
        vocab_size=config.vocab_size, hidden_size=config.d_model, intermediate_size=config.d_ff,
        num_hidden_layers=config.n_layers, num_attention_heads=config.n_heads,
        num_key_value_heads=config.kv_heads, head_dim=config.head_size,
        max_position_embeddings=config.max_seq_len, rms_norm_eps=config.norm_eps,
        tie_word_embeddings=config.tie_embeddings,
        rope_parameters={
            "rope_type": "linear" if scaled else "default", "rope_theta": config.rope_base,
        } | ({"factor": config.rope_scale} if scaled else {}),
        **extra,
    )  # fmt: skip
    model = getattr(transformers, f"{kind}ForCausalLM")(settings).eval()
    renamed = {n if n.startswith("lm_head") else f"model.{n}": t for n, t in weights.items()}
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected
    model.tie_weights()
    return model


def assert_same_logits(config: ModelConfig, weights_of=None, **how) -> None:
    model = lively_model(config)
    weights = model.state_dict() if weights_of is None else weights_of(model)
    other = hugging_face(config, weights, **how)
    ids = random_ids(2, 64)
    with torch.no_grad():
        ours, theirs = model(ids), other(ids).logits
    assert ours.std() > 0.5
    assert (ours - theirs).abs().max() <= 1e-4


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"tie_embeddings": False},
        {"n_kv_heads": 2},
        {"n_kv_heads": 1, "head_dim": 10},
        {"rope_scale": 2.0},
        {"rope_base": 500.0, "norm_eps": 1e-2},
    ],
    ids=str,
)
def test_logits_equal_those_of_llama(values):
    assert_same_logits(sizes(**values))


def test_the_interleaved_layout_equals_llama_with_query_and_key_rows_reordered():
    config = sizes(rope_layout="interleaved", n_kv_heads=2, rope_scale=2.0)

    def reordered(model):
        """Rows of each head from pairs (0 1)(2 3)... to halves 0 2 ... 1 3 ..."""
        size = config.head_size
        return {
            name: tensor.unflatten(0, (-1, size // 2, 2)).transpose(1, 2).flatten(0, 2)
            if "q_proj" in name or "k_proj" in name
            else tensor
            for name, tensor in model.state_dict().items()
        }

    assert_same_logits(config, reordered)
    with pytest.raises(AssertionError):
        assert_same_logits(config)


def test_a_factorised_table_equals_llama_with_the_projections_multiplied_out():
    config = sizes(d_embed=12)
    untied = sizes(tie_embeddings=False)
    model = lively_model(config)
    weights = dict(model.state_dict())
    table = weights.pop("embed_tokens.weight")
    weights["embed_tokens.weight"] = table @ weights.pop("embed_in.weight").T
    weights["lm_head.weight"] = table @ weights.pop("embed_out.weight")
    ids = random_ids(2, 64)
    with torch.no_grad():
        difference = model(ids) - hugging_face(untied, weights)(ids).logits
    assert difference.abs().max() <= 1e-4


def test_a_sliding_window_equals_that_of_mistral():
    config = sizes(sliding_window=9, n_kv_heads=2)
    assert_same_logits(config, kind="Mistral", sliding_window=9)


def test_qk_norm_equals_that_of_qwen3():
    assert_same_logits(sizes(qk_norm=True, n_kv_heads=3), kind="Qwen3")


def test_the_loss_equals_that_of_llama():
    config = sizes()
    model = lively_model(config)
    ids = random_ids(2, 64)
    total, count, _ = model.loss(ids[:, :-1], ids[:, 1:])
    theirs = hugging_face(config, model.state_dict())(ids, labels=ids).loss
    assert (total / count).item() == pytest.approx(theirs.item(), rel=1e-5)


def test_experts_equal_those_of_qwen2_moe(tmp_path):
    """Odd layers alone, top-2 weights as the router gives them, a temperature in the router."""
    config = sizes(
        n_layers=4, n_kv_heads=2, tie_embeddings=False, n_experts=5, n_experts_per_token=2,
        moe_layers="odd", router_temperature=2.0,
    )  # fmt: skip
    model = lively_model(config)
    weights = {
        n if n.startswith("lm_head") else f"model.{n}": t for n, t in model.state_dict().items()
    }
    for layer in (1, 3):
        mlp = f"model.layers.{layer}.mlp"
        weights[f"{mlp}.gate.weight"] = weights[f"{mlp}.gate.weight"] / 2.0
        weights[f"{mlp}.shared_expert_gate.weight"] = torch.zeros(1, 48)
        for part, shape in {"gate": (8, 48), "up": (8, 48), "down": (48, 8)}.items():
            weights[f"{mlp}.shared_expert.{part}_proj.weight"] = torch.zeros(shape)
    settings = transformers.Qwen2MoeConfig(
        vocab_size=23, hidden_size=48, intermediate_size=96, moe_intermediate_size=96,
        shared_expert_intermediate_size=8, num_hidden_layers=4, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-6, qkv_bias=False,
        num_experts=5, num_experts_per_tok=2, norm_topk_prob=False, mlp_only_layers=[0, 2],
        decoder_sparse_step=1, tie_word_embeddings=False,
        architectures=["Qwen2MoeForCausalLM"], dtype="float32",
    )  # fmt: skip
    settings.save_pretrained(tmp_path)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs, report = transformers.Qwen2MoeForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids = random_ids(2, 64)
    with torch.no_grad():
        assert (model(ids) - theirs(ids).logits).abs().max() <= 1e-4
