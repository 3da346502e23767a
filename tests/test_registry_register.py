"""A registered model is registered once, speaks anywhere, and comes back as it was."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.errors import BAD_DATA, CANNOT_WRITE, NO_INPUT, USAGE, UserError
from tasks.evaluation.gate import Verdict
from tasks.files import sha256_file
from tasks.recipe import Recipe
from tasks.registry import verdicts
from tasks.registry.mlflow_store import Store, load
from tasks.registry.pull import pull, resolve
from tasks.registry.register import register
from tasks.registry.tracking import sync_all
from tasks.release.manifest import verify_export
from tasks.report.report import report
from tasks.report.runs import open_run
from tasks.report.summary import summary
from tasks.workspace import Workspace
from tests.places import ROOT
from tests.release_workspace import BITS, make_workspace, write_export

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
URI = "models:/demo@champion"
DVC_LOCK = f"""schema: '2.0'
stages:
  export@phase2:
    cmd: python -m tasks.release.export phase2
    outs:
    - path: exports/phase2
      hash: md5
      md5: {"a" * 32}.dir
"""


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
    (workspace.root / "dvc.lock").write_text(DVC_LOCK)
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
    assert (found["verdict"], found["alias"], found["champion"]) == ("champion", "champion", "1")
    assert found["reason"] == "it is sound, and there was no @champion"
    assert found["export"] == sha256_file(workspace.export("phase2") / "pipeline.json")
    tags = Store(workspace.root).versions("demo")["1"]
    for name, (_, ema) in BITS["phase2"].items():
        assert tags[f"bits_per_byte.{name}"] == f"{ema:.4f}"
    assert tags["phasewise.recipe_fingerprint"] == recipe.fingerprint
    assert (tags["phasewise.verdict"], tags["phasewise.reason"]) == ("champion", found["reason"])
    assert tags["phasewise.parent_run_key"] == "demo/phase1/phase10000000000"
    assert json.loads(tags["phasewise.dvc"]) == {"exports/phase2": "a" * 32 + ".dir"}
    assert json.loads(tags["phasewise.ledger"])["documents_in"] == 4600
    described = Store(workspace.root).client.get_model_version("demo", "1").description
    assert "there was no `@champion`" in described and "1.7474" in described
    assert "## Training data" in described and len(described) <= 5000
    run = Store(workspace.root).client.get_run(found["run_id"])
    assert run.info.run_name.startswith("phase2 ") and run.info.status == "FINISHED"
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
        ".py", ".json", ".yaml", ".txt", ".safetensors", ".md", ".npz", "",
    }  # fmt: skip
    for path in files:
        assert not path.read_bytes().startswith(b"\x80"), f"{path} looks like a pickle"
        assert "__pycache__" not in path.parts
    assert {p.name for p in files if p.suffix == ""} == {"MLmodel"}


def test_an_empty_folder_without_the_repository_is_enough(
    registered: tuple[Workspace, Recipe], tmp_path: Path
) -> None:
    """To predict, to download, and to open what was downloaded in transformers."""
    clash = tmp_path / "elsewhere"  # another package of the name that our architecture has
    (clash / "model").mkdir(parents=True)
    (clash / "model/__init__.py").write_text("taken = True\n")
    code = f"""
import importlib.util, json, sys, warnings
sys.meta_path = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", str(f))]
sys.path = [p for p in sys.path if not p.startswith({str(ROOT)!r}) or "/.venv/" in p]
sys.path.insert(0, {str(clash)!r})
import model, mlflow
assert model.taken
assert importlib.util.find_spec("tasks") is None and importlib.util.find_spec("flows") is None
champion = mlflow.pyfunc.load_model({URI!r})
asked = dict(max_new_tokens=8, seed=7)
texts = champion.predict(["Once upon", "", "a <|endoftext|>"], params=asked)
again = champion.predict(["Once upon", "", "a <|endoftext|>"], params=asked)
alone = champion.predict(["Once upon"], params=asked)
greedy = champion.predict(["Once upon"], params=dict(max_new_tokens=8, temperature=0.0))
print(json.dumps([texts, again, alone, greedy, champion.predict(["Once upon"])]))
from mlflow.artifacts import download_artifacts
folder = download_artifacts({URI!r}, dst_path="here") + "/artifacts/export"
from transformers import LlamaForCausalLM
import torch
logits = LlamaForCausalLM.from_pretrained(folder)(torch.arange(8)[None]).logits
assert logits.isfinite().all() and logits.shape == (1, 8, 300)
"""
    empty = tmp_path / "empty"
    empty.mkdir()
    uri = f"sqlite:///{registered[0].root / 'mlflow.db'}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment |= {"MLFLOW_TRACKING_URI": uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=empty, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    texts, again, alone, greedy, default = json.loads(done.stdout.splitlines()[-1])
    assert all(isinstance(text, str) for text in texts) and len(texts) == 3
    assert texts == again
    assert alone == texts[:1] and greedy != alone
    assert len(default[0]) > len(greedy[0]) / 2
    left = {p.name for p in (model_files(registered[0]) / "artifacts").rglob("*") if p.is_dir()}
    assert left == {"export", "architecture"}, "loading wrote into the registry"


def test_the_version_keeps_what_was_measured_and_no_path_of_this_machine(
    registered: tuple[Workspace, Recipe], tmp_path: Path
) -> None:
    workspace = registered[0]
    kept = Store(workspace.root).download("demo", "1", tmp_path, "evaluation")
    assert {p.name for p in kept.iterdir()} == {
        f"phase2.{kind}json" for kind in ("", "details.", "generation.")
    }
    for path in kept.iterdir():
        assert path.read_bytes() == (workspace.evaluation("phase2").parent / path.name).read_bytes()
    for path in model_files(workspace).rglob("*"):
        if path.is_file() and path.suffix in ("", ".yaml", ".json"):
            text = path.read_text("utf-8")
            assert str(workspace.root) not in text and str(ROOT) not in text, path.name


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


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("export/model.safetensors", "was changed"),
        ("architecture/transformer.py", "is missing or cut short"),
        ("architecture/pipeline.json", "cannot be read"),
    ],
)
def test_a_model_that_was_tampered_with_is_not_run_by_mlflow_either(
    registered: tuple[Workspace, Recipe], tmp_path: Path, name: str, says: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(model_files(registered[0]), folder)
    path = folder / "artifacts" / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\0" if "changed" in says else content[: len(content) // 2])
    with pytest.raises(Exception, match=says):
        load(folder)


def with_champion(registered: tuple[Workspace, Recipe], tmp_path: Path) -> Workspace:
    """A copy of a workspace with its registry: the copy's artifacts are its own."""
    shutil.copytree(registered[0].root, tmp_path / "copy")
    return Workspace(tmp_path / "copy")


def released(
    registered: tuple[Workspace, Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    alias: str,
    reason: str,
) -> tuple[Workspace, Recipe]:
    """A workspace with a champion, and a second export of which the gate says this."""
    workspace, recipe = with_champion(registered, tmp_path), registered[1]
    asked: list[Path] = []

    def decide(place: Workspace, recipe: Recipe, candidate: Path, champion: Path) -> Verdict:
        assert candidate == place.export("phase2")
        verify_export(champion)
        asked.append(champion)
        assert len(asked) == 1, "a verdict that stands is not reached again"
        return Verdict(alias, reason, {"difference": 0.1})

    shutil.rmtree(workspace.export("phase2"))
    write_export(workspace, recipe, "phase2", d_ff=64)
    monkeypatch.setattr(verdicts, "decide", decide)
    register(workspace, recipe)
    return workspace, recipe


def test_a_model_that_is_not_better_becomes_the_challenger_and_says_why(
    registered: tuple[Workspace, Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reason = "no better than @champion"
    workspace, recipe = released(registered, tmp_path, monkeypatch, "challenger", reason)
    found = registration(workspace)
    assert (found["version"], found["alias"], found["champion"]) == ("2", "challenger", "1")
    assert found["uri"] == "models:/demo@challenger" and found["comparison"] == {"difference": 0.1}
    store = Store(workspace.root)
    assert store.aliases("demo") == {"champion": "1", "challenger": "2"}
    assert store.versions("demo")["2"]["phasewise.compared_with"] == "1"
    assert "no better than @champion" in capsys.readouterr().out
    said = summary(workspace, recipe)
    assert "models:/demo@challenger" in said and "no better than @champion" in said
    before = workspace.registration.read_bytes()
    register(workspace, recipe)
    assert workspace.registration.read_bytes() == before
    assert store.aliases("demo") == {"champion": "1", "challenger": "2"}
    assert list(store.versions("demo")) == ["2", "1"]


def test_a_better_model_takes_the_alias_and_an_old_one_does_not_take_it_back(
    registered: tuple[Workspace, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "better than @champion"
    workspace, recipe = released(registered, tmp_path, monkeypatch, "champion", reason)
    store = Store(workspace.root)
    assert store.aliases("demo") == {"champion": "2"}
    assert registration(workspace)["champion"] == "2"
    shutil.rmtree(workspace.export("phase2"))
    write_export(workspace, recipe, "phase2")  # the first export again
    register(workspace, recipe)
    assert store.aliases("demo") == {"champion": "2"}
    assert (registration(workspace)["version"], registration(workspace)["champion"]) == ("1", "2")


def test_a_champion_that_is_not_whole_in_the_registry_stays_and_the_new_one_challenges(
    registered: tuple[Workspace, Recipe], tmp_path: Path
) -> None:
    workspace, recipe = with_champion(registered, tmp_path), registered[1]
    weights = model_files(workspace) / "artifacts/export/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    shutil.rmtree(workspace.export("phase2"))
    write_export(workspace, recipe, "phase2", d_ff=64)
    register(workspace, recipe)
    assert Store(workspace.root).aliases("demo") == {"champion": "1", "challenger": "2"}
    assert "cannot be compared with @champion, which stays" in registration(workspace)["reason"]


def test_registering_goes_on_where_it_was_stopped_between_alias_and_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, recipe = make_workspace(tmp_path)
    write_export(workspace, recipe, "phase2")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "set_alias", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            register(workspace, recipe)
    register(workspace, recipe)
    store = Store(workspace.root)
    assert store.aliases("demo") == {"champion": "1"} and list(store.versions("demo")) == ["1"]
    assert store.versions("demo")["1"]["phasewise.verdict"] == "champion"


def test_the_report_of_a_registered_model_is_found_by_its_address(
    registered: tuple[Workspace, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, recipe = registered
    monkeypatch.chdir(workspace.root)
    with pytest.raises(UserError, match="MLflow has no report of version 1 of demo") as caught:
        open_run(URI, tmp_path)
    assert caught.value.exit_code == NO_INPUT
    report(workspace, recipe)
    sync_all(workspace, recipe)  # as the stage does where PHASEWISE_TRACK is on
    found = open_run(URI, tmp_path).facts
    assert found == open_run(str(workspace.root), tmp_path).facts
    assert found["registration"]["version"] == "1"
    before = workspace.registration.read_bytes()
    workspace.registration.write_bytes(before.replace(b'"version": "1"', b'"version": "2"'))
    report(workspace, recipe)
    sync_all(workspace, recipe)
    workspace.registration.write_bytes(before)
    with pytest.raises(UserError, match="its pipeline's is of version 2 now"):
        open_run(URI, tmp_path)
