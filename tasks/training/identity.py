"""What makes a run this run: the fingerprint of everything that goes into its weights.

A running folder carries it. One that does not match what is asked for now belongs to another run:
it is set aside, the differing fields are named, and training starts afresh.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import model
from tasks.errors import UserError
from tasks.files import fingerprint, read_json, write_json
from tasks.recipe import Recipe
from tasks.recipe_mixture import Drawing, Mixture
from tasks.settings import Settings
from tasks.training import checkpoint
from tasks.training.starting import starting_config
from tasks.workspace import Workspace

# Settings of a phase that change what is logged or kept, not the weights; and those of its data,
# of which the fingerprint of the mix says what they come to.
_NOT_IDENTITY = {
    "validate_every", "validation_tokens", "checkpoint_every", "recompute",
} | set(Drawing.model_fields) | set(Mixture.model_fields)  # fmt: skip
# What a run that is gone on with cannot have otherwise.
_CANNOT_CHANGE = ("model.", "tokenizer", "phase.optimizer.name", "phase.seq_len")
# The files of model/ that define what the network computes.
NETWORK = (
    "attention.py", "config.py", "experts.py", "feedforward.py", "flex.py", "linear.py",
    "loss.py", "masks.py", "norm.py", "positions.py", "transformer.py",
)  # fmt: skip


def identity(workspace: Workspace, recipe: Recipe, phase: str, mix: str) -> dict[str, Any]:
    """Every input of the phase's weights, by name, as JSON values; ``mix`` is its fingerprint."""
    start = recipe.phases[phase].starts_from
    parent = checkpoint.require(workspace.checkpoint(start))
    return {
        "seed": recipe.seed,
        "phase": recipe.phases[phase].model_dump(mode="json", exclude=_NOT_IDENTITY),
        "model": starting_config(workspace, recipe, phase).to_dict(),
        "network_code": network_code(),
        "tokenizer": read_json(workspace.tokenizer / "report.json")["fingerprint"],
        "mix": mix,
        "starts_from": fingerprint(read_json(parent / checkpoint.MANIFEST)["files"]),
    }


def network_code() -> str:
    """Fingerprint of the network's code by its syntax trees: comments and docstrings are free."""
    folder = Path(model.__file__).parent
    trees = {}
    for name in NETWORK:
        path = folder / name
        if path.exists():
            trees[name] = ast.dump(_without_docstrings(ast.parse(path.read_text("utf-8"))))
    return fingerprint(trees)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            text = body[0].value
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                text.value = ""
    return tree


def differences(was: Any, now: Any, key: str = "") -> list[str]:
    """The fields in which two identities differ, as ``key: was -> is``."""
    if isinstance(was, dict) and isinstance(now, dict):
        names = sorted(was.keys() | now.keys())
        return [
            line
            for name in names
            for line in differences(was.get(name), now.get(name), f"{key}.{name}".lstrip("."))
        ]
    return [] if was == now else [f"{key}: {_short(was)} -> {_short(now)}"]


def claim(run: Path, now: dict[str, Any], machine: Settings) -> list[str]:
    """Make ``run`` the running folder of the identity ``now``; the caller holds its lock.

    A folder of another identity, or any where ``restart`` is asked for, is emptied into a sibling.
    Where ``adopt`` is asked for, it is gone on with instead, and the differing fields are returned
    for the record. Raises UserError where these are of a kind that the weights cannot survive.
    """
    path = run / "identity.json"
    adopted: list[str] = []
    if path.exists():
        changed = differences(read_json(path), now)
        if machine.restart or (changed and not machine.adopt):
            aside = set_aside(run)
            why = "restart asked for" if machine.restart else "; ".join(changed)
            print(f"    an earlier run of this phase is set aside as {aside.name} ({why})")
        elif changed:
            if fixed := [c for c in changed if c.startswith(_CANNOT_CHANGE)]:
                raise UserError(
                    f"{run} cannot be gone on with: {'; '.join(fixed)}",
                    where="PHASEWISE_ADOPT",
                    hint="unset it to set that run aside and start afresh",
                )
            print(f"    going on with a run of other settings ({'; '.join(changed)})")
            adopted = changed
    write_json(path, now)
    return adopted


def set_aside(run: Path) -> Path:
    """Move everything in ``run`` but its lock into a new sibling folder."""
    number = 1
    while (aside := run.with_name(f"{run.name}.aside-{number}")).exists():
        number += 1
    aside.mkdir()
    for path in run.iterdir():
        if path.name != ".lock":
            path.rename(aside / path.name)
    return aside


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:12] + "..."
