"""Rows put together from parts: what is empty is found, and every part lands in its place."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.tokens.arrays import expand
from tasks.tokens.rows import IGNORED, Block, Parts, gaps


@given(st.lists(st.integers(0, 5), max_size=10))
def test_groups_laid_end_to_end_count_their_members(counts: list[int]) -> None:
    group, number = expand(np.array(counts, np.int64))
    expected = [(which, nth) for which, count in enumerate(counts) for nth in range(count)]
    assert list(zip(group.tolist(), number.tolist())) == expected


@settings(deadline=None)
@given(
    rows=st.lists(st.integers(0, 20), min_size=1, max_size=6, unique=True),
    length=st.integers(1, 9),
    seed=st.integers(0, 2**32),
)
def test_parts_and_gaps_fill_every_place_once(rows: list[int], length: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    taken = random.random((len(rows), length)) < 0.6
    # where taken places begin and end, in turn
    row, column = np.nonzero(np.diff(np.pad(taken, ((0, 0), (1, 1))), axis=1))
    place = np.array(rows)[row] * length + column
    at, sizes = place[::2], place[1::2] - place[::2]
    shuffled = random.permutation(len(at))
    free, room = gaps(at[shuffled], sizes[shuffled], np.array(rows), length)
    count = np.zeros((max(rows) + 1) * length, int)
    for begin, size in zip([*at, *free], [*sizes, *room]):
        count[begin : begin + size] += 1
    assert (count.reshape(-1, length)[rows] == 1).all() and count.sum() == len(rows) * length
    assert np.array_equal(free // length, (free + room - 1) // length), "no gap crosses a row"


def test_a_block_reads_its_samples_by_number_from_parts_in_any_order() -> None:
    ids = np.arange(100, dtype=np.uint16)
    late = Parts(np.array([7, 4]), [ids[70:71], ids[40:43]], np.array([6]))
    early = Parts(np.array([2, 0]), [ids[20:22], ids[10:12]], np.array([], np.int64))
    block = Block(50, np.array([1, 0]), [late, early], 4)
    tokens, targets, source = block.read(50, 2)
    assert tokens.tolist() == [[10, 11, 20, 21], [40, 41, 42, 70]] and source.tolist() == [1, 0]
    assert targets.tolist() == [[11, 20, 21], [41, IGNORED, 70]]
    tokens, targets, source = block.read(51, 1)
    assert tokens.tolist() == [[40, 41, 42, 70]] and targets.tolist() == [[41, IGNORED, 70]]
    tokens, targets, _ = block.read(50, 1)
    assert targets.base is tokens, "nothing is copied where every token is a target"
    assert block.read(52, 0)[0].shape == (0, 4)
