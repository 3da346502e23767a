"""Readers bring every row here, or say which file, which line and what to do."""

from __future__ import annotations

import gzip
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.data.documents import read
from tasks.data.download import download
from tasks.data.hub import WAITS, HubReader
from tasks.data.installed import InstalledReader, docstrings, texts_of_files
from tasks.data.local import LocalReader
from tasks.errors import BAD_DATA, NO_INPUT, UNAVAILABLE, USAGE, UserError
from tasks.files import read_json, sha256_file
from tasks.ledger import read_ledgers
from tasks.recipe import Files, Hub
from tasks.workspace import Workspace
from tests.corpus import small_recipe, write_corpus

HUB = {"id": "someone/stories", "revision": "abc", "splits": {"train": "train"}}


def bring(root: Path, **source: Any) -> list[str]:
    """Download one source and return its texts."""
    download(Workspace(root), small_recipe({"x": source}), "x")
    return [document.text for document in read(Workspace(root).raw("x"))]


def refusal(root: Path, **source: Any) -> UserError:
    with pytest.raises(UserError) as error:
        bring(root, **source)
    assert not Workspace(root).raw("x").exists(), "a failed download left something behind"
    return error.value


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("broken")
    write_corpus(root / "corpus")
    return root


def test_each_format_is_read_by_its_ending(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone file\r\nis one document")
    (tmp_path / "b.jsonl").write_text('{"text": "from json"}\n\n{"text": "and more"}\n')
    (tmp_path / "c.csv").write_text('text,id\n"from, csv",1\n"two\nlines",2\n')
    (tmp_path / "d.tsv").write_text("text\tid\nfrom tsv\t1\n")
    pq.write_table(pa.table({"text": ["from parquet"]}), tmp_path / "e.parquet")
    assert bring(tmp_path, files={"train": ["*.*"]}) == [
        "one file\r\nis one document", "from json", "and more", "from, csv", "two\nlines",
        "from tsv", "from parquet",
    ]  # fmt: skip


def test_a_line_is_a_document_and_only_a_line_feed_ends_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\u2028still one\n\n two \n", encoding="utf-8")
    assert bring(tmp_path, files={"train": ["a.txt"], "format": "lines"}) == [
        "one\u2028still one",
        " two ",
    ]


def test_a_paragraph_is_a_document_and_blank_lines_part_them(tmp_path: Path) -> None:
    text = "\n\nFirst:\r\nspeak.\n \n\t\nAll:\nSpeak,\n  speak.\n\nEnd"
    (tmp_path / "play.txt").write_bytes(text.encode())
    files = {"train": ["play.txt"], "format": "paragraphs"}
    assert bring(tmp_path, files=files) == ["First:\nspeak.", "All:\nSpeak,\n  speak.", "End"]
    origins = [document.origin for document in read(Workspace(tmp_path).raw("x"))]
    assert origins == [
        '{"file":"play.txt","line":3}',
        '{"file":"play.txt","line":7}',
        '{"file":"play.txt","line":11}',
    ]


@pytest.mark.parametrize("start", [2, 6, 9])
def test_reading_goes_on_at_the_paragraph_where_it_stopped(tmp_path: Path, start: int) -> None:
    (tmp_path / "a.txt").write_text("\n\none\nmore\n\n\ntwo\n\n\nthree\n")
    files = Files(train=["a.txt"], format="paragraphs")
    rows = list(LocalReader(files, tmp_path, "x").rows("train"))
    assert [row.place[1] for row in rows] == [2, 6, 9]
    again = LocalReader(files, tmp_path, "x").rows("train", (0, start))
    assert [row.values for row in again] == [r.values for r in rows if r.place[1] >= start]


def test_globs_are_taken_in_the_order_of_names_and_splits_stay_apart(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "deep/c.txt", "held/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    files = {"train": ["*.txt", "deep/**/*.txt"], "validation": ["held/*.txt"]}
    assert bring(tmp_path, files=files) == ["a.txt", "b.txt", "deep/c.txt", "held/d.txt"]
    provenance = read_json(Workspace(tmp_path).raw("x") / "provenance.json")
    assert provenance["documents"] == {"train": 3, "validation": 1}
    assert provenance["from"]["files"][0] == {
        "split": "train",
        "file": "a.txt",
        "bytes": 5,
        "sha256": sha256_file(tmp_path / "a.txt"),
    }


@pytest.mark.parametrize(
    ("name", "says", "hint"),
    [
        ("cp1252.txt", "byte 0xe9 at offset 6 is not UTF-8", "encoding_errors"),
        ("mixed.txt", "byte 0xe9 at offset", "encoding_errors"),
        ("utf16.txt", "is UTF-16 text", "iconv"),
        ("gzip.txt", "is gzip-compressed", "gunzip"),
        ("parquet.txt", "is a parquet file", "files.format to parquet"),
        ("binary.txt", "is binary, not text", "UTF-8"),
        ("bad_line.jsonl", "bad_line.jsonl:3: not JSON", "mend or delete"),
        ("no_text.jsonl", "no_text.jsonl:1: no column 'text'; the columns are: txet, id", "txet"),
        ("number.jsonl", "number.jsonl:1: text is not text but int: 5", None),
        ("list.jsonl", "list.jsonl:1: expected an object with columns, got list", None),
        ("uneven.csv", "uneven.csv:3: 3 columns, but the header has 2: text, id", None),
        ("unclosed.csv", "not CSV: unexpected end of data", None),
    ],
)
def test_a_bad_file_is_named_with_its_fault_and_remedy(
    broken: Path, name: str, says: str, hint: str | None
) -> None:
    error = refusal(broken, files={"train": [f"corpus/broken/{name}"]})
    assert error.exit_code == BAD_DATA
    assert name in str(error) and says in str(error)
    assert hint is None or hint in (error.hint or "")


def test_a_truncated_parquet_file_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a" * 1000]}), tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    error = refusal(tmp_path, files={"train": ["a.parquet"]})
    assert error.exit_code == BAD_DATA and "a.parquet: not a readable parquet file" in str(error)


def test_a_glob_that_matches_nothing_says_what_was_looked_for(tmp_path: Path) -> None:
    error = refusal(tmp_path, files={"train": ["books/*.txt", "more/*.md"]})
    assert error.exit_code == NO_INPUT
    assert "'books/*.txt', 'more/*.md'" in str(error) and str(tmp_path) in str(error)


def test_an_unknown_ending_asks_for_the_format(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("text")
    error = refusal(tmp_path, files={"train": ["a.xyz"]})
    assert error.exit_code == USAGE and "'.xyz'" in str(error)
    assert bring(tmp_path, files={"train": ["a.xyz"], "format": "txt"}) == ["text"]


def test_a_file_in_two_splits_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    error = refusal(tmp_path, files={"train": ["*.txt"], "test": ["a.txt"]})
    assert "a.txt is matched by both train and test" in str(error)


def test_bytes_that_are_not_utf8_are_replaced_one_by_one_where_the_recipe_says_so(
    broken: Path,
) -> None:
    files = {"train": ["corpus/broken/cp1252.txt", "corpus/broken/mixed.txt"]}
    made = bring(broken, files=files | {"encoding_errors": "replace"})
    assert made[0].startswith("Le café était “fermé”.")
    assert made[1].startswith("Le café était “fermé”.") and made[1].endswith(" café")
    provenance = read_json(Workspace(broken).raw("x") / "provenance.json")
    assert provenance["repaired_bytes"] == 6
    shutil.rmtree(Workspace(broken).raw("x"))


def test_documents_in_another_encoding_are_dropped_and_booked_where_the_recipe_says_so(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n{"text": "caf\xe9"}\n')
    (tmp_path / "b.csv").write_bytes(b"text,id\ngood too,1\ncaf\xe9,2\n")
    made = bring(tmp_path, files={"train": ["*.*"], "encoding_errors": "skip"})
    assert made == ["good", "good too"]
    ledger = read_ledgers(Workspace(tmp_path).raw("x") / "ledger.json")[0]
    assert ledger.dropped["encoding"].documents == 2
    assert ledger.examples["encoding"] == ["café", "café\n2"]


def test_lone_surrogates_are_replaced_and_counted(broken: Path) -> None:
    made = bring(broken, files={"train": ["corpus/broken/surrogate.jsonl"]})
    assert made == ["a lone \ufffd surrogate among some words"]
    ledger = read_ledgers(Workspace(broken).raw("x") / "ledger.json")[0]
    assert ledger.notes["lone_surrogates"] == 1
    shutil.rmtree(Workspace(broken).raw("x"))


def test_an_empty_source_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n")
    assert "no document" in str(refusal(tmp_path, files={"train": ["a.jsonl"]}))


def test_max_bytes_stops_the_training_split_alone(tmp_path: Path) -> None:
    for name in ("train", "test"):
        lines = "".join(json.dumps({"text": f"{i:09d}"}) + "\n" for i in range(10))
        (tmp_path / f"{name}.jsonl").write_text(lines)
    files = {"train": ["train.jsonl"], "test": ["test.jsonl"]}
    assert len(bring(tmp_path, files=files, max_bytes=25)) == 3 + 10
    provenance = read_json(Workspace(tmp_path).raw("x") / "provenance.json")
    assert provenance["stopped_at_max_bytes"] is True


# --- the hub and its mirror ---------------------------------------------------------------------


class Dataset:
    """A streamed dataset whose connection breaks before some of its rows, once each."""

    def __init__(self, breaks: list[int], start: int = 0) -> None:
        self.breaks, self.start = breaks, start

    def skip(self, rows: int) -> Dataset:
        return Dataset(self.breaks, rows)

    def __iter__(self) -> Any:
        for number in range(self.start, 6):
            if number in self.breaks:
                self.breaks.remove(number)
                raise ConnectionError("reset by peer")
            yield {"text": f"row {number}"}


def hub_reader(load: Any, waits: list[float]) -> HubReader:
    return HubReader(Hub(**HUB), "params.yaml: sources.x", load=load, sleep=waits.append)


def test_a_broken_stream_goes_on_where_it_broke_and_backs_off() -> None:
    waits: list[float] = []
    breaks = [0, 0, 3]
    reader = hub_reader(lambda *a, **k: Dataset(breaks), waits)
    assert [r.values["text"] for r in reader.rows("train")] == [f"row {i}" for i in range(6)]
    assert waits == [WAITS[0], WAITS[1], WAITS[0]], "progress starts the back-off afresh"


def test_an_unreachable_hub_says_how_to_use_a_mirror() -> None:
    def load(*args: Any, **options: Any) -> Any:
        assert args == ("someone/stories", "default")
        assert options == {"split": "train", "revision": "abc", "streaming": True}
        raise ConnectionError("Couldn't reach the Hub")

    waits: list[float] = []
    with pytest.raises(UserError) as error:
        list(hub_reader(load, waits).rows("train"))
    assert error.value.exit_code == UNAVAILABLE and waits == list(WAITS)
    assert "PHASEWISE_HUB=<folder>" in str(error.value)
    assert "someone/stories/default/<split>-*.parquet" in str(error.value)


def test_what_the_hub_refuses_is_not_asked_again() -> None:
    def load(*args: Any, **options: Any) -> Any:
        raise ValueError("BuilderConfig 'default' not found. Available: ['clean', 'raw']")

    waits: list[float] = []
    with pytest.raises(UserError) as error:
        list(hub_reader(load, waits).rows("train"))
    assert error.value.exit_code == NO_INPUT and not waits
    assert "['clean', 'raw']" in str(error.value)


@pytest.fixture
def small_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "mirror/someone/stories/default"
    folder.mkdir(parents=True)
    for number, words in enumerate((["one", "two"], ["three"])):
        table = pa.table({"text": words, "title": [f"T{w}" for w in words]})
        pq.write_table(table, folder / f"train-{number:05d}-of-00002.parquet")
    pq.write_table(pa.table({"text": ["held"]}), folder / "test-00000-of-00001.parquet")
    monkeypatch.setenv("PHASEWISE_HUB", str(tmp_path / "mirror"))
    return tmp_path


def test_a_mirror_stands_in_for_the_hub(small_mirror: Path) -> None:
    assert bring(small_mirror, hub=HUB) == ["one", "two", "three"]
    documents = list(read(Workspace(small_mirror).raw("x")))
    assert json.loads(documents[2].origin) == {
        "dataset": "someone/stories",
        "config": "default",
        "split": "train",
        "row": 2,
        "title": "Tthree",
    }
    provenance = read_json(Workspace(small_mirror).raw("x") / "provenance.json")
    assert provenance["from"]["kind"] == "mirror" and provenance["from"]["revision"] == "abc"
    names = [file["file"] for file in provenance["from"]["files"]]
    assert names == [f"someone/stories/default/train-0000{i}-of-00002.parquet" for i in (0, 1)]


@pytest.mark.parametrize(
    ("change", "says", "lists"),
    [
        ({"id": "someone/storys"}, "no dataset 'someone/storys'", "someone/stories"),
        ({"config": "clean"}, "no config 'clean' of someone/stories", "default"),
        ({"splits": {"validation": "valid"}}, "no split 'valid' of someone/stories", "test, train"),
    ],
)
def test_what_a_mirror_lacks_is_told_with_what_it_has(
    small_mirror: Path, change: dict, says: str, lists: str
) -> None:
    source = {"hub": HUB | change}
    recipe = small_recipe({"x": source, "y": {"installed": "stdlib"}}, phases={
        "phase1": {"starts_from": "init", "tokens": 8192, "mixture": {"y": 1.0}}})  # fmt: skip
    with pytest.raises(UserError) as error:
        download(Workspace(small_mirror), recipe, "x")
    assert error.value.exit_code == NO_INPUT
    assert says in str(error.value) and f"there are: {lists}" in str(error.value)


def test_the_hub_reader_and_the_mirror_reader_agree(small_mirror: Path) -> None:
    """The hub's own client reads the same files to the same rows, and skips as we rely on."""
    datasets = pytest.importorskip("datasets")
    files = [str(p) for p in sorted(small_mirror.glob("mirror/*/*/*/train-*.parquet"))]

    def load(*args: Any, **options: Any) -> Any:
        return datasets.load_dataset(
            "parquet", data_files=files, split="train", streaming=True,
            cache_dir=str(small_mirror / "cache"),
        )  # fmt: skip

    rows = list(hub_reader(load, []).rows("train"))
    assert [row.values["text"] for row in rows] == bring(small_mirror, hub=HUB)
    assert [row["text"] for row in load().skip(2)] == ["three"]


# --- what is installed --------------------------------------------------------------------------


def test_docstrings_are_read_without_running_anything() -> None:
    source = b'''"""Module."""
raise SystemExit("importing me would end everything")
class A:
    """Class."""
    def method(self):
        """Method.

        More:
            Indented.
        """
async def f(): "One line."
x = """not a docstring"""
'''
    assert docstrings(source) == [
        ("", "Module."),
        ("A", "Class."),
        ("A.method", "Method.\n\nMore:\n    Indented."),
        ("f", "One line."),
    ]
    assert docstrings(b"def broken(:") is None


def test_an_installed_file_that_cannot_be_read_is_told_and_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere")
    (tmp_path / "fine.py").write_text('"""Fine."""')
    task = ("stdlib", tmp_path, ["gone.py", "fine.py"])
    assert texts_of_files(task) == [None, [("", "Fine.")]]  # type: ignore[arg-type]


def test_the_standard_library_is_the_same_twice_and_holds_topics_and_docstrings() -> None:
    def texts(count: int) -> list[tuple[str, str, str]]:
        rows = itertools.islice(InstalledReader("stdlib").rows("train"), count)
        return [(r.origin["file"], r.origin["name"], r.values["text"]) for r in rows]

    first = texts(1000)
    assert first == texts(1000) and len(first) == 1000
    assert first[0][:2] == ("pydoc_data/topics.py", "assert")
    assert len({file for file, _, _ in first}) > 20 and all(text.strip() for *_, text in first)
    assert not any("/test/" in file or "site-packages" in file for file, _, _ in first)


def test_a_gzipped_file_is_told_apart_from_text_by_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(b'{"text": "hidden"}\n'))
    assert "is gzip-compressed" in str(refusal(tmp_path, files={"train": ["a.jsonl"]}))
