"""Personal data with a form is masked; what only looks like it stays. Languages are told apart."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data import language
from tasks.data.clean import clean
from tasks.data.download import download
from tasks.data.pii import mask
from tasks.data.profiles import Cleaner, Dropped
from tasks.errors import UserError
from tasks.files import read_json
from tasks.workspace import Workspace
from tests.corpus import small_recipe, story

MASKED = [
    ("mail ann.lee+x@mills.example.org, or", "mail <EMAIL>, or"),
    ("<ann@mills.org>", "<<EMAIL>>"),
    ("from 93.184.216.34, port 80", "from <IP>, port 80"),
    ("http://93.184.216.34/a", "http://<IP>/a"),
    ("at 2606:2800:220:1:248:1893:25c8:1946.", "at <IP>."),
    ("call 212-555-0187.", "call <PHONE>."),
    ("(212) 555-0187 or 1-800-273-8255", "<PHONE> or <PHONE>"),
    ("+44 20 7946 0958", "<PHONE>"),
    ("+61 (0) 401 420 922, or", "<PHONE>, or"),
    ("+14155550187", "<PHONE>"),
    ("(020) 7946 0958", "<PHONE>"),
    ("card 4111 1111 1111 1111", "card <CARD>"),
    ("378282246310005", "<CARD>"),
    ("SSN 536-22-8726", "SSN <SSN>"),
    ("IBAN GB29 NWBK 6016 1331 9268 19", "IBAN <IBAN>"),
    ("DE89370400440532013000", "<IBAN>"),
]


@pytest.mark.parametrize(("text", "masked"), MASKED)
def test_personal_data_is_replaced_by_its_kind(text: str, masked: str) -> None:
    counts: Counter[str] = Counter()
    assert mask(text, counts) == masked
    assert counts.total() == sum(masked.count(name) for name in counts) > 0


@pytest.mark.parametrize(
    "text",
    [
        "2012-10-11 and 11.10.2012 10:15:30, 1939–1945, 12/31/1999",
        "version 10.0.19.245, v1.2.3.123, Chrome/91.0.212.120, section 2.1.3.1",
        "192.168.1.100, 127.0.0.1, 10.1.2.200 and 256.300.1.1",
        "fe80::1, std::vector, a::b, 12:30:45, 2:1, Fig. 2001:",
        "ISBN 978-0-306-40615-7, ISBN 0-306-40615-2, ISSN 1234-5678, ISBN +978 0306 406157",
        "arXiv:2106.09685, hep-th/9901001, 10.1145/3292500.3330701",
        r"$x = 123.456.7890$ \cite{a@b} \@ifnextchar, $+12 34 56 78$, 3+4155550187",
        "4111 1111 1111 1112, 1234 5678 9012 3456, 000-12-3456, GB30 NWBK 6016 1331 9268 19",
        "512 256 1024, 415 555 2671, 1,234,567,890, 3.14159265358979, 6.02214076e23",
        "lodash@4.17.21, icon@2x.png, @ann, user@host, pip install a@b",
        "item 536-22-87261, part-212-555-0187-b, /id/212-555-0187",
    ],
)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert mask(text) == text


@given(
    st.lists(
        st.sampled_from(
            [text for text, _ in MASKED]
            + [" ", ".", "-", "+1", "5", "@", "a.b", "<", ":", "2001:", "212-", "ISBN "]
        ),
        max_size=12,
    ).map("".join)
)
def test_masking_again_changes_nothing(text: str) -> None:
    once = mask(text)
    again: Counter[str] = Counter()
    assert mask(once, again) == once and not again


@given(st.dates(), st.tuples(*[st.integers(0, 99)] * 4), st.integers(0, 10**7))
def test_dates_versions_and_counts_are_never_touched(
    date: object, parts: tuple[int, ...], count: int
) -> None:
    text = f"On {date} release {'.'.join(map(str, parts))} had {count:,} users, {count} downloads."
    assert mask(text) == text


@given(st.integers(0, 10**9))
def test_text_without_personal_data_is_never_touched(seed: int) -> None:
    text = story(seed)
    assert mask(text) == text


def run(tmp_path: Path, source: dict[str, object], texts: list[str]) -> dict[str, object]:
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text, "utf-8")
    workspace = Workspace(tmp_path)
    recipe = small_recipe({"own": {"files": {"train": [str(tmp_path / "*.txt")]}, **source}})
    download(workspace, recipe, "own")
    clean(workspace, recipe, "own")
    (ledger,) = read_json(workspace.clean("own") / "ledger.json")
    return dict(ledger)


def test_the_ledger_counts_what_was_masked(tmp_path: Path) -> None:
    texts = [f"{story(1)} Write to ann@mills.org.", "Call 212-555-0187 or mail bo@mills.org now."]
    ledger = run(tmp_path, {"mask_pii": True, "min_words": 4}, [*texts, "To cy@mills.org"])
    assert ledger["examples"] == {"too_short": ["To <EMAIL>"]}, "nor is it shown there"
    assert ledger["notes"]["masked"] == {"<EMAIL>": 2, "<PHONE>": 1}  # type: ignore[index]


GERMAN = (
    "Der alte Müller trug den gesprungenen Kessel über die Brücke, weil es sonst niemand tun wollte. "
    "Am Abend saß er vor dem Haus und schrieb alles auf, was er an diesem Tag gesehen hatte."
)


def test_a_language_needs_its_package_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    language._identifier.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    monkeypatch.setitem(sys.modules, "py3langid", None)
    with pytest.raises(UserError, match=r"phasewise\[language\]"):
        language.check_languages(["en"], "sources.own.languages")
    language.check_languages([], "sources.own.languages")  # off: nothing is needed
    language._identifier.cache_clear()


def test_other_languages_go_and_are_counted(tmp_path: Path) -> None:
    pytest.importorskip("py3langid", reason="the extra 'language' is not installed")
    ledger = run(tmp_path, {"languages": ["en"]}, [story(1), GERMAN, story(2)])
    assert ledger["dropped"]["language"]["documents"] == 1  # type: ignore[index]
    assert ledger["notes"]["languages_dropped"] == {"de": 1}  # type: ignore[index]
    assert Cleaner(languages=("de",)).clean(story(3)) == Dropped("language")
    assert Cleaner(languages=("de", "en")).clean(GERMAN) == GERMAN
    with pytest.raises(UserError, match="no language 'xq'"):
        language.check_languages(["xq"], "sources.own.languages")


def test_a_language_code_is_two_or_three_letters() -> None:
    with pytest.raises(UserError, match=r"languages\[0\]"):
        small_recipe({"a": {"files": {"train": ["*.txt"]}, "languages": ["English"]}})
