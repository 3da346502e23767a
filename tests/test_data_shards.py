"""Many shards: any number of processes and any interruption give the bytes of a straight run."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.data import hub as hubs
from tasks.data.clean import clean
from tasks.data.dedup import dedup
from tasks.data.documents import Document, Writer, read, shards
from tasks.data.download import Stream, download
from tasks.data.held_out import join_runs, open_runs
from tasks.data.split import split
from tasks.errors import BAD_DATA, CANNOT_WRITE, UserError
from tasks.files import read_json, sha256_file
from tasks.ledger import read_ledgers
from tasks.recipe import Recipe
from tasks.settings import settings
from tasks.tokens.encode import encode
from tasks.tokens.shards import open_split
from tasks.workspace import Workspace
from tests.corpus import small_recipe, story, write_corpus
from tests.places import ROOT
from tests.test_tokens_workspace import make_workspace


def fingerprints(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(files)}


# --- interruption -------------------------------------------------------------------------------


def write_shards(folder: Path, count: int) -> None:
    with Writer(folder, shard_bytes=20_000) as writer:
        for number in range(count):
            writer.add(Document.of(story(number), "one", "train", "{}"))


def kill_in_the_middle(root: Path, module: str, work: Path) -> int:
    """Run a stage of source one, kill it when some parts are done; returns how many were."""
    command = [sys.executable, "-m", module, "one", "--root", str(root)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PHASEWISE_WORKERS": "1"}
    child = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + 60
    while len(list(work.glob("shards/0*"))) < 3:
        assert child.poll() is None and time.monotonic() < end, "it ended before it was killed"
        time.sleep(0.002)
    child.kill()
    child.wait()
    return len(list(work.glob("shards/0*")))


@pytest.mark.parametrize("stage", ["clean", "encode"])
def test_a_stage_killed_in_the_middle_ends_with_the_bytes_of_a_straight_run(
    tmp_path: Path, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, recipe = make_workspace(tmp_path)
    if stage == "clean":
        write_shards(workspace.raw("one"), 400)
        run, module, made = clean, "tasks.data.clean", workspace.clean("one")
    else:
        from tasks.tokens.tokenizer import tokenizer

        tokenizer(workspace, recipe)
        write_shards(workspace.documents / "one", 400)
        run, module, made = encode, "tasks.tokens.encode", workspace.tokens("one")
    run(workspace, recipe, "one")
    straight = fingerprints(made)
    there = kill_in_the_middle(tmp_path, module, workspace.work(stage, "one"))
    total = len(list((workspace.raw("one") if stage == "clean" else workspace.documents / "one").glob("*.parquet")))  # fmt: skip
    assert 3 <= there < total
    assert fingerprints(made) == straight, "the old output stands until the new one is whole"
    capsys.readouterr()
    run(workspace, recipe, "one")
    assert f"{there} of {total} parts are there already" in capsys.readouterr().out
    assert fingerprints(made) == straight
    assert not workspace.work(stage, "one").exists()


class PlugPulled(Exception):
    pass


def pull_the_plug(monkeypatch: pytest.MonkeyPatch, after: int) -> list[dict[str, Any]]:
    """Break ``download`` off at its shard ``after``; returns the states that were asked for."""
    asked: list[dict[str, Any]] = []
    real = Stream.shard

    def shard(self: Stream, state: dict[str, Any], out: Path) -> Any:
        asked.append(state)
        if len(asked) == after + 1:
            raise PlugPulled
        return real(self, state, out)

    monkeypatch.setattr(Stream, "shard", shard)
    return asked


def rows_of(count: int) -> list[dict[str, Any]]:
    return [{"text": story(i), "title": f"T{i // 3}", "n": i} for i in range(count)]


def write_lines(root: Path) -> dict[str, Any]:
    for name in "ab":
        lines = [story(i).replace("\n", " ").encode() for i in range(40)]
        lines[20] += b" caf\xe9"
        (root / f"{name}.txt").write_bytes(b"\n\n".join(lines))
    return {"files": {"train": ["*.txt"], "format": "lines", "encoding_errors": "replace"}}


def write_json_lines(root: Path) -> dict[str, Any]:
    lines = [json.dumps(row).encode() for row in rows_of(80)]
    lines[30] = lines[31] = b'{"text": "bad \xe9"}'
    (root / "a.jsonl").write_bytes(b"\n".join(lines[:50]))
    (root / "b.jsonl").write_bytes(b"\n".join(lines[50:]))
    held = {"train": ["a.jsonl"], "test": ["b.jsonl"]}
    return {"files": held | {"encoding_errors": "skip"}}


def write_csv(root: Path) -> dict[str, Any]:
    import csv

    with open(root / "a.csv", "w", newline="") as handle:
        writer = csv.DictWriter(handle, ["text", "title", "n"])
        writer.writeheader()
        writer.writerows(rows_of(60))
    return {"files": {"train": ["a.csv"]}}


def write_parquet(root: Path) -> dict[str, Any]:
    for number, first in enumerate((0, 35)):
        table = pa.Table.from_pylist(rows_of(60)[first : first + 35])
        pq.write_table(table, root / f"train-{number:05d}.parquet", row_group_size=9)
    return {"files": {"train": ["*.parquet"]}, "max_bytes": 30_000}


def write_groups(root: Path) -> dict[str, Any]:
    return write_parquet(root) | {
        "text": "{title}",
        "group_by": ["title"],
        "each": "{text}",
        "max_bytes": None,
    }


def write_mirror(root: Path) -> dict[str, Any]:
    folder = root / "mirror/someone/stories/default"
    folder.mkdir(parents=True)
    write_parquet(folder)
    hub = {"id": "someone/stories", "revision": "abc", "splits": {"train": "train"}}
    return {"hub": hub}


@pytest.mark.parametrize(
    "write", [write_lines, write_json_lines, write_csv, write_parquet, write_groups, write_mirror]
)
def test_a_download_broken_off_goes_on_at_the_row_and_books_each_row_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], dict[str, Any]]
) -> None:
    monkeypatch.setattr("tasks.data.download.SHARD_BYTES", 10_000)
    monkeypatch.setenv("PHASEWISE_HUB", str(tmp_path / "mirror"))
    recipe, workspace = small_recipe({"x": write(tmp_path)}), Workspace(tmp_path)
    with monkeypatch.context() as whole:
        straight_states = pull_the_plug(whole, after=99)
        download(workspace, recipe, "x")
    straight = fingerprints(workspace.raw("x"))
    assert len(straight_states) >= 3
    with monkeypatch.context() as broken:
        pull_the_plug(broken, after=2)
        with pytest.raises(PlugPulled):
            download(workspace, recipe, "x")
    again = pull_the_plug(monkeypatch, after=99)
    download(workspace, recipe, "x")
    assert fingerprints(workspace.raw("x")) == straight
    assert again == straight_states[2:], "what was whole was not read again"


def test_a_hub_stream_goes_on_at_the_file_it_had_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    write_parquet(tmp_path)
    files = [str(path) for path in sorted(tmp_path.glob("*.parquet"))]
    loads: list[Any] = []

    def load(*args: Any, **options: Any) -> Any:
        loads.append(datasets.load_dataset(
            "parquet", data_files=files, split="train", streaming=True,
            cache_dir=str(tmp_path / "cache"),
        ))  # fmt: skip
        return loads[-1]

    monkeypatch.setattr(hubs, "_load_dataset", load)
    monkeypatch.setattr(hubs, "_MARK_ROWS", 5)
    monkeypatch.setattr("tasks.data.download.SHARD_BYTES", 10_000)
    source = {"hub": {"id": "someone/stories", "revision": "abc", "splits": {"train": "train"}}}
    recipe, workspace = small_recipe({"x": source}), Workspace(tmp_path)
    download(workspace, recipe, "x")
    straight = fingerprints(workspace.raw("x"))
    assert len(loads) == 1, "a straight run opens the stream once"
    with monkeypatch.context() as broken:
        pull_the_plug(broken, after=3)
        with pytest.raises(PlugPulled):
            download(workspace, recipe, "x")
    again = pull_the_plug(monkeypatch, after=99)
    download(workspace, recipe, "x")
    assert fingerprints(workspace.raw("x")) == straight
    row, state = again[0]["mark"]
    assert again[0]["place"][1] - row < 5 and "examples_iterable" in state


def test_a_disk_that_fills_up_in_the_middle_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tasks import stage

    workspace, recipe = make_workspace(tmp_path)
    write_shards(workspace.raw("one"), 60)
    clean(workspace, recipe, "one")
    before = fingerprints(workspace.clean("one"))
    real, written = Writer._flush, []

    def full(self: Writer, *args: Any) -> None:
        written.append(args)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "x"))
        real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "_flush", full)
        assert stage.run(clean, tmp_path, "one") == CANNOT_WRITE
    shown = capsys.readouterr().err
    assert "No space left" in shown and "run the same command again" in shown
    assert fingerprints(workspace.clean("one")) == before
    work = workspace.work("clean", "one") / "shards"
    assert sorted(path.name for path in work.glob("*0*")) == ["00000", "00001"]
    assert stage.run(clean, tmp_path, "one") == 0
    assert fingerprints(workspace.clean("one")) == before


# --- any number of processes --------------------------------------------------------------------


@pytest.fixture
def sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Workspace, Recipe]:
    """The planted corpus in many shards, up to dedup."""
    monkeypatch.setattr("tasks.data.download.SHARD_BYTES", 20_000)
    planted = write_corpus(tmp_path / "corpus")
    recipe, workspace = small_recipe(planted["sources"]), Workspace(tmp_path)
    for source in recipe.sources:
        download(workspace, recipe, source)
        clean(workspace, recipe, source)
    dedup(workspace, recipe)
    return workspace, recipe


def test_processes_and_shards_change_no_document(
    sharded: tuple[Workspace, Recipe], tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    workspace, recipe = sharded
    split(workspace, recipe)
    straight = fingerprints(workspace.documents)
    assert len(shards(workspace.documents / "letters")["train"]) > 3
    assert len(shards(workspace.documents / "notes")["validation"]) == 1, "crumbs are joined"
    monkeypatch.setattr("tasks.shardwise.INLINE_BYTES", 0)
    monkeypatch.setenv("PHASEWISE_WORKERS", "2")
    settings.cache_clear()
    split(workspace, recipe)
    assert fingerprints(workspace.documents) == straight
    monkeypatch.undo()
    settings.cache_clear()
    other = Workspace(tmp_path_factory.mktemp("one_shard"))
    write_corpus(other.root / "corpus")
    for source in recipe.sources:
        download(other, recipe, source)
        clean(other, recipe, source)
    dedup(other, recipe)
    split(other, recipe)
    for source in recipe.sources:
        assert list(read(other.documents / source)) == list(read(workspace.documents / source))
        ours, theirs = (
            read_ledgers(w.documents / source / "ledger.json") for w in (workspace, other)
        )
        assert ours == theirs


def test_token_shards_do_not_show_where_documents_were_cut(tmp_path: Path) -> None:
    from tasks.tokens.tokenizer import tokenizer

    workspace, recipe = make_workspace(tmp_path)
    tokenizer(workspace, recipe)
    encode(workspace, recipe, "one")
    straight = fingerprints(workspace.tokens("one"))
    documents = list(read(workspace.documents / "one"))
    (workspace.documents / "one").rename(tmp_path / "old")
    with Writer(workspace.documents / "one", shard_bytes=3000) as writer:
        for document in documents:
            writer.add(document)
    assert len(shards(workspace.documents / "one")["train"]) > 3
    encode(workspace, recipe, "one")
    assert fingerprints(workspace.tokens("one")) == straight
    open_split(workspace.tokens("one"), "train")


def test_runs_are_joined_in_buckets_as_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    draw = np.random.default_rng(1)
    pool = draw.integers(0, 2**64, 500, np.uint64)
    files = []
    for number, name in enumerate(("a/test", "a/test", "b/validation", "c/test")):
        path = tmp_path / f"{number}.npy"
        np.save(path, np.unique(draw.choice(pool, 200)))
        files.append((name, path))
    join_runs(files, tmp_path / "one")
    monkeypatch.setattr("tasks.data.held_out._BUCKET_RUNS", 10)
    join_runs(files, tmp_path / "many")
    assert fingerprints(tmp_path / "one") == fingerprints(tmp_path / "many")
    runs = open_runs(tmp_path / "many")
    assert runs.sets == ["a/test", "b/validation", "c/test"]
    for value, owner in zip(runs.hashes.tolist(), runs.owners.tolist(), strict=True):
        first = next(name for name, path in files if value in np.load(path))
        assert runs.sets[owner] == first
    assert sorted({v for _, p in files for v in np.load(p).tolist()}) == runs.hashes.tolist()


# --- what is too large, empty or of another kind ------------------------------------------------


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tasks.data.formats", "tasks.data.download"):
        monkeypatch.setattr(f"{module}.MOST_BYTES", 1000)
    monkeypatch.setattr("tasks.data.formats.MOST_LINE_BYTES", 4000)
    monkeypatch.setattr("tasks.data.formats._PIECE_BYTES", 300)


@pytest.mark.parametrize("kind", ["lines", "jsonl", "parquet"])
def test_a_document_that_is_too_long_is_dropped_and_booked_with_all_its_bytes(
    tmp_path: Path, small_limit: None, kind: str
) -> None:
    texts = ["one", "x" * 1001, "é" * 5000, "two"]
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"text": texts}), path)
    else:
        lines = texts if kind == "lines" else [json.dumps({"text": t}, ensure_ascii=False) for t in texts]  # fmt: skip
        path.write_text("\n".join(lines), encoding="utf-8")
    recipe = small_recipe({"x": {"files": {"train": [path.name], "format": kind}}})
    download(Workspace(tmp_path), recipe, "x")
    assert [d.text for d in read(Workspace(tmp_path).raw("x"))] == ["one", "two"]
    (ledger,) = read_ledgers(Workspace(tmp_path).raw("x") / "ledger.json")
    dropped = ledger.dropped["too_long"]
    assert dropped.documents == 2 and 11_001 <= dropped.bytes <= 11_001 + 20
    assert ledger.examples["too_long"][0][0] in "xé{"


def refused(root: Path, **files: Any) -> UserError:
    recipe = small_recipe({"x": {"files": files}})
    with pytest.raises(UserError) as error:
        download(Workspace(root), recipe, "x")
    assert error.value.exit_code == BAD_DATA and not Workspace(root).raw("x").exists()
    return error.value


def test_a_huge_text_file_asks_how_it_is_to_be_cut(tmp_path: Path, small_limit: None) -> None:
    (tmp_path / "dump.txt").write_text("line\n" * 400)
    error = refused(tmp_path, train=["dump.txt"])
    assert "dump.txt" in str(error) and "one document of 2,000 bytes" in str(error)
    assert "format to paragraphs or lines" in (error.hint or "")


def test_a_csv_cell_that_never_ends_is_named(tmp_path: Path, small_limit: None) -> None:
    (tmp_path / "a.csv").write_text('text\nfine\n"' + "never closed\n" * 600)
    error = refused(tmp_path, train=["a.csv"])
    assert "a.csv" in str(error) and "field larger than field limit (4000)" in str(error)
    (tmp_path / "a.csv").write_text("text\n" + "x" * 9000)
    assert "field larger than field limit" in str(refused(tmp_path, train=["a.csv"]))


def test_a_source_without_a_document_says_what_became_of_its_rows(
    tmp_path: Path, small_limit: None
) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n")
    assert "rows dropped: none" in str(refused(tmp_path, train=["a.jsonl"]))
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x" * 9000}))
    assert "rows dropped: 1 too_long" in str(refused(tmp_path, train=["a.jsonl"]))


def test_a_column_that_parquet_files_lack_is_named_with_those_there(tmp_path: Path) -> None:
    pq.write_table(pa.table({"txet": ["a"], "id": ["1"]}), tmp_path / "a.parquet")
    error = refused(tmp_path, train=["a.parquet"])
    assert "a.parquet:0" in str(error) and "the columns are: txet, id" in str(error)


def test_a_source_of_one_text_over_and_over_keeps_it_once(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text((json.dumps({"text": story(1)}) + "\n") * 50)
    recipe, workspace = small_recipe({"x": {"files": {"train": ["a.jsonl"]}}}), Workspace(tmp_path)
    for stage in (download, clean):
        stage(workspace, recipe, "x")
    dedup(workspace, recipe)
    split(workspace, recipe)
    assert [d.split for d in read(workspace.documents / "x")] == ["train"]


# --- evaluation sets ----------------------------------------------------------------------------


def test_a_source_of_test_files_alone_guards_every_training_text(
    tmp_path: Path, mirror: Path
) -> None:
    """LAMBADA as JSON lines: passages of it inside a training text are cut out."""
    path = mirror / "eval_sets/language_understanding__lambada_openai.jsonl"
    if not path.exists():
        pytest.skip("the mirror has no eval_sets/")
    rows = [json.loads(line) for line in path.read_text().splitlines()[:400]]
    leaked = rows[7]["context"] + rows[7]["continuation"]
    texts = [story(i) for i in range(30)]
    texts[4] += f"\n\n{leaked}\n\n{story(99)}"
    texts[5] = leaked
    (tmp_path / "lambada.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    recipe = small_recipe(
        {
            "x": {"files": {"train": ["a.jsonl"]}},
            "lambada": {"files": {"test": ["lambada.jsonl"]}, "text": "{context}{continuation}"},
        },
        phases={"phase1": {"starts_from": "init", "tokens": 8192, "mixture": {"x": 1.0}}},
    )
    workspace = Workspace(tmp_path)
    for source in recipe.sources:
        download(workspace, recipe, source)
        clean(workspace, recipe, source)
    dedup(workspace, recipe)
    split(workspace, recipe)
    kept = [d.text for d in read(workspace.documents / "x") if d.split == "train"]
    assert not any(leaked[:60] in text for text in kept)
    ledger = read_json(workspace.documents / "x/ledger.json")[0]
    assert {run["held_out"] for run in ledger["notes"]["shared_runs"]} == {"lambada/test"}
    assert ledger["notes"]["documents_cut"] == 1
    assert len(list(read(workspace.documents / "lambada", "test"))) == 400
