"""The gate: does a new model take the alias from the one that has it?

candidate safe?  whole, reads back, the checkpoint's logits, no held-out text trained on,
                 not reciting its training text                            no -> challenger
no champion yet                                                               -> champion
better on the mean of the named sets, by more than noise, and lost on none    -> champion
anything else: noise, a tie, a champion that cannot be scored here            -> challenger
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import UserError
from tasks.files import fingerprint, read_json
from tasks.recipe import Gate, Recipe
from tasks.workspace import Workspace

if TYPE_CHECKING:
    from tasks.evaluation.compare import Comparison

CHALLENGER = "challenger"


@dataclass(frozen=True)
class Verdict:
    """The alias that a model is to have, and why, in one sentence."""

    alias: str
    reason: str
    comparison: dict[str, Any] | None
    """With the model that has the alias, where there was one: `Comparison.record`."""


def decide(workspace: Workspace, recipe: Recipe, candidate: Path, champion: Path | None) -> Verdict:
    """Whether the model in ``candidate`` becomes ``recipe.release.alias`` or a challenger.

    Args:
        candidate, champion: export folders; None: nobody has the alias yet.

    Raises UserError where this workspace has no held-out text to compare two models on.
    """
    alias, gate = recipe.release.alias, recipe.release.gate
    if gate is None:
        return Verdict(alias, "the gate is off (release.gate: null)", None)
    if fault := find_fault(workspace, recipe, gate, candidate):
        return Verdict(CHALLENGER, fault, None)
    if champion is None:
        return Verdict(alias, f"it is sound, and there was no @{alias}", None)
    from tasks.evaluation.compare import compare, held_out_texts
    from tasks.evaluation.contestants import at_folder

    texts = held_out_texts(workspace, recipe, gate_sets(workspace, recipe, gate))
    try:
        new, old = at_folder(candidate, "candidate"), at_folder(champion, f"@{alias}")
        if new.same_as(old):
            return Verdict(CHALLENGER, f"its weights are those of @{alias}, which stays", None)
        found = compare(new, old, texts, workspace, recipe, level=gate.level)
    except ValueError as error:  # a UserError, or weights that do not fit their configuration
        words = error.message if isinstance(error, UserError) else str(error)
        return Verdict(
            CHALLENGER, f"it cannot be compared with @{alias}, which stays: {words}", None
        )
    return judge(found, alias, gate)


def judge(found: Comparison, alias: str, gate: Gate) -> Verdict:
    """The verdict on a comparison of the candidate (first) with the champion (second).

    A set is lost where it is worse by more than ``gate.max_regression`` and more than noise; the
    level is shared among the sets (Bonferroni), for among many one looks worse by chance.
    """
    overall, record = found.overall, found.record("candidate", "champion")
    gap = f"{abs(overall.difference):.4f} ± {overall.se:.4f} bits per byte, p {overall.p:.3f}"
    lost = [
        one
        for one in found.sets
        if one.difference.difference > gate.max_regression
        and one.difference.p < gate.level / len(found.sets)
    ]
    if found.better is None:
        reason = f"no better than @{alias} beyond noise ({gap}; level {gate.level:g})"
    elif found.better is found.second:
        reason = f"worse than @{alias} ({gap})"
    elif lost:
        worst = max(lost, key=lambda one: one.difference.difference)
        reason = (
            f"better than @{alias} on the mean ({gap}), but worse on {worst.name} by "
            f"{worst.difference.difference:.4f} ± {worst.difference.se:.4f}"
        )
    else:
        return Verdict(alias, f"better than @{alias} ({gap}, {len(found.sets)} sets)", record)
    return Verdict(CHALLENGER, reason, record)


def gate_sets(workspace: Workspace, recipe: Recipe, gate: Gate) -> list[str]:
    """The sets that decide: those named, or each source's test set, or validation without one."""
    if gate.sets:
        return gate.sets
    from tasks.tokens.shards import splits

    found = []
    for source in recipe.sources:
        there = splits(workspace.tokens(source))
        found += [f"{source}/{split}" for split in ("test", "validation") if split in there][:1]
    return found


def find_fault(workspace: Workspace, recipe: Recipe, gate: Gate, candidate: Path) -> str | None:
    """Why an export is not to be released, in a sentence, or None."""
    from tasks.release.manifest import verify_export

    try:
        manifest = verify_export(candidate)
        stale = _check_logits(workspace, candidate, manifest)
    except ValueError as error:
        return f"it is not safe: {error.message if isinstance(error, UserError) else error}"
    return stale or _leak(workspace, recipe) or _recites(workspace, gate, manifest)


def _check_logits(workspace: Workspace, candidate: Path, manifest: dict[str, Any]) -> str | None:
    """Compare with the checkpoint, where it is here; the export stage has done so before.

    Raises UserError where the export cannot be read back, or its logits are others.
    """
    from tasks.release.export import require_equal_logits
    from tasks.training import checkpoint
    from tasks.training.state import load_network

    folder = workspace.checkpoint(manifest["phase"])
    if not (folder / checkpoint.MANIFEST).exists():
        from tasks.release.native import load_export

        load_export(candidate)
        return None
    if fingerprint(read_json(folder / checkpoint.MANIFEST)["files"]) != manifest["checkpoint"]:
        return f"it is of another checkpoint than {folder} holds now: export it again"
    source = checkpoint.require(folder)
    network = load_network(source, "ema" if manifest["weights"] == "ema" else "model")
    require_equal_logits(candidate, network.float().eval())
    return None


def _leak(workspace: Workspace, recipe: Recipe) -> str | None:
    """Held-out documents that are training documents too, word for word."""
    import pyarrow.parquet as pq

    held: dict[str, str] = {}
    trained: list[Path] = []
    for source in recipe.sources:
        for path in sorted((workspace.documents / source).glob("*.parquet")):
            split = path.name.split("-")[0]
            if split == "train":
                trained.append(path)
            else:
                ids = pq.read_table(path, columns=["id"])["id"].to_pylist()
                held |= dict.fromkeys(ids, f"{source}/{split}")
    for path in trained:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["id"]):
                if both := held.keys() & set(batch.column(0).to_pylist()):
                    return (
                        f"{len(both)} documents of {held[min(both)]} are in its training text "
                        f"too ({path.parent.name}): its figures are not of unseen text"
                    )
    return None


def _recites(workspace: Workspace, gate: Gate, manifest: dict[str, Any]) -> str | None:
    """What the generation stage found of training text in the model's samples, where it ran."""
    path = workspace.evaluation(manifest["phase"], "generation.json")
    if not path.exists():
        return None
    measures = read_json(path)["measures"]
    share, usual = (
        measures.get(name, {}).get("memorised_share") or 0.0
        for name in (manifest["weights"], "held_out")
    )
    if share - usual <= gate.max_memorised:
        return None
    return (
        f"{share:.0%} of its samples is training text word for word ({usual:.0%} of held-out text "
        f"is); release.gate.max_memorised is {gate.max_memorised:.0%}"
    )
