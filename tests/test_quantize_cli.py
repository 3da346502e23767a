"""`phasewise quantize`: four variants of a model, measured alike on the same text."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tasks.cli import main
from tests.corpus import story
from tests.test_generate_cli import Done, Run, folder

__all__ = ["folder"]


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `phasewise quantize ...` as the entry point does."""

    def go(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["phasewise", "quantize", *arguments])
        monkeypatch.setenv("COLUMNS", "120")
        monkeypatch.setattr("tasks.release.variants.SPEED_REPEATS", 1)
        monkeypatch.setattr("tasks.release.variants.SPEED_TOKENS", 8)
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Done(int(end.value.code or 0), out, err)

    return go


def test_four_variants_are_measured_on_the_same_text(
    compare: Run, folder: Path, tmp_path: Path
) -> None:
    texts = []
    for number in range(2):
        texts.append(tmp_path / f"{number}.txt")
        texts[-1].write_text(story(number), encoding="utf-8")
    flags = ["--text", str(texts[0]), "--text", str(texts[1])]
    done = compare(str(folder), *flags, "--json")
    assert done.code == 0, done.err
    made = json.loads(done.out)
    rows = {row["kind"]: row for row in made["variants"]}
    assert list(rows) == ["fp32", "bf16", "int8", "int4"]
    assert made["text"] == {
        "files": [str(path) for path in texts],
        "documents": 2,
        "bytes": sum(path.stat().st_size for path in texts),
    }
    assert rows["fp32"]["weight_bytes"] == 2 * rows["bf16"]["weight_bytes"]
    assert rows["int8"]["weight_bytes"] < rows["bf16"]["weight_bytes"]
    for row in rows.values():
        assert row["tokens_per_second"] > 0
        assert row["bits_per_byte"] == pytest.approx(rows["fp32"]["bits_per_byte"], rel=0.05)
    assert rows["int4"]["bits_per_byte"] != rows["fp32"]["bits_per_byte"]
    cut = json.loads(compare(str(folder), *flags, "--json", "--tokens", "50").out)
    assert cut["text"]["documents"] == 1 and cut["text"]["bytes"] < 200
    assert 50 <= cut["variants"][0]["tokens"] <= 52  # cut off where it was, and ended
    table = compare(str(folder), *flags).out
    for word in ("weights", "MB", "bits/byte", "perplexity", "tokens/s", *rows):
        assert word in table


def test_a_kind_that_the_tables_do_not_fit_is_told(
    compare: Run, folder: Path, tmp_path: Path
) -> None:
    narrow = folder.parent / "phase1"  # its feed-forward is 48 wide
    (tmp_path / "t.txt").write_text(story(1))
    done = compare(str(narrow), "--text", str(tmp_path / "t.txt"))
    assert done.code == 0 and "no int4: " in done.out and "48 wide" in done.out
    assert [line.split()[0] for line in done.out.splitlines()[2:5]] == ["fp32", "bf16", "int8"]
    rows = json.loads(compare(str(narrow), "--text", str(tmp_path / "t.txt"), "--json").out)
    assert "48 wide" in rows["variants"][3]["obstacle"]


def test_without_a_text_the_projects_validation_text_is_taken(
    compare: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.data.documents import Document, Writer

    monkeypatch.chdir(tmp_path)
    done = compare(str(folder))
    assert done.code == 66 and "--text FILE" in done.err
    (tmp_path / "dvc.yaml").write_text("")
    (tmp_path / "recipes").mkdir()
    for source, split in (("letters", "validation"), ("notes", "validation"), ("old", "train")):
        with Writer(tmp_path / "data/documents" / source) as writer:
            for number in range(2):
                writer.add(Document.of(story(number), source, split, "{}"))
    done = compare(str(folder), "--json")
    assert done.code == 0, done.err
    text = json.loads(done.out)["text"]
    assert text["files"] == [f"data/documents/{name} (validation)" for name in ("letters", "notes")]
    assert text["bytes"] == 2 * sum(len(story(number).encode()) for number in range(2))


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [(b"", 2, "the text is empty"), ("fermé".encode("latin-1"), 65, "not UTF-8"), (None, 66, "cannot read")],
)  # fmt: skip
def test_a_text_that_cannot_be_measured_is_explained(
    compare: Run, folder: Path, tmp_path: Path, content: bytes | None, code: int, message: str
) -> None:
    if content is not None:
        (tmp_path / "t.txt").write_bytes(content)
    done = compare(str(folder), "--text", str(tmp_path / "t.txt"))
    assert done.code == code and message in done.err
