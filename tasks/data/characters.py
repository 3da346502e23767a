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
_PLAIN = bytes((0x09, 0x0A, *range(0x20, 0x7F)))
# letters and marks of Western texts that are as they should be, and of which NFC never makes
# anything else, whatever stands beside them
_EVERYDAY = frozenset(
    chr(code)
    for codes in (
        range(0xA0, 0x250),
        range(0x2010, 0x2028),
        range(0x2030, 0x205F),
        (0x20AC, 0x2122),
    )
    for code in codes
    if chr(code) not in _REPLACED
)

# UTF-8 that was read as cp1252: a lead byte's character, then those of continuation bytes
_AS_CP1252 = {chr(b): b for b in range(0x80, 0x100)} | {
    bytes([b]).decode("cp1252"): b
    for b in range(0x80, 0x100)
    if bytes([b]).decode("cp1252", "ignore")
}
_TAIL = "[" + "".join(re.escape(c) for c, b in _AS_CP1252.items() if 0x80 <= b < 0xC0) + "]"
# one class in front of both cases: the search runs to it instead of trying each case everywhere
_MOJIBAKE = re.compile(
    f"[\u00c2-\u00ef](?:(?<=[\u00c2-\u00df]){_TAIL}|(?<=[\u00e0-\u00ef]){_TAIL}{{2}})"
)
_LOST_QUOTE = re.compile("\u00e2\u20ac(?=[\\s.,!?;:)]|$)")  # ” whose last byte went on the way
_SENSIBLE = re.compile("[\u00a0-\u00ff\u2010-\u2044\u20ac\u2122]")

_BLANK_RUN = re.compile(r"\n\n\n+")  # not \n{3,}: a search runs to a literal
_SPACE_RUN = re.compile("  +")


def normalise(text: str) -> str:
    """Unicode NFC; line feeds as the only line ends; control and invisible characters gone; every
    kind of space a plain one (tabs stay); the ligatures of PDF files (``ﬁ``) in letters."""
    # taking ASCII out of bytes is many times faster than searching the text, and leaves little
    beyond = text.encode("utf-8", "surrogatepass").translate(None, _PLAIN)
    if _EVERYDAY.issuperset(beyond.decode("utf-8", "surrogatepass")):
        return text
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
    lines = text.split("\n")
    stripped = [line.rstrip(" \t") for line in lines]
    return close_up(text if stripped == lines else "\n".join(stripped))


def flatten(text: str) -> str:
    """Prose: one space between words, none at either end of a line. Not for code or tables."""
    if "\t" in text:
        text = text.replace("\t", " ")
    if "  " in text:
        text = _SPACE_RUN.sub(" ", text)
    lines = text.split("\n")
    stripped = [line.strip(" ") for line in lines]
    return text if stripped == lines else "\n".join(stripped)


def close_up(text: str) -> str:
    """At most one blank line in a row, and none at either end."""
    if "\n\n\n" in text:
        text = _BLANK_RUN.sub("\n\n", text)
    return text.strip("\n")


def repair_mojibake(text: str) -> str:
    """Turn UTF-8 that was read as cp1252 back: ``donâ€™t`` becomes ``don’t``.

    Only where the outcome is a Western letter or punctuation mark, so that a true ``É®`` stays.
    """
    # one character is looked for many times faster than two
    if "Ã" not in text and "Â" not in text and ("â" not in text or "â€" not in text):
        return text
    return normalise(_LOST_QUOTE.sub("\u201d", _MOJIBAKE.sub(_as_utf8, text)))


def _as_utf8(match: re.Match[str]) -> str:
    try:
        repaired = bytes(_AS_CP1252[character] for character in match[0]).decode()
    except UnicodeDecodeError:
        return match[0]
    return repaired if _SENSIBLE.fullmatch(repaired) else match[0]
