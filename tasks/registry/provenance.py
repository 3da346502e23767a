"""Where a result comes from, as flat words that a record keeper takes: git state, settings, tags.

Nothing leaves the machine with a password in it: addresses lose what stands before ``@`` and the
values of a query that are secrets; MLflow's own password and token are blotted out wherever they
stand.
"""

from __future__ import annotations

import getpass
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.files import read_json
from tasks.recipe import Recipe
from tasks.workspace import Workspace, home

MAX_KEY, MAX_VALUE = 250, 500  # the least that any MLflow server of the last years takes
MAX_TEXT = 5000  # of a tag or a description: the same
EXPERT_SETTINGS = (
    "n_experts_per_token", "moe_layers", "moe_capacity_factor", "moe_renormalize",
    "router_temperature", "balance_loss", "router_z_loss", "shared_expert",
)  # fmt: skip
_USER_INFO = re.compile(r"(?<=://)[^/\s]*@")
_SECRET_QUERY = re.compile(
    r"([?&][^=&\s]*(?:token|secret|password|signature|credential|key|sig)[^=&\s]*=)[^&#\s'\"]+",
    re.I,
)
_OWN_SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_FOREIGN = re.compile(r"[^/\w.\- :]")  # what MLflow takes in no name
_GIT_SECONDS = 10


def without_credentials(text: str) -> str:
    """``https://user:token@host/x?key=1`` -> ``https://host/x?key=***``, for every address."""
    text = _SECRET_QUERY.sub(r"\1***", _USER_INFO.sub("", text))
    for name in _OWN_SECRETS:
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    return text


def record_name(text: str) -> str:
    """A name that MLflow takes for a metric, parameter or tag: ``a//b?`` -> ``a/b_``."""
    parts = [part for part in _FOREIGN.sub("_", text).split("/") if part.strip(".")]
    return "/".join(parts)[:MAX_KEY].rstrip("/") or "_"


def words(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags and parameters as MLflow takes them: names, lengths, no password."""
    return {record_name(k): without_credentials(str(v))[:MAX_TEXT] for k, v in tags.items()}


def tracking_uri(root: Path) -> str:
    """``MLFLOW_TRACKING_URI``, or the database beside the project's params.yaml."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home(root) / 'mlflow.db'}"


def local_database(root: Path) -> Path | None:
    """The SQLite file of the default tracking address; None where another address is set."""
    return None if os.environ.get("MLFLOW_TRACKING_URI") else home(root) / "mlflow.db"


def shown_uri(root: Path) -> str:
    """The tracking address as it may be written down: relative where local, without a password."""
    return without_credentials(tracking_uri(root).replace(f"sqlite:///{home(root)}/", "sqlite:///"))


def user_tag() -> dict[str, str]:
    """Who runs this, where the system has a name for them."""
    try:
        return {"mlflow.user": getpass.getuser()}
    except (OSError, KeyError):  # a container's number
        return {}


def git_tags(root: Path) -> dict[str, str]:
    """Commit, dirty flag and remote of the repository around ``root``; empty without one."""
    commit = _git(root, "rev-parse", "HEAD")
    if not commit:
        return {}
    tags = {
        "mlflow.source.git.commit": commit,
        "phasewise.git_dirty": str(bool(_git(root, "status", "--porcelain"))).lower(),
    }
    if remote := _git(root, "remote", "get-url", "origin"):
        tags["mlflow.source.git.repoURL"] = without_credentials(remote)
    return tags


def _git(root: Path, *arguments: str) -> str:
    """What git prints, or nothing where there is no git, no repository or no answer."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            check=False,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def run_tags(workspace: Workspace, recipe: Recipe, phase: str) -> dict[str, str]:
    """What a phase's run is known by: recipe, data, code and place in the story."""
    tags = {
        "phasewise.phase": phase,
        "phasewise.recipe_fingerprint": recipe.fingerprint,
        "dvc.stage": f"train@{phase}",
        "mlflow.source.name": f"train@{phase}",
        "mlflow.source.type": "LOCAL",
        "mlflow.note.content": recipe.description,
    }
    mix = workspace.mix(phase)
    if mix.exists():
        tags["phasewise.data_fingerprint"] = read_json(mix)["fingerprint"]
    return tags | user_tag() | git_tags(workspace.root)


def parameters(recipe: Recipe, phase: str) -> dict[str, str]:
    """The settings that make a run this run, flat: ``lr``, ``mixture.web``, ``model.d_model``."""
    sections: dict[str, Any] = {
        **recipe.phases[phase].model_dump(mode="json"),
        "seed": recipe.seed,
        "model": network_settings(recipe),
        "tokenizer": recipe.tokenizer.model_dump(mode="json", exclude_none=True),
    }
    return flat(sections)


def flat(sections: dict[str, Any]) -> dict[str, str]:
    """Nested settings as ``section.name``; those that are not set, or empty, are left out."""
    return {key: value[:MAX_VALUE] for key, value in _flat(sections)}


def network_settings(recipe: Recipe) -> dict[str, Any]:
    """The network's settings that say something: none of experts where there are none."""
    settings = {k: v for k, v in recipe.model.to_dict().items() if v is not None}
    if recipe.model.n_experts is None:
        for name in EXPERT_SETTINGS:
            settings.pop(name, None)
    return settings


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    items: list[tuple[str, str]] = []
    for key, part in value.items():
        if isinstance(part, dict):
            items += _flat(part, f"{prefix}{key}.")
        elif part not in (None, [], ()):
            items.append((prefix + key, str(part)))
    return items
