"""Work on many texts at once: a function over batches, in order, on all cores of this machine.

This is the one place that knows how a data stage is spread: whatever runs the batches, they come
back in the order they went in, so the output's bytes do not depend on it.
"""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import TypeVar

from tasks.executors import end_with_parent
from tasks.settings import settings

Item = TypeVar("Item")
Result = TypeVar("Result")

BATCH_BYTES = 1_000_000  # of text: some tens of milliseconds of work
_INLINE_SECONDS = 0.5  # of work done here before processes are started, which takes as long
_AHEAD = 2  # batches in flight a worker


def batches(items: Iterable[Item], size: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Group items into lists of about ``BATCH_BYTES`` by ``size``; no list is empty."""
    batch: list[Item] = []
    held = 0
    for item in items:
        batch.append(item)
        held += size(item)
        if held >= BATCH_BYTES:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def map_ordered(
    function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[tuple[Item, Result]]:
    """Yield ``(item, function(item))`` in the order of the items.

    The function and its arguments travel to other processes, so it is a module's own function (or
    a ``functools.partial`` of one). At most a few items a process are held at a time.
    """
    remaining = iter(items)
    cores = settings().cores
    spent = 0.0
    for item in remaining:
        started = time.monotonic()
        result = function(item)
        spent += time.monotonic() - started
        yield item, result
        if cores > 1 and spent >= _INLINE_SECONDS:
            yield from _in_processes(function, remaining, cores)


def _in_processes(
    function: Callable[[Item], Result], items: Iterable[Item], cores: int
) -> Iterator[tuple[Item, Result]]:
    # spawn: a fork of a process that has threads (pyarrow's) may hang
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(cores, mp_context=context, initializer=end_with_parent)
    yield from _in_order(pool, function, items, cores * _AHEAD)


def map_in_threads(
    function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[tuple[Item, Result]]:
    """As ``map_ordered``, for a function that releases Python's lock: nothing travels anywhere."""
    cores = settings().cores
    yield from _in_order(ThreadPoolExecutor(cores), function, items, cores * _AHEAD)


def _in_order(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[tuple[Item, Result]]:
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
