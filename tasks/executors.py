"""Where parts of a stage run: child processes of this one, or Dask workers on other machines.

Both are a ``concurrent.futures`` executor, so nothing else in the code knows which it is. With
``PHASEWISE_DASK=tcp://host:8786`` the parts go to the workers of that scheduler. Those must see
the workspace under the same path (a shared file system) and have the same phasewise installed;
what travels is the name of a function, paths and a few figures: no text and no array.

Dask's processes talk to each other in pickle. That is transport between trusted machines, never a
stored artifact; no scheduler is asked unless its address is given, and none is ever started here.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from tasks.errors import UNAVAILABLE, USAGE, UserError
from tasks.settings import settings

_AHEAD = 2  # parts in flight a worker, so that none waits for the next
_CONNECT_SECONDS = 10


@dataclass(frozen=True)
class Pool:
    """An executor.

    Attributes:
        executor: runs the parts.
        room: how many parts may be in flight now.
        died: what a future raises when its worker ended in the middle: killed, out of memory, or
            its machine is gone.
        gave_up: what it raises when the executor itself tried a part again too often.
    """

    executor: Executor
    room: Callable[[], int]
    died: tuple[type[BaseException], ...]
    gave_up: tuple[type[BaseException], ...] = ()


@contextlib.contextmanager
def open_pool() -> Iterator[Pool]:
    """The executor of this machine's settings; leaving it waits for the parts that are running.

    Raises UserError where Dask is set and is not installed or does not answer.
    """
    address = settings().dask
    with _dask(address) if address else _processes(settings().cores) as pool:
        yield pool


@contextlib.contextmanager
def _processes(cores: int) -> Iterator[Pool]:
    # spawn: a fork of a process that has threads (pyarrow's) may hang
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(cores, mp_context=context, initializer=end_with_parent)
    try:
        yield Pool(executor, lambda: cores * _AHEAD, (BrokenExecutor,))
    finally:
        executor.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _dask(address: str) -> Iterator[Pool]:
    try:
        from distributed import Client
        from distributed.scheduler import KilledWorker
    except ImportError:
        raise UserError(
            "dask.distributed is not installed",
            where="PHASEWISE_DASK",
            hint="pip install 'phasewise[dask]', here and on the workers",
            exit_code=USAGE,
        ) from None
    try:
        client = Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no Dask scheduler answers at {address}: {error}",
            where="PHASEWISE_DASK",
            hint="start one (dask scheduler --host <address>) and its workers (dask worker "
            f"{address}), or unset it to work on this machine alone",
            exit_code=UNAVAILABLE,
        ) from None

    def room() -> int:
        return max(1, sum(client.nthreads().values())) * _AHEAD

    with client:
        executor = client.get_executor(pure=False)
        try:
            yield Pool(executor, room, (CancelledError,), (KilledWorker,))
        finally:
            executor.shutdown()


def end_with_parent() -> None:
    """Set up a worker process: it ends when its parent dies, even by ``kill -9``.

    An interrupt from the keyboard reaches parent and workers alike; the parent answers it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["RAYON_NUM_THREADS"] = "1"  # a worker is a core; tokenizers would take them all

    def watch(parent: Any) -> None:
        parent.join()
        os._exit(1)

    parent = multiprocessing.parent_process()
    threading.Thread(target=watch, args=(parent,), daemon=True).start()
