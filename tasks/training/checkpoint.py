"""Checkpoints that are whole or refused.

    step-0000300/  model.safetensors  ema.safetensors  optimizer.safetensors
                   config.json  state.json  [local.json]  manifest.json

A checkpoint is written under a temporary name, each file hashed and synced, the manifest last, then
renamed. A reader takes the newest one whose every size and hash agrees, sets the others aside and
says so; where some exist and none is whole it stops rather than start again. Tensors are
safetensors, the rest JSON: there is no pickle. safetensors itself loads a flipped bit without a
word, hence the hashes.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tasks.errors import BAD_DATA, NO_INPUT, UserError
from tasks.files import atomic_folder, read_json, sha256_file, write_json, write_tensors

VERSION = 1
MANIFEST = "manifest.json"
Tensors = dict[str, Tensor]


def save(
    folder: Path,
    tensors: dict[str, Tensors],
    records: dict[str, Any],
    beside: Callable[[Path], None] | None = None,
) -> None:
    """Write a checkpoint folder, whole or not at all.

    Args:
        tensors: file stem -> named tensors, e.g. ``{"model": {...}, "ema": {...}}``: on the CPU,
            contiguous, each in a storage of its own.
        records: file stem -> JSON value, e.g. ``{"state": {...}, "config": {...}}``.
        beside: writes what else lies in the folder that it is given.
    """
    with atomic_folder(folder) as temporary:
        for stem, named in tensors.items():
            write_tensors(temporary / f"{stem}.safetensors", named)
        for stem, value in records.items():
            write_json(temporary / f"{stem}.json", value)
        if beside is not None:
            beside(temporary)
        seal(temporary)


def seal(folder: Path) -> None:
    """Write the manifest of a folder that is complete but for it."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(folder.iterdir())
    }
    write_json(folder / MANIFEST, {"version": VERSION, "files": files})


def fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None where every file is as it was written."""
    try:
        manifest = read_json(folder / MANIFEST)
        version, files = manifest["version"], manifest["files"]
        if version != VERSION:
            return f"made by format {version}; this program reads {VERSION}"
        for name, expected in files.items():
            path = folder / name
            if path.name != name:
                return f"{name!r} is not a file name"
            if not path.exists():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes, not {expected['bytes']}"
            if sha256_file(path) != expected["sha256"]:
                return f"{name} was changed after it was written (SHA-256 differs)"
    except (UserError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST}: {getattr(error, 'message', repr(error))}"
    return None


def require(folder: Path) -> Path:
    """``folder`` itself, verified. Raises UserError where it is missing or not whole."""
    if not folder.exists():
        stage = folder.name if folder.name == "init" else f"train@{folder.name}"
        imported = folder.parent.name == "imported"
        make = (
            f"phasewise import <weights> --to {folder.name}" if imported else f"dvc repro {stage}"
        )
        raise UserError(
            f"there is no checkpoint at {folder}",
            hint=f"make it: {make}",
            exit_code=NO_INPUT,
        )
    if what := fault(folder):
        raise UserError(
            f"{folder} is not whole: {what}",
            hint=f"take it from the cache again: dvc checkout --force {folder}",
            exit_code=BAD_DATA,
        )
    return folder


def load_tensors(folder: Path, stem: str, device: str | torch.device = "cpu") -> Tensors:
    """The named tensors of one file of a verified checkpoint; empty where the file is absent."""
    path = folder / f"{stem}.safetensors"
    return load_file(path, device=str(device)) if path.exists() else {}


def running(run: Path) -> list[Path]:
    """Running checkpoints under ``run``, newest step first (by name: clocks can jump)."""
    return sorted(run.glob("step-*"), reverse=True)


def step_folder(run: Path, step: int) -> Path:
    return run / f"step-{step:09d}"


def newest(run: Path) -> Path | None:
    """The newest whole running checkpoint, or None where there is none yet.

    Broken ones are renamed ``corrupt-...`` and named on the terminal. Raises UserError where there
    are checkpoints and none is whole.
    """
    refused = []
    for folder in running(run):
        what = fault(folder)
        if what is None:
            return folder
        aside = run / f"corrupt-{folder.name}-{time.time_ns()}"
        os.rename(folder, aside)
        refused.append(f"{folder.name}: {what}")
        print(f"    warning: {folder.name} is not whole ({what}); set aside as {aside.name}")
    if aside_before := [path.name for path in sorted(run.glob("corrupt-*"))]:
        raise UserError(
            f"no checkpoint under {run} is whole: " + "; ".join(refused or aside_before),
            hint="put a good copy back, or give up what was trained with PHASEWISE_RESTART=1",
            exit_code=BAD_DATA,
        )
    return None


def prune(run: Path, keep: int, spared: int | None = None) -> None:
    """Remove all but the ``keep`` newest running checkpoints and the one of step ``spared``."""
    for folder in running(run)[keep:]:
        if spared is None or folder != step_folder(run, spared):
            shutil.rmtree(folder)
