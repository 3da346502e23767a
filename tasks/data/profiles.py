"""Cleaning profiles: what is noise differs by source, so each kind of source has rules of its own.

    text -> normalise characters -> the profile -> tidy white space -> text, or a reason to drop

Filters that suit one source destroy another: C4's rule that a line ends in a full stop drops every
CNN article, its rule on braces all LaTeX, Gopher's rule on alphabetic words all of WikiText. So
a profile removes what was seen to be noise in that kind of text and drops little; duplicates are
the next stage's work. Every function here is pure. A "word" is what stands between white space.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import dataclass

from tasks.data.characters import flatten, normalise, repair_mojibake, tidy
from tasks.data.wikitext import restore


@dataclass(frozen=True, slots=True)
class Dropped:
    """The document goes, for this reason."""

    reason: str


Profile = Callable[[str], str | Dropped]

_TAG = re.compile(
    r"</?(?:a|abbr|b|big|blockquote|br|center|code|dd|del|details|div|dl|dt|em|font|gallery|h[1-6]"
    r"|hr|i|img|includeonly|ins|kbd|li|math|noinclude|nowiki|ol|onlyinclude|p|picture|poem|pre|ref"
    r"|references|s|score|section|small|source|span|strike|strong|sub|summary|sup|table|tbody|td|th"
    r"|thead|tr|tt|u|ul|var)(?:[\s/][^<>]*)?>",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?。！？।…][\"')\]”’»]*$")
_SENTENCE_WITHIN = re.compile(r"\w{2}[.!?…][\"')\]”’»]* [A-Z\"“(]")
_SENTENCE_LENGTH = 20  # characters; headings such as "History." end with a full stop too
_PARAGRAPH_LENGTH = 80  # characters; a title may hold a full stop too ("Lucia di St. Mary")


def clean_text(text: str, profile: str, min_words: int) -> str | Dropped:
    """Clean one document.

    Args:
        text: as downloaded.
        profile: a key of ``PROFILES``.
        min_words: documents with fewer words go.

    Returns:
        The text with the least white space that keeps its lines, never empty; or why it goes.
    """
    cleaned = PROFILES[profile](normalise(text))
    if isinstance(cleaned, Dropped):
        return cleaned
    cleaned = tidy(cleaned)
    if not cleaned.strip():
        return Dropped("empty")
    if len(cleaned.split(maxsplit=min_words)) < min_words:
        return Dropped("too_short")
    return cleaned


def plain(text: str) -> str:
    """Nothing but characters and white space, which every profile has in common."""
    return text


def has_sentence(text: str) -> bool:
    """Whether a line of the text ends as a sentence does, or a long one holds the end of one."""
    return any(
        (len(line) >= _SENTENCE_LENGTH and _SENTENCE_END.search(line, len(line) - 4))
        or (len(line) >= _PARAGRAPH_LENGTH and _SENTENCE_WITHIN.search(line))
        for line in map(str.strip, text.split("\n"))
    )


_EMPTY_BRACKETS = re.compile(r" \((?:\s*[;,])*\s*\)")
_BRACKET_START = re.compile(r"\((?:\s*[;,])+\s*")
_WIKI_LINK = re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]]*)\]\]")
_WIKI_LINE = re.compile(r"^(?:\[\[(?:Category|File|Image):.*|__[A-Z]+__|[|!]-?)$", re.MULTILINE)
_BACK_MATTER = re.compile(
    r"^=* ?(?:References|External links|See also|Notes|Further reading|Bibliography|Sources"
    r"|Footnotes|Citations|Notes and references|References and notes) ?=*\.?$",
    re.MULTILINE,
)
_DISAMBIGUATION = re.compile(r"\b(?:may|can)(?: also)? refer to\b[^.\n]*:\s*$", re.MULTILINE)


def encyclopedia(text: str) -> str | Dropped:
    """Wikipedia extracts: what the extraction left behind, and pages that hold no article.

    Escaped markup, brackets whose content is gone (``(; born``), and references without their
    lists are removed. Dropped: ``stub`` (no sentence: in a dump half of the pages are redirects,
    whose text is their title) and ``disambiguation`` ("may refer to:").
    """
    text = _article(text)
    if not has_sentence(text):
        return Dropped("stub")
    if _DISAMBIGUATION.search(text[:500]) and len(text) < 2000:
        return Dropped("disambiguation")
    return text


def wikitext(text: str) -> str | Dropped:
    """WikiText articles, given back their spelling (see wikitext.py); ``stub`` as above."""
    text = _article(restore(text))
    return text if has_sentence(text) else Dropped("stub")


def _article(text: str) -> str:
    if "&" in text:
        text = normalise(html.unescape(html.unescape(text)))
    text = _WIKI_LINK.sub(r"\1", _WIKI_LINE.sub("", _TAG.sub("", text)))
    text = _BRACKET_START.sub("(", _EMPTY_BRACKETS.sub("", text))
    for heading in reversed(list(_BACK_MATTER.finditer(text))):
        if not has_sentence(text[heading.end() :]):
            text = text[: heading.start()]
    return flatten(text)


_AGENCY = re.compile(
    r"^(?:[A-Z][\w.,'’/ -]{0,60}?)?\((?:CNN|Reuters|AP|AFP|CNN Student News|CNNMoney|EW\.com"
    r"|The Hollywood Reporter|Mashable|Financial Times|CNN Money|PEOPLE\.com)\)\s*(?:--|—|–|-)?\s*"
)
_BYLINE = re.compile(
    r"^By \. .{0,200}?(?=PUBLISHED: \. |UPDATED: \. |Last updated at )|"
    r"(?:PUBLISHED|UPDATED): \. \d\d:\d\d [A-Z]{2,4}, \d{1,2} \w+ \d{4} \. (?:\| \. )?|"
    r"Last updated at \d{1,2}:\d\d [AP]M on \d{1,2}\w\w \w+ \d{4} \. "
)
_NEWS_NOTICE = re.compile(
    r"\s*(?:"
    r"(?:CNN's|CNN producers?|CNN|The Associated Press|Reuters|Journalists?)\b[^.\n]{0,200}"
    r"contributed to this (?:report|story|article)\s?\.?"
    r"|(?:Copyright|©)[^.\n]{0,60}\d{4}[^.\n]{0,60}\.(?: ?All rights reserved\.)?"
    r"(?: ?This material may not be [^.\n]{0,80}\.)?"
    r"|All rights reserved\.(?: ?This material may not be [^.\n]{0,80}\.)?"
    r"|E-mail to a friend ?\.?"
    r"|SCROLL DOWN FOR VIDEO ?\.?|Scroll down for video ?\.?"
    r")"
)
_LOOSE_STOP = re.compile(r"(?<=[\w\"')”’:]) \.(?= |$)")


def news(text: str) -> str:
    """CNN and Daily Mail articles: agency marks, time stamps, notices and "contributed to" lines.

    The full stops that the data set put after pieces without one (``in Aden . The jet``) lose
    their space. Line rules of web filters would drop every article: each is one line.
    """
    text = _BYLINE.sub("", _AGENCY.sub("", repair_mojibake(text)))
    text = _NEWS_NOTICE.sub("", text)
    text = _LOOSE_STOP.sub(lambda stop: "" if text[stop.start() - 1] == ":" else ".", text)
    return flatten(text)


_WEB_LINE = re.compile(
    r"(?:advertisements?|share(?: this)?:?|tweet|pin(?: it|terest)?|reddit|tumblr|linkedin|pocket"
    r"|whatsapp|facebook|twitter|e-?mail|print|permalink|posted|updated|photo|subscribe|sign up"
    r"|log ?in|menu|search|home|loading\.*|comments?|leave a (?:comment|reply)|reply|next|previous"
    r"|related(?: posts| articles| stories)?:?|read more:?|see also \[ ?edit ?\]"
    r"|skip to (?:main )?content|back to top|(?:story|article) continue[sd] below.*"
    r"|(?:advertisement )?continue reading(?: the main story)?|like this: like loading\.*"
    r"|share this:.{0,80}|scroll to continue with content.*|.{0,60}comments powered by disqus\.?"
    r"|please enable java ?script.*|.{0,40}newsletter sign up.*|we use cookies.*"
    r"|by (?:continuing to use|using) this (?:web)?site.*|(?:copyright )?(?:©|\(c\)) ?\d{4}.{0,100}"
    r"|.{0,60}all rights reserved\.?|https?://\S+|!@#\$%\^&\*\(\)\s+comments|[\W_]+)",
    re.IGNORECASE,
)
_EDIT_MARK = re.compile(r" \[ ?edit ?\]")
_REPEATED_SHARE = 0.3  # of the characters, in lines that stood before
_WORDLIKE_SHARE = 0.5  # of the words, holding a letter


def web(text: str) -> str | Dropped:
    """Web pages: lines that are furniture (share buttons, notices, addresses alone) go.

    Dropped: ``repetition`` (more than 30 % of the characters in lines that stood before) and
    ``not_prose`` (under half of the words hold a letter). These are Gopher's rules with looser
    bounds, for pages that were extracted and filtered once before.

    Rae et al. 2021, https://arxiv.org/abs/2112.11446, table A1
    """
    text = flatten(_EDIT_MARK.sub("", repair_mojibake(text)))
    lines = text.split("\n")
    if _repeated(lines) > _REPEATED_SHARE * len(text):
        return Dropped("repetition")
    kept = [line for line in lines if not line or not _WEB_LINE.fullmatch(line)]
    words = text.split()
    if sum(any(map(str.isalpha, word)) for word in words) < _WORDLIKE_SHARE * len(words):
        return Dropped("not_prose")
    return "\n".join(kept)


def _repeated(lines: list[str]) -> int:
    seen: set[str] = set()
    repeated = 0
    for line in lines:
        repeated += len(line) if line in seen else 0
        seen.add(line)
    return repeated


_COMMENT_LINE = re.compile(r"^[ \t]*%.*\n?", re.MULTILINE)
_COMMENT = re.compile(r"(?<!\\)%.*")
_PREAMBLE = re.compile(r"\A.*?\\begin\{document\}", re.DOTALL)
_LATEX_NOISE = re.compile(
    r"\\begin\{thebibliography\}.*?(?:\\end\{thebibliography\}|\Z)"
    r"|\\(?:bibliography|bibliographystyle|input|include)\{[^{}]*\}"
    r"|\\(?:maketitle|tableofcontents|newpage|clearpage|phantomsection)\b"
    r"|\\end\{document\}.*",
    re.DOTALL,
)


def latex(text: str) -> str:
    """LaTeX sources: comments, the preamble and the bibliography go; formulas stay as they are.

    No filter of web text is used: each would drop nearly all of it.
    """
    text = _COMMENT.sub("", _COMMENT_LINE.sub("", text))
    return _LATEX_NOISE.sub("", _PREAMBLE.sub("", text))


_EMPTY_LABEL = re.compile(r"^[A-Z][\w ]{0,24}:[ \t]*\n+(?=[A-Z][\w ]{0,24}:)", re.MULTILINE)


def dialogue(text: str) -> str:
    """Questions and answers from templates: a label that a null column left without text goes
    (``Context:`` before ``Response: ...``)."""
    return flatten(_EMPTY_LABEL.sub("", text))


def stories(text: str) -> str:
    """TinyStories: its mojibake (``â€œHi``) and end-of-text marks."""
    return flatten(repair_mojibake(text.replace("<|endoftext|>", "")))


_ROLE = re.compile(r":(?:[a-z]+:)?[a-z]+:`(?:~[\w.]*\.|\.)?([^`<>]+?)(?: ?<[^`<>]*>)?`")
_BADGE = re.compile(
    r"^[ \t]*(?:\.\. (?:\|[^|\n]+\| )?image::|:(?:target|alt|width|height|align|scale):|\[?!\[).*$"
    r"|^[ \t]*\.\. _[^:\n]+: https?://\S+$",
    re.MULTILINE,
)
_DIRECTIVE = re.compile(
    r"^[ \t]*\.\. (?:code-block|sourcecode|code|math|plot|autosummary|toctree|currentmodule|module"
    r"|index|highlight|versionadded|versionchanged|doctest|testcode|contents|container|include|ipython)::.*$",
    re.MULTILINE,
)
_RULE = re.compile(r"^[ \t]*([=\-~^\"#*+_])\1{2,}[ \t]*$\n?", re.MULTILINE)
_LETTER_SHARE = 0.5
_LOOK = 2000  # characters that stand for the whole


def docs(text: str) -> str | Dropped:
    """Docstrings and package descriptions: badges, bare directives, heading rules and role marks
    (``:class:`~a.b.C` `` becomes ``C``) go; examples and indentation stay.

    Dropped: ``not_prose`` (under half of the first characters are letters or spaces: tables,
    numbers).
    Licences stay: they are real English, and deduplication leaves one of each.
    """
    text = _ROLE.sub(r"\1", _TAG.sub("", text))
    text = _RULE.sub("", _DIRECTIVE.sub("", _BADGE.sub("", text)))
    looked_at = text.strip()[:_LOOK]
    letters = sum(map(str.isalpha, looked_at)) + sum(map(str.isspace, looked_at))
    return text if letters >= _LETTER_SHARE * len(looked_at) else Dropped("not_prose")


PROFILES: dict[str, Profile] = {
    "plain": plain,
    "encyclopedia": encyclopedia,
    "wikitext": wikitext,
    "news": news,
    "web": web,
    "latex": latex,
    "dialogue": dialogue,
    "stories": stories,
    "docs": docs,
}
