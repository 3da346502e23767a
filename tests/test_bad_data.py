"""Text that cannot be trained on: refused where it is met, by file and line, with a remedy."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import recipe as recipes
from tasks.data.clean import clean
from tasks.data.dedup import dedup
from tasks.data.download import download
from tasks.data.split import split
from tasks.tokens.encode import encode
from tasks.tokens.mix import mix
from tasks.tokens.tokenizer import tokenizer
from tasks.training.train import train
from tasks.workspace import Workspace
from tests.refusals import change, project, refusal, run_stage

LETTER = "The {}th of many letters tells of {} ships, {} gulls and the weather over the harbour.\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with a little text of both sources."""
    root = project(tmp_path / "p")
    (root / "corpus/letters").mkdir(parents=True)
    (root / "corpus/validation").mkdir()
    for i in range(30):
        (root / f"corpus/letters/{i:02}.txt").write_text(LETTER.format(i, 7 * i, 31 * i) * 2)
    (root / "corpus/validation/a.txt").write_text("Held out text has words of its own, all of it.")
    notes = (json.dumps({"text": f"note {i}: bring {i * i} ropes"}) for i in range(30))
    (root / "corpus/notes.jsonl").write_text("\n".join(notes))
    return root


def run_to(root: Path, capsys: pytest.CaptureFixture[str], *stages: str) -> tuple[int, str]:
    """Run the data stages in order until one fails; its answer, or that of the last."""
    for name, function, sources in (
        ("download", download, ("letters", "notes")), ("clean", clean, ("letters", "notes")),
        ("dedup", dedup, (None,)), ("split", split, (None,)), ("tokenizer", tokenizer, (None,)),
        ("encode", encode, ("letters", "notes")), ("mix", mix, ("phase1",)),
    ):  # fmt: skip
        for source in sources:
            answer = run_stage(capsys, function, root, source)
            if answer[0] or (name in stages and source == sources[-1]):
                return answer
    return answer


LINES = [
    ('{"text": "a"', "notes.jsonl:1: not JSON", "hint: mend or delete the line"),
    ('{"text": "a"}\n\n{"text": ', "notes.jsonl:3: not JSON", "hint: mend or delete the line"),
    ("<html>no such file</html>", "notes.jsonl:1: not JSON", "hint: mend"),
    ('{"text": "a", "n": ' + "9" * 5000 + "}", "notes.jsonl:1: not JSON", "digits"),
    ('{"text": ' + "[" * 50_000 + "]" * 50_000 + "}", "notes.jsonl:1: not JSON", "recursion"),
    ('{"txt": "a"}', "notes.jsonl:1: no column 'text'; the columns are: txt", "did you mean {txt}"),
    ('{"text": 5}', "notes.jsonl:1: text is not text but int: 5", "hint: name another column"),
    ('{"text": {"a": "b"}}', "notes.jsonl:1: text is not text but dict", "{column[part]}"),
    ('{"text": true}', "notes.jsonl:1: text is not text but bool", "hint: "),
    ("[1, 2]", "notes.jsonl:1: expected an object with columns, got list", "hint: a line of JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "says", "hint"), LINES, ids=[f[0][:20] for f in LINES])
def test_a_bad_line_is_named(
    root: Path, capsys: pytest.CaptureFixture[str], content: str, says: str, hint: str
) -> None:
    (root / "corpus/notes.jsonl").write_text(content)
    refusal(run_stage(capsys, download, root, "notes"), 65, says, hint)
    assert not (root / "data/raw/notes").exists()


TABLES = [
    (pa.table({"body": ["a"]}), "no column 'text'; the columns are: body"),
    (pa.table({"text": [5]}), "text is not text but int: 5"),
    (pa.table({"text": [b"\xff"]}), "text is not text but bytes"),
    (b"", "not a readable parquet file: Parquet file size is 0 bytes"),
    (b"<html>" * 9, "not a readable parquet file"),
]


@pytest.mark.parametrize(
    ("content", "says"), TABLES, ids=["column", "int", "bytes", "empty", "html"]
)
def test_a_bad_parquet_file_is_named(
    root: Path, capsys: pytest.CaptureFixture[str], content: pa.Table | bytes, says: str
) -> None:
    change(root, "corpus/notes.jsonl", "corpus/notes.parquet")
    path = root / "corpus/notes.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        pq.write_table(content, path)
    refusal(run_stage(capsys, download, root, "notes"), 65, "notes.parquet", says, "hint: ")


@pytest.mark.parametrize("what", ["nowhere", "loop", "pipe"])
def test_a_glob_never_leaves_a_file_out_in_silence(
    root: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    path = root / "corpus/letters/07.txt"
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path if what == "loop" else root / "nowhere")
    refusal(run_stage(capsys, download, root, "letters"), 66, "07.txt: is no file", "hint: mend or")


def test_a_missing_corpus_says_what_was_looked_for(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(root, "corpus/notes.jsonl", "corpus/no*.csv")
    words = ("sources.notes.files.train: no file matches 'corpus/no*.csv'", str(root), "hint: ")
    refusal(run_stage(capsys, download, root, "notes"), 66, *words)


def test_names_with_spaces_quotes_dashes_and_dollars_are_names(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["-rf.txt", "it's $(touch hacked) ünï.txt", "`touch hacked`;.txt", "x" * 250 + ".txt"]
    for name in names:
        (root / "corpus/letters" / name).write_text(f"words of {name}")
    assert run_stage(capsys, download, root, "letters")[0] == 0
    files = json.loads((root / "data/raw/letters/provenance.json").read_text())["from"]["files"]
    assert {f"corpus/letters/{name}" for name in names} <= {f["file"] for f in files}
    assert not (root / "hacked").exists()


@pytest.mark.parametrize("content", ["", " \n\t\n"])
def test_a_source_of_nothing_ends_with_the_count_of_every_filter(
    root: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    for path in (root / "corpus/letters").iterdir():
        path.write_text(content)
    said = refusal(run_to(root, capsys), 65, "sources.letters: no training document is left")
    assert "data/*/ledger.json tell what each stage dropped" in said


def test_a_corpus_of_one_text_over_and_over_is_refused(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (root / "corpus/letters").iterdir():
        path.write_text("the same few words in every file")
    same = '{"text": "the same few words in every file"}\n'
    (root / "corpus/notes.jsonl").write_text(same * 30)
    refusal(run_to(root, capsys), 65, "no training document is left", "hint: ")


def test_a_split_that_takes_all_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(root, "validation: 0.1, test: 0.1", "validation: 0.5, test: 0.5")
    refusal(run_to(root, capsys), 2, "validation + test must stay below 1")


def test_too_little_text_for_a_window_or_a_phase_says_what_would_fit(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "corpus/notes.jsonl").write_text('{"text": "one two three"}\n{"text": "four five"}')
    change(root, "min_frequency: 1}", "min_frequency: 1, mixture: {letters: 1}}")
    refusal(
        run_to(root, capsys), 65, "phases.phase1.seq_len: notes has", "the largest legal seq_len"
    )
    change(root, "{letters: 0.75, notes: 0.25}", "{letters: 1}")
    change(root, "max_epochs: 1000", "max_epochs: 1")
    refusal(run_stage(capsys, mix, root, "phase1"), 2, "max_epochs is 1", "hint: lower tokens to")


@pytest.mark.parametrize("size", [60_000, 70_000])
def test_a_vocabulary_that_cannot_be_learnt_is_said_and_fits_its_shards(
    root: Path, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    change(root, "vocab_size: 320", f"vocab_size: {size}")
    for stages in ("tokenizer", "encode"):
        assert run_to(root, capsys, stages)[0] == 0
    learned = json.loads((root / "data/tokenizer/tokenizer.json").read_text())["model"]["vocab"]
    manifest = json.loads((root / "data/tokens/letters/manifest.json").read_text())
    assert len(learned) < 2000 and manifest["dtype"] == "uint16"


def test_one_endless_word_is_read_in_seconds(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "corpus/letters/00.txt").write_text("w" * 400_000 + " end")
    assert run_to(root, capsys, "encode")[0] == 0


# A tokenizer, shards or checkpoints that are not what they were -------------------------------------


@pytest.fixture
def ready(tiny: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(tiny, tmp_path / "ready"))


def test_training_without_what_comes_before_names_the_command(
    ready: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refusal(run_stage(capsys, train, ready, "phase2"), 66, "hint: make it: dvc repro train@phase1")


def test_a_network_of_another_shape_lists_what_differs(
    ready: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(ready, "d_model: 32, n_layers: 2", "d_model: 48, n_layers: 3")
    words = ("model.d_model: 32 there, 48 here", "model.n_layers: 2 there, 3 here", "hint: make it")
    refusal(run_stage(capsys, train, ready, "phase1"), 2, *words)


def test_a_tampered_shard_is_named(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [shard] = (ready / "data/tokens/letters").glob("train-*.bin")
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    refusal(run_stage(capsys, train, ready, "phase1"), 65, shard.name, "hint: ")
    assert not list((ready / "runs").glob("phase1/step-*"))


@pytest.mark.parametrize("content", ["{", "[" * 20_000, "<html>", "[]", ""])
def test_a_tokenizer_that_is_none_is_named(
    ready: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (ready / "data/tokenizer/tokenizer.json").write_text(content)
    refusal(run_stage(capsys, encode, ready, "letters"), 65, "tokenizer.json")


def test_a_missing_tokenizer_names_the_command(
    ready: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (ready / "data/tokenizer/tokenizer.json").unlink()
    refusal(run_stage(capsys, encode, ready, "letters"), 66, "hint: ", "dvc repro tokenizer")


def test_a_folder_of_work_may_be_moved(
    ready: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = ready.rename(tmp_path / "another place ü")
    assert run_stage(capsys, mix, moved, "phase1")[0] == 0
    recipe = recipes.load(moved / "params.yaml")
    assert str(ready) not in Workspace(moved).mix("phase1").read_text() and recipe.name == "tiny"
