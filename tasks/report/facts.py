"""All that the report says, as one dictionary of plain values: reports/report.json.

    registration, evaluation/, metrics/, ledgers, mixes, exports/<released>/pipeline.json
        -> gather() -> report.json -> the page, the Markdown, a comparison of runs

The keys, and what each holds, are listed in docs/reports.md. A part whose file an older workspace
lacks is left out. Nothing is measured here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.errors import BAD_DATA, NO_INPUT, UserError
from tasks.files import read_json
from tasks.recipe import Phase, Recipe
from tasks.recipe_mixture import mixture_shares
from tasks.registry.provenance import git_tags, network_settings
from tasks.release.manifest import MANIFEST
from tasks.report.account import as_facts, read_account
from tasks.report.curves import PhaseHistory, curve
from tasks.units import show_count
from tasks.workspace import Workspace

VERSION = 1
KIND = "phasewise report"
Facts = dict[str, Any]


def gather(
    workspace: Workspace,
    recipe: Recipe,
    histories: list[PhaseHistory],
    registration: dict[str, Any] | None,
) -> Facts:
    """Read what the stages wrote.

    ``registration``: what reports/registration.json holds; None: nothing is registered (yet).
    Raises UserError naming the file of an earlier stage that is missing or broken.
    """
    from tasks.report.changes import changes

    names = recipe.phases_in_order()
    for name in names:
        if name not in {history.phase for history in histories}:
            path = workspace.metrics(name) / "history.jsonl"
            raise UserError(f"{path} is missing", exit_code=NO_INPUT)
    figures = {name: read_json(workspace.evaluation(name)) for name in names}
    details = {name: read_json(workspace.evaluation(name, "details.json")) for name in names}
    released = recipe.release.phase
    tokenizer = read_json(workspace.tokenizer / "report.json")
    return {
        "kind": KIND,
        "version": VERSION,
        "name": recipe.name,
        "description": recipe.description,
        "released": {"phase": released, "weights": _released_weights(recipe, figures[released])},
        **({"registration": registration} if registration else {}),
        "parameters": _parameters(recipe, tokenizer["vocab_size"]),
        "phases": {name: _phase(recipe.phases[name]) for name in names},
        "settings": recipe.resolved() | {"model": network_settings(recipe)},
        "sets": {name: _set(facts) for name, facts in details[released]["sets"].items()},
        "protocols": {name: _protocol(details[name]) for name in names},
        "figures": figures,
        "changes": changes(workspace, recipe, figures, details),
        **_optional(workspace, names),
        "training": {name: read_json(workspace.metrics(name) / "summary.json") for name in names},
        "curves": [curve(history) for history in histories],
        "ledger": as_facts(read_account(workspace, recipe)),
        "lineage": _lineage(workspace, recipe, tokenizer, registration or {}, details),
    }


def read_report(path: Path) -> Facts:
    """A report.json. Raises UserError where it is none, or one of another version."""
    found = read_json(path)
    if not isinstance(found, dict) or found.get("kind") != KIND:
        raise UserError(
            f"{path} is not a report of phasewise",
            hint="give a reports/report.json, or the folder of a finished run",
            exit_code=BAD_DATA,
        )
    if found.get("version") != VERSION:
        raise UserError(
            f"{path} is a report of version {found.get('version')}; this program reads {VERSION}",
            hint="write it again: dvc repro report",
            exit_code=BAD_DATA,
        )
    return found


def _released_weights(recipe: Recipe, figures: dict[str, Any]) -> str:
    """EMA or raw: a phase without EMA gives its raw weights, whatever the recipe asks for."""
    wanted = recipe.release.weights
    return wanted if any(wanted in by_weights for by_weights in figures.values()) else "raw"


def _optional(workspace: Workspace, names: list[str]) -> dict[str, Any]:
    """What not every workspace has: baselines, generation, benchmarks."""
    baselines, generation = (
        {n: read_json(path) for n in names if (path := workspace.evaluation(n, what)).exists()}
        for what in ("baselines.json", "generation.json")
    )
    path = workspace.benchmarks
    benchmarks = read_json(path) if path.exists() else {}
    parts = {"baselines": baselines, "generation": generation, "benchmarks": benchmarks}
    return {key: part for key, part in parts.items() if part}


def _set(facts: dict[str, Any]) -> dict[str, Any]:
    """What a held-out set is; counts and fingerprints, no text."""
    return {key: value for key, value in facts.items() if isinstance(value, int | float | str)}


def _protocol(details: dict[str, Any]) -> dict[str, Any]:
    """How a phase was scored; an older evaluation tells less."""
    told: dict[str, Any] = details.get("protocol") or {
        key: details[key] for key in ("seq_len", "stride") if key in details
    }
    return told


def _parameters(recipe: Recipe, vocab_size: int) -> dict[str, int]:
    """The network's parameters, with the vocabulary that the tokenizer turned out to have."""
    from model import ModelConfig, count_parameters

    counts = count_parameters(
        ModelConfig.from_dict(recipe.model.to_dict() | {"vocab_size": vocab_size})
    )
    return {key: counts[key] for key in ("total", "active", "non_embedding")}


def _phase(phase: Phase) -> dict[str, Any]:
    """What the recipe's settings of a phase come to."""
    return {
        "starts_from": phase.starts_from,
        "parent": phase.parent,
        "tokens": phase.total_tokens,
        "steps": phase.steps,
        "mixture": _mixture(phase),
    }


def _mixture(phase: Phase) -> str:
    """The shares as written, at each point of the phase where they change; what more is done."""
    shares = sorted(mixture_shares(phase).items(), key=lambda item: -item[1])
    columns = [{n: w / sum(row.values()) for n, w in row.items()} for row in phase.mixture_points]
    arrow = " → " if phase.curriculum == "linear" else " | "
    parts = [
        f"{name} {arrow.join(f'{100 * column[name]:.3g}' for column in columns)} %"
        for name, share in shares
        if share
    ]
    if phase.mixture_at:
        parts.append(f"at {', '.join(_place(at) for at in phase.mixture_at)}")
    if phase.mixture_temperature:
        parts.append(f"times tokens^(1/{phase.mixture_temperature:g})")
    parts += [f"{100 * share:.3g} % replay of {name}" for name, share in phase.replay.items()]
    return ", ".join(parts)


def _place(at: float) -> str:
    return f"{100 * at:.3g} %" if at <= 1 else f"{show_count(at)} tokens"


def _lineage(
    workspace: Workspace,
    recipe: Recipe,
    tokenizer: dict[str, Any],
    registration: dict[str, Any],
    details: dict[str, Any],
) -> dict[str, Any]:
    """Fingerprints of all that the release was made of; ``commit`` where there is a repository."""
    checkpoints = {n: d["checkpoint"] for n, d in details.items() if "checkpoint" in d}
    export = workspace.export(recipe.release.phase) / MANIFEST
    sealed = read_json(export) if export.exists() else {}
    mixes = {name: read_json(workspace.mix(name)) for name in recipe.phases_in_order()}
    git = git_tags(workspace.root)
    found = {
        "recipe": recipe.fingerprint,
        "commit": git.get("mlflow.source.git.commit"),
        "uncommitted_changes": git.get("phasewise.git_dirty") == "true" if git else None,
        "tokenizer": tokenizer["fingerprint"],
        "vocab_size": tokenizer["vocab_size"],
        "data": {name: mix["fingerprint"] for name, mix in mixes.items() if "fingerprint" in mix},
        "checkpoints": checkpoints,
        "export": registration.get("export"),
        "transformers_class": sealed.get("transformers_class"),
        "native": not sealed["obstacles"] if "obstacles" in sealed else None,
        "llama_cpp": _llama_cpp(sealed),
    }
    return {key: value for key, value in found.items() if value is not None}


def _llama_cpp(sealed: dict[str, Any]) -> str | None:
    """The architecture of llama.cpp that the export fits, where there is one."""
    from model import ModelConfig
    from tasks.release.card_parts import llama_cpp

    return llama_cpp(ModelConfig.from_dict(sealed["architecture"])) if sealed else None
