"""Work over many parts, each done once: a stage that is killed goes on where it was.

    parts --function, in an executor--> <folder>/00000/ ... 00001/ ... (each whole, or not there)
                                            result.json: what the function returned

A part is a small argument (paths, a range of rows); its function reads what that names and writes
files into a fresh folder, which takes its number as name only when all is synced. So a part is
whole or not there, whoever ran it and however they ended. Results come back in the order of the
parts: the bytes made from them do not depend on the number of workers, on where those are, or on
how often the work was broken off.

    with work_folder(workspace.work("clean", source)) as work:
        results = map_parts(clean_part, parts, work / "parts", key, title="cleaning")
        ... link the files of part_folder(work / "parts", number) into the output ...

Where parts run, and what a death of a worker means there, is the business of executors.py.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import shutil
import sys
import uuid
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tasks.errors import BUSY, UserError
from tasks.executors import Pool, open_pool
from tasks.files import exclusive, fingerprint, read_json, sync_folder, sync_tree, write_text
from tasks.progress import progress
from tasks.settings import settings

Part = TypeVar("Part")

TRIES = 3  # of a part whose worker dies each time
INLINE_BYTES = 4_000_000  # of input: sooner done here than by processes that must start first
_KEY, _RESULT = "key.json", "result.json"


@contextlib.contextmanager
def work_folder(path: Path) -> Iterator[Path]:
    """A stage's folder for unfinished work: kept when the block fails, removed when it ends well.

    Raises UserError (exit code 75) where another process works in it.
    """
    path = path.resolve()  # workers may stand in another folder
    path.mkdir(parents=True, exist_ok=True)
    with exclusive(path / ".lock"):
        yield path
        shutil.rmtree(path)


def map_parts(
    function: Callable[[Part, Path], Any],
    parts: Sequence[Part],
    folder: Path,
    key: Any,
    *,
    title: str = "working",
    sizes: Sequence[int] | None = None,
) -> list[Any]:
    """``function(part, out)`` of every part, in the order of the parts.

    Args:
        function: a module's own function, or a ``functools.partial`` of one. It writes its files
            into the empty folder ``out`` and returns a JSON value. It must not depend on anything
            that may differ between two workers; paths in it and in the parts are absolute.
        parts: JSON values (paths may stand among them).
        folder: where the parts are kept; inside ``work_folder``, one for each call.
        key: JSON value: whatever a result depends on beside function and part (``identity`` of
            the files read, parameters, version of the format).
        title: for the progress line.
        sizes: bytes that each part reads; few bytes in all are done in this process.

    Returns:
        What each call returned, as JSON gives it back; its files lie in
        ``part_folder(folder, number)``. Parts that are there under the same key do not run again;
        another key empties the folder, aloud.

    Raises whatever the function raised, UserErrors as they were (parts that were running are
    finished and kept); UserError where the worker of one part died ``TRIES`` times.
    """
    folder = folder.resolve()
    function = _importable(function)
    begun = _begin(folder, fingerprint([key, _name(function), _plain(list(parts))]))
    results: dict[int, Any] = {number: json.loads(text) for number, text in begun}
    left = [number for number in range(len(parts)) if number not in results]
    if results:
        print(f"    {title}: {len(results):,} of {len(parts):,} parts are there already")
    weigh = sizes or [1] * len(parts)
    here = settings().dask is None and (
        settings().cores == 1
        or len(left) == 1
        or (sizes is not None and sum(sizes[number] for number in left) <= INLINE_BYTES)
    )
    run = partial(_run_part, function, folder)
    done = sum(weigh[number] for number in results)
    with progress(sum(weigh), "bytes" if sizes else "parts", title, done) as shown:
        finished = ((n, run(n, parts[n])) for n in left) if here else _spread(run, parts, left)
        for number, text in finished:
            results[number] = json.loads(text)
            shown.advance(weigh[number])
    return [results[number] for number in range(len(parts))]


def chain_parts(
    step: Callable[[Any, Path], tuple[Any, Any]], start: Any, folder: Path, key: Any
) -> list[Any]:
    """Parts that follow from one another, each done once: a stream that goes on where it was.

    Args:
        step: ``(state, out) -> (result, next state)``, all JSON values; it writes its files into
            the empty folder ``out``. The last one's next state is None. It runs in this process.
        start: state of the first part.
        folder, key: as of ``map_parts``.

    Returns:
        The results in order; the files of each lie in ``part_folder(folder, number)``.
    """
    folder = folder.resolve()
    texts = dict(_begin(folder, fingerprint([key, _plain(start)])))
    done = [json.loads(texts[number]) for number in range(len(texts))]
    if done:
        print(f"    going on after {len(done):,} parts that are there already")
    state = done[-1][1] if done else start
    while state is not None or not done:
        done.append(json.loads(_run_part(step, folder, len(done), state)))
        state = done[-1][1]
    return [result for result, _ in done]


def part_folder(folder: Path, number: int) -> Path:
    """Where the files of a part lie once it is finished."""
    return folder / f"{number:05d}"


def identity(paths: Iterable[Path]) -> list[list[Any]]:
    """Name, bytes and time of last change of files, for a key: read no byte, miss no rewrite."""
    return [[path.name, (s := path.stat()).st_size, s.st_mtime_ns] for path in paths]


def _begin(folder: Path, key: str) -> Iterator[tuple[int, str]]:
    """Make the folder ready; yield number and result of each part that is there."""
    mark = folder / _KEY
    if folder.exists() and (not mark.exists() or read_json(mark) != key):
        print(f"    {folder} was begun with other inputs or settings: starting afresh")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not mark.exists():
        write_text(mark, json.dumps(key))
    for path in sorted(folder.iterdir()):
        if path.name.endswith(".tmp"):
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_dir():
            yield int(path.name), (path / _RESULT).read_text()


def _run_part(function: Callable[[Any, Path], Any], folder: Path, number: int, part: Any) -> str:
    """Run one part in a worker; returns its result as JSON."""
    final = part_folder(folder, number)
    if final.exists():  # finished by a worker that died, or was thought dead, before it said so
        return (final / _RESULT).read_text()
    out = folder / f".{number:05d}.{uuid.uuid4().hex}.tmp"
    out.mkdir()
    try:
        text = json.dumps(_plain(function(part, out)), ensure_ascii=False, allow_nan=False)
        (out / _RESULT).write_text(text, encoding="utf-8")
        sync_tree(out)
        os.rename(out, final)
        sync_folder(folder)
    except OSError as error:
        shutil.rmtree(out, ignore_errors=True)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and final.exists():
            return (final / _RESULT).read_text()
        raise
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    return text


def _spread(
    run: Callable[[int, Any], str], parts: Sequence[Any], left: list[int]
) -> Iterator[tuple[int, str]]:
    """Yield number and result as parts end; a pool that breaks is followed by a fresh one.

    Which part broke it is not known: each one that was in flight then runs alone.
    """
    waiting = deque(left)
    deaths: Counter[int] = Counter()
    while waiting:
        with open_pool() as pool:
            lost = yield from _until_broken(pool, run, parts, waiting, deaths)
        for number in lost:
            if deaths[number] >= TRIES:
                raise UserError(
                    f"every worker that took this part of the work died: {parts[number]}",
                    hint="killed, or out of memory: give each more, or run fewer at a time "
                    "(PHASEWISE_WORKERS=1); then run the same command again: what is finished "
                    "stays",
                    exit_code=BUSY,
                )
        if lost:
            print(f"    a worker died; {len(lost)} parts go to a fresh pool", file=sys.stderr)
        waiting.extendleft(reversed(lost))


def _until_broken(
    pool: Pool,
    run: Callable[[int, Any], str],
    parts: Sequence[Any],
    waiting: deque[int],
    deaths: Counter[int],
) -> Generator[tuple[int, str], None, list[int]]:
    """Yield number and result of parts; return the numbers of those whose worker died."""
    running: dict[Future[str], int] = {}
    lost: list[int] = []
    while running or (waiting and not lost):
        while waiting and not lost and _may_start(waiting[0], running, deaths, pool):
            number = waiting.popleft()
            try:
                running[pool.executor.submit(run, number, parts[number])] = number
            except pool.died:
                lost.append(number)
        ended, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in sorted(ended, key=lambda future: running[future]):
            number = running.pop(future)
            try:
                yield number, future.result()
            except pool.died:
                deaths[number] += 1
                lost.append(number)
            except pool.gave_up:  # after attempts of its own: once more, alone
                deaths[number] += TRIES - 1
                lost.append(number)
    return sorted(lost)


def _may_start(
    number: int, running: dict[Future[str], int], deaths: Counter[int], pool: Pool
) -> bool:
    if deaths[number] or any(deaths[other] for other in running.values()):
        return not running
    return len(running) < pool.room()


def _plain(value: Any) -> Any:
    """The value with paths as words, as JSON and fingerprints have them."""
    return json.loads(json.dumps(value, default=os.fspath))


def _importable(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function by the name under which another process can import it.

    A stage runs as ``python -m tasks.data.clean``, where its own functions belong to ``__main__``.
    """
    if isinstance(function, partial):
        return partial(_importable(function.func), *function.args, **function.keywords)
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if function.__module__ != "__main__" or spec is None:
        return function
    found = importlib.import_module(spec.name)
    for name in function.__qualname__.split("."):
        found = getattr(found, name)
    return found  # type: ignore[return-value]


def _name(function: Callable[..., Any]) -> str:
    inner = function.func if isinstance(function, partial) else function
    return f"{inner.__module__}.{inner.__qualname__}"
