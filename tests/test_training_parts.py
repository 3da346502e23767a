"""The parts of training, each alone: schedule, optimizer, average, record, checkpoint."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import ModelConfig, Transformer
from tasks.errors import UserError
from tasks.recipe import Optimizer, Phase
from tasks.training import checkpoint
from tasks.training.ema import EMA
from tasks.training.history import History, read_history
from tasks.training.identity import NETWORK, differences, network_code
from tasks.training.optimizer import Optimizers
from tasks.training.schedule import lr_at

TINY = ModelConfig(d_model=16, n_layers=2, n_heads=2, d_ff=32, max_seq_len=32, vocab_size=64)


def phase(**changes: Any) -> Phase:
    fields = {"starts_from": "init", "tokens": 100_000, "mixture": {"a": 1.0}, "seq_len": 10}
    return Phase(**(fields | {"batch_tokens": 1000, "lr": 1.0} | changes))


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
def test_the_warmup_rises_to_the_peak_and_the_decay_ends_one_step_above_the_floor(
    schedule: str,
) -> None:
    cooldown = 20_000 if schedule == "wsd" else 0
    p = phase(schedule=schedule, warmup_tokens=10_000, min_lr=0.1, cooldown_tokens=cooldown)
    rates = [lr_at(p, step) for step in range(p.steps)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    end = {"constant": 1.0, "cosine": 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 89 / 90))}
    end |= {"linear": 0.1 + 0.9 / 90, "wsd": 0.1 + 0.9 / 20}
    assert rates[-1] == pytest.approx(end[schedule])


@given(st.integers(0, 99), st.integers(0, 50_000))
def test_the_rate_is_a_function_of_tokens_and_stays_within_its_bounds(
    step: int, warmup: int
) -> None:
    p = phase(warmup_tokens=warmup, min_lr=0.01)
    assert lr_at(p, step) == lr_at(p, step)
    assert 0 < lr_at(p, step) <= 1.0


def test_each_parameter_is_in_one_group_and_only_matrices_decay() -> None:
    model = Transformer(TINY)
    optimizer = Optimizers(model, Optimizer(weight_decay=0.1), lr=1.0)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [[names[id(p)] for p in g["params"]] for g in optimizer.param_groups]
    assert sorted(itertools.chain(*groups)) == sorted(names.values())
    decayed = groups[[g["weight_decay"] for g in optimizer.param_groups].index(0.1)]
    assert all("proj" in name for name in decayed)
    everything = Optimizers(model, Optimizer(weight_decay=0.1, decay="all"), lr=1.0)
    assert [g["weight_decay"] for g in everything.param_groups] == [0.1]


def _step(model: Transformer, optimizer: Optimizers, seed: int) -> None:
    torch.manual_seed(seed)
    ids = torch.randint(0, 64, (2, 9))
    optimizer.zero_grad()
    model.loss(ids[:, :-1], ids[:, 1:])[0].backward()
    optimizer.step(torch.amp.GradScaler("cpu", enabled=False))


def test_an_optimizer_that_was_saved_and_loaded_goes_on_bit_for_bit() -> None:
    torch.manual_seed(0)
    first = Transformer(TINY)
    second = Transformer(TINY)
    one = Optimizers(first, Optimizer(), lr=1e-2)
    for seed in range(3):
        _step(first, one, seed)
    second.load_state_dict(first.state_dict())
    two = Optimizers(second, Optimizer(), lr=1e-2)
    saved = {name: t.clone() for name, t in one.tensors().items()}
    two.load(saved, updates=3)
    _step(first, one, 9)
    _step(second, two, 9)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])


def test_a_state_that_lacks_a_moment_is_refused() -> None:
    model = Transformer(TINY)
    optimizer = Optimizers(model, Optimizer(), lr=1e-2)
    _step(model, optimizer, 0)
    saved = optimizer.tensors()
    name = next(iter(saved))
    del saved[name]
    with pytest.raises(UserError, match=name):
        optimizer.load(saved, updates=1)


def test_the_average_follows_its_definition_and_starts_warm() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 0.0)
    ema = EMA(model, decay=0.9995)
    expected, value = 0.0, 0.0
    for update in range(50):
        value += 1.0
        torch.nn.init.constant_(model.weight, value)
        ema.update(model)
        decay = min(0.9995, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * value
    assert ema.updates == 50
    assert ema.average["weight"].item() == pytest.approx(expected, rel=1e-5)


def test_lending_the_average_leaves_the_weights_as_they_were() -> None:
    model = Transformer(TINY)
    ema = EMA(model, 0.9)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        for p in ema.average.values():
            p.add_(1.0)
    with ema.swapped(model):
        assert not torch.equal(model.embed_tokens.weight, before["embed_tokens.weight"])
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_a_history_that_is_cut_back_holds_no_step_twice(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path)
    for step in range(5):
        history.write("train", step=step)
    history.close()
    with open(path, "ab") as handle:
        handle.write(b'{"kind": "train", "st')  # a crash in the middle of a line
    assert [r["step"] for r in read_history(path)] == [0, 1, 2, 3, 4]
    again = History(path, keep_lines=3)
    again.write("train", step=3)
    again.close()
    assert [r["step"] for r in read_history(path)] == [0, 1, 2, 3]


def test_a_history_that_lost_lines_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('{"kind": "run"}\n')
    with pytest.raises(UserError, match="has 1 lines, the checkpoint saw 3"):
        History(path, keep_lines=3)


def _save(folder: Path, value: float = 1.0) -> Path:
    tensors = {"model": {"w": torch.full((4, 4), value)}, "ema": {"w": torch.zeros(2)}}
    checkpoint.save(folder, tensors, {"state": {"step": 1}})
    return folder


def test_a_checkpoint_is_read_back_as_written(tmp_path: Path) -> None:
    folder = _save(tmp_path / "step-000000001", 3.0)
    assert checkpoint.fault(folder) is None
    assert torch.equal(checkpoint.load_tensors(folder, "model")["w"], torch.full((4, 4), 3.0))
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000001"]


@pytest.mark.parametrize(
    "name", ["model.safetensors", "ema.safetensors", "state.json", "manifest.json"]
)
@pytest.mark.parametrize("how", ["flip", "cut", "empty", "gone"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(
    tmp_path: Path, name: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    older = _save(tmp_path / "step-000000001")
    path = _save(tmp_path / "step-000000002") / name
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[len(content) // 2] ^= 1
    damaged = {"flip": bytes(content), "cut": bytes(content[:-3]), "empty": b""}
    path.unlink() if how == "gone" else path.write_bytes(damaged[how])
    assert checkpoint.newest(tmp_path) == older
    assert "step-000000002 is not whole" in capsys.readouterr().out
    assert len(list(tmp_path.glob("corrupt-step-000000002-*"))) == 1


def test_where_no_checkpoint_is_whole_training_does_not_start_again(tmp_path: Path) -> None:
    (_save(tmp_path / "step-000000001") / "model.safetensors").unlink()
    for _ in range(2):  # nor on the second try, when the broken one is set aside already
        with pytest.raises(UserError, match="PHASEWISE_RESTART=1") as caught:
            checkpoint.newest(tmp_path)
        assert caught.value.exit_code == 65


def test_a_save_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        checkpoint.save(tmp_path / "step-1", {}, {"state": {"x": float("nan")}})
    assert list(tmp_path.iterdir()) == []


def test_the_newest_checkpoint_is_by_step_not_by_clock(tmp_path: Path) -> None:
    import os

    newest = _save(tmp_path / "step-000000010")
    older = _save(tmp_path / "step-000000009")
    os.utime(newest, (0, 0))
    assert checkpoint.newest(tmp_path) == newest != older
    checkpoint.prune(tmp_path, keep=1)
    assert checkpoint.running(tmp_path) == [newest]


def test_a_manifest_of_a_later_format_says_so(tmp_path: Path) -> None:
    folder = _save(tmp_path / "step-1")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"version": 99}))
    assert "format 99" in str(checkpoint.fault(folder))


def test_differences_name_the_fields() -> None:
    was = {"seed": 1, "phase": {"lr": 0.1, "tokens": 5}}
    now = {"seed": 1, "phase": {"lr": 0.2, "tokens": 5}, "mix": "x"}
    assert differences(was, now) == ["mix: None -> x", "phase.lr: 0.1 -> 0.2"]
    assert differences(was, was) == []


def test_the_code_that_counts_is_all_that_the_network_imports() -> None:
    import subprocess
    import sys

    script = (
        "import sys, model.transformer; "
        "print(*sorted(m.split('.')[1] + '.py' for m in sys.modules if m.startswith('model.')))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    # what a checkpoint's weights do not depend on: how they were drawn, read back, or decoded
    free = {"cache.py", "checks.py", "counts.py", "init.py"}
    assert sorted(set(out.stdout.split()) - free) == sorted(NETWORK)
    assert len(network_code()) == 64


@settings(max_examples=20, deadline=None)
@given(
    st.dictionaries(st.text(max_size=3), st.integers()),
    st.dictionaries(st.text(max_size=3), st.integers()),
)
def test_two_identities_differ_exactly_where_their_fields_do(
    a: dict[str, int], b: dict[str, int]
) -> None:
    assert bool(differences(a, b)) == (a != b)
