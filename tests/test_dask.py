"""Dask workers do a data stage as processes do: the same bytes, and nothing lost with a worker."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tasks.data.clean import clean
from tasks.data.download import download
from tasks.errors import BAD_DATA, UNAVAILABLE, UserError
from tasks.settings import settings
from tasks.shardwise import map_parts
from tasks.workspace import Workspace
from tests.corpus import small_recipe, write_corpus
from tests.test_shardwise import PARTS, dies, fails, fingerprints, ran

distributed = pytest.importorskip("distributed", reason="the extra 'dask' is not installed")
dask = pytest.importorskip("dask")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a scheduler on this machine with two workers, each a process."""
    patience = {"distributed.scheduler.allowed-failures": 1}
    with (
        dask.config.set(patience),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            local_directory=str(tmp_path_factory.mktemp("dask")),
            silence_logs=50,
        ) as cluster,
    ):
        yield cluster.scheduler_address


@pytest.fixture
def by_dask(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHASEWISE_DASK", cluster)


def test_dask_and_processes_write_the_same_bytes(
    tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = write_corpus(tmp_path / "corpus")
    recipe, workspace = small_recipe(planted["sources"]), Workspace(tmp_path)
    monkeypatch.setattr("tasks.data.download.SHARD_BYTES", 20_000)
    download(workspace, recipe, "letters")
    assert len(list(workspace.raw("letters").glob("train-*.parquet"))) > 3
    monkeypatch.setattr("tasks.shardwise.INLINE_BYTES", 0)
    monkeypatch.setenv("PHASEWISE_WORKERS", "2")
    clean(workspace, recipe, "letters")
    by_processes = fingerprints(workspace.clean("letters"))
    monkeypatch.setenv("PHASEWISE_DASK", cluster)
    settings.cache_clear()
    clean(workspace, recipe, "letters")
    assert fingerprints(workspace.clean("letters")) == by_processes


def test_a_part_whose_dask_worker_is_killed_goes_to_another(tmp_path: Path, by_dask: None) -> None:
    log = tmp_path / "log"
    assert map_parts(partial(dies, times=1, log=str(log)), PARTS, tmp_path / "a", "k") == PARTS
    assert ran(log).count(3) == 2


def test_a_part_that_kills_every_dask_worker_is_named(tmp_path: Path, by_dask: None) -> None:
    function = partial(dies, times=99, log=str(tmp_path / "log"))
    with pytest.raises(UserError, match="every worker that took this part of the work died: 3"):
        map_parts(function, PARTS, tmp_path / "a", "k")


def test_an_error_on_a_dask_worker_arrives_as_it_was(tmp_path: Path, by_dask: None) -> None:
    with pytest.raises(UserError, match="the third is bad") as error:
        map_parts(fails, PARTS, tmp_path / "a", "k")
    assert error.value.exit_code == BAD_DATA and error.value.where == "x:3"


def test_a_scheduler_that_goes_away_is_said_and_what_is_done_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, host="127.0.0.1",
        dashboard_address="127.0.0.1:0", local_directory=str(tmp_path / "dask"), silence_logs=50,
    ) as own:  # fmt: skip
        monkeypatch.setenv("PHASEWISE_DASK", own.scheduler_address)
        monkeypatch.setattr("tasks.executors._CONNECT_SECONDS", 0.5)
        map_parts(partial(dies, times=0, log=str(tmp_path / "log")), PARTS, tmp_path / "a", "k")
    settings.cache_clear()
    with pytest.raises(UserError, match="no Dask scheduler answers") as error:
        map_parts(fails, PARTS, tmp_path / "b", "k")
    assert error.value.exit_code == UNAVAILABLE
