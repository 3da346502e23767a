"""From rows to documents, by the recipe alone: a template, a grouping, or a regrouping of lines.

    row {"question": ..., "answers": {"text": [...]}}  --template-->  text
    rows that agree in ``group_by``  --text of the first, ``each`` of every one-->  one text
    WikiText's lines  --regroup-->  articles

Where the rows come from is the readers' business.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby, pairwise
from typing import Any

from tasks.errors import BAD_DATA, UserError, nearest
from tasks.recipe import Source

_FIELD = re.compile(r"([^.\[\]!:]+)((?:\[[^\[\]]+\])*)")
_INDEX = re.compile(r"\[([^\[\]]+)\]")
# " = Title = ", and not the " = = Section = = " of a deeper level
_TITLE = re.compile(r"\s*= (?!= )(\S.*?)(?<! =) =\s*")


Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source: its columns, and where it stands.

    Attributes:
        values: column -> value.
        origin: what is written into the document, e.g. ``{"file": "a.jsonl", "line": 3}``.
        place: file and row within it, counted from 0: where reading this split would begin again.
        dropped: why the row makes no document: ``encoding`` (it holds bytes that are not UTF-8 and
            the recipe says to skip such), ``too_long``; its values are what is shown of it.
        size: bytes of a row that was too long to hold.
        repaired: bytes in it that were not UTF-8 and were read as cp1252.
    """

    values: dict[str, Any]
    origin: dict[str, Any]
    place: Place = (0, 0)
    dropped: str | None = None
    size: int | None = None
    repaired: int = 0

    @property
    def where(self) -> str:
        """``file:line``, as an error message has it."""
        place = self.origin.get("file") or self.origin.get("dataset", "row")
        line = self.origin.get("line", self.origin.get("row"))
        return f"{place}:{line}" if line is not None else str(place)


def labels(values: dict[str, Any]) -> dict[str, str]:
    """The columns that say what a row is, for its origin."""
    return {k: values[k] for k in ("id", "url", "title") if isinstance(values.get(k), str)}


class Template:
    """Text with ``{column}`` or ``{column[key][0]}`` in it.

    A template comes from a recipe that somebody else may have written, so it may look up columns,
    keys and list positions and nothing else: no attributes, conversions or format
    specifications.
    """

    def __init__(self, template: str, where: str) -> None:
        """Raises UserError, at ``where`` (file and key), for a template that cannot be."""
        self._parts: list[tuple[str, str, list[str | int]]] = []
        try:
            for literal, name, spec, conversion in string.Formatter().parse(template):
                if name is None:
                    self._parts.append((literal, "", []))
                    continue
                match = _FIELD.fullmatch(name)
                if not match or spec or conversion:
                    raise ValueError(
                        f"{{{name}}} may be a column, a key in brackets or a list position, as in "
                        "{answers[text][0]}, and nothing more"
                    )
                keys = [int(k) if k.isdecimal() else k for k in _INDEX.findall(match[2])]
                self._parts.append((literal, match[1], keys))
        except ValueError as error:
            raise UserError(f"{template!r}: {error}", where=where) from None
        if not any(column for _, column, _ in self._parts):
            raise UserError(f"{template!r} names no column", where=where)
        self._bare = [literal for literal, _, _ in self._parts] == [""]

    def render(self, row: Row) -> str:
        """The text of a row; a null is empty text.

        Raises UserError naming the row: for a column that is not there (lists those that are) and
        for a value that is not text. A number is text only amid other text.
        """
        return "".join(
            literal + (self._value(row, column, keys) if column else "")
            for literal, column, keys in self._parts
        )

    def _value(self, row: Row, column: str, keys: list[str | int]) -> str:
        if column not in row.values:
            there = ", ".join(map(str, row.values))
            guess = nearest(column, map(str, row.values))
            hint = f"did you mean {{{guess}}}? " if guess else ""
            raise UserError(
                f"no column {column!r}; the columns are: {there}",
                where=row.where,
                hint=f'{hint}set the source\'s text, e.g. text: "{{{guess or "column"}}}"',
                exit_code=BAD_DATA,
            )
        value, name = row.values[column], column
        for key in keys:
            name += f"[{key}]"
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                raise UserError(
                    f"there is no {name}: {column} is {row.values[column]!r:.200}",
                    where=row.where,
                    exit_code=BAD_DATA,
                ) from None
        if value is None:
            return ""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if isinstance(value, str) or (number and not self._bare):
            return str(value)
        raise UserError(
            f"{name} is not text but {type(value).__name__}: {value!r:.200}",
            where=row.where,
            hint='name another column, or a part of it: text: "{column[part]}"',
            exit_code=BAD_DATA,
        )


def maker(source: Source, where: str) -> Callable[[Iterable[Row]], Iterator[tuple[str, Row]]]:
    """What turns a source's rows into texts, each with the row it began at.

    Args:
        source: its ``text``, ``group_by``, ``each`` and ``regroup`` say how.
        where: file and key of the source, for errors in its templates.
    """
    text = Template(source.text, f"{where}.text")
    if source.group_by:
        assert source.each is not None
        each = Template(source.each, f"{where}.each")
        return lambda rows: _groups(rows, source.group_by, text, each)
    if source.regroup == "wikitext":
        return lambda rows: articles(rows, text)
    return lambda rows: ((text.render(row), row) for row in rows)


def _groups(
    rows: Iterable[Row], columns: list[str], text: Template, each: Template
) -> Iterator[tuple[str, Row]]:
    keys = [Template(f"{{{column}}}", "group_by") for column in columns]
    for _, group in groupby(rows, lambda row: [key.render(row) for key in keys]):
        members = list(group)
        parts = [text.render(members[0]), *(each.render(member) for member in members)]
        yield "\n\n".join(parts), members[0]


def articles(rows: Iterable[Row], line: Template) -> Iterator[tuple[str, Row]]:
    """Join WikiText's rows, which are lines, into articles.

    An article begins at a heading `` = Title = `` with a blank row on both sides; the same words
    amid a paragraph (``= 1 henry and capacitance C =`` stands in the test split) begin none.
    Lines before the first heading are a text of their own, so nothing is lost.

    Merity et al. 2016, https://arxiv.org/abs/1609.07843
    """
    blank = ("", Row({}, {}))
    lines = ((line.render(row).rstrip("\n"), row) for row in rows)
    article: list[tuple[str, Row]] = []
    for ((before, _), here), (_, (after, _)) in pairwise(pairwise(chain([blank], lines, [blank]))):
        if _TITLE.fullmatch(here[0]) and not before.strip() and not after.strip():
            yield from _joined(article)
            article = []
        article.append(here)
    yield from _joined(article)


def _joined(article: list[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
    if any(text.strip() for text, _ in article):
        title = _TITLE.fullmatch(article[0][0])
        first = article[0][1]
        origin = first.origin | ({"title": title[1]} if title else {})
        yield "\n".join(text for text, _ in article), Row(first.values, origin)
