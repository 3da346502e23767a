"""The mix and the reader: exact shares, every window once an epoch, any sample by its number."""

from __future__ import annotations

import json
import re
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import BAD_DATA, NO_INPUT, USAGE, UserError
from tasks.files import read_json, write_json
from tasks.recipe import Recipe
from tasks.tokens.mix import mix, plan_mix
from tasks.tokens.mixture import Mix, load_mix
from tasks.tokens.reader import Location, Reader
from tasks.tokens.shards import open_split
from tasks.workspace import Workspace
from tests.test_tokens_shards import write_shards
from tests.test_tokens_workspace import copy_of, encoded, make_phase, make_recipe

__all__ = ["encoded"]  # a fixture


def write_tokens(
    workspace: Workspace, source: str, documents: list[list[int]], **splits: Any
) -> None:
    """Shards of a source from ids, a few tokens a file."""
    write_shards(workspace.tokens(source), 60_000, 37, train=documents, **splits)


def counted(first: int, tokens: int, document: int) -> list[list[int]]:
    """Documents of ``document`` tokens, EOS included, whose ids count up: an id tells its place."""
    ids = list(range(first, first + tokens))
    rows = [ids[start : start + document] for start in range(0, tokens, document)]
    return [row[:-1] for row in rows]


@pytest.fixture
def small(tmp_path: Path) -> tuple[Workspace, Recipe]:
    """Two sources of 101 and 203 tokens in documents of 7 and 10 ids, windows of 8."""
    workspace = Workspace(tmp_path)
    write_tokens(workspace, "one", counted(1000, 101, 7), validation=[[1, 2, 3]])
    write_tokens(workspace, "two", counted(2000, 203, 10), test=[[1, 2]])
    phase = make_phase(seq_len=8, batch_tokens=80, tokens=3200)
    return workspace, make_recipe(tmp_path, phases={"phase1": phase})


def reader_of(workspace: Workspace, recipe: Recipe) -> Reader:
    return Reader(workspace, plan_mix(workspace, recipe, "phase1"))


# Mix ---------------------------------------------------------------------------------------------


def test_shares_are_exact_and_the_ledger_adds_up(small: tuple[Workspace, Recipe]) -> None:
    made = plan_mix(*small, "phase1")
    one, two = made.sources
    assert (one.weight, two.weight, made.period) == ("3/5", "2/5", 5)
    assert (one.samples, two.samples) == (240, 160) and made.samples == 400
    assert (one.available, one.windows, two.windows) == (101, 12, 25)
    assert one.epochs == 20 and two.epochs == 6.4
    book = made.ledger
    assert sum(book["drawn"].values()) == book["tokens"] == made.tokens == 3200
    assert book["outside_windows"] == {"one": 101 - 96, "two": 203 - 200}
    assert [(s.source, s.split, s.tokens) for s in made.held_out] == [
        ("one", "validation", 4),
        ("two", "test", 3),
    ]


def test_a_phase_is_rounded_up_to_whole_steps(small: tuple[Workspace, Recipe]) -> None:
    workspace, _ = small
    phase = make_phase(seq_len=8, batch_tokens=80, tokens=3201)
    made = plan_mix(workspace, make_recipe(workspace.root, phases={"phase1": phase}), "phase1")
    assert made.samples == 410
    assert made.ledger["tokens_asked"] == 3201 and made.ledger["tokens"] == 3280


def test_a_source_that_is_not_drawn_is_in_the_ledger(small: tuple[Workspace, Recipe]) -> None:
    workspace, _ = small
    phase = make_phase(seq_len=8, batch_tokens=80, mixture={"one": 1.0, "two": 0.0})
    made = plan_mix(workspace, make_recipe(workspace.root, phases={"phase1": phase}), "phase1")
    assert [source.name for source in made.sources] == ["one"]
    assert made.ledger["sources_not_drawn"] == {"two": 203}


def test_a_mix_reads_back_as_it_was_made(
    small: tuple[Workspace, Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, recipe = small
    mix(workspace, recipe, "phase1")
    assert load_mix(workspace.mix("phase1")) == plan_mix(workspace, recipe, "phase1")
    out = capsys.readouterr().out
    assert re.search(r"one +60 % +1\.92K +101 +20\n", out)
    assert "warning: one is passed over 20.0 times" in out
    assert "warning: two is passed over 6.4 times" in out
    assert "one/validation 4, two/test 3" in out


def test_the_fingerprint_follows_what_decides_the_samples(
    small: tuple[Workspace, Recipe],
) -> None:
    workspace, recipe = small
    first = plan_mix(workspace, recipe, "phase1").fingerprint
    other = make_recipe(workspace.root, seed=8, phases=recipe_phases(recipe))
    assert plan_mix(workspace, other, "phase1").fingerprint != first
    folder = workspace.tokens("one")
    manifest = read_json(folder / "manifest.json")
    del manifest["splits"]["validation"]
    write_json(folder / "manifest.json", manifest)
    assert plan_mix(workspace, recipe, "phase1").fingerprint == first, "held-out text is not drawn"


def recipe_phases(recipe: Recipe) -> dict[str, Any]:
    return {"phase1": make_phase(seq_len=8, batch_tokens=80, tokens=recipe.phases["phase1"].tokens)}


@pytest.mark.parametrize("max_epochs", [1.0, 2.5, 7.0, 19.9])
def test_too_many_epochs_are_refused_with_numbers_and_a_remedy_that_works(
    small: tuple[Workspace, Recipe], max_epochs: float
) -> None:
    workspace, _ = small
    phase = make_phase(seq_len=8, batch_tokens=80, tokens=3200, max_epochs=max_epochs)
    with pytest.raises(UserError) as error:
        plan_mix(workspace, make_recipe(workspace.root, phases={"phase1": phase}), "phase1")
    assert f"one would be passed over 20.0 times (max_epochs is {max_epochs:g})" in str(error.value)
    assert error.value.exit_code == USAGE and error.value.where == "params.yaml: phases.phase1"
    (most,) = re.findall(r"lower tokens to ([\d,]+)", str(error.value))
    phase |= {"tokens": int(most.replace(",", ""))}
    made = plan_mix(workspace, make_recipe(workspace.root, phases={"phase1": phase}), "phase1")
    assert max_epochs - 1 < made.sources[0].epochs <= max_epochs


def test_too_few_tokens_for_a_window_are_refused_with_the_largest_that_fits(
    small: tuple[Workspace, Recipe],
) -> None:
    workspace, _ = small

    def with_length(length: int) -> Mix:
        phase = make_phase(seq_len=length, batch_tokens=length, tokens=length)
        model = {"d_model": 32, "n_layers": 1, "n_heads": 2, "d_ff": 64, "max_seq_len": 512}
        recipe = make_recipe(workspace.root, phases={"phase1": phase}, model=model)
        return plan_mix(workspace, recipe, "phase1")

    with pytest.raises(UserError) as error:
        with_length(101)
    assert "one has 101 training tokens" in str(error.value)
    assert "the largest legal seq_len is 100" in str(error.value)
    assert error.value.exit_code == BAD_DATA
    assert with_length(100).sources[0].windows == 1


def test_sources_of_different_tokenizers_do_not_mix(small: tuple[Workspace, Recipe]) -> None:
    workspace, recipe = small
    path = workspace.tokens("two") / "manifest.json"
    path.write_text(path.read_text().replace("t" * 64, "u" * 64))
    with pytest.raises(UserError, match="one and two were encoded with different tokenizers"):
        plan_mix(workspace, recipe, "phase1")


def test_a_mix_changed_by_hand_is_refused(small: tuple[Workspace, Recipe]) -> None:
    workspace, recipe = small
    mix(workspace, recipe, "phase1")
    path = workspace.mix("phase1")
    path.write_text(path.read_text().replace('"samples": 400', '"samples": 4000'))
    with pytest.raises(UserError, match="changed by hand"):
        load_mix(path)
    path.write_text(json.dumps({"version": 1}))
    with pytest.raises(UserError, match="not a mix") as error:
        load_mix(path)
    assert "dvc repro --force mix@phase1" in str(error.value)
    with pytest.raises(UserError, match="mix@phase2") as error:
        load_mix(workspace.mix("phase2"))
    assert error.value.exit_code == NO_INPUT


# Reader ------------------------------------------------------------------------------------------


def test_the_first_epoch_has_each_window_once_and_each_token_as_target_once(
    small: tuple[Workspace, Recipe],
) -> None:
    reader = reader_of(*small)
    samples = reader.samples(0, 400)
    for number, (windows, first) in enumerate([(12, 1000), (25, 2000)]):
        rows = samples.tokens[samples.source == number][:windows]
        whole = Workspace.tokens(small[0], ["one", "two"][number])
        row = open_split(whole, "train").read(0, windows * 8 + 1).tolist()
        expected = sorted(row[start : start + 9] for start in range(0, windows * 8, 8))
        assert sorted(rows.tolist()) == expected
        assert sorted(rows[:, 1:].ravel()) == sorted(row[1:])
        assert {id_ - first for id_ in rows.ravel().tolist() if id_} < set(range(203))


def test_every_epoch_has_each_of_its_windows_once_and_misses_other_tokens(
    small: tuple[Workspace, Recipe],
) -> None:
    reader = reader_of(*small)
    located = [reader.locate(index) for index in range(400)]
    offsets, missed = [], set()
    for epoch in range(20):
        ours = [where for where in located if where.source == "one" and where.epoch == epoch]
        assert sorted(where.window for where in ours) == list(range(12))
        (offset,) = {(where.token - where.window * 8) % 101 for where in ours}
        targets = [(where.token + step) % 101 for where in ours for step in range(1, 9)]
        assert len(set(targets)) == 96, "each token is a target once an epoch at most"
        offsets.append(offset)
        missed |= set(range(101)) - set(targets)
    assert offsets[0] == 0 and len(set(offsets)) > 10
    assert len(missed) > 50, "what an epoch leaves out is not always the same"


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_a_sample_does_not_depend_on_what_is_read_with_it_or_before_it(
    encoded: Workspace, tmp_path: Path, packing: str
) -> None:
    workspace = copy_of(encoded, tmp_path)
    mix(workspace, make_recipe(tmp_path, phases={"phase1": make_phase(packing=packing)}), "phase1")
    made = load_mix(workspace.mix("phase1"))
    whole = Reader(workspace, made).samples(0, made.samples)
    assert whole.document_ids is not None
    reader = Reader(workspace, made, verify=False)
    random = np.random.default_rng(0)
    with mock.patch.multiple("tasks.tokens.reader", _AHEAD=7, _LEFT_OUT=3):
        for first in [0, 3, 5, 5, 99, 98, 0, 100, *random.integers(0, 100, 60).tolist()]:
            count = min(int(random.integers(0, 12)), made.samples - first)
            part, rows = reader.samples(first, count), slice(first, first + count)
            for name in ("tokens", "targets", "document_ids", "source"):
                assert np.array_equal(getattr(part, name), getattr(whole, name)[rows]), name
            without = reader.samples(first, count, documents=False)
            assert without.document_ids is None
            assert np.array_equal(without.tokens, whole.tokens[rows])


def test_what_a_caller_does_to_its_samples_changes_no_other(
    small: tuple[Workspace, Recipe],
) -> None:
    reader = reader_of(*small)
    first = reader.samples(0, 10)
    kept = first.tokens.copy()
    first.tokens[:] = first.source[:] = 7
    again = reader.samples(0, 10)
    assert np.array_equal(again.tokens, kept) and set(again.source.tolist()) == {0, 1}


def test_samples_are_what_locate_says(small: tuple[Workspace, Recipe]) -> None:
    workspace, _ = small
    reader = reader_of(*small)
    samples = reader.samples(0, 400)
    assert samples.document_ids is not None
    assert samples.tokens.dtype == np.int64 and samples.document_ids.dtype == np.int32
    wrapped = 0
    for index in range(400):
        where = reader.locate(index)
        assert where.source == reader.mix.sources[samples.source[index]].name
        there = open_split(workspace.tokens(where.source), "train", verify=False)
        places = (where.token + np.arange(9)) % there.tokens
        assert samples.tokens[index].tolist() == there.read(0, there.tokens)[places].tolist()
        documents = np.searchsorted(there.ends, places, side="right")
        ids = samples.document_ids[index]
        changes = np.diff(documents) % there.documents if there.documents > 1 else None
        assert changes is None or np.array_equal(np.diff(ids), changes)
        assert np.array_equal(np.diff(ids), samples.tokens[index][:-1] == 0), "EOS ends a document"
        assert sorted(set(where.documents)) == sorted(set(documents.tolist()))
        wrapped += int(places[-1] < places[0])
    assert wrapped > 3, "some windows went round the end"


def test_a_source_of_one_document_counts_its_beginning_as_another_after_its_end(
    tmp_path: Path,
) -> None:
    workspace = Workspace(tmp_path)
    write_tokens(workspace, "one", [list(range(1, 30))])
    phase = make_phase(seq_len=8, batch_tokens=8, tokens=8 * 300, mixture={"one": 1.0})
    sources = {"one": {"files": {"train": ["*.txt"]}}}
    reader = reader_of(workspace, make_recipe(tmp_path, phases={"phase1": phase}, sources=sources))
    samples = reader.samples(0, 300)
    assert samples.document_ids is not None
    assert np.array_equal(np.diff(samples.document_ids), samples.tokens[:, :-1] == 0)
    assert (samples.tokens[:, :-1] == 0).any()


@given(
    lengths=st.lists(st.lists(st.integers(1, 12), min_size=3, max_size=12), min_size=1, max_size=4),
    seq_len=st.integers(2, 5),
    weights=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    seed=st.integers(0, 99),
)
@settings(max_examples=12, deadline=None)
def test_any_mix_keeps_its_shares_and_its_epochs(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[list[int]],
    seq_len: int,
    weights: list[int],
    seed: int,
) -> None:
    root = tmp_path_factory.mktemp("mix")
    names = [f"s{number}" for number in range(len(lengths))]
    for name, sizes in zip(names, lengths):
        write_tokens(Workspace(root), name, [[5] * size for size in sizes])
    mixture = {name: float(weight) for name, weight in zip(names, weights)}
    phase = make_phase(seq_len=seq_len, batch_tokens=seq_len, tokens=seq_len * 200)
    recipe = make_recipe(
        root,
        seed=seed,
        sources={name: {"files": {"train": ["*.txt"]}} for name in names},
        phases={"phase1": phase | {"mixture": mixture, "max_epochs": 1e6}},
    )
    reader = reader_of(Workspace(root), recipe)
    located = [reader.locate(index) for index in range(200)]
    for source in reader.mix.sources:
        ours = [(where.epoch, where.window) for where in located if where.source == source.name]
        assert len(ours) == source.samples == len(set(ours))
        assert abs(len(ours) - 200 * Fraction(source.weight)) < 1
        assert [epoch for epoch, _ in ours] == [nth // source.windows for nth in range(len(ours))]
        assert all(0 <= window < source.windows for _, window in ours)


def test_a_phase_draws_in_an_order_of_its_own(small: tuple[Workspace, Recipe]) -> None:
    workspace, _ = small
    phase = make_phase(seq_len=8, batch_tokens=80, tokens=3200)
    later = phase | {"starts_from": "phase1"}
    recipe = make_recipe(workspace.root, phases={"phase1": phase, "phase2": later})
    first, second = (
        Reader(workspace, plan_mix(workspace, recipe, name)).samples(0, 20).tokens
        for name in ("phase1", "phase2")
    )
    assert not np.array_equal(first, second)


def test_the_samples_of_a_seed_never_change(small: tuple[Workspace, Recipe]) -> None:
    # a new value here means that every finished run was trained on other samples
    samples = reader_of(*small).samples(0, 5)
    assert samples.source.tolist() == [0, 1, 0, 1, 0]
    assert samples.tokens[:, 0].tolist() == [1072, 2104, 1088, 2192, 1008]
    assert reader_of(*small).locate(398) == Location("two", 6, 10, 133, [13, 14])


def test_samples_beyond_the_phase_are_refused(small: tuple[Workspace, Recipe]) -> None:
    reader = reader_of(*small)
    assert len(reader) == 400 and reader.samples(400, 0).tokens.shape == (0, 9)
    for first, count in ((-1, 1), (399, 2), (0, -1)):
        with pytest.raises(IndexError):
            reader.samples(first, count)
    with pytest.raises(IndexError):
        reader.locate(400)


def test_shards_that_changed_since_the_mix_was_made_are_refused(
    small: tuple[Workspace, Recipe],
) -> None:
    workspace, recipe = small
    made = plan_mix(workspace, recipe, "phase1")
    shutil.rmtree(workspace.tokens("one"))
    write_tokens(workspace, "one", counted(1001, 101, 7))
    with pytest.raises(UserError, match="has changed since the mix of phase1 was made") as error:
        Reader(workspace, made)
    assert "dvc repro mix@phase1" in str(error.value)


def test_a_reader_notices_a_changed_byte(small: tuple[Workspace, Recipe]) -> None:
    workspace, recipe = small
    made = plan_mix(workspace, recipe, "phase1")
    path = workspace.tokens("two") / "train-00001.bin"
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(UserError, match=r"train-00001.bin is damaged or was changed"):
        Reader(workspace, made)
