"""A registered model is registered once, speaks anywhere, and comes back as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.errors import BAD_DATA, CANNOT_WRITE, NO_INPUT, USAGE, UserError
from tasks.files import sha256_file
from tasks.recipe import Recipe
from tasks.release.manifest import verify_export
from tasks.release.mlflow_store import Store, load
from tasks.release.pull import pull, resolve
from tasks.release.register import register
from tasks.workspace import Workspace
from tests.places import ROOT
from tests.release_workspace import BITS, make_workspace, write_export

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
URI = "models:/demo@champion"


@pytest.fixture(scope="module", autouse=True)
def _own_settings(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Recipe]:
    """A workspace whose second phase is registered."""
    workspace, recipe = make_workspace(tmp_path_factory.mktemp("project"))
    write_export(workspace, recipe, "phase2")
    register(workspace, recipe)
    return workspace, recipe


def registration(workspace: Workspace) -> dict[str, str]:
    found: dict[str, str] = json.loads(workspace.registration.read_text())
    return found


def model_files(workspace: Workspace) -> Path:
    [folder] = (workspace.root / "mlartifacts/models").iterdir()
    return folder / "artifacts"


def test_registering_twice_gives_one_version(registered: tuple[Workspace, Recipe]) -> None:
    workspace, recipe = registered
    first = registration(workspace)
    store = Store(workspace.root)
    store.client.delete_registered_model_alias("demo", "champion")
    register(workspace, recipe)
    assert registration(workspace) == first
    assert list(store.versions("demo")) == ["1"]
    assert store.aliases("demo") == {"champion": "1"}


def test_the_registration_says_what_was_registered(registered: tuple[Workspace, Recipe]) -> None:
    workspace, recipe = registered
    found = registration(workspace)
    assert found["uri"] == URI
    assert (found["version"], found["phase"], found["weights"]) == ("1", "phase2", "ema")
    assert found["tracking_uri"] == "sqlite:///mlflow.db"
    assert found["export"] == sha256_file(workspace.export("phase2") / "pipeline.json")
    tags = Store(workspace.root).versions("demo")["1"]
    for name, (_, ema) in BITS["phase2"].items():
        assert tags[f"bits_per_byte.{name}"] == f"{ema:.4f}"
    assert tags["phasewise.recipe_fingerprint"] == recipe.fingerprint
    run = Store(workspace.root).client.get_run(found["run_id"])
    assert run.info.run_name == "phase2" and run.info.status == "FINISHED"
    assert [m.model_id for m in run.outputs.model_outputs]


def test_the_registered_card_has_the_held_out_figures_and_the_export_is_untouched(
    registered: tuple[Workspace, Recipe],
) -> None:
    workspace = registered[0]
    card = (model_files(workspace) / "artifacts/export/README.md").read_text()
    assert "1.747" in card
    assert (workspace.export("phase2") / "README.md").read_text() == "to be written\n"
    verify_export(workspace.export("phase2"))
    assert not list(workspace.report.glob(".register-*"))


def test_the_logged_model_has_no_pickle(registered: tuple[Workspace, Recipe]) -> None:
    files = [p for p in model_files(registered[0]).rglob("*") if p.is_file()]
    assert {p.suffix for p in files} <= {
        ".py", ".json", ".yaml", ".txt", ".safetensors", ".md", "",
    }  # fmt: skip
    for path in files:
        assert not path.read_bytes().startswith(b"\x80"), f"{path} looks like a pickle"
        assert "__pycache__" not in path.parts
    assert {p.name for p in files if p.suffix == ""} == {"MLmodel"}


def test_an_empty_folder_without_the_repository_is_enough_to_predict(
    registered: tuple[Workspace, Recipe], tmp_path: Path
) -> None:
    clash = tmp_path / "elsewhere"  # another package of the name that our architecture has
    (clash / "model").mkdir(parents=True)
    (clash / "model/__init__.py").write_text("taken = True\n")
    code = f"""
import json, sys, warnings
import model, mlflow
assert model.taken
assert not any(p and p.startswith({str(ROOT)!r}) and "/.venv/" not in p for p in sys.path), sys.path
champion = mlflow.pyfunc.load_model({URI!r})
asked = dict(max_new_tokens=8, seed=7)
texts = champion.predict(["Once upon", "", "a <|endoftext|>"], params=asked)
again = champion.predict(["Once upon", "", "a <|endoftext|>"], params=asked)
alone = champion.predict(["Once upon"], params=asked)
greedy = champion.predict(["Once upon"], params=dict(max_new_tokens=8, temperature=0.0))
print(json.dumps([texts, again, alone, greedy, champion.predict(["Once upon"])]))
"""
    empty = tmp_path / "empty"
    empty.mkdir()
    uri = f"sqlite:///{registered[0].root / 'mlflow.db'}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment |= {"MLFLOW_TRACKING_URI": uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    environment["PYTHONPATH"] = str(clash)  # instead of ours
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=empty, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    texts, again, alone, greedy, default = json.loads(done.stdout.splitlines()[-1])
    assert all(isinstance(text, str) for text in texts) and len(texts) == 3
    assert texts == again
    assert alone == texts[:1] and greedy != alone
    assert len(default[0]) > len(greedy[0]) / 2


def test_a_registered_network_with_experts_gives_the_logits_of_its_checkpoint(
    tmp_path: Path,
) -> None:
    workspace, recipe = make_workspace(tmp_path)
    write_export(workspace, recipe, "phase2", n_experts=4, moe_layers="odd")
    register(workspace, recipe)
    loaded = load(model_files(workspace)).unwrap_python_model()
    import torch

    from tasks.release.native import load_export

    ids = torch.arange(20).reshape(2, 10)
    with torch.inference_mode():
        expected = load_export(workspace.export("phase2"))(ids)
        assert torch.equal(loaded.network(ids), expected)


def test_a_changed_export_is_refused_before_anything_is_registered(tmp_path: Path) -> None:
    workspace, recipe = make_workspace(tmp_path)
    weights = write_export(workspace, recipe, "phase2") / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors was changed"):
        register(workspace, recipe)
    assert not workspace.registration.exists()
    assert Store(workspace.root).models() == []


def test_what_is_pulled_is_the_plain_export_byte_for_byte(
    registered: tuple[Workspace, Recipe], tmp_path: Path
) -> None:
    workspace = registered[0]
    folder = pull(URI, tmp_path / "some/where", workspace.root)
    verify_export(folder)
    original = workspace.export("phase2")
    assert {p.name for p in folder.iterdir()} == {p.name for p in original.iterdir()}
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert sha256_file(folder / name) == sha256_file(original / name)
    assert list(folder.parent.iterdir()) == [folder]
    assert pull("models:/demo/1", folder, workspace.root) == folder  # this very model: left alone


def test_a_model_is_resolved_by_folder_or_address_and_fetched_once(
    registered: tuple[Workspace, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = registered[0].root / "data"
    monkeypatch.chdir(inside)  # the registry is found from anywhere inside the project
    folder = resolve(URI)
    assert resolve(str(folder)) == folder
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert resolve("models:/demo/1") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    (folder / "model.safetensors").write_bytes(b"cut")
    verify_export(resolve(URI))
    with pytest.raises(UserError, match="no folder nowhere"):
        resolve("nowhere")


@pytest.mark.parametrize(
    ("uri", "code", "says"),
    [
        ("models:/demmo@champion", NO_INPUT, "did you mean 'demo'? there are: demo"),
        ("models:/demo@champoin", NO_INPUT, "did you mean 'champion'? there are: champion"),
        ("models:/demo/2", NO_INPUT, "there are: 1"),
        ("models:/..@champion", USAGE, "not the address"),
        ("models:/demo/../../etc", USAGE, "not the address"),
        ("models:/demo/latest", USAGE, "not the address"),
        ("models:/demo", USAGE, "not the address"),
        ("https://example.org/demo", USAGE, "not the address"),
        ("models:/demo'; drop@x", USAGE, "not the address"),
    ],
)
def test_an_address_that_leads_nowhere_says_what_there_is(
    registered: tuple[Workspace, Recipe], tmp_path: Path, uri: str, code: int, says: str
) -> None:
    with pytest.raises(UserError) as caught:
        pull(uri, tmp_path / "model", registered[0].root)
    assert caught.value.exit_code == code
    assert says in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_asking_where_there_is_no_registry_makes_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no registry") as caught:
        pull(URI, tmp_path / "model", tmp_path)
    assert caught.value.exit_code == NO_INPUT
    assert not list(tmp_path.iterdir())


def test_a_destination_that_holds_something_else_is_left_as_it_is(
    registered: tuple[Workspace, Recipe], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for destination in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(UserError, match="something else") as caught:
            pull(URI, destination, registered[0].root)
        assert caught.value.exit_code == CANNOT_WRITE
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "pipeline.json"])
def test_a_model_that_was_tampered_with_in_the_registry_is_not_handed_out(
    registered: tuple[Workspace, Recipe], tmp_path: Path, name: str
) -> None:
    [folder] = (registered[0].root / "mlartifacts/models").iterdir()
    path = folder / "artifacts/artifacts/export" / name
    content = path.read_bytes()
    try:
        path.write_bytes(content.replace(b'"', b"'", 1))
        with pytest.raises(UserError, match="does not hold what was registered") as caught:
            pull(URI, tmp_path / "model", registered[0].root)
        with pytest.raises(UserError):
            register(*registered)
    finally:
        path.write_bytes(content)
    assert caught.value.exit_code == BAD_DATA
    assert not (tmp_path / "model").exists()
