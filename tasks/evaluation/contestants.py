"""A model that is to be compared: where it lies, and what it paid for each document of a set.

exports/<phase>, models:/<name>@<alias>, a folder -> Contestant
evaluation/<phase>.documents.npz  -- same weights, text and protocol -->  sums, as recorded
the text of the set               -- otherwise: its own tokenizer, scored now -->  sums
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import BAD_DATA, NO_INPUT, UserError, unknown_name
from tasks.evaluation import documents
from tasks.evaluation.documents import HeldOutText
from tasks.evaluation.scoring import Protocol
from tasks.files import read_json, sha256_file
from tasks.workspace import Workspace

if TYPE_CHECKING:
    from model import ModelConfig
    from tasks.evaluation.scoring import DocumentSums
    from tasks.recipe import Recipe


@dataclass(frozen=True)
class Contestant:
    """A verified folder that holds a model of ours."""

    name: str
    """As the user calls it."""
    folder: Path
    config: ModelConfig
    manifest: dict[str, Any] = field(repr=False)
    """Of the export; empty for an imported model."""
    tokenizer: str
    """SHA-256 of its tokenizer.json."""

    def same_as(self, other: Contestant) -> bool:
        """Whether both compute the same, from the same weights with the same tokenizer."""
        alike = self.config == other.config and self.tokenizer == other.tokenizer
        return alike and _weights(self.folder) == _weights(other.folder)


def open_contestant(name: str, workspace: Workspace, recipe: Recipe | None) -> Contestant:
    """The model that ``name`` means: a phase of the recipe, an exported folder or a registered one.

    Raises UserError where there is no such model, or where it is not whole.
    """
    if recipe is None or name not in recipe.phases:
        from tasks.registry.pull import SCHEME, resolve

        if not name.startswith(SCHEME) and not Path(name).is_dir():
            raise _no_model(name, recipe)
        return at_folder(resolve(name, workspace.root if recipe else None), name)
    folder = workspace.export(name)
    if not folder.is_dir():
        raise UserError(
            f"phase {name} is not exported: {folder} is missing",
            hint=f"dvc repro export@{name}",
            exit_code=NO_INPUT,
        )
    return at_folder(folder, name)


def at_folder(folder: Path, name: str) -> Contestant:
    """The model in a folder, after checking every file against its manifest.

    Raises UserError where it is not whole, or not one of ours.
    """
    from model.load import read_config
    from tasks.release.manifest import MANIFEST, verify_model

    verify_model(folder)
    try:
        config = read_config(folder)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error), exit_code=BAD_DATA) from None
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder} has no tokenizer.json", exit_code=BAD_DATA)
    manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).exists() else {}
    return Contestant(name, folder, config, manifest, sha256_file(folder / "tokenizer.json"))


def _weights(folder: Path) -> str:
    return sha256_file(folder / "model.safetensors")


def _no_model(name: str, recipe: Recipe | None) -> UserError:
    if recipe is None:
        return UserError(
            f"there is no folder {name}",
            hint="an exported folder, models:/<name>@<alias> or models:/<name>/<version>; the "
            "phases of a recipe are known inside its project",
            exit_code=NO_INPUT,
        )
    return unknown_name("phase or folder", name, recipe.phases)


def evaluation_of(contestant: Contestant, workspace: Workspace) -> tuple[str, dict[str, Any]]:
    """The phase and the details of the evaluation of these very weights here; else ("", {})."""
    for path in sorted((workspace.root / "evaluation").glob("*.details.json")):
        details = read_json(path)
        same = {key: contestant.manifest.get(key) for key in ("checkpoint", "weights")}
        if (
            contestant.manifest
            and details.get("checkpoint") == same["checkpoint"]
            and details.get("tokenizer") == contestant.tokenizer
            and same["weights"] in details.get("weights", ())
        ):
            return path.name.removesuffix(".details.json"), details
    return "", {}


def context_of(contestant: Contestant, workspace: Workspace) -> int:
    """Tokens that it is measured with at once: as it was evaluated here, else all it can see."""
    _, details = evaluation_of(contestant, workspace)
    return int(details.get("seq_len", contestant.config.max_seq_len))


def sums_on(
    contestant: Contestant, texts: Sequence[HeldOutText], protocol: Protocol, workspace: Workspace
) -> tuple[dict[str, DocumentSums], list[str]]:
    """What the model paid for each document of each set, and what is to be said about it.

    Raises UserError where its tokenizer cannot encode the text, or its context is too short.
    """
    phase, details = evaluation_of(contestant, workspace)
    fits = bool(details) and documents.protocol_of(details) == protocol
    arrays: dict[str, Any] = {}
    if phase and fits:
        arrays = documents.read_documents(workspace.evaluation(phase, "documents.npz"))
    found: dict[str, DocumentSums] = {}
    notes = []
    for text in texts:
        told = details.get("sets", {}).get(text.name, {}).get("fingerprint")
        if details and told not in (None, text.fingerprint):
            notes.append(
                f"{contestant.name} was evaluated on another text of {text.name} ({told[:12]}, "
                f"not {text.fingerprint[:12]}): it is scored anew"
            )
        elif arrays and told:
            recorded = documents.sums_of(arrays, text.name, contestant.manifest["weights"])
            if recorded is not None and arrays[f"{text.name}:id"].tolist() == text.ids.tolist():
                found[text.name] = recorded
    if missing := [text for text in texts if text.name not in found]:
        found |= score_now(contestant, missing, protocol)
    return found, notes


def score_now(
    contestant: Contestant, texts: Sequence[HeldOutText], protocol: Protocol
) -> dict[str, DocumentSums]:
    """Score a model on texts with its own tokenizer, in fp32. Errors as of `sums_on`."""
    import numpy as np
    import torch

    from tasks.evaluation.evaluate import score_set
    from tasks.progress import progress
    from tasks.release.sampler import open_network, pick_device

    if protocol.seq_len > contestant.config.max_seq_len:
        raise UserError(
            f"{contestant.name} sees {contestant.config.max_seq_len} tokens at most, not "
            f"{protocol.seq_len}",
            hint="give a shorter context",
        )
    device = pick_device("auto")
    torch.backends.cuda.matmul.allow_tf32 = False  # which is not fp32
    network, tokenizer = open_network(contestant.folder, device, "fp32", None)
    if tokenizer.vocab_size > network.config.vocabulary:
        raise UserError(
            f"the tokenizer of {contestant.name} has {tokenizer.vocab_size} ids, its network "
            f"{network.config.vocabulary}: they do not belong together",
            exit_code=BAD_DATA,
        )
    eos = tokenizer.eos_id
    streams = {}
    for text in texts:
        lines = tokenizer.encode_batch(text.texts)
        streams[text.name] = np.concatenate([np.array([*line, eos]) for line in lines])
    total = sum(map(len, streams.values()))
    with progress(total, "tokens", f"scoring {contestant.name}") as shown:
        return {
            name: score_set(network, tokens, protocol, eos, shown)
            for name, tokens in streams.items()
        }


def protocol_between(
    first: Contestant,
    second: Contestant,
    workspace: Workspace,
    recipe: Recipe | None,
    context: int | None = None,
) -> Protocol:
    """One protocol for both: the shorter of their contexts, the recipe's stride and documents."""
    seq_len = context or min(context_of(first, workspace), context_of(second, workspace))
    if recipe is None:
        return Protocol(seq_len, seq_len)
    return Protocol(
        seq_len=seq_len,
        stride=min(recipe.evaluation.stride or seq_len, seq_len),
        document_mask=recipe.phases[recipe.release.phase].document_mask,
        alone=recipe.evaluation.documents == "alone",
    )


def facts_of(contestant: Contestant) -> dict[str, Any]:
    """What a comparison says of a model."""
    told = {key: contestant.manifest[key] for key in ("phase", "weights") if contestant.manifest}
    return {"name": contestant.name, "tokenizer": contestant.tokenizer} | told
