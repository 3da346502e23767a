"""Bytes that call themselves text: what they really are, and how they become Unicode.

Text is UTF-8, with or without a byte order mark. Nothing else is guessed at: a wrong guess makes
nonsense without an error. What the recipe's ``encoding_errors`` says decides about other bytes.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Literal, NamedTuple

from tasks.errors import BAD_DATA, UserError

Policy = Literal["strict", "replace", "skip"]

_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "gzip-compressed", "unpack it: gunzip -k"),
    (b"PAR1", "a parquet file", "set the source's files.format to parquet"),
    (b"PK\x03\x04", "a zip archive", "unpack it: unzip"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed", "unpack it: zstd -d"),
    (b"BZh", "bzip2-compressed", "unpack it: bunzip2 -k"),
    (b"\xfd7zXZ\x00", "xz-compressed", "unpack it: unxz -k"),
    (b"%PDF-", "a PDF file", "extract its text first: pdftotext"),
    (b"SQLite format 3\x00", "an SQLite database", "export its text as jsonl or csv"),
    (b"\xff\xfe", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8"),
)
_HEAD_BYTES = 8192
_BINARY_SHARE = 0.01  # of control bytes among the first ones; a stray one is left to cleaning
_CONTROL = bytes(b for b in range(32) if b not in b"\t\n\v\f\r\b\x1b")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Decoded(NamedTuple):
    """Text, how many bytes in it were not UTF-8, and whether the policy drops it for that."""

    text: str
    repaired: int = 0
    skip: bool = False


def refuse_binary(path: Path) -> None:
    """Raise UserError where a file that is to be read as text is something else, and name it."""
    with open(path, "rb") as handle:
        head = handle.read(_HEAD_BYTES)
    for magic, kind, hint in _MAGIC:
        if head.startswith(magic):
            raise UserError(f"is {kind}, not text", where=str(path), hint=hint, exit_code=BAD_DATA)
    control = len(head) - len(head.translate(None, _CONTROL))
    if control > _BINARY_SHARE * len(head):
        raise UserError(
            f"is binary, not text: {control} of its first {len(head)} bytes are control characters",
            where=str(path),
            hint="leave it out of the source's files; if it is UTF-16: iconv -f UTF-16 -t UTF-8",
            exit_code=BAD_DATA,
        )


def decode(raw: bytes, policy: Policy, where: str) -> Decoded:
    """UTF-8 bytes (a byte order mark is stripped) to text.

    ``strict`` raises UserError that names ``where`` and the first bad byte; ``replace`` reads each
    bad byte, and no other, as cp1252, what most such text once was (U+FFFD where that has no such
    character); ``skip`` marks the text as one to drop.
    """
    try:
        return Decoded(raw.decode().removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        if policy == "strict":
            raise not_utf8(where, raw[error.start], error.start) from None
    return repair(raw.decode(errors="surrogateescape").removeprefix("\ufeff"), policy, where)


def repair(text: str, policy: Policy, where: str) -> Decoded:
    """As ``decode``, for text that was read with the error handler ``surrogateescape``."""
    escaped = _SURROGATE.findall(text)
    if not escaped:
        return Decoded(text)
    if policy == "strict":
        raise not_utf8(where, ord(escaped[0]) - 0xDC00, text.index(escaped[0]))
    return Decoded(_SURROGATE.sub(_as_cp1252, text), len(escaped), skip=policy == "skip")


def not_utf8(where: str, byte: int, offset: int) -> UserError:
    return UserError(
        f"byte 0x{byte:02x} at offset {offset} is not UTF-8",
        where=where,
        hint="save the file as UTF-8, or set files.encoding_errors to 'replace' (reads such bytes "
        "as cp1252) or 'skip' (drops the document)",
        exit_code=BAD_DATA,
    )


def _as_cp1252(match: re.Match[str]) -> str:
    return codecs.decode(bytes([ord(match[0]) - 0xDC00]), "cp1252", "replace")


def replace_surrogates(text: str) -> tuple[str, int]:
    """Text with each lone surrogate, which no encoding can write, replaced by U+FFFD; and how many.

    They come from JSON escapes such as ``\\ud800``, and tokenizers fail on them.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.subn("\ufffd", text)
    return text, 0
