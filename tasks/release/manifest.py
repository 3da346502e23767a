"""An export's manifest, pipeline.json: what it was made of, and every file's size and SHA-256.

It is written last and read first: a folder that does not agree with it is not opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.errors import BAD_DATA, NO_INPUT, UserError
from tasks.files import read_json, sha256_file, write_json

VERSION = 1
MANIFEST = "pipeline.json"


def seal(folder: Path, facts: dict[str, Any]) -> None:
    """Write the manifest of a folder that is complete but for it."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST
    }
    write_json(folder / MANIFEST, {"version": VERSION, **facts, "files": files})


def verify_export(folder: Path) -> dict[str, Any]:
    """The manifest of an export whose every file is as it was written, and which has no other.

    Raises UserError naming the file that is missing, cut short, changed or not the export's.
    """
    if not folder.is_dir():
        raise UserError(
            f"there is no exported model at {folder}",
            hint="make one: dvc repro export, or fetch one: phasewise pull",
            exit_code=NO_INPUT,
        )
    try:
        manifest = read_json(folder / MANIFEST)
        version, files = manifest["version"], manifest["files"]
        if version != VERSION:
            raise UserError(
                f"{folder} is of export format {version}; this program reads {VERSION}",
                exit_code=BAD_DATA,
            )
        faults = [fault for name, expected in files.items()
                  if (fault := _fault(folder, name, expected))]  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder / MANIFEST} is not an export's manifest: {error!r}", exit_code=BAD_DATA
        ) from None
    found = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    faults += [f"{name} is not one of its files" for name in sorted(found - {*files, MANIFEST})]
    if faults:
        raise UserError(
            f"{folder} is not what was exported: " + "; ".join(faults),
            hint="fetch or export it again",
            exit_code=BAD_DATA,
        )
    return dict(manifest)


def verify_model(folder: Path) -> None:
    """Check a folder by the manifest it has: an export's, or an imported checkpoint's.

    Raises UserError where neither is there, or a file is not as it was written.
    """
    from tasks.training import checkpoint

    if (folder / checkpoint.MANIFEST).exists() and not (folder / MANIFEST).exists():
        checkpoint.require(folder)
    else:
        verify_export(folder)


def _fault(folder: Path, name: str, expected: dict[str, Any]) -> str | None:
    path = folder / name
    if path.name != name:
        return f"{name!r} is not a file name"
    if not path.is_file():
        return f"{name} is missing"
    if (size := path.stat().st_size) != expected["bytes"]:
        return f"{name} has {size} bytes, not {expected['bytes']}"
    if sha256_file(path) != expected["sha256"]:
        return f"{name} was changed (its SHA-256 differs)"
    return None
