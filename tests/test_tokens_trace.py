"""From samples to texts and back: what trace says was read was read, and find finds all of it."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tasks.cli import app
from tasks.errors import BAD_DATA, NO_INPUT, UserError
from tasks.recipe import Recipe
from tasks.tokens.encode import encode
from tasks.tokens.lookup import Lookup
from tasks.tokens.mix import mix
from tasks.tokens.rows import IGNORED
from tasks.tokens.streams import Piece
from tasks.tokens.trace import Tracer, step_of
from tasks.workspace import Workspace
from tests.places import ROOT
from tests.test_tokens_workspace import (
    copy_of,
    encoded,
    make_phase,
    make_recipe,
    make_texts,
    write_documents,
)

__all__ = ["encoded"]  # a fixture


@pytest.fixture(scope="module")
def traced(encoded: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with a mixed phase of each packing; phase 2 has a course."""
    root = tmp_path_factory.mktemp("traced") / "work"
    shutil.copytree(encoded.root, root)
    recipe = recipe_of(root)
    for phase in recipe.phases:
        mix(Workspace(root), recipe, phase)
    (root / "recipes").mkdir()
    shutil.copy(ROOT / "dvc.yaml", root)
    return Workspace(root)


def recipe_of(root: Path) -> Recipe:
    course: dict[str, Any] = {"mixture": {"one": [1, 0.2], "two": [0, 0.8]}, "mixture_at": [0, 0.5]}
    first = make_phase(tokens=64_000)
    second = make_phase(tokens=64_000, starts_from="phase1", packing="best_fit", **course)
    return make_recipe(root, phases={"phase1": first, "phase2": second})


def tracer_of(workspace: Workspace) -> Tracer:
    return Tracer(workspace, recipe_of(workspace.root))


@pytest.fixture(scope="module")
def tracer(traced: Workspace) -> Tracer:
    """One that keeps what it has opened, as in use."""
    return tracer_of(traced)


@cache
def all_pieces(tracer: Tracer, phase: str) -> list[tuple[str, list[Piece]]]:
    """Source and pieces of every sample of a phase."""
    reader = tracer.reader(phase)
    names = [source.name for source in reader.mix.sources]
    drawn = reader.samples(0, len(reader), documents=False).source.tolist()
    return [(names[source], reader.pieces(n)) for n, source in enumerate(drawn)]


# Trace ------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(["phase1", "phase2"]), st.data())
def test_the_parts_of_a_sample_are_the_text_of_its_targets(
    tracer: Tracer, phase: str, data: st.DataObject
) -> None:
    reader = tracer.reader(phase)
    number = data.draw(st.integers(0, len(reader) - 1))
    made = tracer.trace(phase, number)
    targets = reader.samples(number, 1).targets[0]
    ids = []
    for part in made.parts:
        document = tracer.lookup(made.source, "train").document(part.document)
        assert part.id == document.id and part.tokens == len(
            tracer.lookup(made.source, "train").ids(part.document)
        )
        ids += tracer.lookup(made.source, "train").ids(part.document)[part.start : part.stop]
        assert part.text.strip("\ufffd") in document.text
        assert (part.before + part.text + part.after).strip("\ufffd")[:5] in document.text
    assert targets[targets != IGNORED].tolist() == ids
    assert made.padding == int((targets == IGNORED).sum())
    assert number in tracer.samples_of(phase, made.step)


def test_the_step_of_a_sample_is_the_one_that_reads_it(traced: Workspace) -> None:
    tracer = tracer_of(traced)
    settings_ = tracer.recipe.phases["phase1"]
    for step in (0, 1, 57, settings_.steps - 1):
        samples = tracer.samples_of("phase1", step)
        assert len(samples) == settings_.batch_size
        assert {step_of(settings_, sample) for sample in samples} == {step}


def test_what_is_not_there_is_refused_with_what_is(traced: Workspace) -> None:
    tracer = tracer_of(traced)
    with pytest.raises(UserError, match="did you mean 'phase1'") as error:
        tracer.trace("phas1", 0)
    assert error.value.exit_code == NO_INPUT
    with pytest.raises(UserError, match="its samples are 0 to 1,999"):
        tracer.trace("phase1", 2000)
    with pytest.raises(UserError, match="its steps are 0 to 199"):
        tracer.samples_of("phase1", 200)
    with pytest.raises(UserError, match="did you mean 'two'"):
        tracer.lookup("twoo", "train")
    with pytest.raises(UserError, match="no split 'validation'"):
        tracer.lookup("two", "validation")
    with pytest.raises(UserError, match="no text to look for"):
        tracer.find("")


# Find -------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_find_names_all_samples_that_read_a_text_and_no_other(
    tracer: Tracer, data: st.DataObject
) -> None:
    texts = make_texts()
    source = data.draw(st.sampled_from(["one", "two"]))
    text = data.draw(st.sampled_from(texts[source]["train"][:12]))
    start = data.draw(st.integers(0, len(text) - 60))
    wanted = text[start : start + data.draw(st.integers(30, 60))]
    found = [place for place in tracer.find(wanted) if place.split == "train"]
    place = next(p for p in found if p.source == source)
    assert place.text == wanted
    lookup = tracer.lookup(source, "train")
    document = lookup.document(place.document)
    assert document.text[place.start : place.stop] == wanted and document.id == place.id
    match = next(m for m in lookup.search(wanted) if m.document == place.document)
    first, stop = lookup.stretch(match)
    ids = lookup.ids(place.document)
    held = lookup.tokenizer.decode(ids[first:stop])
    assert wanted in held and wanted not in lookup.tokenizer.decode(ids[first + 1 : stop])
    assert wanted not in lookup.tokenizer.decode(ids[first : stop - 1])
    for reading in place.readings:
        truly = [
            number
            for number, (drawn, pieces) in enumerate(all_pieces(tracer, reading.phase))
            if drawn == source
            and any(
                piece.document == place.document and piece.start < stop and piece.stop > first
                for piece in pieces
            )
        ]
        assert reading.samples == truly
        assert reading.times <= len(truly) and not reading.trained


def test_held_out_text_is_found_and_read_by_no_phase(traced: Workspace) -> None:
    text = make_texts()["one"]["validation"][0][100:180]
    (place,) = tracer_of(traced).find(text)
    assert (place.source, place.split, place.readings) == ("one", "validation", [])


def test_case_is_ignored_where_asked_for(traced: Workspace) -> None:
    tracer = tracer_of(traced)
    text = make_texts()["two"]["train"][0][50:90]
    assert tracer.find(text.upper(), ignore_case=True)[0].text.lower() == text.lower()
    assert len(tracer.find("e", most=7)) == 7 and not tracer.find("no such words, surely not")


def test_a_document_that_encodes_to_nothing_shifts_no_other(
    tmp_path: Path, encoded: Workspace
) -> None:
    workspace = copy_of(encoded, tmp_path)
    texts = make_texts()
    texts["two"]["train"] = ["", *texts["two"]["train"][:3], "", *texts["two"]["train"][3:]]
    write_documents(workspace, {"two": texts["two"]})
    encode(workspace, recipe_of(tmp_path), "two")
    lookup = Lookup(workspace, "two", "train")
    kept = [text for text in texts["two"]["train"] if text]
    assert len(lookup) == len(kept)
    for position, text in enumerate(kept):
        assert lookup.document(position).text == text
        assert lookup.tokenizer.decode(lookup.ids(position)) == text
    assert next(lookup.search(kept[4][:40])).document == 4


def test_text_that_the_shards_were_not_made_of_is_refused(
    tmp_path: Path, encoded: Workspace
) -> None:
    workspace = copy_of(encoded, tmp_path)
    texts = make_texts()["two"]["train"]
    write_documents(workspace, {"two": {"train": ["something else", *texts[1:]]}})
    with pytest.raises(UserError, match="do not belong together") as error:
        Lookup(workspace, "two", "train").document(0)
    assert error.value.exit_code == BAD_DATA and "encode@two" in str(error.value)
    write_documents(workspace, {"two": {"train": texts[1:]}})
    with pytest.raises(UserError, match="do not belong together"):
        Lookup(workspace, "two", "train").document(0)


# Commands ---------------------------------------------------------------------------------------


def run(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    recipe_of(workspace.root)
    monkeypatch.chdir(workspace.root)
    done = CliRunner().invoke(app, ["data", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_show_lists_the_splits_and_decodes_documents(
    traced: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = run(traced, monkeypatch, "show")
    assert "one/validation" in out and "two/test" in out
    made = json.loads(run(traced, monkeypatch, "show", "one", "--documents", "2", "--json"))
    assert [d["text"] for d in made["documents"]] == make_texts()["one"]["train"][:2]
    assert made["documents"][1]["ends_at"] == sum(d["tokens"] for d in made["documents"])
    out = run(traced, monkeypatch, "show", "two", "--split", "test", "--documents", "1")
    assert "document 0:" in out and make_texts()["two"]["test"][0].split()[0] in out
    with pytest.raises(UserError, match="did you mean 'one'"):
        run(traced, monkeypatch, "show", "onne")
    with pytest.raises(UserError, match="there are: test, train"):
        run(traced, monkeypatch, "show", "two", "--split", "validation")
    with pytest.raises(UserError, match="has documents 0 to 26"):
        run(traced, monkeypatch, "show", "two", "--first", "1000")


def test_trace_marks_what_was_read(traced: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    (made,) = json.loads(run(traced, monkeypatch, "trace", "phase2", "5", "--json"))
    assert (made["phase"], made["sample"], made["step"]) == ("phase2", 5, 0)
    out = run(traced, monkeypatch, "trace", "phase2", "5")
    assert "\u27e6" in out and f"document {made['parts'][0]['document']:,}" in out
    steps = json.loads(run(traced, monkeypatch, "trace", "phase1", "--step", "3", "--json"))
    assert [made["sample"] for made in steps] == list(range(30, 40))
    with pytest.raises(UserError, match="give the number of a sample, or --step"):
        run(traced, monkeypatch, "trace", "phase1")


def test_find_says_when_and_how_often(traced: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    text = make_texts()["one"]["train"][2][200:240]
    place = json.loads(run(traced, monkeypatch, "find", text, "--phase", "phase1", "--json"))[0]
    assert [reading["phase"] for reading in place["readings"]] == ["phase1"]
    out = run(traced, monkeypatch, "find", text)
    assert f"reads it {place['readings'][0]['times']} time" in out and "not trained yet" in out
    assert "no document" in run(traced, monkeypatch, "find", "no such words, surely not")


def test_text_cannot_steer_the_terminal() -> None:
    from tasks.cli.data import _printable

    assert _printable("a\x1b[2Jb\nc\td\u202ee") == "a\ufffd[2Jb\nc\td\ufffde"
