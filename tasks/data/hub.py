"""Rows of a dataset of the Hugging Face hub, streamed; or of a mirror folder that stands in for it.

    hub:     load_dataset(id, config, split=..., revision=..., streaming=True)
    mirror:  PHASEWISE_HUB=<folder>  ->  <folder>/<id>/<config>/<split>-*.parquet

Both give the same rows in the same order, so a recipe need not know which one it reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from tasks.data.local import file_facts
from tasks.data.parquet import parquet_length, parquet_rows
from tasks.data.rows import Place, Row, labels
from tasks.errors import NO_INPUT, UNAVAILABLE, UserError, nearest
from tasks.recipe import Hub, Split
from tasks.shardwise import identity

_MARK_ROWS, _MARKS = 1000, 8  # how often the stream's state is noted, and how many are kept
WAITS = (2.0, 8.0)  # seconds between attempts, atop the hub client's own back-off within each


class HubReader:
    """A dataset of the hub at a pinned revision."""

    resumable: ClassVar[bool] = True

    def __init__(
        self,
        hub: Hub,
        where: str,
        load: Callable[..., Any] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """
        Args:
            hub: the dataset.
            where: file and key of the source, for errors.
            load: stands in for ``datasets.load_dataset``.
            sleep: stands in for ``time.sleep``.
        """
        self._hub, self._where, self._sleep = hub, where, sleep
        self._load = load or _load_dataset
        self._marks: list[list[Any]] = []  # row, and the state of the stream before it

    @property
    def splits(self) -> list[Split]:
        return list(self._hub.splits)

    def rows(self, split: Split, start: Place = (0, 0), mark: Any = None) -> Iterator[Row]:
        """The rows of a split, in the dataset's order, from ``start`` on.

        A connection that breaks is taken up again at the row it had reached. Raises UserError:
        exit code 69 where the hub does not answer, 66 where it does not have the dataset.

        Args:
            mark: what ``mark`` gave for that place, so that the files before it are not read.
        """
        done, failures = start[1], 0
        self._marks = [mark] if mark else []
        while True:
            try:
                for values in self._open(split, done):
                    yield _row(self._hub, split, values, (0, done), done)
                    done, failures = done + 1, 0
                return
            except Exception as error:
                if not _is_transient(error):
                    if _is_refusal(error):
                        raise self._refused(error) from error
                    raise
                if failures == len(WAITS):
                    raise self._unreachable(error) from error
                print(f"    the hub does not answer; again in {WAITS[failures]:.0f} s", flush=True)
                self._sleep(WAITS[failures])
                failures += 1

    def mark(self, place: Place) -> Any:
        """JSON: the last state of the stream, with its row, at or before a place; or None."""
        before = [mark for mark in self._marks if mark[0] <= place[1]]
        return before[-1] if before else None

    def _open(self, split: Split, skip: int) -> Iterator[dict[str, Any]]:
        """The stream from row ``skip`` on: from a state of it (its file) where there is one."""
        dataset = self._load(
            self._hub.id,
            self._hub.config,
            split=self._hub.splits[split],
            revision=self._hub.revision,
            streaming=True,
        )
        mark = self.mark((0, skip))
        if mark:
            dataset.load_state_dict(mark[1])
            rows = islice(dataset, skip - mark[0], None)
        else:
            rows = iter(dataset.skip(skip) if skip else dataset)
        for done, values in enumerate(rows, start=skip + 1):
            yield values
            if done % _MARK_ROWS == 0 and hasattr(dataset, "state_dict"):
                self._marks = [*self._marks[1 - _MARKS :], [done, dataset.state_dict()]]

    def _unreachable(self, error: Exception) -> UserError:
        return UserError(
            f"the hub does not answer: {error}",
            where=f"{self._where}.hub",
            hint="run the same command again when the network is back; or name a folder that "
            "stands in for the hub, PHASEWISE_HUB=<folder>, and put the dataset into it as "
            f"<folder>/{self._hub.id}/{self._hub.config}/<split>-*.parquet",
            exit_code=UNAVAILABLE,
        )

    def _refused(self, error: Exception) -> UserError:
        return UserError(
            f"{self._hub.id}, config {self._hub.config}, revision {self._hub.revision}: {error}",
            where=f"{self._where}.hub",
            hint="check id, config, revision and splits on https://huggingface.co/datasets/"
            f"{self._hub.id}; a dataset that is a script has its parquet files at revision "
            "refs/convert/parquet",
            exit_code=NO_INPUT,
        )

    def identity(self) -> Any:
        return _address(self._hub)

    def provenance(self) -> dict[str, Any]:
        return {"kind": "hub"} | _address(self._hub)


class MirrorReader:
    """A folder that stands in for the hub, laid out as ``<id>/<config>/<split>-*.parquet``."""

    resumable: ClassVar[bool] = True

    def __init__(self, hub: Hub, mirror: Path, where: str) -> None:
        """Raises UserError (exit code 66) listing what the mirror has, where it lacks a split."""
        self._hub, self._mirror, self._where = hub, mirror, where
        self._folder = mirror / hub.id / hub.config
        self._paths = {ours: self._shards(theirs) for ours, theirs in hub.splits.items()}

    @property
    def splits(self) -> list[Split]:
        return list(self._paths)

    @property
    def folder(self) -> Path:
        return self._mirror

    @property
    def paths(self) -> dict[Split, list[str]]:
        """The files of each split, relative to ``folder``."""
        return self._paths

    def _shards(self, split: str) -> list[str]:
        if not self._mirror.is_dir():
            raise UserError(
                f"{self._mirror} is no folder", where="PHASEWISE_HUB", exit_code=NO_INPUT
            )
        paths = sorted(self._folder.glob(f"{split}-*.parquet"))
        if not paths:
            raise self._missing(split)
        return [str(path.relative_to(self._mirror)) for path in paths]

    def _missing(self, split: str) -> UserError:
        """Say which of dataset, config and split is not there, and what is."""
        hub, mirror = self._hub, self._mirror
        files = mirror.glob("*/*/*/*.parquet")
        datasets = sorted({"/".join(path.relative_to(mirror).parts[:2]) for path in files})
        configs = sorted({p.parent.name for p in (mirror / hub.id).glob("*/*.parquet")})
        splits = sorted({p.name.partition("-")[0] for p in self._folder.glob("*-*.parquet")})
        if hub.id not in datasets:
            kind, name, there = "dataset", hub.id, datasets
        elif hub.config not in configs:
            kind, name, there = "config", hub.config, configs
        else:
            kind, name, there = "split", split, splits
        guess = nearest(name, there)
        return UserError(
            f"the mirror {mirror} has no {kind} {name!r}"
            + ("" if kind == "dataset" else f" of {hub.id}")
            + (f"; did you mean {guess!r}?" if guess else ""),
            where=f"{self._where}.hub",
            hint=f"there are: {', '.join(there) or 'none'}; looked for "
            f"{hub.id}/{hub.config}/{split}-*.parquet",
            exit_code=NO_INPUT,
        )

    def rows(self, split: Split, start: Place = (0, 0), mark: Any = None) -> Iterator[Row]:
        """The rows of a split, in the order of the files' names, from ``start`` on."""
        before = 0
        for number, path in enumerate(self._paths[split]):
            full = self._mirror / path
            if number >= start[0]:
                skip = start[1] if number == start[0] else 0
                for row, values in parquet_rows(full, skip):
                    yield _row(self._hub, split, values, (number, row), before + row)
            before += parquet_length(full)

    def mark(self, place: Place) -> Any:
        return None

    def identity(self) -> Any:
        files = [self._mirror / path for paths in self._paths.values() for path in paths]
        return [_address(self._hub), identity(files)]

    def provenance(self) -> dict[str, Any]:
        """The dataset's address, and bytes and SHA-256 of each file that stood in for it."""
        return {
            "kind": "mirror",
            **_address(self._hub),
            "files": [
                {"split": split} | file_facts(self._mirror, path)
                for split, paths in self._paths.items()
                for path in paths
            ],
        }


def _row(hub: Hub, split: Split, values: dict[str, Any], place: Place, number: int) -> Row:
    origin = {"dataset": hub.id, "config": hub.config, "split": hub.splits[split], "row": number}
    return Row(values, origin | labels(values), place)


def _address(hub: Hub) -> dict[str, Any]:
    return {
        "id": hub.id,
        "config": hub.config,
        "revision": hub.revision,
        "splits": dict(hub.splits),
    }


def _load_dataset(*args: Any, **options: Any) -> Any:
    import datasets  # takes a second to import

    return datasets.load_dataset(*args, **options)


def _is_refusal(error: Exception) -> bool:
    """Whether the hub, or its client, says that the request cannot be met as it is."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    kinds = (DatasetsError, HfHubHTTPError, FileNotFoundError, ValueError, RuntimeError)
    return isinstance(error, kinds)


def _is_transient(error: Exception) -> bool:
    """Whether asking again may help: no connection, a time-out, a busy or failing server."""
    import httpx  # the hub client's own transport

    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return status == 429 or status >= 500
    return isinstance(error, ConnectionError | TimeoutError | httpx.TransportError)
