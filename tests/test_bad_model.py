"""Models, addresses and options that cannot be: refused in words, and nothing in a file is run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks import recipe as recipes
from tasks.cli import main  # noqa: F401  (what the tests call; imported once, before they count)
from tasks.release.export import write_network
from tasks.release.manifest import MANIFEST, seal
from tasks.training.state import load_network
from tests.refusals import command, project, refusal

Ask = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def exported(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network in the form of an export."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    folder.mkdir()
    network = load_network(tiny / "checkpoints/init")
    write_network(folder, network, {})
    for path in (tiny / "data/tokenizer").iterdir():
        if path.name != "report.json" and path.is_file():
            shutil.copy(path, folder)
    seal(folder, {"recipe": recipes.load(tiny / "params.yaml").name})
    return folder


@pytest.fixture
def root(exported: Path, tmp_path: Path) -> Path:
    """A project with a model of its own at ``model``."""
    root = project(tmp_path / "p")
    shutil.copytree(exported, root / "model")
    return root


@pytest.fixture
def ask(root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ask:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def asked(*arguments: str) -> tuple[int, str]:
        return command(capsys, monkeypatch, root, *arguments)

    return asked


GENERATE = ("generate", "--model", "model", "--prompt", "The ", "--max-new-tokens", "2")


def test_the_model_of_these_tests_speaks(ask: Ask) -> None:
    assert ask(*GENERATE)[0] == 0


# A folder ------------------------------------------------------------------------------------------


def html(path: Path) -> None:
    path.write_text("<html>404 not found</html>")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def deep(path: Path) -> None:
    path.write_text("[" * 50_000)


def set_key(key: str, value: Any) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        values = json.loads(path.read_text())
        values["phasewise"][key] = value
        path.write_text(json.dumps(values))

    return edit


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        named = {name: tensor.clone() for name, tensor in load_file(path).items()}
        change(named)
        save_file(named, path)

    return edit


BROKEN = [
    ("model.safetensors", html, "model.safetensors is not a whole safetensors file"),
    ("model.safetensors", cut, "model.safetensors is not a whole safetensors file"),
    ("model.safetensors", tensors(lambda n: n.popitem()), "does not fit the model. missing: "),
    ("model.safetensors", tensors(lambda n: n.update(x=torch.ones(1))), "not the model's: x"),
    ("model.safetensors", tensors(lambda n: n.update({next(iter(n)): torch.ones(3, 3)})), "of another shape: "),
    ("model.safetensors", tensors(lambda n: next(iter(n.values())).fill_(float("nan"))), "not finite: "),
    ("config.json", html, "config.json is not JSON"),
    ("config.json", deep, "recursion"),
    ("config.json", lambda path: path.write_text("[]"), "config.json has no table 'phasewise'"),
    ("config.json", set_key("d_model", 10**9), "d_model must lie in 1 to 1048576"),
    ("config.json", set_key("n_layers", 10**9), "n_layers must lie in 1 to 4096"),
    ("tokenizer.json", html, "tokenizer.json: not valid JSON"),
    ("tokenizer.json", deep, "tokenizer.json: "),
    ("generation_config.json", lambda p: p.write_text('{"temperature": "hot"}'), "temperature must be a number"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "spoil", "says"), BROKEN, ids=[f"{b[0]}-{b[2][:25]}" for b in BROKEN]
)
@pytest.mark.parametrize("sealed", [False, True], ids=["changed", "sealed"])
def test_a_folder_that_makes_no_model_is_refused_whether_its_manifest_agrees_or_not(
    root: Path, ask: Ask, name: str, spoil: Callable[[Path], Any], says: str, sealed: bool
) -> None:
    spoil(root / "model" / name)
    if sealed:
        seal(root / "model", {})
    refusal(ask(*GENERATE), 65, says if sealed else "model is not what was exported")


MANIFESTS = [
    ('{"version": 1, "files": {"../params.yaml": {"bytes": 1, "sha256": "x"}}}', "is not a file name"),
    ('{"version": 1, "files": {"/etc/passwd": {"bytes": 1, "sha256": "x"}}}', "is not a file name"),
    ('{"version": 2, "files": {}}', "is of export format 2; this program reads 1"),
    ("[]", "is not an export's manifest"),
    ("[" * 50_000, "is not valid JSON"),
    ("<html>", "is not valid JSON"),
    ('{"version": ' + "9" * 5000 + "}", "is not valid JSON"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "says"), MANIFESTS, ids=[m[1][:20] + str(i) for i, m in enumerate(MANIFESTS)]
)
def test_a_manifest_that_is_none_is_refused(root: Path, ask: Ask, content: str, says: str) -> None:
    (root / "model" / MANIFEST).write_text(content)
    refusal(ask(*GENERATE), 65, says)


# Addresses and options -----------------------------------------------------------------------------

ASKED = [
    (("generate", "--model", "nowhere", "--prompt", "x"), 66, "there is no folder nowhere"),
    (("generate", "--model", "params.yaml", "--prompt", "x"), 66, "there is no folder"),
    (("generate", "--model", "models:/tiny@champion", "--prompt", "x"), 66, "there is no registry"),
    (("pull", "models:/../../etc", "out"), 66, "there is no registry"),
    (("quantize", "nowhere"), 66, "there is no folder nowhere"),
    (("gguf", "nowhere"), 66, "there is no folder nowhere"),
    (("gguf", "model", "--type", "q9"), 66, "no type 'q9'"),
    (("import", "nowhere.pt", "--to", "x"), 66, "there is no file nowhere.pt"),
    (("import", "model/model.safetensors", "--to", "../../x"), 2, "'../../x' is no name"),
    (("recipes", "use", "../params"), 66, "no recipe '../params'"),
    ((*GENERATE, "--temperature", "nan"), 2, "temperature must be a finite number"),
    ((*GENERATE, "--temperature", "-1"), 2, "temperature must be a finite number"),
    ((*GENERATE, "--top-p", "0"), 2, "top_p must be a finite number above 0"),
    ((*GENERATE, "--top-p", "1.5"), 2, "top_p must be a finite number above 0 and at most 1"),
    ((*GENERATE, "--max-new-tokens", "0"), 2, "max_new_tokens must lie in 1 to"),
    ((*GENERATE, "--max-new-tokens", "9" * 20), 2, "max_new_tokens must lie in 1 to"),
    ((*GENERATE, "--seed", "9" * 30), 2, "seed must lie in 0 to"),
    (("data", "show", "leters"), 66, "did you mean 'letters'?"),
    (("lr-find", "phase9"), 66, "did you mean 'phase"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "says"), ASKED, ids=[" ".join(a[0])[-45:] for a in ASKED]
)
def test_what_is_not_there_or_cannot_be_is_said(
    root: Path, ask: Ask, arguments: tuple[str, ...], code: int, says: str
) -> None:
    refusal(ask(*arguments), code, says)
    assert not (root / "mlflow.db").exists() and not (root / "out").exists()


# Files with code in them ---------------------------------------------------------------------------


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch hacked",)


def as_torch(path: Path) -> None:
    torch.save({"model": {"w": torch.ones(2)}, "config": Evil()}, path)


def as_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Evil(), protocol=2))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("write", "says"),
    [(as_torch, "asks to build posix.system, which is no tensor"), (as_pickle, "asks to build posix.system"),
     (html, "is not a whole file of tensors"), (lambda p: p.write_bytes(b""), "is not a whole file")],
)  # fmt: skip
@pytest.mark.parametrize("forced", [False, True], ids=["", "torch told to run code"])
def test_a_foreign_file_is_read_without_running_it(
    root: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path], None], says: str, forced: bool,
) -> None:  # fmt: skip
    write(root / "foreign.pt")
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    said = refusal(ask("import", "foreign.pt", "--to", "x"), 65, says, "hint: ")
    assert "weights_only" not in said, "torch's advice is to run the code"
    assert not (root / "hacked").exists() and not (root / "checkpoints").exists()
