"""What the machine does while a phase trains, seen from beside it: processor, memory, disk, GPUs.

    psutil, nvidia-smi -> runs/<phase>/system.jsonl -> MLflow's page "System metrics"

The follower looks, never the trainer, so that looking costs training nothing. The names are those
of MLflow's own monitor, which would have to run in the trainer.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

SECONDS = 10.0  # between two looks
MEGABYTE = 1e6
_QUERY = "index,utilization.gpu,memory.used,memory.total,power.draw"
_GPU_SECONDS = 5.0


class Machine:
    """Looks at this machine, and at one process of it with all that it started.

    Args:
        trainer: its process id.
        folder: on the disk whose filling is watched.
    """

    def __init__(self, trainer: int, folder: Path) -> None:
        self._folder = folder
        self._smi = shutil.which("nvidia-smi")
        self._trainer = psutil.Process(trainer) if psutil.pid_exists(trainer) else None
        self._seconds, self._clock = self._processor_seconds(), time.monotonic()
        psutil.cpu_percent()  # its first answer means nothing

    def figures(self) -> dict[str, float]:
        """Percent, megabytes (10**6 bytes) and watts, by name; percents of use since last asked.

        ``trainer_cpu_percentage`` is of one core: 200 are two cores at work.
        """
        memory, disk = psutil.virtual_memory(), shutil.disk_usage(self._folder)
        found = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": round(memory.used / MEGABYTE, 1),
            "system_memory_usage_percentage": memory.percent,
            "disk_usage_percentage": round(100 * disk.used / disk.total, 1),
            "disk_available_megabytes": round(disk.free / MEGABYTE, 1),
        }
        return found | self._of_trainer() | self._of_gpus()

    def _of_trainer(self) -> dict[str, float]:
        """Processor and memory of the trainer with its workers, us not counted."""
        before, since = self._seconds, self._clock
        self._seconds, self._clock = self._processor_seconds(), time.monotonic()
        if not (family := self._family()):
            return {}
        resident = sum(_of(process, lambda p: p.memory_info().rss) for process in family)
        spent = max(0.0, self._seconds - before)  # less where a worker has ended
        return {
            "trainer_cpu_percentage": round(100 * spent / max(1e-3, self._clock - since), 1),
            "trainer_memory_megabytes": round(resident / MEGABYTE, 1),
        }

    def _processor_seconds(self) -> float:
        return sum(_of(process, lambda p: sum(p.cpu_times()[:2])) for process in self._family())

    def _family(self) -> list[psutil.Process]:
        if self._trainer is None or not self._trainer.is_running():
            return []
        try:
            children = self._trainer.children(recursive=True)
        except psutil.Error:  # it ended just now
            return []
        own = psutil.Process().pid
        return [self._trainer, *(child for child in children if child.pid != own)]

    def _of_gpus(self) -> dict[str, float]:
        """What nvidia-smi says of each GPU; not asked again once it fails."""
        if self._smi is None:
            return {}
        command = [self._smi, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_GPU_SECONDS, check=True
            )
        except (OSError, subprocess.SubprocessError):
            self._smi = None
            return {}
        found: dict[str, float] = {}
        for line in done.stdout.splitlines():
            found |= gpu_figures([part.strip() for part in line.split(",")])
        return found


def gpu_figures(fields: list[str]) -> dict[str, float]:
    """The figures of one line of nvidia-smi; those that a GPU does not tell are left out."""
    index, *texts = fields
    used, busy, total, watts = (_number(texts[n]) for n in (1, 0, 2, 3))
    figures = {
        "utilization_percentage": busy,
        "memory_usage_megabytes": used and round(used * 2**20 / MEGABYTE, 1),  # it says MiB
        "memory_usage_percentage": used and total and round(100 * used / total, 1),
        "power_usage_watts": watts,
    }
    return {f"gpu_{index}_{name}": v for name, v in figures.items() if v is not None}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # "[N/A]"
        return None


def _of(process: psutil.Process, figure: Callable[[psutil.Process], float]) -> float:
    try:
        return float(figure(process))
    except psutil.Error:  # it ended just now
        return 0.0


class Recorder:
    """Appends a look every ``SECONDS`` to ``path``, under the key of the run it belongs to."""

    def __init__(self, path: Path, machine: Machine) -> None:
        self.path, self._machine = path, machine
        self._next = time.monotonic() + SECONDS
        if path.exists():  # a line that was cut short would spoil the file
            whole, newline, _ = path.read_bytes().rpartition(b"\n")
            os.truncate(path, len(whole + newline))

    def look(self, run_key: str, tokens: int) -> None:
        """Look if it is time; ``tokens`` of the phase so far are the record's place."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + SECONDS
        record = {
            "kind": "system",
            "run_key": run_key,
            "tokens": tokens,
            "figures": self._machine.figures(),
            "time": round(time.time(), 3),
        }
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")
        except OSError as error:  # a full disk: what training logs matters more
            print(f"    the machine is not watched any more: {error}", file=sys.stderr)
            self._next = math.inf
