"""The real dvc.yaml with commands that do no work: every stage writes a small file in a moment.

A file in the project tells a stage to misbehave: ``fail-<stage>`` holds an exit code, ``die-<stage>``
makes it end by SIGKILL once, ``slow-<stage>`` holds seconds to take; ``fail-<stage>-<name>`` and
``slow-<stage>-<name>`` speak to one source or phase. ``ran-<stage>`` has a line for every time it
ran, ``spans`` one for each that ended well, with when it began and ended.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from ruamel.yaml import YAML

from tests.places import ROOT

PARAMS = """\
name: toy # a whole recipe, so that changes of it can be checked
description: no work at all
seed: 1
sources: {sources}
dedup: {{}}
held_out: {{}}
tokenizer: {{kind: byte_bpe, vocab_size: 320}}
model: {{d_model: 32, n_layers: 2, n_heads: 2, d_ff: 64, max_seq_len: 32}}
training:
  seq_len: 32
  batch_tokens: 64
phases:
  phase1: {{starts_from: init, tokens: 1024, mixture: {mixture}}} # the long one
  phase2:
    starts_from: phase1
    tokens: 512 # the short one
    mixture: {mixture}
    lr: 1e-3
evaluation: {{}}
release: {{phase: phase2}}
"""

COMMAND = """\
import json, os, signal, sys, time
from pathlib import Path

stage, name, outputs = sys.argv[1], sys.argv[2], sys.argv[3:]
began = time.time()

def told(what):
    # the content of a file that speaks to this stage
    found = [Path(p) for p in (f"{what}-{stage}", f"{what}-{stage}-{name}") if Path(p).exists()]
    return found[0].read_text() if found else None

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
if code := told("fail"):
    print("error: toy.txt: it is broken\\nhint: mend it", file=sys.stderr, flush=True)
    sys.exit(int(code))
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
if seconds := told("slow"):
    time.sleep(float(seconds))
for path in outputs:
    if path.endswith("history.jsonl"):
        write(path, history)
    elif Path(path).suffix:
        write(path)
    else:  # a folder, with a part for every source
        for source in ("stdlib", "packages"):
            write(f"{path}/{source}/x")
with open("spans", "a") as spans:
    address = stage if name == "-" else f"{stage}@{name}"
    spans.write(f"{address} {began} {time.time()}\\n")
"""


def environment() -> dict[str, str]:
    """For commands in the toy's folder: this Python first, this repository importable."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    lock = {"PHASEWISE_ACCELERATOR_LOCK": ".prefect/accelerator.lock"}  # of the toy alone
    return lock | kept | {"PATH": path, "PYTHONPATH": str(ROOT), "GIT_CONFIG_GLOBAL": os.devnull}


def run(root: Path, *command: str, check: bool = True, **extra: str) -> str:
    """What a command in the toy's folder prints, both streams; ``extra`` joins its environment.

    As in a shell, PWD is the folder: prefect.yaml has the deployments run there.
    """
    done = subprocess.run(
        command, cwd=root, env=environment() | {"PWD": str(root)} | extra, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    if check:
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def make(root: Path, sources: Iterable[str] = ("stdlib", "packages")) -> Path:
    """Write the toy project into the empty folder ``root``."""
    yaml = YAML()
    story = yaml.load((ROOT / "dvc.yaml").read_text())
    named = ", ".join(f"{source}: {{installed: stdlib}}" for source in sources)
    mixture = ", ".join(f"{source}: 1" for source in sources)
    params = PARAMS.format(sources=f"{{{named}}}", mixture=f"{{{mixture}}}")
    (root / "params.yaml").write_text(params)
    for name, stage in story["stages"].items():
        stage = stage.get("do", stage)
        key = "${key}" if "${key}" in stage["cmd"] else "-"
        outputs = [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]
        outputs = [next(iter(o)) if isinstance(o, dict) else o for o in outputs]  # with options
        stage["cmd"] = " ".join(["python toy.py", name, key, *outputs])
    with (root / "dvc.yaml").open("w") as file:
        yaml.dump(story, file)
    (root / "toy.py").write_text(COMMAND)
    (root / "model").mkdir()
    (root / "model/config.py").write_text("")
    (root / ".dvc").mkdir()
    for path in ("prefect.toml", "prefect.yaml", ".gitignore", ".dvcignore", ".dvc/config",
                 ".dvc/.gitignore"):  # fmt: skip
        shutil.copy(ROOT / path, root / path)
    run(root, "git", "init", "-q")
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


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def processes(root: Path) -> list[str]:
    """The command lines of the processes that run in the toy's folder (Linux)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "cwd").resolve(strict=True) == root:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                found.append(b" ".join(words).decode(errors="replace"))
    return [command for command in found if command]
