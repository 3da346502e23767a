"""Stage `export`: a finished phase as a folder that transformers, vLLM and phasewise open.

    checkpoints/<phase> + data/tokenizer -> exports/<phase>/
        config.json              a class of transformers, or our own code beside it; and, under
                                 "phasewise", the network that the tensors in this folder make
        model.safetensors        fp32, under transformers' names
        generation_config.json   the recipe's sampling
        tokenizer.json ...       what AutoTokenizer opens
        README.md                the model card
        pipeline.json            what it was made of, and every other file's SHA-256; written last

Before the folder takes its name it is read back, and must give the checkpoint's logits.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tasks import stage
from tasks.errors import BAD_DATA, INTERNAL, UserError
from tasks.files import (
    atomic_folder,
    read_json,
    sha256_file,
    write_json,
    write_tensors,
    write_text,
)
from tasks.recipe import Recipe
from tasks.release.card import Evaluation, Report, card
from tasks.release.card_parts import Facts
from tasks.release.generation_config import write_generation_config
from tasks.release.manifest import seal, verify_export
from tasks.workspace import Workspace

if TYPE_CHECKING:
    from model import ModelConfig, Transformer

CARD = "README.md"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
TOLERANCE = 1e-4  # of a logit, or of the largest logit where that is above 1
# A server that is given messages in place of a text asks for a template. This one puts down what
# was said and nothing else, as `phasewise chat` does: the answer is how that text goes on.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if not loop.first and message['role'] != 'assistant' %}{{ '\\n' }}{% endif %}"
    "{{ message['content'] }}"
    "{% endfor %}"
)
_CHECKED_ROWS, _CHECKED_TOKENS = 2, 64


def export(workspace: Workspace, recipe: Recipe, phase: str) -> None:
    """Write exports/<phase>, whole and checked, or leave what is there.

    The weights are those that release.weights names; a phase without EMA gives its raw ones, aloud.
    Raises UserError for a checkpoint or a tokenizer that is missing, broken or of another network.
    """
    from tasks.training import checkpoint
    from tasks.training.state import load_network

    source = checkpoint.require(workspace.checkpoint(phase))
    weights = recipe.release.weights
    if weights == "ema" and not (source / "ema.safetensors").exists():
        print(f"    {phase} has no EMA (ema_decay is null): exporting its raw weights")
        weights = "raw"
    network = load_network(source, "ema" if weights == "ema" else "model").float().eval()
    special = special_ids(workspace.tokenizer, network.config.vocabulary)
    with atomic_folder(workspace.export(phase)) as folder:
        write_network(folder, network, special)
        write_generation_config(folder, recipe.evaluation.sampling, special)
        write_tokenizer(folder, workspace.tokenizer, network.config.max_seq_len)
        difference = require_equal_logits(folder, network)
        facts = gather(workspace, recipe, phase, weights, network.config)
        write_text(folder / CARD, card(recipe, facts))
        seal(folder, vars(facts))
        size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"    {facts.transformers_class}, {weights} weights, "
          f"{facts.parameters['total']:,} parameters, {size / 1e6:.1f} MB; "
          f"read back, logits within {difference:.1e}")  # fmt: skip


def write_network(folder: Path, network: Transformer, special: dict[str, int]) -> None:
    """Write config.json and model.safetensors, and the code where no class of transformers fits."""
    from tasks.release import custom, native

    config, tensors = network.config, dict(network.state_dict())
    if native.native_class(config):
        config, tensors = native.plain(config, tensors)
        values = native.transformers_config(config)
        tensors = native.to_transformers(config, tensors)
    else:
        values = custom.custom_config(config)
        tensors = {f"model.{name}": tensor for name, tensor in tensors.items()}
        custom.bundle_code(folder)
    write_json(folder / "config.json", values | {"dtype": "float32", "torch_dtype": "float32"}
               | special)  # fmt: skip
    # clone: a view would write its whole storage, and shared storage is refused
    whole = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    write_tensors(folder / "model.safetensors", whole)
    # the library lets the owner alone read what it writes; a server may be another user
    shutil.copymode(folder / "config.json", folder / "model.safetensors")


def special_ids(tokenizer: Path, vocab_size: int) -> dict[str, int]:
    """``bos_token_id``, ``eos_token_id`` and ``pad_token_id``, by the tokenizer's configuration.

    EOS stands in for what a tokenizer does not name: a text starts after the EOS of another, and
    pads are masked. Raises UserError where the tokenizer is missing or broken, or has more ids
    than the network has rows.
    """
    from tasks.tokens.text import load_tokenizer, token_name

    words = load_tokenizer(tokenizer)
    if words.vocab_size > vocab_size:
        raise UserError(
            f"{tokenizer} has {words.vocab_size} ids, the checkpoint's network {vocab_size}: it "
            "was trained with another tokenizer",
            hint="run the stages from the tokenizer on again: dvc repro",
            exit_code=BAD_DATA,
        )
    config = read_json(tokenizer / TOKENIZER_CONFIG)
    numbers = {words.token(number): number for number in words.special_ids}
    found = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), words.eos_id)
    for kind in ("bos", "pad"):
        name = token_name(config, f"{kind}_token")
        if name in numbers:
            found[f"{kind}_token_id"] = numbers[name]
    return found


def write_tokenizer(folder: Path, tokenizer: Path, max_seq_len: int) -> None:
    """Copy the tokenizer, and say in its configuration what holds for this network.

    Without `model_input_names` transformers 4 hands the network token types, which it refuses.
    """
    files = (TOKENIZER, "tokenizer.model", "special_tokens_map.json", "vocab.json", "merges.txt")
    for name in files:
        if (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, folder / name)
    config = read_json(tokenizer / TOKENIZER_CONFIG)
    defaults = {"pad_token": config["eos_token"], "clean_up_tokenization_spaces": False}
    ours = {
        "model_max_length": max_seq_len,
        "model_input_names": ["input_ids", "attention_mask"],
        "chat_template": CHAT_TEMPLATE,
    }
    write_json(folder / TOKENIZER_CONFIG, defaults | config | ours)


def require_equal_logits(folder: Path, network: Transformer) -> float:
    """Read ``folder`` back; returns the largest difference of its logits from the network's.

    Raises UserError (exit code 70) where it is beyond ``TOLERANCE``.
    """
    import torch

    from tasks.release.native import load_export

    try:
        exported = load_export(folder)
    except ValueError as error:
        raise UserError(f"the export cannot be read back: {error}", exit_code=BAD_DATA) from None
    length = min(_CHECKED_TOKENS, network.config.max_seq_len)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(network.config.vocabulary, (_CHECKED_ROWS, length), generator=generator)
    with torch.no_grad():
        expected, found = network(ids), exported(ids)
    difference = (expected - found).abs().max().item()
    if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):
        raise UserError(
            f"the exported network's logits differ from the checkpoint's by {difference:.3g}",
            hint="nothing was exported; please report this with the recipe",
            exit_code=INTERNAL,
        )
    return difference


def gather(
    workspace: Workspace, recipe: Recipe, phase: str, weights: str, config: ModelConfig
) -> Facts:
    """What is known of a phase, for its card and its manifest."""
    from model import count_parameters
    from tasks.files import fingerprint
    from tasks.release import custom, native
    from tasks.training import checkpoint

    folder = workspace.checkpoint(phase)
    state, counts = read_json(folder / "state.json"), count_parameters(config)
    before = [recipe.phases[name] for name in recipe.parents(phase)]
    mixes = {name: workspace.mix(name) for name in [*reversed(recipe.parents(phase)), phase]}
    return Facts(
        phase=phase,
        weights=weights,
        step=state["step"],
        tokens=state["tokens"],
        total_tokens=state["tokens"] + sum(p.total_tokens for p in before),
        recipe=recipe.fingerprint,
        checkpoint=fingerprint(read_json(folder / checkpoint.MANIFEST)["files"]),
        tokenizer=sha256_file(workspace.tokenizer / TOKENIZER),
        parameters={key: counts[key] for key in ("total", "active", "non_embedding")},
        architecture=config.to_dict(),
        transformers_class=native.native_class(config) or custom.CLASS,
        obstacles=native.obstacles(config),
        mixtures={n: read_json(path)["sources"] for n, path in mixes.items() if path.exists()},
    )


def add_evaluation(
    folder: Path, recipe: Recipe, evaluation: Evaluation, report: Report | None = None
) -> None:
    """Put what was measured into the card of an export, and seal it anew.

    ``report``: all of it, as in reports/report.json; None: the held-out figures alone.
    """
    manifest = verify_export(folder)
    facts = Facts(**{k: v for k, v in manifest.items() if k not in ("version", "files")})
    write_text(folder / CARD, card(recipe, facts, evaluation, report))
    seal(folder, vars(facts))


if __name__ == "__main__":
    stage.main(export, "phase")
