"""Characters: one form of Unicode, no controls, spaces that are spaces, and no mojibake.

Nothing here knows what a text is about; profiles.py does.
"""

from __future__ import annotations

import re
import unicodedata

# C1 controls are cp1252 characters that were read as Latin-1 (as HTML 5 reads them too)
_C1 = {
    byte: bytes([byte]).decode("cp1252", "ignore") for byte in range(0x80, 0xA0)
}  # five of them are nothing in cp1252 and go
_LINE_ENDS = dict.fromkeys((0x0B, 0x0C, 0x0D, 0x2028, 0x2029), "\n")
_SPACES = dict.fromkeys((0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000), " ")
# joiners (U+200C, U+200D) stay: Persian, Indic scripts and emoji are spelt with them
_INVISIBLE = dict.fromkeys(
    (*range(0x00, 0x09), *range(0x0E, 0x20), 0x7F, 0xAD, 0x200B, 0x200E, 0x200F,
     *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFC),
     0xFFFE, 0xFFFF),
    "",
)  # fmt: skip
# what a PDF's font drew as one sign; no other compatibility form is undone: ² and ½ mean something
_LIGATURES = dict(enumerate(("ff", "fi", "fl", "ffi", "ffl", "st", "st"), start=0xFB00))
_REPLACED = {
    chr(code): to for code, to in (_C1 | _LINE_ENDS | _SPACES | _INVISIBLE | _LIGATURES).items()
}
_ODD = re.compile("[" + "".join(map(re.escape, sorted(_REPLACED))) + "]")

# UTF-8 that was read as cp1252: a lead byte's character, then those of continuation bytes
_AS_CP1252 = {chr(b): b for b in range(0x80, 0x100)} | {
    bytes([b]).decode("cp1252"): b
    for b in range(0x80, 0x100)
    if bytes([b]).decode("cp1252", "ignore")
}
_TAIL = "[" + "".join(re.escape(c) for c, b in _AS_CP1252.items() if 0x80 <= b < 0xC0) + "]"
_MOJIBAKE = re.compile(f"[\u00c2-\u00df]{_TAIL}|[\u00e0-\u00ef]{_TAIL}{{2}}")
_LOST_QUOTE = re.compile("\u00e2\u20ac(?=[\\s.,!?;:)]|$)")  # ” whose last byte went on the way
_SENSIBLE = re.compile("[\u00a0-\u00ff\u2010-\u2044\u20ac\u2122]")

_BLANK_RUN = re.compile(r"\n{3,}")
_SPACE_RUN = re.compile("  +")


def normalise(text: str) -> str:
    """Unicode NFC; line feeds as the only line ends; control and invisible characters gone; every
    kind of space a plain one (tabs stay); the ligatures of PDF files (``ﬁ``) in letters."""
    if "\r" in text:
        text = text.replace("\r\n", "\n")
    text = _ODD.sub(lambda match: _REPLACED[match[0]], text)
    # last, for what stood between a letter and its accent is gone only now
    return compose(text)


def compose(text: str) -> str:
    """Unicode NFC: a letter and its accent are one character where there is such a one."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def tidy(text: str) -> str:
    """No space at the ends of lines, at most one blank line in a row, none at either end."""
    if " \n" in text or "\t\n" in text or text.endswith((" ", "\t")):
        text = "\n".join([line.rstrip(" \t") for line in text.split("\n")])
    if "\n\n\n" in text:
        text = _BLANK_RUN.sub("\n\n", text)
    return text.strip("\n")


def flatten(text: str) -> str:
    """Prose: one space between words, none at the start of a line. Not for code or tables."""
    if "\t" in text:
        text = text.replace("\t", " ")
    if "  " in text:
        text = _SPACE_RUN.sub(" ", text)
    if "\n " in text or " \n" in text or text.startswith(" ") or text.endswith(" "):
        text = "\n".join([line.strip(" ") for line in text.split("\n")])
    return text


def repair_mojibake(text: str) -> str:
    """Turn UTF-8 that was read as cp1252 back: ``donâ€™t`` becomes ``don’t``.

    Only where the outcome is a Western letter or punctuation mark, so that a true ``É®`` stays.
    """
    if text.isascii() or ("â€" not in text and "Ã" not in text and "Â" not in text):
        return text
    return normalise(_LOST_QUOTE.sub("\u201d", _MOJIBAKE.sub(_as_utf8, text)))


def _as_utf8(match: re.Match[str]) -> str:
    try:
        repaired = bytes(_AS_CP1252[character] for character in match[0]).decode()
    except UnicodeDecodeError:
        return match[0]
    return repaired if _SENSIBLE.fullmatch(repaired) else match[0]
