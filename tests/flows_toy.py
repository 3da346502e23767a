"""The real dvc.yaml with commands that do no work: every stage writes a small file in a moment.

A file in the project tells a stage to misbehave: ``fail-<stage>`` holds an exit code, ``die-<stage>``
makes it end by SIGKILL once, ``slow-<stage>`` holds seconds to take. ``ran-<stage>`` has a line for
every time it ran.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from ruamel.yaml import YAML

from tests.places import ROOT

PARAMS = """\
seed: 1
phases:
  phase1: {starts_from: init, tokens: 1000}
  phase2: {starts_from: phase1, tokens: 500}
"""

COMMAND = """\
import json, os, signal, sys, time
from pathlib import Path

stage, name, outputs = sys.argv[1], sys.argv[2], sys.argv[3:]
def write(path, text="{}"):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)

def save_and_leave(*_):
    print("saving a checkpoint", flush=True)
    write(f"runs/{name}/saved")
    sys.exit(143)

print(f"toy {stage} {name}", flush=True)
with open(f"ran-{stage}", "a") as ran:
    ran.write(f"{name} {os.environ.get('PHASEWISE_RESTART')}\\n")
if Path(f"fail-{stage}").exists():
    print("error: toy.txt: it is broken\\nhint: mend it", file=sys.stderr, flush=True)
    sys.exit(int(Path(f"fail-{stage}").read_text()))
if Path(f"die-{stage}").exists():
    Path(f"die-{stage}").unlink()
    os.kill(os.getpid(), signal.SIGKILL)
if stage == "train":
    signal.signal(signal.SIGTERM, save_and_leave)
    records = [{"kind": "run", "phase": name, "total_tokens": 1000, "total_steps": 10}]
    records += [{"kind": "train", "step": i, "tokens": 100 * i, "loss": 5 / i, "lr": 1e-3,
                 "grad_norm": 1.0, "tokens_per_second": 100.0} for i in range(1, 11)]
    records += [{"kind": "validation", "step": 10, "tokens": 1000, "set": "stdlib/validation",
                 "weights": "ema", "loss": 3.0, "bits_per_byte": 1.5, "perplexity": 20.0,
                 "accuracy": 0.3},
                {"kind": "sample", "step": 10, "tokens": 1000, "prompt": "The ", "text": "end"}]
    history = "".join(json.dumps(record) + "\\n" for record in records)
    write(f"runs/{name}/history.jsonl", history)
if Path(f"slow-{stage}").exists():
    time.sleep(float(Path(f"slow-{stage}").read_text()))
for path in outputs:
    if path.endswith("history.jsonl"):
        write(path, history)
    elif Path(path).suffix:
        write(path)
    else:  # a folder, with a part for every source
        for source in ("stdlib", "packages"):
            write(f"{path}/{source}/x")
"""


def environment() -> dict[str, str]:
    """For commands in the toy's folder: this Python first, this repository importable."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    return kept | {"PATH": path, "PYTHONPATH": str(ROOT), "GIT_CONFIG_GLOBAL": os.devnull}


def run(root: Path, *command: str, check: bool = True, **extra: str) -> str:
    """What a command in the toy's folder prints, both streams; ``extra`` joins its environment."""
    done = subprocess.run(
        command, cwd=root, env=environment() | extra, text=True, capture_output=True, check=False
    )
    if check:
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def make(root: Path, sources: Iterable[str] = ("stdlib", "packages")) -> Path:
    """Write the toy project into the empty folder ``root``."""
    yaml = YAML()
    story = yaml.load((ROOT / "dvc.yaml").read_text())
    params = yaml.load(PARAMS) | {"sources": {source: {} for source in sources}}
    for name, stage in story["stages"].items():
        stage = stage.get("do", stage)
        key = "${key}" if "${key}" in stage["cmd"] else "-"
        outputs = [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]
        outputs = [next(iter(o)) if isinstance(o, dict) else o for o in outputs]  # with options
        stage["cmd"] = " ".join(["python toy.py", name, key, *outputs])
        for param in stage.get("params", []):
            section = params
            for word in param.split(".${")[0].split("."):
                section = section.setdefault(word, {})
    for path, content in (("dvc.yaml", story), ("params.yaml", params)):
        with (root / path).open("w") as file:
            yaml.dump(content, file)
    (root / "toy.py").write_text(COMMAND)
    (root / "model").mkdir()
    (root / "model/config.py").write_text("")
    for path in ("prefect.toml", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / path, root / path)
    run(root, "git", "init", "-q")
    run(root, "dvc", "init", "-q")
    return root


def edit_params(root: Path, old: str, new: str) -> None:
    """Replace a piece of params.yaml, which must be there."""
    path = root / "params.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def times_run(root: Path, stage: str) -> int:
    path = root / f"ran-{stage}"
    return len(path.read_text().splitlines()) if path.exists() else 0


def processes(root: Path) -> list[str]:
    """The command lines of the processes that run in the toy's folder (Linux)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "cwd").resolve(strict=True) == root:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                found.append(b" ".join(words).decode(errors="replace"))
    return [command for command in found if command]
