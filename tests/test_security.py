"""What SECURITY.md promises: no pickle, no call home, no secret written down, no open door."""

from __future__ import annotations

import ast
import json
import os
import pickletools
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from tasks.telemetry import NO_PICKLE, SWITCHES
from tests.places import ROOT
from tests.test_house import CODE, name

LOCAL = {"127.0.0.1", "localhost", "::1", "None"}
SECRETS = {
    "HF_TOKEN": "hf_PLANTED1",
    "MLFLOW_TRACKING_PASSWORD": "PLANTED2",
    "MLFLOW_TRACKING_TOKEN": "PLANTED3",
    "PREFECT_SERVER_API_AUTH_STRING": "admin:PLANTED4",
    "AWS_SECRET_ACCESS_KEY": "PLANTED5",
    "PHASEWISE_UNKNOWN": "PLANTED6",
}
STORY = """
import sys
from pathlib import Path
from tasks import stage
from tasks.data.download import download
from tasks.evaluation.evaluate import evaluate
from tasks.release.export import export
from tasks.registry.register import register
from tasks.training.train import train

for function, name in ((download, "notes"), (train, "phase1"), (train, "phase2"),
                       (export, "phase2"), (evaluate, "phase2"), (register, None)):
    if code := stage.run(function, Path(), name):
        sys.exit(code)
"""


def unswitched() -> dict[str, str]:
    """The environment of somebody who has switched nothing off."""
    switches = {*SWITCHES, *NO_PICKLE, "MLFLOW_TRACKING_URI"}
    return {k: v for k, v in os.environ.items() if k not in switches}


class Told:
    """A finished workspace, what its making printed, and which hosts it turned to."""

    def __init__(self, root: Path, words: str, hosts: set[str]) -> None:
        self.root, self.words, self.hosts = root, words, hosts


@pytest.fixture(scope="module")
def told(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Download to registration in a repository with secrets all around, tracked and spied on."""
    folder = tmp_path_factory.mktemp("told")
    root = Path(shutil.copytree(tiny, folder / "work"))
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost"]
    remote = "https://me:PLANTED7@example.org/x.git"
    for command in (["init", "-q"], ["remote", "add", "origin", remote],
                    ["add", "params.yaml"], ["commit", "-qm", "x"]):  # fmt: skip
        subprocess.run([*git, *command], cwd=root, check=True)
    dvc = [sys.executable, "-m", "dvc"]
    url = "https://me:PLANTED8@example.org/store"
    for command in (["init", "-q"], ["remote", "add", "--local", "-d", "store", url]):
        subprocess.run([*dvc, *command], cwd=root, check=True, capture_output=True)
    environment = unswitched() | SECRETS | {
        "SPY_LOG": str(folder / "spy.log"),
        "PYTHONPATH": f"{ROOT / 'tests/spy'}{os.pathsep}{ROOT}",
        "PHASEWISE_TRACK": "true",
        "HF_HUB_OFFLINE": "0",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", STORY], cwd=root, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    spied = folder / "spy.log"
    hosts = set(spied.read_text().splitlines()) if spied.exists() else set()
    return Told(root, done.stdout + done.stderr, hosts)


def files(root: Path) -> list[Path]:
    """Every file that the pipeline wrote (not the repository's and DVC's own)."""
    return [
        path for path in sorted(root.rglob("*"))
        if path.is_file() and path.relative_to(root).parts[0] not in (".git", ".dvc")
    ]  # fmt: skip


def is_pickle(content: bytes) -> bool:
    """Whether all of it is one program of the unpickler, binary (protocol 2 on) or not."""
    try:
        return bool([op.name for op, _, _ in pickletools.genops(content)][-1] == "STOP")
    except Exception:
        return False


def hidden_pickle(path: Path) -> bool:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            parts = {member: archive.read(member) for member in archive.namelist()}
    else:
        parts = {path.name: path.read_bytes()}
    return any(
        Path(part).suffix in (".pkl", ".pickle", ".pt", ".pth", ".joblib")
        or (content.startswith(b"\x93NUMPY") and b"'|O'" in content[:200])
        or (content[:1] in b"\x80(}]cI" and is_pickle(content))
        for part, content in parts.items()
    )


# Pickle -------------------------------------------------------------------------------------------


def test_no_file_of_a_whole_pipeline_is_a_pickle(told: Told) -> None:
    written = files(told.root)
    rooms = {path.relative_to(told.root).parts[0] for path in written}
    assert rooms >= {"data", "runs", "checkpoints", "exports", "evaluation", "mlartifacts"}
    assert [path for path in written if hidden_pickle(path)] == []


def test_the_search_for_pickles_finds_them(tmp_path: Path) -> None:
    import pickle

    import numpy as np
    import torch

    torch.save({"a": torch.ones(2)}, tmp_path / "weights")
    (tmp_path / "new").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "old").write_bytes(pickle.dumps([1, "a"], protocol=0))
    np.save(tmp_path / "array.npy", np.array([{}], object), allow_pickle=True)
    np.savez(tmp_path / "arrays.npz", allow_pickle=True, a=np.array([{}], object))
    for path in sorted(tmp_path.iterdir()):
        assert hidden_pickle(path), path.name
    np.save(tmp_path / "array.npy", np.ones(3))
    (tmp_path / "old").write_text("(any text)\n.")
    assert not hidden_pickle(tmp_path / "array.npy") and not hidden_pickle(tmp_path / "old")


FORBIDDEN_IMPORTS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve",
                     "marshal", "tarfile", "yaml", "jsonpickle"}  # fmt: skip
FORBIDDEN_CALLS = {"eval", "exec", "compile", "os.system", "os.popen", "pickle.loads", "torch.save",
                   "subprocess.getoutput", "subprocess.getstatusoutput", "shutil.unpack_archive",
                   "torch.hub.load", "pandas.read_pickle", "yaml.load"}  # fmt: skip


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    tree = ast.parse(path.read_text("utf-8"))
    return [(ast.unparse(n.func), n) for n in ast.walk(tree) if isinstance(n, ast.Call)]


@pytest.mark.parametrize("path", CODE, ids=name)
def test_no_code_runs_what_it_reads(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            assert not {a.name.split(".")[0] for a in node.names} & FORBIDDEN_IMPORTS
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in FORBIDDEN_IMPORTS
    for called, node in calls(path):
        where = f"{name(path)}:{node.lineno}: {called}"
        given = {k.arg: ast.unparse(k.value) for k in node.keywords}
        assert called not in FORBIDDEN_CALLS and not called.endswith(".extractall"), where
        assert given.get("shell", "False") == "False", where
        assert given.get("trust_remote_code", "False") == "False", where
        assert called != "torch.load" or given.get("weights_only") == "True", where
        if called in ("np.load", "numpy.load", "np.save", "numpy.save"):
            assert given.get("allow_pickle") == "False", where
        if called.startswith("subprocess.") and node.args:  # a list, or a name of one
            assert not isinstance(node.args[0], ast.Constant | ast.JoinedStr | ast.BinOp), where


# Calls home ---------------------------------------------------------------------------------------


def test_a_whole_pipeline_turns_to_no_other_machine(told: Told) -> None:
    assert told.hosts <= LOCAL


def test_the_spy_sees_a_call(tmp_path: Path) -> None:
    code = (
        "import socket\ntry: socket.create_connection(('192.0.2.1', 9), 0.01)\nexcept OSError: pass"
    )
    spied = {"SPY_LOG": str(tmp_path / "log"), "PYTHONPATH": str(ROOT / "tests/spy")}
    subprocess.run([sys.executable, "-c", code], env=os.environ | spied, check=True)
    assert "192.0.2.1" in (tmp_path / "log").read_text()


ENTRIES = {
    "phasewise": "import sys; sys.argv = ['phasewise', '--version']; from tasks.cli import main; main()",
    "a stage": "from pathlib import Path; from tasks import stage; stage.run(len, Path('nowhere'))",
    "a flow": "import flows",
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entrance_switches_telemetry_and_unpickling_off(entry: str) -> None:
    show = "import atexit, json, os\natexit.register(lambda: print(json.dumps(dict(os.environ))))\n"
    done = subprocess.run(
        [sys.executable, "-c", show + ENTRIES[entry]], cwd=ROOT, capture_output=True, text=True,
        env=unswitched() | {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}, check=False,
    )  # fmt: skip
    environment = json.loads(done.stdout.splitlines()[-1])
    assert {k: environment.get(k) for k in SWITCHES | NO_PICKLE} == SWITCHES | NO_PICKLE
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in environment


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_switches_telemetry_and_unpickling_off_and_binds_to_this_machine_alone() -> None:
    make = ["make", "--no-print-directory", "--eval", "probe:;@env"]
    done = subprocess.run(
        [*make, "probe"], cwd=ROOT, env=unswitched(), capture_output=True, text=True, check=True
    )
    assert {f"{k}={v}" for k, v in (SWITCHES | NO_PICKLE).items()} <= {*done.stdout.splitlines()}
    done = subprocess.run(
        ["make", "-n", "mlflow"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--host 127.0.0.1" in done.stdout


def test_the_libraries_heed_the_switches(tmp_path: Path) -> None:
    code = (
        "import flows\n"
        "from huggingface_hub.constants import HF_HUB_DISABLE_TELEMETRY as hub\n"
        "from datasets.config import HF_UPDATE_DOWNLOAD_COUNTS as counts\n"
        "from mlflow.telemetry.utils import is_telemetry_disabled\n"
        "from mlflow.environment_variables import MLFLOW_ALLOW_PICKLE_DESERIALIZATION as unpickle\n"
        "from prefect.settings import PREFECT_RESULTS_DEFAULT_SERIALIZER as results\n"
        "from prefect.settings import PREFECT_SERVER_ANALYTICS_ENABLED as analytics\n"
        "print(hub, counts, is_telemetry_disabled(), unpickle.get(), results.value(), analytics.value())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=unswitched(), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["True", "False", "True", "False", "json", "False"]


# Secrets ------------------------------------------------------------------------------------------


def test_no_secret_around_a_pipeline_is_printed_or_written(told: Told) -> None:
    assert "PLANTED" not in told.words
    assert "example.org/x.git" in (told.root / "mlflow.db").read_bytes().decode("latin-1"), (
        "the remote is on the record, but for its password"
    )
    assert [path for path in files(told.root) if b"PLANTED" in path.read_bytes()] == []


# Open doors ---------------------------------------------------------------------------------------


def listeners(pids: set[int]) -> set[str]:
    """Addresses (hex, as in /proc/net) on which some processes wait for connections (Linux)."""
    inodes = set()
    for pid in pids:
        for handle in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = str(handle.readlink())
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in inodes:
                found.add(words[1].split(":")[0])
    return found


def family(pid: int) -> set[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    below = children.read_text().split() if children.exists() else []
    return {pid}.union(*(family(int(child)) for child in below))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_processes_that_train_together_listen_on_this_machine_alone(
    tiny: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(tiny, tmp_path / "work"))
    child = subprocess.Popen(
        [sys.executable, "-m", "tasks.training.train", "phase1", "--root", str(root)], cwd=ROOT,
        env=os.environ | {"PHASEWISE_LAUNCH": "2"}, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    seen: set[str] = set()
    while child.poll() is None:
        seen |= listeners(family(child.pid))
        time.sleep(0.05)
    assert child.returncode == 0
    assert seen, "gloo's own sockets, at least"
    assert seen <= {"0100007F", "00000000000000000000000001000000"}
