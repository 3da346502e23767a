"""Best-fit packing: no token lost, nothing cut that fits, every target after its own text."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import BAD_DATA, UserError
from tasks.recipe import Recipe
from tasks.tokens.best_fit import best_fit
from tasks.tokens.mix import mix, plan_mix
from tasks.tokens.mixture import load_mix
from tasks.tokens.packing import Packing, concatenated_cuts, load_packing
from tasks.tokens.reader import Reader
from tasks.tokens.rows import IGNORED
from tasks.training.batch import read_batch
from tasks.workspace import Workspace
from tests.test_tokens_mix import counted, write_tokens
from tests.test_tokens_workspace import make_phase, make_recipe

documents = st.lists(st.integers(1, 70), min_size=1, max_size=60)


def by_hand(lengths: list[int], seq_len: int) -> list[int]:
    """The room that best-fit-decreasing leaves in each shared window, one piece at a time."""
    sizes = [n % seq_len + (n > seq_len) for n in lengths if n % seq_len]
    rooms: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [number for number, room in enumerate(rooms) if room >= size]
        if fitting:
            rooms[min(fitting, key=lambda number: rooms[number])] -= size
        else:
            rooms.append(seq_len - size)
    return rooms


def pieces_of(packing: Packing, window: int) -> list[list[int]]:
    """Document, start, stop and column of each piece of a window."""
    return np.stack(packing.pieces(np.array([window]))[1:], axis=1).tolist()


@settings(deadline=None)
@given(documents, st.integers(2, 30))
def test_the_windows_are_those_of_best_fit_by_hand(lengths: list[int], seq_len: int) -> None:
    packing = best_fit(np.cumsum(lengths), seq_len)
    rooms = []
    for window in range(packing.full_windows, packing.windows):
        pieces = pieces_of(packing, window)
        rooms.append(seq_len - sum(stop - start + (start > 0) for _, start, stop, _ in pieces))
    assert sorted(rooms) == sorted(by_hand(lengths, seq_len))


@settings(deadline=None)
@given(documents, st.integers(2, 30))
def test_every_token_is_in_one_window_and_only_long_documents_are_cut(
    lengths: list[int], seq_len: int
) -> None:
    packing = best_fit(np.cumsum(lengths), seq_len)
    every = np.arange(packing.windows)
    seen: dict[int, list[tuple[int, int]]] = {}
    filled = np.zeros((packing.windows, seq_len + 1), int)
    for window, document, start, stop, column in np.stack(packing.pieces(every), 1).tolist():
        seen.setdefault(document, []).append((start, stop))
        filled[window, column - (start > 0) : column + stop - start] += 1
    assert filled[:, 1:].any(axis=1).all() and filled.max() == 1, "no two in one place"
    for document, length in enumerate(lengths):
        parts = sorted(seen[document])
        assert parts[0][0] == 0 and parts[-1][1] == length
        assert all(before[1] == after[0] for before, after in pairwise(parts))
        assert (len(parts) > 1) == (length > seq_len)
    assert packing.cut_documents == sum(length > seq_len for length in lengths)
    assert packing.padding(every) == packing.windows * seq_len - sum(lengths)


@settings(deadline=None)
@given(documents, st.integers(2, 30))
def test_the_documents_that_concatenation_cuts_are_counted(
    lengths: list[int], seq_len: int
) -> None:
    ends, tokens = np.cumsum(lengths), sum(lengths)
    windows = [
        set(range(w * seq_len + 1, (w + 1) * seq_len + 1)) for w in range((tokens - 1) // seq_len)
    ]
    starts = [0, *ends[:-1].tolist()]
    targets = [set(range(max(1, a), b)) for a, b in zip(starts, ends.tolist())]
    whole = sum(any(mine <= window for window in windows) for mine in targets)
    if windows:
        assert concatenated_cuts(ends, seq_len) == len(lengths) - whole


@pytest.fixture
def packed(tmp_path: Path) -> tuple[Workspace, Recipe]:
    """Documents shorter and longer than a window of 8, packed."""
    workspace = Workspace(tmp_path)
    write_tokens(workspace, "one", [*counted(1000, 60, 5), *counted(1500, 100, 27), [7]])
    write_tokens(workspace, "two", counted(2000, 203, 10))
    phase = make_phase(seq_len=8, batch_tokens=80, tokens=3200, packing="best_fit", max_epochs=1e6)
    recipe = make_recipe(tmp_path, phases={"phase1": phase})
    mix(workspace, recipe, "phase1")
    return workspace, recipe


def reader_of(workspace: Workspace) -> Reader:
    return Reader(workspace, load_mix(workspace.mix("phase1")))


def test_an_epoch_has_each_token_as_a_target_once(packed: tuple[Workspace, Recipe]) -> None:
    reader = reader_of(packed[0])
    samples = reader.samples(0, len(reader))
    for number, source in enumerate(reader.mix.sources):
        targets = samples.targets[samples.source == number]
        stream = reader._streams[number].split
        for epoch in range(source.samples // source.windows):
            part = targets[epoch * source.windows : (epoch + 1) * source.windows]
            assert sorted(part[part != IGNORED].tolist()) == sorted(stream.read(0, stream.tokens))


def test_a_target_follows_its_own_text_or_an_end_of_text(packed: tuple[Workspace, Recipe]) -> None:
    reader = reader_of(packed[0])
    samples = reader.samples(0, len(reader))
    before, targets = samples.tokens[:, :-1], samples.targets
    starts = {1000 + 5 * n for n in range(12)} | {1500 + 27 * n for n in range(4)} | {7}
    starts |= {2000 + 10 * n for n in range(21)}
    real = (targets != IGNORED) & (targets != 0)
    first = np.isin(targets, list(starts)) & real
    assert (before[first] == 0).all() and first.any()
    assert (before[real & ~first] == targets[real & ~first] - 1).all()
    assert (samples.tokens[:, 1:][targets == IGNORED].size) > 0
    assert samples.document_ids is not None
    assert np.array_equal(np.diff(samples.document_ids), samples.tokens[:, :-1] == 0)


def test_the_ledger_counts_the_padding_that_the_samples_have(
    packed: tuple[Workspace, Recipe],
) -> None:
    reader = reader_of(packed[0])
    samples = reader.samples(0, len(reader))
    facts = reader.mix.ledger["packing"]
    assert facts["method"] == "best_fit"
    for number, source in enumerate(reader.mix.sources):
        padding = int((samples.targets[samples.source == number] == IGNORED).sum())
        assert facts["sources"][source.name]["padding"] == padding
    assert facts["sources"]["one"]["cut_documents"] == 4


def test_training_counts_the_targets_that_are_there(packed: tuple[Workspace, Recipe]) -> None:
    workspace, recipe = packed
    reader, alone = reader_of(workspace), SimpleNamespace(rank=0, size=1)
    for step in range(5):
        batch = read_batch(reader, recipe.phases["phase1"], step, alone)  # type: ignore[arg-type]
        targets = reader.samples(10 * step, 10).targets
        assert int(batch.valid) == int((targets != IGNORED).sum()) < 80
        assert np.array_equal(batch.targets.numpy(), targets)


def test_the_pieces_of_a_sample_are_its_targets_and_are_found_again(
    packed: tuple[Workspace, Recipe],
) -> None:
    workspace, _ = packed
    reader = reader_of(workspace)
    samples = reader.samples(0, len(reader))
    for index in range(0, len(reader), 3):
        where, pieces = reader.locate(index), reader.pieces(index)
        split = reader._streams[int(samples.source[index])].split
        read = []
        for piece in pieces:
            begin = int(split.ends[piece.document - 1]) if piece.document else 0
            read += split.read(begin + piece.start, begin + piece.stop).tolist()
            found = reader.when(where.source, piece.document, piece.start, piece.stop)
            assert index in found
            epochs = {reader.locate(sample).epoch for sample in found}
            assert len(epochs) == len(found), "a piece is in one window an epoch"
        targets = samples.targets[index]
        assert targets[targets != IGNORED].tolist() == read


def test_a_phase_of_packed_documents_has_a_fingerprint_of_its_own(
    packed: tuple[Workspace, Recipe],
) -> None:
    workspace, _ = packed
    phase = make_phase(seq_len=8, batch_tokens=80, tokens=3200, max_epochs=1e6)
    other = plan_mix(workspace, make_recipe(workspace.root, phases={"phase1": phase}), "phase1")
    made = load_mix(workspace.mix("phase1"))
    assert made.fingerprint != other.fingerprint
    assert other.ledger["packing"]["sources"]["one"]["padding"] == 0
    assert other.ledger["packing"]["sources"]["two"]["cut_documents"] > 10


def test_a_packing_that_was_changed_or_lost_is_refused(packed: tuple[Workspace, Recipe]) -> None:
    workspace, _ = packed
    path = workspace.mix("phase1").parent / "one.documents.npy"
    plan = np.load(path, allow_pickle=False)
    np.save(path, plan[::-1].copy(), allow_pickle=False)
    with pytest.raises(UserError, match="plan of one is another") as error:
        reader_of(workspace)
    assert error.value.exit_code == BAD_DATA and "mix@phase1" in str(error.value)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match="one.documents.npy is not a packing as written"):
        reader_of(workspace)
    path.unlink()
    with pytest.raises(UserError, match="not a packing as written"):
        reader_of(workspace)


def test_a_plan_reads_back_as_it_was_saved(tmp_path: Path) -> None:
    packing = best_fit(np.cumsum([3, 9, 4, 16, 5]), 8)
    packing.save(tmp_path, "one")
    again = load_packing(tmp_path, "one", packing.ends, 8, packing.sha256)
    assert isinstance(again, Packing) and again.windows == packing.windows
    # a new value here means that every finished run was trained on other windows
    assert packing.documents.tolist() == [0, 4, 1, 2] and packing.window_ends.tolist() == [2, 4]
