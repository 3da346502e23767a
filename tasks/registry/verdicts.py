"""What the gate says of a version, written where everybody looks: aliases, tags, description.

    the gate (tasks/evaluation/gate.py) -> @champion, and the old champion keeps its version
                                     -> @challenger, and the champion stays

The reason is written first, then the alias is moved, then the verdict is written: stopped anywhere,
the next run of `register` goes on. A verdict that stands is not reached again.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from tasks.errors import UNAVAILABLE, UserError
from tasks.evaluation.gate import CHALLENGER, Verdict, decide
from tasks.files import sha256_file
from tasks.recipe import Recipe
from tasks.registry.lineage import DVC, in_code
from tasks.registry.mlflow_runs import RUN_KEY
from tasks.registry.mlflow_store import SEAL, Store
from tasks.registry.provenance import MAX_TEXT
from tasks.release.manifest import MANIFEST, verify_export
from tasks.workspace import Workspace

VERDICT, REASON = "phasewise.verdict", "phasewise.reason"
COMPARED = "phasewise.compared_with"  # the version that had the alias then
_SHOWN_HASH = 12


def reach(
    store: Store, workspace: Workspace, recipe: Recipe, version: str, scratch: Path
) -> tuple[Verdict, str | None]:
    """The verdict on a version, and the version it was compared with, if any.

    The champion is fetched into ``scratch`` and checked. A verdict that stands already is taken.
    """
    name, alias = recipe.name, recipe.release.alias
    tags, holder = store.versions(name)[version], store.aliases(name).get(alias)
    if tags.get(VERDICT) in (alias, CHALLENGER):
        return Verdict(tags[VERDICT], tags.get(REASON, ""), None), tags.get(COMPARED)
    if holder == version:  # stopped after the alias was moved, or registered before gates were
        reason = tags.get(REASON, f"it had @{alias} before releases were compared")
        return Verdict(alias, reason, None), tags.get(COMPARED)
    candidate, champion = workspace.export(recipe.release.phase), None
    if holder is not None:
        try:
            champion = _fetch(store, name, holder, scratch)
        except UserError as error:
            if error.exit_code == UNAVAILABLE:
                raise
            reason = f"it cannot be compared with @{alias}, which stays: {error.message}"
            return Verdict(CHALLENGER, reason, None), holder
    return decide(workspace, recipe, candidate, champion), holder


def _fetch(store: Store, name: str, version: str, scratch: Path) -> Path:
    """The export of a version, whole. Raises UserError where it is not what was registered."""
    tags = store.versions(name)[version]
    if SEAL not in tags:
        raise UserError(f"version {version} was not registered by phasewise")
    folder = scratch / "champion"
    folder.mkdir()
    export = store.download(name, version, folder, "artifacts/export")
    verify_export(export)
    if sha256_file(export / MANIFEST) != tags[SEAL]:
        raise UserError(f"version {version} is not what was registered: {MANIFEST} was changed")
    return export


def apply(
    store: Store,
    recipe: Recipe,
    version: str,
    verdict: Verdict,
    tags: dict[str, str],
    description: str,
) -> None:
    """Write the verdict down and move the alias; where it was done before, change nothing.

    Args:
        tags: to bring up to date with it.
    """
    name, alias = recipe.name, recipe.release.alias
    done = store.versions(name)[version].get(VERDICT) == verdict.alias
    store.tag_version(name, version, tags | {REASON: verdict.reason})
    store.describe(name, description, version)
    aliases = store.aliases(name)
    if not done or verdict.alias not in aliases:
        store.set_alias(name, verdict.alias, version)
    if verdict.alias == alias and aliases.get(CHALLENGER) == version:
        store.set_alias(name, CHALLENGER, None)
    store.tag_version(name, version, {VERDICT: verdict.alias})


def describe(verdict: Verdict, run: str, tags: dict[str, str], text: str, card: str) -> str:
    """The description of a version in Markdown: verdict, figures, lineage, and the card after it.

    Args:
        run: the address of its run on MLflow's pages.
        tags: the version's.
        text: where its text came from, in a sentence; may be empty.
        card: README.md of its export; what does not fit is left out, by whole sections.
    """
    figures = [(k, v) for k, v in sorted(tags.items()) if k.startswith("bits_per_byte.")]
    lines = [f"`@{verdict.alias}`: {in_code(verdict.reason)}", "",
             "| held-out text | bits per byte |", "|---|---:|"]  # fmt: skip
    lines += [f"| {key.split('.', 1)[1]} | {value} |" for key, value in figures]
    lines += ["", f"- Run: [{tags['phasewise.phase']}]({run}), `{tags[RUN_KEY]}`"]
    if commit := tags.get("git.commit"):
        dirty = ", with changes" if tags.get("phasewise.git_dirty") == "true" else ""
        lines.append(f"- Code: git `{commit[:_SHOWN_HASH]}`{dirty}")
    hashes = [
        f"{path} `{md5[:_SHOWN_HASH]}`" for path, md5 in json.loads(tags.get(DVC, "{}")).items()
    ]
    if hashes:
        lines.append(f"- DVC: {', '.join(hashes)}")
    if parent := tags.get("phasewise.parent_run_key"):
        version = tags.get("phasewise.parent_version")
        lines.append(f"- Trained on from: `{parent}`" + (f", version {version}" if version else ""))
    if text:
        lines.append(f"- {text}")
    return _with_card("\n".join(lines), card)


def _with_card(beginning: str, card: str) -> str:
    """As many sections of the card as a description has room for."""
    end = "\n\nThe whole card: `artifacts/export/README.md` of this version."
    body = card.split("\n---\n", 1)[-1].strip() if card.startswith("---\n") else card.strip()
    text = beginning
    for section in re.split(r"\n\n(?=## )", body):
        part = f"\n\n{section}"
        if len(text) + len(part) + len(end) > MAX_TEXT:
            break
        text += part
    return text + end
