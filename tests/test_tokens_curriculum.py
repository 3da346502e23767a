"""Shares that change along a phase: Tijdeman's bound for every n, from steps and from slopes."""

from __future__ import annotations

from fractions import Fraction
from unittest import mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.tokens import curriculum
from tasks.tokens.curriculum import Curriculum
from tasks.tokens.order import Interleaving


@st.composite
def courses(draw: st.DrawFn) -> Curriculum:
    sources = draw(st.integers(1, 6))
    samples = draw(st.integers(4, 120))
    starts = sorted({0, *draw(st.lists(st.integers(1, samples - 1), max_size=4))})
    weights = st.lists(st.integers(0, 9), min_size=sources, max_size=sources).filter(any)
    rows = draw(st.lists(weights, min_size=len(starts), max_size=len(starts)))
    shares = [[Fraction(weight, sum(row)) for weight in row] for row in rows]
    with mock.patch.object(curriculum, "BLOCK", draw(st.sampled_from([5, 32, 1000]))):
        return Curriculum(starts, shares, draw(st.booleans()), samples)


@settings(deadline=None, max_examples=100)
@given(courses())
def test_no_source_is_ever_a_whole_sample_from_the_integral_of_its_share(
    course: Curriculum,
) -> None:
    source, nth = course.locate(np.arange(course.samples))
    bound = 1 - Fraction(1, 2 * course.sources - 2) if course.sources > 1 else 0
    counts = [0] * course.sources
    for sample, (which, before) in enumerate(zip(source.tolist(), nth.tolist())):
        assert before == counts[which]
        counts[which] += 1
        due = course.due(sample + 1)
        assert sum(due) == sample + 1
        assert max(abs(a - b) for a, b in zip(due, counts)) <= bound
    assert course.drawn(course.samples) == counts


@settings(deadline=None, max_examples=50)
@given(courses(), st.data())
def test_a_sample_is_found_from_its_number_and_its_number_from_its_place(
    course: Curriculum, data: st.DataObject
) -> None:
    every, numbers = course.locate(np.arange(course.samples))
    first = data.draw(st.integers(0, course.samples - 1))
    stop = data.draw(st.integers(first, course.samples))
    source, nth = course.locate(np.arange(first, stop))
    assert np.array_equal(source, every[first:stop]) and np.array_equal(nth, numbers[first:stop])
    assert course.index(int(every[first]), int(numbers[first])) == first
    assert course.drawn(first) == np.bincount(every[:first], minlength=course.sources).tolist()


@settings(deadline=None, max_examples=30)
@given(courses())
def test_a_course_read_back_is_the_course_that_was_worked_out(course: Curriculum) -> None:
    starts = [segment.start for segment in course.segments]
    if course.segments[-1].first != course.segments[-1].last:
        return  # a slope to a last point at the very end is one point more
    shares = [segment.first for segment in course.segments]
    linear = any(s.first != s.last for s in course.segments)
    with (
        mock.patch.object(Curriculum, "_work_out", side_effect=AssertionError),
        mock.patch.object(curriculum, "BLOCK", max(b[2] - b[1] for b in course._blocks)),
    ):
        again = Curriculum(starts, shares, linear, course.samples, course.before)
    samples = np.arange(course.samples)
    assert np.array_equal(again.locate(samples)[0], course.locate(samples)[0])


def test_a_curriculum_that_stands_still_is_as_even_as_a_constant_mixture() -> None:
    shares = [Fraction(5, 10), Fraction(3, 10), Fraction(2, 10)]
    course = Curriculum([0, 30], [shares, shares], True, 100)
    assert course.drawn(100) == Interleaving(shares).drawn(100) == [50, 30, 20]


def test_a_slope_draws_the_area_below_it() -> None:
    up, down = [Fraction(0), Fraction(1)], [Fraction(1), Fraction(0)]
    course = Curriculum([0, 1000], [down, up], True, 1000)
    assert course.drawn(1000) == [500, 500]
    assert course.drawn(500) == [375, 125]
    assert course.locate(np.arange(5))[0].tolist() == [0] * 5


def test_a_long_slope_of_fine_shares_stays_exact() -> None:
    first = [Fraction(123_457, 10**6), Fraction(876_543, 10**6)]
    course = Curriculum([0, 300_000], [first, first[::-1]], True, 300_000)
    for sample in (1, 77_777, 150_000, 299_999, 300_000):
        pairs = zip(course.drawn(sample), course.due(sample))
        assert all(abs(count - due) <= Fraction(1, 2) for count, due in pairs)
    numerators = [
        course._ahead(s, 0, f, e - f, 0, 2 * 300_000 * 10**6) for s, f, e in course._blocks[:2]
    ]
    assert all(int(n.min()) >= 0 for n in numerators), "no number ran over"


def test_the_order_of_a_curriculum_never_changes() -> None:
    # a new value here means that every finished run was trained in another order
    third = Fraction(1, 3)
    course = Curriculum(
        [0, 6], [[third] * 3, [Fraction(1, 2), Fraction(1, 2), Fraction(0)]], False, 12
    )
    assert course.locate(np.arange(12))[0].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 0, 1, 0, 1]
