"""n-gram baselines: the textbook's probabilities, over exactly the tokens that a phase drew."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import recipe as recipes
from tasks.evaluation.baselines import baselines, score, together
from tasks.evaluation.drawn import drawn, merge
from tasks.evaluation.ngram import FALLBACK, Ngram, _distinct, discounts
from tasks.files import read_json, write_json
from tasks.tokens.mix import mix
from tasks.tokens.mixture import load_mix
from tasks.tokens.reader import Reader
from tasks.tokens.shards import open_split
from tasks.training.validate import held_out_sets
from tasks.workspace import Workspace
from tests.places import ROOT

VOCAB, EOS = 5, 0
texts = st.lists(
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30), min_size=1, max_size=5
)
orders = st.integers(1, 5)


def fit(runs: list[list[int]], order: int) -> Ngram:
    lengths = np.array([len(run) for run in runs])
    return Ngram.fit(np.concatenate(runs).astype(np.uint16), lengths, VOCAB, EOS, order)


class Textbook:
    """Interpolated modified Kneser-Ney with dictionaries, as Chen & Goodman write it down."""

    def __init__(self, runs: list[list[int]], order: int) -> None:
        grams: list[Counter] = [Counter() for _ in range(order + 1)]
        for run in runs:
            for end in range(1, len(run) + 1):
                for length in range(1, min(order, end) + 1):
                    gram = tuple(run[end - length : end])
                    if EOS not in gram[1:-1]:  # within one document
                        grams[length][gram] += 1
        self.order = max(length for length in range(1, order + 1) if grams[length])
        self.counts: list[Counter] = [Counter()]
        for length in range(1, self.order + 1):
            counts = Counter(grams[length])
            if length < self.order:
                for gram in counts:
                    if length == 1 or gram[0] != EOS:
                        counts[gram] = sum(longer[1:] == gram for longer in grams[length + 1])
            self.counts.append(counts)
        self.discounts = [discounts(np.array(list(c.values()) or [0])) for c in self.counts]

    def probability(self, context: tuple[int, ...], token: int) -> float:
        if EOS in context:
            last = len(context) - 1 - context[::-1].index(EOS)
            context = context[last:]
        context = context[max(0, len(context) - self.order + 1) :]
        return self._of(context, token)

    def _of(self, context: tuple[int, ...], token: int) -> float:
        length = len(context) + 1
        shorter = self._of(context[1:], token) if context else 1 / VOCAB
        after = {g: c for g, c in self.counts[length].items() if g[:-1] == context and c}
        if not after:
            return shorter
        total = sum(after.values())
        off = [0.0, *self.discounts[length]]
        kept = after.get((*context, token), 0)
        freed = sum(off[min(count, 3)] for count in after.values())
        return (kept - off[min(kept, 3)]) / total + freed / total * shorter


@settings(max_examples=60, deadline=None)
@given(texts, orders, st.lists(st.integers(0, VOCAB - 1), max_size=7))
def test_probabilities_are_the_textbooks_and_sum_to_one(runs, order, context):
    model, book = fit(runs, order), Textbook(runs, order)
    found = [float(model.probabilities(np.array([*context, w]))[-1]) for w in range(VOCAB)]
    assert math.isclose(sum(found), 1, abs_tol=1e-12)
    assert min(found) > 0
    assert found == pytest.approx([book.probability(tuple(context), w) for w in range(VOCAB)])


def test_a_case_worked_out_by_hand():
    # 1 2 1 2 0: bigrams (1,2) twice, (2,1) and (2,0) once. Before each token stands one other, so
    # below the first order each token has (1 - 0.5) / 3, and 3 * 0.5 / 3 go to 1/3 each: 1/3.
    model = Ngram.fit(np.array([1, 2, 1, 2, 0]), np.array([5]), 3, EOS, 2)
    assert model.orders[0].discounts == model.orders[1].discounts == FALLBACK == (0.5, 1.0, 1.5)
    first, *_ = model.probabilities(np.array([2]))
    assert first == pytest.approx(1 / 3)
    # after 1 came 2, twice: (2 - 1) / 2 and backoff 1 * 1 / 2
    after = [model.probabilities(np.array([1, w]))[1] for w in range(3)]
    assert after == pytest.approx([1 / 6, 1 / 6, 1 / 2 + 1 / 6])
    # after 2 came 1 and 0, once each: (1 - 0.5) / 2 each and backoff 0.5 * 2 / 2
    after = [model.probabilities(np.array([2, w]))[1] for w in range(3)]
    assert after == pytest.approx([1 / 4 + 1 / 6, 1 / 4 + 1 / 6, 1 / 6])


def test_discounts_come_from_the_counts_of_counts():
    counts = np.array([1] * 40 + [2] * 10 + [3] * 5 + [4] * 3)
    y = 40 / 60
    assert discounts(counts) == pytest.approx((1 - 2 * y / 4, 2 - 3 * y / 2, 3 - 4 * y * 3 / 5))
    assert discounts(np.array([1, 1, 2, 3])) == FALLBACK  # none seen four times
    assert discounts(np.array([1] * 10 + [2] + [3] * 5 + [4])) == FALLBACK  # would be below zero


@pytest.mark.parametrize("scale", [1, 2**55])
def test_different_keys_are_counted_whether_or_not_64_bits_hold_key_and_place(scale):
    keys = np.random.default_rng(0).integers(0, 99, 3000) * scale
    distinct, counts, firsts, ranks = _distinct(keys)
    expected, times = np.unique(keys, return_counts=True)
    assert distinct.tolist() == expected.tolist() and counts.tolist() == times.tolist()
    assert (keys[firsts] == distinct).all() and (distinct[ranks] == keys).all()


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_drawn_are_the_targets_that_the_reader_gives_each_once(tiny: Path, tmp_path: Path, packing):
    root = Path(shutil.copytree(tiny, tmp_path / "copy"))
    path = root / "params.yaml"
    path.write_text(
        path.read_text().replace("  seq_len: 32", f"  seq_len: 32\n  packing: {packing}")
    )
    workspace, recipe = Workspace(root), recipes.load(path)
    samples = {"phase1": 40, "phase2": 7}
    expected: dict[str, set[int]] = {}
    for phase, count in samples.items():
        mix(workspace, recipe, phase)
        write_json(workspace.checkpoint(phase) / "state.json", {"samples": count})
        reader = Reader(workspace, load_mix(workspace.mix(phase)))
        for number in range(count):
            source = reader.locate(number).source
            ends = open_split(workspace.tokens(source), "train").ends
            for piece in reader.pieces(number):
                begin = int(ends[piece.document - 1]) if piece.document else 0
                expected.setdefault(source, set()).update(
                    range(begin + piece.start, begin + piece.stop)
                )
    found = drawn(workspace, recipe, "phase2")
    places = {
        part.source: [p for a, b in zip(part.starts, part.stops) for p in range(a, b)]
        for part in found
    }
    assert {name: set(place) for name, place in places.items()} == expected
    assert all(len(place) == len(set(place)) for place in places.values())
    assert sum(part.tokens for part in found) == sum(map(len, expected.values()))
    tokens, runs = together(found)
    assert runs.sum() == len(tokens)
    first = found[0]
    assert tokens[: runs[0]].tolist() == first.split.read(first.starts[0], first.stops[0]).tolist()
    alone = drawn(workspace, recipe, "phase1")
    assert sum(part.tokens for part in alone) <= 40 * 32


def test_another_pass_over_a_source_adds_nothing_and_a_limit_takes_the_first(tiny, tmp_path):
    root = Path(shutil.copytree(tiny, tmp_path / "copy"))
    path = root / "params.yaml"
    path.write_text(path.read_text().replace("tokens: 15360", "tokens: 512000"))
    workspace, recipe = Workspace(root), recipes.load(path)
    mix(workspace, recipe, "phase1")
    made = load_mix(workspace.mix("phase1"))
    write_json(workspace.checkpoint("phase1") / "state.json", {"samples": made.samples})
    assert min(source.epochs for source in made.sources) > 2
    found = {part.source: part.tokens for part in drawn(workspace, recipe, "phase1")}
    assert found == {source.name: source.windows * made.seq_len for source in made.sources}
    few = drawn(workspace, recipe, "phase1", most_tokens=100)
    assert sum(part.tokens for part in few) == 128  # whole windows of 32


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9)), max_size=20))
def test_merged_stretches_cover_the_same_and_do_not_touch(spans):
    starts = np.array([a for a, _ in spans], np.int64)
    stops = starts + np.array([n for _, n in spans], np.int64)
    left, right = merge(starts, stops)
    assert {p for a, b in zip(starts, stops) for p in range(a, b)} == {
        p for a, b in zip(left, right) for p in range(a, b)
    }
    assert (left[1:] > right[:-1]).all()


@pytest.fixture(scope="module")
def counted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = Path(shutil.copytree(tiny, tmp_path_factory.mktemp("counted") / "copy"))
    workspace, recipe = Workspace(root), recipes.load(root / "params.yaml")
    for phase in recipe.phases:
        samples = load_mix(workspace.mix(phase)).samples
        write_json(workspace.checkpoint(phase) / "state.json", {"samples": samples})
    baselines(workspace, recipe, "phase2")
    return root


def test_the_stage_scores_every_held_out_set_and_longer_contexts_help(counted: Path):
    workspace, recipe = Workspace(counted), recipes.load(counted / "params.yaml")
    path = counted / "evaluation/phase2.baselines.json"
    figures, before = read_json(path), path.read_bytes()
    sets = held_out_sets(workspace, recipe, None, ("validation", "test"))
    assert list(figures) == [held_out.name for held_out in sets] and len(figures) == 4
    for row in figures.values():
        assert set(row) == {"unigram", "5-gram"}
        assert row["5-gram"]["bits_per_byte"] < 0.8 * row["unigram"]["bits_per_byte"]
        assert row["5-gram"]["perplexity"] < row["unigram"]["perplexity"] < 320
        assert row["5-gram"]["training_tokens"] == row["unigram"]["training_tokens"] > 1000
    baselines(workspace, recipe, "phase2")
    assert path.read_bytes() == before


def test_documents_scored_alone_leave_their_eos_out(counted: Path):
    workspace, recipe = Workspace(counted), recipes.load(counted / "params.yaml")
    [held_out, *_] = held_out_sets(workspace, recipe, None, ("validation",))
    made = load_mix(workspace.mix("phase2"))
    tokens, runs = together(drawn(workspace, recipe, "phase2"))
    model = Ngram.fit(tokens, runs, made.vocab_size, made.eos_id, 5)
    stream, alone = score(model, held_out), score(model, held_out, alone=True)
    ends = int((held_out.tokens == made.eos_id).sum())
    assert (stream.tokens, alone.tokens) == (len(held_out.tokens), len(held_out.tokens) - ends)
    # a document's figures do not depend on the one before it
    last = held_out.tokens[np.flatnonzero(held_out.tokens == made.eos_id)[-2] + 1 :]
    whole = model.probabilities(np.concatenate([[made.eos_id], held_out.tokens]))
    assert model.probabilities(np.concatenate([[made.eos_id], last]))[1:] == pytest.approx(
        whole[-len(last) :]
    )
    assert stream.loss_sum == pytest.approx(-np.log(whole[1:]).sum())


def test_counting_needs_no_torch():
    code = "import sys, tasks.evaluation.baselines; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
