"""How varied generated text is, and how much of it goes round in circles. All over token ids."""

from __future__ import annotations

from collections.abc import Sequence

Ids = Sequence[int]
REPEAT = 4  # tokens of an n-gram whose coming back is repetition


def distinct(texts: Sequence[Ids], n: int) -> float | None:
    """Different n-grams of all texts over their n-grams; None where there is none.

    distinct-n of Li et al. (2016, "A diversity-promoting objective function for neural conversation
    models"). It falls with the amount of text, so compare equal amounts alone.
    """
    grams = [gram for text in texts for gram in _ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else None


def repetition_rate(texts: Sequence[Ids], n: int = REPEAT) -> float | None:
    """Share of a text's n-grams that it has had before, averaged over texts; None where none is
    as long.

    seq-rep-n of Welleck et al. (2019, "Neural text generation with unlikelihood training").
    """
    rates = [
        1 - len(set(grams)) / len(grams) for text in texts if (grams := list(_ngrams(text, n)))
    ]
    return sum(rates) / len(rates) if rates else None


def _ngrams(text: Ids, n: int) -> list[tuple[int, ...]]:
    return list(zip(*(text[start:] for start in range(n))))
