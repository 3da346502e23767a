"""`phasewise data dedup` on files of every form."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tasks.cli import app
from tasks.data import files_dedup
from tasks.data.files_dedup import dedup_files
from tasks.data.texts import texts
from tasks.errors import UserError
from tasks.recipe import Dedup
from tests.corpus import nearly, story

TEXTS = [story(1), story(2), nearly(story(1)), story(2).upper(), "", story(3), ""]
STAY = [0, 1, 4, 5]
REASONS = [(2, 0, "near"), (3, 1, "exact"), (6, 4, "exact")]


def rows() -> list[dict[str, Any]]:
    return [{"n": n, "body": text, "tags": ["é", n]} for n, text in enumerate(TEXTS)]


def removed(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "removed.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_kept_lines_stay_as_they_are(tmp_path: Path, ending: str) -> None:
    raw = [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows()]
    path = tmp_path / f"a{ending}"
    with pa.output_stream(str(path)) as stream:
        stream.write(b"\n".join([b"".join(raw[:3]), b"".join(raw[3:])]))  # and a blank line
    (account,) = dedup_files([str(path)], tmp_path / "out", Dedup(), text_key="body")
    assert (account.rows, account.exact, account.near, account.kept) == (7, 2, 1, 4)
    with pa.input_stream(str(tmp_path / "out" / path.name)) as stream:
        assert stream.read() == b"".join(raw[n] for n in STAY)
    lines = removed(tmp_path / "out")
    assert [(line["row"], line["kept_row"], line["reason"]) for line in lines] == REASONS
    assert all(0.8 <= line["jaccard"] <= 1 and line["file"] == path.name for line in lines)
    assert {line["id"] for line in lines}.isdisjoint({lines[0]["kept_id"]})
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, "out"])


def test_a_gz_file_is_one_that_others_read(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as handle:
        handle.write('{"text": "x y"}\n')
    dedup_files([str(tmp_path / "a.jsonl.gz")], tmp_path / "out", Dedup())
    with gzip.open(tmp_path / "out/a.jsonl.gz", "rt") as handle:
        assert handle.read() == '{"text": "x y"}\n'


def test_parquet_keeps_its_columns_and_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_dedup, "PART_BYTES", 1)  # each row group a part
    table = pa.table(
        {"n": pa.array(range(7), pa.int8()), "text": TEXTS, "x": [[n] for n in range(7)]}
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    dedup_files([str(tmp_path / "a.parquet")], tmp_path / "out", Dedup())
    assert pq.read_table(tmp_path / "out/a.parquet").equals(table.take(STAY))
    assert [
        (line["row"], line["kept_row"], line["reason"]) for line in removed(tmp_path / "out")
    ] == REASONS


def test_texts_are_files_or_lines(tmp_path: Path) -> None:
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_text(text)
    accounts = dedup_files([str(tmp_path / "*.txt")], tmp_path / "out", Dedup())
    assert [n for n, account in enumerate(accounts) if account.kept] == STAY
    assert sorted(p.name for p in (tmp_path / "out").glob("*.txt")) == [f"{n}.txt" for n in STAY]
    flat = [" ".join(text.split()) for text in TEXTS if text]
    (tmp_path / "all.txt").write_text("\n".join(flat))
    dedup_files([str(tmp_path / "all.txt")], tmp_path / "lines", Dedup(), by_line=True)
    assert (tmp_path / "lines/all.txt").read_text() == f"{flat[0]}\n{flat[1]}\n{flat[4]}"


def test_a_large_file_is_read_in_stretches_of_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    dedup_files([str(path)], tmp_path / "whole", Dedup())
    for size in (1, 50, 700, 1500):
        monkeypatch.setattr(files_dedup, "PART_BYTES", size if size > 49 else 97)
        parts = list(files_dedup._parts(path, "jsonl", "text"))
        assert [text for part in parts for _, text in texts(part)] == TEXTS
    dedup_files([str(path)], tmp_path / "parts", Dedup())
    for name in ("a.jsonl", "removed.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_the_first_of_several_files_wins(tmp_path: Path) -> None:
    for name, texts_ in (("b", TEXTS[2:]), ("a", TEXTS[:2])):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({"text": t}) + "\n" for t in texts_)
        )
    result = CliRunner().invoke(
        app, ["data", "dedup", str(tmp_path / "*.jsonl"), "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 0, result.output
    assert "all" in result.output and "removed.jsonl" in result.output
    lines = removed(tmp_path / "out")
    assert [(line["file"], line["kept_file"], line["kept_row"]) for line in lines] == [
        ("b.jsonl", "a.jsonl", 0), ("b.jsonl", "a.jsonl", 1), ("b.jsonl", "b.jsonl", 2),
    ]  # fmt: skip


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    good = tmp_path / "good.jsonl"
    good.write_text('{"content": "x", "id": 1}\n')
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\n{"text": 5}\n')
    (tmp_path / "cut.jsonl").write_text('{"text": "x"\n')
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/good.jsonl").write_text("")
    (tmp_path / "there").mkdir()

    def refused(*names: str, out: str = "out", **options: Any) -> str:
        with pytest.raises(UserError) as error:
            dedup_files(
                [str(tmp_path / name) for name in names], tmp_path / out, Dedup(), **options
            )
        assert not (tmp_path / "out").exists()
        return str(error.value)

    assert "no column 'text'; the columns are: content, id" in refused("good.jsonl")
    assert "did you mean" in refused("goood.jsonl")
    assert "no file" in refused("*.nothing")
    assert "--overwrite" in refused("good.jsonl", out="there")
    assert "several forms: good.jsonl is jsonl, latin.txt is txt" in refused(
        "good.jsonl", "latin.txt"
    )
    assert "cannot be written twice" in refused("good.jsonl", "other/good.jsonl")
    assert "'text' is not text but int" in refused("bad.jsonl")
    assert "not JSON" in refused("cut.jsonl") and "byte 0" in refused("cut.jsonl")
    assert "not UTF-8" in refused("latin.txt")
    assert "is damaged" in refused("a.parquet")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("x")
    assert "holds other things" in refused("good.jsonl", out="mine", overwrite=True)
    assert "--lines is for text files" in refused("good.jsonl", by_line=True)
    dedup_files([str(good)], tmp_path / "there", Dedup(), text_key="content", overwrite=True)
    assert (tmp_path / "there/good.jsonl").read_text() == good.read_text()
    result = CliRunner().invoke(app, ["data", "dedup", str(good), "--out", "x", "--threshold", "2"])
    assert isinstance(result.exception, UserError) and "--threshold" in str(result.exception)


def test_articles_that_wikipedia_holds_twice_go(mirror: Path, tmp_path: Path) -> None:
    """The last articles of the dump's mirror stand in it a second time."""
    (path,) = (mirror / "wikimedia/wikipedia/20231101.en").glob("train-00003-*.parquet")
    table = pq.read_table(path).slice(20_000)
    once = table.take(list(range(0, 1500)))
    again = pa.concat_tables([once, once.slice(700, 300)])
    pq.write_table(again, tmp_path / "a.parquet")
    (account,) = dedup_files([str(tmp_path / "a.parquet")], tmp_path / "out", Dedup())
    assert account.rows == 1800 and account.exact >= 300
    kept = pq.read_table(tmp_path / "out/a.parquet")
    assert kept.num_rows == account.kept
    assert kept.equals(
        again.take(
            sorted({int(i) for i in range(1800)} - {r["row"] for r in removed(tmp_path / "out")})
        )
    )
