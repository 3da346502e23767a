"""From the registry to a plain folder: `models:/<name>@<alias>` -> what transformers opens.

    registry -> a temporary folder -> checked against the manifest, and that against the registry
             -> renamed to where it was asked for

Only files are fetched. None of the code that a registered model carries is run.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import BAD_DATA, CANNOT_WRITE, NO_INPUT, UserError, nearest, unknown_name
from tasks.files import sha256_file, sync_folder, sync_tree
from tasks.registry import provenance
from tasks.registry.mlflow_store import SEAL, Store
from tasks.release.manifest import MANIFEST, verify_export

SCHEME = "models:/"
_URI = re.compile(r"models:/(?P<name>\w[\w. -]*)(?:@(?P<alias>\w[\w.-]*)|/(?P<version>[0-9]+))")


@dataclass(frozen=True)
class Version:
    """A version of a registered model that phasewise made; ``seal`` is its manifest's SHA-256."""

    name: str
    number: str
    seal: str


def pull(uri: str, destination: Path, root: Path | None = None) -> Path:
    """Fetch a registered model's exported folder to ``destination``; returns it.

    Args:
        uri: ``models:/<name>@<alias>`` or ``models:/<name>/<version>``.
        destination: a new or empty folder. One that holds this very model is left as it is.
        root: the project's folder; default: the one around the current folder.

    Raises UserError: (66) no such model, version or alias, with those that there are; (65) what the
    registry holds is not what was registered; (73) the destination holds something else; (69)
    MLflow does not answer.
    """
    store = open_registry(root)
    return _fetch(store, find(store, uri), uri, destination)


def resolve(model: str, root: Path | None = None) -> Path:
    """The exported folder that ``model`` means: a folder, a phase of the project around the current
    folder, ``imported/<name>``, or a registered model, fetched once.

    Fetched models are kept in the user's cache folder. Errors as of `pull`.
    """
    if not model.startswith(SCHEME):
        if Path(model).is_dir():
            return Path(model)
        made = _made_here()
        if model in made:
            return made[model]
        guess = nearest(model, made)
        known = f"a phase here ({', '.join(made)}), " if made else ""
        raise UserError(
            f"there is no folder {model}" + (" and no such phase" if made else ""),
            hint=f"{f'did you mean {guess}? ' if guess else ''}a model is {known}an exported "
            "folder, such as exports/<phase>, or models:/<name>@<alias>",
            exit_code=NO_INPUT,
        )
    store = open_registry(root)
    version = find(store, model)
    kept = cache_folder() / version.seal
    if kept.exists() and not _holds(kept, version):
        shutil.rmtree(kept)
    return _fetch(store, version, model, kept)


def _made_here() -> dict[str, Path]:
    """Exported phases and imported models of the project around the current folder, by name."""
    here = Path.cwd()
    for root in (here, *here.parents):
        exports, imported = (root / kind for kind in ("exports", "checkpoints/imported"))
        if exports.is_dir() or imported.is_dir():
            found = {
                path.parent.name: path.parent for path in sorted(exports.glob(f"*/{MANIFEST}"))
            }
            others = {path.name: path for path in sorted(imported.glob("*")) if path.is_dir()}
            return found | {f"imported/{name}": path for name, path in others.items()}
    return {}


def cache_folder() -> Path:
    """Where fetched models are kept: ``$XDG_CACHE_HOME/phasewise`` or ``~/.cache/phasewise``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "phasewise"


def open_registry(root: Path | None = None) -> Store:
    """The registry of the project around the current folder; none is made by asking."""
    if root is None:
        here = Path.cwd()
        root = next((p for p in (here, *here.parents) if (p / "mlflow.db").exists()), here)
    database = provenance.local_database(root)
    if database and not database.exists():
        raise UserError(
            f"there is no registry: {database} is missing",
            hint="make a model first (phasewise demo), or set MLFLOW_TRACKING_URI to a server's "
            "address",
            exit_code=NO_INPUT,
        )
    return Store(root)


def find(store: Store, uri: str) -> Version:
    """The version that ``uri`` names. Raises UserError that lists what there is instead."""
    parts = _URI.fullmatch(uri)
    if not parts:
        raise UserError(
            f"{uri!r} is not the address of a registered model",
            hint="models:/<name>@<alias> or models:/<name>/<version>, say models:/demo@champion",
        )
    where = {"where": f"MLflow at {provenance.shown_uri(store.root)}"}
    name, alias, number = parts["name"], parts["alias"], parts["version"]
    if name not in (names := store.models()):
        raise unknown_name("registered model", name, names, **where)
    if alias:
        if alias not in (aliases := store.aliases(name)):
            raise unknown_name(f"alias of {name}", alias, aliases, **where)
        number = aliases[alias]
    if number not in (versions := store.versions(name)):
        raise unknown_name(f"version of {name}", number, versions, **where)
    if SEAL not in versions[number]:
        raise UserError(
            f"version {number} of {name} was not registered by phasewise",
            hint="fetch it with: mlflow artifacts download",
            exit_code=BAD_DATA,
            **where,
        )
    return Version(name, number, versions[number][SEAL])


def _fetch(store: Store, version: Version, uri: str, destination: Path) -> Path:
    if destination.exists() and any(destination.iterdir() if destination.is_dir() else [1]):
        if _holds(destination, version):
            return destination
        raise UserError(
            f"{destination} exists and holds something else than {uri}",
            hint="choose another folder, or move that one away",
            exit_code=CANNOT_WRITE,
        )
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=destination.parent) as scratch:
        fetched = store.download(version.name, version.number, Path(scratch), "artifacts/export")
        try:
            verify_export(fetched)
            if not _holds(fetched, version):
                raise UserError(f"{MANIFEST} was changed", exit_code=BAD_DATA)
        except UserError as error:
            raise UserError(
                "the registry does not hold what was registered: "
                + error.message.replace(str(fetched), "the export"),
                where=uri,
                hint="nothing was written; take another version, or register the model again",
                exit_code=BAD_DATA,
            ) from None
        sync_tree(fetched)
        os.rename(fetched, destination)
    sync_folder(destination.parent)
    return destination


def _holds(folder: Path, version: Version) -> bool:
    """Whether ``folder`` is the version's export, whole."""
    try:
        verify_export(folder)
    except UserError:
        return False
    return sha256_file(folder / MANIFEST) == version.seal
