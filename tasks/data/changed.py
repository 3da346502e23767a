"""Which files of a source are not what was downloaded of them.

DVC watches what lies in the project. A source's own files lie outside it, so what the download
stage wrote down of them (data/raw/<source>/provenance.json) is held against what is there now.
"""

from __future__ import annotations

from pathlib import Path

from tasks.data.hub import MirrorReader
from tasks.data.local import LocalReader
from tasks.errors import UserError
from tasks.files import read_json, sha256_file
from tasks.recipe import Recipe
from tasks.settings import settings
from tasks.workspace import Workspace


def changed_files(workspace: Workspace, recipe: Recipe, name: str) -> list[str]:
    """Files of a source that changed, came or went since its download: ``changed: a.txt``.

    Empty for a source that was not downloaded, that is no files (the hub's revision is pinned),
    or of which no file is on this machine: then data/raw/<source> is all there is to have.
    Contents are hashed only of files that were written after the download.
    """
    written = workspace.raw(name) / "provenance.json"
    reader = _reader(workspace, recipe, name)
    if reader is None or not written.exists():
        return []
    root = reader.folder
    known = {fact["file"]: fact for fact in read_json(written)["from"].get("files", [])}
    there = {path for paths in reader.paths.values() for path in paths}
    found = [f"new: {path}" for path in there - known.keys()]
    found += [f"gone: {path}" for path in known.keys() - there]
    since = written.stat().st_mtime_ns
    for path in there & known.keys():
        now = (root / path).stat()
        if now.st_size != known[path]["bytes"] or (
            now.st_mtime_ns > since and sha256_file(root / path) != known[path]["sha256"]
        ):
            found.append(f"changed: {path}")
    return sorted(found)


def _reader(workspace: Workspace, recipe: Recipe, name: str) -> LocalReader | MirrorReader | None:
    """The reader of a source that is files on this machine, now."""
    source, mirror = recipe.sources[name], settings().hub
    where = f"params.yaml: sources.{name}"
    try:
        if source.files:
            return LocalReader(source.files, workspace.root, where)
        if source.hub and mirror:
            return MirrorReader(source.hub, Path(mirror), where)
    except UserError:  # none of its files is here
        return None
    return None
