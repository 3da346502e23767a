"""A params.yaml that cannot be: refused in words, with file, line or key, and exit code 2 or 66."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tasks.data.download import download
from tests.places import ROOT
from tests.refusals import change, command, project, refusal, run_stage

TINY = (ROOT / "tests/tiny.yaml").read_text()

FILES = [
    ("empty", "", 2, ["got an empty file", "hint: copy a recipe"]),
    ("list", "- a\n", 2, ["expected a mapping of keys, got list"]),
    ("text", "hello", 2, ["expected a mapping of keys, got str"]),
    ("tab", "a:\n\tb: 1\n", 2, ["params.yaml:2:1: ", "hint: indent with spaces"]),
    ("bracket", "a:\n - [1, 2\nb: 1", 2, ["params.yaml:3:2: ", "that begins in line 2", "hint: "]),
    ("quote", "a: 'x\n", 2, ["params.yaml:2:1: ", "quoted scalar"]),
    ("duplicate", "a: 1\nb: 2\na: 3\n", 2, ["params.yaml:3: ", "key 'a': in line 1 and line 3"]),
    ("nested duplicate", "a: [{b: 1,\n  b: 2}]", 2, ["key 'b': in line 1 and line 2"]),
    ("two documents", "a: 1\n---\nb: 1\n", 2, ["params.yaml:2:1: ", "another document"]),
    ("alias", "a: &x [1]\nb: *x\n", 2, ["params.yaml:2: aliases (*x)", "hint: write the value out"]),
    ("alias bomb", "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", 2, ["aliases (*a) are not"]),
    ("tag", "seed: !!python/object/apply:os.system ['touch hacked']\n", 2, ["params.yaml:1: tags "]),
    ("set", "a: !!set {x, y}\n", 2, ["params.yaml:1: tags "]),
    ("bytes", "a: !!binary aGk=\n", 2, ["params.yaml:1: tags "]),
    ("key of keys", "a: {[1, 2]: 3}\n", 2, ["params.yaml:1: a key is a word"]),
    ("deep", "a: " + "[" * 3000 + "]" * 3000, 2, ["nested more than 20 levels deep"]),
    ("deep, open", "a: " + "{b: " * 3000, 2, ["nested more than 20 levels deep"]),
    ("large", "a: 1 #" + "x" * 1_000_000, 2, ["1,000,006 bytes", "hint: text to train on"]),
    ("not UTF-8", b"name: \xff\n", 2, ["byte 0xff at offset 6", "hint: save the file as UTF-8"]),
    ("NUL", "a: 1\nname: x\0y", 2, ["params.yaml:2: ", "U+0000", "hint: delete it"]),
    ("endless number", "seed: " + "9" * 5000, 2, ["a value that cannot be read", "hint: "]),
    ("no such day", "seed: 2020-13-45", 2, ["a value that cannot be read", "month", "in quotes"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "code", "words"), [f[1:] for f in FILES], ids=[f[0] for f in FILES]
)
def test_a_file_that_is_no_recipe_is_refused_with_its_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: str | bytes,
    code: int,
    words: list[str],
) -> None:
    root = project(tmp_path / "p")
    (root / "params.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    refusal(run_stage(capsys, download, root, "letters"), code, str(root / "params.yaml"), *words)
    assert not list(root.rglob("hacked"))


@pytest.mark.parametrize("what", ["missing", "folder", "loop", "dangling", "pipe"])
def test_what_is_not_a_file_is_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    path = project(tmp_path / "p") / "params.yaml"
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)  # reading it would wait for ever
    elif what != "missing":
        path.symlink_to(path if what == "loop" else tmp_path / "nowhere")
    said = "is missing" if what == "missing" else "is not a file"
    refusal(run_stage(capsys, download, path.parent, "letters"), 66, said, "hint: copy one")


VALUES = [
    ("warmup_tokens: 512", "warmup_token: 512", "training.warmup_token: unknown key; did you mean"),
    ("lr: 1e-2", 'lr: "fast"', "phases.phase1.lr: should be a valid number, got 'fast'"),
    ("lr: 1e-2", "lr: 2020-01-01", "phases.phase1.lr: should be a valid number"),
    ("lr: 1e-2", "lr:", "phases.phase1.lr: should be a valid number, got None"),
    *(("lr: 1e-2", f"lr: {v}", "phases.phase1.lr: should be a finite") for v in (".nan", ".inf", "1e400")),
    *(("lr: 1e-2", f"lr: {v}", "phases.phase1.lr: should be greater than 0") for v in ("0", "-1")),
    ("tokens: 15360", "tokens: 1.5", "phases.phase1.tokens: expected a count"),
    ("tokens: 15360", "tokens: 0", "phases.phase1.tokens: should be greater than 0"),
    ("resid_dropout: 0.1", "resid_dropout: true", "model.resid_dropout: should be a valid number"),
    ("seed: 7", f"seed: {'9' * 25}", "seed: should be less than or equal to 9223372036854775807"),
    *(("n_layers: 2", f"n_layers: {v}", "n_layers must lie in 1 to 4096") for v in ("0", "-1")),
    *(("n_layers: 2", f"n_layers: {v}", "model.n_layers: should be a valid integer") for v in (".inf", "2020-01-01", "2.5", "[2]")),
    ("n_heads: 2", "n_heads: 3", "n_heads 3 does not divide d_model 32; the nearest that do are 2 or 4"),
    ("n_heads: 2", "n_heads: 4, n_kv_heads: 3", "n_kv_heads 3 does not divide n_heads 4"),
    ("n_heads: 2", "n_heads: 4, n_kv_heads: 6", "n_kv_heads 6 does not divide n_heads 4"),
    ("n_heads: 2", "n_heads: 32", "the head width must be even, got 1"),
    ("n_heads: 2", "n_heads: 2, n_experts: 1", "n_experts must lie in 2 to 4096, got 1"),
    ("n_heads: 2", "n_heads: 2, n_experts: 2, n_experts_per_token: 3", "3 is more than n_experts 2"),
    ("n_heads: 2", "n_heads: 2, n_experts: 2, moe_capacity_factor: 0", "moe_capacity_factor must be a finite number above 0"),
    ("warmup_tokens: 512", "warmup_tokens: 15361", "(15361) must stay below tokens (15360)"),
    ("vocab_size: 320", "vocab_size: 256", "vocab_size must be at least 257"),
    ("name: tiny", "name: ../../x", "name: String should match pattern"),
    ("name: tiny", 'name: "\\e[31mred"', r"got '\x1b[31mred'"),
    ("starts_from: phase1", "starts_from: phase9", "there is no phase 'phase9'"),
    ("  letters:\n", "  -rf:\n", "sources.-rf"),
    ("  letters:\n", '  "a; touch hacked":\n', "String should match pattern"),
    ("  phase1:\n", "  phase1: 5\n  phase3:\n", "phases.phase1: should be a valid dictionary"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "words"), VALUES, ids=[v[1].strip()[:40] for v in VALUES])
def test_a_value_that_cannot_be_is_refused_by_its_key_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, words: str
) -> None:
    root = project(tmp_path / "p")
    change(root, old, new)
    refusal(run_stage(capsys, download, root, "letters"), 2, "params.yaml: ", words, "hint: ")
    assert not (root / "data").exists()


@pytest.mark.parametrize("lr", ["3e-4", "0.0003", "3.0E-4"])
def test_numbers_are_read_as_yaml_1_2_has_them(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    lr: str,
) -> None:
    root = project(tmp_path / "p")
    change(root, "lr: 1e-2", f"lr: {lr}")
    assert command(capsys, monkeypatch, root, "check") == (0, "")


def test_a_byte_order_mark_is_no_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = project(tmp_path / "p")
    (root / "params.yaml").write_text("\ufeff" + TINY)
    assert command(capsys, monkeypatch, root, "check") == (0, "")


def test_the_command_answers_as_the_stages_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = project(tmp_path / 'a folder\'s "name" ünï')
    change(root, "lr: 1e-2", "lr: fast")
    refusal(command(capsys, monkeypatch, root, "check"), 2, str(root), "phases.phase1.lr", "hint: ")


def test_a_name_that_no_stage_has_names_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = project(tmp_path / "p")
    refusal(run_stage(capsys, download, root, "leters"), 66, "'leters'", "did you mean 'letters'?")
