"""From a YAML file to a valid Recipe, or to words that say what is wrong and where.

How the file itself is read, and what is refused there already, is tasks/yaml_file.py.
"""

from __future__ import annotations

import json
import types
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from model.config import ModelConfig
from tasks.errors import UserError, nearest
from tasks.recipe import IMPORTED, INIT, Recipe, Training
from tasks.yaml_file import read_yaml

__all__ = ["read_recipe", "read_yaml", "validate"]

_MODEL = TypeAdapter(ModelConfig)
_HINT = "recipes/*.yaml show every section; `phasewise check` looks again, without running anything"


def read_recipe(path: Path) -> Recipe:
    """Read ``path``; raises UserError for everything that is wrong with it."""
    return validate(read_yaml(path), str(path))


def validate(raw: dict[str, Any], where: str = "params.yaml") -> Recipe:
    """Check a recipe that was read: each section, then what holds between sections."""
    faults: list[str] = []
    sections: dict[str, Any] = {}
    training = raw.get("training", {})
    try:
        Training.model_validate(training)
    except ValidationError as error:
        faults += [_explain(Training, item, "training") for item in error.errors()]
    try:
        # JSON is the form in which a strict dataclass may be given as a mapping
        if "model" in raw:
            sections["model"] = _MODEL.validate_json(json.dumps(raw["model"], default=str))
    except ValidationError as error:
        faults += [_explain(ModelConfig, item, "model") for item in error.errors()]
    if not faults:
        if isinstance(phases := raw.get("phases"), dict):
            sections["phases"] = {name: _inherit(training, p) for name, p in phases.items()}
        try:
            recipe = Recipe.model_validate(raw | sections)
            faults = _cross_check(recipe)
        except ValidationError as error:
            faults = [_explain(Recipe, item) for item in error.errors()]
    if faults:
        raise UserError("\n  ".join(dict.fromkeys(faults)), where=where, hint=_HINT)
    return recipe


def _inherit(training: dict[str, Any], phase: Any) -> Any:
    """A phase with the shared settings under its own; the optimizer's are merged key by key."""
    if not isinstance(phase, dict):
        return phase
    merged = training | phase
    ours, theirs = phase.get("optimizer"), training.get("optimizer")
    if isinstance(ours, dict) and isinstance(theirs, dict):
        merged["optimizer"] = theirs | ours
    return merged


def _cross_check(recipe: Recipe) -> list[str]:
    faults = []
    for name, phase in recipe.phases.items():
        key = f"phases.{name}"
        if name == INIT:
            faults.append(f"{key}: {INIT!r} is the name of the untrained model; choose another")
        if name == IMPORTED.rstrip("/"):
            faults.append(f"{key}: {name!r} is the folder of imported models; choose another")
        if phase.parent and phase.parent not in recipe.phases:
            faults.append(
                _no_such(f"{key}.starts_from", "phase", phase.starts_from, [INIT, *recipe.phases])
            )
        faults += _unknown_sources(recipe, f"{key}.mixture", phase.mixture)
        sets = [f"{source}/validation" for source in recipe.sources]
        if phase.select_on is not None and phase.select_on not in sets:
            faults.append(_no_such(f"{key}.select_on", "held-out set", phase.select_on, sets))
        if phase.seq_len > recipe.model.max_seq_len:
            faults.append(
                f"{key}.seq_len: {phase.seq_len} is beyond model.max_seq_len "
                f"({recipe.model.max_seq_len})"
            )
    if recipe.tokenizer.mixture:
        faults += _unknown_sources(recipe, "tokenizer.mixture", recipe.tokenizer.mixture)
    if not faults:
        faults += _circles(recipe) or _replays(recipe)
    if recipe.release.phase not in recipe.phases:
        faults.append(_no_such("release.phase", "phase", recipe.release.phase, recipe.phases))
    elif recipe.release.weights == "ema" and recipe.phases[recipe.release.phase].ema_decay is None:
        faults.append(
            f"release.weights: 'ema', but phases.{recipe.release.phase}.ema_decay is null"
        )
    for chosen in (recipe.release.gate and recipe.release.gate.sets) or []:
        sets = [
            f"{source}/{split}" for source in recipe.sources for split in ("validation", "test")
        ]
        if chosen not in sets:
            faults.append(_no_such("release.gate.sets", "held-out set", chosen, sets))
    if recipe.model.vocab_size is not None:
        faults.append("model.vocab_size: comes from the tokenizer; set tokenizer.vocab_size")
    return faults


def _unknown_sources(recipe: Recipe, key: str, weights: typing.Iterable[str]) -> list[str]:
    faults = []
    for source in weights:
        if source not in recipe.sources:
            faults.append(_no_such(f"{key}.{source}", "source", source, recipe.sources))
        elif not recipe.sources[source].trains:
            faults.append(f"{key}.{source}: this source has no training split")
    return faults


def _circles(recipe: Recipe) -> list[str]:
    for start in recipe.phases:
        chain = [start]
        while parent := recipe.phases[chain[-1]].parent:
            if parent in chain:
                circle = " -> ".join([*chain[chain.index(parent) :], parent])
                return [f"phases.{start}.starts_from: goes in a circle ({circle})"]
            chain.append(parent)
    return []


def _replays(recipe: Recipe) -> list[str]:
    """A phase replays what its own weights were trained on before: phases that it descends from."""
    faults = []
    for name, phase in recipe.phases.items():
        earlier = recipe.parents(name)
        for replayed in phase.replay:
            key = f"phases.{name}.replay.{replayed}"
            if replayed not in recipe.phases:
                faults.append(_no_such(key, "phase", replayed, earlier or recipe.phases))
            elif replayed not in earlier:
                those = f"these are: {', '.join(earlier)}" if earlier else "there is none"
                faults.append(f"{key}: {replayed!r} is not a phase before {name}; {those}")
    return faults


def _no_such(key: str, kind: str, name: str, known: typing.Iterable[str]) -> str:
    guess = nearest(name, known)
    mean = f"; did you mean {guess!r}?" if guess else f"; there are: {', '.join(known)}"
    return f"{key}: there is no {kind} {name!r}{mean}"


def _explain(top: Any, error: Any, section: str = "") -> str:
    """One pydantic error as ``key.path: what is wrong, got ...``."""
    # pydantic puts the branch of a union into the path: not a key that the user wrote
    path = [p for p in error["loc"] if not (isinstance(p, str) and _is_type_tag(p))]
    key = section + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path)
    key = key.removeprefix(".")
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _fields(top, [str(p) for p in path[:-1]])
        guess = nearest(str(path[-1]), known)
        mean = f"; did you mean {guess!r}?" if guess else f"; there are: {', '.join(known)}"
        return f"{key}: unknown key{mean}"
    if error["type"] in ("missing", "missing_argument"):
        return f"{key}: this key is needed"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if error["type"] == "value_error" or isinstance(error["input"], dict):
        return f"{key}: {message}"
    return f"{key}: {message}, got {error['input']!r}"


def _is_type_tag(part: str) -> bool:
    return part in ("Hub", "str", "int", "float", "[key]") or part.startswith(
        ("constrained-", "function-", "union[")
    )


def _fields(top: Any, path: list[str]) -> list[str]:
    """Names that may stand at ``path`` below ``top``."""
    for part in path:
        top = _annotation(top, part)
    return list(_hints(top))


def _hints(kind: Any) -> dict[str, Any]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    if hasattr(kind, "__dataclass_fields__"):
        return dict.fromkeys(kind.__dataclass_fields__, Any)
    return {}


def _annotation(kind: Any, part: str) -> Any:
    if typing.get_origin(kind) is dict:
        found = typing.get_args(kind)[1]
    else:
        found = _hints(kind).get(part, Any)
    if typing.get_origin(found) in (typing.Union, types.UnionType):
        models = [a for a in typing.get_args(found) if isinstance(a, type) and _hints(a)]
        found = models[0] if models else found
    return found
