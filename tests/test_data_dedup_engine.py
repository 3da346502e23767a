"""The engine of dedup: exact in what it claims, whatever the size of its pieces."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tasks.data import bands, fingerprints, greedy, near
from tasks.data.documents import Document, Writer, shards
from tasks.data.duplicates import EXACT, NEAR, REASONS, STAYS, Verdicts, find_duplicates, sketch_of
from tasks.data.shingles import jaccard, shingles
from tasks.data.texts import shard_part
from tasks.recipe import Dedup
from tasks.shardwise import work_folder
from tests.corpus import nearly, story
from tests.test_data_dedup_greedy import in_order

THRESHOLD = 0.8


def write(folder: Path, texts: Sequence[str], shard_bytes: int = 20_000) -> list[Path]:
    with Writer(folder, shard_bytes=shard_bytes) as writer:
        for text in texts:
            writer.add(Document.of(text, "s", "train", "{}"))
    return shards(folder)["train"]


def verdicts_of(folder: Path, paths: list[Path], rules: Dedup) -> dict[str, Any]:
    """The verdicts, as plain lists."""
    with work_folder(folder / "work") as work:
        parts = [shard_part(path.resolve()) for path in paths]
        found = find_duplicates(parts, [path.stat().st_size for path in paths], rules, work)
        return plain(found)


def plain(found: Verdicts) -> dict[str, Any]:
    numbers = np.arange(len(found.kept))
    return {
        "kept": found.kept.tolist(),
        "cluster": found.cluster.tolist(),
        "reason": found.reason.tolist(),
        "jaccard": [None if np.isnan(j) else j for j in found.jaccard.tolist()],
        "ids": found.ids(numbers),
        "sizes": found.sizes.tolist(),
        "notes": found.notes,
    }


def edited(text: str, share: float, draw: random.Random) -> str:
    words = text.split(" ")
    for _ in range(int(share * len(words))):
        words[draw.randrange(len(words))] = f"word{draw.random()}"
    return " ".join(words)


def variants(seed: int, families: int = 25) -> list[str]:
    """Families of texts of all similarities, chains of edits among them, in mixed order."""
    draw = random.Random(seed)
    texts = []
    for family in range(families):
        text = story(1000 * seed + family, sentences=draw.randint(1, 14))
        for _ in range(draw.randint(1, 6)):
            texts.append(text)
            base = text if draw.random() < 0.5 else texts[-1]
            text = edited(base, draw.choice([0.0, 0.01, 0.02, 0.05]), draw)
            if draw.random() < 0.1:
                text = text.upper().replace(" ", "\n ")
    draw.shuffle(texts)
    return [*texts, "", "?!", "?!", "one", "One  ", "\u00c0 b\u00a0c", "\u00e0 B c"]


def sets(texts: Sequence[str], n: int = 5) -> list[np.ndarray]:  # type: ignore[type-arg]
    return [np.unique(shingles([text], n).hashes) for text in texts]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("engine")
    texts = variants(1)
    return texts, verdicts_of(folder, write(folder / "texts", texts), Dedup()), folder


def test_a_document_goes_only_if_it_is_similar_to_one_that_stays(made) -> None:  # type: ignore[no-untyped-def]
    texts, found, _ = made
    own = sets(texts)
    assert {EXACT, NEAR, STAYS} == set(found["reason"])
    for number, kept in enumerate(found["kept"]):
        if found["reason"][number] == STAYS:
            assert kept == number and found["jaccard"][number] is None
            continue
        assert kept < number and found["reason"][kept] == STAYS
        if found["reason"][number] == EXACT:
            assert texts[number].lower().split() == texts[kept].lower().split()
            assert found["jaccard"][number] == 1.0
        else:
            assert found["jaccard"][number] == jaccard(own[number], own[kept]) >= THRESHOLD


def test_no_two_documents_that_stay_are_near_duplicates(made) -> None:  # type: ignore[no-untyped-def]
    """Against all pairs; the bands are allowed to miss one in two hundred at the threshold."""
    texts, found, _ = made
    own = sets(texts)
    similar = {
        pair
        for pair in itertools.combinations(range(len(texts)), 2)
        if jaccard(own[pair[0]], own[pair[1]]) >= THRESHOLD
    }
    both_stay = [pair for pair in similar if {found["reason"][i] for i in pair} == {STAYS}]
    assert len(similar) > 60 and not both_stay
    expected = [n for n in range(len(texts)) if in_order(n, similar)]
    stays = [n for n in expected if not exact_copy(n, texts)]
    assert [n for n, reason in enumerate(found["reason"]) if reason == STAYS] == stays


def exact_copy(number: int, texts: list[str]) -> bool:
    own = texts[number].lower().split()
    return any(texts[k].lower().split() == own for k in range(number))


def test_a_cluster_holds_all_that_is_joined_through_similar_pairs(made) -> None:  # type: ignore[no-untyped-def]
    texts, found, _ = made
    own = sets(texts)
    for number, cluster in enumerate(found["cluster"]):
        assert cluster <= number and found["cluster"][cluster] == cluster
        assert found["reason"][cluster] == STAYS, "the first of a cluster stays"
        assert found["cluster"][found["kept"][number]] == cluster
    for a, b in itertools.combinations(range(len(texts)), 2):
        if jaccard(own[a], own[b]) >= THRESHOLD and STAYS in (
            found["reason"][a],
            found["reason"][b],
        ):
            assert found["cluster"][a] == found["cluster"][b]


def test_the_size_of_the_pieces_changes_nothing(
    made,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,  # type: ignore[no-untyped-def]
) -> None:
    texts, found, _ = made
    monkeypatch.setattr(fingerprints, "RUN", 7)
    monkeypatch.setattr(fingerprints, "BLOCK_BYTES", 300)
    monkeypatch.setattr(bands, "RANGE", 40)
    monkeypatch.setattr(bands, "COPIED", 11)
    monkeypatch.setattr(greedy, "CHUNK", 30)
    monkeypatch.setattr(near, "HERE_BYTES", 20_000)
    monkeypatch.setattr(near, "PART_BYTES", 30_000)
    monkeypatch.setattr(near, "OPEN", 2)
    paths = write(tmp_path / "texts", texts, shard_bytes=9_000)
    assert len(paths) > 3
    again = verdicts_of(tmp_path, paths, Dedup())
    for name in ("kept", "cluster", "reason", "jaccard", "ids", "sizes"):
        assert again[name] == found[name], name


def test_a_key_holds_its_band_and_the_document_that_it_belongs_to(
    made,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,  # type: ignore[no-untyped-def]
) -> None:
    texts, _, _ = made
    sketch = sketch_of(Dedup())
    blocks = [texts[:50], texts[50:]]
    expected = np.concatenate(
        [fingerprints.fingerprint([None] * len(b), b, sketch).keys for b in blocks]
    )
    monkeypatch.setattr(fingerprints, "RUN", 40)
    (path,) = write(tmp_path / "texts", texts, 10**9)
    counts = fingerprints.fingerprint_part(shard_part(path), tmp_path, sketch)
    assert sum(counts) == len(texts) and max(counts) <= 40
    first = 0
    for number, documents in enumerate(counts):
        keys = np.load(tmp_path / f"keys-{number:05d}.npy")
        rows = (keys & np.uint64(2**fingerprints.ROW_BITS - 1)).astype(np.int64)
        for band in range(sketch.bands):
            own = expected[first + rows[band], band] >> np.uint64(fingerprints.ROW_BITS)
            assert (keys[band] >> np.uint64(fingerprints.ROW_BITS) == own).all()
            assert (np.diff(keys[band]) > 0).all()
        first += documents


def test_a_run_that_was_broken_off_goes_on_and_ends_the_same(
    made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # type: ignore[no-untyped-def]
    texts, found, _ = made
    paths = write(tmp_path / "texts", texts)

    def broken(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tasks.data.duplicates.gather", broken)
    with pytest.raises(KeyboardInterrupt):
        verdicts_of(tmp_path, paths, Dedup())
    monkeypatch.undo()
    capsys.readouterr()
    monkeypatch.setattr("tasks.data.fingerprints.fingerprint", broken)  # not called again
    again = verdicts_of(tmp_path, paths, Dedup())
    assert "parts are there already" in capsys.readouterr().out
    assert again == found and not (tmp_path / "work").exists()


def test_exact_duplicates_alone_and_neither(tmp_path: Path) -> None:
    texts = [story(1), nearly(story(1)), story(1).upper(), story(2)]
    paths = write(tmp_path / "texts", texts)
    only = verdicts_of(tmp_path, paths, Dedup(near=False))
    assert [REASONS[r] for r in only["reason"]] == ["", "", "exact", ""]
    near_only = verdicts_of(tmp_path, paths, Dedup(exact=False))
    assert [REASONS[r] for r in near_only["reason"]] == ["", "near", "near", ""]
    neither = verdicts_of(tmp_path, paths, Dedup(exact=False, near=False))
    assert neither["kept"] == neither["cluster"] == [0, 1, 2, 3]


def test_a_family_of_a_thousand_costs_few_comparisons(tmp_path: Path) -> None:
    draw = random.Random(0)
    base = story(5, sentences=20)
    texts = [base, *(edited(base, 0.01, draw) for _ in range(1000))]
    found = verdicts_of(tmp_path, write(tmp_path / "texts", texts, 10**9), Dedup())
    assert found["reason"].count(STAYS) < 10
    assert found["notes"]["pairs_compared"] < 20 * len(texts)


# --- real text ----------------------------------------------------------------------------------


def test_on_real_text_nearly_all_pairs_are_found_and_none_but_those(
    mirror: Path, tmp_path: Path
) -> None:
    """Wikipedia with the articles that its dump holds twice, stories, web pages and their edits."""
    texts: list[str] = []
    for name, column, rows in (
        ("wikimedia/wikipedia/20231101.en/train-00003-of-00004.parquet", "text", 20_000),
        ("wikimedia/wikipedia/20231101.en/train-00000-of-00004.parquet", "text", 700),
        ("roneneldan/TinyStories/default/train-00000-of-00001.parquet", "text", 800),
        ("HuggingFaceFW/fineweb-edu/sample-10BT/train-00000-of-00001.parquet", "text", 200),
        ("openai/gsm8k/main/train-00000-of-00001.parquet", "question", 500),
    ):
        whole = pq.read_table(mirror / name)[column].to_pylist()
        texts += [text[:4000] for text in whole[-rows if "00003" in name else 0 :][:rows]][:900]
    draw = random.Random(0)
    texts += [edited(text, draw.choice([0.005, 0.01, 0.02, 0.03]), draw) for text in texts[::5]]
    found = verdicts_of(tmp_path, write(tmp_path / "texts", texts, 2_000_000), Dedup(exact=False))
    own = sets(texts)
    similar = similar_pairs(own, THRESHOLD)
    stays = [reason == STAYS for reason in found["reason"]]
    missed = [pair for pair in similar if stays[pair[0]] and stays[pair[1]]]
    assert len(similar) > 300 and len(missed) <= 0.01 * len(similar)
    for number, kept in enumerate(found["kept"]):
        if not stays[number]:
            assert (kept, number) in similar, "none under the threshold"


def similar_pairs(own: list[np.ndarray], threshold: float) -> set[tuple[int, int]]:  # type: ignore[type-arg]
    """All pairs of at least that similarity, by an inverted index: exact."""
    owners = np.repeat(np.arange(len(own)), [len(s) for s in own])
    values = np.concatenate(own)
    order = np.argsort(values, kind="stable")
    values, owners = values[order], owners[order]
    shared: dict[tuple[int, int], int] = {}
    edges = np.flatnonzero(np.diff(values, prepend=~values[:1], append=~values[-1:]))
    for start, stop in itertools.pairwise(edges.tolist()):
        if stop - start > 1:
            for pair in itertools.combinations(owners[start:stop].tolist(), 2):
                shared[pair] = shared.get(pair, 0) + 1
    return {
        (a, b)
        for (a, b), both in shared.items()
        if both / (len(own[a]) + len(own[b]) - both) >= threshold
    }


def test_old_work_of_other_files_is_not_gone_on_with(tmp_path: Path) -> None:
    paths = write(tmp_path / "texts", [story(1), story(2)])
    first = verdicts_of(tmp_path, paths, Dedup())
    shutil.rmtree(tmp_path / "texts")
    paths = write(tmp_path / "texts", [story(3), nearly(story(3)), story(4)])
    second = verdicts_of(tmp_path, paths, Dedup())
    assert first["reason"] == [STAYS, STAYS] and second["reason"] == [STAYS, NEAR, STAYS]
