"""What a mixture comes to: temperature, replay, caps, courses; drawn to within one sample."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import USAGE, UserError
from tasks.files import fingerprint
from tasks.recipe import Phase, Recipe
from tasks.recipe_mixture import mixture_shares, mixture_starts
from tasks.tokens.mix import mix, plan_mix
from tasks.tokens.mixture import load_mix
from tasks.tokens.order import MAX_PERIOD
from tasks.tokens.reader import Reader
from tasks.tokens.shares import ROUND_TO, Shares, phase_shares
from tasks.workspace import Workspace
from tests.test_tokens_mix import counted, write_tokens
from tests.test_tokens_workspace import make_phase, make_recipe

SIZES = {"one": 101, "two": 203, "three": 402}


class Stock:
    """Sources of given sizes, in tokens; windows of 10."""

    def __init__(self, **sizes: int) -> None:
        self.sizes = sizes

    def tokens(self, source: str) -> int:
        return self.sizes[source]

    def windows(self, source: str, settings: Phase) -> int:
        return self.sizes[source] // settings.seq_len


def recipe_of(root: Path, **phases: dict[str, Any]) -> Recipe:
    sources = {name: {"files": {"train": ["*.txt"]}} for name in SIZES}
    return make_recipe(root, sources=sources, phases=phases, release={"phase": next(iter(phases))})


def phase_of(**changes: Any) -> dict[str, Any]:
    return make_phase(seq_len=10, batch_tokens=100, tokens=1000, max_epochs=1e6) | changes


def shares_of(root: Path, stock: Stock, **changes: Any) -> Shares:
    return phase_shares(recipe_of(root, phase1=phase_of(**changes)), "phase1", stock)


# Temperature ------------------------------------------------------------------------------------


def test_temperature_one_draws_by_size_and_infinity_by_the_weights_alone(tmp_path: Path) -> None:
    stock, even = Stock(one=100, two=300), {"one": 1, "two": 1}
    by_size = shares_of(tmp_path, stock, mixture=even, mixture_temperature=1.0)
    assert by_size.rows == [{"one": Fraction(1, 4), "two": Fraction(3, 4)}]
    hot = shares_of(tmp_path, stock, mixture=even, mixture_temperature=1e9)
    assert hot.rows[0]["one"] == pytest.approx(0.5, abs=1 / ROUND_TO)
    alone = shares_of(tmp_path, stock, mixture={"one": 2, "two": 1})
    assert alone.rows == [{"one": Fraction(2, 3), "two": Fraction(1, 3)}]


def test_a_weight_multiplies_what_temperature_makes_of_a_size(tmp_path: Path) -> None:
    stock = Stock(one=1000, two=8000)
    made = shares_of(tmp_path, stock, mixture={"one": 2, "two": 1}, mixture_temperature=3.0)
    assert made.rows[0] == {"one": Fraction(1, 2), "two": Fraction(1, 2)}, "2 * 10 to 1 * 20"
    assert made.rounded or made.rows[0]["one"].denominator <= MAX_PERIOD


# Replay -----------------------------------------------------------------------------------------


def test_replay_draws_its_share_by_the_earlier_mixture(tmp_path: Path) -> None:
    recipe = recipe_of(
        tmp_path,
        phase1=phase_of(mixture={"one": 0.5, "two": 0.5}),
        phase2=phase_of(
            mixture={"three": 0.8, "two": 0.2}, starts_from="phase1", replay={"phase1": 0.1}
        ),
        phase3=phase_of(mixture={"three": 1}, starts_from="phase2", replay={"phase2": 0.5}),
    )
    stock = Stock(**SIZES)
    (row,) = phase_shares(recipe, "phase2", stock).rows
    assert row == {"three": Fraction(72, 100), "two": Fraction(23, 100), "one": Fraction(5, 100)}
    (row,) = phase_shares(recipe, "phase3", stock).rows
    assert row == {
        "three": Fraction(86, 100),
        "two": Fraction(115, 1000),
        "one": Fraction(25, 1000),
    }


def test_replay_of_a_course_draws_by_its_mean(tmp_path: Path) -> None:
    course = {"mixture": {"one": [1, 0], "two": [0, 1]}, "mixture_at": [0, 0.4]}
    later = phase_of(mixture={"three": 1}, starts_from="phase1", replay={"phase1": 0.5})
    recipe = recipe_of(tmp_path, phase1=phase_of(**course), phase2=later)
    (row,) = phase_shares(recipe, "phase2", Stock(**SIZES)).rows
    assert row == {"three": Fraction(1, 2), "one": Fraction(1, 5), "two": Fraction(3, 10)}


# Caps -------------------------------------------------------------------------------------------


def test_a_source_beyond_max_epochs_is_capped_and_the_others_fill_in(tmp_path: Path) -> None:
    made = shares_of(
        tmp_path, Stock(one=100, two=10_000, three=10_000), max_epochs=2.0, on_exhausted="reweight",
        mixture={"one": 0.5, "two": 0.3, "three": 0.2},
    )  # fmt: skip
    assert made.rows == [{"one": Fraction(1, 5), "two": Fraction(12, 25), "three": Fraction(8, 25)}]
    assert made.capped == {"one": Fraction(1, 2)}


def test_filling_in_may_exhaust_another_source(tmp_path: Path) -> None:
    made = shares_of(
        tmp_path, Stock(one=100, two=330, three=10_000), max_epochs=1.0, on_exhausted="reweight",
        mixture={"one": 0.5, "two": 0.3, "three": 0.2},
    )  # fmt: skip
    assert made.rows == [
        {"one": Fraction(1, 10), "two": Fraction(33, 100), "three": Fraction(57, 100)}
    ]
    assert list(made.capped) == ["one", "two"]


def test_sources_that_cannot_fill_a_phase_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot fill 1K tokens with at most 1 passes") as error:
        shares_of(tmp_path, Stock(one=100, two=300), max_epochs=1.0, on_exhausted="reweight")
    assert error.value.exit_code == USAGE and error.value.where == "params.yaml: phases.phase1"


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(20, 4000), min_size=3, max_size=3),
    rows=st.lists(st.lists(st.integers(1, 9), min_size=3, max_size=3), min_size=1, max_size=3),
    max_epochs=st.floats(0.5, 5),
    linear=st.booleans(),
    temperature=st.none() | st.floats(0.5, 10),
)
def test_no_source_is_drawn_beyond_its_cap_whatever_the_course(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    rows: list[list[int]],
    max_epochs: float,
    linear: bool,
    temperature: float | None,
) -> None:
    names = list(SIZES)
    mixture = {name: [float(row[n]) for row in rows] for n, name in enumerate(names)}
    stock = Stock(**dict(zip(names, sizes)))
    try:
        made = shares_of(
            tmp_path_factory.mktemp("caps"), stock, mixture=mixture, max_epochs=max_epochs,
            mixture_at=[0, 0.3, 0.7][: len(rows)], curriculum="linear" if linear else "steps",
            mixture_temperature=temperature, on_exhausted="reweight",
        )  # fmt: skip
    except UserError as error:
        assert "cannot fill" in str(error) or "less than 1/100,000" in str(error)
        return
    assert all(sum(row.values()) == 1 and min(row.values()) >= 0 for row in made.rows)
    for name, share in made.mean.items():
        assert share * made.samples <= int(Fraction(str(max_epochs)) * (stock.sizes[name] // 10))
    assert set(made.capped) <= set(names)


# Whole mixes ------------------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    for number, (name, tokens) in enumerate(SIZES.items()):
        write_tokens(Workspace(tmp_path), name, counted(1000 * (number + 1), tokens, 7))
    return Workspace(tmp_path)


def test_a_course_is_drawn_by_the_integral_of_its_shares(workspace: Workspace) -> None:
    course = {"mixture": {"one": [0.9, 0.1], "two": 0.1, "three": [0, 0.8]}, "mixture_at": [0, 0.5]}
    for curriculum in ("steps", "linear"):
        phase = phase_of(tokens=4000, **course, curriculum=curriculum)
        mix(workspace, recipe_of(workspace.root, phase1=phase), "phase1")
        made = load_mix(workspace.mix("phase1"))
        turns, samples = made.interleaving, Reader(workspace, made).samples(0, made.samples)
        for n in range(0, made.samples + 1, 20):
            counts = np.bincount(samples.source[:n], minlength=3)
            if n:
                due = turns.due(n)  # type: ignore[union-attr]
                assert all(abs(int(c) - d) <= Fraction(3, 4) for c, d in zip(counts, due))
        assert [s.samples for s in made.sources] == counts.tolist()
        epochs = {s.name: s.samples / s.windows for s in made.sources}
        assert epochs == {s.name: s.epochs for s in made.sources}


def test_a_mix_with_a_course_reads_back_and_shows_it(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    course = {
        "mixture": {"one": [1, 0], "two": [0, 1]},
        "mixture_at": [0, "600"],
        "curriculum": "linear",
    }
    earlier = phase_of(mixture={"three": 1})
    later = phase_of(**course, starts_from="phase1", replay={"phase1": 0.2})
    recipe = recipe_of(workspace.root, phase1=earlier, phase2=later)
    mix(workspace, recipe, "phase2")
    made = load_mix(workspace.mix("phase2"))
    assert made == plan_mix(workspace, recipe, "phase2")
    assert made.course is not None and made.course.starts == [0, 60]
    assert made.ledger["replay"] == {"phase1": 200}
    out = capsys.readouterr().out
    assert (
        "share at token" in out and "in straight lines" in out and "by the mixture of phase1" in out
    )
    assert mixture_shares(recipe.phases["phase2"]) == {"one": 0.3, "two": 0.7}


def test_a_capped_mix_says_so(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    phase = phase_of(mixture={"one": 0.5, "three": 0.5}, max_epochs=3.0, on_exhausted="reweight")
    mix(workspace, recipe_of(workspace.root, phase1=phase), "phase1")
    made = load_mix(workspace.mix("phase1"))
    assert [s.samples for s in made.sources] == [30, 70] and made.sources[0].epochs == 3.0
    assert made.ledger["capped"] == {"one": {"asked": 500, "drawn": 300}}
    assert "capped: one gives 300 tokens of the 500" in capsys.readouterr().out


def test_a_mix_without_the_new_keys_is_the_mix_it_was(workspace: Workspace) -> None:
    # a new value here means that every finished run belongs to another mix
    made = plan_mix(workspace, recipe_of(workspace.root, phase1=phase_of()), "phase1")
    names = "version phase seed seq_len samples period tokenizer vocab_size eos_id sources"
    keys = "name weight tokens samples available windows epochs fingerprint"
    value = made.to_json()
    assert [set(source) for source in value["sources"]] == [set(keys.split())] * 2
    assert made.fingerprint == fingerprint({name: value[name] for name in names.split()})
    assert made.fingerprint.startswith("fc74e7dd301df7b6")


def test_what_is_drawn_again_is_counted_in_epochs_of_one_stream(workspace: Workspace) -> None:
    earlier = phase_of(mixture={"one": 1})
    later = phase_of(mixture={"one": 0.5, "two": 0.5}, starts_from="phase1", replay={"phase1": 0.2})
    recipe = recipe_of(workspace.root, phase1=earlier, phase2=later)
    reader = Reader(workspace, plan_mix(workspace, recipe, "phase2"))
    located = [reader.locate(sample) for sample in range(len(reader))]
    ours = [(where.epoch, where.window) for where in located if where.source == "one"]
    assert len(ours) == len(set(ours)) == 60 and max(epoch for epoch, _ in ours) == 5


# The recipe -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"mixture": {"one": [1, 0]}}, "mixture.one has 2 weights; mixture_at must say where"),
        ({"mixture": {"one": [1, 2, 3]}, "mixture_at": [0, 0.5]}, "3 weights, mixture_at 2 points"),
        (
            {"mixture": {"one": [1, 0]}, "mixture_at": [0, 0.5]},
            "mixture at 0.5: the weights sum to 0",
        ),
        ({"mixture_at": [0.1]}, "mixture_at begins at 0"),
        ({"mixture_at": [0, 0.5, 0.5]}, "mixture_at must rise"),
        ({"mixture_at": [0, 0.501, 0.502]}, "mixture_at must rise"),
        ({"mixture_at": [0, 1]}, "reaches the end of the phase or beyond"),
        (
            {"mixture_at": [0, "2K"], "curriculum": "linear"},
            "reaches the end of the phase or beyond",
        ),
        ({"mixture": {"one": "much"}}, "expected a weight, or a list of weights, got 'much'"),
        ({"mixture": {"one": -1}}, "mixture.one is negative"),
        ({"replay": {"phase1": 0.1}}, "'phase1' is not a phase before phase1; there is none"),
        ({"replay": {"phase0": 0.1}}, "no phase 'phase0'; did you mean 'phase1'?"),
        ({"replay": {"x": 1.5}}, "replay.x is a share between 0 and 1"),
        ({"mixture_temperature": 0}, "mixture_temperature"),
        ({"packing": "best"}, "should be 'concatenate' or 'best_fit'"),
        ({"on_exhausted": "stop"}, "should be 'error' or 'reweight'"),
    ],
)
def test_a_mixture_that_cannot_be_drawn_is_refused(
    tmp_path: Path, changes: dict[str, Any], fault: str
) -> None:
    with pytest.raises(UserError) as error:
        recipe_of(tmp_path, phase1=phase_of(**changes))
    assert fault in str(error.value) and "phases.phase1" in str(error.value)


def test_points_stand_at_shares_of_the_phase_or_at_tokens(tmp_path: Path) -> None:
    phase = phase_of(mixture={"one": [1, 2, 3]}, mixture_at=[0, 0.25, "500"])
    assert mixture_starts(recipe_of(tmp_path, phase1=phase).phases["phase1"]) == [0, 25, 50]
