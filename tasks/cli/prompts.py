"""Prompts from wherever they come: the command line, a file, or what is piped in."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tasks.errors import BAD_DATA, NO_INPUT, UserError

MAX_BYTES = 64_000_000
STDIN = "-"
_JSON_LINE = 'a line looks like {"prompt": "Once upon"}'


def read_prompts(given: list[str] | None, file: str | None) -> list[str]:
    """The prompts given, then those of the file; where neither is named, those of stdin.

    A file is lines of text, or JSON lines with a string "prompt" where its name ends in .jsonl;
    '-' is stdin. Empty lines hold no prompt. A prompt given may be empty: it starts a new text.

    Raises UserError where there is none (2), the file is missing (66), or is too large, not UTF-8
    or not such lines (65).
    """
    prompts = list(given or [])
    if file is None and not prompts:
        if sys.stdin.isatty():
            raise UserError(
                "no prompt",
                hint="give --prompt 'Once upon', --prompt-file FILE, lines on stdin, or "
                "--interactive",
            )
        file = STDIN
    if file is not None:
        found = _read(file)
        if not found and not prompts:
            where = "on stdin" if file == STDIN else f"in {file}"
            raise UserError(f"no prompt {where}", hint="one prompt a line")
        prompts += found
    return prompts


def _read(file: str) -> list[str]:
    where = "stdin" if file == STDIN else file
    content = sys.stdin.buffer.read(MAX_BYTES + 1) if file == STDIN else _content(Path(file))
    if len(content) > MAX_BYTES:
        raise UserError(
            f"more than {MAX_BYTES // 1_000_000} MB of prompts",
            where=where,
            hint="a file of prompts has one a line; split it",
            exit_code=BAD_DATA,
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"not UTF-8 text: byte {content[error.start]:#04x} at {error.start:,}",
            where=where,
            hint="convert it: iconv -f <its encoding> -t utf-8",
            exit_code=BAD_DATA,
        ) from None
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    if not file.endswith(".jsonl"):
        return [line for line in lines if line.strip()]
    return [
        _json_prompt(line, f"{file}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def _content(path: Path) -> bytes:
    try:
        with open(path, "rb") as handle:
            return handle.read(MAX_BYTES + 1)
    except OSError as error:
        near = sorted(p.name for p in path.parent.glob("*") if p.suffix in (".txt", ".jsonl"))
        raise UserError(
            f"cannot read {path}: {(error.strerror or str(error)).lower()}",
            where="--prompt-file",
            hint=f"there are: {', '.join(near[:8])}" if near else "give a file of lines",
            exit_code=NO_INPUT,
        ) from None


def _json_prompt(line: str, where: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"not valid JSON: {error}", where=where, hint=_JSON_LINE, exit_code=BAD_DATA
        ) from None
    prompt = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(prompt, str):
        raise UserError(
            "no text under 'prompt'",
            where=where,
            hint=_JSON_LINE,
            exit_code=BAD_DATA,
        )
    return prompt
