"""Which language a document is in, by py3langid: byte n-grams, 139 languages, a model of 5 MB.

It is an extra (``pip install 'phasewise[language]'``), its model comes with the package, is loaded
without pickle, and gives the same answer everywhere. Only a part of a text is looked at, which
decides as surely as the whole.

Lui and Baldwin 2012, https://aclanthology.org/P12-3005
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from tasks.errors import UNAVAILABLE, UserError, nearest

_LOOK = 400  # characters, at the beginning and again in the middle


def detect(text: str) -> str:
    """ISO 639 code of the likeliest language; raises UserError where py3langid is missing."""
    middle = max(_LOOK, (len(text) - _LOOK) // 2)
    looked_at = text[:_LOOK] + "\n" + text[middle : middle + _LOOK]
    code, _ = _identifier().classify(looked_at)
    return str(code)


def check_languages(languages: Iterable[str], where: str) -> None:
    """Raise UserError where py3langid is missing or does not know one of the codes."""
    for code in languages:
        if code not in (known := _identifier().labels):
            guess = nearest(code, known)
            raise UserError(
                f"no language {code!r} among the {len(known)} that py3langid tells apart",
                where=where,
                hint=(f"did you mean {guess!r}? " if guess else "")
                + "they are ISO 639 codes: en, de, fr, es, zh, ...",
            )


@cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise UserError(
            "py3langid, which tells languages apart, is not installed",
            where="languages",
            hint="pip install 'phasewise[language]', or remove the source's languages",
            exit_code=UNAVAILABLE,
        ) from None
    return LanguageIdentifier.from_model_file(MODEL_FILE)
