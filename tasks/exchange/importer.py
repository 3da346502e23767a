"""Weights from elsewhere as a checkpoint: checkpoints/imported/<name>.

    a transformers folder (foreign.py)     --.
    a .pt of a published project            --+-> config, tensors -> checked key by key
       (torch_file.py -> layouts.py)        --'       + tokenizer -> a checkpoint folder

The folder is what the stage `train` writes, so a phase may start from it (``starts_from:
imported/<name>``), and with a tokenizer in it `phasewise generate` and `phasewise gguf` open it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model import ModelConfig, Transformer, count_parameters
from tasks.errors import BAD_DATA, CANNOT_WRITE, UserError, unknown_name
from tasks.files import sha256_file
from tasks.recipe import IMPORTED, Hub
from tasks.workspace import Workspace

TRANSFORMERS = "transformers"


@dataclass(frozen=True)
class Imported:
    """What an import came to; ``notes`` are what its user must know."""

    folder: Path
    kind: str
    parameters: int
    tokenizer: bool
    notes: list[str]


def import_model(
    source: Path,
    name: str,
    root: Path,
    *,
    kind: str = "auto",
    tokenizer: str | None = None,
    heads: int | None = None,
    max_seq_len: int | None = None,
) -> Imported:
    """Import weights as checkpoints/imported/``name`` of the project at ``root``.

    Args:
        source: a folder that transformers wrote, or a file of weights.
        kind: auto, transformers, or a project of `published.LAYOUTS`.
        tokenizer: a folder or file, or ``owner/name[@revision]`` on the hub or its mirror.
        heads, max_seq_len: only what the file does not tell.

    Raises UserError where the source is not what ``kind`` says, key by key; where the tokenizer has
    more ids than the network; where the name is taken.
    """
    import torch

    from model.load import check_weights

    folder = Workspace(root).checkpoint(_address(name))
    if folder.exists():
        raise UserError(
            f"{folder} is there already",
            hint="choose another name, or remove that folder",
            exit_code=CANNOT_WRITE,
        )
    kind, config, tensors = _opened(source, kind, heads, max_seq_len)
    with torch.device("meta"):
        network = Transformer(config)
    try:
        check_weights(network, tensors, source)
    except ValueError as error:
        raise UserError(str(error), exit_code=BAD_DATA) from None
    network.load_state_dict({n: t.contiguous().clone() for n, t in tensors.items()}, assign=True)
    network.positions.reset("cpu")
    _place(folder, network.eval(), _origin(source, kind), tokenizer, root)
    parameters = count_parameters(config)["total"]
    return Imported(folder, kind, parameters, tokenizer is not None, _notes(kind, network))


def _opened(
    source: Path, kind: str, heads: int | None, max_seq_len: int | None
) -> tuple[str, ModelConfig, dict[str, Any]]:
    """The kind, the configuration and the tensors under our names."""
    from tasks.exchange import foreign, layouts
    from tasks.exchange.published import LAYOUTS
    from tasks.exchange.torch_file import read_state_dict

    if kind == "haipai":
        raise UserError(
            "the names of Haipai's tensors were never published, so nothing can read them",
            where="--kind",
        )
    if kind not in (kinds := ["auto", TRANSFORMERS, *LAYOUTS]):
        raise unknown_name("kind", kind, kinds, where="--kind")
    if kind == TRANSFORMERS or (kind == "auto" and source.is_dir()):
        for option, value in (("--heads", heads), ("--max-seq-len", max_seq_len)):
            if value is not None:
                raise UserError("config.json tells it", where=option, hint="leave it out")
        return TRANSFORMERS, *foreign.open_folder(source)
    state = read_state_dict(source)
    if kind == "auto":
        found = layouts.recognise(state)
        if found is None:
            some = ", ".join(sorted(state.tensors)[:5])
            raise UserError(
                f"{source} has the names of none of {', '.join(LAYOUTS)} ({some}, ...)",
                hint="a transformers folder is imported whole: name the folder",
                exit_code=BAD_DATA,
            )
        kind = found
    return kind, *layouts.convert(kind, state, heads, max_seq_len)


def _place(
    folder: Path, network: Transformer, origin: dict[str, str], tokenizer: str | None, root: Path
) -> None:
    """Write the checkpoint, with the tokenizer's files where there is one."""
    from tasks.tokens.tokenizer import write_folder
    from tasks.training import checkpoint

    config = network.config
    built = _tokenizer(tokenizer, root, config.vocabulary) if tokenizer else None
    counts = dict.fromkeys(("step", "tokens", "samples", "updates", "ema_updates"), 0)
    checkpoint.save(
        folder,
        {"model": dict(network.state_dict())},
        {
            "state": {"phase": _address(folder.name), **counts, "origin": origin},
            "config": {"phasewise": config.to_dict()},
        },
        beside=None if built is None else lambda f: write_folder(f, built, config.max_seq_len),
    )


def _tokenizer(wanted: str, root: Path, vocabulary: int) -> Any:
    """The tokenizer named, if the network has a row for each of its ids."""
    from tasks.tokens.pretrained import pretrained
    from tasks.tokens.text import TextTokenizer

    path = Path(wanted).expanduser()
    if path.suffix == ".model" and path.is_file():
        built = _from_pieces(path)
    elif path.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w.-]+)?", wanted):
        built = pretrained(str(path.absolute()), root)
    else:
        id_, _, revision = wanted.partition("@")
        built = pretrained(Hub(id=id_, revision=revision or "main"), root)
    ready = TextTokenizer(built.content, built.special["eos_token"])
    if ready.vocab_size > vocabulary:
        raise UserError(
            f"the tokenizer has {ready.vocab_size:,} ids, the network {vocabulary:,} rows: it is "
            "another model's",
            where="--tokenizer",
            exit_code=BAD_DATA,
        )
    return built


def _from_pieces(path: Path) -> Any:
    """A SentencePiece model as a tokenizer.json that gives its ids."""
    from tasks.tokens.pretrained import Built
    from tasks.tokens.sentencepiece import EOS, require_equal, tokenizer_json

    content = path.read_bytes()
    try:
        made = tokenizer_json(content)
        require_equal(content, made, [])
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(
            f"no tokenizer.json gives the ids of {path} ({str(error).partition(chr(10))[0]})",
            where="--tokenizer",
            hint="it must be BPE with byte tokens, and take text as it is; or import without one",
            exit_code=BAD_DATA,
        ) from None
    return Built(made, {"eos_token": EOS}, {"pretrained": path.name}, {path.name: content})


def _origin(source: Path, kind: str) -> dict[str, str]:
    """Where the weights came from, without the path, which is a machine's own."""
    file = source / "model.safetensors" if source.is_dir() else source
    known = {"sha256": sha256_file(file)} if file.is_file() else {}
    return {"kind": kind, "source": source.resolve().name, **known}


def _notes(kind: str, network: Transformer) -> list[str]:
    if kind != "chaya":
        return []
    from tasks.exchange.chaya import difference

    off, other = difference(network)
    return [
        "these weights were trained with an embedding of positions that is no rotation; here they "
        f"run with true RoPE, and logits DIFFER: on random ids by {off:.2f} of their standard "
        f"deviation on average, with another likeliest id at {other:.0%} of positions. Train on "
        "before you use them (tasks/exchange/chaya.py)"
    ]


def _address(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", name):
        raise UserError(
            f"{name!r} is no name: lower-case letters, digits, - and _, 63 at most", where="--to"
        )
    return f"{IMPORTED}{name}"
