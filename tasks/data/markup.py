"""What each kind of text brings along that is not text: markup, boilerplate, furniture of pages.

One function a kind of text, from text to text, pure; none drops anything (quality.py does). A step
that would search the whole text in vain is guarded by a look for a literal without which it cannot
match: looking is many times cheaper than searching. A search runs to a literal that its pattern
begins with, but tries "^" at each character: so what is looked for at the start of a line begins
with the line feed before it, and the first line is given one.
"""

from __future__ import annotations

import html
import re

from tasks.data.characters import normalise, repair_mojibake

# <unk>, of which WikiText is full, would be held against every name
_TAG = re.compile(
    r"<(?!unk>)/?(?:a|abbr|b|big|blockquote|br|center|code|dd|del|details|div|dl|dt|em|font|gallery|h[1-6]"
    r"|hr|i|img|includeonly|ins|kbd|li|math|noinclude|nowiki|ol|onlyinclude|p|picture|poem|pre|ref"
    r"|references|s|score|section|small|source|span|strike|strong|sub|summary|sup|table|tbody|td|th"
    r"|thead|tr|tt|u|ul|var)(?:[\s/][^<>]*)?>",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?。！？।…][\"')\]”’»]*$")
_SENTENCE_WITHIN = re.compile(r"[.!?…](?<=\w{2}.)[\"')\]”’»]* [A-Z\"“(]")
_SENTENCE_LENGTH = 20  # characters; headings such as "History." end with a full stop too
_PARAGRAPH_LENGTH = 80  # characters; a title may hold a full stop too ("Lucia di St. Mary")


def has_sentence(text: str) -> bool:
    """Whether a line of the text ends as a sentence does, or a long one holds the end of one."""
    return any(
        (len(line) >= _SENTENCE_LENGTH and _SENTENCE_END.search(line, len(line) - 4))
        or (len(line) >= _PARAGRAPH_LENGTH and _SENTENCE_WITHIN.search(line))
        for line in map(str.strip, text.split("\n"))
    )


_EMPTY_BRACKETS = re.compile(r" \((?:\s*[;,])*\s*\)")
_BRACKET_START = re.compile(r"\((?:\s*[;,])+\s*")
_HOLLOW = re.compile(r"\([\s;,)]")  # what both begin with; hardly any text has it
_WIKI_LINK = re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]]*)\]\]")
_WIKI_LINE = re.compile(
    r"\n(?:\[\[(?:Category|File|Image):.*|__[A-Z]+__"
    r"|[|!][-}]? *|[|!] ?(?:(?:col|row)span|style|align|width|class|scope|bgcolor) ?=.*)(?=\n|\Z)"
)
_BACK_MATTER = re.compile(
    r"\n=* ?(?:References|External links|See also|Notes|Further reading|Bibliography|Sources"
    r"|Footnotes|Citations|Notes and references|References and notes) ?=*\.?(?=\n|\Z)"
)


def encyclopedia(text: str) -> str:
    """Wikipedia extracts: escaped markup, table marks, brackets whose content is gone
    (``(; born``), and references without their lists."""
    if "&" in text and (unescaped := html.unescape(text)) != text:
        text = normalise(unescaped)
    if "<" in text:
        text = _TAG.sub("", text)
    text = _WIKI_LINE.sub("\n", "\n" + text)[1:]
    if "[" in text and "[[" in text:
        text = _WIKI_LINK.sub(r"\1", text)
    if "(" in text and _HOLLOW.search(text):
        text = _BRACKET_START.sub("(", _EMPTY_BRACKETS.sub("", text))
    for heading in reversed(list(_BACK_MATTER.finditer(text))):
        if has_sentence(text[heading.end() :]):
            break
        text = text[: heading.start()]
    return text


_AGENCY = re.compile(
    r"(?:[A-Z][\w.,'’/ -]{0,60}?)?\((?:CNN|Reuters|AP|AFP|CNN Student News|CNNMoney|EW\.com"
    r"|The Hollywood Reporter|Mashable|Financial Times|CNN Money|PEOPLE\.com)\)\s*(?:--|—|–|-)?\s*"
)
_BYLINE = re.compile(
    r"^By \. .{0,200}?(?=PUBLISHED: \. |UPDATED: \. |Last updated at )|"
    r"(?:PUBLISHED|UPDATED): \. \d\d:\d\d [A-Z]{2,4}, \d{1,2} \w+ \d{4} \. (?:\| \. )?|"
    r"Last updated at \d{1,2}:\d\d [AP]M on \d{1,2}\w\w \w+ \d{4} \. "
)
_NOTICES: tuple[tuple[tuple[str, ...], re.Pattern[str]], ...] = (
    (
        ("contributed to this",),
        re.compile(
            r"(?:CNN's|CNN producers?|CNN|The Associated Press|Reuters|Journalists?)\b[^.\n]{0,200}"
            r"contributed to this (?:report|story|article)\s?\.?"
        ),
    ),
    (
        ("Copyright", "©", "All rights reserved"),
        re.compile(
            r"(?:Copyright|©)[^.\n]{0,60}\d{4}[^.\n]{0,60}\.(?: ?All rights reserved\.)?"
            r"(?: ?This material may not be [^.\n]{0,80}\.)?"
            r"|All rights reserved\.(?: ?This material may not be [^.\n]{0,80}\.)?"
        ),
    ),
    (("E-mail to a friend",), re.compile(r"E-mail to a friend ?\.?")),
    (
        ("SCROLL DOWN FOR VIDEO", "Scroll down for video"),
        re.compile(r"SCROLL DOWN FOR VIDEO ?\.?|Scroll down for video ?\.?"),
    ),
)
_COLON_STOP = re.compile(r": \.(?= |$)")
_LOOSE_STOP = re.compile(r" \.(?= |$)(?<=[\w\"')”’] \.)")


def news(text: str) -> str:
    """CNN and Daily Mail articles: agency marks, time stamps, notices and "contributed to" lines.

    The full stops that the data set put after pieces without one (``in Aden . The jet``) lose
    their space. Line rules of web filters would drop every article: each is one line.
    """
    text = repair_mojibake(text)
    if agency := _AGENCY.match(text):
        text = text[agency.end() :]
    if "PUBLISHED: ." in text or "UPDATED: ." in text or "Last updated at " in text:
        text = _BYLINE.sub("", text)
    for signs, notice in _NOTICES:
        if any(sign in text for sign in signs):
            *before, last = notice.split(text)
            text = "".join([*map(str.rstrip, before), last])
    if " ." in text:
        text = _LOOSE_STOP.sub(".", _COLON_STOP.sub(":", text))
    return text


_FURNITURE_LENGTH = 200  # characters; a longer line is text
_FURNITURE = frozenset(
    """advertisement|advertisements|share|share this|tweet|pin|pin it|pinterest|reddit|tumblr
    linkedin|pocket|whatsapp|facebook|twitter|email|e-mail|print|permalink|posted|updated|photo
    subscribe|sign up|login|log in|menu|search|home|loading|comment|comments|leave a comment
    leave a reply|reply|next|previous|related|related posts|related articles|related stories
    read more|skip to content|skip to main content|back to top|continue reading
    advertisement continue reading|continue reading the main story|like this: like loading
    advertisement continue reading the main story""".replace("\n    ", "|").split("|")
)
_FURNITURE_START = re.compile(
    r"(?:story|article) continue[sd] below|share this:.{0,80}$|please enable java ?script"
    r"|scroll to continue with content|we use cookies"
    r"|by (?:continuing to use|using) this (?:web)?site"
    r"|(?:copyright )?(?:©|\(c\)) ?\d{4}.{0,100}$|https?://\S+$|see also \[ ?edit ?\]$|[\W_]+$"
)
_FURNITURE_END = ("comments powered by disqus", "all rights reserved")
_EDIT_MARK = re.compile(r" \[ ?edit ?\]")


def web(text: str) -> str:
    """Web pages: their mojibake, and the ``[edit]`` behind a heading."""
    text = repair_mojibake(text)
    return _EDIT_MARK.sub("", text) if "[" in text and "edit" in text else text


def is_furniture(line: str) -> bool:
    """Whether a line of a web page is no text: share buttons, notices, an address alone."""
    if not line or len(line) > _FURNITURE_LENGTH:
        return False
    line = line.lower().rstrip(" .:")
    return (
        line in _FURNITURE
        or line.endswith(_FURNITURE_END)
        or _FURNITURE_START.match(line) is not None
        or "newsletter sign up" in line
        or not line
    )


_COMMENT_LINE = re.compile(r"\n[ \t]*%.*")
_COMMENT = re.compile(r"%(?<!\\%).*")
_PREAMBLE = re.compile(r"\A.*?\\begin\{document\}", re.DOTALL)
_LATEX_NOISE = re.compile(
    r"\\begin\{thebibliography\}.*?(?:\\end\{thebibliography\}|\Z)"
    r"|\\(?:bibliography|bibliographystyle|input|include)\{[^{}]*\}"
    r"|\\(?:maketitle|tableofcontents|newpage|clearpage|phantomsection)\b"
    r"|\\end\{document\}.*",
    re.DOTALL,
)


def latex(text: str) -> str:
    """LaTeX sources: comments, the preamble and the bibliography go; formulas stay as they are."""
    if "%" in text:
        text = _COMMENT.sub("", _COMMENT_LINE.sub("", "\n" + text)[1:])
    if "\\begin{document}" in text:
        text = _PREAMBLE.sub("", text)
    return _LATEX_NOISE.sub("", text)


_EMPTY_LABEL = re.compile(r"^[A-Z][\w ]{0,24}:[ \t]*\n+(?=[A-Z][\w ]{0,24}:)", re.MULTILINE)
_OPEN_LABEL = re.compile(r":[ \t]*\n")


def dialogue(text: str) -> str:
    """Questions and answers from templates: a label that a null column left without text goes
    (``Context:`` before ``Response: ...``)."""
    # a search for "^" tries each character; one for ":" runs
    return _EMPTY_LABEL.sub("", text) if _OPEN_LABEL.search(text) else text


def stories(text: str) -> str:
    """TinyStories: its mojibake (``â€œHi``) and end-of-text marks."""
    return repair_mojibake(text.replace("<|endoftext|>", ""))


_ROLE = re.compile(r":(?:[a-z]+:)?[a-z]+:`(?:~[\w.]*\.|\.)?([^`<>]+?)(?: ?<[^`<>]*>)?`")
_BADGE = re.compile(
    r"\n[ \t]*(?:"
    r"(?:\.\. (?:\|[^|\n]+\| )?image::|:(?:target|alt|width|height|align|scale):|\[?!\[).*"
    r"|\.\. _[^:\n]+: https?://\S+(?=\n|\Z))"
)
_DIRECTIVE = re.compile(
    r"\n[ \t]*\.\. (?:code-block|sourcecode|code|math|plot|autosummary|toctree|currentmodule|module"
    r"|index|highlight|versionadded|versionchanged|doctest|testcode|contents|container|include|ipython)::.*"
)
_RULE = re.compile(r"\n[ \t]*([=\-~^\"#*+_])\1{2,}[ \t]*(?=\n|\Z)")


def docs(text: str) -> str:
    """Docstrings and package descriptions: badges, bare directives, heading rules and role marks
    (``:class:`~a.b.C` `` becomes ``C``) go; examples and indentation stay.

    Licences stay: they are real English, and deduplication leaves one of each.
    """
    if "<" in text:
        text = _TAG.sub("", text)
    if "`" in text and ":`" in text:
        text = _ROLE.sub(r"\1", text)
    text = _DIRECTIVE.sub("\n", _BADGE.sub("\n", "\n" + text))
    return _RULE.sub("", text)[1:]
