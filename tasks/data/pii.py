"""Personal data that has a form: found, and replaced by a word that says what stood there.

    mail ann@mills.org or 212-555-0187  ->  mail <EMAIL> or <PHONE>

Names and addresses have no form and stay. FineWeb writes made-up addresses into the gap; a
placeholder cannot be taken for anybody's, shows in what a model writes, can be counted and
searched for, and is never found again. A form that other things share (dates, versions, section
numbers, ISBNs, columns of a table) is taken only with a second sign: a check sum, the rules of
the numbering plan, a separator that agrees, an address that the internet routes.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable

_EMAIL = re.compile(
    r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}"
    r"(?!(?:png|jpe?g|gif|svg|webp)\b)[A-Za-z]{2,24}(?![\w-]|\.\w)"
)
_IBAN = re.compile(r"(?<![\w-])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![\w-])")
_CARD = re.compile(
    r"(?<![\w.,/-])(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}|\d{4}([ -])\d{6}\2\d{5})"
    r"(?![\w/-]|[.,]\d)"
)
_ISSUER = re.compile(r"4(?:.{12}|.{15}|.{18})|(?:5[1-5]|2[2-7]|65).{14}|6011.{12}|3[47].{13}")
_SSN = re.compile(r"(?<![\w./-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w/-]|\.\d)")
_IPV4 = re.compile(r"(?<![\w.-])(?<!\w/)\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?![\w-]|\.\d)")
_IPV6 = re.compile(
    r"[23][0-9A-Fa-f]{3}:(?<![\w:.][23][0-9A-Fa-f]{3}:)[0-9A-Fa-f:]{2,34}(?![\w:]|\.\d)"
)
_VERSION_BEFORE = re.compile(r"(?:version|release|build|firmware|\bver?\.?|\bv)\s*$", re.IGNORECASE)
_PHONE = re.compile(
    r"(?<![\w.,/$)}\]^+-])(?:"
    r"\+[1-9]\d{0,2}(?:[ .-]?\(\d{1,4}\))?(?:[ .-]?\d{2,4}){2,5}"
    r"|(?:1[ .-])?\([2-9]\d\d\) ?[2-9]\d\d[ .-]\d{4}"
    r"|(?:1([.-]))?[2-9]\d\d([.-])[2-9]\d\d\2\d{4}"
    r"|\(?0(?:20|1\d{2,3}|7\d{3}|800)\)? \d{3,4} ?\d{3,4}"
    r")(?![\w/-]|[.,]\d| ?[×=%])"
)
_DIGITS = re.compile(r"\d(?:[ .()-]{0,3}\d){5}")  # no form of numbers has fewer
_BEFORE = 24  # characters that say what a number is
_BOOK_BEFORE = re.compile(r"\b(?:ISBN|ISSN|DOI|arXiv|OCLC|PMID)\b[^\n]*$", re.IGNORECASE)


def mask(text: str, counts: Counter[str] | None = None) -> str:
    """Replace what is found by ``<EMAIL>``, ``<IBAN>``, ``<CARD>``, ``<SSN>``, ``<IP>`` and
    ``<PHONE>``; ``counts`` is told how often each. Masking again changes nothing."""
    found: Counter[str] = Counter()
    numbers = _DIGITS.search(text) is not None
    for name, sign, pattern, is_one in _KINDS:
        if sign in text if sign else numbers:
            text = _replace(text, name, pattern, is_one, found)
    if counts is not None:
        counts.update(found)
    return mask(text, counts) if found else text


def _replace(
    text: str,
    name: str,
    pattern: re.Pattern[str],
    is_one: Callable[[re.Match[str]], bool],
    found: Counter[str],
) -> str:
    def placeholder(match: re.Match[str]) -> str:
        if not is_one(match):
            return match[0]
        found[name] += 1
        return name

    return pattern.sub(placeholder, text)


def _only_digits(text: str) -> str:
    return "".join(filter(str.isdigit, text))


def _before(match: re.Match[str]) -> str:
    return match.string[max(0, match.start() - _BEFORE) : match.start()]


def _has_iban_check(match: re.Match[str]) -> bool:
    """ISO 13616: letters as numbers from 10, country and check digits last, 1 modulo 97."""
    compact = match[0].replace(" ", "")
    moved = compact[4:] + compact[:4]
    return len(compact) >= 15 and int("".join(str(int(c, 36)) for c in moved)) % 97 == 1


def _is_card(match: re.Match[str]) -> bool:
    """An issuer's prefix and length, and Luhn's check sum (ISO/IEC 7812-1)."""
    digits = _only_digits(match[0])
    doubled = [int(d) * (1 + i % 2) for i, d in enumerate(reversed(digits))]
    return bool(_ISSUER.fullmatch(digits)) and sum(d // 10 + d % 10 for d in doubled) % 10 == 0


def _is_public_ip(match: re.Match[str]) -> bool:
    """Routed on the internet. One of IPv4 has a part of three digits, as 97 % have: sections and
    versions (``2.1.3.1``) have none."""
    try:
        address = ipaddress.ip_address(match[0].rstrip(":"))
    except ValueError:
        return False
    if address.version == 4 and max(map(len, match[0].split("."))) < 3:
        return False
    return address.is_global and not _VERSION_BEFORE.search(_before(match))


def _is_phone(match: re.Match[str]) -> bool:
    """8 to 15 digits (ITU-T E.164), and not said to be the number of a book or paper."""
    return 8 <= len(_only_digits(match[0])) <= 15 and not _BOOK_BEFORE.search(_before(match))


def _always(match: re.Match[str]) -> bool:
    return True


# placeholder, a sign without which there is none ("": six digits), form, second sign
_KINDS: tuple[tuple[str, str, re.Pattern[str], Callable[[re.Match[str]], bool]], ...] = (
    ("<EMAIL>", "@", _EMAIL, _always),
    ("<IBAN>", "", _IBAN, _has_iban_check),
    ("<CARD>", "", _CARD, _is_card),
    ("<SSN>", "", _SSN, _always),
    ("<IP>", "", _IPV4, _is_public_ip),
    ("<IP>", ":", _IPV6, _is_public_ip),
    ("<PHONE>", "", _PHONE, _is_phone),
)
