"""A tokenizer that somebody else trained: from the hub, from a mirror of it, or from a local file.

Three JSON files are read and nothing else: no pickle, no code, no SentencePiece model. The names
of the special tokens are the only thing taken from its tokenizer_config.json, so that no class or
template of a stranger reaches an export.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.errors import BAD_DATA, NO_INPUT, UNAVAILABLE, UserError
from tasks.recipe import Hub
from tasks.settings import settings
from tasks.tokens.text import build, check_spec, read_limited, token_name

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
SPECIAL = ("eos_token", "bos_token", "pad_token", "unk_token")
# looked for, in this order, where no file says which token ends a text
END_TOKENS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "[EOS]", "<|eos|>")


@dataclass(frozen=True)
class Built:
    """A finished tokenizer, before it is written.

    Attributes:
        content: the bytes of tokenizer.json.
        special: eos_token, bos_token, pad_token, unk_token -> token; eos_token is always there.
        origin: where it came from, for the report.
        files: what else goes into the folder, by name.
    """

    content: bytes
    special: dict[str, str]
    origin: dict[str, Any]
    files: dict[str, bytes] = field(default_factory=dict)


def pretrained(wanted: Hub | str, root: Path) -> Built:
    """Fetch and check a tokenizer.

    Args:
        wanted: id and revision on the hub, or a path relative to ``root`` (a tokenizer.json or a
            folder that holds one). ``PHASEWISE_HUB`` names a folder that stands in for the hub.
        root: folder of params.yaml.

    Raises UserError where it cannot be had, is no tokenizer, or does not say how a text ends.
    """
    files = _from_hub(wanted) if isinstance(wanted, Hub) else _from_folder(root / wanted)
    where = str(files["tokenizer.json"])
    content = _without_extras(read_limited(files["tokenizer.json"]), where)
    known = build(content, where).get_vocab(with_added_tokens=True)
    special = {key: token for key, token in _special_tokens(files).items() if token in known}
    if "eos_token" not in special:
        found = [token for token in END_TOKENS if token in known]
        if not found:
            raise UserError(
                "no file says which token ends a text, and none has a usual name "
                f"({', '.join(END_TOKENS)})",
                where=where,
                hint="put a tokenizer_config.json with eos_token beside it",
                exit_code=BAD_DATA,
            )
        special["eos_token"] = found[0]
    origin = {"id": wanted.id, "revision": wanted.revision} if isinstance(wanted, Hub) else wanted
    return Built(content, special, {"pretrained": origin})


def _without_extras(content: bytes, where: str) -> bytes:
    """tokenizer.json as it is, unless it cuts, pads or adds tokens: documents are encoded whole
    and end in EOS, and an export must encode a prompt as its training text was encoded."""
    spec, library = check_spec(content, where), build(content, where)
    extras = [key for key in ("truncation", "padding") if spec.get(key)]
    if library.encode("a").ids != library.encode("a", add_special_tokens=False).ids:
        extras.append("post_processor")
    if not extras:
        return content
    print(f"    {where}: {', '.join(extras)} left out: they would cut, pad or add tokens")
    return json.dumps(spec | dict.fromkeys(extras), ensure_ascii=False, indent=2).encode()


def _special_tokens(files: dict[str, Path]) -> dict[str, str]:
    special: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if name in files:
            try:
                config = json.loads(read_limited(files[name]))
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"not valid JSON: {error}", where=str(files[name]), exit_code=BAD_DATA
                ) from None
            if isinstance(config, dict):
                tokens = {key: token_name(config, key) for key in SPECIAL}
                special |= {key: token for key, token in tokens.items() if token}
    return special


def _from_folder(path: Path) -> dict[str, Path]:
    folder = path if path.is_dir() else path.parent
    first = folder / "tokenizer.json" if path.is_dir() else path
    if not first.is_file():
        raise UserError(
            f"{first} is missing",
            where="params.yaml: tokenizer.pretrained",
            hint="name a tokenizer.json, or a folder that holds one, relative to params.yaml",
            exit_code=NO_INPUT,
        )
    others = {name: folder / name for name in FILES[1:] if (folder / name).is_file()}
    return {"tokenizer.json": first} | others


def _from_hub(wanted: Hub) -> dict[str, Path]:
    if mirror := settings().hub:
        return _from_folder(mirror / wanted.id)
    return {name: path for name in FILES if (path := _download(wanted, name))}


def _download(wanted: Hub, name: str) -> Path | None:
    """One file of a model repository, through the hub's cache; None for one that need not be."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    where = "params.yaml: tokenizer.pretrained"
    try:
        return Path(hf_hub_download(wanted.id, name, revision=wanted.revision))
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"the hub did not answer for {wanted.id}/{name}: {error}",
            where=where,
            hint="try again, or set PHASEWISE_HUB to a folder that holds <id>/tokenizer.json",
            exit_code=UNAVAILABLE,
        ) from None
    except EntryNotFoundError:
        if name != "tokenizer.json":
            return None
        raise UserError(
            f"{wanted.id} has no tokenizer.json at {wanted.revision}",
            where=where,
            hint="choose a repository with one; other formats are not read",
            exit_code=NO_INPUT,
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(
            f"cannot download {wanted.id}/{name} at {wanted.revision}: {error}",
            where=where,
            hint="check the id and the revision, and that the repository is public",
            exit_code=UNAVAILABLE,
        ) from None
