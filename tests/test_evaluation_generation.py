"""What is measured of generated text: variety, repetition, copies of training text, speed."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import recipe as recipes
from tasks.evaluation import generation, memorisation
from tasks.evaluation.diversity import distinct, repetition_rate
from tasks.evaluation.drawn import Drawn, drawn
from tasks.evaluation.generation import cut, generate, held_out_texts, memorised
from tasks.evaluation.memorisation import found_in_training, spans_of, window_hashes
from tasks.files import read_json
from tasks.tokens.mixture import load_mix
from tasks.tokens.shards import open_split
from tasks.workspace import Workspace

ids = st.lists(st.integers(0, 2), max_size=40)


def test_distinct_is_the_share_of_n_grams_that_are_different_over_all_texts():
    texts = [[1, 2, 1, 2], [1, 2, 3]]
    assert distinct(texts, 1) == 3 / 7
    assert distinct(texts, 2) == 3 / 5  # 12 21 12 and 12 23
    assert distinct(texts, 3) == 1  # 121 212 and 123
    assert distinct(texts, 5) is None


def test_repetition_is_within_a_text_and_an_average_over_texts():
    round_and_round, fresh = [1, 2, 3, 4] * 3, list(range(12))
    assert repetition_rate([fresh, fresh]) == 0  # the same text twice repeats nothing within it
    assert repetition_rate([round_and_round]) == 1 - 4 / 9
    assert repetition_rate([round_and_round, fresh, [1, 2]]) == (1 - 4 / 9) / 2
    assert repetition_rate([[1, 2, 3]]) is None


def test_texts_are_cut_to_the_same_amount():
    assert cut([[1, 2, 3], [4, 5], [6]], 4) == [[1, 2, 3], [4], []]


@dataclass
class Shard:
    """As much of a token split as memorisation reads."""

    tokens: list[int] = field(default_factory=list)

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.array(self.tokens[start:stop], np.uint16)


def stretches(*texts: list[int]) -> list[Drawn]:
    """Training text of one source, drawn in these stretches."""
    ends = np.cumsum([len(text) for text in texts])
    starts = ends - [len(text) for text in texts]
    return [Drawn("s", Shard([token for text in texts for token in text]), starts, ends)]  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(ids, st.integers(1, 12))
def test_a_window_hash_is_the_polynomial_of_its_tokens(tokens, length):
    hashes = window_hashes(np.array(tokens, np.int64), length)
    windows = spans_of([np.array(tokens)], length)
    again = [window_hashes(window, length)[0] for window in windows]
    assert hashes.tolist() == again
    different = {tuple(window) for window in windows.tolist()}
    assert len(set(hashes.tolist())) == len(different)


@settings(max_examples=80, deadline=None)
@given(
    ids, st.lists(ids.filter(len), min_size=1, max_size=4), st.integers(1, 6), st.integers(4, 40)
)
def test_spans_are_found_as_a_plain_search_finds_them(text, training, span, chunk):
    """Whatever the size of what is read at once, and never over the border of two stretches."""
    spans = spans_of([np.array(text)], span)
    before, memorisation._CHUNK = memorisation._CHUNK, chunk
    try:
        found = found_in_training(spans, stretches(*training))
    finally:
        memorisation._CHUNK = before
    there = {tuple(t[i : i + span]) for t in training for i in range(len(t) - span + 1)}
    assert found.tolist() == [tuple(s) in there for s in spans.tolist()]


def test_a_copied_passage_is_found_and_its_share_told():
    training = list(np.random.default_rng(0).integers(0, 900, 5000))
    own = [901 + n for n in range(60)]
    texts = {"raw": [training[100:160], own], "ema": [own], "short": [[1, 2]]}
    found = memorised(texts, 50, stretches(training[:120], training[120:]))
    assert found["raw"] == {"memorised_share": 0.0, "spans": 22}  # its parts lie in two stretches
    found = memorised(texts, 50, stretches(training))
    assert found["raw"] == {"memorised_share": 0.5, "spans": 22}
    assert found["ema"]["memorised_share"] == 0
    assert found["short"] == {"memorised_share": None, "spans": 0}


@pytest.fixture(scope="module")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny workspace with a phase1 of first weights and an average that is another network."""

    from tasks.training import checkpoint

    root = Path(shutil.copytree(tiny, tmp_path_factory.mktemp("finished") / "copy"))
    path = root / "params.yaml"
    path.write_text(
        path.read_text()
        .replace('prompts: ["The "]', 'prompts: ["The ", "A "]\n  memorised_span: 4')
        .replace("samples: 8", "samples: 5")
        .replace("sample_tokens: 16", "sample_tokens: 12")
    )
    workspace = Workspace(root)
    weights = checkpoint.load_tensors(workspace.checkpoint("init"), "model")
    other = {name: 3 * value for name, value in weights.items()}
    config = read_json(workspace.checkpoint("init") / "config.json")
    samples = load_mix(workspace.mix("phase1")).samples
    checkpoint.save(
        workspace.checkpoint("phase1"),
        {"model": weights, "ema": other},
        {"config": config, "state": {"samples": samples}},
    )
    generate(workspace, recipes.load(path), "phase1")
    return root


def test_the_stage_writes_a_sample_a_prompt_and_weights_that_can_be_drawn_again(finished: Path):
    from dataclasses import replace

    from model.sampling import SamplingOptions
    from tasks.release.sampler import Sampler
    from tasks.tokens.text import load_tokenizer
    from tasks.training.state import load_network

    workspace, recipe = Workspace(finished), recipes.load(finished / "params.yaml")
    samples = read_json(finished / "evaluation/phase1.generation.json")["samples"]
    assert [(s["prompt"], s["weights"], s["seed"]) for s in samples] == [
        ("The ", "raw", 7), ("A ", "raw", 8), ("The ", "ema", 7), ("A ", "ema", 8),
    ]  # fmt: skip
    for stem, drawn_ in (("model", samples[:2]), ("ema", samples[2:])):
        network = load_network(workspace.checkpoint("phase1"), stem)
        sampler = Sampler(network, load_tokenizer(workspace.tokenizer))
        options = SamplingOptions(**recipe.evaluation.sampling.keywords() | {"max_new_tokens": 12})
        for sample in drawn_:
            again = sampler.complete(sample["prompt"], replace(options, seed=sample["seed"]))
            assert again.text == sample["text"]


def test_the_stage_measures_both_weights_beside_held_out_text(finished: Path):
    made = read_json(finished / "evaluation/phase1.generation.json")
    measures = made["measures"]
    assert list(measures) == ["raw", "ema", "held_out"]
    for row in measures.values():
        assert row["texts"] == 5 and 0 < row["tokens"] <= 60
        assert row["spans"] > 0 and 0 <= row["memorised_share"] <= 1
        for name in ("distinct_1", "distinct_2", "distinct_3"):
            assert 0 < row[name] <= 1
        assert 0 <= row["repetition_rate"] < 1
    # people's text shares four-token spans with the training text, random weights' does not
    assert measures["held_out"]["memorised_share"] > 0.2 > measures["raw"]["memorised_share"]
    assert made["settings"]["memorised_span"] == 4
    smallest = min(row["tokens"] for row in measures.values())
    assert made["settings"]["distinct_tokens"] == smallest


def test_speed_names_the_machine_and_both_ways_of_reading(finished: Path):
    speed = read_json(finished / "evaluation/phase1.generation.json")["speed"]
    assert "cores" in speed["hardware"] and "torch threads" in speed["hardware"]
    assert (speed["prompt_tokens"], speed["new_tokens"]) == (16, 17)  # of a context of 32
    assert speed["peak_memory_bytes"] > 50e6
    for rows in (1, 8):
        rates = speed[f"batch_{rows}"]
        assert min(rates["prefill_tokens_per_second"], rates["decode_tokens_per_second"]) > 0


def test_all_but_the_speed_is_the_same_again(finished: Path, monkeypatch: pytest.MonkeyPatch):
    path = finished / "evaluation/phase1.generation.json"
    before = read_json(path)
    monkeypatch.setattr("tasks.evaluation.speed.measure", lambda network: {"batch_1": {
        "prefill_tokens_per_second": 1.0, "decode_tokens_per_second": 1.0}})  # fmt: skip
    monkeypatch.setattr(generation, "BATCH_SIZE", 2)
    generate(Workspace(finished), recipes.load(finished / "params.yaml"), "phase1")
    after = read_json(path)
    assert before.pop("speed") != after.pop("speed")
    assert after == before


def test_the_control_is_the_beginnings_of_documents_spread_over_all_sets(finished: Path):
    workspace, recipe = Workspace(finished), recipes.load(finished / "params.yaml")
    texts = held_out_texts(workspace, recipe, 4, 30)
    assert [len(text) for text in texts] == [30] * 4
    begun = {
        name: [split.read(int(e), int(e) + 30).tolist() for e in [0, *split.ends[:-1]]]
        for name in recipe.sources
        for split in [open_split(workspace.tokens(name), "validation")]
    }
    assert texts[0] in begun["letters"]
    assert len({tuple(text) for text in texts}) == 4
    long = held_out_texts(workspace, recipe, 3, 10**6)  # none is so long: the longest come whole
    eos = open_split(workspace.tokens("letters"), "test").eos_id
    assert len(long) == 3 and min(map(len, long)) > 30 and not any(eos in text for text in long)


def test_training_text_is_found_in_itself(finished: Path):
    workspace, recipe = Workspace(finished), recipes.load(finished / "params.yaml")
    training = drawn(workspace, recipe, "phase1")
    stretch = next(training[0].read()).tolist()
    found = memorised({"copy": [stretch[:100]], "none": [stretch[99::-1]]}, 20, training)
    assert found["copy"]["memorised_share"] == 1.0
    assert found["none"]["memorised_share"] == 0.0
